/*
 * dlog_fix.c: bytes are a cheap function of their place, 8 at a time.
 */
#include "sim/dlog_fix.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rand.h"

#define EPOCH 7u

static uint64_t word_at(unsigned key, uint64_t gen, uint64_t at)
{
	uint64_t state = ((uint64_t)key << 40) ^ (gen << 20) ^ at;

	return mc_splitmix64(&state);
}

void dlog_fix_fill(uint8_t *to, unsigned key, uint64_t gen, uint64_t off, uint64_t len)
{
	for (uint64_t i = 0; i < len;) {
		uint64_t at = off + i, word = word_at(key, gen, at / 8), skip = at % 8;
		uint64_t n = mc_min(8 - skip, len - i);

		memcpy(to + i, (const uint8_t *)&word + skip, n);
		i += n;
	}
}

bool dlog_fix_is(const uint8_t *bytes, unsigned key, uint64_t gen, uint64_t off, uint64_t len)
{
	uint8_t want[4096];

	for (uint64_t i = 0, n; i < len; i += n) {
		n = mc_min(len - i, (uint64_t)sizeof(want));
		dlog_fix_fill(want, key, gen, off + i, n);
		if (memcmp(want, bytes + i, n) != 0)
			return false;
	}
	return true;
}

uint64_t dlog_fix_len(unsigned key, uint64_t gen)
{
	static const uint64_t lens[] = {1,     100,   4096,   700,    5000,   65535, 65536,
					65537, 70000, 200000, 262144, 131072, 0,     63};
	return lens[(key * 5 + gen * 3) % MC_ARRAY_LEN(lens)];
}

static void on_done(struct mc_dlog_op *op, int rc)
{
	struct dlog_fix_op *f = op->user;

	mc_assert(!f->is_done);
	f->is_done = true;
	f->rc = rc;
}

static void prepare(struct dlog_fix_op *op, unsigned key, uint64_t gen)
{
	*op = (struct dlog_fix_op){.key = key, .gen = gen};
	(void)snprintf(op->key_text, sizeof(op->key_text), "key-%u", key);
	op->op = (struct mc_dlog_op){.key = op->key_text,
				     .key_len = strlen(op->key_text),
				     .gen = {EPOCH, gen},
				     .on_done = on_done,
				     .user = op};
}

int dlog_fix_put(struct mc_dlog *log, struct dlog_fix_op *op, unsigned key, uint64_t gen,
		 uint64_t len)
{
	prepare(op, key, gen);
	op->payload = mc_aligned_alloc(4096, len + 1);
	mc_assert(op->payload);
	dlog_fix_fill(op->payload, key, gen, 0, len);
	op->iov = (struct iovec){op->payload, len};
	op->op.iov = &op->iov;
	op->op.niov = 1;
	op->op.tlv = op->key_text; /* any bytes will do */
	op->op.tlv_len = op->op.key_len;
	op->rc = mc_dlog_put(log, &op->op);
	op->is_done = op->rc < 0;
	return op->rc;
}

int dlog_fix_del(struct mc_dlog *log, struct dlog_fix_op *op, unsigned key, uint64_t gen)
{
	prepare(op, key, gen);
	op->is_del = true;
	op->rc = mc_dlog_del(log, &op->op);
	op->is_done = op->rc < 0;
	return op->rc;
}

void dlog_fix_end(struct dlog_fix_op *op)
{
	mc_free(op->payload);
	op->payload = NULL;
}

static int wait_for(struct mc_dlog *log, struct dlog_fix_op *op)
{
	while (!op->is_done)
		(void)mc_dlog_reap(log, 10 * MC_NS_PER_MS);
	dlog_fix_end(op);
	return op->rc;
}

int dlog_fix_put_wait(struct mc_dlog *log, unsigned key, uint64_t gen, uint64_t len)
{
	struct dlog_fix_op op;

	(void)dlog_fix_put(log, &op, key, gen, len); /* in op.rc, too */
	return wait_for(log, &op);
}

int dlog_fix_del_wait(struct mc_dlog *log, unsigned key, uint64_t gen)
{
	struct dlog_fix_op op;

	(void)dlog_fix_del(log, &op, key, gen);
	return wait_for(log, &op);
}

static int get(struct mc_dlog *log, unsigned key, uint64_t gen, uint64_t off, uint64_t len,
	       unsigned shift)
{
	uint8_t *buf = mc_aligned_alloc(4096, len + shift + 1);
	struct dlog_fix_op op;
	int rc;

	mc_assert(buf);
	prepare(&op, key, gen);
	op.iov = (struct iovec){buf + shift, len};
	op.op.iov = &op.iov;
	op.op.niov = 1;
	op.op.off = off;
	op.rc = mc_dlog_get(log, &op.op);
	op.is_done = op.rc < 0;
	rc = wait_for(log, &op);
	mc_assert(rc < 0 || dlog_fix_is(buf + shift, key, gen, off, len));
	mc_free(buf);
	return rc;
}

static int gen_of(struct mc_dlog *log, unsigned key, struct mc_dlog_info *ret_info)
{
	struct dlog_fix_op op;

	prepare(&op, key, 1);
	return mc_dlog_stat(log, op.key_text, op.op.key_len, ret_info);
}

int dlog_fix_get(struct mc_dlog *log, unsigned key, uint64_t off, uint64_t len, unsigned shift)
{
	struct mc_dlog_info info;
	int rc = gen_of(log, key, &info);

	return rc < 0 ? rc : get(log, key, info.gen.counter, off, len, shift);
}

int dlog_fix_look(struct mc_dlog *log, unsigned key, uint64_t *ret_gen)
{
	struct mc_dlog_info info;
	int rc = gen_of(log, key, &info);

	*ret_gen = 0;
	if (rc < 0)
		return 0;
	rc = get(log, key, info.gen.counter, 0, info.payload_len, 0);
	if (rc == 0)
		*ret_gen = info.gen.counter;
	return rc;
}

int dlog_fix_tidy(struct mc_dlog *log)
{
	int rc;

	do {
		rc = mc_dlog_step(log, 1 << 20);
		(void)mc_dlog_reap(log, rc == 1 ? MC_NS_PER_MS : 0);
	} while (rc == 1);
	while (mc_dlog_reap(log, MC_NS_PER_MS) > 0)
		;
	return rc;
}
