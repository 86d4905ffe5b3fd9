/*
 * tap.c: shows the bytes of a group to its caller as they pass through his thread: which transfer
 * they are of, and where in it.
 */
#include "engine/pump.h"

/* Where byte `at` of a slice is in its group: slices take the transfers in order. */
static uint32_t transfer_of(const struct mc_eslice *es, uint64_t at, uint64_t *ret_at)
{
	const struct mc_tstate *ts = es->op->t;
	uint32_t t = es->t_first;

	at += es->t_at;
	while (at >= ts[t].len)
		at -= ts[t++].len;
	*ret_at = at;
	return t;
}

static void copy(struct mc_slice *s, uint64_t at, void *dst, const void *src, size_t n)
{
	struct mc_eslice *es = mc_eslice_of(s);
	const struct mc_tap *tap = es->op->tap;
	uint32_t t = transfer_of(es, at, &at);

	es->is_shown = true;
	tap->copy(tap->user, t, at, dst, src, n);
}

static void passed(struct mc_slice *s, uint64_t at, uint64_t n)
{
	struct mc_eslice *es = mc_eslice_of(s);
	const struct mc_tap *tap = es->op->tap;
	uint64_t begin = 0, part, t_at;

	es->is_shown = true;
	for (const struct mc_frag *f = s->frags; n > 0; begin += f->len, f++) {
		uint32_t t;

		if (at - begin >= f->len)
			continue;
		part = mc_min(n, f->len - (at - begin));
		t = transfer_of(es, at, &t_at);
		tap->passed(tap->user, t, t_at, f->local + (at - begin), (size_t)part);
		at += part;
		n -= part;
	}
}

static const struct mc_slice_tap slice_tap = {copy, passed};

void mc_tap_set(struct mc_gop *op, const struct mc_tap *tap)
{
	op->tap = tap;
	for (size_t i = 0; tap && i < op->nslices; i++)
		if (!op->slices[i].is_bare)
			op->slices[i].s.tap = &slice_tap;
}

void mc_tap_again(struct mc_eslice *es)
{
	const struct mc_tap *tap = es->op->tap;

	es->is_shown = false;
	for (uint32_t t = es->t_first; t <= es->t_last; t++)
		tap->again(tap->user, t);
}
