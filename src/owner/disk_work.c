/*
 * disk_work.c: what the thread does that has the disk. A slot that was sealed a moment ago is
 * pinned and written; a record that somebody fetches is read into a slot; records are deleted.
 */
#include "owner/priv.h"

#define AGAIN_NS (100 * MC_NS_PER_MS) /* of a write that had no room */
#define DELETE_AGAIN_NS MC_NS_PER_S
#define GRANT_FIX 24u
#define GRANTED_LEN 20u

/* Under the lock: the loop has something to tell. */
static void post(struct mc_owner *o)
{
	if (o->disk.is_posted)
		return;
	o->disk.is_posted = true;
	mc_loop_post(o->loop, &o->disk.task);
}

/* ---- fetches ---- */

/* A guest that is there is asked for. */
static void again(struct mc_owner *o, uint32_t id, bool is_kept)
{
	mc_opool_guest(&o->pool, id, is_kept, mc_clock_now(o->env->clk));
	if (!is_kept)
		return;
	mc_odisk_more(&o->disk, o->pool.slots[id].gen, MC_ST_MEMORY);
	post(o);
}

int32_t mc_odisk_begin(struct mc_owner *o, struct mc_owait *w, uint32_t id, bool is_old)
{
	struct mc_odisk *d = &o->disk;
	struct mc_oslot *s = &o->pool.slots[id];
	struct mc_orec *rec = mc_orec_find(d, s->gen);
	struct mc_ofetch *f;

	if (is_old && s->state == MC_OSLOT_SEALED) {
		if (s->is_guest)
			again(o, id, w->is_kept);
		return 0;
	}
	if (is_old) {
		mc_list_each (f, &d->fetches, link) {
			if (f->slot == id && f->rec->gen == s->gen)
				w->fetch = f;
		}
		if (w->fetch && w->is_kept) {
			w->fetch->is_kept = true;
			s->is_guest = false;
		}
		/* A writer has it: it is not what it was when its place was asked for. */
		return w->fetch ? 0 : MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS;
	}
	f = rec && rec->state == MC_OREC_LIVE && !d->is_over ? mc_calloc(1, sizeof(*f)) : NULL;
	if (!f) {
		mc_opool_release(&o->pool, id);
		return rec && rec->state == MC_OREC_LIVE ? MC_STORE_INTERNAL_ERROR
							 : MC_STORE_REPLICA_IS_GONE;
	}
	s->state = MC_OSLOT_SEALING;
	s->is_fetched = true;
	s->is_guest = !w->is_kept;
	f->is_kept = w->is_kept;
	f->rec = rec;
	f->slot = id;
	rec->nreads++;
	mc_list_init(&f->waiters);
	mc_list_push_back(&d->fetches, &f->link);
	w->fetch = f;
	mc_odisk_wake(o);
	return 0;
}

static void refuse(struct mc_rpc_req *req, int32_t status)
{
	const struct mc_st_granted g = {.status = status};
	uint8_t buf[4 + GRANTED_LEN];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));

	mc_wr_u32(&w, 1);
	mc_st_granted_encode(&w, &g);
	(void)mc_rpc_reply(req, 0, buf, mc_wr_len(&w), NULL, 0);
}

/* A grant of what the record says, as if it had been asked for. NULL: no memory */
static struct mc_owait *wait_new(struct mc_owner *o, struct mc_rpc_req *req,
				 const struct mc_orec *rec)
{
	const struct mc_st_grant g = {.gen = rec->gen,
				      .len = rec->len,
				      .key_len = rec->key_len,
				      .tlv_len = rec->tlv_len,
				      .key = rec->texts,
				      .tlv = rec->texts + rec->key_len};
	struct mc_slot_info info = {
	    .len = rec->len, .key_len = rec->key_len, .tlv_len = rec->tlv_len};
	struct mc_owait *w = mc_calloc(1, sizeof(*w));
	struct mc_wr wr;

	if (!w)
		return NULL;
	w->msg_len = GRANT_FIX + (size_t)rec->key_len + rec->tlv_len;
	w->msg = mc_calloc(1, w->msg_len);
	w->reply_buf = mc_calloc(1, 4 + GRANTED_LEN);
	if (!w->msg || !w->reply_buf || mc_slot_layout(&info) < 0) {
		mc_free(w->msg);
		mc_free(w->reply_buf);
		mc_free(w);
		return NULL;
	}
	wr = mc_wr_make(w->msg, w->msg_len);
	mc_st_grant_encode(&wr, &g, false);
	mc_assert(!wr.is_bad);
	w->rd = mc_rd_make(w->msg, mc_wr_len(&wr));
	w->reply = mc_wr_make(w->reply_buf, 4 + GRANTED_LEN);
	mc_wr_u32(&w->reply, 1);
	w->req = req;
	w->writer = &o->self;
	w->need = info.slot_len;
	w->n = 1;
	w->is_fetch = true;
	return w;
}

void mc_odisk_fetch(struct mc_owner *o, struct mc_rpc_req *req, uint64_t gen, bool is_kept)
{
	struct mc_owait *w = NULL;
	struct mc_orec *rec;

	if (!o->disk.is_there) {
		refuse(req, MC_STORE_REPLICA_NOT_FOUND);
		return;
	}
	pthread_mutex_lock(&o->lock);
	rec = mc_orec_find(&o->disk, gen);
	if (rec && rec->state == MC_OREC_LIVE)
		w = wait_new(o, req, rec);
	pthread_mutex_unlock(&o->lock);
	if (!w) {
		refuse(req, rec ? MC_STORE_INTERNAL_ERROR : MC_STORE_REPLICA_NOT_FOUND);
		return;
	}
	w->is_kept = is_kept;
	o->self.nrefs++;
	mc_owait_start(o, w);
}

void mc_ofetch_end(struct mc_owner *o, struct mc_ofetch *f)
{
	const struct mc_st_granted g = {.status = f->status};
	struct mc_list *link;
	struct mc_owait *w;

	while ((link = mc_list_pop_front(&f->waiters)) != NULL) {
		w = mc_list_entry(link, struct mc_owait, link);
		w->fetch = NULL;
		if (f->status < 0) {
			w->reply = mc_wr_make(w->reply_buf, 4 + GRANTED_LEN);
			mc_wr_u32(&w->reply, 1);
			mc_st_granted_encode(&w->reply, &g);
		}
		mc_owait_answer(w);
	}
	mc_free(f);
}

/* ---- the disk's thread ---- */

static unsigned take_reads(struct mc_owner *o, struct mc_owner_disk_job *jobs, unsigned max)
{
	struct mc_slot_info info;
	struct mc_ofetch *f;
	unsigned n = 0;

	mc_list_each (f, &o->disk.fetches, link) {
		if (f->is_taken || n == max)
			continue;
		f->is_taken = true;
		mc_opool_info(&o->pool, f->slot, &info);
		jobs[n++] = (struct mc_owner_disk_job){
		    .what = MC_OWNER_DISK_READ,
		    .gen = f->rec->gen,
		    .len = f->rec->len,
		    .key = f->rec->texts,
		    .key_len = f->rec->key_len,
		    .payload = o->pool.base + o->pool.slots[f->slot].off + info.payload_off,
		    .own = f};
	}
	return n;
}

static unsigned take_deletes(struct mc_owner *o, struct mc_owner_disk_job *jobs, unsigned max,
			     uint64_t now, uint64_t *ret_next)
{
	struct mc_odisk *d = &o->disk;
	struct mc_orec *rec;
	unsigned n = 0;

	if (now < d->delete_ns) {
		*ret_next = mc_min(*ret_next, d->delete_ns);
		return 0;
	}
	mc_list_each (rec, &d->deletes, link) {
		if (n == max)
			break;
		if (rec->state != MC_OREC_DELETE || rec->nreads > 0)
			continue;
		rec->state = MC_OREC_DELETING;
		jobs[n++] = (struct mc_owner_disk_job){.what = MC_OWNER_DISK_DELETE,
						       .gen = rec->gen,
						       .key = rec->texts,
						       .key_len = rec->key_len,
						       .own = rec};
	}
	return n;
}

static bool write_job(struct mc_owner *o, uint32_t id, struct mc_owner_disk_job *job)
{
	struct mc_oslot *s = &o->pool.slots[id];
	struct mc_slot_info info;
	struct mc_orec *rec =
	    mc_orec_new(s->gen, s->len, s->texts, s->key_len, s->texts + s->key_len, s->tlv_len);

	if (!rec)
		return false;
	s->pins++;
	s->is_writing = true;
	mc_opool_info(&o->pool, id, &info);
	*job = (struct mc_owner_disk_job){.what = MC_OWNER_DISK_WRITE,
					  .gen = s->gen,
					  .len = s->len,
					  .key = rec->texts,
					  .key_len = rec->key_len,
					  .tlv = rec->texts + rec->key_len,
					  .tlv_len = rec->tlv_len,
					  .payload = o->pool.base + s->off + info.payload_off,
					  .own = rec,
					  .slot = id};
	return true;
}

static unsigned take_writes(struct mc_owner *o, struct mc_owner_disk_job *jobs, unsigned max,
			    uint64_t bytes_max, uint64_t now, uint64_t *ret_next)
{
	struct mc_opool *p = &o->pool;
	struct mc_odisk *d = &o->disk;
	uint64_t bytes = 0;
	unsigned n = 0;
	uint32_t id;

	if (d->capacity == 0 || bytes_max == 0)
		return 0;
	if (now < d->write_ns) {
		*ret_next = mc_min(*ret_next, d->write_ns);
		return 0;
	}
	while (n < max && (id = mc_odisk_next_write(o)) != MC_OWNER_NIL) {
		const struct mc_oslot *s = &p->slots[id];

		if (n > 0 && bytes + s->len > bytes_max)
			break;
		mc_odisk_take_write(o);
		if (!mc_odisk_is_unwritten(o, id))
			continue;
		bytes += s->len;
		n += write_job(o, id, &jobs[n]);
	}
	return n;
}

/* No job is under way and none is due: all that was sealed before the flush is written, or the disk
 * has no room for it. */
static void flushed(struct mc_odisk *d)
{
	if (d->flush_ns == 0 || d->is_flushed)
		return;
	d->is_flushed = true;
	(void)pthread_cond_signal(&d->flush_cond);
}

static void sleep_until(struct mc_owner *o, uint64_t until_ns)
{
	struct timespec ts = {.tv_sec = (time_t)(until_ns / MC_NS_PER_S),
			      .tv_nsec = (long)(until_ns % MC_NS_PER_S)};

	o->disk.is_idle = true;
	(void)pthread_cond_timedwait(&o->disk.cond, &o->lock, &ts); /* it is looked at again */
	o->disk.is_idle = false;
}

unsigned mc_owner_disk_take(struct mc_owner *o, struct mc_owner_disk_job *jobs, unsigned max,
			    uint64_t bytes_max, uint64_t until_ns)
{
	uint64_t now, next;
	unsigned n;

	pthread_mutex_lock(&o->lock);
	for (;;) {
		now = mc_clock_now(o->env->clk);
		next = until_ns;
		n = take_reads(o, jobs, max);
		n += take_deletes(o, jobs + n, max - n, now, &next);
		n += take_writes(o, jobs + n, max - n, bytes_max, now, &next);
		if (n > 0 || now >= until_ns || o->disk.is_over)
			break;
		flushed(&o->disk);
		sleep_until(o, next);
	}
	pthread_mutex_unlock(&o->lock);
	return n;
}

int mc_owner_disk_check(struct mc_owner *o, const struct mc_owner_disk_job *job)
{
	struct mc_slot_info info;
	const uint8_t *image;

	pthread_mutex_lock(&o->lock);
	mc_opool_info(&o->pool, job->slot, &info);
	image = o->pool.base + o->pool.slots[job->slot].off;
	pthread_mutex_unlock(&o->lock);
	info.gen = job->gen;
	for (uint32_t i = 0; i < info.nchunks; i++) {
		const uint8_t *at = job->payload + (size_t)i * MC_SLOT_CHUNK;

		if (mc_slot_chunk_crc(&info, i, at, mc_slot_chunk_len(&info, i)) !=
		    mc_slot_table(image, &info, i))
			return -MC_E_CORRUPT;
	}
	return 0;
}

static void ended(struct mc_owner *o, struct mc_orec *rec)
{
	rec->state = MC_OREC_GONE;
	mc_list_push_back(&o->disk.gone, &rec->link);
	post(o);
}

static void write_failed(struct mc_owner *o, const struct mc_owner_disk_job *job, int rc)
{
	struct mc_oslot *s = &o->pool.slots[job->slot];
	struct mc_odisk *d = &o->disk;

	if (rc != -MC_E_NOSPACE || s->state != MC_OSLOT_SEALED) {
		mc_counter_add(&o->count.disk_failures, 1);
		return;
	}
	mc_odisk_put_back(o, job->slot);
	d->write_ns = mc_clock_now(o->env->clk) + AGAIN_NS;
	d->want = mc_max(d->want, 2 * job->len);
	post(o);
}

static void wrote(struct mc_owner *o, const struct mc_owner_disk_job *job, int rc)
{
	struct mc_oslot *s = &o->pool.slots[job->slot];
	struct mc_orec *rec = job->own;
	struct mc_odisk *d = &o->disk;
	bool is_dead = s->state == MC_OSLOT_DEAD, has_none = rc < 0 && rc != -MC_E_UNFENCED;

	if (has_none)
		write_failed(o, job, rc);
	if (s->is_owed)
		rec->slot_addr = mc_opool_addr(&o->pool, job->slot);
	s->is_writing = s->is_owed = false;
	s->pins--;
	if (is_dead && s->pins == 0) {
		mc_opool_release(&o->pool, job->slot);
		mc_owner_room(o);
	}
	if (has_none) {
		ended(o, rec);
		return;
	}
	mc_orec_add(d, rec);
	mc_list_push_back(&d->live, &rec->link);
	rec->state = MC_OREC_LIVE;
	mc_counter_add(&o->count.disk_writes, 1);
	if (is_dead || rc < 0) {
		mc_orec_doom(o, rec);
		return;
	}
	mc_odisk_more(d, rec->gen, MC_ST_DISK);
	post(o);
}

static int32_t read_status(int rc)
{
	if (rc == -MC_E_CORRUPT)
		return MC_STORE_CHECKSUM_MISMATCH;
	if (rc == -MC_E_NOENT || rc == -MC_E_STALE)
		return MC_STORE_REPLICA_NOT_FOUND;
	return MC_STORE_TRANSFER_FAIL;
}

void mc_ofetch_read(struct mc_owner *o, struct mc_ofetch *f, int rc)
{
	int32_t status;

	if (rc == 0) {
		status = mc_owner_fill(o, f->slot, NULL, 0);
	} else {
		(void)mc_owner_finish(o, f->slot, NULL);
		status = read_status(rc);
	}
	pthread_mutex_lock(&o->lock);
	if (status == 0 && f->is_kept)
		mc_odisk_more(&o->disk, f->rec->gen, MC_ST_MEMORY);
	if (status == 0)
		mc_counter_add(&o->count.disk_reads, 1);
	f->status = status;
	f->rec->nreads--;
	f->rec = NULL;
	mc_list_del(&f->link);
	mc_list_push_back(&o->disk.ended, &f->link);
	post(o);
	pthread_mutex_unlock(&o->lock);
}

static void deleted(struct mc_owner *o, struct mc_orec *rec, int rc)
{
	struct mc_odisk *d = &o->disk;

	if (rc < 0) {
		rec->state = MC_OREC_DELETE;
		d->delete_ns = mc_clock_now(o->env->clk) + DELETE_AGAIN_NS;
		return;
	}
	mc_counter_add(&o->count.disk_deletes, 1);
	mc_list_del(&rec->link);
	mc_orec_del(d, rec);
	ended(o, rec);
}

void mc_owner_disk_done(struct mc_owner *o, const struct mc_owner_disk_job *job, int rc)
{
	if (job->what == MC_OWNER_DISK_READ) {
		mc_ofetch_read(o, job->own, rc);
		return;
	}
	pthread_mutex_lock(&o->lock);
	if (job->what == MC_OWNER_DISK_WRITE)
		wrote(o, job, rc);
	else
		deleted(o, job->own, rc);
	pthread_mutex_unlock(&o->lock);
}
