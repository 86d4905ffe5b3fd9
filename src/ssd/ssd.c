/*
 * ssd.c: the disk's thread: jobs of the owner are begun as they come and told as they end, so a
 * read waits for no write, and the log decides which writes and deletes share a sync; in between
 * pieces of the log's housekeeping.
 *
 * Writes that had no room wait until all else has ended; then the log makes room and they are tried
 * once more.
 */
#include "ssd/ssd.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/rand.h"
#include "log/dlog.h"

#define JOBS_MAX 64u
#define WRITE_BYTES (32ull << 20) /* being written at once, about */
#define STEP_BYTES (4ull << 20)
#define STEP_BUSY_BYTES (512ull << 10) /* with jobs under way */
#define POLL_NS (500 * 1000ull)	       /* for new jobs, with others under way */
#define TELL_NS (20 * MC_NS_PER_MS)
#define STEPS_MAX 1024u /* for room, before the master is asked */
#define LIST_BYTES (64ull << 20)
#define IDLE_NS (10 * MC_NS_PER_S)
#define REAP_NS MC_NS_PER_S
#define FLUSH_NS (5 * MC_NS_PER_S) /* who stops a node waits no longer */
#define QUOTA_MIN (64ull << 20)
#define QUOTA_SMALL (2ull << 30) /* below: small segments */
#define SEGMENT_SHARE 32u
#define SEGMENTS 256u
#define SEGMENT_MIN (64ull << 20) /* from there on */
#define SEGMENT_MAX (4ull << 30)
#define COUNTER_BITS 40u /* of a generation: above them its epoch (docs/store.md) */

/* No object has this key: an object's begins with the length of its tenant. */
static const char id_key[] = "\xffowner";
#define ID_KEY_LEN (sizeof(id_key) - 1)

/* A job under way. */
struct task {
	struct mc_dlog_op op;
	struct iovec iov;
	struct mc_owner_disk_job job;
	struct mc_ssd *ssd;
	struct task *next; /* of a list below */
	int rc;
};

struct tasks {
	struct task *first, **last;
};

struct mc_ssd {
	struct mc_dlog *log;
	struct mc_owner *owner;
	uint64_t quota, segment_bytes, owner_id, epoch;
	pthread_t thread;
	bool has_thread;
	_Atomic bool is_over;
	pthread_mutex_t lock; /* stats */
	struct mc_ssd_stats stats;
	/* The thread's. */
	struct task pool[JOBS_MAX];
	struct tasks idle, ended;
	unsigned under_way, nidle;
	uint64_t write_bytes; /* under way */
	uint64_t told_ns;     /* when the space was told */
};

static struct mc_dlog_gen dlog_gen(uint64_t gen)
{
	return (struct mc_dlog_gen){gen >> COUNTER_BITS, gen & ((1ull << COUNTER_BITS) - 1)};
}

/* ---- jobs ---- */

static void tasks_init(struct tasks *list)
{
	list->first = NULL;
	list->last = &list->first;
}

static void tasks_add(struct tasks *list, struct task *t)
{
	t->next = NULL;
	*list->last = t;
	list->last = &t->next;
}

static struct task *tasks_pop(struct tasks *list)
{
	struct task *t = list->first;

	if (t && !(list->first = t->next))
		list->last = &list->first;
	return t;
}

static void on_done(struct mc_dlog_op *op, int rc)
{
	struct task *t = mc_container_of(op, struct task, op);

	t->rc = rc;
	t->ssd->under_way--;
	tasks_add(&t->ssd->ended, t);
}

static int begin(struct mc_ssd *ssd, struct task *t)
{
	const struct mc_owner_disk_job *j = &t->job;
	struct mc_dlog *log = ssd->log;
	int rc;

	t->op = (struct mc_dlog_op){
	    .key = j->key, .key_len = j->key_len, .gen = dlog_gen(j->gen), .on_done = on_done};
	if (j->what == MC_OWNER_DISK_DELETE)
		return mc_dlog_del(log, &t->op);
	t->iov = (struct iovec){j->payload, j->len};
	t->op.iov = &t->iov;
	t->op.niov = 1;
	if (j->what == MC_OWNER_DISK_READ)
		return mc_dlog_get(log, &t->op);
	rc = mc_owner_disk_check(ssd->owner, j);
	if (rc < 0)
		return rc;
	t->op.tlv = j->tlv;
	t->op.tlv_len = j->tlv_len;
	return mc_dlog_put(log, &t->op);
}

static void start(struct mc_ssd *ssd, struct task *t)
{
	t->rc = begin(ssd, t);
	if (t->rc < 0)
		tasks_add(&ssd->ended, t);
	else
		ssd->under_way++;
}

/* What has been deleted makes room when its segments are gone. */
static void make_room(struct mc_ssd *ssd)
{
	for (unsigned i = 0; i < STEPS_MAX; i++) {
		int rc = mc_dlog_step(ssd->log, STEP_BYTES);

		(void)mc_dlog_reap(ssd->log, 0);
		if (rc <= 0)
			return;
	}
}

static void space_tell(struct mc_ssd *ssd)
{
	struct mc_dlog_stats s;

	mc_dlog_stats(ssd->log, &s);
	if (s.is_read_only && !ssd->stats.is_read_only)
		mc_log_error("the disk takes nothing more; what is there is served", "cause=\"%s\"",
			     mc_dlog_why(ssd->log));
	pthread_mutex_lock(&ssd->lock);
	ssd->stats = (struct mc_ssd_stats){.live_bytes = s.live_bytes,
					   .segment_bytes = s.used_bytes,
					   .quota_bytes = ssd->quota,
					   .bad_records = s.bad_records,
					   .bad_reads = s.bad_reads,
					   .compactions = s.compactions,
					   .is_read_only = s.is_read_only};
	pthread_mutex_unlock(&ssd->lock);
	mc_owner_disk_space(ssd->owner, s.is_read_only ? 0 : mc_ssd_capacity(ssd), s.live_bytes);
}

static void tell(struct mc_ssd *ssd, struct task *t)
{
	bool is_delete = t->job.what == MC_OWNER_DISK_DELETE;

	/* A newer one of that key has taken its place, or none is there. */
	if (is_delete && (t->rc == -MC_E_NOENT || t->rc == -MC_E_STALE))
		t->rc = 0;
	if (t->rc < 0 && t->rc != -MC_E_NOSPACE)
		mc_log_warn(is_delete ? "an object cannot be deleted from the disk"
			    : t->job.what == MC_OWNER_DISK_READ
				? "an object cannot be read from the disk"
				: "an object stays in memory alone",
			    "gen=%llu bytes=%llu cause=\"%s\"", (unsigned long long)t->job.gen,
			    (unsigned long long)t->job.len, mc_err_text(t->rc));
	if (t->job.what == MC_OWNER_DISK_WRITE)
		ssd->write_bytes -= t->job.len;
	mc_owner_disk_done(ssd->owner, &t->job, t->rc);
	tasks_add(&ssd->idle, t);
	ssd->nidle++;
}

/* The last first: the owner goes on with the one that was told last. */
static void tell_backwards(struct mc_ssd *ssd, struct tasks *list)
{
	struct task *all[JOBS_MAX], *t;
	unsigned n = 0;

	while ((t = tasks_pop(list)) != NULL)
		all[n++] = t;
	while (n > 0)
		tell(ssd, all[--n]);
}

/* Tell what has ended, but that there was no room for; to `full`. */
static void tell_ended(struct mc_ssd *ssd, struct tasks *full)
{
	struct task *t;

	while ((t = tasks_pop(&ssd->ended)) != NULL) {
		if (t->rc == -MC_E_NOSPACE)
			tasks_add(full, t);
		else
			tell(ssd, t);
	}
}

static void wait_all(struct mc_ssd *ssd)
{
	while (ssd->under_way > 0)
		(void)mc_dlog_reap(ssd->log, REAP_NS); /* what is under way is ours, too */
}

/* Nothing else is taken meanwhile, so the order of the owner's writes stays. */
static void try_again(struct mc_ssd *ssd, struct tasks *full)
{
	struct tasks again;
	struct task *t;

	tasks_init(&again);
	wait_all(ssd);
	tell_ended(ssd, full);
	make_room(ssd);
	while ((t = tasks_pop(full)) != NULL)
		start(ssd, t);
	wait_all(ssd);
	tell_ended(ssd, &again);
	tell_backwards(ssd, &again);
}

static void take(struct mc_ssd *ssd, uint64_t until_ns)
{
	uint64_t room = WRITE_BYTES - mc_min(WRITE_BYTES, ssd->write_bytes);
	struct mc_owner_disk_job jobs[JOBS_MAX];
	unsigned n;

	if (ssd->nidle == 0)
		return;
	n = mc_owner_disk_take(ssd->owner, jobs, ssd->nidle, room, until_ns);
	for (unsigned i = 0; i < n; i++) {
		struct task *t = tasks_pop(&ssd->idle);

		ssd->nidle--;
		t->job = jobs[i];
		if (t->job.what == MC_OWNER_DISK_WRITE)
			ssd->write_bytes += t->job.len;
		start(ssd, t);
	}
}

static void *ssd_main(void *arg)
{
	struct mc_ssd *ssd = arg;
	bool has_more = true;
	struct tasks full;
	uint64_t now, wait_ns, step;

	tasks_init(&full);
	while (!atomic_load(&ssd->is_over)) {
		take(ssd, ssd->under_way > 0 || has_more ? 0 : mc_now_ns() + IDLE_NS);
		/* Copies of the housekeeping go on while there is nothing else to do. */
		wait_ns = ssd->under_way > 0 ? POLL_NS : has_more ? MC_NS_PER_MS : 0;
		has_more = mc_dlog_reap(ssd->log, wait_ns) > ssd->under_way;
		step = ssd->under_way > 0 ? STEP_BUSY_BYTES : STEP_BYTES;
		has_more |= mc_dlog_step(ssd->log, step) > 0;
		tell_ended(ssd, &full); /* all: what has ended wakes nobody */
		if (full.first)
			try_again(ssd, &full);
		now = mc_now_ns();
		if (ssd->under_way == 0 || now - ssd->told_ns >= TELL_NS) {
			space_tell(ssd);
			ssd->told_ns = now;
		}
	}
	wait_all(ssd);
	tell_ended(ssd, &full);
	tell_backwards(ssd, &full);
	return NULL;
}

/* ---- opening ---- */

/* Free bytes of the file system, and those of our own files. @return 0: unknown */
static uint64_t disk_bytes(const char *path)
{
	char name[4096];
	struct statvfs fs;
	struct dirent *entry;
	struct stat st;
	uint64_t sum;
	DIR *dir;

	if (statvfs(path, &fs) < 0)
		return 0;
	sum = (uint64_t)fs.f_bavail * fs.f_frsize;
	dir = opendir(path);
	while (dir && (entry = readdir(dir)) != NULL) {
		int len = snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);

		if (len > 0 && (size_t)len < sizeof(name) && stat(name, &st) == 0 &&
		    S_ISREG(st.st_mode))
			sum += (uint64_t)st.st_blocks * 512;
	}
	if (dir)
		(void)closedir(dir);
	return sum;
}

static int conf_make(struct mc_ssd *ssd, const char *path, uint64_t quota, struct mc_diag *diag)
{
	uint64_t there;

	if (mkdir(path, 0700) < 0 && errno != EEXIST) {
		int rc = mc_err_from_errno(errno);

		mc_diag_set(diag, "cannot make the directory %s: %s", path, strerror(errno));
		return rc;
	}
	there = disk_bytes(path);
	ssd->quota = there - there / 10;
	if (quota > 0 && (quota < ssd->quota || there == 0))
		ssd->quota = quota;
	if (ssd->quota < QUOTA_MIN) {
		mc_diag_set(diag, "%llu bytes for %s: 64 MiB are the least",
			    (unsigned long long)ssd->quota, path);
		return -MC_E_INVAL;
	}
	ssd->segment_bytes = ssd->quota / SEGMENT_SHARE;
	if (ssd->quota >= QUOTA_SMALL) {
		ssd->segment_bytes = mc_max(ssd->quota / SEGMENTS, SEGMENT_MIN);
		ssd->segment_bytes = mc_min(ssd->segment_bytes, SEGMENT_MAX);
	}
	return 0;
}

static void id_done(struct mc_dlog_op *op, int rc)
{
	*(int *)op->user = rc;
}

/* Under its key once, with the id where others have metadata. */
static int id_put(struct mc_ssd *ssd)
{
	int rc = mc_rand_bytes(&ssd->owner_id, sizeof(ssd->owner_id)), end = 1;
	struct mc_dlog_op op = {.key = id_key,
				.key_len = ID_KEY_LEN,
				.gen = {.counter = 1},
				.tlv = &ssd->owner_id,
				.tlv_len = sizeof(ssd->owner_id),
				.on_done = id_done,
				.user = &end};

	ssd->owner_id |= 1;
	if (rc == 0)
		rc = mc_dlog_put(ssd->log, &op);
	while (rc == 0 && end > 0)
		(void)mc_dlog_reap(ssd->log, REAP_NS); /* until this one has ended */
	return rc < 0 ? rc : end;
}

static bool is_id(const struct mc_dlog_item *item)
{
	return item->key_len == ID_KEY_LEN && memcmp(item->key, id_key, ID_KEY_LEN) == 0;
}

static void look_one(void *user, const struct mc_dlog_item *item)
{
	struct mc_ssd *ssd = user;

	if (!is_id(item))
		ssd->epoch = mc_max(ssd->epoch, item->info.gen.epoch);
	else if (item->info.tlv_len == sizeof(ssd->owner_id))
		memcpy(&ssd->owner_id, item->tlv, sizeof(ssd->owner_id));
}

static void tell_one(void *user, const struct mc_dlog_item *item)
{
	struct mc_ssd *ssd = user;
	const struct mc_st_grant g = {.gen = item->info.gen.epoch << COUNTER_BITS |
					     item->info.gen.counter,
				      .len = item->info.payload_len,
				      .key_len = (uint16_t)item->key_len,
				      .tlv_len = (uint16_t)item->info.tlv_len,
				      .key = item->key,
				      .tlv = item->tlv};
	int rc;

	if (is_id(item))
		return;
	rc = item->key_len > UINT16_MAX || item->info.tlv_len > UINT16_MAX
		 ? -MC_E_INVAL
		 : mc_owner_disk_has(ssd->owner, &g);
	if (rc < 0)
		mc_log_warn("a record of the disk is not served", "gen=%llu cause=\"%s\"",
			    (unsigned long long)g.gen, mc_err_text(rc));
}

static int list(struct mc_ssd *ssd, void (*each)(void *user, const struct mc_dlog_item *item))
{
	struct mc_dlog_cursor cursor = {0};
	int rc;

	do {
		rc = mc_dlog_list(ssd->log, &cursor, LIST_BYTES, each, ssd);
	} while (rc > 0);
	return rc;
}

int mc_ssd_open(const char *path, uint64_t quota, struct mc_diag *diag, struct mc_ssd **ret)
{
	struct mc_ssd *ssd = mc_calloc(1, sizeof(*ssd));
	struct mc_dlog_conf conf = {.disk = &mc_disk_real, .path = path};
	int rc;

	if (!ssd)
		return -MC_E_NOMEM;
	pthread_mutex_init(&ssd->lock, NULL);
	tasks_init(&ssd->idle);
	tasks_init(&ssd->ended);
	for (; ssd->nidle < JOBS_MAX; ssd->nidle++) {
		ssd->pool[ssd->nidle].ssd = ssd;
		tasks_add(&ssd->idle, &ssd->pool[ssd->nidle]);
	}
	rc = conf_make(ssd, path, quota, diag);
	conf.quota_bytes = ssd->quota;
	conf.segment_bytes = ssd->segment_bytes;
	if (rc == 0)
		rc = mc_dlog_open(&conf, &ssd->log, diag);
	if (rc < 0)
		goto fail;
	rc = list(ssd, look_one);
	if (rc == 0 && ssd->owner_id == 0)
		rc = id_put(ssd);
	if (rc < 0) {
		mc_diag_set(diag, "SSD directory %s: %s", path, mc_err_text(rc));
		goto fail;
	}
	*ret = ssd;
	return 0;
fail:
	mc_ssd_close(ssd);
	return rc;
}

uint64_t mc_ssd_owner_id(const struct mc_ssd *ssd)
{
	return ssd->owner_id;
}

/* Below what the log refuses to go beyond: it needs room to compact. */
uint64_t mc_ssd_capacity(const struct mc_ssd *ssd)
{
	return ssd->quota - ssd->quota / 8 - 2 * ssd->segment_bytes;
}

uint64_t mc_ssd_epoch(const struct mc_ssd *ssd)
{
	return ssd->epoch;
}

int mc_ssd_start(struct mc_ssd *ssd, struct mc_owner *owner)
{
	sigset_t all, old;
	int rc;

	ssd->owner = owner;
	rc = list(ssd, tell_one);
	if (rc < 0)
		return rc;
	space_tell(ssd);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old); /* signals are the program's */
	rc = pthread_create(&ssd->thread, NULL, ssd_main, ssd);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc != 0)
		return -MC_E_LIMIT;
	ssd->has_thread = true;
	(void)pthread_setname_np(ssd->thread, "mc-store-disk");
	return 0;
}

void mc_ssd_stop(struct mc_ssd *ssd)
{
	if (!ssd || !ssd->has_thread)
		return;
	if (!mc_owner_disk_flush(ssd->owner, mc_now_ns() + FLUSH_NS))
		mc_log_warn("the owner ends before all its objects are on the disk", "seconds=%u",
			    (unsigned)(FLUSH_NS / MC_NS_PER_S));
	atomic_store(&ssd->is_over, true);
	mc_owner_disk_end(ssd->owner);
	pthread_join(ssd->thread, NULL);
	ssd->has_thread = false;
}

void mc_ssd_close(struct mc_ssd *ssd)
{
	if (!ssd)
		return;
	mc_dlog_close(ssd->log);
	pthread_mutex_destroy(&ssd->lock);
	mc_free(ssd);
}

void mc_ssd_stats(struct mc_ssd *ssd, struct mc_ssd_stats *ret)
{
	pthread_mutex_lock(&ssd->lock);
	*ret = ssd->stats;
	pthread_mutex_unlock(&ssd->lock);
}
