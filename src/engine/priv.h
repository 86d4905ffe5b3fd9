/*
 * priv.h: the engine's own objects. Who may touch what:
 *
 *   mc_engine    any thread; mutable parts name their lock
 *   mc_peer      a segment name; `mu` guards the current session
 *   mc_session   one incarnation of a peer: its epoch, rails, known regions, lanes. Counted
 * references; `mu` guards the lists mc_pump      moves slices over lanes of one session; one owner
 * thread: a synchronous caller's stack, or a loop mc_elane     one lane; its owner is the pump that
 * acquired it mc_gop       a group under way; its numbers are written by the pump's owner only, its
 * state word is for waiters
 *
 * Lock order: peers_mu > peer.mu > session.mu > leaf locks. No lock is held across I/O.
 */
#ifndef MC_ENGINE_PRIV_H
#define MC_ENGINE_PRIV_H

#include <mooncake/engine.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/fork.h"
#include "base/hash.h"
#include "base/ids.h"
#include "base/itree.h"
#include "base/stats.h"
#include "base/statreg.h"
#include "disco/control.h"
#include "disco/handshake.h"
#include "disco/meta.h"
#include "engine/climb.h"
#include "engine/conf.h"
#include "engine/rail.h"
#include "engine/retry.h"
#include "rpc/rpc.h"
#include "xport/tcp.h"
#include "xport/xport.h"

#define MC_LOOPS_MAX 4u
#define MC_RAILS_MAX 8u
#define MC_PEERS_MAX 65536u
#define MC_GROUPS_MAX 65536u
#define MC_GROUP_FRAGS_MAX (1u << 20)
#define MC_LANES_MAX 24u      /* of one session on one rail */
#define MC_PUMP_LANES_MAX 16u /* of one pump */
#define MC_BATCH_MAX 16u      /* slices in one call of a transport's post() */
#define MC_INBOX_MAX 65536u   /* notices waiting */
#define MC_INBOX_BYTES_MAX (64u << 20)
#define MC_UNFENCED_MAX 65536u /* quarantined ranges */
#define MC_BLOCKED_MAX 16u     /* lanes whose every range, and more, is quarantined */

struct mc_session;
struct mc_hca_place;
struct mc_topo;
struct mc_initiators;
struct mc_classic;
struct mc_join;
struct mc_idle;
struct mc_ctl_conn;
struct mc_peer;
struct mc_pump;
struct mc_gop;
struct mc_pend;
struct mc_stage;
struct mc_staged;
struct mc_eslice;

struct mc_worker_job {
	struct mc_list link;
	void (*run)(struct mc_worker_job *job);
};

enum mc_route {
	MC_ROUTE_SELF,
	MC_ROUTE_SHM,
	MC_ROUTE_FILE,
	MC_ROUTE_TCP,
	MC_ROUTE_RDMA,
	MC_ROUTE_STAGED, /* several hops: staged.c. No transport, and no lanes */
	MC_ROUTE_COUNT,
};

enum mc_peer_kind {
	MC_PEER_SELF,
	MC_PEER_OURS,
	MC_PEER_CLASSIC, /* upstream's engine */
	MC_PEER_FILE,
};

/** A slice with the engine's bookkeeping. Lives in its group. */
struct mc_eslice {
	struct mc_slice s; /* s.link: the transport's list while posted, a pump's list while not */
	struct mc_gop *op;
	struct mc_session *session;  /* counted */
	struct mc_list flying;	     /* mc_elane.flying while posted */
	struct mc_elane *lane;	     /* while posted */
	struct mc_rail_stats *stats; /* of the link that it was on last, or NULL */
	uint64_t posted_ns;
	struct mc_retry retry;
	uint32_t t_first, t_last; /* transfers that it carries parts of */
	uint64_t t_at;		  /* byte of the first one that it begins with */
	enum mc_route route;
	uint32_t rails;	      /* RDMA: bit a rail whose far end has a key of the memory */
	uint32_t near;	      /* RDMA: bit a local port that is close to the memory */
	struct mc_pump *pump; /* from mc_pump_add() on */
	bool is_refreshed;    /* its regions were resolved again after a refusal */
	bool is_held;	      /* the last of its transfer, kept back until the others are done */
	bool is_signal;	      /* it stores the signal of its transfer: not to be applied twice */
	bool is_bare;	      /* and carries nothing else */
	bool is_shown;	      /* the tap has seen some of it */
};

struct mc_tstate {
	uint32_t slices_left;
	_Atomic int status;
	_Atomic bool is_done;
	uint32_t signal; /* index in mc_gop.signals + 1; 0: none */
	uint64_t len;
};

/** The signal of a transfer; see build.c. */
struct mc_gsignal {
	uint64_t addr, value;
	uint32_t held; /* index of its slice in the group + 1; 0: it waits for nothing (any more) */
};

enum mc_gop_state {
	MC_GOP_RUNNING,
	MC_GOP_DONE,
};

struct mc_gop {
	struct mc_engine *eng;
	struct mc_list pool_link;
	_Atomic uint32_t refs;
	_Atomic uint32_t state; /* futex word: enum mc_gop_state */
	_Atomic bool is_canceled;
	bool is_expired;
	bool is_watch;					     /* of a peer: watch.c */
	uint64_t id, begin_ns, end_ns, deadline_ns, soft_ns; /* soft: when fencing must begin */
	uint64_t user;
	struct mc_cq *cq; /* counted by the queue itself */
	enum mc_priority prio;
	enum mc_op op;
	/* the driver's */
	uint32_t slices_left;
	int status; /* first error */
	_Atomic uint64_t bytes;
	struct mc_diag diag; /* written once, before the state */
	bool has_diag;
	/* the request, kept until done */
	struct mc_tstate *t;
	struct mc_frag *frags;
	struct mc_eslice *slices;
	struct mc_gsignal *signals;
	size_t nt, nfrags, nslices, nsignals;
	size_t t_cap, frags_cap, slices_cap, signals_cap;
	/* notification to send once all is visible */
	struct mc_session *notify_session; /* counted, NULL: none */
	char *notify_name, *notify_msg;	   /* mc_free */
	uint32_t notify_name_len, notify_msg_len;
	const struct mc_tap *tap;	/* of a synchronous caller; NULL: none */
	const struct mc_eslice *within; /* the staged slice that this is a hop of; NULL: none */
	/* asynchronous groups: the way to the loop and back */
	struct mc_task task;
	struct mc_loop *loop;
};

/** What the target must be asked for: a lane of one transport to be retired. len 0: no fence. */
struct mc_fence_token {
	enum mc_route route;
	size_t len;
	uint8_t bytes[MC_XPORT_TOKEN_MAX];
};

/** What a worker did for a pump, on its way back to the pump's owner. */
struct mc_return {
	struct mc_list link; /* mc_pump.returns */
	struct mc_task task;
	struct mc_pump *pump; /* its session is referenced meanwhile */
	void (*run)(struct mc_return *r);
};

struct mc_elane {
	struct mc_list link; /* mc_session.lanes, under its mu */
	struct mc_session *session;
	struct mc_xlane *x;
	enum mc_route route;
	struct mc_rail_set *rails; /* of the route; NULL: it has none */
	unsigned rail;
	unsigned slot, slot_gen; /* upstream's peers: which of ours this is to them */
	_Atomic bool is_owned;	 /* claimed and released under session.mu */
	uint64_t idle_since_ns;
	/* the owner's */
	struct mc_list flying; /* mc_eslice.flying */
	uint64_t flying_bytes;
	unsigned flying_n;
	struct mc_slice
	    *batch[MC_BATCH_MAX]; /* of flying: chosen, posted at the end of the round */
	unsigned nbatch;
	uint64_t seen_progress; /* watchdog: as of its last look */
	uint64_t seen_ns;	/* bytes moved, or there was nothing to move, until here */
	uint64_t moved_ns;	/* bytes moved */
	struct mc_rail_meter meter;
	struct mc_pump *pump;
	struct mc_rail_stats *stats;
	struct mc_watch watch; /* loop pumps only */
	bool is_watched;
	/* once it is being ended by a worker: break.c */
	struct mc_worker_job end_job;
	struct mc_return back;
	struct mc_list left; /* mc_slice.link */
	struct mc_fence_token token;
	unsigned nleft;
	int cause;
};

struct mc_rail {
	struct mc_session *session;
	enum mc_route route;
	unsigned index;			  /* in its set */
	struct mc_addr local, remote;	  /* TCP; local.len 0: the system's choice */
	unsigned local_port, remote_port; /* RDMA */
	struct mc_rail_health health;	  /* session.mu */
	bool is_opening;		  /* session.mu; RDMA: a worker opens a lane */
	int open_rc;			  /* session.mu; why that failed, until told */
	struct mc_rail_stats *stats;	  /* of the engine, by local end and transport */
	struct mc_worker_job probe_job;
	struct mc_worker_job open_job;
};

/** Rails of one transport, constant once the session is open, but for their health. */
struct mc_rail_set {
	struct mc_rail v[MC_RAILS_MAX];
	unsigned n;
};

/** A write that could not be fenced: no new write there until it is. */
struct mc_unfenced {
	struct mc_list link;
	struct mc_inode node; /* remote addresses; local ones of MC_FENCE_LOCAL */
	uint64_t owner;	      /* mc_session.fence_key, or MC_FENCE_LOCAL */
	struct mc_fence_token token;
};

/** Of the whole engine: it outlives sessions, which come and go while an incarnation lives. */
struct mc_quarantine {
	pthread_mutex_t mu; /* a leaf; guards what follows but n */
	struct mc_list list;
	struct mc_itree ranges;
	struct mc_unfenced
	    blocked[MC_BLOCKED_MAX]; /* without a range: there was no memory for it */
	unsigned nblocked;
	bool is_all_blocked; /* and no room for their owner either */
	_Atomic unsigned n;  /* ranges and blocked; 0: no write needs to look */
};

/** Lets a loop look at its pump of a session again. */
struct mc_wake {
	struct mc_task task;
	struct mc_session *session; /* counted while queued */
	unsigned index;		    /* of the loop */
	_Atomic bool is_queued;
};

struct mc_session {
	struct mc_engine *eng;
	struct mc_peer *peer; /* outlives the session */
	_Atomic uint32_t refs;
	_Atomic bool is_dead;	/* given up: open anew */
	_Atomic bool is_gone;	/* the incarnation is proven gone: nothing of ours lands any more */
	_Atomic bool is_closed; /* the segment was closed: groups under way end */
	enum mc_peer_kind kind;
	uint64_t epoch;
	/* Epoch; of files mc_file_seg_id(); of peers without one: the session's own number. */
	uint64_t fence_key;
	uint8_t nonce[MC_NONCE_BYTES];
	int classic_proto;
	struct mc_rail_set tcp, rdma; /* tcp.n 0: an upstream peer with RDMA alone */
	struct mc_classic *classic;   /* upstream's, with RDMA; else NULL */
	_Atomic bool is_rdma_off;     /* one of us cannot: not a matter of a rail */
	struct mc_shm_peer *shm;      /* attached, or NULL */
	struct mc_file_seg *file;

	struct mc_addr ctl_addr; /* the peer's control port */
	struct mc_worker_job end_job;
	pthread_mutex_t ctl_mu;	  /* guards ctl, its users, is_ctl_opening; > mu */
	bool is_ctl_opening;	  /* one caller connects, the others wait for ctl_seq */
	_Atomic uint32_t ctl_seq; /* futex word: an attempt is over */
	struct mc_ctl_conn *ctl;
	_Atomic unsigned nwatches; /* that wait for the end of this incarnation: watch.c */
	_Atomic bool is_looking;   /* whether it has ended; then these are the looker's */
	struct mc_worker_job look_job;
	struct mc_task look_task;
	struct mc_timer look_timer;
	uint64_t look_pause_ns, look_at_ns;
	int ctl_bad_rail;	      /* -1: none; its last call got no answer */
	_Atomic uint64_t ctl_lost_ns; /* 0: not lost */
	_Atomic bool is_ctl_lost;     /* look whether the process still is the one we knew */

	pthread_mutex_t mu;
	struct mc_list lanes;
	_Atomic uint32_t lane_seq; /* futex word of callers waiting for a lane */
	_Atomic uint32_t lane_waiters;
	struct mc_itree regions; /* mc_eregion.node */
	struct mc_list stale;	 /* regions that were found stale; freed with the session */
	_Atomic size_t nregions; /* ever learnt */
	unsigned nstaged;	 /* chunks of staged slices under way: staged.c's lock */
	struct mc_climb climb[MC_OP_COUNT];  /* under mu */
	struct mc_pump *pumps[MC_LOOPS_MAX]; /* each its loop's */
	struct mc_wake wakes[MC_LOOPS_MAX];
};

struct mc_eregion {
	struct mc_inode node;
	struct mc_list link;
	struct mc_remote_region r;
	_Atomic bool is_stale; /* forgotten: what names it has to be looked up again */
};

struct mc_peer {
	struct mc_engine *eng;
	char *name;
	int32_t id;
	pthread_mutex_t mu; /* guards session and is_opening */
	struct mc_session *session;
	bool is_opening;	   /* one caller opens, the others wait for open_seq */
	_Atomic uint32_t open_seq; /* futex word: an attempt is over */
	_Atomic bool is_closed;
	_Atomic uint32_t nclosed; /* how often: groups that wait for an answer end */
	/* groups that cannot start before the peer was asked: pend.c */
	struct mc_list pend_todo; /* mc_pend.todo, under mu, as is_asking */
	bool is_asking;		  /* a worker is at it */
	struct mc_worker_job pend_job;
	struct mc_list pending; /* mc_pend.shown; of the peer's loop, as pend_timer */
	struct mc_timer pend_timer;
};

/** Moves slices of one session. The owner thread calls everything in here. */
struct mc_pump {
	struct mc_session *session;
	struct mc_loop *loop; /* NULL: a synchronous caller's, on its stack */
	unsigned loop_index;
	struct mc_list todo[MC_PRIO_COUNT]; /* mc_slice.link */
	unsigned ntodo;
	struct mc_elane *lanes[MC_PUMP_LANES_MAX];
	unsigned nlanes;
	unsigned nflying; /* slices posted */
	/* slices at a worker: their lane is being ended, or they are fenced, or looked up anew */
	unsigned nfencing;
	struct mc_list returns; /* mc_return.link, under session.mu; of a caller's pump */
	_Atomic unsigned nreturns;
	unsigned lanes_max;	/* on one rail that a core limits; see climb.h */
	uint64_t now_ns;	/* of the last round: near enough for lanes' idle times */
	uint64_t wait_until_ns; /* back-off of retries */
	struct mc_timer tick;
	struct mc_task kick;
	bool is_kick_queued;
	uint64_t todo_bytes;
};

struct mc_notice_node {
	struct mc_list link;
	struct mc_notice n;
};

struct mc_rail_stats {
	struct mc_list link;
	struct mc_counter bytes[MC_OP_COUNT], ops[MC_OP_COUNT];
	struct mc_counter retries; /* slices that left a broken lane and were tried again */
	struct mc_counter broken;  /* lanes that broke with slices on them */
	struct mc_hist latency[MC_OP_COUNT];		 /* of slices, from post to completion */
	_Atomic(struct mc_counter *) errors[MC_E_COUNT]; /* slices that failed; made when needed */
	char transport[16], rail[MC_ADDR_TEXT_MAX], peer[256];
};

struct mc_engine {
	_Atomic uint32_t refs;
	uint64_t fork_gen;
	struct mc_conf conf;
	struct mc_hs_conf hs;
	char *name;    /* what peers open */
	char *address; /* "ip:port" of the control port */
	uint16_t port;
	uint64_t epoch;
	uint8_t nonce[MC_NONCE_BYTES];
	char boot_id[40];
	struct mc_loop *loops[MC_LOOPS_MAX];
	unsigned nloops;
	struct mc_region_table *regions;
	struct mc_xdev *tcp, *self, *shm, *file;
	struct mc_xdev *rdma;		 /* NULL: not wanted, or there is none */
	struct mc_hca_place *hca_places; /* which ports are close to which memory; constant */
	size_t nhca_places;
	struct mc_topo *hca_topo;	  /* of all HCAs; constant; NULL: unknown */
	_Atomic bool is_hca_warned;	  /* of memory that the HCAs refused */
	struct mc_initiators *initiators; /* the first loop's */
	struct mc_xdev
	    *lanes_from;	  /* TCP lanes are opened here instead; set by tests only, theirs */
	pthread_mutex_t files_mu; /* a leaf; guards files, and their idle lanes */
	struct mc_list files;	  /* mc_file_mem.link */
	_Atomic unsigned nfiles;
	struct mc_stage *stage;	      /* buffers of ours: stage.c */
	_Atomic unsigned nstage_jobs; /* peers' calls about them that workers have */
	struct mc_staged *staged;     /* slices that use such buffers: staged.c */
	pthread_mutex_t plain_mu; /* guards plain: memory handed out where memfds are forbidden */
	struct mc_list plain;
	struct mc_addr rail_addrs[MC_RAILS_MAX]; /* [0]: the advertised address */
	unsigned nrail_addrs;
	struct mc_control *control;
	struct mc_rpc_server *rpc;
	struct mc_meta *meta; /* NULL: P2P */
	struct mc_join *join; /* NULL: not joined */
	struct mc_idle *idle; /* NULL: no lane is ever closed for not being used */
	/* First loop only: our descriptor as of these versions of ranges and RDMA ports, for peers
	 * of protocol tcp and rdma. */
	struct mc_control_text *desc_text[2];
	uint64_t desc_version[2];
	uint32_t desc_ports[2];
	_Atomic bool is_desc_warned; /* of ranges that it has no room for */
	pthread_mutex_t publish_mu;  /* one update of the metadata service at a time; is_joined */
	bool is_joined;		     /* the metadata service may list us */
	_Atomic bool is_closing;
	_Atomic uint64_t fence_end_ns; /* when a closing engine stops to wait for fences */
	struct mc_quarantine quarantine;

	pthread_mutex_t peers_mu;
	struct mc_peer **peers; /* by id */
	size_t npeers, peers_cap;
	struct mc_map peers_by_name;

	struct mc_ids *groups;
	pthread_mutex_t pool_mu;
	struct mc_list pool; /* mc_gop.pool_link */
	unsigned pool_n;
	_Atomic uint32_t gops_live;
	_Atomic uint32_t sessions_live;
	_Atomic uint64_t next_key; /* mc_session.fence_key of peers without an epoch */

	pthread_mutex_t inbox_mu;
	struct mc_list inbox; /* mc_notice_node.link */
	size_t inbox_n, inbox_bytes;
	uint64_t seen_notify[2048]; /* ids of the last notifications, against doubles */
	unsigned seen_at;

	pthread_mutex_t watch_mu; /* a leaf; guards watches */
	struct mc_list watches;	  /* mc_peer_watch.link */

	pthread_mutex_t work_mu;
	pthread_cond_t work_cond;
	struct mc_list work;		 /* mc_worker_job.link */
	unsigned nworkers, nidle, nwork; /* nwork: jobs in the list */
	bool is_work_over;
	pthread_t workers[MC_WORKERS_MAX];

	struct mc_stats *stats;
	struct mc_http_server *http;
	struct mc_metrics_log *metrics_log;
};

/* ---- segment.c ---- */
int mc_peer_by_id(struct mc_engine *eng, int32_t id, struct mc_peer **ret_peer);
/** The local segment's peer, id 0. Before any other. */
int mc_peers_open(struct mc_engine *eng);
/** Sessions are given up; every group has ended. */
void mc_peers_close(struct mc_engine *eng);

/* ---- session.c ---- */
/** The peer's session, opened if there is none that lives. Blocks. One reference for the caller. */
int mc_session_get(struct mc_peer *peer, uint64_t deadline_ns, struct mc_diag *diag,
		   struct mc_session **ret_session);
/** The same if there is one that needs no look, else NULL. Never blocks. */
struct mc_session *mc_session_now(struct mc_peer *peer);
void mc_session_ref(struct mc_session *s);
void mc_session_put(struct mc_session *s);
/** Give it up: the next mc_session_get() opens anew. */
void mc_session_kill(struct mc_session *s);
/** Its incarnation is proven gone: nothing of ours lands there any more. Any thread. */
void mc_session_gone(struct mc_session *s);
/** The region of a range as far as it is known, else NULL. Never blocks. */
const struct mc_remote_region *mc_session_region_known(struct mc_session *s, uint64_t addr,
						       uint64_t len);
/** Regions for the ranges of a request. Blocks for one round trip per unknown batch. */
int mc_session_region(struct mc_session *s, uint64_t addr, uint64_t len, uint64_t deadline_ns,
		      const struct mc_remote_region **ret_region);
/** Ask for many ranges at once, ahead of mc_session_region(). */
int mc_session_resolve(struct mc_session *s, const struct mc_iov *ranges, size_t n,
		       uint64_t deadline_ns);
/** As learnt from a descriptor or a call. */
int mc_session_learn(struct mc_session *s, const struct mc_remote_region *r,
		     const struct mc_remote_region **ret_region);
/** A region turned out to be stale: forget it (memory stays until the session ends). */
void mc_session_forget(struct mc_session *s, const struct mc_remote_region *region);
/** One control call. @return the peer's status or a connection error */
int mc_session_call(struct mc_session *s, uint16_t method, const void *req, size_t req_len,
		    uint64_t deadline_ns, void *reply, size_t reply_cap, size_t *ret_len);

/* ---- find.c ---- */
#define MC_FILE_SCHEME "file://"
struct mc_segdesc;
/** Control address and descriptor of the session's peer. Blocks. */
int mc_find_peer(struct mc_session *s, uint64_t deadline_ns, struct mc_diag *diag,
		 struct mc_addr *ret_ctl_addr, struct mc_segdesc **ret_desc);
int mc_session_open_file(struct mc_session *s, struct mc_diag *diag);

/* ---- lane.c ---- */
/** Claim an idle lane on this route and rail, or open one. @return 0; -MC_E_AGAIN (all are owned,
 * or a worker is opening one: see mc_offer()); lane_open()'s errors */
int mc_lane_claim(struct mc_session *s, enum mc_route route, unsigned rail, uint64_t now_ns,
		  struct mc_elane **ret_lane);
/** Give it back, idle. */
void mc_lane_release(struct mc_elane *lane, uint64_t now_ns);
/** A lane that is open but in no list; nobody else knows it. */
int mc_lane_new(struct mc_session *s, enum mc_route route, unsigned rail,
		struct mc_elane **ret_lane);
/** Let others claim it. */
void mc_lane_join(struct mc_elane *lane);
/** It never joined. */
void mc_lane_free(struct mc_elane *lane);
/** Forget a broken or unwanted lane; it is aborted already. */
void mc_lane_drop(struct mc_elane *lane);
/** Close the lanes of a route that nobody owns; MC_ROUTE_COUNT: of all. */
void mc_lane_drop_idle(struct mc_session *s, enum mc_route route);

/** End the lanes of a route that nobody owns and that were last used before that; where a peer
 * holds an end of it, it is told. Blocks. @return how many */
unsigned mc_lane_retire_idle(struct mc_session *s, enum mc_route route, uint64_t before_ns);

/* ---- idle.c ---- */
int mc_idle_open(struct mc_engine *eng);
/** Peers are not looked at any more. is_closing is set. */
void mc_idle_stop(struct mc_engine *eng);
/** After workers and loops have ended. */
void mc_idle_free(struct mc_engine *eng);

/* ---- offer.c: lanes that the peer must agree to ---- */
/** Have a worker open one. @return -MC_E_AGAIN: under way, waiters are woken; -MC_E_UNSUPPORTED:
 * this session has no such route any more */
int mc_offer(struct mc_rail *rail);
/** What a probe found out by opening a lane, or a lane that was wanted. */
void mc_offer_probe(struct mc_rail *rail);
/** Fence of a lane that left nothing behind: the peer may free its end. Does not wait. */
void mc_offer_retire(struct mc_session *s, const struct mc_fence_token *token);

/** Lanes for transfers that are not measured. */
unsigned mc_session_lanes(const struct mc_session *s);

/* ---- pump.c ---- */
void mc_pump_init(struct mc_pump *p, struct mc_session *s, struct mc_loop *loop,
		  unsigned loop_index);
void mc_pump_add(struct mc_pump *p, struct mc_eslice *es);
/** Post what can be posted. */
void mc_pump_feed(struct mc_pump *p, uint64_t now_ns);
/** Progress on all lanes; a synchronous pump may wait up to block_ns. */
void mc_pump_poll(struct mc_pump *p, uint64_t block_ns);
/** Deadlines, cancels, stalled lanes. Every 50 ms or so while anything is under way. */
void mc_pump_check(struct mc_pump *p, uint64_t now_ns);
static inline bool mc_pump_is_idle(const struct mc_pump *p)
{
	return p->ntodo == 0 && p->nflying == 0 && p->nfencing == 0;
}
/** All lanes back to the session. */
void mc_pump_release(struct mc_pump *p);
/** A slice left a lane without an outcome: again, or fail with rc. */
void mc_pump_again(struct mc_pump *p, struct mc_eslice *es, int rc, uint64_t now_ns);

/* ---- break.c ---- */
/** Break a lane: its slices are requeued, failed or fenced, now or once a worker has ended it. */
void mc_pump_break(struct mc_pump *p, struct mc_elane *lane, int rc, uint64_t now_ns);
/** End an idle lane that the caller owns; where a peer holds an end of it, it is told. Does not
 * wait. */
void mc_lane_part(struct mc_elane *lane);
/** A worker is through with it: the pump's owner goes on with run(). */
void mc_pump_return(struct mc_return *r);
/** Run what has come back. Owner's thread, of a caller's pump. @return there was something */
bool mc_pump_take_returns(struct mc_pump *p);

/* ---- fence.c ---- */
/** Fence the writes in `maybe` (mc_slice.link) whose lane's token this is; the pump gets them back
 * decided. */
void mc_fence(struct mc_pump *p, struct mc_list *maybe, const struct mc_fence_token *token,
	      int cause);
#define MC_FENCE_LOCAL UINT64_MAX /* owner of this process's memory */
/**
 * -MC_E_UNFENCED while something earlier may still land in the range. Tries to fence it first.
 * @param owner  s->fence_key, or MC_FENCE_LOCAL
 */
int mc_fence_check(struct mc_session *s, uint64_t owner, uint64_t addr, uint64_t len,
		   uint64_t deadline_ns);
/** Nothing earlier may still land in the range, as far as is known. Never blocks. */
bool mc_fence_is_clear(struct mc_session *s, uint64_t owner, uint64_t addr, uint64_t len);
void mc_quarantine_init(struct mc_quarantine *q);
/** Everything of this owner can be forgotten. */
void mc_quarantine_forget(struct mc_quarantine *q, uint64_t owner);
void mc_quarantine_fini(struct mc_quarantine *q);

/* ---- refresh.c ---- */
/** A refusal may only mean that what we know of the peer's ranges is old: look them up again, once.
 * @return true: the slice comes back to the pump; false: it may not, or cannot */
bool mc_refresh(struct mc_pump *p, struct mc_eslice *es);
/** Does the slice name a region that another slice found to be old? */
bool mc_refresh_is_due(const struct mc_eslice *es);

/* ---- build.c ---- */
/**
 * Cut the request into slices.
 * @param until_ns  what may be waited for answers of peers; 0: not at all
 * @param ret_peer  the last one that was needed, whatever the outcome
 * @return 0; 1 (until_ns 0): that peer has to be asked; < 0. Not 0: nothing is built
 */
int mc_gop_build(struct mc_gop *op, const struct mc_group *g, uint64_t until_ns,
		 struct mc_diag *diag, struct mc_peer **ret_peer);
/** Undo it: no sessions, no slices. */
void mc_gop_unbuild(struct mc_gop *op);

/* ---- pend.c ---- */
/** Keep a copy of the request, which waits until `peer` was asked. */
int mc_pend_open(struct mc_gop *op, const struct mc_group *g, struct mc_peer *peer,
		 struct mc_pend **ret_pend);
/** It is not to be. NULL is allowed. */
void mc_pend_drop(struct mc_pend *pend);
/** Have the peer asked, then start the group. */
void mc_pend_start(struct mc_pend *pend);
void mc_pend_peer_init(struct mc_peer *peer);

/* ---- watch.c ---- */
/** The control connection is lost, and somebody wants to know why. Any thread. */
void mc_watch_lost(struct mc_session *s);
/** An incarnation is proven gone. Any thread. */
void mc_watch_gone(struct mc_engine *eng, uint64_t fence_key);
/** A segment is closed. NULL: all are. */
void mc_watch_closed(struct mc_engine *eng, const struct mc_peer *peer);
/** The watches that end there; and this one alone. */
void mc_watch_cq_closed(struct mc_engine *eng, const struct mc_cq *cq);
void mc_watch_canceled(struct mc_gop *op);

/* ---- tap.c ---- */
/** Show the group's bytes to the caller whose thread drives it. NULL: nothing. */
void mc_tap_set(struct mc_gop *op, const struct mc_tap *tap);
/** A slice of which something was shown begins anew. */
void mc_tap_again(struct mc_eslice *es);

/* ---- group.c ---- */
/** The request as this library knows it, whatever the caller was built with. */
void mc_group_read(struct mc_group *to, const struct mc_group *from);
/** Check the request, and begin a group for it; mc_gop_build() is next. */
int mc_gop_open(struct mc_engine *eng, const struct mc_group *group, struct mc_diag *diag,
		struct mc_gop **ret_op);
void mc_gop_ref(struct mc_gop *op);
void mc_gop_put(struct mc_gop *op);
/** A slice is over. Driver thread. */
void mc_gop_slice_end(struct mc_eslice *es, int status, const char *route);
/** Everything is over: notification, then waiters and queues hear of it. */
void mc_gop_end(struct mc_gop *op);
/** What end does after the notification. */
void mc_gop_finish(struct mc_gop *op);
int mc_gop_wait(struct mc_gop *op, uint64_t deadline_ns);
/** Some groups with small arrays, so that the first transfers find them. @return 0; -MC_E_NOMEM */
int mc_gop_pool_init(struct mc_engine *eng);
void mc_gop_pool_fini(struct mc_engine *eng);

/* ---- async.c ---- */
void mc_async_start(struct mc_gop *op);
/** Loop thread: a pump has something to do. */
void mc_async_kick(struct mc_pump *p);
void mc_session_pumps_close(struct mc_session *s);
void mc_session_wakes_init(struct mc_session *s);
/** A lane has come, or its rail has gone: whoever waits for one looks again. Any thread. */
void mc_session_wake(struct mc_session *s);

/* ---- cq.c ---- */
/** Room for one more group. @return 0; -MC_E_AGAIN; -MC_E_CLOSED; -MC_E_INVAL: another engine's */
int mc_cq_begin(struct mc_cq *cq, const struct mc_engine *eng);
void mc_cq_undo(struct mc_cq *cq);
bool mc_cq_is_closing(struct mc_cq *cq);
void mc_cq_push(struct mc_cq *cq, const struct mc_gop *op);

/* ---- notify.c ---- */
/** What a user wants to send. @return 0; -MC_E_INVAL; -MC_E_TOO_BIG */
int mc_notify_check(const struct mc_notify *n);
int mc_notify_deliver(struct mc_session *s, const void *name, uint32_t name_len, const void *msg,
		      uint32_t msg_len, uint64_t deadline_ns);
/** A message came. @return 0; -MC_E_AGAIN: the inbox is full; -MC_E_EXIST: had it already */
int mc_inbox_put(struct mc_engine *eng, uint64_t id, const void *name, size_t name_len,
		 const void *msg, size_t msg_len);
void mc_inbox_fini(struct mc_engine *eng);

/* ---- worker.c: threads for what blocks ---- */
/** Start the first. @return 0; -MC_E_LIMIT */
int mc_work_open(struct mc_engine *eng);
void mc_work_post(struct mc_engine *eng, struct mc_worker_job *job);
void mc_work_close(struct mc_engine *eng);

/* ---- serve.c: what peers ask ---- */
int mc_serve_open(struct mc_engine *eng, const struct mc_addr *bind, struct mc_diag *diag);
/** A control connection came to the data port. Any loop. */
int mc_serve_adopt(void *user, int fd, const void *bytes, size_t len);
void mc_serve_close(struct mc_engine *eng);

/* ---- join.c ---- */
/** List this process in the metadata service, if there is one, and see that it stays listed. */
int mc_join(struct mc_engine *eng, const char *host, struct mc_diag *diag);
/** Take the entries back. is_closing is set. */
void mc_leave(struct mc_engine *eng);
/** After workers and loops have ended. */
void mc_join_free(struct mc_engine *eng);

/* ---- sync.c ---- */
/** One hop of a staged slice: a transfer over its session, that ends with it. Blocks until the
 * slice's group has to end, at most. */
int mc_transfer_within(const struct mc_eslice *es, enum mc_op op, uint64_t local, uint64_t remote,
		       uint64_t len, struct mc_diag *diag);

/* ---- mem.c ---- */
/** A buffer for staging, registered so that peers reach it and none of them is told. @return 0;
 * -MC_E_NOMEM; -MC_E_LIMIT */
int mc_bounce_alloc(struct mc_engine *eng, size_t len, void **ret_addr,
		    struct mc_region_info *ret_info);
/** When it returns nothing of any peer lands there any more. */
void mc_bounce_free(struct mc_engine *eng, void *addr);
/** Bring the metadata service up to date. @return 0 (also without one); -MC_E_METADATA */
int mc_mem_publish(struct mc_engine *eng, struct mc_diag *diag);

/** End every registration, whoever forgot it. */
void mc_mem_drop_all(struct mc_engine *eng);
int mc_mem_first(struct mc_engine *eng, uint64_t *ret_addr);

/* ---- engine.c ---- */
struct mc_verbs;
/** mc_engine_open() with a verbs table instead of libibverbs; NULL: libibverbs. For tests. */
int mc_engine_open_verbs(const struct mc_engine_opts *opts, const struct mc_verbs *verbs,
			 struct mc_diag *diag, struct mc_engine **ret_engine);
/** What every transport of this engine is opened with. */
struct mc_xdev_env mc_engine_xdev_env(struct mc_engine *eng);

/* ---- metrics.c ---- */
int mc_stats_open(struct mc_engine *eng);
/** What the RDMA device counts, too. */
int mc_stats_rdma(struct mc_engine *eng);
void mc_stats_close(struct mc_engine *eng);
/** Counters of a link, the same for the same names; never NULL. */
struct mc_rail_stats *mc_stats_rail(struct mc_engine *eng, const char *transport, const char *rail,
				    const char *peer);
/** Serve the metrics over HTTP on loopback; port 0: do not. */
int mc_metrics_serve(struct mc_engine *eng, uint16_t port, bool is_required, struct mc_diag *diag);
void mc_metrics_unserve(struct mc_engine *eng);
/** MC_TE_METRIC: a line with the rates of each interval. */
void mc_metrics_log_begin(struct mc_engine *eng);
void mc_metrics_log_end(struct mc_engine *eng);
void mc_stats_done(struct mc_gop *op);
void mc_stats_error(struct mc_engine *eng, const struct mc_eslice *es, int code);

static inline bool mc_engine_is_forked(const struct mc_engine *eng)
{
	return mc_fork_is_child(eng->fork_gen);
}

#endif
