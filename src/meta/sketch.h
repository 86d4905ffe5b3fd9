/*
 * sketch.h: about how often a key was named lately, for any number of keys in little memory: never
 * less than it was, rarely more. Everything is halved now and then, so the past fades. Pure.
 *
 * Source: count-min sketch (G. Cormode, S. Muthukrishnan, 2005), aged as in TinyLFU (G. Einziger,
 * R. Friedman, B. Manes, 2017).
 */
#ifndef MC_META_SKETCH_H
#define MC_META_SKETCH_H

#include <stdint.h>

#define MC_SKETCH_ROWS 4u
#define MC_SKETCH_CELLS 4096u
#define MC_SKETCH_AGE (10u * MC_SKETCH_CELLS) /* keys named between two halvings */

/** Zeroed: nothing was named. 16 KiB */
struct mc_sketch {
	uint8_t cell[MC_SKETCH_ROWS][MC_SKETCH_CELLS];
	uint32_t n; /* since the last halving */
};

/** It is named once more. @return how often, this time included; 255 at most */
unsigned mc_sketch_add(struct mc_sketch *s, uint64_t hash);

#endif
