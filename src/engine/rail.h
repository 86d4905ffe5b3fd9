/*
 * rail.h: what to do with the rails of one peer: which may carry slices, which is lost, which is
 * worth waiting for, how many lanes it deserves. Pure: times, counts and outcomes in, decisions
 * out; rails.c and pump.c obey.
 *
 * A rail that fails is ejected. After a pause that doubles with each failure one probe (a fresh
 * connection that shows the peer's nonce, never a slice) may try it; success closes the breaker,
 * but the memory of failures halves only each DECAY, so a flapping link is not trusted at once. The
 * pause is short, because an operator expects a repaired link to be used within a second.
 *
 * How long a rail may be silent is learnt (as accrual failure detectors do): gaps that ended well,
 * and rails that answered their first probe, were a busy peer; the next silence is given more time.
 */
#ifndef MC_ENGINE_RAIL_H
#define MC_ENGINE_RAIL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"

#define MC_RAIL_PAUSE_FIRST_NS (50 * MC_NS_PER_MS)
#define MC_RAIL_PAUSE_MAX_NS (300 * MC_NS_PER_MS)
#define MC_RAIL_PAUSE_DOWN_NS MC_NS_PER_S /* the peer says that its port is down */
#define MC_RAIL_DECAY_NS (10 * MC_NS_PER_S)
#define MC_RAIL_LINK_NS (30 * MC_NS_PER_MS)	    /* silent: ask the kernel for the link */
#define MC_RAIL_STALL_NS (100 * MC_NS_PER_MS)	    /* silent while other rails moved */
#define MC_RAIL_STALL_ALONE_NS (700 * MC_NS_PER_MS) /* silent, nothing else to compare with */
#define MC_RAIL_WR_STUCK_NS (2 * MC_NS_PER_S)	    /* least patience with an RDMA lane */
#define MC_RAIL_METER_NS (2 * MC_NS_PER_MS)	    /* shortest interval that tells a rate */
#define MC_RAIL_LINK_BOUND 0.6	      /* bytes/ns; below it the link, not a core, is the limit */
#define MC_RAIL_LANE_BYTES (4u << 20) /* waiting bytes that are worth one more lane */

enum mc_rail_state {
	MC_RAIL_UP,
	MC_RAIL_EJECTED,
	MC_RAIL_PROBING, /* one probe is under way and will report */
};

/** Zeroed: up. */
struct mc_rail_health {
	enum mc_rail_state state;
	uint32_t failures;		      /* recent ones, decaying */
	uint64_t last_ns;		      /* of the last failure or decay step */
	uint64_t until_ns;		      /* end of the pause */
	double rate;			      /* learnt bytes per nanosecond, 0: unknown */
	uint64_t patience_ns, patience_at_ns; /* learnt; see mc_rail_patience() */
	uint32_t probes;		      /* since it was ejected */
};

/** Bytes that one lane completes, from the moment it has something to do. Zeroed: idle. */
struct mc_rail_meter {
	uint64_t from_ns, bytes;
};

static inline void mc_rail_decay(struct mc_rail_health *h, uint64_t now_ns)
{
	while (h->failures > 0 && now_ns - h->last_ns >= MC_RAIL_DECAY_NS) {
		h->failures /= 2;
		h->last_ns += MC_RAIL_DECAY_NS;
	}
}

static inline void mc_rail_failed(struct mc_rail_health *h, uint64_t now_ns)
{
	uint64_t pause_ns;

	/* What ends while a probe is under way, or after it was ejected, is the same failure. */
	if (h->state != MC_RAIL_UP)
		return;
	mc_rail_decay(h, now_ns);
	if (h->failures < 16)
		h->failures++;
	h->last_ns = now_ns;
	pause_ns = MC_RAIL_PAUSE_FIRST_NS << (h->failures < 5 ? h->failures - 1 : 4);
	h->state = MC_RAIL_EJECTED;
	h->probes = 0;
	h->until_ns = now_ns + (pause_ns < MC_RAIL_PAUSE_MAX_NS ? pause_ns : MC_RAIL_PAUSE_MAX_NS);
}

/** One end of an ejected rail is known to be down: that takes longer than a lost packet. */
static inline void mc_rail_hold(struct mc_rail_health *h, uint64_t now_ns)
{
	if (h->state == MC_RAIL_EJECTED)
		h->until_ns = now_ns + MC_RAIL_PAUSE_DOWN_NS;
}

/** Is it time to probe an ejected rail? Yes makes it the caller's to probe and to report. */
static inline bool mc_rail_wants_probe(struct mc_rail_health *h, uint64_t now_ns)
{
	if (h->state != MC_RAIL_EJECTED || now_ns < h->until_ns)
		return false;
	h->state = MC_RAIL_PROBING;
	h->probes++;
	return true;
}

/** Silence that is not yet a loss, while others move: STALL, or more where more was seen; what was
 * learnt halves each DECAY. */
static inline uint64_t mc_rail_patience(const struct mc_rail_health *h, uint64_t now_ns)
{
	uint64_t halvings = (now_ns - h->patience_at_ns) / MC_RAIL_DECAY_NS;
	uint64_t ns = halvings < 63 ? h->patience_ns >> halvings : 0;

	return ns > MC_RAIL_STALL_NS ? ns : MC_RAIL_STALL_NS;
}

static inline void mc_rail_learn_patience(struct mc_rail_health *h, uint64_t ns, uint64_t now_ns)
{
	if (ns > MC_RAIL_STALL_ALONE_NS)
		ns = MC_RAIL_STALL_ALONE_NS;
	if (ns <= mc_rail_patience(h, now_ns))
		return;
	h->patience_ns = ns;
	h->patience_at_ns = now_ns;
}

/** Bytes moved again after a gap. */
static inline void mc_rail_gap(struct mc_rail_health *h, uint64_t gap_ns, uint64_t now_ns)
{
	mc_rail_learn_patience(h, 3 * gap_ns, now_ns);
}

static inline void mc_rail_probed(struct mc_rail_health *h, bool is_good, uint64_t now_ns)
{
	bool is_first = h->probes == 1;

	h->state = MC_RAIL_UP;
	if (is_good && is_first)
		mc_rail_learn_patience(h, 2 * mc_rail_patience(h, now_ns), now_ns);
	if (!is_good) {
		uint32_t probes = h->probes;

		mc_rail_failed(h, now_ns);
		h->probes = probes;
	}
}

/** `bytes` more were completed on a lane that was busy since the last mc_rail_meter_done() or
 * mc_rail_meter_begin(). @return true: enough to tell a rate: mc_rail_meter_done() */
static inline bool mc_rail_meter_add(struct mc_rail_meter *m, uint64_t bytes, uint64_t now_ns)
{
	m->bytes += bytes;
	return now_ns - m->from_ns >= MC_RAIL_METER_NS;
}

static inline void mc_rail_meter_done(struct mc_rail_meter *m, struct mc_rail_health *h,
				      uint64_t now_ns)
{
	double rate = (double)m->bytes / (double)(now_ns - m->from_ns);

	h->rate = h->rate > 0 ? h->rate * 0.8 + rate * 0.2 : rate;
	*m = (struct mc_rail_meter){.from_ns = now_ns};
}

static inline void mc_rail_meter_begin(struct mc_rail_meter *m, uint64_t now_ns)
{
	*m = (struct mc_rail_meter){.from_ns = now_ns};
}

/** A lane with slices on it, as the watchdog sees it. */
struct mc_rail_watch {
	uint64_t silent_ns;   /* no byte moved for this long */
	uint64_t patience_ns; /* mc_rail_patience() */
	bool has_others_up;   /* another rail may be used */
	bool has_others_done; /* another rail moved bytes since this lane last did */
	bool is_link_down;    /* the kernel says so; asked for from MC_RAIL_LINK_NS on */
};

/** Should what is on the lane go elsewhere? With nowhere to go it stays: the kernel resends. */
static inline bool mc_rail_is_lost(const struct mc_rail_watch *w)
{
	if (!w->has_others_up)
		return false;
	if (w->is_link_down)
		return w->silent_ns >= MC_RAIL_LINK_NS;
	return w->silent_ns >= (w->has_others_done ? w->patience_ns : MC_RAIL_STALL_ALONE_NS);
}

/**
 * How long a posted work request of an RDMA lane may give no sign. An HCA looks for loss itself and
 * reports it, so this only finds what it does not see.
 *
 * @param hca_ns  until the HCA gives a packet up: its timeout times its tries
 * @param bytes   under way on the lane
 * @param rate    learnt bytes per nanosecond, 0: unknown
 */
static inline uint64_t mc_rail_wr_patience(uint64_t hca_ns, uint64_t bytes, double rate)
{
	double expected_ns = rate > 0 ? (double)bytes / rate : 0;
	uint64_t ns = MC_RAIL_WR_STUCK_NS;

	if (2 * hca_ns > ns)
		ns = 2 * hca_ns;
	if (4 * expected_ns > (double)ns)
		ns = (uint64_t)(4 * expected_ns);
	return ns;
}

/**
 * Lanes worth having on one of several rails. One stream fills a link; more only compete for it,
 * unless a core is what limits the stream.
 */
static inline unsigned mc_rail_lanes(double rate, uint64_t waiting_bytes, unsigned most)
{
	uint64_t want = 1 + waiting_bytes / MC_RAIL_LANE_BYTES;

	if (rate < MC_RAIL_LINK_BOUND)
		return 1;
	return want < most ? (unsigned)want : most;
}

/**
 * Is it worth giving a slow rail its next slice? Not if the other rails would be through with
 * everything, this slice included, long before.
 *
 * @param at_ns   when this rail would finish the slice
 * @param left_bytes  what waits and what is under way on all rails
 * @param rate_others  bytes per nanosecond of the other usable rails, 0: unknown
 */
static inline bool mc_rail_is_worth(double at_ns, uint64_t left_bytes, double rate_others)
{
	if (rate_others <= 0)
		return true;
	return at_ns <= 1.5 * (double)left_bytes / rate_others + (double)MC_NS_PER_MS;
}

#endif
