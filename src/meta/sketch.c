/*
 * sketch.c: see sketch.h.
 */
#include "meta/sketch.h"

#include "base/mem.h"
#include "base/rand.h"

static void halve(struct mc_sketch *s)
{
	for (unsigned r = 0; r < MC_SKETCH_ROWS; r++)
		for (unsigned i = 0; i < MC_SKETCH_CELLS; i++)
			s->cell[r][i] /= 2;
	s->n = 0;
}

unsigned mc_sketch_add(struct mc_sketch *s, uint64_t hash)
{
	unsigned least = UINT8_MAX;
	uint64_t state = hash, mixed = mc_splitmix64(&state);
	uint8_t *at[MC_SKETCH_ROWS];

	_Static_assert(MC_SKETCH_ROWS * 16 <= 64 && MC_SKETCH_CELLS <= 65536,
		       "a row takes 16 bits of the hash");
	if (s->n++ == MC_SKETCH_AGE)
		halve(s);
	for (unsigned r = 0; r < MC_SKETCH_ROWS; r++) {
		at[r] = &s->cell[r][(mixed >> (16 * r)) % MC_SKETCH_CELLS];
		least = mc_min(least, (unsigned)*at[r]);
	}
	if (least == UINT8_MAX)
		return least;
	/* Only those that say the least: the others count for other keys, too. */
	for (unsigned r = 0; r < MC_SKETCH_ROWS; r++)
		if (*at[r] == least)
			(*at[r])++;
	return least + 1;
}
