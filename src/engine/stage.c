/*
 * stage.c: see stage.h. Each buffer is a registered range of its own, made when it is first needed.
 * One whose user is lost, or may still write to it, is never given to another: it is unregistered,
 * which fences whatever comes late, and another takes its place.
 *
 * A piece lies in its buffer as far past a page as it does in the file, so that O_DIRECT may carry
 * its middle.
 */
#include "engine/stage.h"

#include "engine/files.h"

#define ALIGN 4096u
#define ENDED_MAX 256u /* pieces remembered after their end, against calls that come late */

enum slot_state {
	SLOT_FREE,
	SLOT_BUSY, /* a thread has it */
	SLOT_READY,
};

struct slot {
	enum slot_state state;
	bool is_doomed; /* whoever has it spoils it afterwards */
	bool is_committed;
	int commit_rc;
	struct mc_stage_want want;
	void *mem; /* NULL: not made yet */
	struct mc_stage_piece piece;
};

struct ended {
	uint64_t owner, id;
	bool is_committed; /* then this came of it */
	int status;
};

struct mc_stage {
	pthread_mutex_t mu; /* a leaf; guards all of it. A busy slot's rest is its thread's */
	pthread_cond_t idle;
	struct slot slots[MC_STAGE_BUFS];
	struct ended ended[ENDED_MAX];
	unsigned ended_at;
	unsigned nbusy; /* slots */
	bool is_over;
};

int mc_stage_open(struct mc_engine *eng)
{
	struct mc_stage *st = mc_calloc(1, sizeof(*st));

	if (!st)
		return -MC_E_NOMEM;
	pthread_mutex_init(&st->mu, NULL);
	pthread_cond_init(&st->idle, NULL);
	eng->stage = st;
	return 0;
}

void mc_stage_stop(struct mc_engine *eng)
{
	struct mc_stage *st = eng->stage;

	if (!st)
		return;
	pthread_mutex_lock(&st->mu);
	st->is_over = true;
	while (st->nbusy > 0)
		pthread_cond_wait(&st->idle, &st->mu);
	for (unsigned i = 0; i < MC_STAGE_BUFS; i++)
		st->slots[i].state = SLOT_FREE;
	pthread_mutex_unlock(&st->mu);
	for (unsigned i = 0; i < MC_STAGE_BUFS; i++)
		if (st->slots[i].mem)
			mc_bounce_free(eng, st->slots[i].mem);
}

void mc_stage_close(struct mc_engine *eng)
{
	struct mc_stage *st = eng->stage;

	if (!st)
		return;
	pthread_mutex_destroy(&st->mu);
	pthread_cond_destroy(&st->idle);
	mc_free(st);
	eng->stage = NULL;
}

/* ---- slots; under mu ---- */

static struct slot *slot_find(struct mc_stage *st, uint64_t owner, uint64_t id)
{
	for (unsigned i = 0; i < MC_STAGE_BUFS; i++) {
		struct slot *s = &st->slots[i];

		if (s->state != SLOT_FREE && s->want.owner == owner && s->want.id == id)
			return s;
	}
	return NULL;
}

static const struct ended *ended_find(const struct mc_stage *st, uint64_t owner, uint64_t id)
{
	for (unsigned i = 0; i < ENDED_MAX; i++)
		if (st->ended[i].owner == owner && st->ended[i].id == id)
			return &st->ended[i];
	return NULL;
}

static void ended_add(struct mc_stage *st, const struct ended *e)
{
	st->ended[st->ended_at] = *e;
	st->ended_at = (st->ended_at + 1) % ENDED_MAX;
}

/* One with memory rather than one without. */
static struct slot *slot_free(struct mc_stage *st)
{
	struct slot *found = NULL;

	for (unsigned i = 0; i < MC_STAGE_BUFS; i++)
		if (st->slots[i].state == SLOT_FREE && (!found || st->slots[i].mem))
			found = &st->slots[i];
	return found;
}

static void slot_take(struct mc_stage *st, struct slot *s)
{
	s->state = SLOT_BUSY;
	st->nbusy++;
}

/* ---- what the thread that has a slot does ---- */

/* It goes on to `state`; free where that, or its user's end meanwhile, says so. */
static void slot_leave(struct mc_engine *eng, struct slot *s, enum slot_state state, bool is_spoilt)
{
	struct mc_stage *st = eng->stage;
	void *mem = s->mem;

	pthread_mutex_lock(&st->mu);
	if (is_spoilt || s->is_doomed) {
		state = SLOT_FREE;
		s->mem = NULL;
		pthread_mutex_unlock(&st->mu);
		if (mem)
			mc_bounce_free(eng, mem);
		pthread_mutex_lock(&st->mu);
	}
	if (state == SLOT_FREE && s->want.owner != MC_STAGE_OURS) /* ours are not repeated */
		ended_add(
		    st, &(struct ended){s->want.owner, s->want.id, s->is_committed, s->commit_rc});
	s->state = state;
	s->is_doomed = false;
	st->nbusy--;
	pthread_cond_broadcast(&st->idle);
	pthread_mutex_unlock(&st->mu);
}

static int file_pin(struct mc_engine *eng, const struct mc_stage_want *w,
		    struct mc_file_mem **ret_file)
{
	/* We need no right that peers have. */
	uint32_t right = w->owner == MC_STAGE_OURS
			     ? MC_RIGHT_STAGE_READ | MC_RIGHT_STAGE_WRITE
			     : (w->op == MC_OP_READ ? MC_RIGHT_STAGE_READ : MC_RIGHT_STAGE_WRITE);

	return mc_files_pin(eng, w->region, w->gen, w->off, w->len, right, ret_file);
}

static void *mem_of(const struct slot *s)
{
	return (void *)(uintptr_t)s->piece.addr;
}

static int slot_fill(struct mc_engine *eng, struct slot *s)
{
	struct mc_file_mem *file;
	int rc = file_pin(eng, &s->want, &file);

	if (rc < 0)
		return rc;
	if (!s->mem)
		rc = mc_bounce_alloc(eng, MC_STAGE_BYTES + ALIGN, &s->mem, &s->piece.buf);
	if (rc == 0) {
		s->piece.addr = (uintptr_t)s->mem + mc_files_at(file, s->want.off) % ALIGN;
		if (s->want.op == MC_OP_READ)
			rc = mc_files_move(eng, file, MC_OP_READ, s->want.off, mem_of(s),
					   s->want.len);
	}
	mc_files_unpin(eng, s->want.region);
	return rc;
}

static int slot_commit(struct mc_engine *eng, struct slot *s)
{
	struct mc_file_mem *file;
	int rc = file_pin(eng, &s->want, &file);

	if (rc < 0)
		return rc;
	rc = mc_files_move(eng, file, MC_OP_WRITE, s->want.off, mem_of(s), s->want.len);
	mc_files_unpin(eng, s->want.region);
	return rc;
}

/* ---- pieces ---- */

int mc_stage_begin(struct mc_engine *eng, const struct mc_stage_want *want,
		   struct mc_stage_piece *ret_piece)
{
	struct mc_stage *st = eng->stage;
	struct slot *s;
	bool is_new;
	int rc = 0;

	if (want->len == 0 || want->len > MC_STAGE_BYTES || (unsigned)want->op >= MC_OP_COUNT)
		return -MC_E_INVAL;
	pthread_mutex_lock(&st->mu);
	s = slot_find(st, want->owner, want->id);
	is_new = !s;
	if (s && s->state == SLOT_READY && !s->is_doomed)
		*ret_piece = s->piece;
	else if (s)
		rc = -MC_E_AGAIN;
	else if (st->is_over)
		rc = -MC_E_CLOSED;
	else if (want->owner != MC_STAGE_OURS && ended_find(st, want->owner, want->id))
		rc = -MC_E_STALE;
	else
		s = slot_free(st);
	if (rc == 0 && !s)
		rc = -MC_E_AGAIN;
	if (rc == 0 && is_new) {
		slot_take(st, s);
		s->want = *want;
		s->is_committed = false;
	}
	pthread_mutex_unlock(&st->mu);
	if (rc < 0 || !is_new)
		return rc;
	rc = slot_fill(eng, s);
	if (rc == 0)
		*ret_piece = s->piece;
	slot_leave(eng, s, rc == 0 ? SLOT_READY : SLOT_FREE, false);
	return rc;
}

int mc_stage_end(struct mc_engine *eng, uint64_t owner, uint64_t id, enum mc_ctl_unstage end)
{
	struct mc_stage *st = eng->stage;
	const struct ended *e;
	struct slot *s;
	int rc = 0;

	pthread_mutex_lock(&st->mu);
	s = slot_find(st, owner, id);
	e = ended_find(st, owner, id);
	if (!s) {
		/* It may be on its way, and come later than this. */
		if (!e)
			ended_add(st, &(struct ended){.owner = owner, .id = id});
		rc = -MC_E_NOENT;
		if (end == MC_CTL_UNSTAGE_COMMIT && e && e->is_committed)
			rc = e->status;
	} else if (s->state == SLOT_BUSY) {
		rc = -MC_E_AGAIN;
	} else if (end == MC_CTL_UNSTAGE_COMMIT && s->want.op != MC_OP_WRITE) {
		rc = -MC_E_INVAL;
	} else {
		slot_take(st, s);
	}
	pthread_mutex_unlock(&st->mu);
	if (rc < 0 || !s)
		return rc;
	if (end == MC_CTL_UNSTAGE_COMMIT) {
		rc = s->commit_rc = slot_commit(eng, s);
		s->is_committed = true;
	}
	slot_leave(eng, s, SLOT_FREE, end == MC_CTL_UNSTAGE_SPOIL);
	return rc;
}

void mc_stage_forget(struct mc_engine *eng, uint64_t owner)
{
	struct mc_stage *st = eng->stage;

	for (unsigned i = 0; i < MC_STAGE_BUFS; i++) {
		struct slot *s = &st->slots[i];
		bool is_mine;

		pthread_mutex_lock(&st->mu);
		is_mine = s->state == SLOT_READY && s->want.owner == owner;
		if (is_mine)
			slot_take(st, s);
		else if (s->state == SLOT_BUSY && s->want.owner == owner)
			s->is_doomed = true;
		pthread_mutex_unlock(&st->mu);
		if (is_mine)
			slot_leave(eng, s, SLOT_FREE, true);
	}
}

unsigned mc_stage_count(struct mc_engine *eng)
{
	struct mc_stage *st = eng->stage;
	unsigned n = 0;

	pthread_mutex_lock(&st->mu);
	for (unsigned i = 0; i < MC_STAGE_BUFS; i++)
		n += st->slots[i].state != SLOT_FREE;
	pthread_mutex_unlock(&st->mu);
	return n;
}
