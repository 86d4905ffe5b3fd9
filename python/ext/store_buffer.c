/*
 * store_buffer.c: BufferHandle, an object's bytes that Python reads in place.
 */
#include "store_ext.h"

#include <stdlib.h>

#define HANDLE_ALIGN 64u

struct handle {
	PyObject_HEAD void *mem; /* aligned_alloc(); owned */
	Py_ssize_t len;
};

PyObject *mc_py_handle_type;

PyObject *mc_py_handle_new(size_t len, void **ret_mem)
{
	PyTypeObject *type = (PyTypeObject *)mc_py_handle_type;
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	struct handle *self = (struct handle *)alloc(type, 0);

	if (!self)
		return NULL;
	self->mem = aligned_alloc(HANDLE_ALIGN, (len + HANDLE_ALIGN) / HANDLE_ALIGN * HANDLE_ALIGN);
	self->len = (Py_ssize_t)len;
	if (!self->mem) {
		Py_DECREF(self);
		return PyErr_NoMemory();
	}
	*ret_mem = self->mem;
	return (PyObject *)self;
}

static void handle_dealloc(PyObject *obj)
{
	struct handle *self = (struct handle *)obj;
	PyTypeObject *type = Py_TYPE(obj);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	free(self->mem);
	release(obj);
	Py_DECREF(type);
}

static int handle_getbuffer(PyObject *obj, Py_buffer *view, int flags)
{
	struct handle *self = (struct handle *)obj;

	return PyBuffer_FillInfo(view, obj, self->mem, self->len, 0, flags);
}

static Py_ssize_t handle_len(PyObject *obj)
{
	return ((struct handle *)obj)->len;
}

static PyObject *handle_ptr(PyObject *obj, PyObject *none)
{
	(void)none;
	return PyLong_FromVoidPtr(((struct handle *)obj)->mem);
}

static PyObject *handle_size(PyObject *obj, PyObject *none)
{
	(void)none;
	return PyLong_FromSsize_t(handle_len(obj));
}

static PyMethodDef handle_methods[] = {
    {"ptr", handle_ptr, METH_NOARGS, "ptr()\n--\n\nAddress of the first byte."},
    {"size", handle_size, METH_NOARGS, "size()\n--\n\nBytes."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot handle_slots[] = {
    {Py_tp_doc, "The bytes of an object, read in place through the buffer protocol or ptr()."},
    {Py_tp_dealloc, handle_dealloc},
    {Py_tp_methods, handle_methods},
    {Py_bf_getbuffer, handle_getbuffer},
    {Py_mp_length, handle_len},
    {0, NULL},
};

PyType_Spec mc_py_handle_spec = {
    .name = "mooncake.store.BufferHandle",
    .basicsize = sizeof(struct handle),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = handle_slots,
};
