/*
 * flow.c: the data path of a lane: slices into work requests, completions into slices. No lock, no
 * allocation; one doorbell for what is posted together, one signalled completion for up to
 * MC_RDMA_GROUP slices.
 *
 * When a request must be signalled: the last one that is posted for now, or nobody would learn of
 * its end; the last of each group; the last of a slice whose signal waits for its data; and one in
 * half a send queue, so that room comes back before it is needed.
 *
 * Sources: ibv_post_send(3), ibv_poll_cq(3), ibv_req_notify_cq(3); selective signalling and credits
 * as in UCX (src/uct/ib/rc).
 */
#include <errno.h>
#include <poll.h>

#include "base/sync.h"
#include "xport/rdma/lane.h"

#define WCS 32

/* The first cause counts; a device that has died is the cause of whatever came of it. */
static void fail(struct mc_rdma_lane *l, int rc)
{
	if (l->failed != 0)
		return;
	l->failed =
	    atomic_load_explicit(&l->hca->is_fatal, memory_order_relaxed) ? -MC_E_DEVICE : rc;
}

/* ---- checks ---- */

static struct mc_rdma_mr_hit *hit_of(struct mc_rdma_lane *l, const uint8_t *local)
{
	return &l->hits[((uintptr_t)local >> 24) % MC_RDMA_HITS];
}

static int lkey_of(struct mc_rdma_lane *l, const uint8_t *local, uint64_t len, uint32_t *ret_lkey)
{
	return mc_rdma_lkey(l->dev, l->hca->index, (uintptr_t)local, len, hit_of(l, local),
			    ret_lkey);
}

static bool is_within(const struct mc_remote_region *rr, uint64_t addr, uint64_t len)
{
	return addr >= rr->addr && addr - rr->addr <= rr->len &&
	       len <= rr->len - (addr - rr->addr) && len > 0;
}

/* A wrong request costs the whole queue pair its life, so what can be seen here is refused here. */
static int check_signal(const struct mc_rdma_lane *l, const struct mc_signal *sig)
{
	if (sig->raddr % sizeof(sig->value) != 0)
		return -MC_E_INVAL;
	if (!is_within(sig->rr, sig->raddr, sizeof(sig->value)))
		return -MC_E_RANGE;
	if (!(sig->rr->rights & MC_RIGHT_WRITE))
		return -MC_E_PERM;
	return mc_rdma_key_get(sig->rr->key, l->remote_port) ? 0 : -MC_E_UNSUPPORTED;
}

static int check(struct mc_rdma_lane *l, struct mc_slice *s, bool is_inline)
{
	uint32_t right = s->op == MC_OP_READ ? MC_RIGHT_READ : MC_RIGHT_WRITE, lkey;

	for (uint32_t i = 0; i < s->nfrags; i++) {
		const struct mc_frag *f = &s->frags[i];

		s->bad_frag = i;
		if (!is_within(f->rr, f->raddr, f->len))
			return -MC_E_RANGE;
		if (!(f->rr->rights & right))
			return -MC_E_PERM;
		if (mc_rdma_key_get(f->rr->key, l->remote_port) == 0)
			return -MC_E_UNSUPPORTED;
		if (!is_inline && lkey_of(l, f->local, f->len, &lkey) < 0)
			return -MC_E_UNSUPPORTED;
		if (s->op == MC_OP_READ && hit_of(l, f->local)->is_read_only)
			return -MC_E_PERM;
	}
	s->bad_frag = 0;
	return s->signal.rr ? check_signal(l, &s->signal) : 0;
}

/* ---- ends of slices ---- */

static void give_back(struct mc_rdma_lane *l, struct mc_slice *s, int status)
{
	s->status = status;
	s->verdict = MC_SLICE_DONE;
	if (status == 0)
		s->moved = s->len;
	mc_list_push_back(&l->done, &s->link);
}

static void slot_end(struct mc_rdma_lane *l, struct mc_rdma_slot *slot, int status)
{
	struct mc_slice *s = slot->s;

	slot->s = NULL;
	mc_list_del(&slot->link);
	mc_list_push_front(&l->spare, &slot->link);
	give_back(l, s, status);
}

/* All that was posted of it has completed. */
static void slot_quiet(struct mc_rdma_lane *l, struct mc_rdma_slot *slot)
{
	if (slot->status < 0 || slot->is_signaled || !slot->s->signal.rr) {
		slot_end(l, slot, slot->status);
		return;
	}
	mc_list_del(&slot->link);
	mc_list_push_back(&l->owing, &slot->link);
}

/* ---- building and posting ---- */

static uint32_t room_of(const struct mc_rdma_lane *l, const struct mc_rdma_sq *q)
{
	return l->wrs - (q->head - q->tail);
}

static void sign_last(struct mc_rdma_lane *l)
{
	struct mc_rdma_sq *q = &l->sq[l->at];

	if (l->chain.n == 0 || q->since == 0)
		return;
	l->chain.wr[l->chain.n - 1].send_flags |= IBV_SEND_SIGNALED;
	q->since = q->slices = 0;
	mc_counter_add(&l->dev->count.signaled, 1);
}

/* The device took `posted` of the chain only: the others were never sent. */
static void unpost(struct mc_rdma_lane *l, unsigned posted)
{
	struct mc_rdma_sq *q = &l->sq[l->at];

	for (unsigned i = posted; i < l->chain.n; i++) {
		struct mc_rdma_note *note = &q->notes[--q->head & l->notes_mask];

		l->slots[note->slot].wrs--;
		l->slots[note->slot].sent--;
	}
}

static void chain_post(struct mc_rdma_lane *l)
{
	struct mc_rdma_chain *c = &l->chain;
	struct ibv_send_wr *bad = NULL;
	int rc;

	if (c->n == 0)
		return;
	c->wr[c->n - 1].next = NULL;
	rc = ibv_post_send(l->sq[l->at].qp.qp, c->wr, &bad);
	if (rc != 0) {
		unsigned posted = bad ? (unsigned)(bad - c->wr) : 0;

		fail(l, mc_rdma_errno(rc > 0 ? rc : errno));
		unpost(l, posted);
		c->n = posted;
	}
	mc_counter_add(&l->dev->count.posts, 1);
	mc_counter_add(&l->dev->count.wrs, c->n);
	c->n = c->nsges = 0;
}

/* The queue pair for what comes next. @return NULL: all are full */
static struct mc_rdma_sq *sq_choose(struct mc_rdma_lane *l)
{
	uint32_t best = l->at;

	if (!l->is_turn && room_of(l, &l->sq[l->at]) > 0)
		return &l->sq[l->at];
	for (uint32_t i = 0; i < l->nqps; i++)
		if (room_of(l, &l->sq[i]) > room_of(l, &l->sq[best]))
			best = i;
	if (best != l->at) {
		sign_last(l);
		chain_post(l);
		l->at = best;
	}
	l->is_turn = false;
	return room_of(l, &l->sq[best]) > 0 && l->failed == 0 ? &l->sq[best] : NULL;
}

/* A request at the end of the chain. @return NULL: the lane broke */
static struct ibv_send_wr *wr_add(struct mc_rdma_lane *l, struct mc_rdma_sq *q,
				  struct mc_rdma_slot *slot, uint32_t sges)
{
	struct mc_rdma_chain *c = &l->chain;
	struct ibv_send_wr *wr;

	/* Not before there is another one: the last must be at hand to be signalled. */
	if (c->n == MC_RDMA_CHAIN || c->nsges + sges > MC_ARRAY_LEN(c->sge))
		chain_post(l);
	if (l->failed < 0)
		return NULL;
	wr = &c->wr[c->n++];
	*wr = (struct ibv_send_wr){
	    .wr_id = (uint64_t)l->at << 32 | q->head, .next = wr + 1, .sg_list = &c->sge[c->nsges]};
	q->notes[q->head & l->notes_mask] = (struct mc_rdma_note){
	    .slot = (uint16_t)(slot - l->slots), .frag = (uint16_t)slot->frag};
	q->head++;
	q->since++;
	slot->wrs++;
	slot->sent++;
	return wr;
}

/* What comes next of the slice, at most `max` bytes of one fragment. */
static uint64_t piece_of(const struct mc_rdma_slot *slot, uint32_t max, uint8_t **ret_local)
{
	const struct mc_frag *f = &slot->s->frags[slot->frag];

	*ret_local = f->local + slot->off;
	return mc_min(f->len - slot->off, (uint64_t)max);
}

/* The next pieces of the slice, as many as one request holds: neighbours at the peer under one key.
 * `lkey` is that of the first. @return bytes */
static uint32_t gather(struct mc_rdma_lane *l, struct mc_rdma_slot *slot, struct ibv_send_wr *wr,
		       uint32_t lkey)
{
	const struct mc_slice *s = slot->s;
	int max = (int)(s->op == MC_OP_READ ? l->read_sges : l->write_sges), n = 0;
	uint32_t len = 0;

	while (slot->frag < s->nfrags && len < l->msg_max) {
		const struct mc_frag *f = &s->frags[slot->frag];
		uint32_t rkey = mc_rdma_key_get(f->rr->key, l->remote_port);
		uint8_t *local;
		uint64_t piece = piece_of(slot, l->msg_max - len, &local);
		struct ibv_sge *last = &wr->sg_list[n - 1];

		if (n > 0 && (f->raddr + slot->off != wr->wr.rdma.remote_addr + len ||
			      rkey != wr->wr.rdma.rkey))
			break;
		if (n > 0 && !slot->is_inline && lkey_of(l, local, piece, &lkey) < 0)
			break;
		if (n == 0) {
			wr->wr.rdma.remote_addr = f->raddr + slot->off;
			wr->wr.rdma.rkey = rkey;
		}
		if (n > 0 && last->addr + last->length == (uintptr_t)local && last->lkey == lkey)
			last->length += (uint32_t)piece;
		else if (n < max)
			wr->sg_list[n++] = (struct ibv_sge){
			    .addr = (uintptr_t)local, .length = (uint32_t)piece, .lkey = lkey};
		else
			break;
		len += (uint32_t)piece;
		slot->off += piece;
		if (slot->off == f->len) {
			slot->frag++;
			slot->off = 0;
		}
	}
	wr->num_sge = n;
	return len;
}

/* One request of the slice's data. @return false: not now */
static bool data_add(struct mc_rdma_lane *l, struct mc_rdma_slot *slot)
{
	struct mc_rdma_sq *q = sq_choose(l);
	struct ibv_send_wr *wr;
	uint32_t len, lkey = 0;
	uint8_t *local;
	uint64_t piece = piece_of(slot, l->msg_max, &local);

	/* It was registered when the slice was taken. */
	if (!slot->is_inline && lkey_of(l, local, piece, &lkey) < 0) {
		slot->status = -MC_E_UNSUPPORTED;
		return true;
	}
	wr = q ? wr_add(l, q, slot, mc_max(l->write_sges, l->read_sges)) : NULL;
	if (!wr)
		return false;
	len = gather(l, slot, wr, lkey);
	wr->opcode = slot->s->op == MC_OP_READ ? IBV_WR_RDMA_READ : IBV_WR_RDMA_WRITE;
	wr->send_flags = slot->is_inline ? IBV_SEND_INLINE : 0;
	l->chain.nsges += (unsigned)wr->num_sge;
	q->notes[(q->head - 1) & l->notes_mask].len = len;
	if (q->since >= mc_max(l->wrs / 2, 1u))
		sign_last(l);
	return true;
}

/* The request of a slice without fragments: a write of no bytes. The peer's device answers it, and
 * looks at neither key nor address (InfiniBand Architecture Specification 1.4, C9-88).
 * @return false: not now */
static bool empty_add(struct mc_rdma_lane *l, struct mc_rdma_slot *slot)
{
	struct mc_rdma_sq *q = sq_choose(l);
	struct ibv_send_wr *wr = q ? wr_add(l, q, slot, 1) : NULL;

	if (!wr)
		return false;
	wr->opcode = IBV_WR_RDMA_WRITE;
	return true;
}

/* All that is left of the slice's data. @return false: not now */
static bool slice_add(struct mc_rdma_lane *l, struct mc_rdma_slot *slot)
{
	struct mc_rdma_sq *q;

	mc_assert(slot->s);
	if (slot->s->nfrags == 0 && !empty_add(l, slot))
		return false;
	while (slot->frag < slot->s->nfrags && slot->status == 0)
		if (!data_add(l, slot))
			return false;
	slot->is_posted = true;
	mc_list_del(&slot->link);
	mc_list_push_back(&l->flight, &slot->link);
	if (slot->wrs == 0) { /* refused at last, after all before had completed */
		slot_quiet(l, slot);
		return true;
	}
	q = &l->sq[l->at];
	if (++q->slices >= MC_RDMA_GROUP) {
		sign_last(l);
		l->is_turn = l->nqps > 1;
	}
	if (slot->s->signal.rr)
		sign_last(l);
	return true;
}

/* The signal of a slice whose data is in place. @return false: not now */
static bool signal_add(struct mc_rdma_lane *l, struct mc_rdma_slot *slot)
{
	struct mc_rdma_sq *q = sq_choose(l);
	const struct mc_signal *sig = &slot->s->signal;
	struct ibv_send_wr *wr = q ? wr_add(l, q, slot, 1) : NULL;
	uint64_t *word = l->words ? &l->words[slot - l->slots] : NULL;

	if (!wr)
		return false;
	wr->opcode = IBV_WR_RDMA_WRITE;
	wr->wr.rdma.remote_addr = sig->raddr;
	wr->wr.rdma.rkey = mc_rdma_key_get(sig->rr->key, l->remote_port);
	wr->num_sge = 1;
	l->chain.nsges++;
	if (word) {
		*word = sig->value;
		*wr->sg_list = (struct ibv_sge){(uintptr_t)word, sizeof(*word), l->words_mr->lkey};
	} else {
		wr->send_flags = IBV_SEND_INLINE;
		*wr->sg_list = (struct ibv_sge){(uintptr_t)&sig->value, sizeof(sig->value), 0};
	}
	slot->is_signaled = true;
	mc_list_del(&slot->link);
	mc_list_push_back(&l->flight, &slot->link);
	return true;
}

/* Post what there is room for. */
static void pump(struct mc_rdma_lane *l)
{
	struct mc_rdma_slot *slot;

	if (l->failed < 0)
		return;
	while ((slot = mc_list_first(&l->owing, struct mc_rdma_slot, link)))
		if (!signal_add(l, slot))
			break;
	while ((slot = mc_list_first(&l->todo, struct mc_rdma_slot, link)))
		if (!slice_add(l, slot))
			break;
	sign_last(l);
	chain_post(l);
}

/* What the port's events have said since. @return 0 or < 0 */
static int port_check(struct mc_rdma_lane *l)
{
	if (atomic_load_explicit(&l->hca->is_fatal, memory_order_relaxed))
		fail(l, -MC_E_DEVICE);
	else if (!atomic_load_explicit(&l->hca->is_up, memory_order_relaxed) ||
		 !mc_rdma_lane_has_addr(l))
		fail(l, -MC_E_LINK_DOWN);
	return l->failed;
}

static void slice_take(struct mc_rdma_lane *l, struct mc_slice *s)
{
	bool is_inline = s->op == MC_OP_WRITE && s->len <= l->inline_max;
	int rc = check(l, s, is_inline);
	struct mc_rdma_slot *slot;

	l->depth++;
	s->seq = ++l->seq;
	s->moved = 0;
	if (rc < 0) {
		give_back(l, s, rc);
		return;
	}
	slot = mc_list_first(&l->spare, struct mc_rdma_slot, link);
	mc_assert(slot);
	mc_list_del(&slot->link);
	*slot = (struct mc_rdma_slot){.s = s, .is_inline = is_inline};
	mc_list_push_back(&l->todo, &slot->link);
}

int mc_rdma_lane_post(struct mc_xlane *x, struct mc_slice **slices, unsigned n)
{
	struct mc_rdma_lane *l = mc_rdma_lane_of(x);
	unsigned taken = 0;

	if (l->failed < 0)
		return l->failed;
	if (!l->is_connected)
		return 0;
	if (port_check(l) < 0)
		return l->failed;
	while (taken < n && l->depth < MC_RDMA_DEPTH)
		slice_take(l, slices[taken++]);
	pump(l); /* its failure is poll()'s to tell: these slices are taken */
	return (int)taken;
}

/* ---- completing ---- */

/* The oldest request of the queue pair has succeeded. */
static void wr_done(struct mc_rdma_lane *l, struct mc_rdma_sq *q)
{
	const struct mc_rdma_note *note = &q->notes[q->tail++ & l->notes_mask];
	struct mc_rdma_slot *slot = &l->slots[note->slot];

	atomic_store_explicit(&l->progress,
			      atomic_load_explicit(&l->progress, memory_order_relaxed) + note->len,
			      memory_order_relaxed);
	if (!slot->s)
		return;
	slot->s->moved += note->len;
	if (--slot->wrs == 0 && slot->is_posted)
		slot_quiet(l, slot);
}

/*
 * The oldest request of the queue pair has failed, and with it the queue pair. Only the first
 * failure of a lane says something; the others were flushed by it. An error of the operation ends
 * its slice: everything before was acknowledged, and after a refusal the peer takes nothing more of
 * this queue pair. Any other error is the path's, and abort() says what became of the slice.
 */
static void wr_failed(struct mc_rdma_lane *l, struct mc_rdma_sq *q, enum ibv_wc_status status)
{
	const struct mc_rdma_note *note = &q->notes[q->tail++ & l->notes_mask];
	struct mc_rdma_slot *slot = &l->slots[note->slot];
	bool is_first = l->failed == 0;

	fail(l, mc_rdma_wc_error(status));
	if (!slot->s)
		return;
	slot->wrs--;
	if (!is_first || mc_err_scope(l->failed) != MC_SCOPE_OP)
		return;
	slot->s->bad_frag = note->frag < slot->s->nfrags ? note->frag : 0;
	slot_end(l, slot, l->failed);
}

static void wc_take(struct mc_rdma_lane *l, const struct ibv_wc *wc)
{
	uint32_t pos = (uint32_t)wc->wr_id;
	struct mc_rdma_sq *q;

	if (wc->wr_id >> 32 >= l->nqps) {
		fail(l, -MC_E_DEVICE);
		return;
	}
	q = &l->sq[wc->wr_id >> 32];
	if (pos - q->tail >= q->head - q->tail) {
		fail(l, -MC_E_DEVICE); /* of a request that was never posted */
		return;
	}
	while (q->tail != pos)
		wr_done(l, q);
	if (wc->status == IBV_WC_SUCCESS)
		wr_done(l, q);
	else
		wr_failed(l, q, wc->status);
}

unsigned mc_rdma_lane_drain(struct mc_rdma_lane *l)
{
	struct ibv_wc wcs[WCS];
	unsigned all = 0;
	int n;

	do {
		n = ibv_poll_cq(l->cq.cq, WCS, wcs);
		l->polls++;
		for (int i = 0; i < n; i++)
			wc_take(l, &wcs[i]);
		all += n > 0 ? (unsigned)n : 0;
	} while (n == WCS);
	if (n < 0)
		fail(l, -MC_E_DEVICE);
	if (all > 0) {
		mc_counter_add(&l->dev->count.wcs, all);
		mc_counter_add(&l->dev->count.polls, l->polls);
		l->polls = 0;
	}
	return all;
}

/* ---- polling and waiting ---- */

/* Complete, post what there is room for now, give. @return slices; 0; < 0: broken, nothing left */
static int step(struct mc_rdma_lane *l, struct mc_slice **ret_done, unsigned max)
{
	struct mc_list *node;
	unsigned n = 0;

	if (mc_rdma_lane_drain(l) > 0)
		pump(l);
	while (n < max && (node = mc_list_pop_front(&l->done))) {
		ret_done[n++] = mc_list_entry(node, struct mc_slice, link);
		l->depth--;
	}
	if (n == 0)
		return port_check(l);
	return (int)n;
}

struct waiting {
	struct mc_rdma_lane *lane;
	uint64_t block_ns;
	struct mc_slice **ret_done;
	unsigned max;
};

static int wait_look(void *user)
{
	struct waiting *w = user;

	return step(w->lane, w->ret_done, w->max);
}

/* Sleep until a completion comes or block_ns have passed. @return as step() */
static int wait_sleep(void *user)
{
	struct waiting *w = user;
	struct mc_rdma_lane *l = w->lane;
	struct timespec ts = {.tv_sec = (time_t)(w->block_ns / MC_NS_PER_S),
			      .tv_nsec = (long)(w->block_ns % MC_NS_PER_S)};
	struct pollfd p = {.fd = l->cq.channel->fd, .events = POLLIN};
	int rc;

	mc_counter_add(&l->dev->count.arms, l->cq.is_armed ? 0 : 1);
	if (mc_rdma_cq_arm(&l->cq) < 0)
		fail(l, -MC_E_DEVICE);
	/* What completed before the queue was armed raises no event. */
	rc = step(l, w->ret_done, w->max);
	if (rc != 0)
		return rc;
	if (ppoll(&p, 1, &ts, NULL) == 1) {
		mc_counter_add(&l->dev->count.wakes, 1);
		if (mc_rdma_cq_event(l->hca, &l->cq) < 0)
			fail(l, -MC_E_DEVICE);
	}
	return step(l, w->ret_done, w->max);
}

int mc_rdma_lane_poll(struct mc_xlane *x, uint64_t block_ns, struct mc_slice **ret_done,
		      unsigned max)
{
	struct mc_rdma_lane *l = mc_rdma_lane_of(x);
	int rc;

	if (!l->cq.cq) /* aborted */
		return l->failed;
	/* Who watches the descriptor is here because of its event: it is over. */
	if (block_ns == 0 && mc_rdma_cq_event(l->hca, &l->cq) < 0)
		fail(l, -MC_E_DEVICE);
	rc = step(l, ret_done, max);
	if (rc == 0 && block_ns > 0 && l->depth > 0)
		rc = mc_spin_wait(&l->spin, wait_look, wait_sleep,
				  &(struct waiting){l, block_ns, ret_done, max});
	return rc;
}

void mc_rdma_lane_arm(struct mc_xlane *x, struct mc_xarm *ret_arm)
{
	struct mc_rdma_lane *l = mc_rdma_lane_of(x);

	*ret_arm = (struct mc_xarm){
	    .fd = l->cq.channel ? l->cq.channel->fd : -1, .events = POLLIN, .is_block_ok = true};
	if (l->cq.cq) {
		mc_counter_add(&l->dev->count.arms, l->cq.is_armed ? 0 : 1);
		if (mc_rdma_cq_arm(&l->cq) < 0)
			fail(l, -MC_E_DEVICE);
		else if (mc_rdma_lane_drain(l) > 0)
			pump(l);
		(void)port_check(l);
	}
	ret_arm->is_ready = !mc_list_is_empty(&l->done) || l->failed < 0;
}

uint64_t mc_rdma_lane_progress(const struct mc_xlane *x)
{
	return atomic_load_explicit(&((const struct mc_rdma_lane *)x)->progress,
				    memory_order_relaxed);
}
