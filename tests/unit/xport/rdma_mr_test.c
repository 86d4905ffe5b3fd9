/*
 * rdma_mr_test.c: registrations at several ports: keys, counting, lookups, refusals, limits,
 * threads and every verb failing at every call.
 */
#include <errno.h>
#include <linux/capability.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rdma_fix.h"

#define PORTS 4u
#define BOTH (MC_RIGHT_READ | MC_RIGHT_WRITE)
#define PAGE 4096u

static _Alignas(4096) uint8_t mem[16 * PAGE];
#define AT(page) ((uint64_t)(uintptr_t)mem + (page)*PAGE)

static struct rdma_fix f;
static uint32_t rkey[MC_RDMA_PORTS_MAX], lkey[MC_RDMA_PORTS_MAX];

static void start_with(const struct verbs_fake_conf *conf)
{
	fix_start(&f, conf);
	assert_int_equal(fix_open(&f), 0);
	assert_int_equal(mc_rdma_mrs_open(f.dev), 0);
}

static void start(void)
{
	start_with(&(struct verbs_fake_conf){.ndevs = PORTS});
}

static void end(void)
{
	mc_rdma_mrs_close(f.dev);
	mc_rdma_hcas_close(f.dev);
	fix_end(&f);
}

static int add(uint64_t addr, uint64_t len, unsigned rights)
{
	return mc_rdma_mem_add(&f.dev->x, addr, len, rights, rkey, &f.diag);
}

static int del(uint64_t addr, uint64_t len)
{
	return mc_rdma_mem_del(&f.dev->x, addr, len);
}

static unsigned live_mrs(void)
{
	struct verbs_fake_live live;

	verbs_fake_live(&live);
	return live.mrs;
}

static void assert_diag_has(const char *part)
{
	if (!strstr(f.diag.text, part))
		fail_msg("\"%s\" lacks \"%s\"", f.diag.text, part);
}

static void range_has_a_key_at_every_port(void **state)
{
	uint32_t again[MC_RDMA_PORTS_MAX];

	(void)state;
	start();
	assert_int_equal(add(AT(0), PAGE, BOTH), 0);
	assert_int_equal(mc_rdma_mrs_count(f.dev), PORTS);
	assert_int_equal(mc_rdma_mem_keys(&f.dev->x, AT(0), PAGE, again, lkey), 0);
	for (unsigned i = 0; i < MC_RDMA_PORTS_MAX; i++) {
		assert_int_equal(rkey[i] != 0, i < PORTS);
		assert_int_equal(lkey[i] != 0, i < PORTS);
		assert_int_equal(again[i], rkey[i]);
		for (unsigned j = 0; j < i && i < PORTS; j++)
			assert_int_not_equal(rkey[i], rkey[j]);
	}
	assert_int_equal(mc_rdma_mem_keys(&f.dev->x, AT(0), PAGE - 1, again, lkey), -MC_E_NOENT);
	assert_int_equal(del(AT(0), PAGE - 1), -MC_E_NOENT);
	assert_int_equal(del(AT(0), PAGE), 0);
	assert_int_equal(del(AT(0), PAGE), -MC_E_NOENT);
	assert_int_equal(live_mrs(), 0);
	end();
}

static void device_enforces_the_rights_that_were_given(void **state)
{
	static const struct {
		unsigned rights, access;
	} rows[] = {
	    {MC_RIGHT_READ, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ},
	    {MC_RIGHT_WRITE, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE},
	    {0, IBV_ACCESS_LOCAL_WRITE},
	};

	(void)state;
	start();
	for (size_t i = 0; i < MC_ARRAY_LEN(rows); i++) {
		struct mc_rdma_mr_hit hit = {.version = 0};

		assert_int_equal(add(AT(i), PAGE, rows[i].rights), 0);
		assert_int_equal(mc_rdma_lkey(f.dev, 2, AT(i), 1, &hit, lkey), 0);
		assert_int_equal(verbs_fake_mr_access(lkey[0]), rows[i].access);
		assert_int_equal(rkey[2] != 0, rows[i].rights != 0);
	}
	end();
}

static void relaxed_ordering_is_asked_for_only_when_set(void **state)
{
	(void)state;
	assert_int_equal(setenv("MC_IB_PCI_RELAXED_ORDERING", "1", 1), 0);
	start();
	assert_int_equal(add(AT(0), PAGE, BOTH), 0);
	assert_true(verbs_fake_mr_access(rkey[0]) & IBV_ACCESS_RELAXED_ORDERING);
	end();
	assert_int_equal(unsetenv("MC_IB_PCI_RELAXED_ORDERING"), 0);
	start();
	assert_int_equal(add(AT(0), PAGE, BOTH), 0);
	assert_false(verbs_fake_mr_access(rkey[0]) & IBV_ACCESS_RELAXED_ORDERING);
	end();
}

static void very_same_range_is_counted(void **state)
{
	uint32_t first;

	(void)state;
	start();
	assert_int_equal(add(AT(0), PAGE, BOTH), 0);
	first = rkey[1];
	assert_int_equal(add(AT(0), PAGE, BOTH), 0);
	assert_int_equal(rkey[1], first);
	assert_int_equal(live_mrs(), PORTS);
	assert_int_equal(add(AT(0), PAGE, MC_RIGHT_READ), -MC_E_INVAL);
	assert_diag_has("other rights");
	assert_int_equal(del(AT(0), PAGE), 0);
	assert_int_equal(live_mrs(), PORTS);
	assert_int_equal(del(AT(0), PAGE), 0);
	assert_int_equal(live_mrs(), 0);
	end();
}

static void lookup_finds_the_newest_range_that_holds_all(void **state)
{
	struct mc_rdma_mr_hit hit = {.version = 0};
	uint32_t big, small, got;

	(void)state;
	start();
	assert_int_equal(mc_rdma_lkey(f.dev, 0, AT(0), 1, &hit, &got), -MC_E_NOENT);
	assert_int_equal(add(AT(0), 8 * PAGE, BOTH), 0);
	assert_int_equal(mc_rdma_lkey(f.dev, 0, AT(2), PAGE, &hit, &big), 0);
	assert_int_equal(add(AT(2), 2 * PAGE, BOTH), 0);
	hit.version = 0;
	assert_int_equal(mc_rdma_lkey(f.dev, 0, AT(2), PAGE, &hit, &small), 0);
	assert_int_not_equal(small, big);
	/* Past its end only the older one holds it; past both none does. */
	assert_int_equal(mc_rdma_lkey(f.dev, 0, AT(2), 2 * PAGE + 1, &hit, &got), 0);
	assert_int_equal(got, big);
	assert_int_equal(mc_rdma_lkey(f.dev, 0, AT(7), PAGE + 1, &hit, &got), -MC_E_NOENT);
	assert_int_equal(mc_rdma_lkey(f.dev, 0, UINT64_MAX, 2, &hit, &got), -MC_E_NOENT);
	end();
}

static void remembered_key_is_used_until_a_range_goes(void **state)
{
	struct mc_rdma_mr_hit hit = {.version = 0};
	uint32_t first = 0, got;

	(void)state;
	start();
	assert_int_equal(add(AT(0), 4 * PAGE, BOTH), 0);
	assert_int_equal(add(AT(8), PAGE, BOTH), 0);
	assert_int_equal(mc_rdma_lkey(f.dev, 1, AT(1), 8, &hit, &first), 0);
	assert_int_equal(hit.addr, AT(0));
	assert_int_equal(hit.len, 4 * PAGE);
	assert_int_equal(mc_rdma_lkey(f.dev, 1, AT(4) - 1, 1, &hit, &got), 0);
	assert_int_equal(got, first);
	hit.lkey ^= 1; /* shows whether it is looked up anew */
	assert_int_equal(mc_rdma_lkey(f.dev, 1, AT(0), 4 * PAGE, &hit, &got), 0);
	assert_int_equal(got, first ^ 1);
	assert_int_equal(del(AT(8), PAGE), 0);
	assert_int_equal(mc_rdma_lkey(f.dev, 1, AT(0), 4 * PAGE, &hit, &got), 0);
	assert_int_equal(got, first);
	assert_int_equal(del(AT(0), 4 * PAGE), 0);
	assert_int_equal(mc_rdma_lkey(f.dev, 1, AT(0), 1, &hit, &got), -MC_E_NOENT);
	end();
}

static void port_that_refuses_has_no_key_and_others_serve(void **state)
{
	struct mc_rdma_mr_hit hit = {.version = 0};
	uint32_t got;

	(void)state;
	start();
	verbs_fake_fail(VERBS_FAKE_REG_MR, 1, EINVAL);
	assert_int_equal(add(AT(0), PAGE, BOTH), 0);
	assert_true(verbs_fake_fail_clear());
	assert_int_equal(rkey[1], 0);
	assert_int_not_equal(rkey[0], 0);
	assert_int_equal(mc_rdma_lkey(f.dev, 1, AT(0), 1, &hit, &got), -MC_E_NOENT);
	assert_int_equal(mc_rdma_lkey(f.dev, 0, AT(0), 1, &hit, &got), 0);
	assert_int_equal(mc_rdma_mrs_count(f.dev), PORTS - 1);
	end();
}

static void memory_that_must_not_be_written_is_registered_for_reading(void **state)
{
	struct mc_rdma_mr_hit hit = {.version = 0};
	uint8_t *ro = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	(void)state;
	assert_ptr_not_equal(ro, MAP_FAILED);
	start();
	assert_int_equal(add((uintptr_t)ro, PAGE, BOTH), 0);
	assert_int_equal(mc_rdma_lkey(f.dev, 0, (uintptr_t)ro, PAGE, &hit, lkey), 0);
	assert_true(hit.is_read_only);
	assert_int_equal(verbs_fake_mr_access(rkey[0]), IBV_ACCESS_REMOTE_READ);
	assert_true(mc_rdma_mem_is_read_only(&f.dev->x, (uintptr_t)ro, PAGE));
	assert_int_equal(del((uintptr_t)ro, PAGE), 0);
	/* Nothing is left that peers may do. */
	assert_int_equal(add((uintptr_t)ro, PAGE, MC_RIGHT_WRITE), 0);
	assert_int_equal(rkey[0], 0);
	assert_int_equal(del((uintptr_t)ro, PAGE), 0);
	assert_int_equal(add(AT(0), PAGE, BOTH), 0);
	assert_false(mc_rdma_mem_is_read_only(&f.dev->x, AT(0), PAGE));
	end();
	assert_int_equal(munmap(ro, PAGE), 0);
}

static void memory_that_no_port_takes_is_unsupported(void **state)
{
	uint8_t *gone;

	(void)state;
	start_with(&(struct verbs_fake_conf){.ndevs = 2, .max_mr_size = 2 * PAGE});
	gone = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(gone, MAP_FAILED);
	assert_int_equal(munmap(gone, PAGE), 0);
	assert_int_equal(add((uintptr_t)gone, PAGE, BOTH), -MC_E_UNSUPPORTED);
	assert_diag_has("fake0 cannot register this memory: not mapped");
	verbs_fake_fail(VERBS_FAKE_REG_MR, 0, ENOMEM); /* as Soft-RoCE says it */
	assert_int_equal(add((uintptr_t)gone, PAGE, BOTH), -MC_E_UNSUPPORTED);
	assert_diag_has("fake0 cannot register this memory: not mapped");
	assert_int_equal(add(AT(0), 3 * PAGE, BOTH), -MC_E_UNSUPPORTED);
	assert_diag_has("8192 bytes at most");
	assert_int_equal(live_mrs(), 0);
	end();
}

static void device_without_room_says_how_many_it_has(void **state)
{
	(void)state;
	start_with(&(struct verbs_fake_conf){.ndevs = 1, .max_mr = 2});
	assert_int_equal(add(AT(0), PAGE, BOTH), 0);
	assert_int_equal(add(AT(1), PAGE, BOTH), 0);
	assert_int_equal(add(AT(2), PAGE, BOTH), -MC_E_LIMIT);
	assert_diag_has("room for 2 ranges");
	end();
}

/* The capability that exempts from the limit of locked memory, off or on again. */
static void lock_capability(bool is_on)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];
	uint32_t bit = 1u << CAP_IPC_LOCK;

	assert_int_equal(syscall(SYS_capget, &head, data), 0);
	if (is_on)
		data[0].effective |= data[0].permitted & bit;
	else
		data[0].effective &= ~bit;
	assert_int_equal(syscall(SYS_capset, &head, data), 0);
}

static void limit_of_locked_memory_is_told_with_its_numbers(void **state)
{
	struct rlimit old, low = {.rlim_cur = 8192};

	(void)state;
	start_with(&(struct verbs_fake_conf){.ndevs = 2, .lock_bytes_max = 2 * PAGE});
	assert_int_equal(getrlimit(RLIMIT_MEMLOCK, &old), 0);
	low.rlim_max = old.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_MEMLOCK, &low), 0);
	lock_capability(false);
	assert_int_equal(add(AT(0), 3 * PAGE, BOTH), -MC_E_LIMIT);
	assert_diag_has("needs 12 KiB of locked memory");
	assert_diag_has("limit is 8 KiB");
	lock_capability(true);
	assert_int_equal(setrlimit(RLIMIT_MEMLOCK, &old), 0);
	/* Room for one device: the other one serves without. */
	assert_int_equal(add(AT(0), 2 * PAGE, BOTH), 0);
	assert_int_not_equal(rkey[0], 0);
	assert_int_equal(rkey[1], 0);
	end();
}

static void failed_device_is_not_asked(void **state)
{
	(void)state;
	start();
	verbs_fake_kill_dev(0);
	fix_step(&f);
	assert_int_equal(add(AT(0), PAGE, BOTH), 0);
	assert_int_equal(rkey[0], 0);
	assert_int_not_equal(rkey[1], 0);
	assert_int_equal(verbs_fake_calls(VERBS_FAKE_REG_MR), PORTS - 1);
	end();
}

static void large_range_is_present_and_at_every_port(void **state)
{
	const size_t len = 256u << 20;
	unsigned char *vec = mc_calloc(len / PAGE, 1);
	uint8_t *at = mmap(NULL, len, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	size_t present = 0;

	(void)state;
	assert_non_null(vec);
	assert_ptr_not_equal(at, MAP_FAILED);
	start();
	assert_int_equal(add((uintptr_t)at, len, BOTH), 0);
	for (unsigned i = 0; i < PORTS; i++)
		assert_int_not_equal(rkey[i], 0);
	assert_int_equal(mincore(at, len, vec), 0);
	for (size_t i = 0; i < len / PAGE; i++)
		present += vec[i] & 1;
	assert_int_equal(present, len / PAGE);
	assert_int_equal(del((uintptr_t)at, len), 0);
	assert_int_equal(live_mrs(), 0);
	end();
	assert_int_equal(munmap(at, len), 0);
	mc_free(vec);
}

static void *storm(void *arg)
{
	uint32_t keys[MC_RDMA_PORTS_MAX], got;
	struct mc_rdma_mr_hit hit = {.version = 0};
	uint64_t own = AT((uintptr_t)arg);

	for (int i = 0; i < 500; i++) {
		/* A range of its own, and one that all threads count. */
		mc_assert(mc_rdma_mem_add(&f.dev->x, own, PAGE, BOTH, keys, NULL) == 0);
		mc_assert(mc_rdma_mem_add(&f.dev->x, AT(8), PAGE, BOTH, keys, NULL) == 0);
		mc_assert(mc_rdma_lkey(f.dev, 1, own, PAGE, &hit, &got) == 0);
		mc_assert(mc_rdma_lkey(f.dev, 1, AT(8), 8, &hit, &got) == 0);
		mc_assert(mc_rdma_mem_del(&f.dev->x, own, PAGE) == 0);
		mc_assert(mc_rdma_lkey(f.dev, 1, own, PAGE, &hit, &got) == -MC_E_NOENT);
		mc_assert(mc_rdma_mem_del(&f.dev->x, AT(8), PAGE) == 0);
	}
	return NULL;
}

static void threads_register_and_look_up_at_once(void **state)
{
	pthread_t thread[4];

	(void)state;
	start();
	for (uintptr_t i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, storm, (void *)i), 0);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_join(thread[i], NULL), 0);
	assert_int_equal(live_mrs(), 0);
	assert_int_equal(mc_rdma_mrs_count(f.dev), 0);
	end();
}

static void forked_child_calls_no_verb(void **state)
{
	int status;
	pid_t pid;

	(void)state;
	start();
	assert_int_equal(add(AT(0), PAGE, BOTH), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		unsigned calls = verbs_fake_calls(VERBS_FAKE_ANY);
		bool is_ok =
		    add(AT(1), PAGE, BOTH) == -MC_E_FORKED && del(AT(0), PAGE) == -MC_E_FORKED;

		mc_rdma_mrs_close(f.dev);
		mc_rdma_hcas_close(f.dev);
		_exit(is_ok && verbs_fake_calls(VERBS_FAKE_ANY) == calls ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(live_mrs(), PORTS);
	end();
}

static void keys_go_through_bytes(void **state)
{
	uint8_t key[MC_XPORT_TOKEN_MAX];

	(void)state;
	for (unsigned i = 0; i < MC_RDMA_PORTS_MAX; i++)
		rkey[i] = 0x01020304 + i;
	mc_rdma_key_put(key, rkey);
	assert_int_equal(key[0], 4);
	for (unsigned i = 0; i < MC_RDMA_PORTS_MAX; i++)
		assert_int_equal(mc_rdma_key_get(key, i), rkey[i]);
	assert_int_equal(mc_rdma_key_get(key, MC_RDMA_PORTS_MAX), 0);
}

static void every_verb_fails_at_every_call_without_a_leak(void **state)
{
	static const int errs[] = {ENOMEM, EIO, EINVAL};
	bool is_over = false;

	(void)state;
	start();
	for (size_t e = 0; e < MC_ARRAY_LEN(errs); e++) {
		for (unsigned i = 0; i == 0 || !is_over; i++) {
			int rc, live = 0;

			verbs_fake_fail(VERBS_FAKE_REG_MR, i, errs[e]);
			rc = add(AT(0), PAGE, BOTH);
			is_over = !verbs_fake_fail_clear();
			assert_int_equal(rc, 0); /* the other ports serve */
			for (unsigned p = 0; p < PORTS; p++)
				live += rkey[p] != 0;
			assert_int_equal(live, is_over ? PORTS : PORTS - 1);
			assert_int_equal(live_mrs(), live);
			assert_int_equal(del(AT(0), PAGE), 0);
			assert_int_equal(live_mrs(), 0);
		}
	}
	for (unsigned i = 0; i < PORTS; i++) { /* EIO: the device is gone, and the region */
		assert_int_equal(add(AT(0), PAGE, BOTH), 0);
		verbs_fake_fail(VERBS_FAKE_DEREG_MR, i, EIO);
		assert_int_equal(del(AT(0), PAGE), 0);
		assert_true(verbs_fake_fail_clear());
		assert_int_equal(live_mrs(), 0);
	}
	end();
}

static void every_allocation_fails_without_a_leak(void **state)
{
	(void)state;
	start();
	for (int i = 0;; i++) {
		int rc;

		mc_mem_fail_after(i);
		rc = add(AT(0), PAGE, BOTH);
		mc_mem_fail_after(-1);
		if (rc == 0)
			break;
		assert_int_equal(rc, -MC_E_NOMEM);
		assert_int_equal(live_mrs(), 0);
	}
	mc_rdma_mrs_close(f.dev); /* ends what is left */
	assert_int_equal(live_mrs(), 0);
	mc_mem_fail_after(0);
	assert_int_equal(mc_rdma_mrs_open(f.dev), -MC_E_NOMEM);
	mc_mem_fail_after(-1);
	end();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(range_has_a_key_at_every_port),
	    cmocka_unit_test(device_enforces_the_rights_that_were_given),
	    cmocka_unit_test(relaxed_ordering_is_asked_for_only_when_set),
	    cmocka_unit_test(very_same_range_is_counted),
	    cmocka_unit_test(lookup_finds_the_newest_range_that_holds_all),
	    cmocka_unit_test(remembered_key_is_used_until_a_range_goes),
	    cmocka_unit_test(port_that_refuses_has_no_key_and_others_serve),
	    cmocka_unit_test(memory_that_must_not_be_written_is_registered_for_reading),
	    cmocka_unit_test(memory_that_no_port_takes_is_unsupported),
	    cmocka_unit_test(device_without_room_says_how_many_it_has),
	    cmocka_unit_test(limit_of_locked_memory_is_told_with_its_numbers),
	    cmocka_unit_test(failed_device_is_not_asked),
	    cmocka_unit_test(large_range_is_present_and_at_every_port),
	    cmocka_unit_test(threads_register_and_look_up_at_once),
	    cmocka_unit_test(forked_child_calls_no_verb),
	    cmocka_unit_test(keys_go_through_bytes),
	    cmocka_unit_test(every_verb_fails_at_every_call_without_a_leak),
	    cmocka_unit_test(every_allocation_fails_without_a_leak),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
