/*
 * dlog.c: the log as a whole: its directory, its turns, what others ask of it.
 *
 * In the directory: "lock", held as long as the log is open, with the holder's pid; "format", the
 * version and the log's random id, twice; "checkpoint"; "seg-<id>"; "spare", an emptied one's file
 * whose blocks the next segment uses. The id goes into every record
 * and seeds the hashes of keys, so nobody outside can make keys that collide.
 */
#include "log/dlog.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/crc.h"
#include "base/fork.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/rand.h"
#include "log/priv.h"

#define FORMAT_VERSION 1u
#define FORMAT_LINE 64u /* of "format", with the newline; it has two equal ones */
#define LOCK_TEXT 64u
#define SEGMENT_MIN_DEFAULT (64ull << 20)
#define SEGMENT_MAX_DEFAULT (4ull << 30)
#define SEGMENTS_WANTED 256u
#define ROUNDS 16u /* of one mc_dlog_reap(): callbacks may begin operations for ever */

int mc_dlog_path(const struct mc_dlog *log, const char *name, uint32_t id, char *ret_path)
{
	int n = snprintf(ret_path, MC_DLOG_PATH_MAX, "%s/", log->path);

	if (n < 0 || n + 32 > (int)MC_DLOG_PATH_MAX)
		return -MC_E_TOO_BIG;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
	/* A name without a number leaves the id unused. */
	/* cppcheck-suppress wrongPrintfScanfArgNum */
	(void)snprintf(ret_path + n, 32, name, id);
#pragma GCC diagnostic pop
	return 0;
}

void mc_dlog_hash(const struct mc_dlog *log, const void *key, size_t len, uint64_t *ret_hash,
		  uint32_t *ret_check)
{
	*ret_hash = mc_hash64(key, len, log->log_id);
	*ret_check = (uint32_t)(mc_hash64(key, len, ~log->log_id) >> 32);
}

void mc_dlog_set_read_only(struct mc_dlog *log, const char *why, int rc)
{
	if (log->is_read_only)
		return;
	log->is_read_only = true;
	(void)snprintf(log->why, sizeof(log->why), "%s: %s", why, mc_err_text(rc));
	mc_log_error("the disk log is read-only", "path=%s cause=\"%s\"", log->path, log->why);
}

/* ---- small files ---- */

/* @return bytes; -errno */
static int read_small(struct mc_disk_file *file, char *to, size_t len)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = file->disk->read(file, to + done, len - done, done);

		if (n < 0)
			return (int)n;
		if (n == 0)
			break;
		done += (size_t)n;
	}
	return (int)done;
}

static int write_small(struct mc_disk_file *file, const char *from, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = file->disk->write(file, from + done, len - done, done);

		if (n <= 0)
			return n < 0 ? (int)n : -ENOSPC;
		done += (size_t)n;
	}
	return 0;
}

/* ---- the lock ---- */

static int lock_busy(struct mc_dlog *log, struct mc_disk_file *file, struct mc_diag *ret_diag)
{
	char text[LOCK_TEXT + 1] = "";
	int n = read_small(file, text, LOCK_TEXT);

	text[n > 0 ? n : 0] = '\0';
	text[strcspn(text, "\n")] = '\0';
	mc_diag_set(ret_diag, "%s is in use by %s", log->path, text[0] ? text : "another process");
	return -MC_E_BUSY;
}

static int lock(struct mc_dlog *log, struct mc_diag *ret_diag)
{
	char path[MC_DLOG_PATH_MAX], text[LOCK_TEXT];
	int rc = mc_dlog_path(log, "lock", 0, path), len;

	if (rc < 0)
		return rc;
	rc = log->disk->open(log->disk, path, MC_DISK_READ | MC_DISK_WRITE | MC_DISK_CREATE, 0600,
			     &log->lock_file);
	if (rc == 0)
		rc = log->disk->lock(log->lock_file, true);
	if (rc == -EWOULDBLOCK) {
		rc = lock_busy(log, log->lock_file, ret_diag);
		log->disk->close(log->lock_file);
		log->lock_file = NULL;
		return rc;
	}
	len = snprintf(text, sizeof(text), "pid %ld\n", (long)getpid());
	if (rc == 0)
		rc = log->disk->truncate(log->lock_file, 0);
	if (rc == 0)
		rc = write_small(log->lock_file, text, (size_t)len);
	if (rc < 0) {
		mc_diag_set(ret_diag, "%s: %s", path, strerror(-rc));
		return mc_err_from_errno(-rc);
	}
	return 0;
}

/* ---- the format ---- */

static void format_line(uint64_t id, char *to)
{
	uint32_t crc;
	int n = snprintf(to, FORMAT_LINE, "mooncake log %u id %016" PRIx64, FORMAT_VERSION, id);

	memset(to + n, ' ', FORMAT_LINE - (size_t)n);
	crc = mc_crc32c(0, to, FORMAT_LINE - 9);
	(void)snprintf(to + FORMAT_LINE - 9, 9, "%08x", crc);
	to[FORMAT_LINE - 1] = '\n';
}

static int format_parse(const char *line, uint64_t *ret_id)
{
	char again[FORMAT_LINE], text[FORMAT_LINE + 1];
	unsigned version;
	uint64_t id;
	uint32_t crc;

	memcpy(text, line, FORMAT_LINE);
	text[FORMAT_LINE] = '\0';
	if (sscanf(text, "mooncake log %u id %" SCNx64, &version, &id) != 2)
		return -MC_E_CORRUPT;
	format_line(id, again);
	if (memcmp(again, line, FORMAT_LINE) == 0) {
		*ret_id = id;
		return 0;
	}
	/* Another version with a good CRC is another version; all else is damage. */
	if (sscanf(text + FORMAT_LINE - 9, "%8x", &crc) == 1 &&
	    crc == mc_crc32c(0, line, FORMAT_LINE - 9) && version != FORMAT_VERSION)
		return -MC_E_VERSION;
	return -MC_E_CORRUPT;
}

static int format_read(struct mc_dlog *log, struct mc_disk_file *file, const char *path,
		       struct mc_diag *ret_diag)
{
	char text[2 * FORMAT_LINE] = "";
	int n = read_small(file, text, sizeof(text)), rc = -MC_E_CORRUPT;

	if (n < 0) {
		mc_diag_set(ret_diag, "reading %s: %s", path, strerror(-n));
		return mc_err_from_errno(-n);
	}
	for (unsigned i = 0; i < 2 && rc == -MC_E_CORRUPT; i++)
		rc = format_parse(text + (size_t)i * FORMAT_LINE, &log->log_id);
	if (rc < 0)
		mc_diag_set(ret_diag, "%s: %s", path,
			    rc == -MC_E_VERSION ? "another version of the format" : "damaged");
	return rc;
}

static void on_name(void *user, const char *name)
{
	static const char *const ours[] = {"lock", "format.new", "lost+found"};
	unsigned *others = user;

	for (size_t i = 0; i < MC_ARRAY_LEN(ours); i++)
		if (strcmp(name, ours[i]) == 0)
			return;
	++*others;
}

static int format_make(struct mc_dlog *log, const char *path, struct mc_diag *ret_diag)
{
	char from[MC_DLOG_PATH_MAX], text[2 * FORMAT_LINE];
	struct mc_disk_file *file = NULL;
	unsigned others = 0;
	int rc = log->disk->list(log->disk, log->path, on_name, &others);

	if (rc == 0 && others > 0) {
		mc_diag_set(ret_diag, "%s has files but no file \"format\": not a disk log",
			    log->path);
		return -MC_E_INVAL;
	}
	if (mc_dlog_path(log, "format.new", 0, from) < 0)
		return -MC_E_TOO_BIG;
	if (mc_rand_bytes(&log->log_id, sizeof(log->log_id)) < 0)
		return -MC_E_UNAVAILABLE;
	format_line(log->log_id, text);
	format_line(log->log_id, text + FORMAT_LINE);
	if (rc == 0)
		rc = log->disk->open(log->disk, from, MC_DISK_WRITE | MC_DISK_CREATE, 0600, &file);
	if (rc == 0) {
		rc = write_small(file, text, sizeof(text));
		if (rc == 0)
			rc = log->disk->sync(file, false);
		log->disk->close(file);
	}
	if (rc == 0)
		rc = log->disk->rename(log->disk, from, path);
	if (rc == 0)
		rc = log->disk->sync_dir(log->disk, log->path);
	if (rc == 0)
		return 0;
	mc_diag_set(ret_diag, "making %s: %s", path, strerror(-rc));
	return mc_err_from_errno(-rc);
}

static int format(struct mc_dlog *log, struct mc_diag *ret_diag)
{
	struct mc_disk_file *file;
	char path[MC_DLOG_PATH_MAX];
	int rc = mc_dlog_path(log, "format", 0, path);

	if (rc < 0)
		return rc;
	rc = log->disk->open(log->disk, path, MC_DISK_READ, 0, &file);
	if (rc == -ENOENT)
		return format_make(log, path, ret_diag);
	if (rc < 0) {
		mc_diag_set(ret_diag, "opening %s: %s", path, strerror(-rc));
		return mc_err_from_errno(-rc);
	}
	rc = format_read(log, file, path, ret_diag);
	log->disk->close(file);
	return rc;
}

/* ---- opening and closing ---- */

static int check_conf(const struct mc_dlog_conf *conf, struct mc_diag *ret_diag)
{
	if (conf->segment_bytes > 0 &&
	    (conf->segment_bytes < MC_DLOG_SEGMENT_MIN ||
	     conf->segment_bytes > (uint64_t)UINT32_MAX * MC_REC_ALIGN)) {
		mc_diag_set(ret_diag, "a segment of %llu bytes: 64 KiB … 256 GiB",
			    (unsigned long long)conf->segment_bytes);
		return -MC_E_INVAL;
	}
	if (conf->depth > MC_DISK_DEPTH_MAX) {
		mc_diag_set(ret_diag, "depth %u: at most %u", conf->depth, MC_DISK_DEPTH_MAX);
		return -MC_E_INVAL;
	}
	return 0;
}

static void init(struct mc_dlog *log, const struct mc_dlog_conf *conf)
{
	log->disk = conf->disk;
	log->fork_gen = mc_fork_gen();
	log->quota = conf->quota_bytes;
	log->segment_bytes = mc_max(conf->quota_bytes / SEGMENTS_WANTED, SEGMENT_MIN_DEFAULT);
	log->segment_bytes = mc_min(log->segment_bytes, SEGMENT_MAX_DEFAULT);
	if (conf->segment_bytes > 0)
		log->segment_bytes = conf->segment_bytes;
	log->no_direct = conf->no_direct;
	log->mem_align = 1;
	log->event_fd = -1;
	mc_index_init(&log->index);
	mc_list_init(&log->slots_free);
	mc_list_init(&log->waiting);
	mc_list_init(&log->groups);
	mc_list_init(&log->puts_spare);
	mc_list_init(&log->groups_spare);
	mc_list_init(&log->reads);
}

static void dispose(struct mc_dlog *log)
{
	mc_dlog_compact_abort(log);
	mc_dlog_read_fini(log);
	mc_dlog_write_fini(log);
	mc_dlog_aio_close(log);
	mc_dlog_segs_close(log);
	mc_index_fini(&log->index);
	if (log->lock_file) {
		if (!mc_fork_is_child(log->fork_gen))
			(void)log->disk->lock(log->lock_file, false); /* closing does it, too */
		log->disk->close(log->lock_file);
	}
	mc_free(log->path);
	mc_free(log);
}

int mc_dlog_open(const struct mc_dlog_conf *conf, struct mc_dlog **ret_log,
		 struct mc_diag *ret_diag)
{
	struct mc_dlog *log;
	uint64_t begin_ns = mc_now_ns();
	int rc = check_conf(conf, ret_diag);

	if (rc < 0)
		return rc;
	log = mc_calloc(1, sizeof(*log));
	if (!log)
		return -MC_E_NOMEM;
	init(log, conf);
	log->path = mc_strdup(conf->path);
	rc = log->path ? log->disk->mkdir(log->disk, log->path, 0700) : -ENOMEM;
	if (rc < 0 && rc != -EEXIST) {
		mc_diag_set(ret_diag, "making %s: %s", conf->path, strerror(-rc));
		rc = mc_err_from_errno(-rc);
		goto fail;
	}
	rc = lock(log, ret_diag);
	if (rc == 0)
		rc = format(log, ret_diag);
	if (rc == 0)
		rc = mc_dlog_aio_open(log, conf->no_uring,
				      conf->depth ? conf->depth : MC_DLOG_DEPTH_DEFAULT);
	if (rc == 0)
		rc = mc_dlog_recover(log, conf->no_checkpoint, ret_diag);
	if (rc < 0) {
		mc_diag_wrap(ret_diag, "disk log %s", conf->path);
		goto fail;
	}
	mc_log_info(
	    "disk log open",
	    "path=%s objects=%llu segments=%zu bytes=%llu checkpoint=%llu scanned=%llu "
	    "torn=%llu bad=%llu lost=%llu ms=%llu io=\"%s\"",
	    log->path, (unsigned long long)log->stats.objects, log->nsegs,
	    (unsigned long long)mc_dlog_used(log), (unsigned long long)log->stats.from_checkpoint,
	    (unsigned long long)log->stats.scanned_bytes, (unsigned long long)log->stats.torn_bytes,
	    (unsigned long long)log->stats.bad_records, (unsigned long long)log->stats.lost_objects,
	    (unsigned long long)((mc_now_ns() - begin_ns) / MC_NS_PER_MS), log->aio->text);
	*ret_log = log;
	return 0;
fail:
	dispose(log);
	return rc;
}

void mc_dlog_close(struct mc_dlog *log)
{
	int rc;

	if (!log)
		return;
	if (!mc_fork_is_child(log->fork_gen)) {
		log->is_closing = true;
		mc_dlog_write_refuse(log, -MC_E_CLOSED);
		mc_dlog_compact_abort(log);
		while (mc_dlog_reap(log, MC_NS_PER_S) > 0)
			;
		if (!log->is_read_only)
			mc_dlog_seg_seal(log);
		if (log->is_dirty && !log->is_read_only) {
			rc = mc_dlog_checkpoint(log);
			if (rc < 0)
				mc_log_warn("no checkpoint of the disk log", "path=%s cause=\"%s\"",
					    log->path, mc_err_text(rc));
		}
		mc_dlog_spare_drop(log);
	}
	dispose(log);
}

/* ---- turns ---- */

void mc_dlog_flush(struct mc_dlog *log)
{
	if (log->is_in_turn)
		return; /* a callback: the turn goes on anyway */
	log->is_in_turn = true;
	mc_dlog_write_pump(log);
	mc_dlog_read_pump(log);
	mc_dlog_aio_turn(log, 0);
	log->is_in_turn = false;
}

unsigned mc_dlog_reap(struct mc_dlog *log, uint64_t block_ns)
{
	unsigned before = log->nputs + log->nreads, rounds = 0;

	mc_assert(!log->is_in_turn);
	log->is_in_turn = true;
	do {
		mc_dlog_write_pump(log);
		mc_dlog_read_pump(log);
		mc_dlog_aio_turn(log, log->nputs + log->nreads < before ? 0 : block_ns);
		block_ns = 0;
	} while (++rounds < ROUNDS && log->nflying > 0 && !log->is_broken &&
		 log->queue->ops->is_ready(log->queue));
	mc_dlog_write_pump(log);
	mc_dlog_read_pump(log);
	mc_dlog_aio_turn(log, 0);
	log->is_in_turn = false;
	return log->nputs + log->nreads;
}

int mc_dlog_event_fd(const struct mc_dlog *log)
{
	return log->event_fd;
}

int mc_dlog_checkpoint(struct mc_dlog *log)
{
	return mc_dlog_ckpt_save(log);
}

/* ---- questions ---- */

int mc_dlog_stat(const struct mc_dlog *log, const void *key, size_t key_len,
		 struct mc_dlog_info *ret_info)
{
	const struct mc_index_entry *e;
	uint64_t hash;
	uint32_t check;

	mc_dlog_hash(log, key, key_len, &hash, &check);
	e = mc_index_find(&log->index, hash, check);
	if (!e || e->kind != MC_REC_PUT || e->key_len != key_len)
		return -MC_E_NOENT;
	*ret_info = (struct mc_dlog_info){e->gen, e->payload_len, e->tlv_len};
	return 0;
}

struct listing {
	void (*each)(void *user, const struct mc_dlog_item *item);
	void *user;
};

static const struct mc_index_entry *live_at(const struct mc_dlog *log,
					    const struct mc_dlog_seg *seg, const struct mc_rec *rec)
{
	const struct mc_index_entry *e = mc_index_find(&log->index, rec->hash, rec->check);

	if (!e || e->kind != MC_REC_PUT || e->segment != seg->id || mc_index_off(e) != rec->off)
		return NULL;
	return e;
}

static int list_item(void *user, struct mc_dlog *log, struct mc_dlog_seg *seg,
		     const struct mc_rec *rec, const uint8_t *texts)
{
	const struct listing *l = user;
	const struct mc_index_entry *e = live_at(log, seg, rec);
	const struct mc_dlog_item item = {.key = texts,
					  .tlv = texts + rec->key_len,
					  .key_len = rec->key_len,
					  .info = {rec->gen, rec->payload_len, rec->tlv_len}};

	if (e && mc_dlog_gen_cmp(e->gen, rec->gen) == 0)
		l->each(l->user, &item);
	return 0;
}

/* By a walk. */
static void list_record(struct mc_dlog *log, struct mc_dlog_seg *seg, const struct mc_rec *rec,
			const uint8_t *head, struct listing *l)
{
	const struct mc_index_entry *e = live_at(log, seg, rec);
	struct mc_rec whole;

	if (!e)
		return;
	if (mc_dlog_check_record(log, e, head, &whole) < 0)
		log->stats.bad_records++;
	else
		(void)list_item(l, log, seg, rec, head + MC_REC_HEAD); /* never an error */
}

/* @return 1: by its footer; 0: it has none; < 0 */
static int list_foot(struct mc_dlog *log, struct mc_dlog_seg *seg,
		     const struct mc_dlog_cursor *cursor, struct listing *l)
{
	if (seg == log->active || cursor->off > 0)
		return 0;
	return mc_dlog_foot_each(log, seg, list_item, l);
}

/* The first segment from this id on. */
static struct mc_dlog_seg *seg_from(const struct mc_dlog *log, uint64_t id)
{
	for (size_t i = 0; i < log->nsegs; i++)
		if (log->segs[i]->id >= id)
			return log->segs[i];
	return NULL;
}

int mc_dlog_list(struct mc_dlog *log, struct mc_dlog_cursor *cursor, uint64_t bytes,
		 void (*each)(void *user, const struct mc_dlog_item *item), void *user)
{
	uint64_t until = log->stats.scanned_bytes + bytes;
	struct listing l = {each, user};
	struct mc_dlog_seg *seg;
	struct mc_dlog_scan s;
	const uint8_t *head;
	struct mc_rec rec;
	int rc;

	while ((seg = seg_from(log, cursor->segment))) {
		if (cursor->segment != seg->id)
			*cursor = (struct mc_dlog_cursor){.segment = seg->id};
		rc = list_foot(log, seg, cursor, &l);
		if (rc == 1) {
			*cursor = (struct mc_dlog_cursor){.segment = (uint64_t)seg->id + 1};
			if (log->stats.scanned_bytes >= until)
				return 1;
			continue;
		}
		if (rc < 0)
			return rc;
		rc = mc_dlog_scan_init(&s, log, seg, cursor->off, seg->durable);
		if (rc < 0)
			return rc;
		while (log->stats.scanned_bytes < until &&
		       mc_dlog_scan_next(&s, seg->durable, &rec, &head) == 1)
			list_record(log, seg, &rec, head, &l);
		cursor->off = s.at;
		mc_dlog_scan_fini(&s);
		if (log->stats.scanned_bytes >= until)
			return 1;
		if (seg == log->active)
			return 0;
		*cursor = (struct mc_dlog_cursor){.segment = (uint64_t)seg->id + 1};
	}
	return 0;
}

void mc_dlog_stats(const struct mc_dlog *log, struct mc_dlog_stats *ret_stats)
{
	struct mc_dlog_stats s = log->stats;
	uint64_t kept = 0;

	s.segments = log->nsegs;
	s.quota_bytes = log->quota;
	s.index_bytes = mc_index_bytes(&log->index);
	s.is_read_only = log->is_read_only;
	s.is_direct = log->active && log->active->is_direct;
	for (size_t i = 0; i < log->nsegs; i++) {
		s.used_bytes += log->segs[i]->tail;
		s.live_bytes += log->segs[i]->live_bytes;
		kept += log->segs[i]->tomb_bytes + log->segs[i]->foot_bytes;
	}
	s.dead_bytes = s.used_bytes - s.live_bytes - kept;
	*ret_stats = s;
}

const char *mc_dlog_why(const struct mc_dlog *log)
{
	return log->why;
}
