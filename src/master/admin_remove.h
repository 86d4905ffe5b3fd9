/*
 * admin_remove.h: POST /api/v1/remove_all, answered when owners have freed what was removed.
 */
#ifndef MC_MASTER_ADMIN_REMOVE_H
#define MC_MASTER_ADMIN_REMOVE_H

#include "io/http_server.h"
#include "master/master.h"

struct mc_admin_remove;

/** @return 0; -MC_E_NOMEM */
MC_MUST_CHECK int mc_admin_remove_open(struct mc_master *m, struct mc_admin_remove **ret);
/** Nobody waits for an answer from then on. Before the HTTP server, any thread but the loops'. */
void mc_admin_remove_leave(struct mc_admin_remove *r);
/** After the HTTP server. NULL is allowed. */
void mc_admin_remove_close(struct mc_admin_remove *r);
/**
 * The page; in a handler. Arguments: tenant_id (the default one without it), force (also what
 * readers hold: true or 1).
 * @return true: the answer is filled in; false: it comes later
 */
bool mc_admin_remove_page(struct mc_admin_remove *r, struct mc_http_answer *ret);

#endif
