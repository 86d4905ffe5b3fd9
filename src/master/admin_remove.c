/*
 * admin_remove.c: removals that somebody asked for over HTTP. One is begun on the index loop, ends
 * there, and is answered on the side loop, which serves HTTP.
 */
#include "master/admin_remove.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"
#include "master/priv.h"

#define REMOVALS_MAX 8u /* at one time */
#define TEXT_MAX 256u

struct removal {
	struct mc_mst_removal removal; /* the index loop's while it is under way */
	struct mc_task done;
	struct mc_admin_remove *all;
	struct mc_http_request *request; /* the side loop's; NULL: this one is free */
	/* of its begin */
	const char *tenant;
	bool is_forced;
	int rc;
};

struct mc_admin_remove {
	struct mc_master *m;
	bool is_left; /* the side loop's */
	struct removal removals[REMOVALS_MAX];
};

static void fill(struct mc_http_answer *a, int status, const char *text)
{
	a->type = "application/json";
	a->status = status;
	a->body = mc_strdup(text);
	a->len = a->body ? strlen(text) : 0;
}

static void fill_error(struct mc_http_answer *a, int status, int code, const char *why)
{
	char text[TEXT_MAX];

	(void)snprintf(text, sizeof(text),
		       "{\"success\":false,\"error_code\":%d,\"error_message\":\"%s\"}", code, why);
	fill(a, status, text);
}

/* On the side loop. */
static void answer(struct mc_task *task)
{
	struct removal *op = mc_container_of(task, struct removal, done);
	struct mc_http_request *request = op->request;
	struct mc_http_answer a = {0};
	char text[TEXT_MAX];

	op->request = NULL;
	if (op->removal.status == 0) {
		(void)snprintf(text, sizeof(text), "{\"success\":true,\"removed\":%" PRIu64 "}",
			       op->removal.removed);
		fill(&a, 200, text);
	} else {
		fill_error(&a, 503, op->removal.status, "not all was removed; ask again");
	}
	mc_http_finish(request, &a);
}

/* On the index loop. */
static void on_done(struct mc_mst_removal *removal)
{
	struct removal *op = mc_container_of(removal, struct removal, removal);

	mc_loop_post(op->all->m->side, &op->done);
}

static void begin(void *arg)
{
	struct removal *op = arg;

	op->rc = mc_mst_removal_start(op->all->m, &op->removal, op->tenant, op->is_forced);
}

static bool is_true(const char *text)
{
	return text && (strcmp(text, "true") == 0 || strcmp(text, "1") == 0);
}

bool mc_admin_remove_page(struct mc_admin_remove *r, struct mc_http_answer *ret)
{
	const char *tenant = mc_http_arg(ret, "tenant_id");
	struct removal *op = NULL;

	/* A page of somebody else's in a browser of a host that reaches this one. */
	if (mc_http_has_header(ret, "Origin")) {
		fill_error(ret, 403, MC_STORE_INVALID_PARAMS, "not from pages in browsers");
		return true;
	}
	for (unsigned i = 0; i < REMOVALS_MAX && !op && !r->is_left; i++)
		op = r->removals[i].request ? NULL : &r->removals[i];
	if (!op) {
		fill_error(ret, 503, MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS,
			   "too many removals at one time; ask again later");
		return true;
	}
	op->tenant = tenant && tenant[0] ? tenant : "default";
	op->is_forced = is_true(mc_http_arg(ret, "force"));
	op->removal.on_done = on_done;
	op->done.run = answer;
	mc_loop_call(r->m->loop, begin, op);
	if (op->rc == -MC_E_INVAL) {
		fill_error(ret, 400, MC_STORE_INVALID_PARAMS, "tenant_id is too long");
		return true;
	}
	if (op->rc < 0) {
		fill_error(ret, 503, MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS,
			   "too much at one time; ask again later");
		return true;
	}
	op->request = mc_http_defer(ret); /* before `answer`, which is a task of this loop */
	return false;
}

int mc_admin_remove_open(struct mc_master *m, struct mc_admin_remove **ret)
{
	struct mc_admin_remove *r = mc_calloc(1, sizeof(*r));

	if (!r)
		return -MC_E_NOMEM;
	r->m = m;
	for (unsigned i = 0; i < REMOVALS_MAX; i++)
		r->removals[i].all = r;
	*ret = r;
	return 0;
}

static void refuse_more(void *arg)
{
	struct mc_admin_remove *r = arg;

	r->is_left = true;
}

static void leave(void *arg)
{
	struct mc_admin_remove *r = arg;

	for (unsigned i = 0; i < REMOVALS_MAX; i++)
		mc_mst_removal_leave(&r->removals[i].removal);
}

void mc_admin_remove_leave(struct mc_admin_remove *r)
{
	mc_loop_call(r->m->side, refuse_more, r);
	mc_loop_call(r->m->loop, leave, r);
	/* What was over before is answered by tasks ahead of the HTTP server's end. */
}

void mc_admin_remove_close(struct mc_admin_remove *r)
{
	mc_free(r);
}
