/*
 * inbound.c: the target's ends of lanes: queue pairs that others read and write through, while this
 * process does nothing but hold them. So it must know when to let go of them: when the lane is
 * retired (the fence), when its initiator is gone, when there are too many.
 *
 * Which to give up when there are too many is SIEVE (Zhang et al., NSDI 2024): a queue in order of
 * arrival and a hand that goes from the oldest to the newest, spares who was visited and takes the
 * first that was not. One-sided transfers do not pass this processor, so "visited" means that the
 * initiator was heard of since: it introduced or retired a lane. Who loses its queue pairs sees
 * errors of the path, and introduces a lane anew.
 *
 * Verbs are called outside the lock. An entry is MAKING or DYING meanwhile, so that a retirement
 * that comes at the same time neither misses it nor answers too early.
 */
#include <string.h>

#include "base/codec.h"
#include "base/hash.h"
#include "base/log.h"
#include "xport/rdma/qp.h"

#define BUCKETS 256u
#define RETIRED_MAX 4096u
#define WHO_MAX 1024u
#define CQ_ENTRIES 16u /* nobody posts to these queue pairs */

enum entry_state {
	ENTRY_MAKING,
	ENTRY_LIVE,
	ENTRY_DYING, /* somebody is destroying it */
	ENTRY_STUCK, /* the device would not let go of a queue pair */
};

struct entry {
	struct mc_list bucket;
	struct mc_list fifo; /* MAKING, LIVE: in the port's; else in a list of victims or alone */
	uint64_t key;	     /* of the initiator: what the buckets are chosen by */
	uint64_t epoch, lane;
	char *who; /* upstream's initiators; NULL: ours */
	unsigned port;
	enum entry_state state;
	bool is_visited;
	bool is_doomed; /* MAKING: it is to end as soon as it is made */
	uint32_t nqps;
	struct mc_rdma_qp qp[MC_RDMA_QPS_MAX];
};

struct inbound_port {
	struct mc_rdma_cq cq;
	struct mc_list fifo;  /* newest first */
	struct mc_list *hand; /* in fifo; its head: begin at the oldest */
	unsigned n;
};

struct retired {
	uint64_t epoch, lane;
};

struct mc_rdma_inbound {
	struct mc_rdma_dev *dev;
	pthread_mutex_t mu; /* guards all below but the queues themselves; taken last */
	struct inbound_port ports[MC_RDMA_PORTS_MAX];
	struct mc_list buckets[BUCKETS];
	struct retired retired[RETIRED_MAX];
	unsigned retired_n, retired_at;
};

/* ---- the table: lock held ---- */

static struct mc_list *bucket_of(struct mc_rdma_inbound *in, uint64_t key)
{
	return &in->buckets[key % BUCKETS];
}

static uint64_t key_of(const char *who, uint64_t epoch)
{
	return who ? mc_hash64(who, strlen(who), 1) : mc_hash64(&epoch, sizeof(epoch), 0);
}

static bool is_initiator(const struct entry *e, const char *who, uint64_t epoch)
{
	if (who)
		return e->who && strcmp(e->who, who) == 0;
	return !e->who && e->epoch == epoch;
}

static struct entry *find(struct mc_rdma_inbound *in, uint64_t epoch, uint64_t lane)
{
	struct entry *e;

	mc_list_each (e, bucket_of(in, key_of(NULL, epoch)), bucket)
		if (is_initiator(e, NULL, epoch) && e->lane == lane)
			return e;
	return NULL;
}

static void visit(struct mc_rdma_inbound *in, const char *who, uint64_t epoch)
{
	struct entry *e;

	mc_list_each (e, bucket_of(in, key_of(who, epoch)), bucket)
		if (is_initiator(e, who, epoch))
			e->is_visited = true;
}

static bool is_retired(const struct mc_rdma_inbound *in, uint64_t epoch, uint64_t lane)
{
	for (unsigned i = 0; i < in->retired_n; i++)
		if (in->retired[i].epoch == epoch && in->retired[i].lane == lane)
			return true;
	return false;
}

static void retired_add(struct mc_rdma_inbound *in, uint64_t epoch, uint64_t lane)
{
	if (is_retired(in, epoch, lane))
		return;
	in->retired[in->retired_at] = (struct retired){epoch, lane};
	in->retired_at = (in->retired_at + 1) % RETIRED_MAX;
	if (in->retired_n < RETIRED_MAX)
		in->retired_n++;
}

static void fifo_del(struct mc_rdma_inbound *in, struct entry *e)
{
	struct inbound_port *p = &in->ports[e->port];

	if (p->hand == &e->fifo)
		p->hand = e->fifo.prev;
	mc_list_del(&e->fifo);
	p->n--;
}

/* It is to end: whoever asked calls entries_end() without the lock. */
static void condemn(struct mc_rdma_inbound *in, struct entry *e, struct mc_list *victims)
{
	if (e->state == ENTRY_LIVE)
		fifo_del(in, e);
	e->state = ENTRY_DYING;
	mc_list_push_back(victims, &e->fifo);
}

/* @return false: there is none that could go */
static bool evict(struct mc_rdma_inbound *in, unsigned port, struct mc_list *victims)
{
	struct inbound_port *p = &in->ports[port];

	/* Twice around at most: the first clears what the second takes. */
	for (unsigned i = 0; i < 2 * p->n + 2; i++) {
		struct entry *e = mc_list_entry(p->hand, struct entry, fifo);

		if (p->hand == &p->fifo) {
			p->hand = p->fifo.prev;
			continue;
		}
		if (e->state == ENTRY_LIVE && !e->is_visited) {
			condemn(in, e, victims);
			mc_counter_add(&in->dev->count.evicted, 1);
			return true;
		}
		e->is_visited = false;
		p->hand = p->hand->prev;
	}
	return false;
}

/* ---- ends: lock not held ---- */

/* Its queue pairs end. @return 0: nothing of it lands any more; -MC_E_AGAIN */
static int entry_end(struct mc_rdma_inbound *in, struct entry *e)
{
	struct mc_rdma_hca *hca = &in->dev->hca[e->port];
	bool is_quiet = true, is_gone = true;

	for (uint32_t i = 0; i < e->nqps; i++) {
		bool is_stopped =
		    e->qp[i].state == MC_RDMA_QP_GONE || mc_rdma_qp_stop(hca, &e->qp[i]) == 0;
		bool is_closed = mc_rdma_qp_close(hca, &e->qp[i]) == 0;

		is_quiet &= is_stopped || is_closed;
		is_gone &= is_closed;
	}
	pthread_mutex_lock(&in->mu);
	e->state = ENTRY_STUCK;
	if (is_gone) {
		mc_list_del(&e->bucket);
		atomic_fetch_sub_explicit(&in->dev->ninbound, 1, memory_order_relaxed);
	}
	pthread_mutex_unlock(&in->mu);
	if (is_gone) {
		mc_free(e->who);
		mc_free(e);
	}
	return is_quiet ? 0 : -MC_E_AGAIN;
}

static void entries_end(struct mc_rdma_inbound *in, struct mc_list *victims)
{
	struct mc_list *node;

	while ((node = mc_list_pop_front(victims)))
		(void)entry_end(in, mc_list_entry(node, struct entry, fifo)); /* STUCK stays */
}

static void forget(struct mc_rdma_inbound *in, const char *who, uint64_t epoch)
{
	struct mc_list victims;
	struct entry *e;

	mc_list_init(&victims);
	pthread_mutex_lock(&in->mu);
	mc_list_each (e, bucket_of(in, key_of(who, epoch)), bucket) {
		if (!is_initiator(e, who, epoch))
			continue;
		if (e->state == ENTRY_MAKING)
			e->is_doomed = true;
		else if (e->state != ENTRY_DYING)
			condemn(in, e, &victims);
	}
	pthread_mutex_unlock(&in->mu);
	entries_end(in, &victims);
}

void mc_rdma_forget(struct mc_xdev *dev, uint64_t initiator_epoch)
{
	forget(((struct mc_rdma_dev *)dev)->inbound, NULL, initiator_epoch);
}

void mc_rdma_forget_named(struct mc_xdev *dev, const char *who)
{
	forget(((struct mc_rdma_dev *)dev)->inbound, who, 0);
}

int mc_rdma_retire(struct mc_xdev *dev, const uint8_t *token, size_t token_len, uint64_t *ret_acked)
{
	struct mc_rdma_inbound *in = ((struct mc_rdma_dev *)dev)->inbound;
	struct mc_rd r = mc_rd_make(token, token_len);
	uint64_t epoch = mc_rd_u64(&r);
	uint64_t lane = mc_rd_u64(&r);
	struct mc_list victims;
	struct entry *e;
	int rc = 0;

	if (!mc_rd_is_done(&r))
		return -MC_E_PROTO;
	mc_list_init(&victims);
	pthread_mutex_lock(&in->mu);
	retired_add(in, epoch, lane);
	e = find(in, epoch, lane);
	if (e && (e->state == ENTRY_MAKING || e->state == ENTRY_DYING)) {
		e->is_doomed = true;
		rc = -MC_E_AGAIN;
	} else if (e) {
		condemn(in, e, &victims);
	}
	visit(in, NULL, epoch);
	pthread_mutex_unlock(&in->mu);
	if (!mc_list_is_empty(&victims)) {
		rc = entry_end(in, e);
		mc_counter_add(&in->dev->count.retired, 1);
	}
	if (rc == 0)
		*ret_acked = MC_ACKED_UNKNOWN; /* the processor took no part */
	return rc;
}

/* ---- accepting ---- */

/* Takes a place in the table. @return 0; -MC_E_STALE; -MC_E_LIMIT; -MC_E_NOMEM */
static int entry_begin(struct mc_rdma_inbound *in, const struct entry *like, struct entry **ret)
{
	struct entry *e = mc_calloc(1, sizeof(*e)), *old;
	struct inbound_port *p = &in->ports[like->port];
	struct mc_list victims;
	int rc = 0;

	if (!e)
		return -MC_E_NOMEM;
	*e = *like;
	e->key = key_of(e->who, e->epoch);
	e->who = e->who ? mc_strdup(e->who) : NULL;
	if (like->who && !e->who) {
		mc_free(e);
		return -MC_E_NOMEM;
	}
	mc_list_init(&victims);
	pthread_mutex_lock(&in->mu);
	if (!e->who && (is_retired(in, e->epoch, e->lane) || find(in, e->epoch, e->lane)))
		rc = -MC_E_STALE;
	mc_list_each (old, bucket_of(in, e->key), bucket) {
		if (!e->who || !is_initiator(old, e->who, 0) || old->port != e->port)
			continue;
		if (old->state == ENTRY_MAKING)
			old->is_doomed = true;
		else if (old->state == ENTRY_LIVE)
			condemn(in, old, &victims);
	}
	visit(in, e->who, e->epoch);
	if (rc == 0 && p->n >= (uint64_t)in->dev->conf.inbound_max && !evict(in, e->port, &victims))
		rc = -MC_E_LIMIT;
	if (rc == 0) {
		mc_list_push_front(&p->fifo, &e->fifo);
		mc_list_push_back(bucket_of(in, e->key), &e->bucket);
		p->n++;
		atomic_fetch_add_explicit(&in->dev->ninbound, 1, memory_order_relaxed);
	}
	pthread_mutex_unlock(&in->mu);
	entries_end(in, &victims);
	if (rc < 0) {
		mc_free(e->who);
		mc_free(e);
		return rc;
	}
	*ret = e;
	return 0;
}

/* One queue pair; when the device has no more, another lane makes room, once. */
static int qp_open(struct mc_rdma_inbound *in, struct entry *e, struct mc_rdma_qp *ret_qp)
{
	struct mc_rdma_hca *hca = &in->dev->hca[e->port];
	struct mc_rdma_qp_room room = {.wrs = 1, .sges = 1};
	struct ibv_cq *cq = in->ports[e->port].cq.cq;
	int rc = mc_rdma_qp_open(hca, cq, &room, ret_qp);
	struct mc_list victims;

	if (rc != -MC_E_NOMEM && rc != -MC_E_LIMIT)
		return rc;
	mc_list_init(&victims);
	pthread_mutex_lock(&in->mu);
	(void)evict(in, e->port, &victims);
	pthread_mutex_unlock(&in->mu);
	if (mc_list_is_empty(&victims))
		return rc;
	entries_end(in, &victims);
	return mc_rdma_qp_open(hca, cq, &room, ret_qp);
}

static int entry_make(struct mc_rdma_inbound *in, struct entry *e, const struct mc_rdma_end *peer,
		      struct mc_rdma_end *ret_mine)
{
	struct mc_rdma_hca *hca = &in->dev->hca[e->port];
	/* Upstream's handshake has no place for a sequence number: all begin at 0. */
	uint32_t psn = e->who ? 0 : mc_rdma_psn();
	struct mc_rdma_qp_link link;
	struct ibv_port_attr attr;
	int rc = mc_rdma_port_ask(hca, &attr);

	if (rc < 0)
		return rc;
	link = mc_rdma_link(hca, peer, psn, true);
	mc_rdma_end_fill(hca, psn, ret_mine);
	ret_mine->mtu = link.mtu;
	ret_mine->nqps = peer->nqps;
	for (uint32_t i = 0; i < peer->nqps && rc == 0; i++) {
		rc = qp_open(in, e, &e->qp[i]);
		if (rc < 0)
			break;
		e->nqps = i + 1;
		ret_mine->qpn[i] = e->qp[i].qp->qp_num;
		link.peer_qpn = peer->qpn[i];
		rc = mc_rdma_qp_connect(hca, &e->qp[i], &link);
	}
	return rc;
}

static int admit(struct mc_rdma_inbound *in, const struct entry *like,
		 const struct mc_rdma_end *peer, struct mc_rdma_end *ret_mine)
{
	struct mc_rdma_hca *hca = &in->dev->hca[like->port];
	struct mc_rdma_end mine;
	struct entry *e;
	int rc;

	if (atomic_load_explicit(&hca->is_fatal, memory_order_relaxed))
		return -MC_E_DEVICE;
	if (!atomic_load_explicit(&hca->is_up, memory_order_relaxed))
		return -MC_E_LINK_DOWN;
	rc = entry_begin(in, like, &e);
	if (rc < 0)
		return rc;
	rc = entry_make(in, e, peer, &mine);
	pthread_mutex_lock(&in->mu);
	if (rc == 0 && e->is_doomed)
		rc = -MC_E_STALE;
	e->state = ENTRY_LIVE;
	if (rc < 0) {
		fifo_del(in, e);
		e->state = ENTRY_DYING;
	}
	pthread_mutex_unlock(&in->mu);
	if (rc < 0) {
		(void)entry_end(in, e);
		return rc;
	}
	mc_counter_add(&in->dev->count.accepted, 1);
	*ret_mine = mine;
	return 0;
}

int mc_rdma_accept(struct mc_xdev *xdev, uint64_t initiator_epoch, const uint8_t *offer, size_t len,
		   uint8_t *answer, size_t cap)
{
	struct mc_rdma_dev *dev = (struct mc_rdma_dev *)xdev;
	struct mc_rdma_offer o;
	struct entry like = {.state = ENTRY_MAKING};
	int rc = mc_rdma_offer_decode(offer, len, &o);

	mc_assert(cap >= MC_RDMA_OFFER_BYTES);
	if (rc < 0)
		return rc;
	if (o.initiator_epoch != initiator_epoch)
		return -MC_E_PROTO;
	if (o.target_epoch && o.target_epoch != dev->env.epoch)
		return -MC_E_PEER_RESTARTED;
	if (o.port >= dev->nhcas)
		return -MC_E_NOENT;
	like.epoch = initiator_epoch;
	like.lane = o.lane;
	like.port = o.port;
	rc = admit(dev->inbound, &like, &o.end, &o.end);
	if (rc < 0)
		return rc;
	o.target_epoch = dev->env.epoch;
	return (int)mc_rdma_offer_encode(&o, answer);
}

int mc_rdma_accept_named(struct mc_xdev *xdev, unsigned port, const char *who,
			 const struct mc_rdma_end *peer, struct mc_rdma_end *ret_mine)
{
	struct mc_rdma_dev *dev = (struct mc_rdma_dev *)xdev;
	char name[WHO_MAX];
	struct entry like = {.state = ENTRY_MAKING, .port = port, .who = name};

	if (port >= dev->nhcas)
		return -MC_E_NOENT;
	if (!mc_rdma_end_is_ok(peer) || strlen(who) >= sizeof(name))
		return -MC_E_PROTO;
	memcpy(name, who, strlen(who) + 1);
	return admit(dev->inbound, &like, peer, ret_mine);
}

/* ---- life ---- */

int mc_rdma_inbound_open(struct mc_rdma_dev *dev)
{
	struct mc_rdma_inbound *in = mc_calloc(1, sizeof(*in));
	int rc = 0;

	if (!in)
		return -MC_E_NOMEM;
	in->dev = dev;
	dev->inbound = in;
	pthread_mutex_init(&in->mu, NULL);
	for (unsigned i = 0; i < BUCKETS; i++)
		mc_list_init(&in->buckets[i]);
	for (unsigned i = 0; i < MC_RDMA_PORTS_MAX; i++) {
		mc_list_init(&in->ports[i].fifo);
		in->ports[i].hand = &in->ports[i].fifo;
	}
	for (unsigned i = 0; i < dev->nhcas && rc == 0; i++)
		rc = mc_rdma_cq_open(&dev->hca[i], CQ_ENTRIES, false, &in->ports[i].cq);
	if (rc < 0)
		mc_rdma_inbound_close(dev);
	return rc;
}

void mc_rdma_inbound_close(struct mc_rdma_dev *dev)
{
	struct mc_rdma_inbound *in = dev->inbound;

	if (!in)
		return;
	for (unsigned i = 0; i < BUCKETS; i++) {
		struct mc_list victims;
		struct entry *e;

		mc_list_init(&victims);
		pthread_mutex_lock(&in->mu);
		mc_list_each (e, &in->buckets[i], bucket)
			condemn(in, e, &victims);
		pthread_mutex_unlock(&in->mu);
		entries_end(in, &victims);
		mc_list_each (e, &in->buckets[i], bucket) { /* stuck for good, and logged */
			mc_free(e->who);
			mc_free(e);
		}
	}
	for (unsigned i = 0; i < dev->nhcas; i++)
		mc_rdma_cq_close(&dev->hca[i], &in->ports[i].cq);
	pthread_mutex_destroy(&in->mu);
	mc_free(in);
	dev->inbound = NULL;
}
