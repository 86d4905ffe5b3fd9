/*
 * sim_engine.c: see sim_engine.h. A group is cut into pieces; a piece of a write takes its bytes
 * along when it leaves and puts them down when it arrives; a piece of a read takes them at the
 * target and arrives later. When a group ends early, what has not arrived never does, unless the
 * target cannot be asked: the group is then unfenced, and its pieces arrive whenever they can, long
 * after their target can be reached again. So do those that a dead process had sent.
 */
#include "sim/vos/sim_engine.h"

#include <string.h>

#include <mooncake/engine.h>

#include "base/err.h"
#include "base/mem.h"
#include "base/statreg.h"
#include "base/str.h"
#include "engine/metrics.h"
#include "sim/vos/vos.h"

#define ENGINES_MAX 512u
#define REGIONS_MAX 64u
#define SEGMENTS_MAX 64u
#define GROUPS_MAX 256u /* of an engine */
#define NAME_MAX_BYTES 64u
#define PORT 7000
#define DEATH_MAX_NS (300 * MC_NS_PER_MS) /* until others are told */
#define LATE_NS (1500 * MC_NS_PER_MS)	  /* what nobody could fence arrives by then */

struct region {
	uint64_t addr, len;
	bool is_ours;
};

/* What becomes of a group's pieces when it has ended; outlives it. */
struct fate {
	bool is_unfenced;
};

struct group {
	struct mc_engine *eng; /* NULL: free */
	struct fate *fate;     /* of what is transferred */
	uint64_t id;
	unsigned left; /* pieces */
	uint64_t bytes, user;
	struct mc_cq *cq;
	struct mc_engine *watched; /* a watch: nothing else */
	const struct mc_tap *tap;  /* of one that is waited for in mc_transfer_sync() */
	int rc, status;
	bool is_done, is_forgotten;
};

struct mc_engine {
	struct vos_proc *proc;
	char name[NAME_MAX_BYTES], address[NAME_MAX_BYTES];
	struct region regions[REGIONS_MAX];
	unsigned nregions, refs;
	char segments[SEGMENTS_MAX][NAME_MAX_BYTES];
	unsigned nsegments;
	struct group groups[GROUPS_MAX];
	uint64_t ids;
	struct mc_stat_reg *stats; /* the process's memory */
	bool is_dead;
};

struct mc_cq {
	struct mc_engine *eng;
	int fd;
	struct mc_completion *ends;
	unsigned n, depth;
};

struct piece {
	struct group *group;
	const struct fate *fate;
	uint64_t id; /* of the group: it may have ended */
	struct mc_engine *from, *target;
	uint64_t local, remote;
	uint32_t len, transfer;
	uint64_t at;		/* in its transfer */
	bool is_read, is_taken; /* a read's second half */
	bool is_late;		/* nobody could fence it: it was kept for a while */
	uint64_t sent_ns;
	struct piece *next; /* held */
	uint8_t data[];
};

struct sim_engine_conf sim_engine_conf;
struct sim_engine_stats sim_engine_stats;

static struct mc_engine *engines[ENGINES_MAX]; /* also the dead ones: pieces name them */
static unsigned nengines;
static struct piece *held; /* until sim_engine_moved() */

static void piece_arrive(void *arg);

static struct mc_engine *find(const char *name)
{
	for (unsigned i = 0; i < nengines; i++) {
		if (!engines[i]->is_dead && strcmp(engines[i]->name, name) == 0)
			return engines[i];
	}
	return NULL;
}

static bool is_cut(const struct mc_engine *a, const struct mc_engine *b)
{
	return vos_net_is_cut(a->proc->host, b->proc->host);
}

/* Nothing comes to it now. */
static bool is_silent(const struct mc_engine *from, const struct mc_engine *target)
{
	return is_cut(from, target) ||
	       (!target->is_dead && target->proc->is_stopped && !sim_engine_conf.is_one_sided);
}

/* ---- groups ---- */

static struct group *group_find(struct mc_engine *eng, uint64_t id)
{
	struct group *g = &eng->groups[id % GROUPS_MAX];

	return id && g->eng && g->id == id ? g : NULL;
}

static struct group *group_new(struct mc_engine *eng)
{
	for (unsigned i = 0; i < GROUPS_MAX; i++) {
		uint64_t id = ++eng->ids;
		struct group *g = &eng->groups[id % GROUPS_MAX];

		if (g->eng)
			continue;
		*g = (struct group){.eng = eng, .id = id};
		return g;
	}
	return NULL;
}

static void group_end(struct group *g, int status)
{
	struct mc_cq *cq = g->cq;

	if (g->is_done)
		return;
	g->is_done = true;
	g->status = status;
	vos_wake(g, UINT32_MAX);
	if (cq) {
		mc_assert(cq->n < cq->depth);
		cq->ends[cq->n++] = (struct mc_completion){g->user, g->bytes, status};
		vos_eventfd_set(cq->fd, cq->n);
	}
	if (cq || g->is_forgotten)
		g->eng = NULL;
}

static bool has_range(const struct mc_engine *eng, uint64_t addr, uint64_t len)
{
	for (unsigned i = 0; i < eng->nregions; i++) {
		const struct region *r = &eng->regions[i];

		if (addr >= r->addr && len <= r->len && addr - r->addr <= r->len - len)
			return true;
	}
	return false;
}

/* ---- pieces ---- */

static uint64_t delay(void)
{
	const struct sim_engine_conf *c = &sim_engine_conf;
	uint64_t ns = vos_between(c->delay_min_ns, c->delay_max_ns);

	return vos_pick(1000000) < c->late_ppm ? ns + vos_pick(c->late_max_ns) : ns;
}

/* The group that waits for it; NULL: it ended. */
static struct group *group_of(struct piece *p)
{
	return p->group->eng && p->group->id == p->id && !p->group->is_done && !p->from->is_dead
		   ? p->group
		   : NULL;
}

static void piece_end(struct piece *p, int rc)
{
	struct group *g = group_of(p);

	if (g) {
		if (rc < 0 && g->rc == 0)
			g->rc = rc;
		if (rc == 0)
			g->bytes += p->len;
		if (--g->left == 0)
			group_end(g, g->rc);
	}
	vos_host_free(p);
}

/* A write whose group has ended lands only if nobody could fence it. */
static bool may_land(struct piece *p)
{
	if (p->from->is_dead)
		return p->sent_ns <= p->from->proc->end_ns;
	return group_of(p) || p->fate->is_unfenced;
}

/* Whether a piece passes through the caller's thread is the engine's to choose. */
static bool is_shown(const struct group *g)
{
	return g->tap && !vos_one_in(8);
}

static void read_land(struct piece *p)
{
	const struct mc_tap *tap = p->group->tap;
	void *to = (void *)(uintptr_t)p->local;

	if (!is_shown(p->group)) {
		memcpy(to, p->data, p->len);
	} else if (vos_one_in(2)) {
		tap->copy(tap->user, p->transfer, p->at, to, p->data, p->len);
	} else {
		memcpy(to, p->data, p->len);
		tap->passed(tap->user, p->transfer, p->at, to, p->len);
	}
}

static void read_arrive(struct piece *p)
{
	if (!p->is_taken) {
		if (group_of(p))
			memcpy(p->data, (void *)(uintptr_t)p->remote, p->len);
		p->is_taken = true;
		vos_at(vos_now() + delay(), piece_arrive, p);
		return;
	}
	if (group_of(p))
		read_land(p);
	piece_end(p, 0);
}

static void piece_arrive(void *arg)
{
	struct piece *p = arg;

	if (is_silent(p->from, p->target) || (p->from->proc->is_stopped && !p->from->is_dead &&
					      !sim_engine_conf.is_one_sided && p->is_taken)) {
		p->next = held;
		held = p;
		return;
	}
	if (p->from->is_dead && !p->is_late && !vos_one_in(3)) {
		p->is_late = true;
		vos_at(vos_now() + vos_pick(LATE_NS), piece_arrive, p);
		return;
	}
	if (p->target->is_dead) {
		piece_end(p, -MC_E_PEER_DEAD);
	} else if (!has_range(p->target, p->remote, p->len)) {
		piece_end(p, -MC_E_RANGE);
	} else if (p->is_read) {
		read_arrive(p);
	} else {
		if (may_land(p)) {
			sim_engine_stats.late_landings += group_of(p) == NULL;
			memcpy((void *)(uintptr_t)p->remote, p->data, p->len);
		}
		piece_end(p, 0);
	}
}

void sim_engine_moved(void)
{
	struct piece *p = held, *next;

	held = NULL;
	for (; p; p = next) {
		uint64_t late_ns = 0;

		next = p->next;
		if (p->fate->is_unfenced && !p->is_late && !vos_one_in(3)) {
			p->is_late = true;
			late_ns = vos_pick(LATE_NS);
		}
		vos_at(vos_now() + late_ns + delay(), piece_arrive, p);
	}
	for (unsigned i = 0; i < nengines; i++) {
		struct mc_engine *eng = engines[i];

		for (unsigned k = 0; k < GROUPS_MAX && !eng->is_dead; k++) {
			struct group *g = &eng->groups[k];

			if (g->eng && g->watched && g->watched->is_dead && !is_cut(eng, g->watched))
				group_end(g, -MC_E_PEER_DEAD);
		}
	}
}

static void piece_add(struct group *g, struct mc_engine *target, const struct mc_transfer *x,
		      uint32_t transfer, uint64_t at, uint64_t local, uint64_t remote, uint32_t len)
{
	struct piece *p = vos_host_alloc(sizeof(*p) + len);

	p->group = g;
	p->fate = g->fate;
	p->id = g->id;
	p->from = g->eng;
	p->target = target;
	p->local = local;
	p->remote = remote;
	p->len = len;
	p->transfer = transfer;
	p->at = at;
	p->is_read = x->op == MC_READ;
	p->sent_ns = vos_now() + vos_pick(sim_engine_conf.delay_max_ns);
	if (!p->is_read)
		memcpy(p->data, (void *)(uintptr_t)local, len);
	if (!p->is_read && is_shown(g))
		g->tap->passed(g->tap->user, transfer, at, (void *)(uintptr_t)local, len);
	g->left++;
	sim_engine_stats.pieces++;
	vos_at(p->sent_ns + delay(), piece_arrive, p);
}

static uint32_t piece_len(uint64_t left)
{
	uint64_t most = mc_min(left, (uint64_t)sim_engine_conf.piece_max);

	return (uint32_t)vos_between(1 + (most - 1) / 2, most);
}

static void transfer_start(struct group *g, struct mc_engine *target, const struct mc_transfer *x,
			   uint32_t transfer)
{
	uint64_t l_at = 0, r_at = 0, at = 0;
	uint32_t l = 0, r = 0;

	while (l < x->nlocal && r < x->nremote) {
		uint64_t part = mc_min(x->local[l].len - l_at, x->remote[r].len - r_at);

		if (part > 0) {
			part = piece_len(part);
			piece_add(g, target, x, transfer, at, x->local[l].addr + l_at,
				  x->remote[r].addr + r_at, (uint32_t)part);
		}
		at += part;
		l_at += part;
		r_at += part;
		if (l_at == x->local[l].len) {
			l++;
			l_at = 0;
		}
		if (r_at == x->remote[r].len) {
			r++;
			r_at = 0;
		}
	}
}

struct deadline {
	struct group *group;
	uint64_t id;
	bool has_writes;
	struct mc_engine *target;
};

static void on_deadline(void *arg)
{
	struct deadline *d = arg;
	struct group *g = d->group;

	if (g->eng && g->id == d->id && !g->is_done) {
		if (d->has_writes && d->target && is_silent(g->eng, d->target)) {
			g->fate->is_unfenced = true;
			sim_engine_stats.unfenced++;
			group_end(g, -MC_E_UNFENCED);
		} else {
			group_end(g, -MC_E_TIMEDOUT);
		}
	}
	vos_host_free(d);
}

int mc_submit(struct mc_engine *eng, const struct mc_group *group, uint64_t *ret_id)
{
	struct group *g = group_new(eng);
	struct deadline *d;

	mc_assert(!group->cq && !group->notify && group->nsignals == 0);
	if (!g)
		return -MC_E_AGAIN;
	sim_engine_stats.groups++;
	d = vos_host_alloc(sizeof(*d));
	*d = (struct deadline){.group = g, .id = g->id};
	g->tap = group->tap;
	g->fate = vos_host_alloc(sizeof(*g->fate)); /* to the end of the history */
	g->left = 1;				    /* ours, until all are started */
	for (uint32_t i = 0; i < group->n; i++) {
		const struct mc_transfer *x = &group->transfers[i];

		mc_assert(x->segment >= 0 && (unsigned)x->segment <= eng->nsegments);
		d->target = x->segment ? find(eng->segments[x->segment - 1]) : eng;
		if (!d->target) {
			g->rc = -MC_E_REFUSED;
			continue;
		}
		d->has_writes |= x->op == MC_WRITE;
		transfer_start(g, d->target, x, i);
	}
	vos_at(vos_now() + (group->deadline_ns ? group->deadline_ns : 30 * MC_NS_PER_S),
	       on_deadline, d);
	if (d->has_writes && d->target && vos_pick(1000000) < sim_engine_conf.tell_ppm)
		sim_engine_conf.on_write(eng->proc->host, d->target->proc->host);
	*ret_id = g->id;
	if (--g->left == 0)
		group_end(g, g->rc);
	return 0;
}

int mc_group_wait(struct mc_engine *eng, uint64_t id, uint64_t timeout_ns,
		  struct mc_status *ret_status)
{
	struct group *g = group_find(eng, id);
	uint64_t until = mc_time_after(vos_now(), timeout_ns);

	if (!g)
		return -MC_E_STALE;
	while (!g->is_done) {
		if (!vos_wait(g, until))
			return -MC_E_TIMEDOUT;
	}
	*ret_status = (struct mc_status){.status = g->status, .is_done = true, .bytes = g->bytes};
	return 0;
}

int mc_group_free(struct mc_engine *eng, uint64_t id)
{
	struct group *g = group_find(eng, id);

	if (!g)
		return -MC_E_STALE;
	if (g->is_done)
		g->eng = NULL;
	g->is_forgotten = true;
	return 0;
}

int mc_group_cancel(struct mc_engine *eng, uint64_t id)
{
	struct group *g = group_find(eng, id);

	if (!g)
		return -MC_E_STALE;
	group_end(g, -MC_E_CANCELED);
	return 0;
}

int mc_transfer_sync(struct mc_engine *eng, const struct mc_group *group, struct mc_diag *diag)
{
	struct mc_status status = {0};
	uint64_t id;
	int rc = mc_submit(eng, group, &id);

	(void)diag;
	if (rc < 0)
		return rc;
	rc = mc_group_wait(eng, id, MC_TIME_NEVER, &status);
	(void)mc_group_free(eng, id);
	return rc < 0 ? rc : status.status;
}

/* ---- segments ---- */

static void pause_ns(uint64_t ns)
{
	static const char nobody;

	if (vos_self())
		(void)vos_wait(&nobody, mc_time_after(vos_now(), ns));
}

int mc_segment_open(struct mc_engine *eng, const char *name, uint64_t timeout_ns,
		    struct mc_diag *diag, int32_t *ret_segment)
{
	uint64_t until = mc_time_after(vos_now(), timeout_ns ? timeout_ns : 5 * MC_NS_PER_S);
	const struct mc_engine *peer;

	(void)diag;
	if (strcmp(name, eng->name) == 0) {
		*ret_segment = MC_SEGMENT_LOCAL;
		return 0;
	}
	for (unsigned i = 0; i < eng->nsegments; i++) {
		if (strcmp(eng->segments[i], name) == 0) {
			*ret_segment = (int32_t)i + 1;
			return 0;
		}
	}
	pause_ns(delay());
	while ((peer = find(name)) != NULL && is_silent(eng, peer)) {
		if (vos_now() >= until)
			return -MC_E_TIMEDOUT;
		pause_ns(10 * MC_NS_PER_MS);
	}
	if (!peer)
		return -MC_E_REFUSED;
	if (eng->nsegments == SEGMENTS_MAX)
		return -MC_E_LIMIT;
	(void)mc_strlcpy(eng->segments[eng->nsegments++], NAME_MAX_BYTES, name);
	*ret_segment = (int32_t)eng->nsegments;
	return 0;
}

int mc_segment_release(struct mc_engine *eng, int32_t segment)
{
	(void)eng;
	(void)segment;
	return 0; /* nothing is held between groups */
}

int mc_segment_watch(struct mc_engine *eng, int32_t segment, struct mc_cq *cq, uint64_t user,
		     uint64_t *ret_id)
{
	struct group *g;

	if (segment == MC_SEGMENT_LOCAL)
		return -MC_E_UNSUPPORTED;
	g = group_new(eng);
	if (!g)
		return -MC_E_AGAIN;
	g->watched = find(eng->segments[segment - 1]);
	g->cq = cq;
	g->user = user;
	*ret_id = g->id;
	if (!g->watched) {
		g->eng = NULL;
		return -MC_E_REFUSED;
	}
	return 0;
}

/* ---- completion queues ---- */

int mc_cq_open(struct mc_engine *eng, uint32_t depth, struct mc_cq **ret_cq)
{
	struct mc_cq *cq = vos_host_alloc(sizeof(*cq));

	cq->eng = eng;
	cq->fd = vos_eventfd(eng->proc);
	cq->depth = depth;
	cq->ends = vos_host_alloc(depth * sizeof(*cq->ends));
	*ret_cq = cq;
	return 0;
}

void mc_cq_close(struct mc_cq *cq)
{
	if (!cq)
		return;
	for (unsigned i = 0; i < GROUPS_MAX; i++) {
		if (cq->eng->groups[i].eng && cq->eng->groups[i].cq == cq)
			cq->eng->groups[i].eng = NULL;
	}
	/* Its eventfd goes with the process; a loop may still watch it. */
}

int mc_cq_wait(struct mc_cq *cq, struct mc_completion *ret, uint32_t max, uint64_t timeout_ns)
{
	unsigned n = mc_min(cq->n, max);

	mc_assert(timeout_ns == 0);
	memcpy(ret, cq->ends, n * sizeof(*ret));
	memmove(cq->ends, cq->ends + n, (cq->n - n) * sizeof(*ret));
	cq->n -= n;
	vos_eventfd_set(cq->fd, cq->n);
	return (int)n;
}

int mc_cq_fd(struct mc_cq *cq)
{
	return cq->fd;
}

/* ---- memory ---- */

int mc_mem_reg(struct mc_engine *eng, void *addr, size_t len, const char *location, unsigned rights)
{
	(void)location;
	(void)rights;
	if (eng->nregions == REGIONS_MAX)
		return -MC_E_LIMIT;
	eng->regions[eng->nregions++] = (struct region){(uintptr_t)addr, len, false};
	return 0;
}

int mc_mem_unreg(struct mc_engine *eng, void *addr)
{
	for (unsigned i = 0; i < eng->nregions; i++) {
		if (eng->regions[i].addr == (uintptr_t)addr) {
			eng->regions[i] = eng->regions[--eng->nregions];
			return 0;
		}
	}
	return -MC_E_NOENT;
}

void *mc_mem_alloc(struct mc_engine *eng, size_t len)
{
	void *p = vos_proc_alloc(eng->proc, len, 4096);

	if (p && mc_mem_reg(eng, p, len, NULL, 0) < 0) {
		vos_proc_free(eng->proc, p);
		return NULL;
	}
	return p;
}

int mc_mem_free(struct mc_engine *eng, void *addr)
{
	int rc = mc_mem_unreg(eng, addr);

	if (rc == 0)
		vos_proc_free(eng->proc, addr);
	return rc;
}

/* ---- life ---- */

int mc_engine_open(const struct mc_engine_opts *opts, struct mc_diag *diag,
		   struct mc_engine **ret_engine)
{
	struct mc_engine *eng = vos_host_alloc(sizeof(*eng));
	struct vos_proc *proc = vos_self();

	(void)diag;
	mc_assert(opts && opts->name && nengines < ENGINES_MAX);
	eng->proc = proc;
	eng->refs = 1;
	(void)mc_strlcpy(eng->name, sizeof(eng->name), opts->name);
	(void)snprintf(eng->address, sizeof(eng->address), "10.77.0.%u:%d", proc->host + 1, PORT);
	if (mc_stat_reg_open(1024, &eng->stats) < 0)
		return -MC_E_NOMEM;
	engines[nengines++] = eng;
	*ret_engine = eng;
	return 0;
}

struct mc_engine *mc_engine_ref(struct mc_engine *eng)
{
	eng->refs++;
	return eng;
}

void mc_engine_close(struct mc_engine *eng)
{
	if (eng && --eng->refs == 0)
		eng->is_dead = true;
}

const char *mc_engine_name(const struct mc_engine *eng)
{
	return eng->name;
}

const char *mc_engine_address(const struct mc_engine *eng)
{
	return eng->address;
}

static void on_death(void *arg)
{
	(void)arg;
	sim_engine_moved();
}

void sim_engine_proc_end(struct vos_proc *proc)
{
	for (unsigned i = 0; i < nengines; i++) {
		if (engines[i]->proc == proc)
			engines[i]->is_dead = true;
	}
	vos_at(vos_now() + vos_pick(DEATH_MAX_NS), on_death, NULL);
}

struct mc_stat_reg *mc_metrics_reg(struct mc_engine *eng)
{
	return eng->stats;
}

char *mc_metrics_text(struct mc_engine *eng)
{
	(void)eng;
	return NULL;
}

void mc_text_free(char *text)
{
	mc_free(text);
}
