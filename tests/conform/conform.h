/*
 * conform.h: the conformance suite. One list of cases runs over every transport, through the vtable
 * of xport.h only, against a target that is another process wherever the transport can reach one.
 *
 * The initiator keeps a shadow of the target's memory and of its own: a case says what a slice must
 * change, and then both memories must equal their shadows to the last byte, gaps and surroundings
 * included. The target's regions lie between canary bytes and, where it maps them itself, between
 * pages that nobody may touch.
 */
#ifndef TESTS_CONFORM_H
#define TESTS_CONFORM_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/types.h>

#include "base/mem.h"
#include "base/rand.h"
#include "fault.h"
#include "relay.h"
#include "xport/xport.h"
#include "sanitized.h"

#define CANARY_BYTES 8192u
#define CANARY 0xc5
#define MIB ((size_t)1 << 20)
#define OFFER_MAX 128u
#define WAIT_NS (20 * MC_NS_PER_S) /* longest wait for anything that must come */
#define BLOCK_NS (20 * MC_NS_PER_MS)
/* Growth of resident memory that may be the allocator's; a sanitizer's keeps what is freed. */
#define RESIDENT_SLACK_KIB (IS_SANITIZED ? 1u << 20 : 4096u)

/* The target's memory. */
enum place {
	PLACE_MAIN,  /* read and write, 17 MiB + 13 */
	PLACE_SMALL, /* read and write, unregistered and registered again by cases */
	PLACE_RO,
	PLACE_WO,
	PLACE_EDGE, /* read and write, whole pages between pages that nobody may touch; last */
	PLACE_COUNT,
};

#define MAIN_LEN (17 * MIB + 13)
#define SMALL_LEN (256u << 10)
#define EDGE_LEN (64u << 10)

static inline size_t place_len(enum place p)
{
	if (p == PLACE_EDGE)
		return EDGE_LEN;
	return p == PLACE_MAIN ? MAIN_LEN : SMALL_LEN + (p == PLACE_SMALL ? 0 : 1);
}

static inline uint32_t place_rights(enum place p)
{
	if (p == PLACE_RO)
		return MC_RIGHT_READ;
	return p == PLACE_WO ? MC_RIGHT_WRITE : MC_RIGHT_READ | MC_RIGHT_WRITE;
}

/* ---- target.c: what a target does; over a socket, or called directly ---- */

struct hello {
	uint64_t epoch;
	uint8_t nonce[16];
	uint16_t port;
	char shm_path[108];
	struct mc_remote_region rr[PLACE_COUNT];
};

enum order_op {
	ORDER_FILL,   /* memory of place i with pattern a */
	ORDER_DIGEST, /* hash of [a, a + b) of place i */
	ORDER_GUARDS, /* canary bytes that changed, all places */
	ORDER_DEL,    /* unregister place i */
	ORDER_ADD,    /* register it again: b bytes from offset a on, or all with b = 0 */
	ORDER_HIDE,   /* its pages may not be touched any more, where the target has mapped them */
	ORDER_SHOW,   /* and again they may */
	ORDER_RETIRE, /* token (a bytes) */
	ORDER_SIGNAL, /* wait until the word at offset a of place i is b, then hash [c, d) of it */
	ORDER_ACCEPT, /* the lane that is offered (a bytes), of the initiator with epoch b */
	ORDER_FORGET, /* the initiator with epoch a: it is dead */
	ORDER_STAT,   /* descriptors, live allocations, resident KiB */
	ORDER_QUIT,
};

struct order {
	enum order_op op;
	int i;
	uint64_t a, b, c, d;
	uint8_t token[MC_XPORT_TOKEN_MAX];
	uint8_t offer[OFFER_MAX];
};

struct reply {
	int rc;
	uint64_t val, val2, val3;
	struct mc_remote_region rr;
	uint8_t answer[OFFER_MAX]; /* rc bytes */
};

struct target;
struct transport;
struct side;

int target_open(const struct transport *tr, struct target **ret_target, struct hello *ret_hello);
void target_obey(struct target *t, const struct order *o, struct reply *r);
void target_close(struct target *t);
/** Its device and table, which is also the initiator's when both are one process. */
const struct side *target_side(const struct target *t);
/** Serve orders from a socket until QUIT or its end. @return exit status */
int target_main(const struct transport *tr, int ctl);

void pattern_fill(uint8_t *at, size_t len, uint64_t seed);
unsigned fds_open(void);
uint64_t resident_kib(void);

/* ---- transports.c ---- */

enum transport_flag {
	T_REMOTE = 1,  /* the target is another process */
	T_GEN = 2,     /* stale generations are refused */
	T_ALIVE = 4,   /* the target's process takes part in every transfer */
	T_AUTH = 8,    /* lanes show epoch and nonce */
	T_MUTE = 16,   /* refusals and outcomes of writes are not told: upstream's version 1 */
	T_SLOW = 32,   /* megabytes cost seconds: through a relay in small pieces */
	T_ADDR = 64,   /* regions are found by address: only their union counts */
	T_RELAY = 128, /* lanes go through a relay */
	T_PLAIN = 512, /* no regions: the other end is a file */
	T_LOSSY = 256, /* lanes break by themselves: only the storm runs */
	T_KEY = 1024,  /* regions are known by keys, and a wrong one breaks the lane */
};

/* Parts of the boundary sweep, cases_sweep.c. */
enum sweep {
	SWEEP_NONE,
	SWEEP_BOUNDS,
	SWEEP_ZERO,
	SWEEP_RIGHT,
	SWEEP_FREED,
	SWEEP_AGAIN,
	SWEEP_GENERATION,
	SWEEP_KEY,
	SWEEP_COUNT,
};

/* One end of a transport: this process's side. */
struct side {
	const struct transport *tr;
	struct mc_loop *loops[2];
	unsigned nloops;
	struct mc_region_table *regions;
	struct mc_xdev *dev;   /* what cases see */
	struct mc_xdev *inner; /* below the fault device, or the same */
	uint8_t nonce[16];
	uint64_t epoch;
};

struct transport {
	const char *name;
	unsigned flags;
	bool is_vm;	/* shm: memory that the engine did not allocate */
	int classic;	/* tcp: upstream's frames, version 1 or 2 */
	unsigned rails; /* tcp: addresses of the target, for lanes in turn; 0: one */
	/* Why a part of the sweep cannot apply; NULL: it runs. */
	const char *unfit[SWEEP_COUNT];
	struct mc_fault_opts fault; /* seed 0: no fault device */
	struct relay_opts relay;
	int (*dev_open)(struct side *s);
	/* What peers need to know beyond the regions. */
	void (*hello)(struct side *s, struct hello *ret_hello);
	/* Before the first lane. May be NULL. */
	int (*attach)(struct side *s, const struct hello *h, void **ret_peer);
	void (*detach)(void *peer);
	/* Memory that the target registers; NULL: mmap between guard pages. */
	uint8_t *(*mem_alloc)(struct side *s, size_t len);
	void (*desc_fill)(struct side *s, struct mc_region_desc *desc);
	/* Memory that devices move by themselves: keys of the target's into `ret_key`, the
	 * initiator's own without rights. May be NULL. */
	int (*mem_reg)(struct side *s, uint8_t *at, size_t len, uint32_t rights,
		       uint8_t ret_key[MC_XPORT_TOKEN_MAX]);
	void (*mem_unreg)(struct side *s, uint8_t *at, size_t len);
	/* Ports at each end: the lane goes from the first to the last. NULL: it has none. */
	unsigned (*ports)(const struct side *s);
	void (*forget)(struct side *s, uint64_t initiator_epoch);
	/* What fragments call this place of the target's memory; NULL: its address. */
	uint64_t (*raddr)(const uint8_t *at);
	/* After the device has closed. May be NULL. */
	void (*clean)(void);
};

/* Nothing is lost, but nothing comes in order or at once either. */
#define UNRULY                                                                                     \
	{                                                                                          \
		.seed = 11, .refuse = 300, .idle = 300, .hold = 300, .hold_polls = 5               \
	}

/** NULL: there are no more. */
const struct transport *transport_at(size_t i);
const struct transport *transport_find(const char *name);
/** Those that not every build has. */
const struct transport *transports_more(size_t *ret_n);
struct mc_xdev_env env_of(struct side *s);

int side_open(struct side *s, const struct transport *tr);
/** Where processes of the shared-memory transport meet; and what they have left there. */
int shm_dir_make(void);
void shm_dir_remove(void);
void side_close(struct side *s);

/* ---- env.c: the initiator, and what cases are written with ---- */

struct peer {
	pid_t pid; /* 0: in this process */
	int ctl;
	struct target *local;
	struct hello hello;
	void *state; /* the transport's */
	struct relay *relay;
	/* An order whose reply is not waited for yet; it came when another was given. */
	bool is_owed, has_come;
	struct reply owed;
};

struct env {
	const struct transport *tr;
	struct side side;
	struct peer peer;
	struct mc_remote_region rr[PLACE_COUNT];
	uint64_t rr_off[PLACE_COUNT]; /* where in the place the region begins */
	uint8_t *local;		      /* LOCAL_LEN, between guard pages */
	uint8_t *local_shadow;
	uint8_t *shadow[PLACE_COUNT];
	struct mc_rand rand;
	uint64_t seed;
	bool is_long;
};

#define LOCAL_LEN (18 * MIB)

extern struct env env;

int env_open(const struct transport *tr, uint64_t seed, bool is_long);
/** Let the initiator's devices move env.local. */
int local_reg(void);
void env_close(void);

/** Fill both ends' memory and both shadows anew. */
void env_reset(void);
/** All places and all of local memory equal their shadows, and no canary was touched. */
void env_check(void);
/** One range of a place equals its shadow. */
void env_check_range(enum place p, uint64_t off, uint64_t len);

struct peer peer_start(const struct transport *tr);
void peer_kill(struct peer *p, int sig); /* and reap */
void peer_stop(struct peer *p);
void peer_continue(struct peer *p);
void peer_quit(struct peer *p);
int peer_attach(struct peer *p);
void peer_detach(struct peer *p);
struct reply peer_order(struct peer *p, struct order o);
/** The same in two halves, with a target that works meanwhile where it is another process. */
void peer_order_begin(struct peer *p, struct order o);
struct reply peer_order_end(struct peer *p);
#define order(...) peer_order(&env.peer, (struct order){__VA_ARGS__})

/** Another process that writes to env.peer's target until it is killed. @return exit status */
int initiator_main(const char *name, int ctl);

/** How a lane lies about its peer. */
struct lie {
	uint64_t epoch, nonce;
};
int lane_open_to(struct peer *p, struct lie lie, struct mc_xlane **ret_lane);
struct mc_xlane *lane_open(void);
void lane_close(struct mc_xlane *lane);

/* A slice under test. */
struct job {
	struct mc_slice s;
	struct mc_frag *frags;
	enum place place;
	unsigned ended;		     /* times it came back */
	uint64_t rlo, rhi, llo, lhi; /* window of the place and of local memory that it names */
};

/** nfrags fragments of len bytes together; from offset roff of the place and loff of local memory
 * on, in order, with random gaps of less than `gap` bytes. */
void job_make(struct job *j, enum mc_op op, enum place p, uint64_t roff, uint64_t loff,
	      uint64_t len, uint32_t nfrags, unsigned gap);
void job_free(struct job *j);
/** The shadows as they are after the slice. */
void job_expect(const struct job *j);
/** Both windows, and `margin` bytes around them, equal their shadows. */
void job_check(const struct job *j, uint64_t margin);

/** Post all, poll until all have come back, each once. @return 0, or the lane's error */
int jobs_run(struct mc_xlane *lane, struct job *jobs, unsigned n);
/** As jobs_run(), where a refusal may break the lane: then it is retired and replaced, and who was
 * innocent goes again. */
int jobs_drive(struct mc_xlane **lane, struct job *jobs, unsigned n);
int job_drive(struct mc_xlane **lane, struct job *j);
/** Post one slice alone. @return its status, or the lane's error */
int job_run(struct mc_xlane *lane, struct job *j);
/** Abort and close: every slice that has not ended ends now. @return the length of the token, 0
 * when nothing may land any more */
size_t lane_abort(struct mc_xlane *lane, struct job *jobs, unsigned n, uint8_t *ret_token,
		  unsigned *ret_maybe);
/** In version 1 of upstream's frames only a later read tells that a write is in place. */
void lane_settle(struct mc_xlane *lane);

static inline bool has_cap(uint32_t cap)
{
	return (env.side.dev->ops->caps & cap) != 0 && !env.tr->classic;
}

/** Waits for a condition that another thread or process brings about. */
#define wait_until(cond)                                                                           \
	do {                                                                                       \
		uint64_t end_ = mc_now_ns() + WAIT_NS;                                             \
		while (!(cond)) {                                                                  \
			assert_true(mc_now_ns() < end_);                                           \
			sched_yield_some();                                                        \
		}                                                                                  \
	} while (0)
void sched_yield_some(void);

/* ---- cases ---- */

struct conform_case {
	const char *name;
	void (*run)(void **state);
	unsigned needs; /* enum transport_flag, all of them */
	unsigned not ;	/* none of them */
	uint32_t caps;	/* enum mc_xcap, all of them */
	enum sweep sweep;
};

extern const struct conform_case cases_data[], cases_refuse[], cases_sweep[], cases_life[],
    cases_storm[];

#endif
