/*
 * kernels_step.h: words and slots, as step.c has them, for GPUs: showing, waiting, who is left out.
 *
 * Written in what C and CUDA's C++ have in common, so that the same text runs on GPUs (kernels.cu)
 * and, block after block, on the processor (tests/fake), where every test can be run. Whoever
 * includes it says what is different there: MC_KERNEL, MC_DEV, MC_SHARED; MC_EACH(i, n), a loop
 * whose steps the threads of a block share; MC_SYNC(), between two such loops; what stands outside
 * of them is done by all threads alike. gpu_*(): memory that other ranks see.
 */
#ifndef MC_EP_KERNELS_STEP_H
#define MC_EP_KERNELS_STEP_H

#include <mooncake/err.h>

#include "ep/gpu_abi.h"

#define MC_EPK_LOOKS 32u /* at memory of GPUs, between two at the host's */

enum { MC_EPK_THERE = 1, MC_EPK_GONE };

MC_DEV struct mc_epk_page *page_of(const struct mc_epk_half *h, uint32_t q)
{
	return (struct mc_epk_page *)(uintptr_t)h->window[q];
}

MC_DEV uint8_t *slot_of(const struct mc_epk_half *h, uint32_t q)
{
	return (uint8_t *)(uintptr_t)h->window[q] + MC_EPK_PAGE_LEN + h->slot * h->span;
}

MC_DEV int is_in(uint64_t ranks, uint32_t q)
{
	return (int)(ranks >> q & 1);
}

/* The first thing that goes wrong is told. */
MC_DEV void fail(const struct mc_epk_half *h, int32_t rc, uint32_t what, uint32_t who)
{
	if (h->ctl->rc == 0) {
		h->ctl->rc = rc;
		h->ctl->what = what;
		h->ctl->who = who;
	}
}

/* ---- waiting for one rank ---- */

/* Decide for everybody whether the rank has shown `target`. */
MC_DEV int freeze(const struct mc_epk_half *h, uint32_t q, uint64_t target)
{
	uint64_t epoch = mc_ep_epoch_of(h->word), *word = &page_of(h, q)->word;
	uint64_t v = gpu_load(word), seen, to;

	for (;;) {
		if (mc_ep_epoch_of(v) > epoch)
			return -MC_E_STALE;
		if (mc_ep_epoch_of(v) == epoch && v >= target)
			return MC_EPK_THERE;
		if (mc_ep_epoch_of(v) == epoch && (v & MC_EP_FROZEN))
			return MC_EPK_GONE;
		to = mc_ep_epoch_of(v) == epoch ? v : epoch << MC_EP_EPOCH_BITS;
		seen = gpu_cas(word, v, to | MC_EP_FROZEN);
		if (seen == v)
			return MC_EPK_GONE;
		v = seen;
	}
}

/* What the host says, and the clock. 0: wait on. */
MC_DEV int look_up(const struct mc_epk_half *h, uint32_t q, uint64_t shown, uint64_t from_ns)
{
	uint64_t past_ns = gpu_now_ns() - from_ns;

	if (is_in(gpu_load(&h->host->gone), q) ||
	    (h->timeout_ns <= h->group_ns && past_ns >= h->timeout_ns))
		return freeze(h, q, shown);
	if (gpu_load(&h->host->stop))
		return -MC_E_CANCELED;
	return past_ns >= h->group_ns ? -MC_E_TIMEDOUT : 0;
}

/* Until `at`, in the rank's page, is `target`. @param shown  what its word must have been not to be
 * frozen; UINT64_MAX: nothing helps */
MC_DEV int wait_rank(const struct mc_epk_half *h, uint32_t q, uint64_t *at, uint64_t target,
		     uint64_t shown, uint64_t from_ns)
{
	uint64_t *word = &page_of(h, q)->word, epoch = mc_ep_epoch_of(h->word);
	int rc;

	for (uint32_t looks = 0;; looks++) {
		int is_there = gpu_load(at) >= target;
		uint64_t v = gpu_load(word);

		if (mc_ep_epoch_of(v) > epoch)
			return -MC_E_STALE;
		if (is_there)
			return MC_EPK_THERE;
		if (mc_ep_epoch_of(v) == epoch && (v & MC_EP_FROZEN))
			return freeze(h, q, shown);
		rc = looks % MC_EPK_LOOKS ? 0 : look_up(h, q, shown, from_ns);
		if (rc)
			return rc;
		gpu_nap();
	}
}

/* By rank: what came of waiting; 0: it was not waited for. The first error is the half's, an
 * INVAL after the others. One thread. */
MC_DEV void fold(const struct mc_epk_half *h, const int *verdict)
{
	uint64_t lost = 0, taken = 1ull << h->me;
	int worst = 0;

	for (uint32_t q = 0; q < h->call.ranks; q++) {
		int v = verdict[q];

		if (v == MC_EPK_GONE)
			lost |= 1ull << q;
		if (v == MC_EPK_THERE || v == -MC_E_INVAL)
			taken |= 1ull << q;
		if (v < 0 && (worst == 0 || worst == -MC_E_INVAL)) {
			worst = worst == v ? worst : v;
			h->ctl->who = q;
		}
	}
	h->ctl->taken = taken;
	h->ctl->lost |= lost;
	if (worst < 0)
		fail(h, worst,
		     worst == -MC_E_STALE   ? MC_EPK_BAD_OUT
		     : worst == -MC_E_INVAL ? MC_EPK_BAD_CALL
					    : MC_EPK_BAD_WAIT,
		     h->ctl->who);
}

/* ---- begin ---- */

MC_KERNEL(enter)
{
	struct mc_epk_ctl *ctl = h.ctl;
	MC_SHARED uint64_t bit[MC_EPK_RANKS_MAX];
	MC_SHARED int verdict[MC_EPK_RANKS_MAX];
	MC_SHARED uint64_t readers, from_ns;

	MC_EACH (q, MC_EPK_RANKS_MAX) {
		int is_on = q < h.call.ranks && is_in(h.members, q) &&
			    (h.active ? h.active[q] != 0 : is_in(h.mask, q));

		bit[q] = is_on || q == h.me ? 1ull << q : 0;
		verdict[q] = 0;
	}
	MC_SYNC();
	MC_EACH (i, 1) {
		uint64_t v = gpu_load(&page_of(&h, h.me)->word), wanted = 0;

		for (uint32_t q = 0; q < MC_EPK_RANKS_MAX; q++)
			wanted |= bit[q];
		ctl->wanted = wanted;
		ctl->taken = ctl->lost = 0;
		ctl->rc = 0;
		ctl->who = ctl->what = 0;
		if (mc_ep_epoch_of(v) != mc_ep_epoch_of(h.word) || (v & MC_EP_FROZEN))
			fail(&h, -MC_E_STALE, MC_EPK_BAD_OUT, h.me);
		/* Whom the caller does without now is not waited for. */
		readers = ctl->rc == 0 ? ctl->shown & wanted & ~(1ull << h.me) : 0;
		from_ns = gpu_now_ns();
	}
	MC_SYNC();
	MC_EACH (q, MC_EPK_RANKS_MAX) {
		if (is_in(readers, q))
			verdict[q] = wait_rank(&h, q, &page_of(&h, q)->done[h.slot],
					       ctl->shown_word, UINT64_MAX, from_ns);
	}
	MC_SYNC();
	MC_EACH (i, 1) {
		fold(&h, verdict);
		if (ctl->rc == 0) {
			/* Before the first byte is: pairs with the fence in finish. */
			gpu_store(&page_of(&h, h.me)->tag[h.slot], 0);
			ctl->shown = 0;
		}
		gpu_fence();
	}
}

/* The own word from now on; a rank whose begin went wrong is out: it has not shown what the others
 * wait for, and will not. */
MC_DEV void move_on(const struct mc_epk_half *h)
{
	struct mc_epk_page *page = page_of(h, h->me);
	uint64_t v = gpu_load(&page->word), seen;

	if (h->ctl->rc == 0)
		gpu_store(&page->tag[h->slot], h->word);
	for (;;) {
		if (mc_ep_epoch_of(v) != mc_ep_epoch_of(h->word) || (v & MC_EP_FROZEN)) {
			fail(h, -MC_E_STALE, MC_EPK_BAD_OUT, h->me);
			return;
		}
		/* release: the slot */
		seen = gpu_cas(&page->word, v, h->ctl->rc ? v | MC_EP_FROZEN : h->word);
		if (seen == v)
			break;
		v = seen;
	}
	if (h->ctl->rc == 0) {
		h->ctl->shown = h->ctl->wanted;
		h->ctl->shown_word = h->word;
	}
}

MC_KERNEL(publish)
{
	uint8_t *slot = slot_of(&h, h.me);
	struct mc_ep_head *head = (struct mc_ep_head *)slot;
	uint32_t *first = (uint32_t *)(slot + h.first_at);

	if (h.call.kind == MC_EP_DISPATCH) {
		MC_EACH (e, h.call.experts + 1)
			first[e] = h.first[e];
	}
	MC_EACH (i, 1) {
		head->call = h.call;
		head->tokens = h.tokens;
	}
	gpu_fence();
	MC_SYNC();
	MC_EACH (i, 1)
		move_on(&h);
}

/* ---- end ---- */

MC_DEV int check_head(const struct mc_epk_half *h, uint32_t q)
{
	const struct mc_ep_head *head = (const struct mc_ep_head *)slot_of(h, q);
	const uint32_t *theirs = (const uint32_t *)&head->call, *ours = (const uint32_t *)&h->call;

	for (uint32_t i = 0; i < sizeof(h->call) / sizeof(*ours); i++)
		if (theirs[i] != ours[i])
			return -MC_E_INVAL;
	return head->tokens > h->call.tokens_max ? -MC_E_INVAL : MC_EPK_THERE;
}

MC_KERNEL(wait)
{
	struct mc_epk_ctl *ctl = h.ctl;
	MC_SHARED int verdict[MC_EPK_RANKS_MAX];
	MC_SHARED uint64_t from_ns;

	if (ctl->rc)
		return;
	MC_EACH (i, 1)
		from_ns = gpu_now_ns();
	MC_SYNC();
	MC_EACH (q, MC_EPK_RANKS_MAX) {
		verdict[q] = 0;
		if (is_in(ctl->wanted, q) && q != h.me) {
			verdict[q] =
			    wait_rank(&h, q, &page_of(&h, q)->word, h.word, h.word, from_ns);
			if (verdict[q] == MC_EPK_THERE)
				verdict[q] = check_head(&h, q);
		}
	}
	MC_SYNC();
	MC_EACH (i, 1)
		fold(&h, verdict);
}

/* Everything of a half that was shown after the word said so was somebody else's. */
MC_DEV void check_tags(const struct mc_epk_half *h)
{
	/* After the last byte was read: pairs with the fence in enter. */
	gpu_fence();
	for (uint32_t q = 0; q < h->call.ranks; q++) {
		if (q != h->me && is_in(h->ctl->taken, q) &&
		    gpu_load(&page_of(h, q)->tag[h->slot]) != h->word) {
			h->ctl->rc = -MC_E_STALE;
			h->ctl->what = MC_EPK_BAD_OUT;
			h->ctl->who = q;
		}
	}
}

MC_DEV void tell_host(const struct mc_epk_half *h)
{
	struct mc_epk_note *note = &h->host->note[h->slot];
	const struct mc_epk_ctl *ctl = h->ctl;

	note->taken = ctl->rc ? 0 : ctl->taken;
	note->lost = ctl->lost | (ctl->rc ? 0 : ctl->wanted & ~ctl->taken);
	note->rc = ctl->rc;
	note->who = ctl->who;
	note->what = ctl->what;
	note->is_out = (gpu_load(&page_of(h, h->me)->word) & MC_EP_FROZEN) != 0;
	gpu_fence();
	gpu_store(&note->word, h->word);
}

MC_KERNEL(finish)
{
	struct mc_epk_ctl *ctl = h.ctl;
	struct mc_epk_page *page = page_of(&h, h.me);

	MC_EACH (i, 1) {
		if (h.is_canceled)
			fail(&h, -MC_E_CANCELED, MC_EPK_BAD_NOTHING, h.me);
		if (ctl->rc == 0 || ctl->rc == -MC_E_INVAL)
			check_tags(&h);
		tell_host(&h);
		/* release: this rank has read what it wanted */
		if (mc_ep_epoch_of(gpu_load(&page->word)) == mc_ep_epoch_of(h.word))
			gpu_store(&page->done[h.slot], h.word);
	}
	MC_SYNC();
	MC_EACH (q, MC_EPK_RANKS_MAX) {
		if (ctl->rc == 0 && h.active && q < h.call.ranks && !is_in(ctl->taken, q))
			h.active[q] = 0;
	}
}

/* Enter an epoch, in which the word is that of no half; or say that this rank never comes. */
MC_KERNEL(word)
{
	uint64_t *word = &page_of(&h, h.me)->word;

	MC_EACH (i, 1) {
		uint64_t v = gpu_load(word), seen = ~v, to;

		h.ctl->rc = 0;
		while (seen != v) {
			if (!h.is_canceled && mc_ep_epoch_of(v) >= mc_ep_epoch_of(h.word)) {
				h.ctl->rc = -MC_E_STALE;
				break;
			}
			to = h.is_canceled ? v | MC_EP_FROZEN : h.word;
			seen = gpu_cas(word, v, to);
			if (seen == v)
				break;
			v = seen;
			seen = ~v;
		}
		h.host->note[h.slot].rc = h.ctl->rc;
		gpu_fence();
	}
}

#endif
