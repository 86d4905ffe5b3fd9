/*
 * codec.h: cursors over bytes, little-endian. The only way this project reads or writes binary
 * frames.
 *
 * A reader or writer that runs out sets `is_bad` and from then on returns zeros / writes nothing,
 * so a decoder is straight code with one check at the end. Nothing is copied by mc_rd_bytes():
 * views live as long as the input.
 */
#ifndef MC_BASE_CODEC_H
#define MC_BASE_CODEC_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct mc_rd {
	const uint8_t *at, *end;
	bool is_bad;
};

static inline struct mc_rd mc_rd_make(const void *data, size_t len_bytes)
{
	const uint8_t *at = data;

	return (struct mc_rd){.at = at, .end = len_bytes ? at + len_bytes : at}; /* NULL: empty */
}

static inline size_t mc_rd_left(const struct mc_rd *r)
{
	return (size_t)(r->end - r->at);
}

/** View of the next n bytes, or NULL (and bad) when fewer are left. */
static inline const uint8_t *mc_rd_bytes(struct mc_rd *r, size_t n)
{
	const uint8_t *p = r->at;

	if (r->is_bad || n > mc_rd_left(r)) {
		r->is_bad = true;
		return NULL;
	}
	r->at += n;
	return p;
}

#define MC_RD_FN(bits, load)                                                                       \
	static inline uint##bits##_t mc_rd_u##bits(struct mc_rd *r)                                \
	{                                                                                          \
		const uint8_t *p = mc_rd_bytes(r, bits / 8);                                       \
		uint##bits##_t v = 0;                                                              \
                                                                                                   \
		if (p)                                                                             \
			memcpy(&v, p, sizeof(v));                                                  \
		return load(v);                                                                    \
	}
MC_RD_FN(8, )
MC_RD_FN(16, le16toh)
MC_RD_FN(32, le32toh)
MC_RD_FN(64, le64toh)
#undef MC_RD_FN

/** True when every byte was consumed and none was missing. */
static inline bool mc_rd_is_done(const struct mc_rd *r)
{
	return !r->is_bad && r->at == r->end;
}

struct mc_wr {
	uint8_t *start, *at, *end;
	bool is_bad;
};

static inline struct mc_wr mc_wr_make(void *buf, size_t cap_bytes)
{
	uint8_t *at = buf;

	return (struct mc_wr){.start = at, .at = at, .end = cap_bytes ? at + cap_bytes : at};
}

static inline size_t mc_wr_len(const struct mc_wr *w)
{
	return (size_t)(w->at - w->start);
}

static inline void mc_wr_bytes(struct mc_wr *w, const void *data, size_t n)
{
	if (w->is_bad || n > (size_t)(w->end - w->at)) {
		w->is_bad = true;
		return;
	}
	if (n)
		memcpy(w->at, data, n);
	w->at += n;
}

#define MC_WR_FN(bits, store)                                                                      \
	static inline void mc_wr_u##bits(struct mc_wr *w, uint##bits##_t v)                        \
	{                                                                                          \
		v = store(v);                                                                      \
		mc_wr_bytes(w, &v, sizeof(v));                                                     \
	}
MC_WR_FN(8, )
MC_WR_FN(16, htole16)
MC_WR_FN(32, htole32)
MC_WR_FN(64, htole64)
#undef MC_WR_FN

#endif
