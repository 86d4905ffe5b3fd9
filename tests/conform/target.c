/*
 * target.c: the process that owns the memory: registers it, watches its surroundings, and obeys.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/hash.h"
#include "conform.h"

#define GUARD_BYTES 4096u
#define BLOCK_BYTES 4096u
#define NOISE_BYTES (64u << 10)

struct target {
	struct side side;
	struct {
		uint8_t *map; /* NULL: the transport's memory */
		size_t map_len;
		uint8_t *at; /* the place, with `canary` bytes on both sides */
		size_t canary;
		uint64_t reg_off, reg_len; /* what of it is registered */
		bool is_reg;
	} mem[PLACE_COUNT];
};

/* Blocks of one random text from different starts, each stamped with its number. */
void pattern_fill(uint8_t *at, size_t len, uint64_t seed)
{
	static uint8_t noise[NOISE_BYTES];
	static bool is_made;

	if (!is_made) {
		struct mc_rand r;

		mc_rand_seed(&r, 1);
		for (size_t i = 0; i < NOISE_BYTES; i += 8) {
			uint64_t v = mc_rand_u64(&r);

			memcpy(noise + i, &v, 8);
		}
		is_made = true;
	}
	for (size_t off = 0; off < len; off += BLOCK_BYTES) {
		size_t n = mc_min(len - off, (size_t)BLOCK_BYTES);
		uint64_t stamp = seed * 0x9e3779b97f4a7c15ull + off;

		memcpy(at + off,
		       noise + (seed * 7 + off / BLOCK_BYTES * 523) % (NOISE_BYTES - BLOCK_BYTES),
		       n);
		memcpy(at + off, &stamp, mc_min(n, sizeof(stamp)));
	}
}

unsigned fds_open(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n;
}

uint64_t resident_kib(void)
{
	FILE *f = fopen("/proc/self/statm", "re");
	unsigned long total = 0, resident = 0;

	if (f) {
		if (fscanf(f, "%lu %lu", &total, &resident) != 2) /* NOLINT: the kernel's numbers */
			resident = 0;
		fclose(f);
	}
	return resident * (uint64_t)sysconf(_SC_PAGESIZE) / 1024;
}

/* len 0: the whole place */
static int place_add(struct target *t, enum place p, uint64_t off, uint64_t len,
		     struct mc_remote_region *ret_rr)
{
	uint8_t *at = t->mem[p].at + off;
	struct mc_region_desc desc = {
	    .addr = (uintptr_t)at, .len = len ? len : place_len(p), .rights = place_rights(p)};
	struct mc_region_info info;
	uint8_t key[MC_XPORT_TOKEN_MAX] = {0};
	int rc;

	if (t->side.tr->desc_fill)
		t->side.tr->desc_fill(&t->side, &desc);
	rc =
	    t->side.tr->mem_reg ? t->side.tr->mem_reg(&t->side, at, desc.len, desc.rights, key) : 0;
	if (rc == 0)
		rc = mc_region_add(t->side.regions, &desc, &info);
	if (rc < 0)
		return rc;
	t->mem[p].is_reg = true;
	t->mem[p].reg_off = off;
	t->mem[p].reg_len = desc.len;
	*ret_rr =
	    (struct mc_remote_region){.addr = t->side.tr->raddr ? t->side.tr->raddr(at) : desc.addr,
				      .len = desc.len,
				      .id = info.id,
				      .gen = t->side.tr->flags & T_ADDR ? 0 : info.gen,
				      .rights = desc.rights,
				      .kind = info.desc.kind,
				      .arena = info.desc.arena,
				      .arena_off = info.desc.arena_off};
	memcpy(ret_rr->key, key, sizeof(key));
	return 0;
}

static int place_del(struct target *t, enum place p)
{
	uint8_t *at = t->mem[p].at + t->mem[p].reg_off;
	int rc = mc_region_del(t->side.regions, (uintptr_t)at);

	t->mem[p].is_reg = rc < 0;
	if (rc == 0 && t->side.tr->mem_unreg)
		t->side.tr->mem_unreg(&t->side, at, t->mem[p].reg_len);
	return rc;
}

/* Only what is touched by mistake is between a place and its guard pages: the canary, or nothing.
 * Behind a file's last place there is the file's end. */
static int place_map(struct target *t, enum place p)
{
	bool is_bare = p == PLACE_EDGE && (!t->side.tr->mem_alloc || t->side.tr->flags & T_PLAIN);
	size_t canary = is_bare ? 0 : CANARY_BYTES;
	size_t want = place_len(p) + 2 * canary;
	size_t len = (want + 2 * GUARD_BYTES + 4095) / 4096 * 4096;
	uint8_t *m;

	if (t->side.tr->mem_alloc) {
		m = t->side.tr->mem_alloc(&t->side, want);
		if (!m)
			return -MC_E_NOMEM;
		t->mem[p].at = m + canary;
	} else {
		m = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (m == MAP_FAILED)
			return -MC_E_NOMEM;
		if (mprotect(m, GUARD_BYTES, PROT_NONE) != 0 ||
		    mprotect(m + len - GUARD_BYTES, GUARD_BYTES, PROT_NONE) != 0)
			return -MC_E_NOMEM;
		t->mem[p].map = m;
		t->mem[p].map_len = len;
		t->mem[p].at = m + GUARD_BYTES + canary;
	}
	t->mem[p].canary = canary;
	memset(t->mem[p].at - canary, CANARY, want);
	return 0;
}

static uint64_t guards_changed(const struct target *t)
{
	uint64_t n = 0;

	for (int p = 0; p < PLACE_COUNT; p++) {
		const uint8_t *at = t->mem[p].at, *end = at + place_len((enum place)p);

		for (size_t i = 0; i < t->mem[p].canary; i++)
			n += (at[-1 - (ptrdiff_t)i] != CANARY) + (end[i] != CANARY);
	}
	return n;
}

int target_open(const struct transport *tr, struct target **ret_target, struct hello *ret_hello)
{
	struct target *t = mc_calloc(1, sizeof(*t));
	int rc;

	if (!t)
		return -MC_E_NOMEM;
	rc = side_open(&t->side, tr);
	if (rc < 0)
		return rc;
	memset(ret_hello, 0, sizeof(*ret_hello));
	ret_hello->epoch = t->side.epoch;
	memcpy(ret_hello->nonce, t->side.nonce, sizeof(ret_hello->nonce));
	if (tr->hello)
		tr->hello(&t->side, ret_hello);
	for (int p = 0; p < PLACE_COUNT && rc == 0; p++) {
		rc = place_map(t, (enum place)p);
		if (rc == 0)
			rc = place_add(t, (enum place)p, 0, 0, &ret_hello->rr[p]);
	}
	*ret_target = t;
	return rc;
}

void target_close(struct target *t)
{
	for (int p = 0; p < PLACE_COUNT; p++) {
		if (t->mem[p].is_reg)
			(void)place_del(t, (enum place)p);
		if (t->mem[p].map)
			munmap(t->mem[p].map, t->mem[p].map_len);
	}
	side_close(&t->side);
	mc_free(t);
}

const struct side *target_side(const struct target *t)
{
	return &t->side;
}

static void nothing(void *arg)
{
	(void)arg;
}

/* What the loops did before is seen after. */
static void loops_settle(struct target *t)
{
	for (unsigned i = 0; i < t->side.nloops; i++)
		mc_loop_call(t->side.loops[i], nothing, NULL);
}

static void signal_wait(struct target *t, const struct order *o, struct reply *r)
{
	_Atomic uint64_t *word = (_Atomic uint64_t *)(void *)(t->mem[o->i].at + o->a);
	uint64_t end_ns = mc_now_ns() + WAIT_NS;

	/* acquire: pairs with the release of the signal; that alone orders the data */
	while (atomic_load_explicit(word, memory_order_acquire) != o->b) {
		if (mc_now_ns() > end_ns) {
			r->rc = -MC_E_TIMEDOUT;
			return;
		}
	}
	r->val = mc_hash64(t->mem[o->i].at + o->c, o->d - o->c, 0);
}

static int place_show(struct target *t, enum place p, bool is_shown)
{
	if (!t->mem[p].map)
		return 0;
	return mprotect(t->mem[p].at, place_len(p), is_shown ? PROT_READ | PROT_WRITE : PROT_NONE);
}

void target_obey(struct target *t, const struct order *o, struct reply *r)
{
	uint8_t *at = t->mem[o->i].at;

	memset(r, 0, sizeof(*r));
	if (o->op != ORDER_SIGNAL) /* whose word alone must order the data */
		loops_settle(t);
	switch (o->op) {
	case ORDER_FILL:
		pattern_fill(at, place_len((enum place)o->i), o->a);
		break;
	case ORDER_DIGEST:
		r->val = mc_hash64(at + o->a, o->b, 0);
		break;
	case ORDER_GUARDS:
		r->val = guards_changed(t);
		break;
	case ORDER_DEL:
		r->rc = place_del(t, (enum place)o->i);
		break;
	case ORDER_ADD:
		r->rc = place_add(t, (enum place)o->i, o->a, o->b, &r->rr);
		break;
	case ORDER_HIDE:
	case ORDER_SHOW:
		r->rc = place_show(t, (enum place)o->i, o->op == ORDER_SHOW);
		break;
	case ORDER_RETIRE:
		r->rc = t->side.dev->ops->retire(t->side.dev, o->token, o->a, &r->val);
		break;
	case ORDER_SIGNAL:
		signal_wait(t, o, r);
		break;
	case ORDER_ACCEPT:
		r->rc = t->side.dev->ops->accept(t->side.dev, o->b, o->offer, o->a, r->answer,
						 sizeof(r->answer));
		break;
	case ORDER_FORGET:
		t->side.tr->forget(&t->side, o->a);
		break;
	case ORDER_STAT:
		r->val = fds_open();
		r->val2 = (uint64_t)mc_mem_live();
		r->val3 = resident_kib();
		break;
	case ORDER_QUIT:
		break;
	}
	loops_settle(t);
}

int target_main(const struct transport *tr, int ctl)
{
	struct target *t = NULL;
	struct hello h;
	struct order o = {.op = ORDER_STAT};
	struct reply r;

	if (target_open(tr, &t, &h) < 0 || send(ctl, &h, sizeof(h), MSG_NOSIGNAL) != sizeof(h))
		return 1;
	while (o.op != ORDER_QUIT && recv(ctl, &o, sizeof(o), 0) == sizeof(o)) {
		target_obey(t, &o, &r);
		if (o.op == ORDER_QUIT)
			target_close(t);
		if (send(ctl, &r, sizeof(r), MSG_NOSIGNAL) != sizeof(r))
			return 1;
	}
	return 0;
}
