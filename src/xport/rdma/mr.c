/*
 * mr.c: memory registrations: one range, one key a port.
 *
 * Registering pins pages, which takes milliseconds per GiB: it is done without the lock, at all
 * ports at once when the range is large, after its pages have been made present by several threads
 * (the kernel would do it with one). The lock guards the set of ranges alone. A range that is not
 * the very same one as an earlier one is a registration of its own, also where they overlap; a
 * lookup takes the newest one that holds what is asked for.
 *
 * The version changes when a range goes, so a key that a lane remembers is good while the version
 * is the one that it was found under.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/codec.h"
#include "base/fork.h"
#include "base/itree.h"
#include "base/log.h"
#include "base/mem.h"
#include "xport/rdma/priv.h"

#define PARALLEL_BYTES (64ull << 20) /* from here on a thread for each port is worth its start */
#define TOUCH_BYTES (256ull << 20)   /* from here on pages are made present by several threads */
#define TOUCH_THREADS 8u
#define TOUCH_PAGE 4096u
#define ACCESS_WRITES ((unsigned)(IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE))
#define CAP_IPC_LOCK_BIT 14
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

struct range {
	struct mc_inode node;
	uint64_t seq; /* larger: newer */
	uint32_t refs;
	unsigned rights;   /* asked for */
	bool is_read_only; /* memory that is not to be written: by nobody, then */
	struct ibv_mr *mr[MC_RDMA_PORTS_MAX]; /* NULL: not at this port */
};

struct mc_rdma_mrs {
	pthread_mutex_t lock; /* a leaf; tree, next_seq, refs of ranges */
	struct mc_itree tree;
	uint64_t next_seq;
	_Atomic uint32_t count[MC_RDMA_PORTS_MAX];
};

static struct mc_rdma_dev *dev_of(struct mc_xdev *x)
{
	return mc_container_of(x, struct mc_rdma_dev, x);
}

/* ---- work by several threads ---- */

struct part {
	void (*run)(void *user, unsigned index);
	void *user;
	unsigned index;
	pthread_t thread;
	bool is_started;
};

static void *part_main(void *arg)
{
	struct part *p = arg;

	p->run(p->user, p->index);
	return NULL;
}

/* run(user, 0 … n - 1), each in a thread of its own, the last one here; without threads also the
 * others. */
static void run_parts(unsigned n, void (*run)(void *user, unsigned index), void *user)
{
	struct part part[MC_RDMA_PORTS_MAX > TOUCH_THREADS ? MC_RDMA_PORTS_MAX : TOUCH_THREADS];
	sigset_t all, old;

	mc_assert(n <= MC_ARRAY_LEN(part));
	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old); /* signals are the program's threads' */
	for (unsigned i = 0; i + 1 < n; i++) {
		part[i] = (struct part){.run = run, .user = user, .index = i};
		part[i].is_started =
		    pthread_create(&part[i].thread, NULL, part_main, &part[i]) == 0;
	}
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (n > 0)
		run(user, n - 1);
	for (unsigned i = 0; i + 1 < n; i++) {
		if (part[i].is_started)
			(void)pthread_join(part[i].thread, NULL); /* it is ours and joinable */
		else
			run(user, i);
	}
}

struct touching {
	uint64_t start, end, step;
};

/* Failing is no matter: registering then does it, or says what is wrong. */
static void touch_part(void *user, unsigned index)
{
	const struct touching *t = user;
	uint64_t from = t->start + t->step * index;
	uint64_t to = mc_min(from + t->step, t->end);

	if (from < to)
		(void)madvise((void *)(uintptr_t)from, to - from, MADV_POPULATE_WRITE);
}

static void touch(uint64_t addr, uint64_t len)
{
	uint64_t mask = TOUCH_PAGE - 1;
	struct touching t = {.start = (addr + mask) & ~mask, .end = (addr + len) & ~mask};
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned n = cpus < 1 ? 1 : mc_min((unsigned)cpus, TOUCH_THREADS);

	if (len < TOUCH_BYTES)
		return;
	t.step = ((t.end - t.start + n - 1) / n + mask) & ~mask;
	run_parts(n, touch_part, &t);
}

/* ---- registering at the ports ---- */

struct registering {
	struct mc_rdma_dev *dev;
	uint64_t addr, len;
	unsigned access;
	struct range *r;
	uint32_t up;			  /* bit a port that was up at the beginning */
	uint8_t ports[MC_RDMA_PORTS_MAX]; /* that are being worked at */
	bool is_read_only[MC_RDMA_PORTS_MAX];
	int err[MC_RDMA_PORTS_MAX];
};

static struct ibv_mr *reg(const struct mc_verbs *v, struct ibv_pd *pd, const struct registering *g,
			  unsigned access)
{
	void *mem = (void *)(uintptr_t)g->addr;

	errno = 0;
	if (access & IBV_ACCESS_RELAXED_ORDERING)
		return v->reg_mr_iova2(pd, mem, g->len, g->addr, access);
	return v->reg_mr(pd, mem, g->len, (int)access);
}

static void reg_at(void *user, unsigned at)
{
	struct registering *g = user;
	unsigned index = g->ports[at];
	struct mc_rdma_hca *h = &g->dev->hca[index];
	const struct mc_verbs *v = g->dev->v;

	if (atomic_load(&h->is_fatal)) {
		g->err[index] = EIO;
		return;
	}
	if (g->len > h->attr.max_mr_size) {
		g->err[index] = EFBIG;
		return;
	}
	g->r->mr[index] = reg(v, h->pd, g, g->access);
	if (!g->r->mr[index] && (errno == EFAULT || errno == EACCES || errno == EPERM)) {
		/* The kernel says this of memory that must not be written, too. */
		g->r->mr[index] = reg(v, h->pd, g, g->access & ~ACCESS_WRITES);
		g->is_read_only[index] = g->r->mr[index] != NULL;
	}
	if (!g->r->mr[index])
		g->err[index] = errno ? errno : EIO;
	else
		atomic_fetch_add(&g->dev->mrs->count[index], 1);
}

static void dereg_at(void *user, unsigned at)
{
	struct registering *g = user;
	unsigned index = g->ports[at];
	int err;

	if (!g->r->mr[index])
		return;
	err = g->dev->v->dereg_mr(g->r->mr[index]);
	if (err)
		mc_log_warn("memory did not leave an RDMA device", "dev=%s addr=0x%llx errno=%d",
			    g->dev->hca[index].port.name, (unsigned long long)g->addr, err);
	g->r->mr[index] = NULL;
	atomic_fetch_sub(&g->dev->mrs->count[index], 1);
}

static void at_ports(struct registering *g, uint32_t ports, void (*run)(void *user, unsigned at))
{
	unsigned n = 0;

	for (unsigned i = 0; i < g->dev->nhcas; i++)
		if (ports & 1u << i)
			g->ports[n++] = (uint8_t)i;
	if (g->len >= PARALLEL_BYTES) {
		run_parts(n, run, g);
		return;
	}
	for (unsigned i = 0; i < n; i++)
		run(g, i);
}

/* What a limit leaves goes to ports that are of use now. */
static void reg_all(struct registering *g)
{
	for (unsigned i = 0; i < g->dev->nhcas; i++)
		if (mc_rdma_port_is_up(&g->dev->x, i))
			g->up |= 1u << i;
	at_ports(g, g->up, reg_at);
	at_ports(g, ~g->up, reg_at);
}

static void range_end(struct mc_rdma_dev *dev, struct range *r)
{
	struct registering g = {.dev = dev, .addr = r->node.start, .r = r};

	g.len = r->node.end - r->node.start;
	at_ports(&g, UINT32_MAX, dereg_at);
	mc_free(r);
}

static unsigned access_of(const struct mc_rdma_dev *dev, unsigned rights)
{
	unsigned access = IBV_ACCESS_LOCAL_WRITE; /* reads of ours land there */

	if (rights & MC_RIGHT_READ)
		access |= IBV_ACCESS_REMOTE_READ;
	if (rights & MC_RIGHT_WRITE)
		access |= IBV_ACCESS_REMOTE_WRITE;
	if (dev->conf.is_relaxed_ordering && dev->v->reg_mr_iova2)
		access |= IBV_ACCESS_RELAXED_ORDERING; /* ignored by devices that have none */
	return access;
}

/* ---- why it failed ---- */

/* A number of /proc/self/status; 0 when it is not told. */
static unsigned long long status_of(const char *key, int base)
{
	FILE *file = fopen("/proc/self/status", "re");
	unsigned long long value = 0;
	size_t len = strlen(key);
	char line[256];

	while (file && fgets(line, sizeof(line), file)) {
		if (strncmp(line, key, len) == 0) {
			value = strtoull(line + len, NULL, base);
			break;
		}
	}
	if (file)
		(void)fclose(file); /* nothing was written */
	return value;
}

/* ENOMEM has three reasons, and the kernel does not say which. */
static int explain_nomem(const struct registering *g, unsigned index, struct mc_diag *diag)
{
	const struct mc_rdma_hca *h = &g->dev->hca[index];
	unsigned long long pinned = status_of("VmPin:", 10), need = g->len >> 10, limit;
	bool is_exempt = status_of("CapEff:", 16) >> CAP_IPC_LOCK_BIT & 1;
	uint32_t count = atomic_load(&g->dev->mrs->count[index]);
	struct rlimit rl;

	if (h->attr.max_mr > 0 && count >= (uint32_t)h->attr.max_mr) {
		mc_diag_set(diag, "%s has room for %d ranges: register fewer, larger ones",
			    h->port.name, h->attr.max_mr);
		return -MC_E_LIMIT;
	}
	if (getrlimit(RLIMIT_MEMLOCK, &rl) == 0 && rl.rlim_cur != RLIM_INFINITY) {
		limit = (unsigned long long)rl.rlim_cur >> 10;
		if (!is_exempt && pinned + need > limit) {
			mc_diag_set(diag,
				    "%s needs %llu KiB of locked memory, %llu KiB are in use and "
				    "the limit is %llu KiB: raise it (ulimit -l unlimited, "
				    "LimitMEMLOCK=infinity, --ulimit memlock=-1)",
				    h->port.name, need, pinned, limit);
			return -MC_E_LIMIT;
		}
	}
	mc_diag_set(diag, "%s could not register %llu KiB: out of memory (%llu KiB are locked)",
		    h->port.name, need, pinned);
	return -MC_E_NOMEM;
}

/* msync() looks at the map alone when nothing is to be waited for. */
static bool is_mapped(const struct registering *g)
{
	uint64_t mask = (uint64_t)sysconf(_SC_PAGESIZE) - 1;
	uint64_t start = g->addr & ~mask;

	return msync((void *)(uintptr_t)start, g->addr + g->len - start, MS_ASYNC) == 0 ||
	       errno != ENOMEM;
}

static int explain(const struct registering *g, unsigned index, struct mc_diag *diag)
{
	const struct mc_rdma_hca *h = &g->dev->hca[index];
	const char *why;

	switch (g->err[index]) {
	case ENOMEM:
	case EAGAIN:
		/* The kernel says this, too, of memory that is not there. */
		if (is_mapped(g))
			return explain_nomem(g, index, diag);
		why = "not mapped";
		break;
	case EFBIG:
		mc_diag_set(diag, "%s takes ranges of %llu bytes at most", h->port.name,
			    (unsigned long long)h->attr.max_mr_size);
		return -MC_E_UNSUPPORTED;
	case EFAULT:
		why = "not mapped, or not all of it writable";
		break;
	case EIO:
		why = "the device failed";
		break;
	default:
		why = strerror(g->err[index]);
		break;
	}
	mc_diag_set(diag, "%s cannot register this memory: %s", h->port.name, why);
	return -MC_E_UNSUPPORTED;
}

/* Is any port left? A limit comes before other reasons: the user can raise it. */
static int outcome(const struct registering *g, struct mc_diag *diag)
{
	struct mc_diag one = {.text = ""};
	int rc = -MC_E_UNSUPPORTED, err;
	bool is_taken = false;

	for (unsigned i = 0; i < g->dev->nhcas; i++) {
		is_taken = is_taken || g->r->mr[i];
		g->r->is_read_only = g->r->is_read_only || g->is_read_only[i];
	}
	for (unsigned i = 0; i < g->dev->nhcas; i++) {
		if (g->r->mr[i])
			continue;
		err = explain(g, i, &one);
		if (is_taken && (err == -MC_E_UNSUPPORTED || !(g->up & 1u << i)))
			mc_log_debug("RDMA device without this memory", "why='%s'", one.text);
		else if (is_taken)
			mc_log_warn("RDMA device without this memory", "why='%s'", one.text);
		else if (i == 0 || (rc == -MC_E_UNSUPPORTED && err != rc)) {
			mc_diag_set(diag, "%s", one.text);
			rc = err;
		}
	}
	return is_taken ? 0 : rc;
}

/* ---- the set ---- */

static struct range *find_exact(const struct mc_rdma_mrs *m, uint64_t addr, uint64_t len)
{
	struct mc_inode *node = mc_itree_find_exact(&m->tree, addr, addr + len);

	return node ? mc_container_of(node, struct range, node) : NULL;
}

/* What peers may do with it. */
static unsigned rights_left(const struct range *r)
{
	return r->is_read_only ? r->rights & ~(unsigned)MC_RIGHT_WRITE : r->rights;
}

static void rkeys_of(const struct range *r, uint32_t *ret_rkey)
{
	for (unsigned i = 0; i < MC_RDMA_PORTS_MAX; i++)
		ret_rkey[i] = r->mr[i] && rights_left(r) ? r->mr[i]->rkey : 0;
}

/* Count one more of the very same range. @return 1: done; 0: there is none; -MC_E_INVAL */
static int count_again(struct mc_rdma_mrs *m, uint64_t addr, uint64_t len, unsigned rights,
		       uint32_t *ret_rkey, struct mc_diag *diag)
{
	struct range *r = find_exact(m, addr, len);

	if (!r)
		return 0;
	if (r->rights != rights) {
		mc_diag_set(diag, "this range is registered with other rights");
		return -MC_E_INVAL;
	}
	r->refs++;
	rkeys_of(r, ret_rkey);
	return 1;
}

uint64_t mc_rdma_range_max(const struct mc_xdev *x)
{
	const struct mc_rdma_dev *dev = (const struct mc_rdma_dev *)x;
	uint64_t most = UINT64_MAX;

	for (unsigned i = 0; i < dev->nhcas; i++)
		most = mc_min(most, dev->hca[i].attr.max_mr_size);
	return most;
}

int mc_rdma_mem_add(struct mc_xdev *x, uint64_t addr, uint64_t len, unsigned rights,
		    uint32_t ret_rkey[MC_RDMA_PORTS_MAX], struct mc_diag *diag)
{
	struct mc_rdma_dev *dev = dev_of(x);
	struct mc_rdma_mrs *m = dev->mrs;
	struct registering g = {.dev = dev, .addr = addr, .len = len};
	int rc;

	mc_assert(len > 0 && addr <= UINT64_MAX - len);
	if (mc_fork_is_child(dev->fork_gen))
		return -MC_E_FORKED;
	pthread_mutex_lock(&m->lock);
	rc = count_again(m, addr, len, rights, ret_rkey, diag);
	pthread_mutex_unlock(&m->lock);
	if (rc != 0)
		return mc_min(rc, 0);
	g.r = mc_calloc(1, sizeof(*g.r));
	if (!g.r)
		return -MC_E_NOMEM;
	*g.r = (struct range){.node = {.start = addr, .end = addr + len}, .refs = 1};
	g.r->rights = rights;
	g.access = access_of(dev, rights);
	touch(addr, len);
	reg_all(&g);
	rc = outcome(&g, diag);
	if (rc < 0) {
		mc_free(g.r);
		return rc;
	}
	pthread_mutex_lock(&m->lock);
	rc = count_again(m, addr, len, rights, ret_rkey, diag); /* another thread was faster */
	if (rc == 0) {
		g.r->seq = m->next_seq++;
		mc_itree_insert(&m->tree, &g.r->node, addr, addr + len);
		rkeys_of(g.r, ret_rkey);
	}
	pthread_mutex_unlock(&m->lock);
	if (rc != 0)
		range_end(dev, g.r);
	return mc_min(rc, 0);
}

int mc_rdma_mem_del(struct mc_xdev *x, uint64_t addr, uint64_t len)
{
	struct mc_rdma_dev *dev = dev_of(x);
	struct mc_rdma_mrs *m = dev->mrs;
	struct range *r;
	bool is_last;

	if (mc_fork_is_child(dev->fork_gen))
		return -MC_E_FORKED;
	pthread_mutex_lock(&m->lock);
	r = find_exact(m, addr, len);
	is_last = r && --r->refs == 0;
	if (is_last) {
		mc_itree_del(&m->tree, &r->node);
		/* release: pairs with the acquire in mc_rdma_lkey_hit(). 0 is never a version. */
		if (atomic_fetch_add_explicit(&dev->mrs_version, 1, memory_order_release) ==
		    UINT32_MAX)
			atomic_fetch_add_explicit(&dev->mrs_version, 1, memory_order_release);
	}
	pthread_mutex_unlock(&m->lock);
	if (is_last)
		range_end(dev, r);
	return r ? 0 : -MC_E_NOENT;
}

int mc_rdma_mem_keys(struct mc_xdev *x, uint64_t addr, uint64_t len,
		     uint32_t ret_rkey[MC_RDMA_PORTS_MAX], uint32_t ret_lkey[MC_RDMA_PORTS_MAX])
{
	struct mc_rdma_mrs *m = dev_of(x)->mrs;
	struct range *r;

	pthread_mutex_lock(&m->lock);
	r = find_exact(m, addr, len);
	if (r) {
		rkeys_of(r, ret_rkey);
		for (unsigned i = 0; i < MC_RDMA_PORTS_MAX; i++)
			ret_lkey[i] = r->mr[i] ? r->mr[i]->lkey : 0;
	}
	pthread_mutex_unlock(&m->lock);
	return r ? 0 : -MC_E_NOENT;
}

bool mc_rdma_mem_is_read_only(struct mc_xdev *x, uint64_t addr, uint64_t len)
{
	struct mc_rdma_mrs *m = dev_of(x)->mrs;
	struct range *r;
	bool is_it;

	pthread_mutex_lock(&m->lock);
	r = find_exact(m, addr, len);
	is_it = r && r->is_read_only;
	pthread_mutex_unlock(&m->lock);
	return is_it;
}

/* The newest range that holds [addr, addr + len) and is at this port. */
static struct range *find_newest(const struct mc_rdma_mrs *m, unsigned index, uint64_t addr,
				 uint64_t len)
{
	uint64_t end = addr + len;
	struct range *best = NULL, *r;
	struct mc_inode *n;

	for (n = mc_itree_overlap_first(&m->tree, addr, addr + 1); n;
	     n = mc_itree_overlap_next(n, addr, addr + 1)) {
		r = mc_container_of(n, struct range, node);
		if (n->end >= end && r->mr[index] && (!best || r->seq > best->seq))
			best = r;
	}
	return best;
}

int mc_rdma_lkey_find(struct mc_rdma_dev *dev, unsigned index, uint64_t addr, uint64_t len,
		      struct mc_rdma_mr_hit *hit)
{
	struct mc_rdma_mrs *m = dev->mrs;
	struct range *r = NULL;

	pthread_mutex_lock(&m->lock);
	if (len > 0 && addr <= UINT64_MAX - len)
		r = find_newest(m, index, addr, len);
	if (r)
		*hit = (struct mc_rdma_mr_hit){
		    .addr = r->node.start,
		    .len = r->node.end - r->node.start,
		    .lkey = r->mr[index]->lkey,
		    .is_read_only = r->is_read_only,
		    .version = atomic_load_explicit(&dev->mrs_version, memory_order_relaxed),
		};
	pthread_mutex_unlock(&m->lock);
	return r ? 0 : -MC_E_NOENT;
}

uint32_t mc_rdma_mrs_count(const struct mc_rdma_dev *dev)
{
	uint32_t n = 0;

	for (unsigned i = 0; i < MC_RDMA_PORTS_MAX; i++)
		n += atomic_load_explicit(&dev->mrs->count[i], memory_order_relaxed);
	return n;
}

/* ---- keys as bytes ---- */

_Static_assert(MC_RDMA_PORTS_MAX * 4 <= MC_XPORT_TOKEN_MAX, "a key for each port");

void mc_rdma_key_put(uint8_t key[MC_XPORT_TOKEN_MAX], const uint32_t rkey[MC_RDMA_PORTS_MAX])
{
	struct mc_wr w = mc_wr_make(key, MC_XPORT_TOKEN_MAX);

	memset(key, 0, MC_XPORT_TOKEN_MAX);
	for (unsigned i = 0; i < MC_RDMA_PORTS_MAX; i++)
		mc_wr_u32(&w, rkey[i]);
}

/* ---- life ---- */

int mc_rdma_mrs_open(struct mc_rdma_dev *dev)
{
	struct mc_rdma_mrs *m = mc_calloc(1, sizeof(*m));

	if (!m)
		return -MC_E_NOMEM;
	if (pthread_mutex_init(&m->lock, NULL) != 0) {
		mc_free(m);
		return -MC_E_NOMEM;
	}
	atomic_init(&dev->mrs_version, 1);
	dev->mrs = m;
	return 0;
}

void mc_rdma_mrs_close(struct mc_rdma_dev *dev)
{
	bool is_child = mc_fork_is_child(dev->fork_gen);
	struct mc_rdma_mrs *m = dev->mrs;
	struct mc_inode *n;

	if (!m)
		return;
	while ((n = mc_itree_first(&m->tree))) {
		struct range *r = mc_container_of(n, struct range, node);

		mc_itree_del(&m->tree, n);
		if (is_child)
			mc_free(r);
		else
			range_end(dev, r);
	}
	(void)pthread_mutex_destroy(&m->lock); /* nobody holds it */
	mc_free(m);
	dev->mrs = NULL;
}
