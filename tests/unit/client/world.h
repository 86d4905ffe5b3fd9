/*
 * world.h: a master and owners that do as a test says, over the real rpc and the real engine. Their
 * index is a list; what they do wrong is set by the words of struct world.
 */
#ifndef MC_TEST_CLIENT_WORLD_H
#define MC_TEST_CLIENT_WORLD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include <mooncake/store.h>

#include "base/mem.h"
#include "io/env.h"
#include "meta/slot.h"
#include "rpc/rpc.h"
#include "wire/store.h"

#define WORLD_OWNERS 3u
#define WORLD_POOL (256u << 20)
#define WORLD_SLOTS 4096u
#define WORLD_OBJECTS 4096u
#define WORLD_HELD 64u

struct world_slot {
	uint64_t addr; /* 0: free */
	uint64_t gen, len;
	uint8_t key[64];
	uint16_t key_len;
	uint8_t tlv[64];
	uint16_t tlv_len;
	bool is_sealed, is_told; /* and the master knows of it: it is neither renamed nor dropped */
};

struct world_owner {
	struct world *w;
	struct mc_engine *eng;
	char segment[128]; /* its name, which the master knows also when it is dead */
	struct mc_rpc_server *server;
	struct mc_addr addr;
	uint64_t id, incarnation;
	uint8_t *pool;
	uint64_t used;
	struct world_slot slots[WORLD_SLOTS];
	/* what it does wrong; any thread */
	_Atomic bool is_mute;	/* takes calls and says nothing */
	_Atomic bool is_cut;	/* puts and seals, but nobody hears of it, and no drop reaches it */
	_Atomic int full;	/* says NO_AVAILABLE_HANDLE so many times */
	_Atomic int flips;	/* so many seals damage a byte of the payload */
	_Atomic int wire_flips; /* so many payloads of sessions came with another byte */
	_Atomic int told;    /* so many slots are known to the master when they are to be renamed */
	_Atomic int checked; /* seals that said the CRC of the payload */
	_Atomic int puts, grants, seals, drops, regens;
	struct mc_rpc_req *held[WORLD_HELD];
	unsigned nheld;
};

struct world_object {
	bool is_there;
	uint8_t key[64];
	uint16_t key_len, tlv_len;
	uint64_t gen, len;
	uint8_t nreplicas;
	struct mc_st_replica replicas[MC_ST_REPLICAS_MAX];
};

struct world {
	struct mc_loop *loop;
	struct mc_rpc_server *master;
	struct mc_addr addr;
	char master_text[MC_ADDR_TEXT_MAX];
	struct world_owner owners[WORLD_OWNERS];
	unsigned nowners;
	pthread_mutex_t mu; /* guards objects, also what the loop does with them */
	struct world_object objects[WORLD_OBJECTS];
	uint64_t gen_next, epoch, view_version;
	/* what the master does wrong; any thread */
	_Atomic int recovering; /* answers of "not yet" */
	_Atomic int lost;	/* commits that are done but not answered: the connection is cut */
	_Atomic int stale;	/* commits that are to come with a newer generation */
	_Atomic int refused;	/* commits that are refused for good, after those */
	_Atomic uint32_t lease_ms;
	_Atomic int lookups, commits, bads, joins;
};

struct world *world_open(unsigned nowners);
void world_close(struct world *w);
/** The master goes and comes back at its address: connections are lost, its index is kept. */
void world_master_down(struct world *w);
void world_master_up(struct world *w);
/** Connections of an owner are refused from now on. */
void world_owner_kill(struct world *w, unsigned i);
/** A client of it. */
struct mc_store *world_store(struct world *w, uint32_t timeout_ms);
/** Slots of an owner in use. */
unsigned world_slots(struct world *w, unsigned i);
/** Wait until it has so many. */
void world_slots_wait(struct world *w, unsigned i, unsigned n);
/** The owner frees all slots of a key as after a remove: header cleared, bytes gone. */
void world_free(struct world *w, const char *key);
/** The object of a key of the default tenant, or NULL. Under no lock: for a quiet world. */
struct world_object *world_find(struct world *w, const char *key);

#endif
