/*
 * ep.c: _mooncake.EpBuffer and .EpHalf: the thin half of mooncake.mooncake_ep_buffer.
 *
 * Everything is numbers by position, memory by address; names, defaults, shapes and tensors are
 * Python's, which has checked them. What can go wrong at run time is answered with (code, text).
 * The GIL is released around everything that may wait or moves rows.
 */
#include "ep_ext.h"

struct py_ep {
	PyObject_HEAD struct mc_ep *ep;
	struct mc_py_uses *uses; /* the group lives as long */
};

struct py_half {
	PyObject_HEAD struct mc_ep_half *half; /* NULL: ended */
	struct py_ep *ep;		       /* owned */
};

static PyObject *ep_type, *half_type; /* owned by the module */

/* ---- life ---- */

static PyObject *ep_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	struct mc_diag diag = {.text = ""};
	struct py_ep *self;
	PyObject *coll;
	int rc;

	if (!PyArg_ParseTuple(args, "O", &coll) || (kwargs && PyDict_Size(kwargs) > 0))
		return NULL;
	self = (struct py_ep *)alloc(type, 0);
	if (!self)
		return NULL;
	self->uses = mc_py_coll_use(coll);
	if (!self->uses) {
		Py_DECREF((PyObject *)self);
		return NULL;
	}
	rc = mc_ep_open(self->uses->coll, &diag, &self->ep);
	if (rc < 0) {
		PyErr_Format(PyExc_RuntimeError, "%s (%s)", diag.text, mc_err_text(rc));
		Py_DECREF((PyObject *)self);
		return NULL;
	}
	return (PyObject *)self;
}

static void ep_dealloc(PyObject *obj)
{
	struct py_ep *self = (struct py_ep *)obj;

	Py_BEGIN_ALLOW_THREADS
	mc_ep_close(self->ep);
	Py_END_ALLOW_THREADS
	if (self->uses)
		mc_py_coll_unuse(self->uses);
	mc_py_free_object(obj);
}

static PyObject *ep_update(PyObject *obj, PyObject *none)
{
	struct mc_ep *ep = ((struct py_ep *)obj)->ep;
	struct mc_diag diag = {.text = ""};
	int rc;

	(void)none;
	Py_BEGIN_ALLOW_THREADS
	rc = mc_ep_update(ep, &diag);
	Py_END_ALLOW_THREADS
	return mc_py_ep_failed(rc, &diag);
}

static PyObject *ep_members(PyObject *obj, PyObject *none)
{
	(void)none;
	return PyLong_FromUnsignedLongLong(mc_ep_members(((struct py_ep *)obj)->ep));
}

static PyObject *ep_masked(PyObject *obj, PyObject *none)
{
	(void)none;
	return PyLong_FromUnsignedLongLong(mc_ep_masked(((struct py_ep *)obj)->ep));
}

static PyObject *ep_mask(PyObject *obj, PyObject *args)
{
	unsigned long long slots;
	int is_masked;

	if (!PyArg_ParseTuple(args, "Kp", &slots, &is_masked))
		return NULL;
	mc_ep_mask(((struct py_ep *)obj)->ep, slots, is_masked);
	return Py_NewRef(Py_None);
}

/* ---- beginning ---- */

/* An EpHalf, or (code, text). */
static PyObject *half_make(PyObject *ep, int rc, const struct mc_diag *diag,
			   struct mc_ep_half *half)
{
	allocfunc alloc = (allocfunc)PyType_GetSlot((PyTypeObject *)half_type, Py_tp_alloc);
	struct py_half *self;

	if (rc < 0)
		return mc_py_ep_failed(rc, diag);
	self = (struct py_half *)alloc((PyTypeObject *)half_type, 0);
	if (!self) {
		mc_ep_half_free(half);
		return NULL;
	}
	self->half = half;
	self->ep = (struct py_ep *)Py_NewRef(ep);
	return (PyObject *)self;
}

static PyObject *ep_dispatch(PyObject *obj, PyObject *args)
{
	struct mc_ep *ep = ((struct py_ep *)obj)->ep;
	unsigned long long rows_at, extra_at, topk_at;
	struct mc_diag diag = {.text = ""};
	struct mc_ep_half *half = NULL;
	struct mc_ep_patience patience;
	struct mc_ep_rows rows = {0};
	struct mc_py_begin b;
	int rc, format;

	if (!PyArg_ParseTuple(args, MC_PY_SHAPE "iIKIKK", MC_PY_SHAPE_ARGS(&b), &format,
			      &rows.elem_bytes, &rows_at, &rows.extra_bytes, &extra_at, &topk_at))
		return NULL;
	patience = mc_py_patience(&b);
	rows.format = (enum mc_ep_format)format;
	rows.rows = mc_py_at(rows_at);
	rows.extra = mc_py_at(extra_at);
	Py_BEGIN_ALLOW_THREADS
	rc = mc_ep_dispatch_begin(ep, &b.shape, &rows, mc_py_at(topk_at), &patience, &diag, &half);
	Py_END_ALLOW_THREADS
	return half_make(obj, rc, &diag, half);
}

static PyObject *ep_combine(PyObject *obj, PyObject *args)
{
	struct mc_ep *ep = ((struct py_ep *)obj)->ep;
	unsigned long long rows_at, topk_at, ranges_at;
	struct mc_diag diag = {.text = ""};
	struct mc_ep_half *half = NULL;
	struct mc_ep_patience patience;
	struct mc_py_begin b;
	int rc, is_kept;

	if (!PyArg_ParseTuple(args, MC_PY_SHAPE "KpKK", MC_PY_SHAPE_ARGS(&b), &rows_at, &is_kept,
			      &topk_at, &ranges_at))
		return NULL;
	patience = mc_py_patience(&b);
	Py_BEGIN_ALLOW_THREADS
	rc = mc_ep_combine_begin(ep, &b.shape, mc_py_at(rows_at), is_kept, mc_py_at(topk_at),
				 mc_py_at(ranges_at), &patience, &diag, &half);
	Py_END_ALLOW_THREADS
	return half_make(obj, rc, &diag, half);
}

static PyObject *ep_combine_rows(PyObject *obj, PyObject *args)
{
	struct mc_ep *ep = ((struct py_ep *)obj)->ep;
	struct mc_diag diag = {.text = ""};
	struct mc_ep_patience patience;
	uint16_t *rows = NULL;
	struct mc_py_begin b;
	int rc;

	if (!PyArg_ParseTuple(args, MC_PY_SHAPE, MC_PY_SHAPE_ARGS(&b)))
		return NULL;
	patience = mc_py_patience(&b);
	Py_BEGIN_ALLOW_THREADS
	rc = mc_ep_combine_rows(ep, &b.shape, &patience, &diag, &rows);
	Py_END_ALLOW_THREADS
	return rc < 0 ? mc_py_ep_failed(rc, &diag) : PyLong_FromVoidPtr(rows);
}

static PyMethodDef ep_methods[] = {
    {"update", ep_update, METH_NOARGS, "Meet the others -> (code, text)"},
    {"members", ep_members, METH_NOARGS, "-> bits of slots"},
    {"masked", ep_masked, METH_NOARGS, "-> bits of slots"},
    {"mask", ep_mask, METH_VARARGS, "mask(slots, is_masked)"},
    {"dispatch", ep_dispatch, METH_VARARGS,
     "dispatch(shape, active, timeout_ns, format, elem_bytes, rows, extra_bytes, extra, topk) -> "
     "EpHalf, or (code, text)"},
    {"combine", ep_combine, METH_VARARGS,
     "combine(shape, active, timeout_ns, rows, is_kept, topk, ranges) -> EpHalf, or (code, text)"},
    {"combine_rows", ep_combine_rows, METH_VARARGS,
     "combine_rows(shape, active, timeout_ns) -> address, or (code, text)"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot ep_slots[] = {
    {Py_tp_doc, "Halves of expert parallelism beside a group: EpBuffer(coll)"},
    {Py_tp_new, ep_new},
    {Py_tp_dealloc, ep_dealloc},
    {Py_tp_methods, ep_methods},
    {0, NULL},
};

static PyType_Spec ep_spec = {"mooncake._mooncake.EpBuffer", sizeof(struct py_ep), 0,
			      Py_TPFLAGS_DEFAULT, ep_slots};

/* ---- ending ---- */

static struct mc_ep_half *half_take(PyObject *obj)
{
	struct py_half *self = (struct py_half *)obj;
	struct mc_ep_half *half = self->half;

	self->half = NULL;
	if (!half)
		PyErr_SetString(PyExc_RuntimeError, "this half has been ended");
	return half;
}

static PyObject *half_dispatch(PyObject *obj, PyObject *args)
{
	unsigned long long rows, scales, extra, counts, tokens, ranges;
	struct mc_coll_result result = {0};
	struct mc_diag diag = {.text = ""};
	struct mc_ep_arrived out;
	struct mc_ep_half *half;
	int rc, is_packed;

	if (!PyArg_ParseTuple(args, "KKKKKKp", &rows, &scales, &extra, &counts, &tokens, &ranges,
			      &is_packed))
		return NULL;
	half = half_take(obj);
	if (!half)
		return NULL;
	out = (struct mc_ep_arrived){.rows = mc_py_at(rows),
				     .scales = mc_py_at(scales),
				     .extra = mc_py_at(extra),
				     .counts = mc_py_at(counts),
				     .tokens = mc_py_at(tokens),
				     .ranges = mc_py_at(ranges),
				     .is_packed = is_packed};
	Py_BEGIN_ALLOW_THREADS
	rc = mc_ep_dispatch_end(half, &out, &diag, &result);
	Py_END_ALLOW_THREADS
	return mc_py_ep_ended(rc, &diag, &result);
}

static PyObject *half_combine(PyObject *obj, PyObject *args)
{
	struct mc_coll_result result = {0};
	struct mc_diag diag = {.text = ""};
	unsigned long long weights, out;
	struct mc_ep_half *half;
	int rc;

	if (!PyArg_ParseTuple(args, "KK", &weights, &out))
		return NULL;
	half = half_take(obj);
	if (!half)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	rc = mc_ep_combine_end(half, mc_py_at(weights), mc_py_at(out), &diag, &result);
	Py_END_ALLOW_THREADS
	return mc_py_ep_ended(rc, &diag, &result);
}

static void half_dealloc(PyObject *obj)
{
	struct py_half *self = (struct py_half *)obj;

	mc_ep_half_free(self->half);
	Py_DECREF((PyObject *)self->ep);
	mc_py_free_object(obj);
}

static PyMethodDef half_methods[] = {
    {"dispatch", half_dispatch, METH_VARARGS,
     "dispatch(rows, scales, extra, counts, tokens, ranges, is_packed) -> (code, text, ranks, "
     "failed)"},
    {"combine", half_combine, METH_VARARGS, "combine(weights, out) -> (code, text, ranks, failed)"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot half_slots[] = {
    {Py_tp_doc, "A dispatch or combine that has begun."},
    {Py_tp_dealloc, half_dealloc},
    {Py_tp_methods, half_methods},
    {0, NULL},
};

static PyType_Spec half_spec = {"mooncake._mooncake.EpHalf", sizeof(struct py_half), 0,
				Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, half_slots};

int mc_py_ep_ready(PyObject *module)
{
	ep_type = mc_py_type_add(module, "EpBuffer", &ep_spec);
	half_type = ep_type ? mc_py_type_add(module, "EpHalf", &half_spec) : NULL;
	return half_type ? 0 : -1;
}
