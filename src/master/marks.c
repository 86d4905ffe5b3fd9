/*
 * marks.c: owners are told which of their slots are committed, so that a later master knows it of
 * two that it finds for one key. All of a round of the loop in one note, right behind the answers;
 * what is lost with a stream its owner asks for by its CHECK.
 */
#include "master/priv.h"

#define MARKS_MAX (1u << 20) /* of an owner in one round; what is beyond is told at its CHECK */

static void on_task(struct mc_task *t)
{
	struct mc_master *m = mc_container_of(t, struct mc_master, mark_task);
	struct mc_mst_owner *o;

	m->is_mark_posted = false;
	mc_list_each (o, &m->marking, marking_link) {
		mc_list_del(&o->marking_link);
		(void)mc_mst_note_places(o, MC_ST_NOTE_COMMITTED, o->marks, o->nmarks);
		o->nmarks = 0;
	}
}

void mc_mst_mark(struct mc_mst_owner *o, uint64_t addr, uint64_t gen)
{
	struct mc_master *m = o->master;

	if (!o->req || o->state == MC_MST_SHAKING ||
	    mc_array_grow((void **)&o->marks, &o->marks_cap, o->nmarks + 1, MARKS_MAX,
			  sizeof(*o->marks)) < 0)
		return;
	o->marks[o->nmarks++] = (struct mc_st_place){addr, gen};
	if (mc_list_is_empty(&o->marking_link))
		mc_list_push_back(&m->marking, &o->marking_link);
	if (!m->is_mark_posted) {
		m->is_mark_posted = true;
		mc_loop_post(m->loop, &m->mark_task);
	}
}

void mc_mst_marks_init(struct mc_master *m)
{
	mc_list_init(&m->marking);
	m->mark_task.run = on_task;
}
