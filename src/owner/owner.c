/*
 * owner.c: opening, closing, pins, and what an owner says of itself.
 */
#include "owner/owner.h"

#include <string.h>

#include "base/rand.h"
#include "base/sync.h"
#include "owner/priv.h"

#define TICK_NS (100 * MC_NS_PER_MS)
#define LEAVE_NS MC_NS_PER_S

static void tick_at(struct mc_owner *o, uint64_t at_ns)
{
	(void)mc_loop_timer_set(o->loop, &o->tick, at_ns); /* one timer: it has its place */
}

static void on_tick(struct mc_timer *t)
{
	struct mc_owner *o = mc_container_of(t, struct mc_owner, tick);
	uint64_t now = mc_clock_now(o->env->clk);
	uint64_t next = mc_owner_serve_waiting(o, false);

	mc_owriters_tick(o, now);
	mc_ostream_tick(o, now);
	next = mc_min(next, mc_odisk_due_ns(o));
	next = mc_min(next, now + TICK_NS);
	tick_at(o, mc_max(next, now + MC_NS_PER_MS));
}

static void on_room(struct mc_task *t)
{
	struct mc_owner *o = mc_container_of(t, struct mc_owner, room_task);
	uint64_t next;

	atomic_store(&o->is_room_posted, false);
	next = mc_owner_serve_waiting(o, false);
	mc_ostream_want(o);
	if (o->tick.is_set && next < o->tick.node.key)
		tick_at(o, mc_max(next, mc_clock_now(o->env->clk) + MC_NS_PER_MS));
}

static void on_start(void *arg)
{
	struct mc_owner *o = arg;

	tick_at(o, mc_clock_now(o->env->clk) + TICK_NS);
	mc_ostream_connect(o);
}

/* The host of "host:port", "[v6]:port". */
static void host_of(const char *name, char *ret, size_t cap)
{
	const char *colon = strrchr(name, ':');
	size_t len = colon && strchr(name, ':') == colon ? (size_t)(colon - name) : strlen(name);

	if (name[0] == '[' && strchr(name, ']')) {
		name++;
		len = (size_t)(strchr(name, ']') - name);
	}
	len = mc_min(len, cap - 1);
	memcpy(ret, name, len);
	ret[len] = 0;
}

static int names_init(struct mc_owner *o, const struct mc_owner_opts *opts, struct mc_diag *diag)
{
	if (opts->host)
		(void)mc_strlcpy(o->host, sizeof(o->host), opts->host);
	else
		host_of(mc_engine_name(o->engine), o->host, sizeof(o->host));
	(void)mc_strlcpy(o->protocol, sizeof(o->protocol), opts->protocol ? opts->protocol : "tcp");
	return mc_addr_resolve(opts->master, MC_ST_MASTER_PORT, &o->stream.master, diag);
}

static uint8_t *memory_get(struct mc_owner *o, const struct mc_owner_opts *opts)
{
	o->is_given = opts->memory;
	if (!o->is_given)
		return mc_mem_alloc(o->engine, opts->bytes);
	return mc_mem_reg(o->engine, opts->memory, opts->bytes, opts->location,
			  MC_MEM_REMOTE_READ | MC_MEM_REMOTE_WRITE) == 0
		   ? opts->memory
		   : NULL;
}

static void memory_put(struct mc_owner *o)
{
	if (!o->pool.base)
		return;
	if (o->is_given)
		(void)mc_mem_unreg(o->engine, o->pool.base); /* ours: it is there */
	else
		(void)mc_mem_free(o->engine, o->pool.base);
}

static int pool_init(struct mc_owner *o, const struct mc_owner_opts *opts, struct mc_diag *diag)
{
	uint64_t numbers[2], bytes = opts->bytes;
	uint8_t *base;
	int rc = mc_rand_bytes(numbers, sizeof(numbers));

	if (rc < 0) {
		mc_diag_set(diag, "random numbers: %s", mc_err_text(rc));
		return rc;
	}
	if (o->id == 0)
		o->id = numbers[0] | 1;
	o->bytes = bytes;
	base = memory_get(o, opts);
	if (!base) {
		mc_diag_set(diag, "no memory for a pool of %llu bytes", (unsigned long long)bytes);
		return -MC_E_NOMEM;
	}
	rc = mc_opool_init(&o->pool, base, bytes, numbers[1] | 1);
	if (rc < 0)
		mc_diag_set(diag, "pool of %llu bytes: %s", (unsigned long long)bytes,
			    mc_err_text(rc));
	return rc;
}

static struct mc_owner *owner_new(const struct mc_owner_opts *opts)
{
	struct mc_owner *o = mc_calloc(1, sizeof(*o));

	if (!o)
		return NULL;
	o->engine = opts->engine;
	o->env = opts->env ? opts->env : &mc_env_real;
	o->id = opts->id;
	o->waiting_max = opts->waiting_max ? opts->waiting_max : 1024;
	o->waiting_bytes_max = opts->waiting_bytes_max ? opts->waiting_bytes_max : 64u << 20;
	o->grant_timeout_ns =
	    (opts->grant_timeout_ms ? opts->grant_timeout_ms : 600000) * MC_NS_PER_MS;
	o->watch_timeout_ns = (opts->watch_ms ? opts->watch_ms : 2000) * MC_NS_PER_MS;
	o->check_after_ns = (opts->check_after_ms ? opts->check_after_ms : 25000) * MC_NS_PER_MS;
	atomic_store(&o->stream.epoch, opts->epoch);
	pthread_mutex_init(&o->lock, NULL);
	pthread_mutex_init(&o->work_lock, NULL);
	pthread_cond_init(&o->work_cond, NULL);
	mc_list_init(&o->waiting);
	mc_list_init(&o->writers);
	mc_list_init(&o->jobs);
	o->self.nconns = 1;
	o->tick.on_time = on_tick;
	o->room_task.run = on_room;
	mc_ostream_init(o);
	return o;
}

void mc_owner_start(struct mc_owner *o)
{
	mc_loop_call(o->loop, on_start, o);
}

int mc_owner_open(const struct mc_owner_opts *opts, struct mc_diag *diag, struct mc_owner **ret)
{
	struct mc_owner *o;
	int rc;

	if (!opts->engine || !opts->master || opts->bytes < 4096) {
		mc_diag_set(diag, "an owner needs an engine, a master's address and a pool of 4096 "
				  "bytes or more");
		return -MC_E_INVAL;
	}
	o = owner_new(opts);
	if (!o)
		return -MC_E_NOMEM;
	rc = mc_odisk_init(o, opts->disk_bytes);
	if (rc == 0)
		rc = names_init(o, opts, diag);
	if (rc == 0)
		rc = pool_init(o, opts, diag);
	if (rc == 0)
		rc = mc_loop_open("mc-owner", o->env->clk, &o->loop);
	if (rc == 0)
		rc = mc_loop_start(o->loop);
	if (rc == 0)
		rc = mc_owork_open(o);
	if (rc == 0)
		rc = mc_oserve_open(o, diag);
	if (rc < 0)
		goto fail;
	if (opts->disk_bytes == 0)
		mc_owner_start(o);
	*ret = o;
	return 0;
fail:
	mc_diag_wrap(diag, "owner: %s", mc_err_text(rc));
	mc_owner_close(o);
	return rc;
}

static void on_retire(void *arg)
{
	struct mc_owner *o = arg;

	pthread_mutex_lock(&o->lock);
	o->is_retiring = true;
	pthread_mutex_unlock(&o->lock);
	(void)mc_owner_serve_waiting(o, true);
	o->stream.is_space_due = true;
	mc_ostream_pump(o);
}

void mc_owner_retire(struct mc_owner *o)
{
	mc_loop_call(o->loop, on_retire, o);
}

static void on_close(void *arg)
{
	struct mc_owner *o = arg;

	pthread_mutex_lock(&o->lock);
	o->is_closing = true;
	pthread_mutex_unlock(&o->lock);
	mc_loop_timer_cancel(o->loop, &o->tick);
	(void)mc_owner_serve_waiting(o, true);
	mc_odisk_close(o);
	/* Before the master gives their keys to others: a reader that still knows a place finds
	 * nothing. */
	pthread_mutex_lock(&o->lock);
	mc_opool_clear(&o->pool);
	pthread_mutex_unlock(&o->lock);
	mc_ostream_leave(o);
}

static void leave(struct mc_owner *o)
{
	uint64_t deadline = mc_now_ns() + LEAVE_NS;

	mc_loop_call(o->loop, on_close, o);
	while (!atomic_load(&o->stream.is_left)) {
		if (mc_futex_wait(&o->stream.is_left, 0, deadline) == -MC_E_TIMEDOUT)
			break; /* the master will see the connection end */
	}
	mc_rpc_conn_close(o->stream.conn);
	o->stream.conn = NULL;
}

void mc_owner_close(struct mc_owner *o)
{
	if (!o)
		return;
	if (o->loop)
		leave(o);
	mc_owork_close(o);
	mc_oserve_close(o);
	mc_loop_close(o->loop);
	mc_ostream_fini(o);
	memory_put(o);
	mc_opool_fini(&o->pool);
	mc_odisk_fini(o);
	pthread_cond_destroy(&o->work_cond);
	pthread_mutex_destroy(&o->work_lock);
	pthread_mutex_destroy(&o->lock);
	mc_free(o);
}

uint64_t mc_owner_id(const struct mc_owner *o)
{
	return o->id;
}

uint64_t mc_owner_incarnation(const struct mc_owner *o)
{
	return o->pool.incarnation;
}

const char *mc_owner_address(const struct mc_owner *o)
{
	return o->address;
}

bool mc_owner_is_adopted(struct mc_owner *o)
{
	return atomic_load(&o->stream.is_adopted);
}

int mc_owner_pin(struct mc_owner *o, uint64_t addr, uint64_t gen, struct mc_owner_view *ret)
{
	struct mc_oslot *s;
	uint32_t id;
	int rc = -MC_E_NOENT;

	pthread_mutex_lock(&o->lock);
	id = mc_opool_at(&o->pool, addr, gen);
	s = id != MC_OWNER_NIL ? &o->pool.slots[id] : NULL;
	if (s && s->state == MC_OSLOT_SEALED && s->pins < UINT32_MAX) {
		s->pins++;
		ret->pin = id;
		ret->image = o->pool.base + s->off;
		mc_opool_info(&o->pool, id, &ret->info);
		rc = 0;
	}
	pthread_mutex_unlock(&o->lock);
	return rc;
}

void mc_owner_unpin(struct mc_owner *o, const struct mc_owner_view *view)
{
	struct mc_oslot *s;
	bool is_freed = false;

	pthread_mutex_lock(&o->lock);
	s = &o->pool.slots[view->pin];
	mc_assert(s->pins > 0);
	s->pins--;
	if (s->pins == 0 && s->state == MC_OSLOT_DEAD) {
		mc_opool_release(&o->pool, view->pin);
		is_freed = true;
	}
	pthread_mutex_unlock(&o->lock);
	if (is_freed)
		mc_owner_room(o);
}

void mc_owner_stats(struct mc_owner *o, struct mc_owner_stats *ret)
{
	struct mc_owner_counters *c = &o->count;

	*ret = (struct mc_owner_stats){.puts = mc_counter_read(&c->puts),
				       .grants = mc_counter_read(&c->grants),
				       .seals = mc_counter_read(&c->seals),
				       .frees = mc_counter_read(&c->frees),
				       .drops = mc_counter_read(&c->drops),
				       .refused = mc_counter_read(&c->refused),
				       .orphans = mc_counter_read(&c->orphans),
				       .orders = mc_counter_read(&c->orders),
				       .bytes_put = mc_counter_read(&c->bytes_put),
				       .connects = mc_counter_read(&c->connects),
				       .disk_writes = mc_counter_read(&c->disk_writes),
				       .disk_reads = mc_counter_read(&c->disk_reads),
				       .disk_deletes = mc_counter_read(&c->disk_deletes),
				       .disk_failures = mc_counter_read(&c->disk_failures),
				       .epoch = atomic_load(&o->stream.epoch),
				       .is_adopted = mc_owner_is_adopted(o),
				       .waiting = atomic_load(&o->nwaiting)};
	pthread_mutex_lock(&o->lock);
	ret->capacity = mc_extent_capacity(o->pool.extent);
	ret->used = mc_opool_used(&o->pool);
	ret->guests = o->pool.guest_bytes;
	ret->largest = mc_extent_largest(o->pool.extent);
	ret->sealed = o->pool.nsealed;
	ret->granted = o->pool.ngranted;
	ret->disk_capacity = o->disk.capacity;
	ret->disk_used = o->disk.used;
	ret->disk_records = o->disk.nrecs;
	pthread_mutex_unlock(&o->lock);
}
