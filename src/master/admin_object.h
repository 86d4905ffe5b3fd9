/*
 * admin_object.h: GET /api/v1/object?key=&tenant=: where an object is, or why it is not there.
 */
#ifndef MC_MASTER_ADMIN_OBJECT_H
#define MC_MASTER_ADMIN_OBJECT_H

#include "base/str.h"
#include "io/http_server.h"
#include "master/master.h"

/**
 * Append JSON: "state" is "here" (with bytes, lease_ms, replicas …), "evicted", "over_quota",
 * "removed", "lost" or "damaged" (with gone_ms ago), "never_seen" (not since known_ms ago),
 * "recovering". No lease, no touch. In a handler, on the side loop.
 * @return HTTP status
 */
int mc_admin_object_page(struct mc_master *m, const struct mc_http_answer *answer,
			 struct mc_str *out);

#endif
