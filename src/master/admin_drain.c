/*
 * admin_drain.c: drain jobs and states of segments over HTTP.
 */
#include "master/admin_drain.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/opt.h"
#include "master/drain.h"

#define JSON_BYTES 65536u
#define JOB_ID_MAX 48u

static const char jobs_path[] = "/api/v1/drain_jobs", query_path[] = "/api/v1/drain_jobs/query",
		  cancel_path[] = "/api/v1/drain_jobs/cancel",
		  status_path[] = "/api/v1/segments/status";

int mc_admin_error(struct mc_str *out, int status, int code, const char *why)
{
	(void)mc_str_appendf(
	    out, "{\"success\":false,\"error_code\":%d,\"error_message\":\"%s\"}\n", code, why);
	return status;
}

static int failed(struct mc_str *out, int32_t code)
{
	int status = code == MC_STORE_INVALID_PARAMS					    ? 400
		     : code == MC_STORE_SEGMENT_NOT_FOUND || code == MC_STORE_JOB_NOT_FOUND ? 404
		     : code == MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS			    ? 409
											    : 503;

	return mc_admin_error(out, status, code, mc_store_err_name(code));
}

bool mc_admin_drain_has(const char *path)
{
	return strcmp(path, jobs_path) == 0 || strcmp(path, query_path) == 0 ||
	       strcmp(path, cancel_path) == 0 || strcmp(path, status_path) == 0;
}

/* What goes to the index loop and back. */
struct ask {
	struct mc_master *m;
	struct mc_mst_drain_want want;
	struct mc_mst_job_id id;
	struct mc_mst_drain_view view;
	const char *segment;
	int32_t status;
	bool was; /* in an earlier life */
};

static json_t *text_json(const char *text)
{
	return json_string(text);
}

/* {"success":true, …, "error_code":0, "error_message":""}; takes `v`. */
static int done(struct mc_str *out, json_t *v)
{
	if (!v || json_object_set_new(v, "error_code", json_integer(0)) < 0 ||
	    json_object_set_new(v, "error_message", text_json("")) < 0)
		out->rc = -MC_E_NOMEM;
	else
		out->rc = mc_json_dump(v, out);
	json_decref(v);
	return 200;
}

static const char *id_text(struct mc_mst_job_id id, char text[JOB_ID_MAX])
{
	(void)snprintf(text, JOB_ID_MAX, "%" PRIu64 "-%" PRIu64, id.hi, id.lo);
	return text;
}

/* "first-second" */
static bool id_parse(const char *text, struct mc_mst_job_id *ret)
{
	const char *dash = text ? strchr(text, '-') : NULL;
	char hi[JOB_ID_MAX];

	if (!dash || (size_t)(dash - text) >= sizeof(hi))
		return false;
	memcpy(hi, text, (size_t)(dash - text));
	hi[dash - text] = '\0';
	return mc_opt_parse_u64(hi, &ret->hi) == 0 && mc_opt_parse_u64(dash + 1, &ret->lo) == 0;
}

/* ---- a new job ---- */

static int names_take(const json_t *body, const char *key, bool must_be,
		      char (*names)[MC_MST_TEXT_MAX], size_t *ret_n, struct mc_diag *diag)
{
	json_t *list;
	int rc;

	*ret_n = 0;
	if (!must_be && !mc_json_has(body, key))
		return 0;
	rc = mc_json_get_array(body, key, MC_DRAIN_SEGMENTS_MAX, &list, diag);
	for (size_t i = 0; rc == 0 && i < json_array_size(list); i++) {
		const char *name = json_string_value(json_array_get(list, i));

		if (!name || mc_strlcpy(names[i], MC_MST_TEXT_MAX, name) < 0) {
			mc_diag_set(diag, "'%s' is a list of names of segments", key);
			rc = -MC_E_PROTO;
		}
		++*ret_n;
	}
	return rc;
}

static int want_parse(struct mc_http_answer *a, struct mc_mst_drain_want *w, struct mc_diag *diag)
{
	static const struct mc_json_limits limits = {JSON_BYTES, 4};
	size_t len;
	const char *text = mc_http_body(a, &len);
	uint64_t copies = MC_DRAIN_COPIES;
	json_t *body;
	int rc;

	if (!text) {
		mc_diag_set(diag, "no body; it is {\\\"segments\\\": [\\\"name\\\", ...]}");
		return -MC_E_PROTO;
	}
	rc = mc_json_parse(text, len, &limits, &body, diag);
	if (rc < 0)
		return rc;
	rc = names_take(body, "segments", true, w->segments, &w->nsegments, diag);
	if (rc == 0)
		rc = names_take(body, "target_segments", false, w->targets, &w->ntargets, diag);
	if (rc == 0 && mc_json_has(body, "max_concurrency"))
		rc = mc_json_get_u64(body, "max_concurrency", MC_DRAIN_COPIES_MAX, &copies, diag);
	json_decref(body);
	w->copies = (uint32_t)copies;
	return rc;
}

static void on_start(void *arg)
{
	struct ask *q = arg;

	q->status = mc_mst_drain_start(q->m, &q->want, &q->id);
}

/* As part of a JSON text. */
static int bad_body(struct mc_str *out, const struct mc_diag *diag)
{
	json_t *v = json_pack("{s:b, s:i, s:s}", "success", 0, "error_code",
			      MC_STORE_INVALID_PARAMS, "error_message", diag->text);

	out->rc = v ? mc_json_dump(v, out) : -MC_E_NOMEM;
	json_decref(v);
	return 400;
}

static int job_start(struct ask *q, struct mc_http_answer *a, struct mc_str *out)
{
	struct mc_diag diag = {.text = ""};
	char id[JOB_ID_MAX];

	if (mc_http_has_header(a, "Origin"))
		return mc_admin_error(out, 403, MC_STORE_INVALID_PARAMS,
				      "not from pages in browsers");
	if (want_parse(a, &q->want, &diag) < 0)
		return bad_body(out, &diag);
	mc_loop_call(q->m->loop, on_start, q);
	if (q->status != 0)
		return failed(out, q->status);
	return done(out, json_pack("{s:b, s:s, s:s}", "success", 1, "job_id", id_text(q->id, id),
				   "status", "CREATED"));
}

/* ---- jobs there are ---- */

static const char *job_state_text(enum mc_mst_job_state state)
{
	static const char *const names[] = {
	    [MC_MST_JOB_CREATED] = "CREATED",	  [MC_MST_JOB_RUNNING] = "RUNNING",
	    [MC_MST_JOB_SUCCEEDED] = "SUCCEEDED", [MC_MST_JOB_FAILED] = "FAILED",
	    [MC_MST_JOB_CANCELED] = "CANCELED",
	};

	return names[state];
}

static void on_query(void *arg)
{
	struct ask *q = arg;

	q->status = mc_mst_drain_view(q->m, q->id, &q->view);
	q->was = mc_mst_id_was(q->m, q->id.hi);
}

static void on_cancel(void *arg)
{
	struct ask *q = arg;

	q->status = mc_mst_drain_cancel(q->m, q->id);
	q->was = mc_mst_id_was(q->m, q->id.hi);
}

static int job_failed(const struct ask *q, struct mc_str *out)
{
	if (q->status == MC_STORE_JOB_NOT_FOUND && q->was)
		return mc_admin_error(out, 404, q->status,
				      "JOB_NOT_FOUND: lost, the master was restarted; what it had "
				      "moved stays moved, drain again");
	return failed(out, q->status);
}

static int job_query(struct ask *q, struct mc_str *out)
{
	const struct mc_mst_drain_view *v = &q->view;
	json_t *segments;
	char id[JOB_ID_MAX];

	mc_loop_call(q->m->loop, on_query, q);
	if (q->status != 0)
		return job_failed(q, out);
	segments = json_array();
	for (size_t i = 0; i < v->nsegments; i++)
		(void)json_array_append_new(segments, text_json(v->segments[i]));
	return done(
	    out,
	    json_pack("{s:b, s:s, s:i, s:s, s:i, s:s, s:I, s:I, s:o, s:I, s:I, s:I, s:I, s:I, s:I, "
		      "s:s}",
		      "success", 1, "job_id", id_text(q->id, id), "type", 0, "type_name", "DRAIN",
		      "status", (int)v->state, "status_name", job_state_text(v->state),
		      "created_at_ms_epoch", (json_int_t)v->created_ms, "last_updated_at_ms_epoch",
		      (json_int_t)v->updated_ms, "segments", segments, "succeeded_units",
		      (json_int_t)v->moved, "failed_units", (json_int_t)v->failed, "blocked_units",
		      (json_int_t)v->blocked, "active_units", (json_int_t)v->active,
		      "migrated_bytes", (json_int_t)v->moved_bytes, "remaining_units",
		      (json_int_t)v->left, "message", v->message));
}

static int job_cancel(struct ask *q, struct mc_http_answer *a, struct mc_str *out)
{
	char id[JOB_ID_MAX];

	if (mc_http_has_header(a, "Origin"))
		return mc_admin_error(out, 403, MC_STORE_INVALID_PARAMS,
				      "not from pages in browsers");
	mc_loop_call(q->m->loop, on_cancel, q);
	if (q->status != 0)
		return job_failed(q, out);
	return done(out, json_pack("{s:b, s:s, s:s}", "success", 1, "job_id", id_text(q->id, id),
				   "status", "CANCELED"));
}

/* ---- segments ---- */

static void on_segment(void *arg)
{
	struct ask *q = arg;
	const struct mc_mst_owner *o = mc_mst_owner_named(q->m, q->segment);

	q->status = !o				  ? MC_STORE_SEGMENT_NOT_FOUND
		    : o->drain == MC_MST_DRAINING ? 2
		    : o->drain == MC_MST_DRAINED  ? 3
						  : 1;
}

static int segment_status(struct ask *q, struct mc_http_answer *a, struct mc_str *out)
{
	static const char *const names[] = {"", "OK", "DRAINING", "DRAINED"};

	q->segment = mc_http_arg(a, "segment");
	if (!q->segment || !q->segment[0])
		return mc_admin_error(out, 400, MC_STORE_INVALID_PARAMS, "Missing segment");
	mc_loop_call(q->m->loop, on_segment, q);
	if (q->status < 0)
		return failed(out, q->status);
	return done(out, json_pack("{s:b, s:s, s:i, s:s}", "success", 1, "segment", q->segment,
				   "status", q->status, "status_name", names[q->status]));
}

int mc_admin_drain_page(struct mc_master *m, const char *path, struct mc_http_answer *answer,
			struct mc_str *out)
{
	bool is_post = strcmp(path, jobs_path) == 0 || strcmp(path, cancel_path) == 0;
	struct ask *q;
	int status;

	if (strcmp(mc_http_method(answer), is_post ? "POST" : "GET") != 0)
		return mc_admin_error(out, 405, MC_STORE_INVALID_PARAMS,
				      is_post ? "this is for POST" : "this is for GET");
	q = mc_calloc(1, sizeof(*q)); /* too much for a stack */
	if (!q) {
		out->rc = -MC_E_NOMEM;
		return 503;
	}
	q->m = m;
	if (strcmp(path, jobs_path) == 0)
		status = job_start(q, answer, out);
	else if (strcmp(path, status_path) == 0)
		status = segment_status(q, answer, out);
	else if (!id_parse(mc_http_arg(answer, "job_id"), &q->id))
		status =
		    mc_admin_error(out, 400, MC_STORE_INVALID_PARAMS, "Missing or invalid job_id");
	else
		status = is_post ? job_cancel(q, answer, out) : job_query(q, out);
	mc_free(q);
	return status;
}
