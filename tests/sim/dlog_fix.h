/*
 * dlog_fix.h: the disk log in tests: objects whose bytes follow from key, generation and length, so
 * that whatever is read can be judged; calls that wait for their end.
 */
#ifndef TESTS_SIM_DLOG_FIX_H
#define TESTS_SIM_DLOG_FIX_H

#include "log/dlog.h"

#define DLOG_FIX_LEN_MAX (3u << 20)

/** The bytes of a payload. */
void dlog_fix_fill(uint8_t *to, unsigned key, uint64_t gen, uint64_t off, uint64_t len);
/** @return whether they are those bytes */
bool dlog_fix_is(const uint8_t *bytes, unsigned key, uint64_t gen, uint64_t off, uint64_t len);
/** Length of the payload that the tests put under a generation. */
uint64_t dlog_fix_len(unsigned key, uint64_t gen);

/** A put or delete under way. */
struct dlog_fix_op {
	struct mc_dlog_op op;
	char key_text[32];
	struct iovec iov;
	uint8_t *payload;
	unsigned key;
	uint64_t gen;
	bool is_del, is_done;
	int rc;
};

/** Begin; end with dlog_fix_end(). @return as mc_dlog_put(), and is_done when < 0 */
int dlog_fix_put(struct mc_dlog *log, struct dlog_fix_op *op, unsigned key, uint64_t gen,
		 uint64_t len);
int dlog_fix_del(struct mc_dlog *log, struct dlog_fix_op *op, unsigned key, uint64_t gen);
void dlog_fix_end(struct dlog_fix_op *op);

/** These wait. @return the outcome */
int dlog_fix_put_wait(struct mc_dlog *log, unsigned key, uint64_t gen, uint64_t len);
int dlog_fix_del_wait(struct mc_dlog *log, unsigned key, uint64_t gen);
/**
 * Read [off, off + len) to memory that is `shift` bytes off alignment, and judge it.
 * @return the outcome; asserts that bytes of a success are right
 */
int dlog_fix_get(struct mc_dlog *log, unsigned key, uint64_t off, uint64_t len, unsigned shift);
/** All of it. @param ret_gen  0: not there. @return 0, also when it is not there; the error of the
 * get */
int dlog_fix_look(struct mc_dlog *log, unsigned key, uint64_t *ret_gen);
/** Housekeeping until there is none. @return 0 or the error */
int dlog_fix_tidy(struct mc_dlog *log);

#endif
