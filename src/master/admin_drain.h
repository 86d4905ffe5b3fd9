/*
 * admin_drain.h: over HTTP, what an operator wants of segments and tenants: drain jobs, states of
 * segments, quotas. Answers have upstream's fields and codes.
 */
#ifndef MC_MASTER_ADMIN_DRAIN_H
#define MC_MASTER_ADMIN_DRAIN_H

#include "base/str.h"
#include "io/http_server.h"
#include "master/master.h"

/** Is the path one of those below? Then they look at the method, too. */
bool mc_admin_drain_has(const char *path);
bool mc_admin_quota_has(const char *path);
/**
 *   POST /api/v1/drain_jobs         {"segments": [...], "target_segments": [...],
 * "max_concurrency": n} GET  /api/v1/drain_jobs/query   ?job_id= POST /api/v1/drain_jobs/cancel
 * ?job_id= GET  /api/v1/segments/status    ?segment= On the side loop. @return HTTP status
 */
int mc_admin_drain_page(struct mc_master *m, const char *path, struct mc_http_answer *answer,
			struct mc_str *out);
/**
 *   GET, PUT {"requested_quota_bytes": n}, DELETE /api/v1/tenant_quotas  ?tenant_id=
 * @return HTTP status
 */
int mc_admin_quota_page(struct mc_master *m, struct mc_http_answer *answer, struct mc_str *out);
/** Metrics of tenants. */
void mc_admin_quota_metrics(struct mc_master *m, struct mc_str *out);

/** {"success":false, …}. @return `status` */
int mc_admin_error(struct mc_str *out, int status, int code, const char *why);

#endif
