/*
 * net_agree.c: how far did a dead rank get? On one host its frozen word says so; here each rank has
 * a word of it that connections brought, and what they lost is different for each.
 *
 * Whoever misses something of a dead rank stops taking words of it (cut), and tells everybody how
 * far it has it, with the small contents; whoever is told does the same. The set of the dead that a
 * rank told of is the ballot: it only grows, and what is decided is decided from what all who live
 * have told for the same set. A rank that has decided before says so (final), and that is repeated.
 *
 * The decision: the furthest word that anybody has. A round whose input is small is complete where
 * anybody has it, and the others get it with what was told. A large one counts where everybody who
 * lives has all of it: nobody has ended such a round before (mc_coll_round_confirm()).
 *
 * A death that its host proved needs no more. For a host that is only silent the decision needs
 * more than half of those who are not proved dead; less than that, and the group is broken here.
 */
#include <string.h>

#include "base/clock.h"
#include "coll/net.h"

enum { FLAG_PROVED = 1, FLAG_FINAL = 2, FLAG_COMPLETE = 4 };

#define ENTRY_MAX (4u + 4u + 3u * 8u + 2u * (16u + MC_COLL_ROUND_MAX))

/* ---- frames: the last change, then entries of the dead ---- */

static size_t last_len(const struct mc_coll *g)
{
	return 24 + 8 * (size_t)g->ranks_max;
}

static bool entry_read(struct mc_rd *r, struct mc_coll_word_of *e)
{
	uint32_t flags;

	*e = (struct mc_coll_word_of){0};
	e->slot = mc_rd_u32(r);
	flags = mc_rd_u32(r);
	e->is_proved = flags & FLAG_PROVED;
	e->is_final = flags & FLAG_FINAL;
	e->is_complete = flags & FLAG_COMPLETE;
	e->inc = mc_rd_u64(r);
	e->word = mc_rd_u64(r);
	e->since = mc_rd_u64(r);
	for (int i = 0; i < 2; i++) {
		e->slot_seq[i] = mc_rd_u64(r);
		e->len[i] = mc_rd_u64(r);
		e->bytes[i] = e->len[i] <= MC_COLL_ROUND_MAX ? mc_rd_bytes(r, e->len[i]) : NULL;
		if (e->len[i] > MC_COLL_ROUND_MAX)
			r->is_bad = true;
	}
	return !r->is_bad && e->slot < MC_COLL_RANKS_MAX;
}

/* What `told` says of one incarnation. */
static bool told_of(const uint8_t *told, size_t len, size_t skip, uint32_t slot, uint64_t inc,
		    struct mc_coll_word_of *ret)
{
	struct mc_rd r = mc_rd_make(told, len);

	(void)mc_rd_bytes(&r, skip);
	while (told && mc_rd_left(&r) > 0 && entry_read(&r, ret))
		if (ret->slot == slot && ret->inc == inc)
			return true;
	return false;
}

static bool is_complete(const struct mc_coll_page *page, uint64_t word)
{
	uint64_t len = page->call[mc_coll_parity(word >> MC_COLL_STEP_BITS)].len;

	return (word & MC_COLL_STEP_DONE) >= 1 + (len + MC_COLL_CHUNK - 1) / MC_COLL_CHUNK;
}

static void entry_write(struct mc_str *out, const struct mc_coll_peer *p)
{
	const struct mc_coll_wire *wire = p->wire;
	uint64_t word = atomic_load_explicit(&p->page->word, memory_order_acquire);
	bool is_left = atomic_load_explicit(&p->page->state, memory_order_acquire) == MC_COLL_LEFT;
	uint8_t bytes[ENTRY_MAX], content[MC_COLL_ROUND_MAX];
	struct mc_wr w = mc_wr_make(bytes, sizeof(bytes));
	uint32_t flags = 0;

	if (atomic_load_explicit(&wire->fate, memory_order_acquire) == MC_COLL_DEAD)
		flags |= FLAG_PROVED;
	if (wire->is_decided || is_left)
		flags |= FLAG_FINAL | FLAG_PROVED;
	if (is_complete(p->page, word))
		flags |= FLAG_COMPLETE;
	mc_wr_u32(&w, p->slot);
	mc_wr_u32(&w, flags);
	mc_wr_u64(&w, p->inc);
	mc_wr_u64(&w, word);
	mc_wr_u64(&w, mc_coll_view_since(p->coll));
	for (unsigned i = 0; i < 2; i++) {
		struct mc_wr c = mc_wr_make(content, sizeof(content));

		if (wire->slot_seq[i])
			mc_coll_content_write(&c, p->page, i, p->coll->ranks_max);
		mc_wr_u64(&w, wire->slot_seq[i]);
		mc_wr_u64(&w, mc_wr_len(&c));
		mc_wr_bytes(&w, content, mc_wr_len(&c));
	}
	(void)mc_str_append(out, bytes, mc_wr_len(&w));
}

/* ---- who is asked ---- */

/* Under g->lock. */
static struct mc_coll_peer *member(struct mc_coll *g, uint32_t slot)
{
	const struct mc_coll_change *c = mc_coll_last_change(g);
	struct mc_coll_peer *next = g->next[slot];

	if (c && next && c->inc[slot] == next->inc)
		return next;
	return g->cur[slot];
}

struct mc_coll_peer *mc_coll_view_peer(struct mc_coll *g, uint32_t slot)
{
	struct mc_coll_peer *p;

	pthread_mutex_lock(&g->lock);
	p = mc_coll_active(g) & MC_COLL_BIT(slot) ? member(g, slot)
	    : g->next[slot]			  ? g->next[slot]
						  : g->cur[slot];
	pthread_mutex_unlock(&g->lock);
	return p;
}

static bool is_lost(const struct mc_coll_peer *p)
{
	return atomic_load_explicit(&p->wire->fate, memory_order_acquire) != MC_COLL_LIVES;
}

/* Members that live: all must have told. Under g->lock. */
static uint64_t living(struct mc_coll *g, uint64_t members)
{
	uint64_t out = 0;
	unsigned s;

	mc_coll_each(s, members & ~MC_COLL_BIT(g->rank))
	{
		struct mc_coll_peer *p = member(g, s);

		if (p && !p->wire->is_cut && !mc_coll_peer_is_gone(p))
			out |= MC_COLL_BIT(s);
	}
	return out;
}

static void cut(struct mc_coll_peer *p)
{
	struct mc_coll_net *net = p->coll->net;

	if (p->wire->is_cut)
		return;
	p->wire->is_cut = true;
	atomic_store_explicit(&net->is_frozen, true, memory_order_release);
	atomic_store_explicit(&net->is_telling, true, memory_order_release);
}

void mc_coll_agree_need(struct mc_coll_peer *p)
{
	struct mc_coll *g = p->coll;
	bool is_new;

	pthread_mutex_lock(&g->net->lock);
	is_new = !p->wire->is_cut;
	cut(p);
	pthread_mutex_unlock(&g->net->lock);
	if (is_new)
		mc_coll_net_kick(g);
}

/* ---- deciding; under both locks ---- */

struct votes {
	struct mc_coll_word_of of[MC_COLL_RANKS_MAX + 1]; /* the last one: this rank's */
	unsigned n;
};

static void own_vote(const struct mc_coll_peer *d, struct mc_coll_word_of *ret)
{
	uint64_t word = atomic_load_explicit(&d->page->word, memory_order_acquire);

	*ret = (struct mc_coll_word_of){
	    .slot = d->slot,
	    .inc = d->inc,
	    .word = word,
	    .since = mc_coll_view_since(d->coll),
	    .is_proved = atomic_load_explicit(&d->wire->fate, memory_order_acquire) == MC_COLL_DEAD,
	    .is_final = atomic_load_explicit(&d->page->state, memory_order_acquire) == MC_COLL_LEFT,
	    .is_complete = is_complete(d->page, word),
	    .slot_seq = {d->wire->slot_seq[0], d->wire->slot_seq[1]},
	};
	if (ret->is_final)
		ret->is_proved = true;
}

/* @return false: somebody has not told of this one yet */
static bool collect(struct mc_coll *g, uint64_t live, const struct mc_coll_peer *d, struct votes *v)
{
	unsigned s;

	v->n = 0;
	mc_coll_each(s, live)
	{
		const struct mc_coll_wire *wire = member(g, s)->wire;

		if (!told_of(wire->told, wire->told_len, last_len(g), d->slot, d->inc,
			     &v->of[v->n]))
			return false;
		v->n++;
	}
	own_vote(d, &v->of[v->n++]);
	return true;
}

/* What somebody has of the last two rounds, and we have not. */
static void install(struct mc_coll_peer *d, const struct votes *v)
{
	struct mc_coll *g = d->coll;

	for (unsigned i = 0; i < v->n; i++) {
		const struct mc_coll_word_of *e = &v->of[i];

		for (unsigned k = 0; k < 2; k++) {
			if (e->len[k] == 0 || e->slot_seq[k] <= d->wire->slot_seq[k] ||
			    mc_coll_content_read(d->page, k, e->bytes[k], e->len[k], g->ranks_max,
						 g->scratch_max) < 0)
				continue;
			d->wire->slot_seq[k] = d->page->call[k].seq = e->slot_seq[k];
		}
	}
}

static uint64_t decision(const struct mc_coll_peer *d, const struct votes *v)
{
	uint64_t word = 0, seq, len;
	bool has_all = true;

	for (unsigned i = 0; i < v->n; i++) {
		if (v->of[i].is_final)
			return v->of[i].word;
		word = mc_max(word, v->of[i].word);
	}
	seq = word >> MC_COLL_STEP_BITS;
	if ((word & MC_COLL_STEP_DONE) == 0 || d->wire->slot_seq[mc_coll_parity(seq)] != seq)
		return mc_coll_word(seq, 0);
	len = d->page->call[mc_coll_parity(seq)].len;
	for (unsigned i = 0; i < v->n; i++) {
		/* Who was not in that operation has nothing of it. */
		if (seq >> MC_COLL_ROUND_BITS < v->of[i].since)
			continue;
		has_all &= v->of[i].word >> MC_COLL_STEP_BITS == seq && v->of[i].is_complete;
	}
	if (len <= MC_COLL_SMALL || has_all)
		return mc_coll_word(seq, MC_COLL_STEP_DONE);
	return mc_coll_word(seq, 0);
}

static void decide(struct mc_coll_peer *d, const struct votes *v)
{
	install(d, v);
	d->wire->is_decided = true;
	atomic_store_explicit(&d->page->word, decision(d, v), memory_order_release);
	/* release: pairs with the acquire in mc_coll_peer_is_gone() */
	atomic_store_explicit(&d->is_dead, true, memory_order_release);
}

static bool is_proved(const struct votes *v)
{
	for (unsigned i = 0; i < v->n; i++)
		if (v->of[i].is_proved)
			return true;
	return false;
}

/* All who live have told of all that were cut: one round of decisions. @return an error that breaks
 * the group; 0: not yet; 1 */
static int conclude(struct mc_coll *g, uint64_t members, uint64_t live)
{
	struct mc_coll_peer *d;
	uint64_t proved = 0, silent = 0;
	struct votes v;

	mc_list_each (d, &g->peers, link) {
		if (!d->wire || !d->wire->is_cut || d->wire->is_decided)
			continue;
		if (!collect(g, live, d, &v))
			return 0;
		if (is_proved(&v))
			proved |= MC_COLL_BIT(d->slot);
		else
			silent |= MC_COLL_BIT(d->slot);
	}
	if (silent &&
	    2 * (__builtin_popcountll(live) + 1) <= __builtin_popcountll(members & ~proved)) {
		mc_diag_set(&g->diag,
			    "group %s: the hosts of ranks %llx (bits) are silent, and those that "
			    "answer are no majority",
			    g->name, (unsigned long long)silent);
		return -MC_E_PEER_DEAD;
	}
	mc_list_each (d, &g->peers, link) {
		if (!d->wire || !d->wire->is_cut || d->wire->is_decided)
			continue;
		(void)collect(g, live, d, &v); /* as above */
		decide(d, &v);
	}
	atomic_store_explicit(&g->net->is_frozen, false, memory_order_release);
	return 1;
}

/* ---- telling, on the loop ---- */

static void tell(struct mc_coll *g)
{
	uint8_t last[24 + 8 * MC_COLL_RANKS_MAX];
	struct mc_wr w = mc_wr_make(last, sizeof(last));
	struct mc_coll_peer *p;
	struct mc_str out;
	unsigned n = 0;

	mc_str_init(&out, MC_COLL_CTL_MAX);
	mc_coll_view_last(g, &w);
	(void)mc_str_append(&out, last, mc_wr_len(&w));
	pthread_mutex_lock(&g->net->lock);
	mc_list_each (p, &g->peers, link)
		if (p->wire && p->wire->is_cut && n++ < MC_COLL_TOLD_MAX)
			entry_write(&out, p);
	pthread_mutex_unlock(&g->net->lock);
	mc_list_each (p, &g->peers, link)
		if (p->wire && !atomic_load_explicit(&p->is_dead, memory_order_relaxed))
			mc_coll_ctl_send(p, MC_COLL_CTL_TOLD, out.text, out.len);
	mc_str_fini(&out);
}

/* The dead that no operation counts on need no agreement. */
static void bury(struct mc_coll *g, uint64_t members)
{
	struct mc_coll_board *board = atomic_load_explicit(&g->board, memory_order_acquire);
	struct mc_coll_peer *p;

	mc_list_each (p, &g->peers, link) {
		if (!p->wire || !is_lost(p) || mc_coll_peer_is_gone(p))
			continue;
		if (members & MC_COLL_BIT(p->slot) && member(g, p->slot) == p) {
			/* Who has to tell and cannot is dead for this question, too; and who holds
			 * the gate would keep it closed. */
			if (atomic_load_explicit(&g->net->is_frozen, memory_order_relaxed) ||
			    atomic_load_explicit(&board->gate, memory_order_relaxed) == p->slot + 1)
				cut(p);
		} else if (!p->wire->is_cut) {
			atomic_store_explicit(&p->is_dead, true, memory_order_release);
		}
	}
}

void mc_coll_agree_turn(struct mc_coll *g)
{
	uint64_t members = mc_coll_active(g);
	bool is_telling;
	int rc = 0;

	/* Not all founders have met: nobody has run anything, and who is in is not known here. */
	if (members == 0)
		return;
	pthread_mutex_lock(&g->lock);
	pthread_mutex_lock(&g->net->lock);
	bury(g, members);
	is_telling = atomic_exchange_explicit(&g->net->is_telling, false, memory_order_acq_rel);
	pthread_mutex_unlock(&g->net->lock);
	pthread_mutex_unlock(&g->lock);
	if (is_telling)
		tell(g);
	pthread_mutex_lock(&g->lock);
	pthread_mutex_lock(&g->net->lock);
	if (atomic_load_explicit(&g->net->is_frozen, memory_order_relaxed))
		rc = conclude(g, members, living(g, members));
	pthread_mutex_unlock(&g->net->lock);
	pthread_mutex_unlock(&g->lock);
	if (rc < 0)
		mc_coll_net_break(g, rc);
	if (rc <= 0)
		return;
	mc_coll_stir(g);
	mc_coll_net_kick(g); /* a change may have waited for it */
}

/* ---- being told, on the loop ---- */

static struct mc_coll_peer *peer_of(struct mc_coll *g, uint32_t slot, uint64_t inc)
{
	struct mc_coll_peer *p;

	mc_list_each (p, &g->peers, link) {
		if (p->slot == slot && p->inc == inc && p->wire)
			return p;
	}
	return NULL;
}

/* A joiner that nobody has taken in has no part in what is agreed on. */
static bool is_outside(struct mc_coll *g)
{
	return mc_coll_active(g) == MC_COLL_BIT(g->rank);
}

/* @return false: it broke the protocol */
static bool hear(struct mc_coll_peer *p, const uint8_t *bytes, size_t len)
{
	struct mc_coll *g = p->coll;
	struct mc_rd r = mc_rd_make(bytes, len);
	struct mc_coll_word_of e;

	/* Nobody acts by it before the others have it: to write it down early does no harm. */
	if (!mc_coll_view_adopt(g, &r))
		return false;
	p->wire->is_unheard = is_outside(g);
	if (p->wire->is_unheard)
		return true;
	while (mc_rd_left(&r) > 0) {
		struct mc_coll_peer *d;

		if (!entry_read(&r, &e))
			return false;
		if (e.slot == g->rank && e.inc == g->inc) {
			/* It has given us up: so do we it, and the majority will be right. */
			if (!is_lost(p))
				atomic_store_explicit(&p->wire->fate, MC_COLL_SILENT,
						      memory_order_release);
			cut(p);
			continue;
		}
		d = peer_of(g, e.slot, e.inc);
		if (d && d->wire->is_decided && !e.is_final) /* it does not know yet */
			atomic_store_explicit(&g->net->is_telling, true, memory_order_release);
		if (!d || d->wire->is_decided)
			continue;
		if (e.is_proved)
			atomic_store_explicit(&d->wire->fate, MC_COLL_DEAD, memory_order_release);
		cut(d);
	}
	return true;
}

/* What came while this rank was outside, once it is not: somebody's change has come with it. Under
 * both locks. */
static void hear_again(struct mc_coll *g)
{
	struct mc_coll_peer *p;

	if (is_outside(g))
		return;
	mc_list_each (p, &g->peers, link) {
		if (p->wire && p->wire->is_unheard && !p->wire->is_cut)
			(void)hear(p, p->wire->told, p->wire->told_len); /* it was read before */
	}
}

void mc_coll_agree_told(struct mc_coll_peer *p, const uint8_t *bytes, size_t len)
{
	struct mc_coll *g = p->coll;
	uint8_t *copy = mc_calloc(1, len + 1);
	bool is_good, is_cut;

	if (!copy) {
		mc_coll_net_break(g, -MC_E_NOMEM);
		return;
	}
	memcpy(copy, bytes, len);
	pthread_mutex_lock(&g->lock);
	pthread_mutex_lock(&g->net->lock);
	/* What the dead say does not count any more. */
	is_cut = p->wire->is_cut;
	is_good = is_cut || hear(p, bytes, len);
	if (!is_cut && is_good) {
		mc_free(p->wire->told);
		p->wire->told = copy;
		p->wire->told_len = len;
		copy = NULL;
	}
	hear_again(g);
	pthread_mutex_unlock(&g->net->lock);
	pthread_mutex_unlock(&g->lock);
	mc_free(copy);
	if (!is_good)
		mc_coll_ctl_lost(p);
	else
		mc_coll_agree_turn(g);
}
