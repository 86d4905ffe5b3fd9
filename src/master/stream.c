/*
 * stream.c: what an owner and the master say to each other, for as long as the owner's one call
 * lasts.
 */
#include <string.h>

#include "base/log.h"
#include "master/priv.h"

#define RX_MAX (MC_ST_NOTE_MAX + MC_FRAME_CREDIT_MAX)
#define TX_MAX (64u << 20)
#define TX_PIECE (64u << 10)
#define PLACE_LEN 16u
#define HAS_FIX 32u /* of a HAS without key and TLV */
#define PLACES_A_NOTE 4096u
#define VICTIMS_MAX MC_MST_VICTIMS_MAX
#define ANNOUNCE_MS 20u	   /* between two looks for room while an owner still tells what it has */
#define DISK_WAIT_MS 2000u /* room in memory waits so long for a disk that takes nothing */
#define VIEW_SHARE 16u	   /* free bytes in the view are right up to this part of all */

/* ---- to the owner ---- */

void mc_mst_stream_pump(struct mc_mst_owner *o)
{
	while (o->req && o->tx_at < o->tx_len) {
		size_t n = mc_min(o->tx_len - o->tx_at, (size_t)TX_PIECE);
		int rc = mc_rpc_req_send(o->req, o->tx + o->tx_at, n, false);

		if (rc < 0)
			return; /* full: on_room() goes on; over: on_cancel() follows */
		o->tx_at += n;
	}
	o->tx_at = o->tx_len = 0;
}

void mc_mst_note(struct mc_mst_owner *o, uint8_t type, const void *data, size_t len)
{
	struct mc_st_note_head head = {.len = (uint32_t)len, .type = type};
	size_t want = o->tx_len + MC_ST_NOTE_HEAD_LEN + len;

	if (!o->req)
		return;
	if (o->tx_at > TX_MAX / 2) {
		memmove(o->tx, o->tx + o->tx_at, o->tx_len - o->tx_at);
		want -= o->tx_at;
		o->tx_len -= o->tx_at;
		o->tx_at = 0;
	}
	if (mc_array_grow((void **)&o->tx, &o->tx_cap, want, TX_MAX, 1) < 0) {
		mc_log_warn("owner does not read what it is told", "segment=%s", o->segment);
		mc_mst_stream_end(o, -MC_E_TOO_BIG);
		return;
	}
	head.number = ++o->tx_number;
	mc_st_note_head_encode(&head, o->tx + o->tx_len);
	if (len)
		memcpy(o->tx + o->tx_len + MC_ST_NOTE_HEAD_LEN, data, len);
	o->tx_len = want;
	mc_mst_stream_pump(o);
}

bool mc_mst_note_places(struct mc_mst_owner *o, uint8_t type, const struct mc_st_place *v, size_t n)
{
	uint8_t *buf = mc_mst_buf(o->master, mc_min(n, (size_t)PLACES_A_NOTE) * PLACE_LEN);
	size_t at = 0;

	while (o->req && at < n) {
		size_t some = mc_min(n - at, (size_t)PLACES_A_NOTE);
		struct mc_wr w = mc_wr_make(buf, buf ? some * PLACE_LEN : 0);

		for (size_t i = 0; i < some; i++)
			mc_st_place_encode(&w, &v[at + i]);
		if (w.is_bad)
			return false;
		mc_mst_note(o, type, buf, mc_wr_len(&w));
		at += some;
	}
	return true;
}

static void note_u64(struct mc_mst_owner *o, uint8_t type, uint64_t v)
{
	uint8_t buf[8];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));

	mc_wr_u64(&w, v);
	mc_mst_note(o, type, buf, sizeof(buf));
}

/* ---- room ---- */

static void no_room(struct mc_mst_owner *o, unsigned kind)
{
	uint8_t buf[64];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));

	mc_st_space_encode(&w, &o->want[kind]);
	mc_mst_note(o, MC_ST_NOTE_NO_ROOM, buf, mc_wr_len(&w));
}

/* What is to leave its memory next goes to its disk first. */
static void offload(struct mc_mst_owner *o)
{
	uint8_t buf[VICTIMS_MAX * PLACE_LEN];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));
	const struct mc_index_due *due;
	uint32_t n = mc_index_due(o->master->index, &due);

	for (uint32_t i = 0; i < n; i++) {
		const struct mc_st_place p = {due[i].addr, due[i].gen};

		mc_st_place_encode(&w, &p);
	}
	mc_assert(!w.is_bad); /* the index was told how many */
	if (n > 0)
		mc_mst_note(o, MC_ST_NOTE_OFFLOAD, buf, mc_wr_len(&w));
}

/* Bytes to evict so that the pool is below its watermark. */
static uint64_t ahead(const struct mc_master *m, const struct mc_st_space *s)
{
	uint64_t high = (uint64_t)((double)s->capacity * m->conf.watermark);
	uint64_t least = (uint64_t)((double)s->capacity * m->conf.eviction_ratio);

	return s->used > high ? mc_max(s->used - high, least) : 0;
}

static void evict(struct mc_master *m, struct mc_mst_owner *o, unsigned kind, uint64_t bytes,
		  uint64_t *ret_got, uint64_t *ret_retry_ms)
{
	struct mc_index_pool pool;
	uint64_t got;

	mc_index_pool(m->index, o->id, kind, &pool);
	*ret_retry_ms = UINT64_MAX;
	*ret_got = pool.freeing;
	if (pool.freeing >= bytes)
		return;
	got = mc_index_evict(m->index, mc_mst_now_ms(m), o->id, kind, bytes - pool.freeing,
			     VICTIMS_MAX, &m->frees, ret_retry_ms);
	offload(o);
	mc_counter_add(&m->tally.evictions_tried, 1);
	if (got > 0)
		mc_counter_add(&m->tally.evictions_done, 1);
	*ret_got += got;
}

/* Memory waits for the disk, but not for one that is stuck, nor for what does not fit on it. */
static void evict_wanted(struct mc_master *m, struct mc_mst_owner *o, unsigned kind,
			 uint64_t *ret_got, uint64_t *ret_retry_ms)
{
	uint64_t now = mc_mst_now_ms(m);

	evict(m, o, kind, o->want[kind].want, ret_got, ret_retry_ms);
	if (kind != MC_ST_MEMORY || o->space[MC_ST_DISK].capacity == 0)
		return;
	if (*ret_got > 0 || *ret_retry_ms == UINT64_MAX || now - o->tried_ms > DISK_WAIT_MS / 2)
		o->starved_ms = now; /* not starved, or not until now */
	o->tried_ms = now;
	if (*ret_got > 0 || now - o->starved_ms < DISK_WAIT_MS)
		return;
	mc_index_owner_disk(m->index, o->id, false);
	evict(m, o, kind, o->want[kind].want, ret_got, ret_retry_ms);
	mc_index_owner_disk(m->index, o->id, true);
}

void mc_mst_room(struct mc_master *m, struct mc_mst_owner *o, unsigned kind)
{
	uint64_t got, retry_ms, want = ahead(m, &o->space[kind]);

	if (o->want_ms[kind] <= mc_mst_now_ms(m)) {
		evict_wanted(m, o, kind, &got, &retry_ms);
		if (got == 0 && retry_ms == UINT64_MAX && !o->is_announced)
			retry_ms = mc_mst_now_ms(m) + ANNOUNCE_MS;
		o->want_ms[kind] = got ? UINT64_MAX : retry_ms;
		if (got == 0 && retry_ms == UINT64_MAX)
			no_room(o, kind);
	} else if (want > 0 && o->want_ms[kind] == UINT64_MAX) {
		evict(m, o, kind, want, &got, &retry_ms);
	}
}

/* ---- from the owner ---- */

static void on_space(struct mc_mst_owner *o, struct mc_rd *r, bool is_want)
{
	struct mc_master *m = o->master;
	struct mc_st_space s;
	uint64_t left, told;
	uint8_t flags;

	mc_st_space_decode(r, &s);
	if (r->is_bad)
		return;
	flags = o->space[s.kind].flags;
	s.used = mc_min(s.used, s.capacity);
	o->space[s.kind] = s;
	if (is_want) {
		o->want[s.kind] = s;
		o->want_ms[s.kind] = 0;
	}
	if (s.kind == MC_ST_DISK)
		mc_index_owner_disk(m->index, o->id, s.capacity > 0);
	mc_mst_room(m, o, s.kind);
	if (s.kind != MC_ST_MEMORY)
		return;
	left = s.capacity - s.used;
	told = o->told_free;
	if ((left > told ? left - told : told - left) > s.capacity / VIEW_SHARE ||
	    flags != s.flags) {
		o->told_free = left;
		mc_mst_view_changed(m);
	}
}

/* All keys of a note of mc_st_has, and the records in m->rows. @return how many; < 0 */
static int has_decode(struct mc_master *m, struct mc_rd *r)
{
	size_t most = mc_rd_left(r) / (HAS_FIX + 1);
	struct mc_st_key *keys = mc_mst_keys(m, (uint32_t)most + 1);
	struct mc_st_has *rows = mc_mst_rows(m, most + 1, sizeof(*rows));
	int n = 0;

	if (!keys || !rows)
		return -MC_E_NOMEM;
	for (; mc_rd_left(r) > 0 && !r->is_bad && (size_t)n <= most; n++) {
		mc_st_has_decode(r, &rows[n]);
		keys[n] = (struct mc_st_key){rows[n].key_len, rows[n].key};
		if (rows[n].gen == 0)
			r->is_bad = true;
	}
	return r->is_bad ? -MC_E_PROTO : n;
}

/*
 * Put anew while its owner was away. The index knows what was committed last, but while the master
 * recovers: then it is the highest generation.
 */
static bool is_replaced(struct mc_master *m, struct mc_index_request *q, uint32_t i,
			const struct mc_st_has *h)
{
	struct mc_index_view v;

	return !m->is_recovering && mc_index_view(q, i, &v) == 0 && v.object.gen != h->gen;
}

/* It was freed: unless other replicas of it live, no commit may publish it any more. */
static void freed(struct mc_master *m, struct mc_index_request *q, uint32_t i, uint64_t gen)
{
	struct mc_index_view v;

	if (mc_index_view(q, i, &v) != 0 || v.object.gen != gen)
		mc_mst_kill(m, gen);
}

/* @return as the calls of the index */
static int has_one(struct mc_mst_owner *o, struct mc_index_request *q, uint32_t i,
		   const struct mc_st_has *h, uint8_t type)
{
	struct mc_master *m = o->master;
	size_t nfrees = m->frees.n;
	int rc;

	if (type == MC_ST_NOTE_MORE) {
		rc = mc_index_more(q, i, o->id, h, &m->frees);
		if (h->kind == MC_ST_MEMORY)
			mc_mst_promoted(m, h->gen, h->len, rc == 0);
		if (h->kind == MC_ST_MEMORY && rc == 0)
			mc_mst_mark(o, h->addr, h->gen);
		return rc;
	}
	if (type == MC_ST_NOTE_HAS && !mc_mst_is_killed(m, h->gen) && !is_replaced(m, q, i, h))
		rc = mc_index_adopt(q, i, o->id, h, &m->frees);
	else
		rc = mc_index_check(q, i, o->id, h, &m->frees);
	if (type == MC_ST_NOTE_CHECK && rc == 0)
		mc_mst_mark(o, h->addr, h->gen);
	if (rc == 1)
		freed(m, q, i, h->gen);
	for (; nfrees < m->frees.n; nfrees++) /* what it replaces */
		freed(m, q, i, m->frees.v[nfrees].gen);
	return rc;
}

/* @return 0 or < 0 */
static int on_has(struct mc_mst_owner *o, struct mc_rd *r, uint8_t type)
{
	struct mc_master *m = o->master;
	struct mc_index_request q;
	int n = has_decode(m, r), rc;
	const struct mc_st_has *rows = (const struct mc_st_has *)m->rows;

	if (n <= 0)
		return n;
	rc = mc_index_begin(m->index, &q, mc_mst_now_ms(m), m->keys, (uint32_t)n);
	if (rc < 0)
		return rc;
	for (uint32_t i = 0; rc >= 0 && i < (uint32_t)n; i++) {
		rc = has_one(o, &q, i, &rows[i], type);
		if (rc == MC_STORE_INVALID_KEY || rc == MC_STORE_INVALID_PARAMS)
			rc = 0; /* not a slot that can be used; it stays where it is */
		else if (rc < 0)
			rc = -MC_E_NOMEM;
	}
	mc_index_end(&q);
	return mc_min(rc, 0);
}

static bool is_in_memory_alone(const struct mc_st_object *object, uint64_t owner)
{
	bool is_there = false;

	for (unsigned i = 0; i < object->nreplicas; i++) {
		const struct mc_st_replica *r = &object->replicas[i];

		if (r->owner == owner && r->kind == MC_ST_DISK)
			return false;
		is_there |= r->owner == owner;
	}
	return is_there;
}

/* Of what an owner would write to its disk, what is committed. @return 0 or < 0 */
static int on_due(struct mc_mst_owner *o, struct mc_rd *r)
{
	struct mc_master *m = o->master;
	int n = has_decode(m, r), rc;
	const struct mc_st_has *rows = (const struct mc_st_has *)m->rows;
	struct mc_index_request q;
	struct mc_index_view v;
	struct mc_wr w;
	uint8_t *buf;

	if (n <= 0)
		return n;
	buf = mc_mst_buf(m, (size_t)n * PLACE_LEN);
	rc = buf ? mc_index_begin(m->index, &q, mc_mst_now_ms(m), m->keys, (uint32_t)n)
		 : -MC_E_NOMEM;
	if (rc < 0)
		return rc;
	w = mc_wr_make(buf, (size_t)n * PLACE_LEN);
	for (uint32_t i = 0; i < (uint32_t)n; i++) {
		const struct mc_st_place p = {rows[i].addr, rows[i].gen};

		if (mc_index_view(&q, i, &v) == 0 && v.object.gen == p.gen &&
		    is_in_memory_alone(&v.object, o->id))
			mc_st_place_encode(&w, &p);
	}
	mc_index_end(&q);
	if (mc_wr_len(&w) > 0)
		mc_mst_note(o, MC_ST_NOTE_OFFLOAD, buf, mc_wr_len(&w));
	return 0;
}

static void on_freed(struct mc_mst_owner *o, struct mc_rd *r)
{
	struct mc_st_place p;

	while (mc_rd_left(r) > 0 && !r->is_bad) {
		mc_st_place_decode(r, &p);
		if (!r->is_bad)
			mc_mst_freed(o->master, o->id, p.addr, p.gen);
	}
}

/* @return 0; -MC_E_PROTO */
static int on_done(struct mc_mst_owner *o, const uint8_t *data, size_t len)
{
	const Mc__St__OrderDone *done;
	ProtobufCMessage *got;

	if (mc_pb_unpack(&o->master->arena, &mc__st__order_done__descriptor, data, len, &got) < 0)
		return -MC_E_PROTO;
	done = (const Mc__St__OrderDone *)got;
	mc_mst_copy_done(o, done->id, done->gen, done->addr, done->status);
	return 0;
}

/* @return 0; < 0: the stream is over */
static int on_note(struct mc_mst_owner *o, const struct mc_st_note_head *head, const uint8_t *data)
{
	struct mc_rd r = mc_rd_make(data, head->len);
	int rc = 0;

	if (head->number != o->rx_number + 1)
		return -MC_E_PROTO;
	o->rx_number = head->number;
	switch (head->type) {
	case MC_ST_NOTE_HAS:
	case MC_ST_NOTE_CHECK:
	case MC_ST_NOTE_MORE:
		rc = on_has(o, &r, head->type);
		break;
	case MC_ST_NOTE_DUE:
		rc = on_due(o, &r);
		break;
	case MC_ST_NOTE_HAS_ALL:
		mc_mst_owner_announced(o->master, o);
		break;
	case MC_ST_NOTE_FREED:
		on_freed(o, &r);
		break;
	case MC_ST_NOTE_DONE:
		return on_done(o, data, head->len);
	case MC_ST_NOTE_SPACE:
	case MC_ST_NOTE_WANT:
		on_space(o, &r, head->type == MC_ST_NOTE_WANT);
		break;
	default:
		break; /* of a newer owner */
	}
	return r.is_bad ? -MC_E_PROTO : rc;
}

/* Whole notes at the beginning of the bytes. @return bytes of them; < 0 */
static ssize_t notes_take(struct mc_mst_owner *o, const uint8_t *at, size_t len)
{
	struct mc_st_note_head head;
	size_t used = 0;

	while (o->req && len - used >= MC_ST_NOTE_HEAD_LEN) {
		int rc = mc_st_note_head_decode(at + used, &head);

		if (rc == 0 && len - used < MC_ST_NOTE_HEAD_LEN + head.len)
			break;
		if (rc == 0)
			rc = on_note(o, &head, at + used + MC_ST_NOTE_HEAD_LEN);
		if (rc < 0)
			return rc;
		used += MC_ST_NOTE_HEAD_LEN + head.len;
	}
	return (ssize_t)used;
}

static int rx_add(struct mc_mst_owner *o, const void *data, size_t len)
{
	if (len == 0)
		return 0; /* there may be no buffer yet */
	if (mc_array_grow((void **)&o->rx, &o->rx_cap, o->rx_len + len, RX_MAX, 1) < 0)
		return -MC_E_NOMEM;
	memcpy(o->rx + o->rx_len, data, len);
	o->rx_len += len;
	return 0;
}

/* Take what came, keep the beginning of a note. @return 0; < 0 */
static int rx_take(struct mc_mst_owner *o, const uint8_t *data, size_t len)
{
	ssize_t used;

	if (o->rx_len == 0) {
		used = notes_take(o, data, len);
		if (used < 0)
			return (int)used;
		return o->req ? rx_add(o, data + used, len - (size_t)used) : 0;
	}
	if (rx_add(o, data, len) < 0)
		return -MC_E_NOMEM;
	used = notes_take(o, o->rx, o->rx_len);
	if (used <= 0 || !o->req)
		return (int)used;
	o->rx_len -= (size_t)used;
	memmove(o->rx, o->rx + used, o->rx_len);
	return 0;
}

void mc_mst_chunk(struct mc_rpc_req *req, const void *data, size_t len, bool is_last)
{
	struct mc_mst_owner *o = req->user;
	struct mc_master *m;
	uint64_t before;
	int rc;

	if (!o || o->req != req)
		return; /* answered */
	m = o->master;
	before = o->rx_number;
	rc = o->state == MC_MST_SHAKING ? -MC_E_PROTO : rx_take(o, data, len);
	if (rc < 0) {
		mc_log_warn("owner says what cannot be understood", "segment=%s error=%s",
			    o->segment, mc_err_name(rc));
		if (o->req)
			mc_mst_stream_end(o, rc);
	}
	if (o->req) {
		mc_mst_owner_heard(m, o);
		if (o->rx_number != before)
			note_u64(o, MC_ST_NOTE_ACK, o->rx_number);
		if (len > 0 && o->req)
			(void)mc_rpc_req_credit(req, (uint32_t)len); /* over: on_cancel() follows */
		if (is_last && o->req)
			mc_mst_owner_leaves(o);
	}
	mc_mst_frees_send(m);
}

void mc_mst_stream_end(struct mc_mst_owner *o, int rc)
{
	struct mc_rpc_req *req = o->req;

	if (!req)
		return;
	mc_mst_owner_lost(o->master, o);
	(void)mc_rpc_reply(req, rc, NULL, 0, NULL, 0);
}
