/*
 * api_fix.h: what the tests of the native C API share: a peer in a process of its own (this program
 * again, as "PROGRAM peer"), an engine that knows it, and short ways to say a transfer. Nothing
 * here or in the tests knows more of the library than its public header.
 */
#ifndef MC_TEST_API_FIX_H
#define MC_TEST_API_FIX_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#include <mooncake/engine.h>

#define NS_PER_MS 1000000ull
#define NS_PER_S 1000000000ull
#define MIB (1u << 20)
#define REGION_BYTES (16u * MIB) /* of the peer, from mc_mem_alloc() */
#define READONLY_BYTES 4096u	 /* of the peer's own memory, not to be written */
#define RIGHTS (MC_MEM_REMOTE_READ | MC_MEM_REMOTE_WRITE)
#define LATE_NS NS_PER_S /* what an end may come after its deadline */

struct peer {
	pid_t pid;
	FILE *in, *out;
	char name[64];
	uint64_t base, readonly;
};

/** The peer, and an engine of ours that has it open. */
struct world {
	struct mc_engine *eng;
	struct peer peer;
	int32_t seg;
};

uint64_t now_ns(void);
void nap(uint64_t ns);
/** Bytes that tell their place, and which filling they are of. */
void fill(void *buf, size_t len, unsigned seed);
bool is_filled(const void *buf, size_t len, unsigned seed);

/** Of protocol $API_PROTOCOL and the devices $API_DEVICES, where they are set. */
struct mc_engine *engine_open(void);
/** Bytes that transfers of this engine went over a transport with. */
uint64_t moved_by(struct mc_engine *eng, const char *transport);
/** main() of the peer: offers memory until its stdin ends. */
int peer_main(void);
void peer_open(struct peer *peer);
/** Ends however the peer stands, stopped or not. */
void peer_close(struct peer *peer);
/** SIGKILL instead, however it stands; it is reaped. */
void peer_kill(struct peer *peer);
/** Stop it, and return when it has stopped. */
void peer_stop(struct peer *peer);
void peer_go(struct peer *peer);

void world_open(struct world *w);
/** The engine has no shared memory, whatever the peer has: what goes to a stopped peer waits. */
void world_open_tcp(struct world *w);
void world_close(struct world *w);

/** One range each way; read during the next call with it only. */
struct one {
	struct mc_iov local, remote;
	struct mc_transfer t;
	struct mc_group g;
};

struct mc_group *one(struct one *o, unsigned op, int32_t seg, void *local, uint64_t remote,
		     uint64_t len, uint64_t deadline_ns);
/** Do it and wait. @return mc_transfer_sync()'s */
int move(struct mc_engine *eng, unsigned op, int32_t seg, void *local, uint64_t remote,
	 uint64_t len);
/** Does [remote, remote + len) of the segment hold what fill() put there? */
bool is_filled_at(struct mc_engine *eng, int32_t seg, uint64_t remote, size_t len, unsigned seed);

#endif
