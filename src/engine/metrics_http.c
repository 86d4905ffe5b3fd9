/*
 * metrics_http.c: /metrics and /health of an engine on a loopback port.
 */
#include <string.h>

#include "base/log.h"
#include "engine/priv.h"
#include "io/http_server.h"

static void on_get(void *user, const char *path, struct mc_http_answer *ret)
{
	struct mc_engine *eng = user;

	if (strcmp(path, "/metrics") == 0) {
		ret->body = mc_metrics_text(eng);
		ret->type = "text/plain; version=0.0.4; charset=utf-8";
	} else if (strcmp(path, "/health") == 0) {
		ret->body = mc_asprintf("ok %s\n", eng->name);
	} else {
		ret->body = mc_strdup("there are /metrics and /health here\n");
		ret->len = ret->body ? strlen(ret->body) : 0;
		return;
	}
	ret->status = ret->body ? 200 : 500;
	ret->len = ret->body ? strlen(ret->body) : 0;
}

int mc_metrics_serve(struct mc_engine *eng, uint16_t port, bool is_required, struct mc_diag *diag)
{
	struct mc_diag why = {0};
	struct mc_addr at;
	int rc;

	if (port == 0)
		return 0;
	rc = mc_addr_parse("127.0.0.1", port, &at);
	if (rc == 0)
		rc = mc_http_server_open(eng->loops[eng->nloops - 1], &at, on_get, eng, &eng->http,
					 &why);
	if (rc == 0)
		return 0;
	if (is_required) {
		mc_diag_set(diag, "metrics: %s", why.text);
		return rc;
	}
	/* The variable is inherited by every process of a job: the second one must still run. */
	mc_log_warn("metrics are not served", "port=%u cause=\"%s\"", port, why.text);
	return 0;
}

void mc_metrics_unserve(struct mc_engine *eng)
{
	mc_http_server_close(eng->http);
	eng->http = NULL;
}
