/*
 * mount.c: segments that a process gives to the pool at run time: each an owner of its own, on
 * memory of the engine's or on a mapped file. One that is to leave later is retired, and closed by
 * a thread that exists while there are such ones.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/sync.h"
#include "client/priv.h"
#include "owner/owner.h"

#define MOUNTS_MAX 1024u
#define BYTES_MIN (1u << 20)
#define GRACE_MAX_MS (1ull << 40) /* decades */

struct mount {
	struct mc_list link;
	struct mc_owner *owner;
	struct mc_store_segment_id id;
	void *file; /* its bytes; NULL: memory */
	uint64_t bytes;
	uint64_t leave_ns; /* MC_TIME_NEVER: it stays */
};

struct mc_cli_mounts {
	pthread_mutex_t mu; /* guards the rest */
	struct mc_list list;
	unsigned n;
	bool is_closing, has_thread;
	pthread_t thread;
	_Atomic uint32_t seq; /* counts changes that the thread has to see */
};

int mc_cli_mounts_open(struct mc_cli_mounts **ret)
{
	struct mc_cli_mounts *m = mc_calloc(1, sizeof(*m));

	if (!m)
		return -MC_E_NOMEM;
	pthread_mutex_init(&m->mu, NULL);
	mc_list_init(&m->list);
	*ret = m;
	return 0;
}

/* It is in no list any more. */
static void mount_free(struct mount *mt)
{
	mc_owner_close(mt->owner);
	if (mt->file)
		(void)munmap(mt->file, mt->bytes);
	mc_free(mt);
}

/* ---- those that leave later ---- */

/* The first that is due, or when one will be. Under mu. */
static struct mount *due(struct mc_cli_mounts *m, uint64_t *ret_next_ns)
{
	uint64_t now_ns = mc_now_ns();
	struct mount *mt;

	*ret_next_ns = MC_TIME_NEVER;
	mc_list_each (mt, &m->list, link) {
		if (mt->leave_ns <= now_ns)
			return mt;
		*ret_next_ns = mc_min(*ret_next_ns, mt->leave_ns);
	}
	return NULL;
}

static void *run(void *arg)
{
	struct mc_cli_mounts *m = arg;
	uint64_t next_ns;
	struct mount *mt;
	bool is_closing;
	uint32_t seq;

	for (;;) {
		seq = atomic_load(&m->seq);
		pthread_mutex_lock(&m->mu);
		is_closing = m->is_closing;
		mt = due(m, &next_ns);
		if (mt && !is_closing) {
			mc_list_del(&mt->link);
			m->n--;
		}
		pthread_mutex_unlock(&m->mu);
		if (is_closing)
			return NULL;
		if (mt)
			mount_free(mt);
		else
			(void)!mc_futex_wait(&m->seq, seq, next_ns); /* look again */
	}
}

/* Under mu. @return false: no thread */
static bool thread_start(struct mc_cli_mounts *m)
{
	sigset_t all, old;

	if (m->has_thread)
		return true;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old); /* signals are the program's */
	m->has_thread = pthread_create(&m->thread, NULL, run, m) == 0;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (m->has_thread)
		(void)pthread_setname_np(m->thread, "mc-store-mount");
	return m->has_thread;
}

static void wake(struct mc_cli_mounts *m)
{
	atomic_fetch_add(&m->seq, 1);
	mc_futex_wake(&m->seq, 1);
}

void mc_cli_mounts_close(struct mc_cli_mounts *m)
{
	struct mc_list *node;

	if (!m)
		return;
	pthread_mutex_lock(&m->mu);
	m->is_closing = true;
	pthread_mutex_unlock(&m->mu);
	wake(m);
	if (m->has_thread)
		(void)pthread_join(m->thread, NULL);
	while ((node = mc_list_pop_front(&m->list)))
		mount_free(mc_list_entry(node, struct mount, link));
	pthread_mutex_destroy(&m->mu);
	mc_free(m);
}

/* ---- mounting ---- */

/* Maps it, as zeros: what an earlier life left there must not look like slots. */
static int file_map(const struct mc_store_mount *o, struct mc_diag *diag, void **ret)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	struct stat st;
	int fd, rc = 0;

	if (o->offset % page) {
		mc_diag_set(diag, "offset %llu is no multiple of a page (%llu bytes)",
			    (unsigned long long)o->offset, (unsigned long long)page);
		return MC_STORE_INVALID_PARAMS;
	}
	fd = open(o->path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0) {
		mc_diag_set(diag, "%s: %s", o->path, mc_err_text(mc_err_from_errno(errno)));
		rc = MC_STORE_INVALID_PARAMS;
	} else if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < o->offset ||
		   (uint64_t)st.st_size - o->offset < o->bytes) {
		mc_diag_set(diag, "%s: bytes %llu to %llu are not in this file of %llu", o->path,
			    (unsigned long long)o->offset, (unsigned long long)o->offset + o->bytes,
			    (unsigned long long)st.st_size);
		rc = MC_STORE_INVALID_PARAMS;
	} else if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)o->offset,
			     (off_t)o->bytes) < 0) {
		mc_diag_set(diag, "%s: its file system cannot empty a range: %s", o->path,
			    mc_err_text(mc_err_from_errno(errno)));
		rc = MC_STORE_INVALID_PARAMS;
	}
	if (rc == 0) {
		*ret =
		    mmap(NULL, o->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)o->offset);
		if (*ret == MAP_FAILED) {
			*ret = NULL;
			mc_diag_set(diag, "%s: %s", o->path, mc_err_text(mc_err_from_errno(errno)));
			rc = MC_STORE_INTERNAL_ERROR;
		}
	}
	mc_fd_close(&fd);
	return rc;
}

static int owner_open(struct mc_store *st, const struct mc_store_mount *o, struct mount *mt,
		      struct mc_diag *diag)
{
	char master[MC_CLI_TEXT_MAX];
	struct mc_owner_opts opts = {.engine = st->eng,
				     .bytes = o->bytes,
				     .master = master,
				     .memory = mt->file,
				     .location = o->location,
				     .protocol = o->protocol};
	int rc;

	pthread_mutex_lock(&st->master.mu);
	memcpy(master, st->master.text, sizeof(master));
	pthread_mutex_unlock(&st->master.mu);
	rc = mc_owner_open(&opts, diag, &mt->owner);
	if (rc < 0)
		return rc == -MC_E_INVAL ? MC_STORE_INVALID_PARAMS : MC_STORE_INTERNAL_ERROR;
	mt->id =
	    (struct mc_store_segment_id){mc_owner_id(mt->owner), mc_owner_incarnation(mt->owner)};
	return mc_cli_adopt_await(st, mt->owner, diag);
}

static int mount_open(struct mc_store *st, const struct mc_store_mount *o, struct mc_diag *diag,
		      struct mount **ret)
{
	struct mount *mt = mc_calloc(1, sizeof(*mt));
	int rc = 0;

	if (!mt)
		return MC_STORE_INTERNAL_ERROR;
	mc_list_init(&mt->link);
	mt->bytes = o->bytes;
	mt->leave_ns = MC_TIME_NEVER;
	if (o->path)
		rc = file_map(o, diag, &mt->file);
	if (rc == 0)
		rc = owner_open(st, o, mt, diag);
	if (rc < 0) {
		mount_free(mt);
		return rc;
	}
	*ret = mt;
	return 0;
}

int mc_store_mount(struct mc_store *store, const struct mc_store_mount *mount, struct mc_diag *diag,
		   struct mc_store_segment_id *ret_id)
{
	struct mc_store_mount o = {0};
	struct mc_cli_mounts *m = store->mounts;
	struct mc_cli_op *op;
	struct mount *mt;
	bool is_kept;
	int rc;

	memcpy(&o, mount, mc_min((size_t)mount->size, sizeof(o)));
	if (o.bytes < BYTES_MIN || o.bytes > INT64_MAX - o.offset) {
		mc_diag_set(diag, "a segment of %llu bytes: it has %u at least",
			    (unsigned long long)o.bytes, BYTES_MIN);
		return MC_STORE_INVALID_PARAMS;
	}
	rc = mc_cli_op_begin(store, &op); /* the store is not closed meanwhile */
	if (rc < 0)
		return rc;
	rc = mount_open(store, &o, diag, &mt);
	if (rc == 0) {
		pthread_mutex_lock(&m->mu);
		is_kept = m->n < MOUNTS_MAX;
		if (is_kept) {
			mc_list_push_back(&m->list, &mt->link);
			m->n++;
			*ret_id = mt->id;
		}
		pthread_mutex_unlock(&m->mu);
		if (!is_kept) {
			mc_diag_set(diag, "more than %u segments of one process", MOUNTS_MAX);
			mount_free(mt);
			rc = MC_STORE_INVALID_PARAMS;
		}
	}
	mc_cli_op_end(op);
	return rc;
}

/* One that stays so far. Under mu. */
static struct mount *find(struct mc_cli_mounts *m, const struct mc_store_segment_id *id,
			  bool is_file)
{
	struct mount *mt;

	mc_list_each (mt, &m->list, link)
		if (mt->id.hi == id->hi && mt->id.lo == id->lo && !!mt->file == is_file &&
		    mt->leave_ns == MC_TIME_NEVER)
			return mt;
	return NULL;
}

int mc_store_unmount(struct mc_store *store, const struct mc_store_segment_id *id, bool is_file,
		     uint64_t grace_ms)
{
	struct mc_cli_mounts *m = store->mounts;
	struct mc_cli_op *op;
	struct mount *mt;
	bool is_later;
	int rc = mc_cli_op_begin(store, &op);

	if (rc < 0)
		return rc;
	pthread_mutex_lock(&m->mu);
	mt = find(m, id, is_file);
	is_later = mt && grace_ms > 0 && thread_start(m);
	if (is_later) {
		mc_owner_retire(mt->owner);
		mt->leave_ns =
		    mc_time_after(mc_now_ns(), mc_min(grace_ms, GRACE_MAX_MS) * MC_NS_PER_MS);
	} else if (mt) {
		mc_list_del(&mt->link);
		m->n--;
	}
	pthread_mutex_unlock(&m->mu);
	if (is_later)
		wake(m);
	else if (mt)
		mount_free(mt);
	mc_cli_op_end(op);
	return mt ? 0 : MC_STORE_SEGMENT_NOT_FOUND;
}
