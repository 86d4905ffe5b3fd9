/*
 * conn.c: ends and their links.
 *
 * A connection is open before it is up, so a call costs no extra round trip for it; one to a port
 * where nobody listens ends its calls with the reason. Several callers that find the master's link
 * lost wait for the one that introduces the process anew.
 */
#include "base/fork.h"
#include "base/log.h"
#include "base/str.h"
#include "base/sync.h"
#include "client/link.h"

#define USER_TIMEOUT_MS 5000u
#define JOIN_NS (2 * MC_NS_PER_S)
#define AGAIN_NS (20 * MC_NS_PER_MS) /* between two tries to reach an end */

void mc_cli_end_init(struct mc_cli_end *end, struct mc_store *st, bool is_master)
{
	*end = (struct mc_cli_end){.st = st, .is_master = is_master};
	pthread_mutex_init(&end->mu, NULL);
}

void mc_cli_link_put(struct mc_cli_link *link)
{
	/* acq_rel: the last one sees what the others did with it */
	if (atomic_fetch_sub_explicit(&link->refs, 1, memory_order_acq_rel) != 1)
		return;
	mc_rpc_conn_close(link->rpc);
	mc_free(link);
}

/* Let go of the link. Under mu; the caller puts what is returned without it. */
static struct mc_cli_link *link_take(struct mc_cli_end *end)
{
	struct mc_cli_link *link = end->link;

	end->link = NULL;
	return link;
}

void mc_cli_end_fini(struct mc_cli_end *end)
{
	struct mc_cli_link *link = link_take(end);

	if (link)
		mc_cli_link_put(link);
	pthread_mutex_destroy(&end->mu);
}

void mc_cli_end_set(struct mc_cli_end *end, const char *address)
{
	struct mc_cli_link *old = NULL;

	pthread_mutex_lock(&end->mu);
	if (strcmp(end->text, address) != 0) {
		(void)mc_strlcpy(end->text, sizeof(end->text), address);
		end->next_ns = 0;
		old = link_take(end);
	}
	pthread_mutex_unlock(&end->mu);
	if (old)
		mc_cli_link_put(old);
}

/* Connect to the address that the text names now. */
static int link_open(struct mc_cli_end *end, const char *text, struct mc_cli_link **ret_link)
{
	struct mc_rpc_conn_opts opts = {.user_timeout_ms = USER_TIMEOUT_MS};
	struct mc_cli_link *link;
	struct mc_addr addr;
	int rc;

	/* The master's name may mean another machine after a fail-over; owners say numbers. */
	rc = end->is_master ? mc_addr_resolve(text, 0, &addr, NULL) : mc_addr_parse(text, 0, &addr);
	if (rc < 0)
		return rc;
	link = mc_calloc(1, sizeof(*link));
	if (!link)
		return -MC_E_NOMEM;
	atomic_init(&link->refs, 1);
	rc = mc_rpc_conn_open(&mc_env_real, end->st->loop, &addr, &opts, &link->rpc);
	if (rc < 0) {
		mc_free(link);
		return rc;
	}
	*ret_link = link;
	return 0;
}

/* The link as it is, with a reference. NULL: there is none that works; *ret_old is one to put.
 * Under mu. */
static struct mc_cli_link *link_now(struct mc_cli_end *end, struct mc_cli_link **ret_old)
{
	struct mc_cli_link *link = end->link;

	*ret_old = NULL;
	if (!link)
		return NULL;
	if (mc_rpc_conn_status(link->rpc) == 0) {
		atomic_fetch_add_explicit(&link->refs, 1, memory_order_relaxed);
		return link;
	}
	*ret_old = link_take(end);
	return NULL;
}

/* Under mu, which is let go meanwhile. @return 0: look again; -MC_E_TIMEDOUT */
static int turn_wait(struct mc_cli_end *end, uint64_t deadline_ns)
{
	uint32_t seq = atomic_load_explicit(&end->seq, memory_order_relaxed);
	int rc;

	pthread_mutex_unlock(&end->mu);
	rc = mc_futex_wait(&end->seq, seq, deadline_ns);
	pthread_mutex_lock(&end->mu);
	return rc == -MC_E_TIMEDOUT && end->is_opening ? rc : 0;
}

/* The one that opens: without mu. */
static int open_now(struct mc_cli_end *end, const char *text, uint64_t deadline_ns,
		    struct mc_cli_link **ret_link)
{
	uint64_t join_ns = mc_min(deadline_ns, mc_time_after(mc_now_ns(), JOIN_NS));
	int rc = link_open(end, text, ret_link);

	if (rc < 0)
		return rc;
	rc = end->is_master ? mc_cli_join(end->st, (*ret_link)->rpc, join_ns)
			    : mc_cli_introduce(end->st, (*ret_link)->rpc);
	if (rc < 0)
		mc_cli_link_put(*ret_link);
	return rc;
}

/* Under mu, with is_opening set by us. */
static int open_turn(struct mc_cli_end *end, uint64_t deadline_ns, struct mc_cli_link **ret_link)
{
	char text[MC_CLI_TEXT_MAX];
	struct mc_cli_link *link = NULL;
	int rc;

	(void)mc_strlcpy(text, sizeof(text), end->text);
	pthread_mutex_unlock(&end->mu);
	rc = open_now(end, text, deadline_ns, &link);
	pthread_mutex_lock(&end->mu);
	end->is_opening = false;
	atomic_fetch_add_explicit(&end->seq, 1, memory_order_relaxed);
	mc_futex_wake(&end->seq, UINT32_MAX >> 1);
	end->last_rc = rc;
	if (rc < 0) {
		end->next_ns = mc_time_after(mc_now_ns(), AGAIN_NS);
		return rc;
	}
	if (strcmp(text, end->text) == 0) {
		atomic_fetch_add_explicit(&link->refs, 1, memory_order_relaxed);
		end->link = link;
	}
	*ret_link = link;
	return 0;
}

int mc_cli_link_get(struct mc_cli_end *end, uint64_t deadline_ns, struct mc_cli_link **ret_link)
{
	struct mc_cli_link *old, *link;
	int rc = 0;

	if (mc_fork_is_child(end->st->fork_gen))
		return -MC_E_FORKED;
	if (mc_cli_is_closing(end->st))
		return -MC_E_CLOSED;
	pthread_mutex_lock(&end->mu);
	while (!(link = link_now(end, &old)) && rc == 0) {
		if (old) {
			pthread_mutex_unlock(&end->mu);
			mc_cli_link_put(old);
			pthread_mutex_lock(&end->mu);
		} else if (end->is_opening) {
			rc = turn_wait(end, deadline_ns);
		} else if (end->last_rc < 0 && mc_now_ns() < end->next_ns) {
			rc = end->last_rc;
		} else {
			end->is_opening = true;
			rc = open_turn(end, deadline_ns, &link);
			break;
		}
	}
	pthread_mutex_unlock(&end->mu);
	if (link && rc == 0)
		*ret_link = link;
	return rc;
}
