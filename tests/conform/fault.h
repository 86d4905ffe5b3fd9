/*
 * fault.h: a transport below the engine that misbehaves on purpose: it wraps any other device and
 * its lanes, keeps the contract of xport.h, and within it does what real paths do at their worst.
 *
 * Everything is drawn from one seed per lane, so a run can be repeated. Bytes that arrive late, in
 * single pieces, or not at all are the relay's part (relay.h): `via` sends lanes through it.
 */
#ifndef TESTS_FAULT_H
#define TESTS_FAULT_H

#include "xport/xport.h"

/* Chances are in thousandths. */
struct mc_fault_opts {
	uint64_t seed;	     /* never 0 */
	unsigned refuse;     /* post() takes fewer than it could */
	unsigned idle;	     /* poll() does nothing this time */
	unsigned hold;	     /* a finished slice is kept back, and others overtake it */
	unsigned hold_polls; /* at most for so many polls */
	unsigned drop;	     /* a slice is swallowed: it never ends by itself */
	unsigned lane_break; /* poll() fails: slices that had finished may come back as MAYBE */
	unsigned corrupt;    /* a slice that was moved ends as -MC_E_CORRUPT */
	bool is_inner_kept;  /* dev_close() leaves the inner device open: it is another's */
	const struct mc_addr
	    *via; /* lanes connect here instead of to the peer; outlives the device */
};

/** What was done, for tests that must know that something was. */
struct mc_fault_stats {
	_Atomic uint64_t refused, idled, held, dropped, broken, corrupted;
};

/** Takes over `inner` unless is_inner_kept. All lanes must be closed before dev_close(). @return 0;
 * -MC_E_NOMEM */
MC_MUST_CHECK int mc_fault_dev_open(struct mc_xdev *inner, const struct mc_fault_opts *opts,
				    struct mc_xdev **ret_dev);
/** Wrap a lane that was opened at the inner device by other means. Takes it over also on failure.
 * @return 0; -MC_E_NOMEM; -MC_E_LIMIT */
MC_MUST_CHECK int mc_fault_lane_wrap(struct mc_xdev *dev, struct mc_xlane *inner,
				     struct mc_xlane **ret_lane);
struct mc_xdev *mc_fault_dev_inner(struct mc_xdev *dev);
struct mc_fault_stats *mc_fault_dev_stats(struct mc_xdev *dev);

#endif
