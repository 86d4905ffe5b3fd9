/*
 * session.c: objects that are written piece by piece. Their room is granted at the beginning;
 * pieces go to all replicas; at the end what nobody wrote is zeroed, and the owners compute the
 * CRCs. What they find has to have the CRC of all that was written, which is put together from
 * those of the pieces; where pieces overlap nobody knows which of them came last, and owners are
 * not told.
 */
#include <stdlib.h>
#include <time.h>

#include "base/crc.h"
#include "client/priv.h"

#define BUCKETS 256u
#define SESSIONS_MAX 65536u
#define SPANS_MAX (1u << 20)
#define ZEROS_LEN (64u << 10)
#define POLL_NS (200 * MC_NS_PER_US)

struct span {
	uint64_t begin, end;
	uint32_t crc;
};

struct session {
	struct session *chain;
	struct mc_cli_write w; /* its texts stand behind it */
	struct span *spans;    /* written */
	size_t nspans, cap;
	unsigned users;
	uint8_t texts[];
};

struct mc_cli_sessions {
	pthread_mutex_t mu; /* guards all, also what is in the sessions */
	struct session *buckets[BUCKETS];
	uint32_t n;
};

int mc_cli_sessions_open(struct mc_cli_sessions **ret)
{
	struct mc_cli_sessions *s = mc_calloc(1, sizeof(*s));

	if (!s)
		return -MC_E_NOMEM;
	pthread_mutex_init(&s->mu, NULL);
	*ret = s;
	return 0;
}

static void session_free(struct session *x)
{
	mc_free(x->spans);
	mc_free(x);
}

void mc_cli_sessions_close(struct mc_cli_sessions *s)
{
	if (!s)
		return;
	for (unsigned i = 0; i < BUCKETS; i++)
		while (s->buckets[i]) {
			struct session *x = s->buckets[i];

			s->buckets[i] = x->chain;
			session_free(x);
		}
	pthread_mutex_destroy(&s->mu);
	mc_free(s);
}

/* Where it hangs. Under mu. */
static struct session **place_of(struct mc_cli_sessions *s, const struct mc_cli_key *key)
{
	struct session **at = &s->buckets[key->hash % BUCKETS];

	while (*at && ((*at)->w.key.hash != key->hash || (*at)->w.key.len != key->len ||
		       memcmp((*at)->w.key.bytes, key->bytes, key->len) != 0))
		at = &(*at)->chain;
	return at;
}

/* ---- begin ---- */

static struct session *session_new(const struct mc_cli_write *w)
{
	struct session *x = mc_calloc(1, sizeof(*x) + w->key.len + w->tlv_len);

	if (!x)
		return NULL;
	x->w = *w;
	memcpy(x->texts, w->key.bytes, w->key.len);
	if (w->tlv_len)
		memcpy(x->texts + w->key.len, w->tlv, w->tlv_len);
	x->w.key.bytes = x->w.info.key = x->texts;
	x->w.tlv = x->w.info.tlv = w->tlv_len ? x->texts + w->key.len : NULL;
	return x;
}

static int session_add(struct mc_cli_sessions *s, const struct mc_cli_write *w)
{
	struct session *x = session_new(w), **at;
	int rc = 0;

	if (!x)
		return MC_STORE_INTERNAL_ERROR;
	pthread_mutex_lock(&s->mu);
	at = place_of(s, &x->w.key);
	if (*at)
		rc = MC_STORE_OBJECT_ALREADY_EXISTS;
	else if (s->n >= SESSIONS_MAX)
		rc = MC_STORE_NO_AVAILABLE_HANDLE;
	if (rc == 0) {
		*at = x;
		s->n++;
	}
	pthread_mutex_unlock(&s->mu);
	if (rc < 0)
		session_free(x);
	return rc;
}

static int fail_all(int32_t *ret, uint32_t n, int code)
{
	for (uint32_t i = 0; i < n; i++)
		ret[i] = code;
	return code;
}

static int sum_up(const int32_t *ret, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (ret[i] < 0)
			return ret[i];
	return 0;
}

int mc_store_put_begin(struct mc_store *store, const struct mc_store_key *keys,
		       const uint64_t *lens, uint32_t n, const struct mc_store_conf *conf,
		       int32_t *ret)
{
	struct mc_cli_write *writes;
	struct mc_cli_op *op;
	int rc = n <= MC_STORE_BATCH_MAX ? mc_cli_op_begin(store, &op) : MC_STORE_INVALID_PARAMS;

	if (rc < 0)
		return fail_all(ret, n, rc);
	writes = mc_cli_alloc(op, n, sizeof(*writes));
	if (!writes) {
		mc_cli_op_end(op);
		return fail_all(ret, n, MC_STORE_INTERNAL_ERROR);
	}
	for (uint32_t i = 0; i < n; i++)
		writes[i].status = mc_cli_write_make(op, &keys[i], lens[i], conf, i, &writes[i]);
	rc = mc_cli_write_gens(op, writes, n);
	if (rc == 0)
		mc_cli_targets_run(op, writes, n, conf);
	for (uint32_t i = 0; i < n; i++) {
		if (writes[i].status == 0)
			writes[i].status = rc < 0 ? rc : session_add(store->sessions, &writes[i]);
		ret[i] = writes[i].status;
	}
	mc_cli_drop(op, writes, n);
	mc_cli_op_end(op);
	return sum_up(ret, n);
}

/* ---- pieces ---- */

struct piece {
	struct session *x;
	struct mc_cli_move *moves; /* one for each replica */
	uint8_t targets[MC_CLI_TARGETS_MAX];
	unsigned nmoves;
	uint64_t bytes;
	uint32_t *crcs; /* of its ranges */
};

static struct session *session_get(struct mc_cli_sessions *s, const struct mc_cli_key *key)
{
	struct session *x;

	pthread_mutex_lock(&s->mu);
	x = *place_of(s, key);
	if (x)
		x->users++;
	pthread_mutex_unlock(&s->mu);
	return x;
}

static void session_put(struct mc_cli_sessions *s, struct session *x)
{
	pthread_mutex_lock(&s->mu);
	x->users--;
	pthread_mutex_unlock(&s->mu);
}

/* The iovs of one item; the same for all replicas on this side. @return 0; MC_STORE_* */
static int piece_fit(const struct mc_store_ranged *item, const struct session *x, struct piece *p,
		     struct mc_iov *local)
{
	for (uint32_t i = 0; i < item->nranges; i++) {
		const struct mc_store_range *g = &item->ranges[i];

		if (g->offset > x->w.len || g->len > x->w.len - g->offset)
			return MC_STORE_INVALID_PARAMS;
		local[i] = (struct mc_iov){(uintptr_t)g->addr, g->len};
		p->crcs[i] = mc_crc32c(0, g->addr, g->len);
		p->bytes += g->len;
	}
	return 0;
}

static int piece_moves(struct mc_cli_op *op, const struct mc_store_ranged *item, struct piece *p,
		       struct mc_cli_move *moves, size_t *nmoves)
{
	struct mc_iov *local = mc_cli_alloc(op, item->nranges, sizeof(*local)), *remote;
	struct mc_cli_sessions *s = op->st->sessions;
	int rc = MC_STORE_INTERNAL_ERROR;

	p->crcs = mc_cli_alloc(op, item->nranges, sizeof(*p->crcs));
	if (local && p->crcs)
		rc = piece_fit(item, p->x, p, local);
	p->moves = moves + *nmoves;
	pthread_mutex_lock(&s->mu);
	for (unsigned t = 0; rc == 0 && t < p->x->w.ntargets; t++) {
		const struct mc_cli_target *x = &p->x->w.targets[t];

		if (x->state != MC_CLI_TARGET_GRANTED)
			continue;
		remote = mc_cli_alloc(op, item->nranges, sizeof(*remote));
		if (!remote) {
			rc = MC_STORE_INTERNAL_ERROR;
			break;
		}
		for (uint32_t i = 0; i < item->nranges; i++)
			remote[i] = (struct mc_iov){x->addr + p->x->w.info.payload_off +
							item->ranges[i].offset,
						    item->ranges[i].len};
		p->targets[p->nmoves] = (uint8_t)t;
		p->moves[p->nmoves++] = (struct mc_cli_move){.owner = x->owner,
							     .x = {.op = MC_WRITE,
								   .nlocal = item->nranges,
								   .nremote = item->nranges,
								   .local = local,
								   .remote = remote}};
	}
	pthread_mutex_unlock(&s->mu);
	*nmoves += p->nmoves;
	return rc == 0 && p->nmoves == 0 ? MC_STORE_TRANSFER_FAIL : rc;
}

static int span_add(struct session *x, const struct mc_store_range *g, uint32_t crc)
{
	struct span *last = x->nspans > 0 ? &x->spans[x->nspans - 1] : NULL;
	void *spans = x->spans;

	if (last && last->end == g->offset) {
		last->end += g->len;
		last->crc = mc_crc32c_skip(last->crc, g->len) ^ crc;
		return 0;
	}
	if (mc_array_grow(&spans, &x->cap, x->nspans + 1, SPANS_MAX, sizeof(*x->spans)) < 0)
		return MC_STORE_INTERNAL_ERROR;
	x->spans = spans;
	x->spans[x->nspans++] = (struct span){g->offset, g->offset + g->len, crc};
	return 0;
}

/* What became of a piece: replicas that missed it are none any more. */
static int64_t piece_end(struct mc_cli_sessions *s, const struct mc_store_ranged *item,
			 struct piece *p)
{
	int64_t ret = MC_STORE_TRANSFER_FAIL;

	pthread_mutex_lock(&s->mu);
	for (unsigned i = 0; i < p->nmoves; i++) {
		struct mc_cli_target *t = &p->x->w.targets[p->targets[i]];

		if (p->moves[i].rc == 0) {
			ret = (int64_t)p->bytes;
			continue;
		}
		t->state = MC_CLI_TARGET_FAILED;
		t->status = mc_cli_code_move(p->moves[i].rc);
		t->is_lost = true;
		t->is_unfenced |= p->moves[i].rc == -MC_E_UNFENCED;
	}
	for (uint32_t i = 0; ret >= 0 && i < item->nranges; i++)
		if (item->ranges[i].len > 0 && span_add(p->x, &item->ranges[i], p->crcs[i]) < 0)
			ret = MC_STORE_INTERNAL_ERROR;
	pthread_mutex_unlock(&s->mu);
	return ret;
}

/* @return how many moves there are at most; also sets results of what cannot be written */
static size_t pieces_find(struct mc_cli_op *op, const struct mc_store_ranged *items, uint32_t n,
			  struct piece *pieces, int64_t *ret)
{
	size_t nmoves = 0;

	for (uint32_t i = 0; i < n; i++) {
		struct mc_cli_key key;

		ret[i] = mc_cli_key_make(op, &items[i].key, &key);
		if (ret[i] < 0)
			continue;
		if (items[i].nranges > MC_STORE_PARTS_MAX) {
			ret[i] = MC_STORE_INVALID_PARAMS;
			continue;
		}
		pieces[i].x = session_get(op->st->sessions, &key);
		if (!pieces[i].x)
			ret[i] = MC_STORE_OBJECT_NOT_FOUND;
		else
			nmoves += pieces[i].x->w.ntargets;
	}
	return nmoves;
}

static void pieces_run(struct mc_cli_op *op, const struct mc_store_ranged *items, uint32_t n,
		       struct piece *pieces, int64_t *ret)
{
	size_t nmoves = 0, max = pieces_find(op, items, n, pieces, ret);
	struct mc_cli_move *moves = mc_cli_alloc(op, max, sizeof(*moves));

	for (uint32_t i = 0; i < n; i++)
		if (ret[i] == 0)
			ret[i] = moves ? piece_moves(op, &items[i], &pieces[i], moves, &nmoves)
				       : MC_STORE_INTERNAL_ERROR;
	if (nmoves > 0)
		mc_cli_moves_run(op, moves, nmoves, op->deadline_ns);
	for (uint32_t i = 0; i < n; i++) {
		if (ret[i] == 0)
			ret[i] = piece_end(op->st->sessions, &items[i], &pieces[i]);
		if (pieces[i].x)
			session_put(op->st->sessions, pieces[i].x);
	}
}

int mc_store_put_ranges(struct mc_store *store, const struct mc_store_ranged *items, uint32_t n,
			int64_t *ret)
{
	struct mc_cli_op *op;
	struct piece *pieces;
	int rc = n <= MC_STORE_BATCH_MAX ? mc_cli_op_begin(store, &op) : MC_STORE_INVALID_PARAMS;

	if (rc == 0) {
		pieces = mc_cli_alloc(op, n, sizeof(*pieces));
		if (pieces)
			pieces_run(op, items, n, pieces, ret);
		else
			rc = MC_STORE_INTERNAL_ERROR;
		mc_cli_op_end(op);
	}
	for (uint32_t i = 0; i < n; i++) {
		if (rc < 0)
			ret[i] = rc;
		if (ret[i] < 0)
			return (int)ret[i];
	}
	return rc;
}

/* ---- end ---- */

static int span_cmp(const void *a, const void *b)
{
	const struct span *x = a, *y = b;

	return x->begin < y->begin ? -1 : x->begin > y->begin;
}

/* Zeros over [begin, end) of all replicas. */
static void gap_zero(struct mc_cli_op *op, struct mc_cli_write *w, uint8_t *zeros, uint64_t begin,
		     uint64_t end)
{
	while (begin < end) {
		uint64_t len = mc_min(end - begin, (uint64_t)ZEROS_LEN * 1024);
		uint32_t n = (uint32_t)((len + ZEROS_LEN - 1) / ZEROS_LEN), nmoves = 0;
		struct mc_iov *local = mc_cli_alloc(op, n, sizeof(*local));
		struct mc_iov *remote = mc_cli_alloc(op, w->ntargets, sizeof(*remote));
		struct mc_cli_move *moves = mc_cli_alloc(op, w->ntargets, sizeof(*moves));
		uint8_t of[MC_CLI_TARGETS_MAX];

		if (!local || !remote || !moves || !zeros) {
			w->status = MC_STORE_INTERNAL_ERROR;
			return;
		}
		for (uint32_t i = 0; i < n; i++) {
			uint64_t left = len - (uint64_t)i * ZEROS_LEN;

			local[i].addr = (uintptr_t)zeros;
			local[i].len = mc_min(left, (uint64_t)ZEROS_LEN);
		}
		for (unsigned t = 0; t < w->ntargets; t++) {
			struct mc_cli_target *x = &w->targets[t];

			if (x->state != MC_CLI_TARGET_GRANTED)
				continue;
			of[nmoves] = (uint8_t)t;
			remote[nmoves] =
			    (struct mc_iov){x->addr + w->info.payload_off + begin, len};
			moves[nmoves] = (struct mc_cli_move){.owner = x->owner,
							     .x = {.op = MC_WRITE,
								   .nlocal = n,
								   .nremote = 1,
								   .local = local,
								   .remote = &remote[nmoves]}};
			nmoves++;
		}
		if (nmoves > 0)
			mc_cli_moves_run(op, moves, nmoves, op->deadline_ns);
		for (uint32_t i = 0; i < nmoves; i++)
			if (moves[i].rc < 0) {
				w->targets[of[i]].state = MC_CLI_TARGET_FAILED;
				w->targets[of[i]].status = mc_cli_code_move(moves[i].rc);
				w->targets[of[i]].is_lost = true;
				w->targets[of[i]].is_unfenced |= moves[i].rc == -MC_E_UNFENCED;
			}
		begin += len;
	}
}

static uint32_t zeros_crc(uint32_t crc, const uint8_t *zeros, uint64_t len)
{
	for (uint64_t n; len > 0; len -= n) {
		n = mc_min(len, (uint64_t)ZEROS_LEN);
		crc = mc_crc32c(crc, zeros, (size_t)n);
	}
	return crc;
}

/* What nobody wrote, then all is written, and known, unless pieces overlap. */
static void fill(struct mc_cli_op *op, struct session *x, struct mc_cli_write *w)
{
	uint8_t *zeros = NULL;
	bool is_known = true;
	uint32_t crc = 0;
	uint64_t at = 0;

	if (x->nspans > 1)
		qsort(x->spans, x->nspans, sizeof(*x->spans), span_cmp);
	for (size_t i = 0; i <= x->nspans && w->status == 0; i++) {
		uint64_t next = i < x->nspans ? x->spans[i].begin : w->len;

		if (next > at) {
			if (!zeros) {
				zeros = mc_cli_scratch(op, ZEROS_LEN);
				if (zeros)
					memset(zeros, 0, ZEROS_LEN);
			}
			gap_zero(op, w, zeros, at, next);
			if (zeros)
				crc = zeros_crc(crc, zeros, next - at);
		}
		is_known &= next >= at;
		if (i < x->nspans) {
			crc = mc_crc32c_skip(crc, x->spans[i].end - next) ^ x->spans[i].crc;
			at = mc_max(at, x->spans[i].end);
		}
	}
	w->crc = is_known ? crc : 0;
	for (unsigned t = 0; t < w->ntargets; t++)
		if (w->targets[t].state == MC_CLI_TARGET_GRANTED)
			w->targets[t].state = MC_CLI_TARGET_WRITTEN;
}

/* Out of the table, once no piece is under way. NULL: not begun. */
static struct session *session_take(struct mc_cli_sessions *s, const struct mc_cli_key *key)
{
	struct timespec ts = {.tv_nsec = POLL_NS};
	struct session **at, *x;

	pthread_mutex_lock(&s->mu);
	at = place_of(s, key);
	x = *at;
	if (x) {
		*at = x->chain;
		s->n--;
	}
	while (x && x->users > 0) { /* its pieces end by their deadline */
		pthread_mutex_unlock(&s->mu);
		(void)nanosleep(&ts, NULL);
		pthread_mutex_lock(&s->mu);
	}
	pthread_mutex_unlock(&s->mu);
	return x;
}

static void finish(struct mc_cli_op *op, struct mc_cli_write *writes, uint32_t n)
{
	mc_cli_seal(op, writes, n);
	for (uint32_t i = 0; i < n; i++)
		if (writes[i].status == 0 &&
		    mc_cli_write_count(&writes[i], MC_CLI_TARGET_SEALED) == 0)
			writes[i].status = MC_STORE_TRANSFER_FAIL;
	mc_cli_commit(op, writes, n);
	for (uint32_t i = 0; i < n; i++)
		if (writes[i].status == 0 && !writes[i].is_committed)
			writes[i].status = MC_STORE_REPLICA_IS_GONE;
}

int mc_store_put_end(struct mc_store *store, const struct mc_store_key *keys, uint32_t n,
		     bool is_revoked, int32_t *ret)
{
	struct mc_cli_write *writes;
	struct session **taken;
	struct mc_cli_op *op;
	int rc = n <= MC_STORE_BATCH_MAX ? mc_cli_op_begin(store, &op) : MC_STORE_INVALID_PARAMS;

	if (rc < 0)
		return fail_all(ret, n, rc);
	writes = mc_cli_alloc(op, n, sizeof(*writes));
	taken = mc_cli_alloc(op, n, sizeof(*taken));
	if (!writes || !taken) {
		mc_cli_op_end(op);
		return fail_all(ret, n, MC_STORE_INTERNAL_ERROR);
	}
	for (uint32_t i = 0; i < n; i++) {
		struct mc_cli_key key;

		ret[i] = mc_cli_key_make(op, &keys[i], &key);
		taken[i] = ret[i] == 0 ? session_take(store->sessions, &key) : NULL;
		writes[i].status = ret[i] == 0 ? MC_STORE_OBJECT_NOT_FOUND : ret[i];
		if (!taken[i])
			continue;
		writes[i] = taken[i]->w;
		if (is_revoked)
			writes[i].status = MC_STORE_INVALID_WRITE;
		else
			fill(op, taken[i], &writes[i]);
	}
	finish(op, writes, n);
	mc_cli_drop(op, writes, n);
	for (uint32_t i = 0; i < n; i++) {
		ret[i] = is_revoked && taken[i] ? 0 : writes[i].status;
		if (taken[i])
			session_free(taken[i]);
	}
	mc_cli_op_end(op);
	return sum_up(ret, n);
}
