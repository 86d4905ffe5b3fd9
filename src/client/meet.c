/*
 * meet.c: the master that a process is given: its address, and the first word with it.
 *
 * What cannot work is told with its cause within OPEN_NS: nobody listens, somebody listens and says
 * nothing, or it is a port of the master that speaks HTTP, the commonest mistake of all.
 */
#include <poll.h>
#include <string.h>

#include "base/str.h"
#include "client/link.h"

#define MASTER_DEFAULT "127.0.0.1:50051"
#define OPEN_NS (3 * MC_NS_PER_S)
#define PROBE_NS (500 * MC_NS_PER_MS)

int mc_cli_master_set(struct mc_store *st, const char *master, struct mc_diag *diag)
{
	struct mc_addr addr;
	char text[MC_CLI_TEXT_MAX];
	int rc;

	if (!master || !*master)
		master = MASTER_DEFAULT;
	if (strstr(master, "://")) {
		mc_diag_set(diag,
			    "master \"%s\": masters are not looked up in a service; give host:port "
			    "of the one there is",
			    master);
		return MC_STORE_INVALID_PARAMS;
	}
	rc = mc_addr_resolve(master, MC_ST_MASTER_PORT, &addr, diag);
	if (rc == 0) {
		rc = mc_addr_text_full(master, MC_ST_MASTER_PORT, text, sizeof(text));
		if (rc < 0)
			mc_diag_set(diag, "%s", mc_err_text(rc));
	}
	if (rc < 0) {
		mc_diag_wrap(diag, "master \"%s\"", master);
		return MC_STORE_INVALID_PARAMS;
	}
	mc_cli_end_set(&st->master, text);
	return 0;
}

/* Is who does not answer us an HTTP server? */
static bool is_http(const char *master)
{
	static const char ask[] = "GET /health HTTP/1.0\r\n\r\n";
	uint64_t until_ns = mc_time_after(mc_now_ns(), PROBE_NS);
	struct mc_addr addr;
	char got[5] = {0};
	int fd = -1;
	int rc = mc_addr_resolve(master, MC_ST_MASTER_PORT, &addr, NULL);

	if (rc == 0)
		rc = mc_sock_connect(&addr, NULL, &fd);
	if (rc == 0)
		rc = mc_sock_wait(fd, POLLOUT, until_ns);
	if (rc == 0)
		rc = mc_sock_connect_result(fd);
	if (rc == 0)
		rc = mc_sock_send_all(fd, ask, sizeof(ask) - 1, until_ns);
	if (rc == 0)
		rc = mc_sock_recv_all(fd, got, sizeof(got), until_ns);
	mc_fd_close(&fd);
	return rc == 0 && memcmp(got, "HTTP/", sizeof(got)) == 0;
}

static int complain(const struct mc_store *st, int rc, struct mc_diag *diag)
{
	const char *why = "Is mooncake_master running there, and is it the address that this "
			  "process was given?";
	int code = mc_cli_code_rpc(rc);

	if (rc != -MC_E_REFUSED && is_http(st->master.text))
		why = "An HTTP server listens there: give the port of the master's rpc "
		      "(--rpc_port, 50051), not that of its metrics or metadata.";
	else if (rc == -MC_E_TIMEDOUT)
		why = "Somebody listens there, or packets are lost on the way, but no "
		      "mooncake_master answers.";
	mc_diag_set(diag, "master %s: %s. %s", st->master.text, mc_err_text(rc), why);
	return code == MC_STORE_RPC_TIMEOUT ? MC_STORE_RPC_FAIL : code;
}

int mc_cli_master_meet(struct mc_store *st, struct mc_diag *diag)
{
	struct mc_cli_link *link;
	struct mc_cli_op *op;
	int rc = mc_cli_op_begin(st, &op);

	if (rc < 0)
		return rc;
	op->deadline_ns = mc_time_after(mc_now_ns(), OPEN_NS);
	do {
		rc = mc_cli_link_get(&st->master, op->deadline_ns, &link);
	} while (rc < 0 && rc != -MC_E_VERSION && rc != -MC_E_STALE && rc != -MC_E_INVAL &&
		 mc_cli_backoff(op));
	if (rc == 0) {
		mc_cli_link_put(link);
		rc = mc_cli_view_refresh(op, 0);
	}
	mc_cli_op_end(op);
	return rc < 0 ? complain(st, rc, diag) : 0;
}
