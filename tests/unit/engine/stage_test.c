/*
 * stage_test.c: hops of every pair of memories; the buffers for files: how a piece begins and ends,
 * said once, twice, late and by others; what is left when its user is lost; and memory that runs
 * out.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "engine/ctl.h"
#include "engine/hops.h"
#include "engine/initiators.h"
#include "engine/stage.h"

#define BYTES (4u << 20)
#define RIGHTS (MC_MEM_REMOTE_READ | MC_MEM_REMOTE_WRITE)
#define PEER 77u /* an incarnation */

struct world {
	struct mc_engine *eng;
	char path[64];
	void *addr;
	struct mc_region_info region;
};

static struct mc_engine *open_one(void)
{
	struct mc_engine_opts opts = {.size = sizeof(opts), .name = "127.0.0.1"};
	struct mc_engine *eng;

	assert_int_equal(mc_engine_open(&opts, NULL, &eng), 0);
	return eng;
}

static void world_open(struct world *w)
{
	int fd;

	(void)snprintf(w->path, sizeof(w->path), "/var/tmp/mc-stage-XXXXXX");
	fd = mkstemp(w->path);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, BYTES), 0);
	assert_int_equal(pwrite(fd, "before", 6, 100), 6);
	(void)close(fd);
	w->eng = open_one();
	assert_int_equal(mc_mem_reg_file(w->eng, w->path, 0, BYTES, RIGHTS, &w->addr), 0);
	assert_int_equal(mc_region_find(w->eng->regions, (uintptr_t)w->addr, BYTES, &w->region), 0);
}

static void world_close(struct world *w)
{
	mc_engine_close(w->eng);
	(void)unlink(w->path);
}

static struct mc_stage_want want_of(const struct world *w, uint64_t id, enum mc_op op)
{
	return (struct mc_stage_want){.owner = PEER,
				      .id = id,
				      .op = op,
				      .region = w->region.id,
				      .gen = w->region.gen,
				      .off = 100,
				      .len = 6};
}

static char *bytes_of(const struct mc_stage_piece *piece)
{
	return (char *)(uintptr_t)piece->addr;
}

static void file_is(const struct world *w, const char *bytes)
{
	char got[7] = "";
	int fd = open(w->path, O_RDONLY | O_CLOEXEC);

	assert_int_equal(pread(fd, got, 6, 100), 6);
	(void)close(fd);
	assert_string_equal(got, bytes);
}

/* ---- hops ---- */

static void each_pair_of_memories_has_its_hops(void **state)
{
	(void)state;
	for (unsigned l = 0; l < MC_MEM_KIND_COUNT; l++)
		for (unsigned r = 0; r < MC_MEM_KIND_COUNT; r++) {
			bool here = l == MC_MEM_CUDA || l == MC_MEM_FILE;
			bool there = r == MC_MEM_CUDA || r == MC_MEM_FILE;
			enum mc_hops want = here ? (there ? MC_HOPS_BOTH : MC_HOPS_HERE)
						 : (there ? MC_HOPS_THERE : MC_HOPS_DIRECT);

			assert_int_equal(mc_hops_choose((enum mc_mem_kind)l, (enum mc_mem_kind)r),
					 want);
		}
}

/* ---- pieces ---- */

static void a_piece_is_read_and_written_through_its_buffer(void **state)
{
	struct mc_stage_piece piece;
	struct mc_stage_want want;
	struct world w;

	(void)state;
	world_open(&w);
	want = want_of(&w, 1, MC_OP_READ);
	assert_int_equal(mc_stage_begin(w.eng, &want, &piece), 0);
	assert_memory_equal(bytes_of(&piece), "before", 6);
	assert_int_equal(mc_stage_end(w.eng, PEER, 1, MC_CTL_UNSTAGE_COMMIT), -MC_E_INVAL);
	assert_int_equal(mc_stage_end(w.eng, PEER, 1, MC_CTL_UNSTAGE_DROP), 0);
	want = want_of(&w, 2, MC_OP_WRITE);
	assert_int_equal(mc_stage_begin(w.eng, &want, &piece), 0);
	memcpy(bytes_of(&piece), "after!", 6);
	file_is(&w, "before");
	assert_int_equal(mc_stage_end(w.eng, PEER, 2, MC_CTL_UNSTAGE_COMMIT), 0);
	file_is(&w, "after!");
	assert_int_equal(mc_stage_count(w.eng), 0);
	world_close(&w);
}

static void calls_that_are_repeated_or_late_do_nothing_twice(void **state)
{
	struct mc_stage_piece piece, again;
	struct mc_stage_want want;
	struct world w;

	(void)state;
	world_open(&w);
	want = want_of(&w, 1, MC_OP_WRITE);
	assert_int_equal(mc_stage_begin(w.eng, &want, &piece), 0);
	assert_int_equal(mc_stage_begin(w.eng, &want, &again), 0);
	assert_int_equal(again.addr, piece.addr);
	assert_int_equal(mc_stage_count(w.eng), 1);
	memcpy(bytes_of(&piece), "first!", 6);
	assert_int_equal(mc_stage_end(w.eng, PEER, 1, MC_CTL_UNSTAGE_COMMIT), 0);
	memcpy(bytes_of(&piece), "second", 6);
	assert_int_equal(mc_stage_end(w.eng, PEER, 1, MC_CTL_UNSTAGE_COMMIT), 0);
	assert_int_equal(mc_stage_end(w.eng, PEER, 1, MC_CTL_UNSTAGE_DROP), -MC_E_NOENT);
	file_is(&w, "first!");
	/* Its end came first. */
	assert_int_equal(mc_stage_end(w.eng, PEER, 2, MC_CTL_UNSTAGE_DROP), -MC_E_NOENT);
	want = want_of(&w, 2, MC_OP_WRITE);
	assert_int_equal(mc_stage_begin(w.eng, &want, &piece), -MC_E_STALE);
	/* Somebody else's. */
	want = want_of(&w, 3, MC_OP_WRITE);
	assert_int_equal(mc_stage_begin(w.eng, &want, &piece), 0);
	assert_int_equal(mc_stage_end(w.eng, PEER + 1, 3, MC_CTL_UNSTAGE_COMMIT), -MC_E_NOENT);
	assert_int_equal(mc_stage_count(w.eng), 1);
	world_close(&w);
}

static void a_full_pool_and_a_bad_piece_are_refused(void **state)
{
	struct mc_stage_piece piece;
	struct mc_stage_want want;
	struct world w;

	(void)state;
	world_open(&w);
	want = want_of(&w, 1, MC_OP_READ);
	want.len = MC_STAGE_BYTES + 1;
	assert_int_equal(mc_stage_begin(w.eng, &want, &piece), -MC_E_INVAL);
	want.len = 0;
	assert_int_equal(mc_stage_begin(w.eng, &want, &piece), -MC_E_INVAL);
	want.len = 6;
	want.off = BYTES - 5;
	assert_int_equal(mc_stage_begin(w.eng, &want, &piece), -MC_E_RANGE);
	want.off = UINT64_MAX - 2;
	want.id++;
	assert_int_equal(mc_stage_begin(w.eng, &want, &piece), -MC_E_RANGE);
	want = want_of(&w, 3, MC_OP_READ);
	want.gen++;
	assert_int_equal(mc_stage_begin(w.eng, &want, &piece), -MC_E_STALE);
	assert_int_equal(mc_stage_count(w.eng), 0);
	for (unsigned i = 0; i < MC_STAGE_BUFS; i++) {
		want = want_of(&w, 10 + i, MC_OP_WRITE);
		assert_int_equal(mc_stage_begin(w.eng, &want, &piece), 0);
	}
	want = want_of(&w, 100, MC_OP_WRITE);
	assert_int_equal(mc_stage_begin(w.eng, &want, &piece), -MC_E_AGAIN);
	assert_int_equal(mc_stage_end(w.eng, PEER, 10, MC_CTL_UNSTAGE_DROP), 0);
	assert_int_equal(mc_stage_begin(w.eng, &want, &piece), 0);
	/* The file goes: what is under way does not reach it any more. */
	assert_int_equal(mc_mem_unreg(w.eng, w.addr), 0);
	assert_int_equal(mc_stage_end(w.eng, PEER, 100, MC_CTL_UNSTAGE_COMMIT), -MC_E_STALE);
	file_is(&w, "before");
	world_close(&w);
}

static bool is_registered(const struct world *w, const struct mc_stage_piece *piece)
{
	void *at;
	int rc = mc_region_pin(w->eng->regions, piece->buf.id, piece->buf.gen, 0, 1, MC_RIGHT_WRITE,
			       &at);

	if (rc == 0)
		mc_region_unpin(w->eng->regions, piece->buf.id);
	return rc == 0;
}

static void a_buffer_that_may_still_be_written_to_is_never_used_again(void **state)
{
	struct mc_stage_piece piece;
	struct mc_stage_want want;
	struct world w;

	(void)state;
	world_open(&w);
	want = want_of(&w, 1, MC_OP_WRITE);
	assert_int_equal(mc_stage_begin(w.eng, &want, &piece), 0);
	assert_true(is_registered(&w, &piece));
	assert_int_equal(mc_stage_end(w.eng, PEER, 1, MC_CTL_UNSTAGE_SPOIL), 0);
	assert_false(is_registered(&w, &piece));
	want = want_of(&w, 2, MC_OP_WRITE);
	assert_int_equal(mc_stage_begin(w.eng, &want, &piece), 0);
	mc_stage_forget(w.eng, PEER + 1);
	assert_int_equal(mc_stage_count(w.eng), 1);
	mc_stage_forget(w.eng, PEER);
	assert_int_equal(mc_stage_count(w.eng), 0);
	assert_false(is_registered(&w, &piece));
	assert_int_equal(mc_stage_end(w.eng, PEER, 2, MC_CTL_UNSTAGE_COMMIT), -MC_E_NOENT);
	file_is(&w, "before");
	world_close(&w);
}

/* ---- between engines ---- */

static int32_t seg_of(struct mc_engine *eng, struct mc_engine *peer)
{
	int32_t seg;

	assert_int_equal(mc_segment_open(eng, mc_engine_name(peer), 0, NULL, &seg), 0);
	return seg;
}

static int move(struct mc_engine *eng, int32_t seg, enum mc_transfer_op op, void *local,
		uint64_t remote, uint64_t len, uint64_t deadline_ns)
{
	struct mc_iov l = {(uintptr_t)local, len}, r = {remote, len};
	struct mc_transfer t = {.op = (uint8_t)op,
				.segment = seg,
				.nlocal = 1,
				.nremote = 1,
				.local = &l,
				.remote = &r};
	struct mc_group g = {.size = sizeof(g),
			     .n = 1,
			     .transfers = &t,
			     .deadline_ns = deadline_ns,
			     .priority = MC_PRIO_NORMAL};

	return mc_transfer_sync(eng, &g, NULL);
}

static void buffers_of_a_lost_peer_come_back(void **state)
{
	struct mc_remote_region rr;
	struct mc_stage_want want;
	struct mc_session *s;
	struct mc_engine *eng;
	struct mc_peer *peer;
	struct world w;
	bool is_answered;
	uint64_t addr, end_ns;

	(void)state;
	world_open(&w);
	mc_initiators_patience(w.eng, MC_NS_PER_MS);
	eng = open_one();
	assert_int_equal(mc_peer_by_id(eng, seg_of(eng, w.eng), &peer), 0);
	assert_int_equal(mc_session_get(peer, mc_now_ns() + MC_NS_PER_S, NULL, &s), 0);
	want = want_of(&w, 1, MC_OP_READ);
	end_ns = mc_now_ns() + 10 * MC_NS_PER_S;
	assert_int_equal(mc_ctl_stage(s, &want, end_ns, &addr, &rr, &is_answered), 0);
	assert_true(is_answered && rr.gen != 0 && rr.kind != MC_MEM_FILE);
	want.gen++;
	want.id++;
	assert_int_equal(mc_ctl_stage(s, &want, end_ns, &addr, &rr, &is_answered), -MC_E_STALE);
	assert_true(is_answered);
	assert_int_equal(mc_stage_count(w.eng), 1);
	mc_session_put(s);
	mc_engine_close(eng);
	while (mc_stage_count(w.eng) > 0 && mc_now_ns() < end_ns)
		(void)poll(NULL, 0, 1);
	assert_int_equal(mc_stage_count(w.eng), 0);
	world_close(&w);
}

static void no_transport_reaches_a_file_and_no_peer_is_told_of_buffers(void **state)
{
	struct mc_stage_piece piece;
	struct mc_stage_want want;
	uint64_t addr;
	uint32_t id;
	struct world w;
	void *at;

	(void)state;
	world_open(&w);
	assert_int_equal(
	    mc_region_pin(w.eng->regions, w.region.id, w.region.gen, 0, 8, MC_RIGHT_READ, &at),
	    -MC_E_PERM);
	assert_int_equal(
	    mc_region_pin_addr(w.eng->regions, (uintptr_t)w.addr, 8, MC_RIGHT_WRITE, &id),
	    -MC_E_PERM);
	want = want_of(&w, 1, MC_OP_READ);
	assert_int_equal(mc_stage_begin(w.eng, &want, &piece), 0);
	assert_int_equal(mc_segment_first_addr(w.eng, MC_SEGMENT_LOCAL, &addr), 0);
	assert_int_equal(addr, 0);
	world_close(&w);
}

static void memory_that_runs_out_in_a_staged_transfer_is_an_error_and_no_leak(void **state)
{
	static uint8_t buf[3 << 19];
	int64_t live;
	unsigned good = 0, bad = 0;

	(void)state;
	mc_engine_close(open_one());
	live = mc_mem_live();
	for (int n = 0; n < 400 && good < 3; n++) {
		struct mc_engine *eng = open_one();
		struct world w;
		int32_t seg;
		void *at;
		int rc;

		world_open(&w);
		seg = seg_of(eng, w.eng);
		mc_mem_fail_after(n);
		rc = mc_mem_reg_file(eng, w.path, 0, BYTES, RIGHTS, &at);
		if (rc == 0)
			rc = move(eng, seg, n % 2 ? MC_READ : MC_WRITE, buf, (uintptr_t)w.addr + 3,
				  sizeof(buf), MC_NS_PER_S / 4);
		mc_mem_fail_after(-1);
		good += rc == 0;
		bad += rc < 0;
		assert_int_equal(move(eng, seg, MC_READ, buf, (uintptr_t)w.addr + 3, sizeof(buf),
				      20 * MC_NS_PER_S),
				 0);
		mc_engine_close(eng);
		world_close(&w);
		assert_int_equal(mc_mem_live(), live);
	}
	assert_true(good > 0 && bad > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(each_pair_of_memories_has_its_hops),
	    cmocka_unit_test(a_piece_is_read_and_written_through_its_buffer),
	    cmocka_unit_test(calls_that_are_repeated_or_late_do_nothing_twice),
	    cmocka_unit_test(a_full_pool_and_a_bad_piece_are_refused),
	    cmocka_unit_test(a_buffer_that_may_still_be_written_to_is_never_used_again),
	    cmocka_unit_test(buffers_of_a_lost_peer_come_back),
	    cmocka_unit_test(no_transport_reaches_a_file_and_no_peer_is_told_of_buffers),
	    cmocka_unit_test(memory_that_runs_out_in_a_staged_transfer_is_an_error_and_no_leak),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
