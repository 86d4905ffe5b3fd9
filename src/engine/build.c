/*
 * build.c: a request becomes fragments and slices. Each remote range is resolved to a region of the
 * peer, so that what goes on the wire is {region, generation, offset}.
 *
 * What is known of the peer is enough as a rule; then nothing here waits or allocates in a warm
 * engine. What is not has to be asked for, which costs a round trip, or for ever at a peer that
 * stands still: who may not wait is told so instead.
 */
#include <string.h>

#include "engine/files.h"
#include "engine/hca.h"
#include "engine/hops.h"
#include "engine/pump.h"

#define MUST_ASK 1    /* the peer has to be asked, and we may not */
#define TAIL_BYTES 64 /* what waits with a signal: a round trip more, and next to no bytes */

/* Where the builder stands. */
struct build {
	struct mc_gop *op;
	struct mc_diag *diag;
	struct mc_session *session; /* of the transfer being cut; one reference */
	struct mc_eslice *slice;    /* open, or NULL */
	const struct mc_remote_region *rr;
	enum mc_route best, route;   /* of rr; of what is added now */
	uint32_t rails, near;	     /* RDMA: see mc_eslice */
	struct mc_region_desc local; /* RDMA: the last range found; len 0: none */
	uint32_t local_near;
	uint32_t frags_max;
	uint64_t slice_bytes;
	uint64_t total;
	uint64_t t_at;	      /* bytes of the transfer so far */
	uint64_t until_ns;    /* 0: may not wait */
	struct mc_peer *peer; /* of the session */
};

static int array_grow(void *array, size_t *cap, size_t want, size_t max, size_t size)
{
	return mc_array_grow((void **)array, cap, want, max, size);
}

static void slice_close(struct build *b)
{
	b->slice = NULL;
}

static int slice_open(struct build *b, uint32_t t)
{
	struct mc_gop *op = b->op;
	struct mc_eslice *es;
	int rc = array_grow(&op->slices, &op->slices_cap, op->nslices + 1, MC_GROUP_FRAGS_MAX,
			    sizeof(*op->slices));

	if (rc < 0)
		return rc;
	es = &op->slices[op->nslices++];
	memset(es, 0, sizeof(*es));
	es->op = op;
	es->session = b->session;
	mc_session_ref(b->session);
	es->route = b->route;
	es->rails = b->rails;
	es->near = b->near;
	es->s.op = op->op;
	es->s.frags = (struct mc_frag *)op->nfrags; /* index for now: the array may still move */
	es->t_first = es->t_last = t;
	es->t_at = b->t_at;
	b->slice = es;
	return 0;
}

/* Append one fragment that lies in b->rr, cut at slice boundaries. */
static int frag_add(struct build *b, uint32_t t, uint64_t local, uint64_t raddr, uint64_t len)
{
	struct mc_gop *op = b->op;

	while (len > 0) {
		uint64_t room, n;
		struct mc_frag *f;
		int rc;

		if (b->slice &&
		    (b->slice->s.nfrags == b->frags_max || b->slice->s.len >= b->slice_bytes ||
		     b->slice->route != b->route || b->slice->session != b->session ||
		     b->slice->rails != b->rails || b->slice->near != b->near))
			slice_close(b);
		if (!b->slice) {
			rc = slice_open(b, t);
			if (rc < 0)
				return rc;
		}
		rc = array_grow(&op->frags, &op->frags_cap, op->nfrags + 1, MC_GROUP_FRAGS_MAX,
				sizeof(*op->frags));
		if (rc < 0)
			return rc;
		room = b->slice_bytes - b->slice->s.len;
		n = len < room ? len : room;
		f = &op->frags[op->nfrags++];
		*f = (struct mc_frag){
		    .local = (uint8_t *)(uintptr_t)local, .raddr = raddr, .len = n, .rr = b->rr};
		b->slice->s.nfrags++;
		b->slice->s.len += n;
		if (b->slice->t_last != t || b->slice->s.nfrags == 1) {
			b->slice->t_last = t;
			op->t[t].slices_left++;
		}
		b->t_at += n;
		local += n;
		raddr += n;
		len -= n;
	}
	return 0;
}

static int fence_check(struct build *b, uint64_t raddr, uint64_t len)
{
	uint64_t owner = b->session->fence_key;
	int rc;

	if (b->until_ns == 0)
		return mc_fence_is_clear(b->session, owner, raddr, len) ? 0 : MUST_ASK;
	rc = mc_fence_check(b->session, owner, raddr, len, b->until_ns);

	if (rc < 0)
		mc_diag_set(b->diag, "%s: an earlier write to [0x%llx, +%llu) may still land: %s",
			    b->session->peer->name, (unsigned long long)raddr,
			    (unsigned long long)len, mc_err_text(rc));
	return rc;
}

/* The same for our own memory: a file's read that ended unfenced. */
static int fence_check_local(struct build *b, uint64_t local, uint64_t len)
{
	int rc;

	if (b->until_ns == 0)
		return mc_fence_is_clear(b->session, MC_FENCE_LOCAL, local, len) ? 0 : MUST_ASK;
	rc = mc_fence_check(b->session, MC_FENCE_LOCAL, local, len, b->until_ns);
	if (rc < 0)
		mc_diag_set(b->diag,
			    "an earlier read of a file into memory at [0x%llx, +%llu) may still "
			    "land: %s",
			    (unsigned long long)local, (unsigned long long)len, mc_err_text(rc));
	return rc;
}

static int region_find(struct build *b, uint64_t raddr, uint64_t len)
{
	b->rr = mc_session_region_known(b->session, raddr, len);
	if (b->rr)
		return 0;
	/* Our own ranges are looked up, not asked for. */
	if (b->until_ns == 0 && b->session->kind != MC_PEER_SELF)
		return MUST_ASK;
	return mc_session_region(b->session, raddr, len, b->until_ns, &b->rr);
}

/* A range of ours that is a file's. */
static enum mc_mem_kind local_kind(const struct mc_engine *eng, uint64_t local)
{
	struct mc_region_info info;

	if (!mc_files_any(eng) || mc_region_find(eng->regions, local, 1, &info) < 0)
		return MC_MEM_HOST;
	return info.desc.kind;
}

/* The best route to the region; memory of ours that is not registered has no keys for an HCA.
 * @return bytes that it is for: to the end of a part of our memory, at most */
static uint64_t route_set(struct build *b, uint64_t local, uint64_t len)
{
	struct mc_engine *eng = b->op->eng;
	struct mc_region_info info;

	if (b->best == MC_ROUTE_RDMA &&
	    (local < b->local.addr || local - b->local.addr >= b->local.len ||
	     len > b->local.len - (local - b->local.addr))) {
		b->local.len = 0;
		if (mc_hca_region_find(eng, local, len, &info) == 0) {
			b->local = info.desc;
			b->local_near = mc_hca_near(eng, info.desc.location);
		}
	}
	b->route = b->best == MC_ROUTE_RDMA && b->local.len == 0 ? MC_ROUTE_TCP : b->best;
	if (mc_hops_choose(local_kind(eng, local), MC_MEM_HOST) != MC_HOPS_DIRECT)
		b->route = MC_ROUTE_STAGED;
	b->near = b->route == MC_ROUTE_RDMA ? b->local_near : 0;
	b->frags_max = mc_route_frags_max(b->session, b->route);
	b->slice_bytes = mc_route_slice_bytes(b->session, b->route, b->total);
	if (b->route == MC_ROUTE_RDMA)
		len = mc_min(len, b->local.len - (local - b->local.addr));
	return len;
}

/* Find the region(s) of [raddr, raddr + len) and append. */
static int range_add(struct build *b, uint32_t t, uint64_t local, uint64_t raddr, uint64_t len)
{
	int rc = fence_check_local(b, local, len);

	if (rc == 0 && b->op->op == MC_OP_WRITE)
		rc = fence_check(b, raddr, len);
	if (rc != 0)
		return rc;
	while (len > 0) {
		uint64_t n = len;

		if (!b->rr || raddr - b->rr->addr >= b->rr->len ||
		    n > b->rr->len - (raddr - b->rr->addr)) {
			rc = region_find(b, raddr, len);
			if (rc == MUST_ASK)
				return rc;
			if (rc < 0) {
				mc_diag_set(b->diag,
					    "%s: [0x%llx, +%llu) is not in its registered memory",
					    b->session->peer->name, (unsigned long long)raddr,
					    (unsigned long long)len);
				return rc;
			}
			b->best = mc_route_choose(b->session, b->rr, &b->rails);
			if (n > b->rr->len - (raddr - b->rr->addr))
				n = b->rr->len - (raddr - b->rr->addr);
			n = route_set(b, local, n);
		} else if (b->best == MC_ROUTE_RDMA || mc_files_any(b->op->eng)) {
			n = route_set(b, local, n);
		}
		if (b->op->op == MC_OP_READ && b->best == MC_ROUTE_RDMA && b->local.len > 0 &&
		    b->local.is_read_only) {
			mc_diag_set(b->diag,
				    "memory at [0x%llx, +%llu) must not be written: a read cannot "
				    "go there",
				    (unsigned long long)local, (unsigned long long)n);
			return -MC_E_PERM;
		}
		if (b->route == MC_ROUTE_TCP && b->session->tcp.n == 0) {
			mc_diag_set(b->diag, "%s offers RDMA only: %s", b->session->peer->name,
				    b->best == MC_ROUTE_RDMA
					? "register the local memory"
					: "it shows no key for this range, or no path is left");
			return -MC_E_UNSUPPORTED;
		}
		rc = frag_add(b, t, local, raddr, n);
		if (rc < 0)
			return rc;
		local += n;
		raddr += n;
		len -= n;
	}
	return 0;
}

/* Walk both lists of ranges; each step takes what both have in one piece. */
static int transfer_add(struct build *b, uint32_t t, const struct mc_transfer *x)
{
	uint32_t li = 0, ri = 0;
	uint64_t lo = 0, ro = 0;

	b->t_at = 0;
	while (ri < x->nremote) {
		const struct mc_iov *r = &x->remote[ri], *l;
		uint64_t n;
		int rc;

		if (ro == r->len) {
			ri++;
			ro = 0;
			continue;
		}
		l = &x->local[li]; /* sums are equal: there is one */
		if (lo == l->len) {
			li++;
			lo = 0;
			continue;
		}
		n = mc_min(r->len - ro, l->len - lo);
		rc = range_add(b, t, l->addr + lo, r->addr + ro, n);
		if (rc != 0)
			return rc;
		lo += n;
		ro += n;
	}
	return 0;
}

/* ---- signals ---- */

/* The end of the last slice becomes one of its own, which waits for the rest. @return it, or NULL:
 * out of memory */
static int tail_cut(struct build *b, uint32_t t, struct mc_eslice **ret_tail)
{
	struct mc_gop *op = b->op;
	struct mc_eslice *whole = b->slice, *tail;
	struct mc_frag *f = &op->frags[op->nfrags - 1];
	uint64_t cut = f->len > TAIL_BYTES ? TAIL_BYTES : f->len;
	size_t at = op->nslices - 1;
	int rc;

	mc_assert(whole);
	if (f->len > TAIL_BYTES || whole->s.nfrags > 1) {
		rc = slice_open(b, t);
		if (rc < 0)
			return rc;
		whole = &op->slices[at]; /* the array may have moved */
		tail = b->slice;
		tail->t_at -= cut;
		if (f->len > TAIL_BYTES) {
			rc = array_grow(&op->frags, &op->frags_cap, op->nfrags + 1,
					MC_GROUP_FRAGS_MAX, sizeof(*op->frags));
			if (rc < 0)
				return rc;
			f = &op->frags[op->nfrags - 1];
			f->len -= cut;
			op->frags[op->nfrags++] = (struct mc_frag){.local = f->local + f->len,
								   .raddr = f->raddr + f->len,
								   .len = cut,
								   .rr = f->rr};
		} else {
			whole->s.nfrags--;
		}
		whole->s.len -= cut;
		tail->s.frags = (struct mc_frag *)(op->nfrags - 1);
		tail->s.nfrags = 1;
		tail->s.len = cut;
		op->t[t].slices_left++;
	}
	*ret_tail = b->slice;
	return 0;
}

/* The peer's transport stores no signals: a write of eight bytes, after the others. */
static int bare_add(struct build *b, uint32_t t, struct mc_gsignal *sig,
		    const struct mc_remote_region *rr, struct mc_eslice **ret_bare)
{
	struct mc_gop *op = b->op;
	int rc;

	b->route = mc_route_choose(b->session, rr, &b->rails);
	if (b->route == MC_ROUTE_RDMA) /* the eight bytes are in no registered range */
		b->route = MC_ROUTE_TCP;
	rc = slice_open(b, t);
	if (rc == 0)
		rc = array_grow(&op->frags, &op->frags_cap, op->nfrags + 1, MC_GROUP_FRAGS_MAX,
				sizeof(*op->frags));
	if (rc < 0)
		return rc;
	op->frags[op->nfrags++] = (struct mc_frag){.local = (uint8_t *)&sig->value,
						   .raddr = sig->addr,
						   .len = sizeof(sig->value),
						   .rr = rr};
	b->slice->s.op = MC_OP_WRITE;
	b->slice->s.nfrags = 1;
	b->slice->s.len = sizeof(sig->value);
	b->slice->is_bare = true;
	op->t[t].slices_left++;
	*ret_bare = b->slice;
	return 0;
}

static int signal_region(struct build *b, const struct mc_gsignal *sig,
			 const struct mc_remote_region **ret_rr)
{
	const struct mc_remote_region *data = b->rr;
	int rc = b->session->kind == MC_PEER_FILE ? -MC_E_UNSUPPORTED
						  : fence_check(b, sig->addr, sizeof(uint64_t));

	if (rc == 0)
		rc = region_find(b, sig->addr, sizeof(uint64_t));
	*ret_rr = b->rr;
	b->rr = data;
	if (rc == 0 && sizeof(uint64_t) > (*ret_rr)->len - (sig->addr - (*ret_rr)->addr))
		rc = -MC_E_RANGE;
	if (rc < 0)
		mc_diag_set(b->diag, "%s: signal to 0x%llx: %s", b->session->peer->name,
			    (unsigned long long)sig->addr, mc_err_text(rc));
	return rc;
}

/*
 * The transfer has its slices, the last of which is open and holds nothing else. A transport that
 * knows signals takes the signal with the last bytes of the transfer; where there are more slices,
 * these bytes wait until the others are done, over whatever ways.
 */
static int signal_add(struct build *b, uint32_t t)
{
	struct mc_gop *op = b->op;
	struct mc_gsignal *sig = &op->signals[op->t[t].signal - 1];
	const struct mc_remote_region *rr;
	enum mc_route route = b->route;
	struct mc_eslice *es = b->slice;
	uint32_t rails = UINT32_MAX;
	int rc = signal_region(b, sig, &rr);

	if (rc != 0)
		return rc;
	/* What one transport reaches and the other does not, TCP does. */
	if (route != MC_ROUTE_STAGED && (mc_route_choose(b->session, rr, &rails) != route ||
					 (route == MC_ROUTE_RDMA && (rails & b->rails) == 0)))
		route = MC_ROUTE_TCP;
	if (!mc_route_has_signal(b->session, route))
		rc = bare_add(b, t, sig, rr, &es);
	else if (op->t[t].slices_left > 1)
		rc = tail_cut(b, t, &es);
	if (rc < 0)
		return rc;
	mc_assert(es);
	if (!es->is_bare) {
		es->route = route;
		es->rails &= rails;
		es->s.signal =
		    (struct mc_signal){.rr = rr, .raddr = sig->addr, .value = sig->value};
	}
	es->is_signal = true;
	es->is_held = op->t[t].slices_left > 1;
	sig->held = es->is_held ? (uint32_t)(es - op->slices) + 1 : 0;
	slice_close(b);
	b->rr = NULL; /* the next fragment chooses its route again */
	return 0;
}

/* ---- requests ---- */

/* Ask the peer for all ranges of a transfer at once before they are looked up one by one. */
static int prefetch(struct build *b, const struct mc_transfer *x)
{
	if (b->until_ns == 0 || b->session->kind != MC_PEER_OURS || x->nremote < 2)
		return 0;
	return mc_session_resolve(b->session, x->remote, x->nremote, b->until_ns);
}

static int session_find(struct build *b, int32_t segment, struct mc_session **ret)
{
	int rc;

	if (b->op->within) {
		*ret = b->op->within->session;
		mc_session_ref(*ret);
		return 0;
	}
	rc = mc_peer_by_id(b->op->eng, segment, &b->peer);
	if (rc < 0) {
		mc_diag_set(b->diag, "segment id %d is not open", segment);
		return rc;
	}
	*ret = mc_session_now(b->peer);
	if (*ret)
		return 0;
	if (b->until_ns == 0)
		return MUST_ASK;
	return mc_session_get(b->peer, b->until_ns, b->diag, ret);
}

static int transfers_add(struct build *b, const struct mc_group *g)
{
	int32_t segment = -1;
	int rc = 0;

	for (uint32_t t = 0; t < g->n && rc == 0; t++) {
		const struct mc_transfer *x = &g->transfers[t];

		if (b->op->t[t].len == 0)
			continue;
		if (x->op != (uint8_t)b->op->op || !b->session || x->segment != segment) {
			slice_close(b);
			b->op->op = (enum mc_op)x->op;
			if (b->session)
				mc_session_put(b->session);
			b->session = NULL;
			b->rr = NULL;
			rc = session_find(b, x->segment, &b->session);
			if (rc != 0)
				break;
			segment = x->segment;
		}
		rc = prefetch(b, x);
		if (b->op->t[t].signal)
			slice_close(b);
		if (rc == 0)
			rc = transfer_add(b, t, x);
		if (rc == 0 && b->op->t[t].signal)
			rc = signal_add(b, t);
	}
	if (rc == 0 && g->notify && g->n > 0)
		rc = session_find(b, g->transfers[0].segment, &b->op->notify_session);
	if (b->session)
		mc_session_put(b->session);
	return rc;
}

/* Indices become pointers, and the count-downs are set. */
static void finish(struct mc_gop *op)
{
	for (size_t i = 0; i < op->nslices; i++) {
		struct mc_eslice *es = &op->slices[i];

		es->s.frags = &op->frags[(size_t)es->s.frags];
		es->s.user = es;
		mc_list_init(&es->s.link);
		mc_list_init(&es->flying);
	}
	op->slices_left = (uint32_t)op->nslices;
	for (size_t t = 0; t < op->nt; t++)
		if (op->t[t].slices_left == 0)
			atomic_store_explicit(&op->t[t].is_done, true, memory_order_relaxed);
}

void mc_gop_unbuild(struct mc_gop *op)
{
	for (size_t i = 0; i < op->nslices; i++)
		mc_session_put(op->slices[i].session);
	op->nslices = op->nfrags = 0;
	for (size_t t = 0; t < op->nt; t++)
		op->t[t].slices_left = 0;
	if (op->notify_session)
		mc_session_put(op->notify_session);
	op->notify_session = NULL;
}

int mc_gop_build(struct mc_gop *op, const struct mc_group *g, uint64_t until_ns,
		 struct mc_diag *diag, struct mc_peer **ret_peer)
{
	struct build b = {.op = op, .diag = diag, .until_ns = until_ns};
	int rc;

	for (size_t t = 0; t < op->nt; t++)
		b.total += op->t[t].len; /* does not wrap: mc_gop_open() added them up */
	op->op = MC_OP_READ;
	rc = transfers_add(&b, g);
	*ret_peer = b.peer;
	if (rc == 0)
		finish(op);
	else
		mc_gop_unbuild(op);
	return rc;
}
