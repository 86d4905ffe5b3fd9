/*
 * relay.h: a TCP proxy in a thread of the test, which does to a byte stream what networks do: cuts
 * it into pieces, delays them, stalls, resets in the middle of a frame, flips bits, and delivers
 * what one end had sent long after that end is gone.
 *
 * Late bytes are the point: the kernel of a process that closed a connection, or a switch, may
 * still hold its bytes; only a fence at the receiving end keeps them from landing.
 */
#ifndef TESTS_RELAY_H
#define TESTS_RELAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/sock.h"

struct relay;

struct relay_opts {
	uint64_t seed; /* 0: no relay */
	unsigned tiny; /* so many bytes of each connection and direction go in pieces of 1 … 7 */
	size_t piece_max;     /* later pieces are 1 … so long; 0: 64 KiB */
	unsigned reset_bytes; /* a connection is reset after 1 … so many bytes; 0: never */
	uint64_t delay_ns;    /* a piece waits up to this long */
	uint64_t flip_bytes; /* one bit in 1 … so many bytes of a direction is flipped; 0: none */
	size_t buffer_bytes; /* held for each direction; 0: 256 KiB */
};

struct relay_stats {
	unsigned open;	/* connections that have bytes or an end to deliver */
	unsigned conns; /* accepted so far */
	unsigned resets, flips;
	uint64_t bytes;	     /* delivered */
	uint64_t late_bytes; /* delivered after their sender had closed */
};

/** @return 0; errors of mc_sock_listen_range(); -MC_E_NOMEM; -MC_E_LIMIT */
MC_MUST_CHECK int relay_open(const struct mc_addr *to, const struct relay_opts *opts,
			     struct relay **ret_relay);
/** Everything not yet delivered is lost. NULL is allowed. */
void relay_close(struct relay *r);
const struct mc_addr *relay_addr(const struct relay *r);
/** While paused it accepts and takes bytes, as far as its buffers go, and delivers none. */
void relay_pause(struct relay *r, bool is_paused);
void relay_stats(struct relay *r, struct relay_stats *ret);

#endif
