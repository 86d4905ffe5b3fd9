/*
 * verbs_fake_priv.h: what the files of the fake fabric share: verbs_fake.c (devices, memory,
 * events, faults), verbs_fake_cq.c (completion queues and channels), verbs_fake_qp.c (queue pairs
 * and the wire).
 *
 * Everything is guarded by `fab.lock`; objects are found by walking lists, which is fast enough for
 * the numbers of a test.
 */
#ifndef TESTS_VERBS_FAKE_PRIV_H
#define TESTS_VERBS_FAKE_PRIV_H

#include <pthread.h>

#include "base/list.h"
#include "verbs_fake.h"

#define FAKE_EVENTS_MAX 256u
#define FAKE_GID_BYTES 16

struct fake_port {
	union ibv_gid gid[VERBS_FAKE_GIDS];
	enum verbs_fake_link link;
	uint16_t lid; /* InfiniBand */
};

struct fake_dev {
	struct ibv_device ibv;
	unsigned index;
	struct fake_port port[VERBS_FAKE_PORTS_MAX]; /* [n - 1] is port n */
	bool is_dead;
	unsigned nqps, nmrs;
};

/* Events that wait in the kernel's stead: the descriptor counts them. */
struct fake_events {
	int fd;
	unsigned head, n;
	struct fake_event {
		void *of; /* queue pair or completion queue; NULL: gone, or of a port */
		bool is_gone;
		struct ibv_async_event ev;
	} ring[FAKE_EVENTS_MAX];
};

struct fake_ctx {
	struct ibv_context ibv;
	struct mc_list link;
	struct fake_dev *dev;
	struct fake_events async;
	unsigned npds, nchannels, ncqs;
};

struct fake_pd {
	struct ibv_pd ibv;
	unsigned nmrs, nqps;
};

struct fake_mr {
	struct ibv_mr ibv;
	struct mc_list link;
	unsigned access;
};

struct fake_channel {
	struct ibv_comp_channel ibv;
	struct fake_events events;
	unsigned ncqs;
};

struct fake_cq {
	struct ibv_cq ibv;
	struct mc_list link;
	unsigned cap, head, n;
	struct fake_cqe {
		struct ibv_wc wc;
		uint64_t sq_upto; /* the sender's slots below this are free once it is polled */
	} * ring;
	bool is_armed, is_lost;
	unsigned nqps, unacked;
};

struct fake_wqe {
	uint64_t wr_id;
	enum ibv_wr_opcode opcode;
	bool is_signaled;
	unsigned nsges;
	struct ibv_sge *sges; /* of a read: where it goes */
	uint64_t len;
};

struct fake_qp {
	struct ibv_qp ibv;
	struct mc_list link;
	struct ibv_qp_cap cap;
	struct ibv_qp_attr attr; /* what modify_qp() has set */
	bool is_sig_all;
	/* The send queue by request number: [done, posted) are under way, [freed, posted) take
	 * slots. */
	uint64_t posted, done, freed;
	struct fake_wqe *wqe; /* request n is at n % cap.max_send_wr */
	unsigned unacked;     /* asynchronous events */
};

/* A request on the wire; it outlives its sender. */
struct fake_packet {
	struct mc_list link;
	struct fake_dev *from;
	uint8_t from_port;
	uint32_t from_qpn, to_qpn;
	uint64_t number; /* of the request at its sender */
	union ibv_gid dgid;
	uint16_t dlid;
	uint32_t psn;
	enum ibv_mtu mtu;
	bool is_write, is_lost, is_landed;
	enum ibv_wc_status wrong; /* what the device found when it took up the request */
	uint64_t raddr, len;
	uint32_t rkey;
	uint8_t *data; /* of a write */
};

struct fake_fabric {
	pthread_mutex_t lock;
	pthread_cond_t acked;
	bool is_open;
	struct verbs_fake_conf conf;
	struct fake_dev dev[VERBS_FAKE_DEVS_MAX];
	struct mc_list ctxs, mrs, cqs, qps, wire;
	struct verbs_fake_live live;
	uint32_t next_qpn, next_mr;
	uint64_t mr_bytes, rand;
	enum verbs_fake_hold hold;
	unsigned calls[VERBS_FAKE_CALL_COUNT];
	enum verbs_fake_call fail_call;
	int64_t fail_in; /* calls until it fails; -1: never */
	int fail_err;
	bool has_failed;
	enum verbs_fake_call block_call; /* ANY: none */
	int64_t fail_wr_in;
	enum ibv_wc_status fail_wr_status;
};
extern struct fake_fabric fab;

/* ---- verbs_fake.c; all with the lock held ---- */
/** Count a call. @return 0, or the errno that it has to fail with */
int fake_enter(enum verbs_fake_call call, const struct ibv_context *ctx);
/** Of a destroying verb: @return 0, or the errno; *ret_keep: the object stays */
int fake_enter_destroy(enum verbs_fake_call call, bool *ret_keep);
struct fake_dev *fake_dev_of(const struct ibv_context *ctx);
struct fake_mr *fake_mr_find(const struct fake_dev *dev, const struct ibv_pd *pd, uint32_t key,
			     bool is_remote);
int fake_events_open(struct fake_events *e);
void fake_events_close(struct fake_events *e);
void fake_events_put(struct fake_events *e, void *of, const struct ibv_async_event *ev);
/** Events of a dying object are forgotten. */
void fake_events_purge(struct fake_events *e, const void *of);
/** Takes the lock itself; blocks as the descriptor says. @return 0 with the lock held; -1 without,
 * and errno */
int fake_events_get(struct fake_events *e, struct fake_event *ret);
/** Waits until *unacked is 0; aborts after 5 s. */
void fake_wait_acked(const unsigned *unacked, const char *what);
void fake_async(struct fake_dev *dev, enum ibv_event_type type, unsigned port);
void *fake_alloc(size_t count, size_t size);

/* ---- verbs_fake_cq.c ---- */
void fake_cq_push(struct ibv_cq *cq, const struct ibv_wc *wc, uint64_t sq_upto);
void fake_cq_verbs(struct mc_verbs *v);
int fake_poll_cq(struct ibv_cq *cq, int n, struct ibv_wc *wc);
int fake_req_notify_cq(struct ibv_cq *cq, int solicited_only);

/* ---- verbs_fake_qp.c ---- */
void fake_qp_verbs(struct mc_verbs *v);
int fake_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad_wr);
struct fake_qp *fake_qp_find(uint32_t qpn);
void fake_qp_free(struct fake_qp *qp);
/** To the error state; what is under way is flushed. */
void fake_qp_break(struct fake_qp *qp);
/** Let all go on that can. */
void fake_wire_run(void);

#endif
