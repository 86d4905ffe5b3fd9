/*
 * ledger.c: see ledger.h.
 */
#include "ledger.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/mem.h"

#define SLACK_NS (2 * MC_NS_PER_S)
#define KEY_TEXT 24u

void ledger_fill(uint8_t *p, size_t len, uint64_t seed)
{
	for (size_t i = 0; i < len; i += 8) {
		uint64_t state = seed * 0x100000001ull + i, v = mc_splitmix64(&state);

		memcpy(p + i, &v, mc_min((size_t)8, len - i));
	}
}

bool ledger_is_filled(const uint8_t *p, size_t len, uint64_t seed)
{
	for (size_t i = 0; i < len; i += 8) {
		uint64_t state = seed * 0x100000001ull + i, v = mc_splitmix64(&state);

		if (memcmp(p + i, &v, mc_min((size_t)8, len - i)) != 0)
			return false;
	}
	return true;
}

struct ledger *ledger_open(uint64_t seed, uint32_t nkeys, int *ret_fd)
{
	struct ledger *l;

	assert_true(nkeys <= LEDGER_KEYS_MAX);
	*ret_fd = memfd_create("ledger", 0);
	assert_true(*ret_fd >= 0);
	assert_int_equal(ftruncate(*ret_fd, sizeof(*l)), 0);
	l = ledger_attach(*ret_fd);
	l->seed = seed;
	l->nkeys = nkeys;
	l->large_in = 4;
	l->timeout_ms = 20000;
	return l;
}

struct ledger *ledger_attach(int fd)
{
	void *p = mmap(NULL, sizeof(struct ledger), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	assert_true(p != MAP_FAILED);
	return p;
}

void ledger_close(struct ledger *l)
{
	(void)munmap(l, sizeof(*l));
}

/* ---- versions ---- */

static uint64_t name_of(uint32_t key, uint32_t version)
{
	return (uint64_t)key << 32 | version;
}

static size_t len_of(const struct ledger *l, uint32_t key, uint32_t version)
{
	uint64_t state = l->seed ^ name_of(key, version), v = mc_splitmix64(&state);

	return 8 + v % (version % l->large_in == 0 ? LEDGER_LEN_MAX - 8 : 20u << 10);
}

static size_t version_fill(const struct ledger *l, uint32_t key, uint32_t version, uint8_t *p)
{
	uint64_t name = name_of(key, version);
	size_t len = len_of(l, key, version);

	memcpy(p, &name, 8);
	ledger_fill(p + 8, len - 8, l->seed ^ name);
	return len;
}

/* What the ledger says before a read begins. */
struct bound {
	uint32_t key, low, unsure;
};

static struct bound bound_of(struct ledger *l, uint32_t key)
{
	return (struct bound){key, atomic_load(&l->keys[key].low),
			      atomic_load(&l->keys[key].unsure)};
}

static bool is_allowed(struct ledger *l, const struct bound *b, const uint8_t *p, int64_t got)
{
	uint64_t name;
	uint32_t version;

	if (got < 8)
		return false;
	memcpy(&name, p, 8);
	version = (uint32_t)name;
	if (name >> 32 != b->key || version == 0 || version > atomic_load(&l->keys[b->key].begun))
		return false;
	if (version < b->low && (b->unsure == 0 || version < b->unsure))
		return false;
	return (size_t)got == len_of(l, b->key, version) &&
	       ledger_is_filled(p + 8, (size_t)got - 8, l->seed ^ name);
}

/* ---- calls ---- */

static const char *text_of(uint32_t key, char text[KEY_TEXT])
{
	(void)snprintf(text, KEY_TEXT, "ledger-%u", key);
	return text;
}

static void timed(struct ledger_actor *a, uint64_t begin_ns)
{
	uint64_t ns = mc_now_ns() - begin_ns, ms = ns / MC_NS_PER_MS;
	uint64_t slowest = atomic_load(&a->l->slowest_ms);

	if (a->may_stop)
		return;
	if (ns > a->l->timeout_ms * MC_NS_PER_MS + SLACK_NS)
		atomic_fetch_add(&a->l->late, 1);
	while (ms > slowest && !atomic_compare_exchange_weak(&a->l->slowest_ms, &slowest, ms))
		;
}

static void wrong(struct ledger_actor *a, const struct bound *b, const uint8_t *p, int64_t got)
{
	uint64_t name = 0;

	atomic_fetch_add(&a->l->wrong, 1);
	memcpy(&name, p, got < 8 ? 0 : 8);
	(void)fprintf(stderr,
		      "WRONG: key %u has %lld bytes that say key %u version %u; begun %u, none "
		      "below %u, unsure from %u\n",
		      b->key, (long long)got, (unsigned)(name >> 32), (unsigned)name,
		      atomic_load(&a->l->keys[b->key].begun), b->low, b->unsure);
}

/* @return how many keys that are there were not found */
static uint32_t read_keys(struct ledger_actor *a, const uint32_t *keys, uint32_t n)
{
	struct mc_store_item items[LEDGER_BATCH];
	struct mc_store_part parts[LEDGER_BATCH];
	struct bound bounds[LEDGER_BATCH];
	char texts[LEDGER_BATCH][KEY_TEXT];
	int64_t got[LEDGER_BATCH] = {0};
	uint32_t lost = 0;
	uint64_t begin_ns;

	for (uint32_t i = 0; i < n; i++) {
		parts[i] =
		    (struct mc_store_part){a->buf + (size_t)i * LEDGER_LEN_MAX, LEDGER_LEN_MAX};
		memset(parts[i].addr, 0xee, 64);
		(void)text_of(keys[i], texts[i]);
		items[i] = (struct mc_store_item){{texts[i], strlen(texts[i])}, &parts[i], 1};
		bounds[i] = bound_of(a->l, keys[i]);
	}
	begin_ns = mc_now_ns();
	(void)!mc_store_get(a->st, items, n, got);
	timed(a, begin_ns);
	for (uint32_t i = 0; i < n; i++) {
		atomic_fetch_add(&a->l->reads, 1);
		if (got[i] >= 0) {
			atomic_fetch_add(&a->l->hits, 1);
			if (!is_allowed(a->l, &bounds[i], parts[i].addr, got[i]))
				wrong(a, &bounds[i], parts[i].addr, got[i]);
			continue;
		}
		if (got[i] != MC_STORE_OBJECT_NOT_FOUND)
			atomic_fetch_add(&a->l->errors, 1);
		lost += atomic_load(&a->l->keys[keys[i]].is_there);
	}
	return lost;
}

static void put_ended(struct ledger_actor *a, uint32_t key, uint32_t version, int ret)
{
	struct ledger_key *k = &a->l->keys[key];

	if (ret == 0) {
		atomic_store(&k->low, version);
		atomic_store(&k->unsure, 0);
		atomic_store(&k->is_there, true);
		atomic_fetch_add(&a->l->puts, 1);
		return;
	}
	atomic_fetch_add(&a->l->failed, 1);
	atomic_store(&k->is_there, false);
	if (atomic_load(&k->unsure) == 0)
		atomic_store(&k->unsure, version);
}

static void put_key(struct ledger_actor *a, uint32_t key)
{
	uint32_t version = atomic_fetch_add(&a->l->keys[key].begun, 1) + 1;
	struct mc_store_part part = {a->buf, version_fill(a->l, key, version, a->buf)};
	char text[KEY_TEXT];
	struct mc_store_item item = {{text_of(key, text), strlen(text)}, &part, 1};
	uint64_t begin_ns = mc_now_ns();
	int32_t ret = 1;

	(void)!mc_store_put(a->st, &item, 1, NULL, MC_STORE_UPSERT, &ret);
	timed(a, begin_ns);
	put_ended(a, key, version, ret);
}

static void remove_key(struct ledger_actor *a, uint32_t key)
{
	struct ledger_key *k = &a->l->keys[key];
	char text[KEY_TEXT];
	struct mc_store_key name = {text_of(key, text), strlen(text)};
	uint64_t begin_ns = mc_now_ns();
	int32_t ret = 1;

	atomic_store(&k->is_there, false);
	(void)!mc_store_remove(a->st, &name, 1, true, &ret);
	timed(a, begin_ns);
	if (ret != 0)
		return;
	atomic_store(&k->low, atomic_load(&k->begun) + 1);
	atomic_fetch_add(&a->l->removes, 1);
}

/* The first write of a key wins, so its object goes first. Written in two pieces. */
static void put_key_in_pieces(struct ledger_actor *a, uint32_t key)
{
	uint32_t version;
	uint64_t len, half, begin_ns;
	struct mc_store_range ranges[2];
	char text[KEY_TEXT];
	struct mc_store_key name = {text_of(key, text), strlen(text)};
	struct mc_store_ranged item = {name, ranges, 2};
	int64_t got = -1;
	int32_t ret = -1, removed = 1;

	atomic_store(&a->l->keys[key].is_there, false);
	(void)!mc_store_remove(a->st, &name, 1, true, &removed);
	if (removed != 0 && removed != MC_STORE_OBJECT_NOT_FOUND)
		return;
	if (removed == 0)
		atomic_store(&a->l->keys[key].low, atomic_load(&a->l->keys[key].begun) + 1);
	version = atomic_fetch_add(&a->l->keys[key].begun, 1) + 1;
	len = version_fill(a->l, key, version, a->buf);
	half = len / 2;
	ranges[0] = (struct mc_store_range){0, a->buf, half};
	ranges[1] = (struct mc_store_range){half, a->buf + half, len - half};
	begin_ns = mc_now_ns();
	(void)!mc_store_put_begin(a->st, &name, &len, 1, NULL, &ret);
	timed(a, begin_ns);
	if (ret == 0) {
		(void)!mc_store_put_ranges(a->st, &item, 1, &got);
		(void)!mc_store_put_end(a->st, &name, 1, got != (int64_t)len, &ret);
	}
	/* 0 is also said when another object was first: a late one of ours, perhaps. */
	if (ret == 0 && got == (int64_t)len && removed == 0 &&
	    atomic_load(&a->l->keys[key].unsure) == 0)
		put_ended(a, key, version, 0);
	else
		put_ended(a, key, version, -1);
}

static void pause_us(uint32_t us)
{
	struct timespec ts = {us / 1000000, (long)(us % 1000000) * 1000};

	(void)nanosleep(&ts, NULL);
}

void ledger_actor_init(struct ledger_actor *a, struct ledger *l, struct mc_store *st,
		       uint32_t first, uint32_t step, uint64_t salt)
{
	*a = (struct ledger_actor){
	    .l = l, .st = st, .first = first, .step = step, .reads_in = 2, .pause_us = 500};
	mc_rand_seed(&a->rand, l->seed * 31 + salt);
	a->buf = mc_aligned_alloc(4096, (size_t)LEDGER_BATCH * LEDGER_LEN_MAX);
	assert_non_null(a->buf);
}

void ledger_actor_fini(struct ledger_actor *a)
{
	mc_free(a->buf);
}

void ledger_act(struct ledger_actor *a)
{
	uint32_t keys[LEDGER_BATCH], n = 1 + (uint32_t)mc_rand_below(&a->rand, LEDGER_BATCH);
	uint32_t own = (a->l->nkeys - a->first + a->step - 1) / a->step;
	uint32_t key = a->first + a->step * (uint32_t)mc_rand_below(&a->rand, own);

	if (mc_rand_below(&a->rand, a->reads_in) != 0) {
		uint32_t from = (uint32_t)mc_rand_below(&a->rand, a->l->nkeys);

		for (uint32_t i = 0; i < n; i++)
			keys[i] = (from + i * 7) % a->l->nkeys;
		(void)read_keys(a, keys, n);
	} else {
		switch (mc_rand_below(&a->rand, 8)) {
		case 0:
			remove_key(a, key);
			break;
		case 1:
			put_key_in_pieces(a, key);
			break;
		default:
			put_key(a, key);
		}
	}
	if (a->pause_us)
		pause_us(a->pause_us);
}

void ledger_writer_died(struct ledger *l, uint32_t first, uint32_t step)
{
	for (uint32_t key = first; key < l->nkeys; key += step) {
		struct ledger_key *k = &l->keys[key];
		uint32_t begun = atomic_load(&k->begun);

		if (begun > 0 && atomic_load(&k->low) < begun && atomic_load(&k->unsure) == 0)
			atomic_store(&k->unsure, begun);
		if (atomic_load(&k->unsure) != 0)
			atomic_store(&k->is_there, false);
	}
}

uint32_t ledger_audit(struct ledger_actor *a)
{
	uint32_t lost = 0;

	for (uint32_t key = 0; key < a->l->nkeys; key++)
		lost += read_keys(a, &key, 1);
	return lost;
}
