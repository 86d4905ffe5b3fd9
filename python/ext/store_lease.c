/*
 * store_lease.c: BufferLeaseView, memory that Python borrows for a while: it counts who looks at
 * it, so that whoever lent it knows when it may be used for something else.
 */
#include "store_ext.h"

struct lease_view {
	PyObject_HEAD void *mem;
	Py_ssize_t len;
	PyObject *keep; /* whose memory it is; owned */
	Py_ssize_t exports;
	char is_over;
};

static PyObject *lease_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	struct lease_view *self;
	unsigned long long addr;
	Py_ssize_t len;
	PyObject *keep;

	(void)kwargs;
	if (!PyArg_ParseTuple(args, "KnO:BufferLeaseView", &addr, &len, &keep))
		return NULL;
	if (len < 0 || (len > 0 && addr == 0)) {
		PyErr_SetString(PyExc_ValueError, "no such memory");
		return NULL;
	}
	self = (struct lease_view *)alloc(type, 0);
	if (!self)
		return NULL;
	self->mem = (void *)(uintptr_t)addr;
	self->len = len;
	self->keep = Py_NewRef(keep);
	return (PyObject *)self;
}

static void lease_dealloc(PyObject *obj)
{
	struct lease_view *self = (struct lease_view *)obj;
	PyTypeObject *type = Py_TYPE(obj);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	Py_CLEAR(self->keep);
	release(obj);
	Py_DECREF(type);
}

static int lease_getbuffer(PyObject *obj, Py_buffer *view, int flags)
{
	struct lease_view *self = (struct lease_view *)obj;

	if (self->is_over) {
		view->obj = NULL;
		PyErr_SetString(PyExc_BufferError, "buffer lease is closed");
		return -1;
	}
	if (PyBuffer_FillInfo(view, obj, self->mem, self->len, 0, flags) < 0)
		return -1;
	self->exports++;
	return 0;
}

static void lease_releasebuffer(PyObject *obj, Py_buffer *view)
{
	(void)view;
	((struct lease_view *)obj)->exports--;
}

static PyObject *lease_end(PyObject *obj, PyObject *none)
{
	struct lease_view *self = (struct lease_view *)obj;

	(void)none;
	if (self->exports > 0)
		Py_RETURN_FALSE;
	self->is_over = 1;
	Py_RETURN_TRUE;
}

static PyObject *lease_buffer(PyObject *obj, void *closure)
{
	(void)closure;
	return PyMemoryView_FromObject(obj);
}

static PyMethodDef lease_methods[] = {
    {"end", lease_end, METH_NOARGS,
     "end()\n--\n\nNo more views of it; False where there are some still, and all stays as it is."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef lease_getset[] = {
    {"buffer", lease_buffer, NULL, "A writable view of its bytes.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot lease_slots[] = {
    {Py_tp_doc, "Borrowed memory, which counts the views of it."},
    {Py_tp_new, lease_new},
    {Py_tp_dealloc, lease_dealloc},
    {Py_tp_methods, lease_methods},
    {Py_tp_getset, lease_getset},
    {Py_bf_getbuffer, lease_getbuffer},
    {Py_bf_releasebuffer, lease_releasebuffer},
    {0, NULL},
};

PyType_Spec mc_py_lease_spec = {
    .name = "mooncake.store.BufferLeaseView",
    .basicsize = sizeof(struct lease_view),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = lease_slots,
};
