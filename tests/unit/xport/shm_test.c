/*
 * shm_test.c: transfers between two processes through shared memory and through the kernel: bytes,
 * boundaries, rights, generations, signals, unregistering under load.
 */
#include "shm_peers.h"

struct link {
	struct proc t;
	struct mc_shm_peer *peer;
	struct mc_xlane *lane;
	struct mc_remote_region rr[2]; /* the target's two memories */
};

static struct link link_up(void)
{
	struct link l = {.t = target_start(test_dir)};

	assert_int_equal(
	    side_attach(&me, l.t.hello.path, l.t.hello.nonce, l.t.hello.epoch, WAIT_NS, &l.peer),
	    0);
	assert_int_equal(side_lane(&me, l.peer, &l.lane), 0);
	memcpy(l.rr, l.t.hello.rr, sizeof(l.rr));
	assert_int_equal(l.rr[MEMFD].kind, MC_MEM_MEMFD);
	assert_int_equal(l.rr[FOREIGN].kind, MC_MEM_HOST);
	return l;
}

static void link_down(struct link *l)
{
	l->lane->ops->lane_close(l->lane);
	mc_shm_peer_detach(l->peer);
	for (int i = 0; i < 2; i++)
		assert_int_equal(order(&l->t, ORDER_GUARDS, i, 0).val, 0);
	assert_int_equal(order(&l->t, ORDER_QUIT, 0, 0).rc, 0);
	assert_int_equal(proc_wait(&l->t), 0);
}

static void bytes_arrive_both_ways_through_both_kinds_of_memory(void **state)
{
	static const size_t lens[] = {1, 8, 63, 4096, 65537, 1000000, MEM_LEN - 77};
	struct link l = link_up();
	uint8_t *buf = me.mem[FOREIGN];

	for (int i = 0; i < 2; i++) {
		order(&l.t, ORDER_PATTERN, i, 0);
		for (size_t k = 0; k < MC_ARRAY_LEN(lens); k++) {
			memset(buf, 0, lens[k] + 1);
			assert_int_equal(
			    frag_run(l.lane, MC_OP_READ, buf, &l.rr[i], l.rr[i].addr + 77, lens[k]),
			    0);
			for (size_t b = 0; b < lens[k]; b++)
				assert_true(buf[b] == pattern(b + 77));
			assert_int_equal(buf[lens[k]], lens[k] + 77 == MEM_LEN ? buf[lens[k]] : 0);
		}
		memset(buf, 0x42, MEM_LEN);
		assert_int_equal(
		    frag_run(l.lane, MC_OP_WRITE, buf, &l.rr[i], l.rr[i].addr, MEM_LEN), 0);
		assert_int_equal(order(&l.t, ORDER_COUNT, i, 0x42).val, 0);
		buf[5] = 0x43;
		assert_int_equal(
		    frag_run(l.lane, MC_OP_WRITE, buf + 5, &l.rr[i], l.rr[i].addr + MEM_LEN - 1, 1),
		    0);
		assert_int_equal(order(&l.t, ORDER_COUNT, i, 0x42).val, 1);
	}
	assert_true(l.lane->ops->progress(l.lane) > 2 * MEM_LEN);
	link_down(&l);
	(void)state;
}

static void a_slice_of_many_fragments_mixes_both_kinds(void **state)
{
	enum { N = MC_SLICE_FRAGS_MAX };
	static struct mc_frag f[N];
	struct link l = link_up();
	struct mc_slice s = {.op = MC_OP_READ, .nfrags = N, .frags = f};
	uint64_t calls;

	order(&l.t, ORDER_PATTERN, MEMFD, 0);
	order(&l.t, ORDER_PATTERN, FOREIGN, 0);
	for (int i = 0; i < N; i++)
		f[i] = (struct mc_frag){me.mem[MEMFD] + i * 1000,
					l.rr[i % 2].addr + (uint64_t)i * 9001, 1000, &l.rr[i % 2]};
	assert_int_equal(slice_run(l.lane, &s), 0);
	calls = mc_mem_calls();
	assert_int_equal(slice_run(l.lane, &s), 0);
	assert_int_equal(mc_mem_calls(), calls); /* no allocation per transfer */
	assert_int_equal(s.moved, N * 1000);
	for (int i = 0; i < N; i++) {
		for (size_t k = 0; k < 1000; k++)
			assert_true(me.mem[MEMFD][(size_t)i * 1000 + k] ==
				    pattern((size_t)i * 9001 + k));
	}
	link_down(&l);
	(void)state;
}

static void many_slices_in_one_post_end_each_with_its_own_status(void **state)
{
	enum { N = 700 };
	static struct mc_frag f[N];
	static struct mc_slice s[N], *ptr[N], *done[N];
	struct link l = link_up();
	struct mc_remote_region stale = l.rr[FOREIGN];
	int want;

	stale.gen++;
	order(&l.t, ORDER_FILL, FOREIGN, 1);
	memset(me.mem[FOREIGN], 2, MEM_LEN);
	for (int i = 0; i < N; i++) {
		f[i] = (struct mc_frag){me.mem[FOREIGN] + i * 4096,
					l.rr[FOREIGN].addr + (uint64_t)i * 4096, 4096,
					i % 10 == 3 ? &stale : &l.rr[FOREIGN]};
		if (i % 10 == 7)
			f[i].len = MEM_LEN + 1;
		s[i] = (struct mc_slice){
		    .op = i % 100 == 50 ? MC_OP_READ : MC_OP_WRITE, .nfrags = 1, .frags = &f[i]};
		s[i].len = f[i].len;
		ptr[i] = &s[i];
	}
	assert_int_equal(l.lane->ops->post(l.lane, ptr, N), N);
	assert_int_equal(l.lane->ops->poll(l.lane, 0, done, 100), 100);
	assert_int_equal(l.lane->ops->poll(l.lane, 0, done + 100, N), N - 100);
	for (int i = 0; i < N; i++) {
		assert_ptr_equal(done[i], &s[i]);
		want = i % 10 == 3 ? -MC_E_STALE : i % 10 == 7 ? -MC_E_RANGE : 0;
		assert_int_equal(s[i].status, want);
		assert_int_equal(s[i].moved, want ? 0 : 4096);
	}
	assert_int_equal(order(&l.t, ORDER_COUNT, FOREIGN, 1).val,
			 4096 * (N - N / 10 * 2 - N / 100));
	link_down(&l);
	(void)state;
}

static void nothing_outside_the_registered_range_can_be_reached(void **state)
{
	static const uint64_t edge[] = {
	    0,		1,	   MEM_LEN - 1,		 MEM_LEN,	 MEM_LEN + 1,
	    UINT32_MAX, INT64_MAX, UINT64_MAX - MEM_LEN, UINT64_MAX - 1, UINT64_MAX};
	struct link l = link_up();
	bool fits;

	memset(me.mem[FOREIGN], 9, MEM_LEN);
	for (int i = 0; i < 2; i++) {
		for (size_t a = 0; a < MC_ARRAY_LEN(edge); a++) {
			for (size_t b = 0; b < MC_ARRAY_LEN(edge); b++) {
				fits = edge[b] > 0 && edge[a] <= MEM_LEN &&
				       edge[b] <= MEM_LEN - edge[a];
				for (int op = 0; op < MC_OP_COUNT; op++)
					assert_int_equal(frag_run(l.lane, (enum mc_op)op,
								  me.mem[FOREIGN], &l.rr[i],
								  l.rr[i].addr + edge[a], edge[b]),
							 fits ? 0 : -MC_E_RANGE);
			}
		}
		assert_int_equal(
		    frag_run(l.lane, MC_OP_WRITE, me.mem[FOREIGN], &l.rr[i], l.rr[i].addr - 1, 2),
		    -MC_E_RANGE);
		assert_int_equal(frag_run(l.lane, MC_OP_WRITE, me.mem[FOREIGN], &l.rr[i], 0, 1),
				 -MC_E_RANGE);
	}
	link_down(&l);
	(void)state;
}

static void a_region_that_lies_about_its_place_in_an_arena_harms_nobody(void **state)
{
	static const uint64_t off[] = {(uint64_t)64 << 20, ((uint64_t)64 << 20) - 1, UINT64_MAX,
				       UINT64_MAX - 100, (uint64_t)1 << 62};
	struct link l = link_up();
	struct mc_remote_region bad;

	for (size_t i = 0; i < MC_ARRAY_LEN(off); i++) {
		bad = l.rr[MEMFD];
		bad.arena_off = off[i];
		/* Not inside the mapping; the kernel finds the address all the same. */
		assert_int_equal(
		    frag_run(l.lane, MC_OP_READ, me.mem[FOREIGN], &bad, bad.addr + 100, 4096), 0);
	}
	bad = l.rr[MEMFD];
	bad.arena = 17; /* there is none */
	assert_int_equal(frag_run(l.lane, MC_OP_READ, me.mem[FOREIGN], &bad, bad.addr, 4096), 0);
	bad.id = MC_REGIONS_MAX;
	assert_int_equal(frag_run(l.lane, MC_OP_READ, me.mem[FOREIGN], &bad, bad.addr, 4096),
			 -MC_E_STALE);
	bad.id = UINT32_MAX;
	assert_int_equal(frag_run(l.lane, MC_OP_READ, me.mem[FOREIGN], &bad, bad.addr, 4096),
			 -MC_E_STALE);
	bad = l.rr[FOREIGN];
	bad.kind = MC_MEM_CUDA;
	assert_int_equal(frag_run(l.lane, MC_OP_READ, me.mem[FOREIGN], &bad, bad.addr, 4096),
			 -MC_E_UNSUPPORTED);
	assert_false(mc_shm_peer_can(l.peer, &bad));
	assert_true(mc_shm_peer_can(l.peer, &l.rr[MEMFD]));
	assert_true(mc_shm_peer_can(l.peer, &l.rr[FOREIGN]));
	link_down(&l);
	(void)state;
}

static void rights_and_generations_are_those_of_the_registration(void **state)
{
	struct link l = link_up();
	struct mc_remote_region again;
	struct reply r;

	for (int i = 0; i < 2; i++) {
		assert_int_equal(order(&l.t, ORDER_DEL, i, 0).rc, 0);
		assert_int_equal(
		    frag_run(l.lane, MC_OP_READ, me.mem[MEMFD], &l.rr[i], l.rr[i].addr, 8),
		    -MC_E_STALE);
		assert_int_equal(
		    frag_run(l.lane, MC_OP_WRITE, me.mem[MEMFD], &l.rr[i], l.rr[i].addr, 8),
		    -MC_E_STALE);
		r = order(&l.t, ORDER_ADD, i, 0);
		assert_int_equal(r.rc, 0);
		again = r.rr;
		assert_int_equal(
		    frag_run(l.lane, MC_OP_READ, me.mem[MEMFD], &l.rr[i], l.rr[i].addr, 8),
		    -MC_E_STALE);
		assert_int_equal(frag_run(l.lane, MC_OP_READ, me.mem[MEMFD], &again, again.addr, 8),
				 0);
		again.gen++;
		assert_int_equal(frag_run(l.lane, MC_OP_READ, me.mem[MEMFD], &again, again.addr, 8),
				 -MC_E_STALE);
		again.gen = 0;
		assert_int_equal(frag_run(l.lane, MC_OP_READ, me.mem[MEMFD], &again, again.addr, 8),
				 -MC_E_STALE);
	}
	link_down(&l);
	(void)state;
}

static void a_read_only_region_cannot_be_written(void **state)
{
	struct mc_region_desc desc = {
	    .addr = (uintptr_t)me.mem[FOREIGN] - GUARD, .len = GUARD, .rights = MC_RIGHT_READ};
	struct mc_region_info info;
	struct mc_remote_region rr = {.addr = desc.addr, .len = GUARD, .rights = 3};
	struct mc_shm_peer *peer;
	struct mc_xlane *lane;
	uint8_t buf[8] = {0};

	/* A process may be its own peer. */
	assert_int_equal(mc_region_add(me.regions, &desc, &info), 0);
	rr.id = info.id;
	rr.gen = info.gen;
	assert_int_equal(
	    side_attach(&me, mc_shm_dev_socket_path(me.dev), me.nonce, me.epoch, WAIT_NS, &peer),
	    0);
	assert_int_equal(side_lane(&me, peer, &lane), 0);
	assert_int_equal(frag_run(lane, MC_OP_READ, buf, &rr, rr.addr, 8), 0);
	assert_int_equal(buf[7], GUARD_BYTE);
	assert_int_equal(frag_run(lane, MC_OP_WRITE, buf, &rr, rr.addr, 8), -MC_E_PERM);
	assert_int_equal(guards_changed(&me, FOREIGN), 0);
	lane->ops->lane_close(lane);
	mc_shm_peer_detach(peer);
	assert_int_equal(mc_region_del(me.regions, desc.addr), 0);
	(void)state;
}

static void a_signal_is_stored_after_the_data(void **state)
{
	struct link l = link_up();
	struct mc_frag f;
	struct mc_slice s;

	memset(me.mem[FOREIGN], 7, 4096);
	for (int i = 0; i < 4; i++) {
		f = (struct mc_frag){me.mem[FOREIGN], l.rr[i % 2].addr, 4096, &l.rr[i % 2]};
		s = (struct mc_slice){
		    .op = MC_OP_WRITE,
		    .nfrags = 1,
		    .frags = &f,
		    .signal = {&l.rr[i / 2], l.rr[i / 2].addr + 8192, 1000 + (uint64_t)i}};
		assert_int_equal(slice_run(l.lane, &s), 0);
		assert_int_equal(order(&l.t, ORDER_WORD, i / 2, 8192).val, 1000 + i);
		s.signal.raddr++;
		assert_int_equal(slice_run(l.lane, &s), -MC_E_INVAL);
		s.signal.raddr = l.rr[i / 2].addr + MEM_LEN;
		assert_int_equal(slice_run(l.lane, &s), -MC_E_RANGE);
	}
	link_down(&l);
	(void)state;
}

static void memory_that_went_behind_the_engines_back_is_an_error(void **state)
{
	struct link l = link_up();
	uint64_t half = MEM_LEN / 2;

	assert_int_equal(order(&l.t, ORDER_UNMAP, FOREIGN, 0).rc, 0);
	assert_int_equal(frag_run(l.lane, MC_OP_READ, me.mem[MEMFD], &l.rr[FOREIGN],
				  l.rr[FOREIGN].addr + half - 8192, 16384),
			 -MC_E_RANGE);
	assert_int_equal(frag_run(l.lane, MC_OP_WRITE, me.mem[MEMFD], &l.rr[FOREIGN],
				  l.rr[FOREIGN].addr + half, 1),
			 -MC_E_RANGE);
	assert_int_equal(
	    frag_run(l.lane, MC_OP_READ, me.mem[MEMFD], &l.rr[FOREIGN], l.rr[FOREIGN].addr, half),
	    0);
	l.lane->ops->lane_close(l.lane);
	mc_shm_peer_detach(l.peer);
	proc_kill(&l.t);
	(void)state;
}

static void new_arenas_are_mapped_when_they_are_first_used(void **state)
{
	struct link l = link_up();
	struct reply r;

	for (int i = 0; i < 5; i++) {
		r = order(&l.t, ORDER_ALLOC, 0, (uint64_t)100 << 20);
		assert_int_equal(r.rc, 0);
		memset(me.mem[FOREIGN], 'a' + i, 65536);
		memset(me.mem[MEMFD], 0, 65536);
		assert_int_equal(frag_run(l.lane, MC_OP_WRITE, me.mem[FOREIGN], &r.rr,
					  r.rr.addr + r.rr.len - 65536, 65536),
				 0);
		assert_int_equal(frag_run(l.lane, MC_OP_READ, me.mem[MEMFD], &r.rr,
					  r.rr.addr + r.rr.len - 65536, 65536),
				 0);
		assert_memory_equal(me.mem[MEMFD], me.mem[FOREIGN], 65536);
	}
	link_down(&l);
	(void)state;
}

/* ---- unregistering under load ---- */

struct load {
	struct mc_xlane *lane;
	uint64_t off; /* each thread writes where no other does */
	_Atomic(const struct mc_remote_region *) rr;
	_Atomic bool is_over;
	_Atomic unsigned ok, stale, other;
};

static void *load_run(void *arg)
{
	struct load *ld = arg;
	const struct mc_remote_region *rr;
	int rc;

	while (!atomic_load(&ld->is_over)) {
		rr = atomic_load(&ld->rr);
		rc = frag_run(ld->lane, MC_OP_WRITE, me.mem[FOREIGN], rr, rr->addr + ld->off,
			      300000);
		atomic_fetch_add(rc == 0	     ? &ld->ok
				 : rc == -MC_E_STALE ? &ld->stale
						     : &ld->other,
				 1);
		if (rc < 0)
			dawdle(10); /* the machine may be small */
	}
	return NULL;
}

static void after_unregister_nothing_lands(void **state)
{
	enum { THREADS = 2, ROUNDS = 40 };
	static struct mc_remote_region rr[ROUNDS + 1];
	struct link l = link_up();
	struct load ld[THREADS];
	pthread_t th[THREADS];
	unsigned ok;

	memset(me.mem[FOREIGN], 0xee, MEM_LEN);
	for (int kind = 0; kind < 2; kind++) {
		rr[0] = l.rr[kind];
		memset(ld, 0, sizeof(ld));
		for (int i = 0; i < THREADS; i++) {
			ld[i].off = 1 + (uint64_t)i * 1000000;
			ld[i].rr = &rr[0];
			assert_int_equal(side_lane(&me, l.peer, &ld[i].lane), 0);
			assert_int_equal(pthread_create(&th[i], NULL, load_run, &ld[i]), 0);
		}
		for (int k = 0; k < ROUNDS; k++) {
			ok = atomic_load(&ld[0].ok);
			wait_until(atomic_load(&ld[0].ok) > ok);
			assert_int_equal(order(&l.t, ORDER_DEL, kind, 0).rc, 0);
			order(&l.t, ORDER_FILL, kind, k);
			dawdle(k % 4 * 300); /* a late write would have time to land */
			assert_int_equal(order(&l.t, ORDER_COUNT, kind, k).val, 0);
			rr[k + 1] = order(&l.t, ORDER_ADD, kind, 0).rr;
			for (int i = 0; i < THREADS; i++)
				atomic_store(&ld[i].rr, &rr[k + 1]);
		}
		for (int i = 0; i < THREADS; i++) {
			atomic_store(&ld[i].is_over, true);
			assert_int_equal(pthread_join(th[i], NULL), 0);
			ld[i].lane->ops->lane_close(ld[i].lane);
			assert_int_equal(atomic_load(&ld[i].other), 0);
		}
		assert_true(atomic_load(&ld[0].ok) >= ROUNDS);
	}
	link_down(&l);
	(void)state;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    T(bytes_arrive_both_ways_through_both_kinds_of_memory),
	    T(a_slice_of_many_fragments_mixes_both_kinds),
	    T(many_slices_in_one_post_end_each_with_its_own_status),
	    T(nothing_outside_the_registered_range_can_be_reached),
	    T(a_region_that_lies_about_its_place_in_an_arena_harms_nobody),
	    T(rights_and_generations_are_those_of_the_registration),
	    T(a_read_only_region_cannot_be_written),
	    T(a_signal_is_stored_after_the_data),
	    T(memory_that_went_behind_the_engines_back_is_an_error),
	    T(new_arenas_are_mapped_when_they_are_first_used),
	    T(after_unregister_nothing_lands),
	};
	int rc = role_main(argc, argv);

	return rc >= 0 ? rc : cmocka_run_group_tests(tests, NULL, NULL);
}
