/*
 * state.c: the master's two files.
 */
#include "master/state.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/codec.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/opt.h"
#include "base/str.h"

#define PATH_MAX_BYTES 4096u
#define TEXT_MAX_BYTES (4u << 20)
#define TOMB_LEN 32u
#define MAGIC "mooncake-master-state 1\n"
#define CHECK "check "

/* What the next job, or the one under way, has to write. */
struct job {
	struct mc_str text; /* the state file; empty: it stays */
	uint8_t *tombs;
	size_t tombs_len, tombs_cap;
	bool is_anew; /* tombstones replace the file */
	struct mc_list waits;
};

struct mc_state {
	struct mc_env env;
	struct mc_loop *loop, *side;
	char *dir;
	/* the loop's */
	struct job next;
	bool is_running, is_closed;
	struct mc_task done_task;
	/* the side loop's while is_running, else the loop's */
	struct job now;
	struct mc_task run_task;
	uint64_t tombs_at;    /* end of the file's good part */
	_Atomic bool is_kept; /* cleared by the side loop */
};

/* ---- jobs ---- */

static void job_init(struct job *j)
{
	*j = (struct job){0};
	mc_str_init(&j->text, TEXT_MAX_BYTES);
	mc_list_init(&j->waits);
}

static void job_fini(struct job *j)
{
	mc_str_fini(&j->text);
	mc_free(j->tombs);
}

static bool job_is_empty(const struct job *j)
{
	return j->text.len == 0 && j->tombs_len == 0 && !j->is_anew && mc_list_is_empty(&j->waits);
}

static void job_swap(struct mc_state *s)
{
	struct job j = s->now;

	s->now = s->next;
	mc_list_init(&s->now.waits);
	mc_list_splice_back(&s->now.waits, &s->next.waits);
	s->next = j;
	mc_list_init(&s->next.waits);
	mc_str_reset(&s->next.text);
	s->next.tombs_len = 0;
	s->next.is_anew = false;
}

/* ---- files ---- */

static void path_of(const struct mc_state *s, const char *name, char *path)
{
	(void)snprintf(path, PATH_MAX_BYTES, "%s/%s", s->dir, name);
}

/* @return 0 or -errno */
static int write_all(struct mc_disk_file *f, const void *data, size_t len, uint64_t off)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = f->disk->write(f, (const char *)data + done, len - done, off + done);

		if (n <= 0)
			return n < 0 ? (int)n : -EIO;
		done += (size_t)n;
	}
	return 0;
}

/* Replace a file as a whole. @return 0 or -errno */
static int file_replace(struct mc_state *s, const char *name, const void *data, size_t len)
{
	const struct mc_disk *disk = s->env.disk;
	char path[PATH_MAX_BYTES], temp[PATH_MAX_BYTES];
	struct mc_disk_file *f;
	int rc;

	path_of(s, name, path);
	path_of(s, "new", temp);
	rc = disk->open(disk, temp, MC_DISK_WRITE | MC_DISK_CREATE, 0600, &f);
	if (rc < 0)
		return rc;
	rc = disk->truncate(f, 0);
	if (rc == 0)
		rc = write_all(f, data, len, 0);
	if (rc == 0)
		rc = disk->sync(f, false);
	disk->close(f);
	if (rc == 0)
		rc = disk->rename(disk, temp, path);
	return rc < 0 ? rc : disk->sync_dir(disk, s->dir);
}

static int tombs_append(struct mc_state *s, const void *data, size_t len)
{
	const struct mc_disk *disk = s->env.disk;
	char path[PATH_MAX_BYTES];
	struct mc_disk_file *f;
	int rc;

	path_of(s, "tombstones", path);
	rc = disk->open(disk, path, MC_DISK_WRITE | MC_DISK_CREATE, 0600, &f);
	if (rc < 0)
		return rc;
	rc = write_all(f, data, len, s->tombs_at);
	if (rc == 0)
		rc = disk->sync(f, true);
	disk->close(f);
	if (rc == 0 && s->tombs_at == 0)
		rc = disk->sync_dir(disk, s->dir);
	return rc;
}

static int job_write(struct mc_state *s)
{
	struct job *j = &s->now;
	int rc = 0;

	if (j->text.len)
		rc = file_replace(s, "state", j->text.text, j->text.len);
	if (rc == 0 && j->is_anew)
		rc = file_replace(s, "tombstones", j->tombs, j->tombs_len);
	else if (rc == 0 && j->tombs_len)
		rc = tombs_append(s, j->tombs, j->tombs_len);
	if (rc == 0)
		s->tombs_at = (j->is_anew ? 0 : s->tombs_at) + j->tombs_len;
	return rc;
}

static void told(struct mc_state *s, int err)
{
	mc_log_warn("state directory cannot be written; a restart of this master will not know its "
		    "epoch and what was removed",
		    "dir=%s error=%s", s->dir, strerror(-err));
	s->is_kept = false;
}

static void side_run(struct mc_task *t)
{
	struct mc_state *s = mc_container_of(t, struct mc_state, run_task);
	int rc = s->is_kept ? job_write(s) : 0;

	if (rc < 0)
		told(s, rc);
	mc_loop_post(s->loop, &s->done_task);
}

static void state_start(struct mc_state *s)
{
	if (s->is_running || job_is_empty(&s->next))
		return;
	job_swap(s);
	s->is_running = true;
	mc_loop_post(s->side, &s->run_task);
}

static void state_free(struct mc_state *s)
{
	job_fini(&s->now);
	job_fini(&s->next);
	mc_free(s->dir);
	mc_free(s);
}

static void loop_done(struct mc_task *t)
{
	struct mc_state *s = mc_container_of(t, struct mc_state, done_task);
	struct mc_list waits, *node;

	s->is_running = false;
	if (s->is_closed) {
		state_free(s);
		return;
	}
	mc_list_init(&waits);
	mc_list_splice_back(&waits, &s->now.waits);
	while ((node = mc_list_pop_front(&waits))) {
		struct mc_state_wait *w = mc_list_entry(node, struct mc_state_wait, link);

		w->on_done(w);
	}
	state_start(s);
}

/* ---- what is asked for ---- */

/* @return 0 or -ENOMEM */
static int text_make(struct mc_str *t, uint64_t epoch, const struct mc_state_owner *owners,
		     size_t n, const struct mc_state_quota *quotas, size_t nquotas)
{
	mc_str_reset(t);
	(void)mc_str_puts(t, MAGIC);
	(void)mc_str_appendf(t, "epoch %" PRIu64 "\n", epoch);
	for (size_t i = 0; i < n; i++)
		(void)mc_str_appendf(t, "owner %016" PRIx64 " %016" PRIx64 " %d %" PRIu64 " %s\n",
				     owners[i].id, owners[i].incarnation, owners[i].is_away,
				     owners[i].seen_s, owners[i].segment);
	for (size_t i = 0; i < nquotas; i++)
		(void)mc_str_appendf(t, "quota %" PRIu64 " %s\n", quotas[i].bytes,
				     quotas[i].tenant);
	(void)mc_str_appendf(t, CHECK "%016" PRIx64 "\n",
			     t->rc < 0 ? 0 : mc_hash64(t->text, t->len, 0));
	if (t->rc == 0)
		return 0;
	mc_log_warn("no memory for the state file", "owners=%zu", n);
	mc_str_reset(t);
	return -ENOMEM;
}

int mc_state_save(struct mc_state *s, uint64_t epoch, const struct mc_state_owner *owners, size_t n,
		  const struct mc_state_quota *quotas, size_t nquotas)
{
	if (!s->dir)
		return 0;
	if (text_make(&s->next.text, epoch, owners, n, quotas, nquotas) < 0)
		return -MC_E_NOMEM;
	state_start(s);
	return 0;
}

static void tomb_encode(uint8_t buf[TOMB_LEN], const struct mc_state_tomb *tomb)
{
	struct mc_wr w = mc_wr_make(buf, TOMB_LEN);

	mc_wr_u64(&w, tomb->owner);
	mc_wr_u64(&w, tomb->key_hash);
	mc_wr_u64(&w, tomb->gen);
	mc_wr_u64(&w, mc_hash64(buf, TOMB_LEN - 8, 0));
}

static bool tomb_decode(const uint8_t buf[TOMB_LEN], struct mc_state_tomb *tomb)
{
	struct mc_rd r = mc_rd_make(buf, TOMB_LEN);

	tomb->owner = mc_rd_u64(&r);
	tomb->key_hash = mc_rd_u64(&r);
	tomb->gen = mc_rd_u64(&r);
	return mc_rd_u64(&r) == mc_hash64(buf, TOMB_LEN - 8, 0);
}

static int job_bury(struct job *j, const struct mc_state_tomb *tombs, size_t n)
{
	int rc = mc_array_grow((void **)&j->tombs, &j->tombs_cap, j->tombs_len + n * TOMB_LEN,
			       2ull * MC_STATE_TOMBS_MAX * TOMB_LEN, 1);

	if (rc < 0)
		return -MC_E_NOMEM;
	for (size_t i = 0; i < n; i++, j->tombs_len += TOMB_LEN)
		tomb_encode(j->tombs + j->tombs_len, &tombs[i]);
	return 0;
}

int mc_state_bury(struct mc_state *s, const struct mc_state_tomb *tomb)
{
	int rc = s->dir ? job_bury(&s->next, tomb, 1) : 0;

	if (rc == 0)
		state_start(s);
	return rc;
}

int mc_state_bury_anew(struct mc_state *s, const struct mc_state_tomb *tombs, size_t n)
{
	int rc;

	if (!s->dir)
		return 0;
	s->next.tombs_len = 0;
	s->next.is_anew = true;
	rc = job_bury(&s->next, tombs, n);
	state_start(s);
	return rc;
}

void mc_state_wait(struct mc_state *s, struct mc_state_wait *w)
{
	mc_list_push_back(&s->next.waits, &w->link);
	state_start(s);
}

/* ---- reading ---- */

void mc_state_found_fini(struct mc_state_found *found)
{
	mc_free(found->owners);
	mc_free(found->tombs);
	mc_free(found->quotas);
	*found = (struct mc_state_found){0};
}

/* A whole file. @return 0 or -errno; -ENOENT */
static int file_read(struct mc_state *s, const char *name, uint64_t max, char **ret_data,
		     size_t *ret_len)
{
	const struct mc_disk *disk = s->env.disk;
	char path[PATH_MAX_BYTES], *data = NULL;
	struct mc_disk_stat st;
	struct mc_disk_file *f;
	size_t len = 0;
	int rc;

	path_of(s, name, path);
	rc = disk->open(disk, path, MC_DISK_READ, 0, &f);
	if (rc < 0)
		return rc;
	rc = disk->stat(f, &st);
	if (rc == 0 && (!st.is_regular || st.len_bytes > max))
		rc = -EFBIG;
	if (rc == 0) {
		data = mc_calloc(1, (size_t)st.len_bytes + 1);
		rc = data ? 0 : -ENOMEM;
	}
	while (rc == 0 && len < st.len_bytes) {
		ssize_t n = disk->read(f, data + len, (size_t)st.len_bytes - len, len);

		if (n <= 0)
			rc = n < 0 ? (int)n : -EIO;
		else
			len += (size_t)n;
	}
	disk->close(f);
	if (rc < 0) {
		mc_free(data);
		return rc;
	}
	*ret_data = data;
	*ret_len = len;
	return 0;
}

static bool owner_parse(const char *line, struct mc_state_owner *o)
{
	int flags, at = 0;

	*o = (struct mc_state_owner){0};
	if (sscanf(line, "owner %16" SCNx64 " %16" SCNx64 " %d %" SCNu64 " %n", &o->id,
		   &o->incarnation, &flags, &o->seen_s, &at) != 4 ||
	    at == 0)
		return false;
	o->is_away = flags & 1;
	return mc_strlcpy(o->segment, sizeof(o->segment), line + at) == 0;
}

static bool quota_parse(const char *line, struct mc_state_quota *q)
{
	int at = 0;

	return sscanf(line, "quota %" SCNu64 " %n", &q->bytes, &at) == 1 && at > 0 && line[at] &&
	       mc_strlcpy(q->tenant, sizeof(q->tenant), line + at) == 0;
}

struct caps {
	size_t owners, quotas;
};

/* @return false: damaged, or no memory */
static bool line_parse(const char *line, struct mc_state_found *found, struct caps *caps)
{
	if (strncmp(line, "epoch ", 6) == 0)
		return mc_opt_parse_u64(line + 6, &found->epoch) == 0;
	if (strncmp(line, "quota ", 6) == 0)
		return mc_array_grow((void **)&found->quotas, &caps->quotas, found->nquotas + 1,
				     MC_STATE_QUOTAS_MAX, sizeof(*found->quotas)) == 0 &&
		       quota_parse(line, &found->quotas[found->nquotas++]);
	return mc_array_grow((void **)&found->owners, &caps->owners, found->nowners + 1,
			     MC_STATE_OWNERS_MAX, sizeof(*found->owners)) == 0 &&
	       owner_parse(line, &found->owners[found->nowners++]);
}

/* The text is NUL-ended and may be written to. @return false: damaged */
static bool text_parse(char *text, size_t len, struct mc_state_found *found)
{
	size_t check_len = strlen(CHECK) + 17, magic_len = strlen(MAGIC);
	struct caps caps = {0};
	uint64_t check;
	char *line, *save;

	if (len < magic_len + check_len || strlen(text) != len ||
	    strncmp(text, MAGIC, magic_len) != 0 ||
	    sscanf(text + len - check_len, CHECK "%16" SCNx64, &check) != 1 ||
	    check != mc_hash64(text, len - check_len, 0))
		return false;
	text[len - check_len] = '\0';
	for (line = strtok_r(text + magic_len, "\n", &save); line;
	     line = strtok_r(NULL, "\n", &save)) {
		if (!line_parse(line, found, &caps))
			return false;
	}
	found->is_there = found->epoch > 0;
	return found->is_there;
}

static int state_read(struct mc_state *s, struct mc_state_found *found)
{
	char *data;
	size_t len;
	int rc = file_read(s, "state", TEXT_MAX_BYTES, &data, &len);

	if (rc == -ENOENT)
		return 0;
	if (rc < 0)
		return rc;
	if (!text_parse(data, len, found)) {
		mc_log_warn("state file is damaged and left aside; what owners announce counts",
			    "dir=%s", s->dir);
		mc_state_found_fini(found);
	}
	mc_free(data);
	return 0;
}

static int tombs_read(struct mc_state *s, struct mc_state_found *found)
{
	char *data;
	size_t len, n = 0;
	int rc = file_read(s, "tombstones", 2ull * MC_STATE_TOMBS_MAX * TOMB_LEN, &data, &len);

	if (rc == -ENOENT)
		return 0;
	if (rc < 0)
		return rc;
	found->tombs = mc_calloc(len / TOMB_LEN + 1, sizeof(*found->tombs));
	rc = found->tombs ? 0 : -ENOMEM;
	while (rc == 0 && n < len / TOMB_LEN &&
	       tomb_decode((const uint8_t *)data + n * TOMB_LEN, &found->tombs[n]))
		n++;
	found->ntombs = n;
	s->tombs_at = n * TOMB_LEN;
	mc_free(data);
	return rc;
}

int mc_state_open(const struct mc_env *env, struct mc_loop *loop, struct mc_loop *side,
		  const char *dir, struct mc_state **ret_state, struct mc_state_found *ret_found)
{
	struct mc_state *s = mc_calloc(1, sizeof(*s));
	int rc = 0;

	*ret_found = (struct mc_state_found){0};
	if (!s)
		return -MC_E_NOMEM;
	s->env = *env;
	s->loop = loop;
	s->side = side;
	s->run_task.run = side_run;
	s->done_task.run = loop_done;
	job_init(&s->now);
	job_init(&s->next);
	if (dir && strlen(dir) + 16 > PATH_MAX_BYTES) {
		mc_log_warn("state directory has too long a name", "dir=%s", dir);
		dir = NULL;
	}
	s->dir = dir ? mc_strdup(dir) : NULL;
	if (dir && !s->dir) {
		state_free(s);
		return -MC_E_NOMEM;
	}
	s->is_kept = s->dir != NULL;
	if (s->is_kept)
		rc = state_read(s, ret_found);
	if (s->is_kept && rc == 0)
		rc = tombs_read(s, ret_found);
	if (s->is_kept && rc == 0)
		rc = text_make(&s->now.text, ret_found->epoch + 1, ret_found->owners,
			       ret_found->nowners, ret_found->quotas, ret_found->nquotas);
	if (s->is_kept && rc == 0)
		rc = job_write(s);
	if (rc == -ENOMEM) {
		mc_state_found_fini(ret_found);
		state_free(s);
		return -MC_E_NOMEM;
	}
	if (rc < 0)
		told(s, rc);
	*ret_state = s;
	return 0;
}

void mc_state_close(struct mc_state *s)
{
	if (!s)
		return;
	mc_list_init(&s->next.waits);
	s->is_closed = true;
	if (!s->is_running)
		state_free(s);
}
