/*
 * read.c: objects out of their owners' memory, checked.
 *
 * One transfer an object takes the slot from its header to its table, and the payload's wanted
 * bytes into the user's memory. Then all is checked: header, key, generation, each chunk. Where a
 * chunk was not read whole its CRC says nothing; for those the header is read again after the
 * payload: the owner clears it before the bytes are used anew. What does not pass is looked for at
 * the next replica, then asked for again, and in the end is a miss or a code, never bytes.
 *
 * What is on a disk only is brought to its owner's memory first (fetch.c).
 */
#include "base/log.h"
#include "client/priv.h"

#define LOOKS_MAX 4u /* the master's word for one object that no replica bears out */
#define VIEW_AGE_NS (100 * MC_NS_PER_MS)
#define GAP_MAX 512u /* bytes between table and payload that are rather read than skipped */

static void end(struct mc_cli_read *r, int64_t result)
{
	r->result = result;
	r->is_done = true;
}

/* ---- location ---- */

static void layout(struct mc_cli_read *r)
{
	const struct mc_cli_place *p = &r->look.place;

	r->info = (struct mc_slot_info){.gen = p->gen,
					.key_hash = r->look.key.hash,
					.len = p->len,
					.key = r->look.key.bytes,
					.key_len = r->look.key.len,
					.tlv_len = p->tlv_len};
	if (mc_slot_layout(&r->info) < 0)
		end(r, MC_STORE_INVALID_REPLICA);
	r->head_len = (size_t)mc_slot_head_len(&r->info);
}

/* The cache's word was wrong or there is none: ask the master. */
static void ask_again(struct mc_cli_op *op, struct mc_cli_read *r)
{
	mc_cli_cache_del(op->st->cache, &r->look.key);
	r->look.is_wanted = true;
	r->looks++;
}

/* Where it is, and where its bytes shall go. @return false: to be asked again */
static bool place_ready(struct mc_cli_op *op, struct mc_cli_read *r,
			int (*fit)(struct mc_cli_op *op, struct mc_cli_read *r, void *user),
			void *user)
{
	int rc;

	r->replica = 0;
	layout(r);
	if (r->is_done)
		return true;
	rc = fit(op, r, user);
	if (rc < 0 && !r->look.is_fresh) /* perhaps it was replaced by one of another length */
		return false;
	if (rc < 0)
		end(r, rc);
	return true;
}

/* Ask for those that need it, and prepare those that have an answer. */
static void locate(struct mc_cli_op *op, struct mc_cli_read *reads, size_t n,
		   int (*fit)(struct mc_cli_op *op, struct mc_cli_read *r, void *user), void *user)
{
	struct mc_cli_look **looks = mc_cli_alloc(op, n, sizeof(*looks));
	size_t nlooks = 0;

	for (size_t i = 0; i < n; i++) {
		struct mc_cli_read *r = &reads[i];

		if (r->is_done || !r->look.is_wanted)
			continue;
		if (!looks)
			end(r, MC_STORE_INTERNAL_ERROR);
		else
			looks[nlooks++] = &r->look;
	}
	if (nlooks > 0)
		mc_cli_lookup(op, looks, nlooks);
	for (size_t i = 0; i < n; i++) {
		struct mc_cli_read *r = &reads[i];

		if (r->is_done || r->is_placed)
			continue;
		r->is_placed = true;
		if (r->look.status < 0)
			end(r, r->look.status);
		else if (!place_ready(op, r, fit, user)) {
			r->is_placed = false;
			ask_again(op, r);
		}
	}
}

/* The best replica that was not tried: our own, of good owners, of any. @return false: none is left
 */
static bool replica_next(struct mc_cli_op *op, struct mc_cli_read *r)
{
	const struct mc_cli_place *p = &r->look.place;

	for (int pass = op->st->owner ? -1 : 0; pass < 2; pass++)
		for (unsigned i = 0; i < p->nreplicas; i++) {
			struct mc_cli_owner *o;

			if (r->tried & (1u << i))
				continue;
			o = mc_cli_view_find(op->st, p->replicas[i].owner);
			if (!o || (pass == -1 && o->id != op->st->owner_id) ||
			    (pass == 0 && mc_cli_owner_is_bad(o)))
				continue;
			r->tried |= (uint8_t)(1u << i);
			r->replica = (uint8_t)i;
			r->owner = o;
			r->tally = NULL;
			return true;
		}
	return false;
}

static bool knows_owners(struct mc_store *st, const struct mc_cli_read *r)
{
	for (unsigned i = 0; i < r->look.place.nreplicas; i++)
		if (!mc_cli_view_find(st, r->look.place.replicas[i].owner))
			return false;
	return true;
}

/* ---- transfer ---- */

static struct mc_iov *iov_add(struct mc_iov *iov, uint32_t *n, uint64_t addr, uint64_t len)
{
	if (*n > 0 && iov[*n - 1].addr + iov[*n - 1].len == addr)
		iov[*n - 1].len += len;
	else
		iov[(*n)++] = (struct mc_iov){addr, len};
	return iov;
}

/* Are the ranges the object, in order? */
static bool is_whole(const struct mc_cli_read *r)
{
	uint64_t at = 0;

	for (uint32_t i = 0; i < r->nranges; at += r->ranges[i++].len)
		if (r->ranges[i].offset != at)
			return false;
	return at == r->info.len;
}

/* Header to table, then the ranges; touching ones are one range of the slot. */
static int move_make(struct mc_cli_op *op, struct mc_cli_read *r, uint8_t *head,
		     struct mc_cli_move *m)
{
	uint64_t addr = r->look.place.replicas[r->replica].addr;
	struct mc_iov *local = mc_cli_alloc(op, r->nranges + 1, sizeof(*local));
	struct mc_iov *remote = mc_cli_alloc(op, r->nranges + 1, sizeof(*remote));
	size_t gap = r->info.payload_off - r->head_len;
	uint32_t nl = 0, nr = 0;

	if (!local || !remote)
		return -MC_E_NOMEM;
	if (r->nranges == 0 || r->ranges[0].offset != 0 || gap > GAP_MAX)
		gap = 0;
	memset(head, 0, MC_SLOT_HEADER_LEN);
	iov_add(local, &nl, (uintptr_t)head, r->head_len + gap);
	iov_add(remote, &nr, addr, r->head_len + gap);
	for (uint32_t i = 0; i < r->nranges; i++) {
		const struct mc_store_range *g = &r->ranges[i];

		if (g->len == 0)
			continue;
		iov_add(local, &nl, (uintptr_t)g->addr, g->len);
		iov_add(remote, &nr, addr + r->info.payload_off + g->offset, g->len);
	}
	r->head = head;
	if (is_whole(r))
		r->tally = mc_cli_tally_new(op, &r->info, r->head_len + gap);
	*m = (struct mc_cli_move){
	    .owner = r->owner,
	    .tally = r->tally,
	    .x = {.op = MC_READ, .nlocal = nl, .nremote = nr, .local = local, .remote = remote}};
	return 0;
}

/* ---- check ---- */

/* Bytes [begin, end) lie in ranges that touch, the i-th first. @return 0; 1; -MC_E_CORRUPT */
static int run_check(const struct mc_cli_read *r, uint32_t i, uint64_t begin, uint64_t stop)
{
	uint64_t at = (begin + MC_SLOT_CHUNK - 1) / MC_SLOT_CHUNK * MC_SLOT_CHUNK;

	while (at < stop) {
		uint32_t chunk = (uint32_t)(at / MC_SLOT_CHUNK);
		uint32_t len = mc_slot_chunk_len(&r->info, chunk), crc;

		if (at + len > stop)
			return 1;
		if (!mc_cli_tally_crc(r->tally, &r->info, chunk, &crc))
			crc = mc_cli_chunk_crc(&r->info, r->ranges, &i, chunk);
		if (crc != mc_slot_table(r->head, &r->info, chunk))
			return -MC_E_CORRUPT;
		at += len;
	}
	return begin % MC_SLOT_CHUNK != 0;
}

int mc_cli_read_check(const struct mc_cli_read *r)
{
	bool is_partial = false;

	for (uint32_t i = 0; i < r->nranges;) {
		uint64_t begin = r->ranges[i].offset, stop = begin + r->ranges[i].len;
		uint32_t next = i + 1;
		int rc;

		while (next < r->nranges && r->ranges[next].offset == stop)
			stop += r->ranges[next++].len;
		rc = run_check(r, i, begin, stop);
		if (rc < 0)
			return rc;
		is_partial |= rc == 1;
		i = next;
	}
	return is_partial ? 1 : 0;
}

static enum mc_cli_read_outcome judge(struct mc_cli_read *r)
{
	struct mc_slot_info info;
	int rc;

	if (r->move->rc < 0)
		return MC_CLI_READ_FAILED;
	rc = mc_slot_decode(r->head, r->head_len, &info, NULL);
	if (rc < 0)
		return rc == -MC_E_NOENT ? MC_CLI_READ_STALE : MC_CLI_READ_BAD;
	if (info.gen != r->look.place.gen || info.len != r->look.place.len ||
	    info.key_len != r->look.key.len ||
	    memcmp(info.key, r->look.key.bytes, info.key_len) != 0)
		return MC_CLI_READ_STALE;
	r->info.incarnation = info.incarnation;
	rc = mc_cli_read_check(r);
	if (rc < 0)
		return MC_CLI_READ_BAD;
	return rc == 1 ? MC_CLI_READ_STAMP : MC_CLI_READ_OK;
}

/* The headers of those with a stamp once more, all after all payloads. */
static void stamps(struct mc_cli_op *op, struct mc_cli_read **r, size_t n)
{
	struct mc_cli_move *moves = mc_cli_alloc(op, n, sizeof(*moves));
	struct mc_iov *iov = mc_cli_alloc(op, 2 * n, sizeof(*iov));
	uint8_t *heads = mc_cli_alloc(op, n, MC_SLOT_HEADER_LEN);

	for (size_t i = 0; i < n; i++)
		r[i]->outcome = MC_CLI_READ_FAILED;
	if (!moves || !iov || !heads)
		return;
	for (size_t i = 0; i < n; i++) {
		uint64_t addr = r[i]->look.place.replicas[r[i]->replica].addr;

		iov[2 * i] =
		    (struct mc_iov){(uintptr_t)heads + i * MC_SLOT_HEADER_LEN, MC_SLOT_HEADER_LEN};
		iov[2 * i + 1] = (struct mc_iov){addr, MC_SLOT_HEADER_LEN};
		moves[i] = (struct mc_cli_move){.owner = r[i]->owner,
						.x = {.op = MC_READ,
						      .nlocal = 1,
						      .nremote = 1,
						      .local = &iov[2 * i],
						      .remote = &iov[2 * i + 1]}};
	}
	mc_cli_moves_run(op, moves, n, mc_cli_attempt_ns(op));
	for (size_t i = 0; i < n; i++)
		if (moves[i].rc == 0)
			r[i]->outcome = memcmp(heads + i * MC_SLOT_HEADER_LEN, r[i]->head,
					       MC_SLOT_HEADER_LEN) == 0
					    ? MC_CLI_READ_OK
					    : MC_CLI_READ_STALE;
}

/* ---- what comes of it ---- */

/* Tell the master of replicas that did not pass. Its answer changes nothing for us. */
void mc_cli_read_report(struct mc_cli_op *op, struct mc_cli_read *const *bad, size_t n)
{
	size_t first = op->ncalls;
	struct mc_cli_call *c = NULL;

	for (size_t i = 0; i < n; i++) {
		const struct mc_cli_read *r = bad[i];
		struct mc_st_bad b = {.gen = r->look.place.gen,
				      .replica = r->look.place.replicas[r->replica],
				      .key_len = r->look.key.len,
				      .key = r->look.key.bytes};
		size_t len = sizeof(b) + b.key_len;
		struct mc_wr w;

		if (r->outcome == MC_CLI_READ_BAD)
			mc_log_warn("replica did not pass its check",
				    "owner=%s addr=0x%llx gen=%llu", r->owner->segment_name,
				    (unsigned long long)b.replica.addr, (unsigned long long)b.gen);
		if (!c || !mc_cli_call_has_room(c, len))
			c = mc_cli_call_open(op, &op->st->master, MC_ST_BAD);
		if (!c || mc_cli_call_add(c, len, (uint32_t)i, &w) < 0)
			break;
		mc_st_bad_encode(&w, &b);
		mc_cli_call_added(c, &w);
	}
	mc_cli_calls_run(op, first, mc_cli_attempt_ns(op));
	op->ncalls = first;
}

static int64_t failure(const struct mc_cli_read *r)
{
	switch ((enum mc_cli_read_outcome)r->outcome) {
	case MC_CLI_READ_BAD:
		return MC_STORE_CHECKSUM_MISMATCH;
	case MC_CLI_READ_STALE:
		return MC_STORE_OBJECT_NOT_FOUND;
	default:
		return r->look.place.nreplicas > 0 ? MC_STORE_TRANSFER_FAIL
						   : MC_STORE_REPLICA_NOT_FOUND;
	}
}

static int64_t bytes_of(const struct mc_cli_read *r)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < r->nranges; i++)
		bytes += r->ranges[i].len;
	return (int64_t)bytes;
}

/* No replica is left. One pause a round is for all of them. */
static void exhausted(struct mc_cli_op *op, struct mc_cli_read *r, bool *has_waited)
{
	if (r->looks >= LOOKS_MAX || mc_cli_is_over(op)) {
		end(r, failure(r));
		return;
	}
	if (r->look.is_fresh && !*has_waited) {
		(void)mc_cli_backoff(op);
		*has_waited = true;
	}
	/* An owner that came back may be somewhere else now. */
	if (r->outcome == MC_CLI_READ_FAILED)
		(void)mc_cli_view_refresh(op, VIEW_AGE_NS);
	r->is_placed = false;
	r->tried = 0;
	ask_again(op, r);
}

static bool is_local(const struct mc_store *st, const struct mc_cli_read *r)
{
	return st->owner && r->owner->id == st->owner_id &&
	       r->look.place.replicas[r->replica].kind == MC_ST_MEMORY;
}

/* Without a transfer: one pass, or none. */
static void local_run(struct mc_cli_op *op, struct mc_cli_read *r)
{
	int rc = mc_cli_local_read(op, r);

	if (rc == 0) {
		end(r, bytes_of(r));
		return;
	}
	r->outcome = rc == -MC_E_CORRUPT ? MC_CLI_READ_BAD : MC_CLI_READ_STALE;
	if (r->look.is_fresh)
		mc_cli_read_report(op, &r, 1);
}

/* The next replica of one object. @return true: it wants a transfer */
static bool plan_one(struct mc_cli_op *op, struct mc_cli_read *r, bool *has_waited)
{
	while (replica_next(op, r)) {
		if (!is_local(op->st, r))
			return true;
		local_run(op, r);
		if (r->is_done)
			return false;
	}
	exhausted(op, r, has_waited);
	return false;
}

/* Replicas for all that are open, and their transfers. @return how many */
static size_t plan(struct mc_cli_op *op, struct mc_cli_read *reads, size_t n,
		   struct mc_cli_read **open, struct mc_cli_read **some, struct mc_cli_move *moves)
{
	size_t nopen = 0, bytes = 0;
	bool has_refreshed = false, has_waited = false;
	uint8_t *heads;

	for (size_t i = 0; i < n; i++) {
		struct mc_cli_read *r = &reads[i];

		if (r->is_done || !r->is_placed)
			continue;
		if (!has_refreshed && !knows_owners(op->st, r)) {
			(void)mc_cli_view_refresh(op, 0);
			has_refreshed = true;
		}
		if (!plan_one(op, r, &has_waited))
			continue;
		open[nopen++] = r;
	}
	nopen = mc_cli_fetch(op, open, nopen, some);
	for (size_t i = 0; i < nopen; i++) {
		open[i]->move = &moves[i];
		bytes += open[i]->info.payload_off + MC_CACHELINE;
	}
	heads = nopen ? mc_cli_scratch(op, bytes) : NULL;
	for (size_t i = 0; i < nopen; i++) {
		if (!heads || move_make(op, open[i], heads, &moves[i]) < 0) {
			for (size_t j = 0; j < nopen; j++)
				end(open[j], MC_STORE_INTERNAL_ERROR);
			return 0;
		}
		heads += (open[i]->info.payload_off + MC_CACHELINE - 1) & ~(MC_CACHELINE - 1u);
	}
	return nopen;
}

static void settle(struct mc_cli_op *op, struct mc_cli_read **open, size_t n,
		   struct mc_cli_read **some)
{
	size_t nstamps = 0, nbad = 0;

	for (size_t i = 0; i < n; i++) {
		open[i]->outcome = (uint8_t)judge(open[i]);
		if (open[i]->outcome == MC_CLI_READ_STAMP)
			some[nstamps++] = open[i];
	}
	if (nstamps > 0)
		stamps(op, some, nstamps);
	for (size_t i = 0; i < n; i++) {
		struct mc_cli_read *r = open[i];

		if (r->outcome == MC_CLI_READ_OK)
			end(r, bytes_of(r));
		/* Of a place that the master named just now, not of an old one of ours. */
		else if (r->look.is_fresh && r->outcome != MC_CLI_READ_FAILED)
			some[nbad++] = r;
	}
	if (nbad > 0)
		mc_cli_read_report(op, some, nbad);
}

void mc_cli_read_run(struct mc_cli_op *op, struct mc_cli_read *reads, size_t n,
		     int (*fit)(struct mc_cli_op *op, struct mc_cli_read *r, void *user),
		     void *user)
{
	struct mc_cli_read **open = mc_cli_alloc(op, n, sizeof(struct mc_cli_read *));
	struct mc_cli_read **some = mc_cli_alloc(op, n, sizeof(struct mc_cli_read *));
	struct mc_cli_move *moves = mc_cli_alloc(op, n, sizeof(*moves));
	uint64_t now_ns = mc_now_ns();
	size_t nopen, ndone;

	for (size_t i = 0; i < n; i++) {
		struct mc_cli_read *r = &reads[i];

		r->is_done = r->result < 0;
		if (r->is_done)
			continue;
		if (!open || !some || !moves)
			end(r, MC_STORE_INTERNAL_ERROR);
		else
			r->look.is_wanted =
			    !mc_cli_cache_get(op->st->cache, &r->look.key, now_ns, &r->look.place);
	}
	do {
		locate(op, reads, n, fit, user);
		nopen = plan(op, reads, n, open, some, moves);
		if (nopen > 0)
			mc_cli_moves_run(op, moves, nopen, mc_cli_attempt_ns(op));
		settle(op, open, nopen, some);
		ndone = 0;
		for (size_t i = 0; i < n; i++)
			ndone += reads[i].is_done;
	} while (ndone < n);
}
