/*
 * rails.h: the rails of a session: pairs of a local and a remote address, their health, their
 * probes. Decisions are rail.h's.
 */
#ifndef MC_ENGINE_RAILS_H
#define MC_ENGINE_RAILS_H

#include "engine/ctl.h"

/** What a pump must know of all rails to choose one. */
struct mc_rails_view {
	uint32_t
	    usable;  /* bit a rail; all lost: all of them, or none where another route is left */
	uint32_t up; /* bit a rail */
	double rate[MC_RAILS_MAX];
	uint64_t patience_ns[MC_RAILS_MAX];
};

/** Of a new session: one TCP rail, nothing known of it. */
void mc_rails_init(struct mc_session *s);
/** From what the peer says of itself. @return 0; -MC_E_PROTO: no usable address */
int mc_rails_set(struct mc_session *s, const struct mc_ctl_peer *hello);
/** RDMA rails of our ports with these of the peer, at most MC_RDMA_PORTS_MAX. */
void mc_rails_rdma(struct mc_session *s, const struct mc_ctl_port *ports, unsigned nports);
/** The rails of a route; NULL: it has none. */
struct mc_rail_set *mc_rails_of(struct mc_session *s, enum mc_route route);
/** The TCP rail that goes to this host, whatever the port; -1: none does. */
int mc_rails_to(const struct mc_session *s, const struct mc_addr *remote);
/** Bit a rail that is up; of a route with rails. Any thread. */
uint32_t mc_rails_up(struct mc_session *s, enum mc_route route);
/** Look, and start the probes that are due; of a route with rails. Any thread. */
void mc_rails_look(struct mc_session *s, enum mc_route route, uint64_t now_ns,
		   struct mc_rails_view *ret);
void mc_rails_failed(struct mc_rail *rail, uint64_t now_ns);
/** Bytes moved again after so long a silence. */
void mc_rails_gap(struct mc_rail *rail, uint64_t gap_ns, uint64_t now_ns);
/** Has the local end of the rail lost its link, as far as the kernel knows? */
bool mc_rails_is_link_down(const struct mc_rail *rail);

#endif
