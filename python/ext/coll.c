/*
 * coll.c: _mooncake.CollHub, .Coll and .CollWork: the thin half of mooncake.pg.
 *
 * Everything is numbers by position; names, defaults and tensors are Python's. A call that runs an
 * operation answers with (code, number of the operation, ranks in it, ranks that are not). The GIL
 * is released around everything that may wait.
 */
#include "coll_ext.h"

#include <string.h>

struct py_hub {
	PyObject_HEAD struct mc_coll_hub *hub;
};

struct py_coll {
	PyObject_HEAD struct mc_py_uses *uses; /* one is ours; NULL: closed */
};

struct py_work {
	PyObject_HEAD struct mc_coll_work *work;
	struct mc_py_uses *uses; /* the group lives as long */
};

static PyObject *hub_type, *coll_type, *work_type; /* owned by the module */

void mc_py_free_object(PyObject *obj)
{
	PyTypeObject *type = Py_TYPE(obj);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	release(obj);
	Py_DECREF(type);
}

static PyObject *raise_code(int rc, const char *text)
{
	PyErr_Format(PyExc_RuntimeError, "%s (%s)", text[0] ? text : "failed", mc_err_text(rc));
	return NULL;
}

/* ---- hub ---- */

static PyObject *hub_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	struct mc_coll_hub_opts opts = {.size = sizeof(opts)};
	struct mc_diag diag = {.text = ""};
	struct mc_coll_hub *hub;
	struct py_hub *self;
	int rc;

	(void)kwargs;
	if (!PyArg_ParseTuple(args, "|z", &opts.ip))
		return NULL;
	rc = mc_coll_hub_open(&opts, &diag, &hub);
	if (rc < 0)
		return raise_code(rc, diag.text);
	self = (struct py_hub *)alloc(type, 0);
	if (self)
		self->hub = hub;
	else
		mc_coll_hub_close(hub);
	return (PyObject *)self;
}

static void hub_dealloc(PyObject *obj)
{
	struct mc_coll_hub *hub = ((struct py_hub *)obj)->hub;

	Py_BEGIN_ALLOW_THREADS
	mc_coll_hub_close(hub);
	Py_END_ALLOW_THREADS
	mc_py_free_object(obj);
}

static PyObject *hub_address(PyObject *obj, PyObject *none)
{
	(void)none;
	return PyUnicode_FromString(mc_coll_hub_address(((struct py_hub *)obj)->hub));
}

static PyMethodDef hub_methods[] = {
    {"address", hub_address, METH_NOARGS, "One line of text, for the other ranks."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot hub_slots[] = {
    {Py_tp_doc, "What a process shares among its groups."},
    {Py_tp_new, hub_new},
    {Py_tp_dealloc, hub_dealloc},
    {Py_tp_methods, hub_methods},
    {0, NULL},
};

static PyType_Spec hub_spec = {"mooncake._mooncake.CollHub", sizeof(struct py_hub), 0,
			       Py_TPFLAGS_DEFAULT, hub_slots};

/* ---- uses ---- */

struct mc_py_uses *mc_py_coll_use(PyObject *obj)
{
	struct mc_py_uses *u;

	if (Py_TYPE(obj) != (PyTypeObject *)coll_type) {
		PyErr_SetString(PyExc_TypeError, "a Coll");
		return NULL;
	}
	u = ((struct py_coll *)obj)->uses;

	if (u)
		u->n++;
	else
		PyErr_SetString(PyExc_RuntimeError, "the group is closed");
	return u;
}

void mc_py_coll_unuse(struct mc_py_uses *u)
{
	if (--u->n > 0)
		return;
	Py_BEGIN_ALLOW_THREADS
	mc_coll_close(u->coll);
	Py_END_ALLOW_THREADS
	Py_DECREF(u->hub);
	PyMem_Free(u);
}

/* ---- group: life ---- */

static int addresses(PyObject *list, const char **ret)
{
	Py_ssize_t n = PyList_Size(list);

	if (n < 0 || n > MC_COLL_RANKS_MAX) {
		PyErr_SetString(PyExc_ValueError, "addresses: at most 64");
		return -1;
	}
	for (Py_ssize_t i = 0; i < n; i++) {
		PyObject *item = PyList_GetItem(list, i);

		ret[i] = item == Py_None ? NULL : PyUnicode_AsUTF8AndSize(item, NULL);
		if (!ret[i] && item != Py_None)
			return -1;
	}
	return 0;
}

static PyObject *coll_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	struct mc_coll_opts opts = {.size = sizeof(opts)};
	const char *addrs[MC_COLL_RANKS_MAX] = {NULL};
	unsigned long long timeout_ns, scratch, open_ns = 0;
	struct mc_diag diag = {.text = ""};
	PyObject *hub, *list;
	struct mc_coll *coll;
	struct py_coll *self;
	int rc;

	(void)kwargs;
	if (!PyArg_ParseTuple(args, "OsIIIKKO|K", &hub, &opts.name, &opts.rank, &opts.ranks,
			      &opts.ranks_max, &timeout_ns, &scratch, &list, &open_ns))
		return NULL;
	if (Py_TYPE(hub) != (PyTypeObject *)hub_type) {
		PyErr_SetString(PyExc_TypeError, "a CollHub");
		return NULL;
	}
	if (!PyList_Check(list)) {
		PyErr_SetString(PyExc_TypeError, "a list of addresses");
		return NULL;
	}
	if (addresses(list, addrs) < 0)
		return NULL;
	opts.timeout_ns = timeout_ns;
	opts.open_timeout_ns = open_ns;
	opts.scratch_max = scratch;
	Py_BEGIN_ALLOW_THREADS
	rc = mc_coll_open(((struct py_hub *)hub)->hub, &opts, addrs, &diag, &coll);
	Py_END_ALLOW_THREADS
	if (rc < 0)
		return raise_code(rc, diag.text);
	self = (struct py_coll *)alloc(type, 0);
	if (self)
		self->uses = PyMem_Calloc(1, sizeof(*self->uses));
	if (!self || !self->uses) {
		Py_XDECREF((PyObject *)self);
		mc_coll_close(coll);
		return PyErr_NoMemory();
	}
	*self->uses = (struct mc_py_uses){.coll = coll, .hub = Py_NewRef(hub), .n = 1};
	return (PyObject *)self;
}

static PyObject *coll_close(PyObject *obj, PyObject *none)
{
	struct mc_py_uses *u = ((struct py_coll *)obj)->uses;

	(void)none;
	((struct py_coll *)obj)->uses = NULL;
	if (u && u->n > 1)
		mc_coll_abort(u->coll); /* somebody is inside */
	if (u)
		mc_py_coll_unuse(u);
	return Py_NewRef(Py_None);
}

static void coll_dealloc(PyObject *obj)
{
	if (((struct py_coll *)obj)->uses)
		mc_py_coll_unuse(((struct py_coll *)obj)->uses);
	mc_py_free_object(obj);
}

/* ---- operations ---- */

struct call {
	struct mc_coll_op op;
	struct mc_coll_part parts[2 * MC_COLL_RANKS_MAX];
};

static int u64_of(PyObject *obj, uint64_t *ret)
{
	unsigned long long v = PyLong_AsUnsignedLongLong(obj);

	if (v == (unsigned long long)-1 && PyErr_Occurred())
		return -1;
	*ret = v;
	return 0;
}

/* A flat tuple of address, count, address, count, … */
static int parts_of(PyObject *tuple, struct mc_coll_part *parts, uint32_t *ret_n)
{
	Py_ssize_t n = PyTuple_Check(tuple) ? PyTuple_Size(tuple) : -1;

	if (n < 0 || n % 2 || n / 2 > MC_COLL_RANKS_MAX) {
		PyErr_SetString(PyExc_ValueError, "a tuple of at most 64 addresses and counts");
		return -1;
	}
	for (Py_ssize_t i = 0; i < n / 2; i++) {
		uint64_t addr;

		if (u64_of(PyTuple_GetItem(tuple, 2 * i), &addr) < 0 ||
		    u64_of(PyTuple_GetItem(tuple, 2 * i + 1), &parts[i].count) < 0)
			return -1;
		parts[i].addr = (void *)(uintptr_t)addr;
	}
	*ret_n = (uint32_t)(n / 2);
	return 0;
}

/* kind, type, reduce, root, factor, in, out */
static int call_of(PyObject *const *args, Py_ssize_t n, struct call *ret)
{
	uint64_t kind, type, reduce, root;

	if (n != 7) {
		PyErr_SetString(PyExc_TypeError, "kind, type, reduce, root, factor, in, out");
		return -1;
	}
	if (u64_of(args[0], &kind) < 0 || u64_of(args[1], &type) < 0 ||
	    u64_of(args[2], &reduce) < 0 || u64_of(args[3], &root) < 0)
		return -1;
	ret->op = (struct mc_coll_op){.kind = (enum mc_coll_kind)(kind & 0xffff),
				      .type = (enum mc_coll_type)(type & 0xffff),
				      .reduce = (enum mc_coll_reduce)(reduce & 0xffff),
				      .root = (uint32_t)root,
				      .factor = PyFloat_AsDouble(args[4])};
	if (ret->op.factor == -1.0 && PyErr_Occurred())
		return -1;
	if (parts_of(args[5], ret->parts, &ret->op.nin) < 0 ||
	    parts_of(args[6], ret->parts + ret->op.nin, &ret->op.nout) < 0)
		return -1;
	ret->op.in = ret->parts;
	ret->op.out = ret->parts + ret->op.nin;
	return 0;
}

static PyObject *answer(int rc, const struct mc_coll_result *r)
{
	return Py_BuildValue("(iKKK)", rc, (unsigned long long)r->seq, (unsigned long long)r->ranks,
			     (unsigned long long)r->failed);
}

static PyObject *coll_run(PyObject *obj, PyObject *const *args, Py_ssize_t n)
{
	struct mc_coll_result result = {0};
	struct call c;
	struct mc_py_uses *u;
	int rc;

	if (call_of(args, n, &c) < 0)
		return NULL;
	u = mc_py_coll_use(obj);
	if (!u)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	rc = mc_coll_run(u->coll, &c.op, &result);
	Py_END_ALLOW_THREADS
	mc_py_coll_unuse(u);
	return answer(rc, &result);
}

/* A CollWork, or the code. Takes the use over. */
static PyObject *work_make(struct mc_py_uses *u, int rc, struct mc_coll_work *work)
{
	allocfunc alloc = (allocfunc)PyType_GetSlot((PyTypeObject *)work_type, Py_tp_alloc);
	struct py_work *self;

	if (rc < 0) {
		mc_py_coll_unuse(u);
		return PyLong_FromLong(rc);
	}
	self = (struct py_work *)alloc((PyTypeObject *)work_type, 0);
	if (!self) {
		mc_coll_work_free(work);
		mc_py_coll_unuse(u);
		return NULL;
	}
	self->work = work;
	self->uses = u;
	return (PyObject *)self;
}

static PyObject *coll_start(PyObject *obj, PyObject *const *args, Py_ssize_t n)
{
	struct mc_coll_work *work = NULL;
	struct call c;
	struct mc_py_uses *u;
	int rc;

	if (call_of(args, n, &c) < 0)
		return NULL;
	u = mc_py_coll_use(obj);
	if (!u)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	rc = mc_coll_start(u->coll, &c.op, &work);
	Py_END_ALLOW_THREADS
	return work_make(u, rc, work);
}

struct message {
	int is_send;
	unsigned peer;
	unsigned long long tag, addr, len;
};

/* is_send, peer, tag, address, bytes. @return what mc_py_coll_use() does, or NULL with an error set
 */
static struct mc_py_uses *message_parse(PyObject *obj, PyObject *args, struct message *ret)
{
	if (!PyArg_ParseTuple(args, "pIKKK", &ret->is_send, &ret->peer, &ret->tag, &ret->addr,
			      &ret->len))
		return NULL;
	return mc_py_coll_use(obj);
}

static PyObject *coll_message(PyObject *obj, PyObject *args)
{
	struct mc_coll_result result = {0};
	struct message m;
	struct mc_py_uses *u = message_parse(obj, args, &m);
	void *at;
	int rc;

	if (!u)
		return NULL;
	at = (void *)(uintptr_t)m.addr;
	Py_BEGIN_ALLOW_THREADS
	if (m.is_send)
		rc = mc_coll_send(u->coll, m.peer, m.tag, at, m.len, &result);
	else
		rc = mc_coll_recv(u->coll, m.peer, m.tag, at, m.len, &result);
	Py_END_ALLOW_THREADS
	mc_py_coll_unuse(u);
	return answer(rc, &result);
}

static PyObject *coll_start_message(PyObject *obj, PyObject *args)
{
	struct mc_coll_work *work = NULL;
	struct message m;
	struct mc_py_uses *u = message_parse(obj, args, &m);
	void *at;
	int rc;

	if (!u)
		return NULL;
	at = (void *)(uintptr_t)m.addr;
	Py_BEGIN_ALLOW_THREADS
	if (m.is_send)
		rc = mc_coll_isend(u->coll, m.peer, m.tag, at, m.len, &work);
	else
		rc = mc_coll_irecv(u->coll, m.peer, m.tag, at, m.len, &work);
	Py_END_ALLOW_THREADS
	return work_make(u, rc, work);
}

/* ---- membership ---- */

static PyObject *coll_state(PyObject *obj, PyObject *none)
{
	struct mc_py_uses *u = mc_py_coll_use(obj);
	PyObject *out;

	(void)none;
	if (!u)
		return NULL;
	out = Py_BuildValue("(KKKK)", (unsigned long long)mc_coll_active(u->coll),
			    (unsigned long long)mc_coll_ready(u->coll),
			    (unsigned long long)mc_coll_gone(u->coll),
			    (unsigned long long)mc_coll_epoch(u->coll));
	mc_py_coll_unuse(u);
	return out;
}

static PyObject *coll_activate(PyObject *obj, PyObject *args)
{
	unsigned long long add, drop, timeout_ns;
	uint64_t dropped = 0;
	struct mc_py_uses *u;
	int rc;

	if (!PyArg_ParseTuple(args, "KKK", &add, &drop, &timeout_ns))
		return NULL;
	u = mc_py_coll_use(obj);
	if (!u)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	rc = mc_coll_activate(u->coll, add, drop, timeout_ns, &dropped);
	Py_END_ALLOW_THREADS
	mc_py_coll_unuse(u);
	return Py_BuildValue("(iK)", rc, (unsigned long long)dropped);
}

static PyObject *coll_join(PyObject *obj, PyObject *arg)
{
	uint64_t timeout_ns;
	struct mc_py_uses *u;
	int rc;

	if (u64_of(arg, &timeout_ns) < 0)
		return NULL;
	u = mc_py_coll_use(obj);
	if (!u)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	rc = mc_coll_join(u->coll, timeout_ns);
	Py_END_ALLOW_THREADS
	mc_py_coll_unuse(u);
	return PyLong_FromLong(rc);
}

static PyObject *coll_abort(PyObject *obj, PyObject *none)
{
	struct mc_py_uses *u = mc_py_coll_use(obj);

	(void)none;
	if (!u)
		return NULL;
	mc_coll_abort(u->coll);
	mc_py_coll_unuse(u);
	return Py_NewRef(Py_None);
}

static PyObject *coll_error(PyObject *obj, PyObject *none)
{
	struct mc_py_uses *u = mc_py_coll_use(obj);
	struct mc_diag diag;

	(void)none;
	if (!u)
		return NULL;
	mc_coll_last_error(u->coll, &diag);
	mc_py_coll_unuse(u);
	return PyUnicode_FromString(diag.text);
}

static PyMethodDef coll_methods[] = {
    {"run", (PyCFunction)(void (*)(void))coll_run, METH_FASTCALL,
     "run(kind, type, reduce, root, factor, in, out) -> (code, seq, ranks, failed)"},
    {"start", (PyCFunction)(void (*)(void))coll_start, METH_FASTCALL,
     "As run(), in the background -> CollWork, or a code."},
    {"message", coll_message, METH_VARARGS,
     "message(is_send, peer, tag, address, bytes) -> (code, seq, ranks, failed)"},
    {"start_message", coll_start_message, METH_VARARGS,
     "As message(), in the background -> CollWork, or a code."},
    {"state", coll_state, METH_NOARGS, "-> (active, ready, gone, epoch)"},
    {"activate", coll_activate, METH_VARARGS, "activate(add, drop, timeout_ns) -> (code, dropped)"},
    {"join", coll_join, METH_O, "join(timeout_ns) -> code"},
    {"abort", coll_abort, METH_NOARGS, "End everything with an error."},
    {"error", coll_error, METH_NOARGS, "What the last failed call had to say."},
    {"close", coll_close, METH_NOARGS, "Leave."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot coll_slots[] = {
    {Py_tp_doc, "A group: Coll(hub, name, rank, ranks, ranks_max, timeout_ns, scratch, addresses"
		"[, open_timeout_ns])"},
    {Py_tp_new, coll_new},
    {Py_tp_dealloc, coll_dealloc},
    {Py_tp_methods, coll_methods},
    {0, NULL},
};

static PyType_Spec coll_spec = {"mooncake._mooncake.Coll", sizeof(struct py_coll), 0,
				Py_TPFLAGS_DEFAULT, coll_slots};

/* ---- work ---- */

static PyObject *work_wait(PyObject *obj, PyObject *arg)
{
	struct py_work *self = (struct py_work *)obj;
	struct mc_coll_result result = {0};
	uint64_t timeout_ns;
	int rc;

	if (u64_of(arg, &timeout_ns) < 0)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	rc = mc_coll_work_wait(self->work, timeout_ns, &result);
	Py_END_ALLOW_THREADS
	return rc < 0 ? Py_NewRef(Py_None) : answer(result.rc, &result);
}

static void work_dealloc(PyObject *obj)
{
	struct py_work *self = (struct py_work *)obj;

	mc_coll_work_free(self->work);
	mc_py_coll_unuse(self->uses);
	mc_py_free_object(obj);
}

static PyMethodDef work_methods[] = {
    {"wait", work_wait, METH_O, "wait(timeout_ns) -> (code, seq, ranks, failed), None: not yet"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot work_slots[] = {
    {Py_tp_doc, "Something in the background."},
    {Py_tp_dealloc, work_dealloc},
    {Py_tp_methods, work_methods},
    {0, NULL},
};

static PyType_Spec work_spec = {"mooncake._mooncake.CollWork", sizeof(struct py_work), 0,
				Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, work_slots};

int mc_py_coll_ready(PyObject *module)
{
	static const struct {
		const char *name;
		PyType_Spec *spec;
		PyObject **slot;
	} types[] = {{"CollHub", &hub_spec, &hub_type},
		     {"Coll", &coll_spec, &coll_type},
		     {"CollWork", &work_spec, &work_type}};

	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
		*types[i].slot = mc_py_type_add(module, types[i].name, types[i].spec);
		if (!*types[i].slot)
			return -1;
	}
	return 0;
}
