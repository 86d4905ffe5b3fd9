/*
 * layer.h: a layer of experts across processes, and the same sums in one process, for tests.
 */
#ifndef MC_TESTS_EP_LAYER_H
#define MC_TESTS_EP_LAYER_H

#include <mooncake/ep.h>

struct tokens {
	uint16_t *rows;
	int64_t *topk;
	float *weights;
	uint32_t *extra;
};

/** What a rank of the layer works with. */
struct layer {
	struct mc_ep *ep;
	struct mc_ep_shape shape;
	enum mc_ep_format format;
	uint32_t rank, le, groups;
	uint64_t room;
	struct mc_ep_arrived got;
	uint16_t *rows; /* bf16: what came, then what the experts made of it */
	uint16_t *out;
	uint64_t there, back; /* who was in the last dispatch and combine */
	struct mc_diag diag;
};

/** The tokens of a rank in a step: rank 1 of odd steps has none. */
struct tokens tokens_of(const struct mc_ep_shape *s, uint32_t rank, uint64_t step);
void tokens_free(struct tokens *t);

struct layer layer_of(struct mc_ep *ep, const struct mc_ep_shape *shape, uint32_t rank,
		      enum mc_ep_format format, bool is_packed);
void layer_free(struct layer *l);

/** Halves, in order. @return as mc_ep_dispatch_end() */
int layer_dispatch_begin(struct layer *l, const struct tokens *t,
			 const struct mc_ep_patience *patience, struct mc_ep_half **ret);
int layer_dispatch_end(struct layer *l, struct mc_ep_half *h);
/** Of a group of a row that came. */
float layer_scale(const struct layer *l, uint32_t expert, uint64_t at, uint32_t group);
/** To bf16, and through the experts of this rank. */
void layer_compute(struct layer *l);
int layer_combine_begin(struct layer *l, const struct tokens *t, bool is_kept,
			const struct mc_ep_patience *patience, struct mc_ep_half **ret);
int layer_combine_end(struct layer *l, const struct tokens *t, struct mc_ep_half *h);

/** Rows of the sources in l->there are their tokens in order, bit by bit, and nothing else. */
bool layer_has_arrived(const struct layer *l, uint64_t step);
/** The sums of one process, without the experts of slots that were not in both halves. */
bool layer_is_right(const struct layer *l, const struct tokens *t);

#endif
