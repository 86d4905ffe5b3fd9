/*
 * module.c: mooncake._mooncake, the extension behind mooncake.engine, mooncake.store and
 * mooncake.pg.
 *
 * mooncake.engine holds what is better said in Python (the enum, the message class, logging) and
 * hands it over with _bind().
 */
#include "store_ext.h"

#include <structmember.h>

static PyMemberDef engine_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(struct mc_py_engine, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot engine_slots[] = {
    {Py_tp_doc, "A transfer engine: memory of this process that peers reach, and transfers to and "
		"from theirs.\n\nBegin with initialize()."},
    {Py_tp_new, mc_py_engine_new},
    {Py_tp_init, mc_py_engine_init},
    {Py_tp_dealloc, mc_py_engine_dealloc},
    {Py_tp_methods, NULL}, /* the tables of all files */
    {Py_tp_members, engine_members},
    {0, NULL},
};

static PyType_Spec engine_spec = {
    .name = "mooncake.engine.TransferEngine",
    .basicsize = sizeof(struct mc_py_engine),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = engine_slots,
};

static PyObject *bind(PyObject *module, PyObject *args)
{
	PyObject *notify, *warn;

	(void)module;
	if (!PyArg_ParseTuple(args, "OO:_bind", &notify, &warn))
		return NULL;
	mc_py_set(&mc_py_notify_type, notify);
	mc_py_set(&mc_py_warn, warn);
	return Py_NewRef(Py_None);
}

static PyObject *version(PyObject *module, PyObject *none)
{
	(void)module;
	(void)none;
	return PyUnicode_FromString(mc_version());
}

static PyMethodDef module_methods[] = {
    {"_bind", bind, METH_VARARGS, "Take class TransferNotify and a function that logs a warning."},
    {"version", version, METH_NOARGS, "version()\n--\n\nVersion of the library."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_mooncake",
    .m_doc = "For mooncake.engine, mooncake.store and mooncake.pg.",
    .m_size = -1,
    .m_methods = module_methods,
};

int mc_py_methods_set(PyType_Slot *slots, const PyMethodDef *const *tables, size_t ntables)
{
	PyMethodDef *all;
	size_t n = 0;

	for (size_t t = 0; t < ntables; t++)
		for (const PyMethodDef *m = tables[t]; m->ml_name; m++)
			n++;
	all = PyMem_Calloc(n + 1, sizeof(*all)); /* as long as the type: the process's life */
	if (!all) {
		PyErr_NoMemory();
		return -1;
	}
	n = 0;
	for (size_t t = 0; t < ntables; t++)
		for (const PyMethodDef *m = tables[t]; m->ml_name; m++)
			all[n++] = *m;
	while (slots->slot != Py_tp_methods)
		slots++;
	slots->pfunc = all;
	return 0;
}

PyMODINIT_FUNC PyInit__mooncake(void); /* the interpreter finds it by name */

PyObject *mc_py_type_add(PyObject *module, const char *name, PyType_Spec *spec)
{
	PyObject *type = PyType_FromSpec(spec);

	if (type && PyModule_AddObjectRef(module, name, type) < 0)
		Py_CLEAR(type);
	Py_XDECREF(type);
	return type;
}

PyMODINIT_FUNC PyInit__mooncake(void)
{
	static const PyMethodDef *const tables[] = {mc_py_object_methods, mc_py_memory_methods,
						    mc_py_transfer_methods};
	PyObject *module;

	if (mc_py_object_ready() < 0 || mc_py_memory_ready() < 0 || mc_py_transfer_ready() < 0)
		return NULL;
	if (mc_py_methods_set(engine_slots, tables, sizeof(tables) / sizeof(tables[0])) < 0 ||
	    mc_py_store_ready() < 0)
		return NULL;
	module = PyModule_Create(&module_def);
	if (!module)
		return NULL;
	mc_py_inner_type = mc_py_type_add(module, "InnerTransferEngine", &mc_py_inner_spec);
	mc_py_handle_type = mc_py_type_add(module, "BufferHandle", &mc_py_handle_spec);
	if (!mc_py_inner_type || !mc_py_handle_type ||
	    !mc_py_type_add(module, "TransferEngine", &engine_spec) ||
	    !mc_py_type_add(module, "BufferLeaseView", &mc_py_lease_spec) ||
	    !mc_py_type_add(module, "Store", &mc_py_store_spec) || mc_py_coll_ready(module) < 0 ||
	    mc_py_ep_ready(module) < 0 || mc_py_ep_cuda_ready(module) < 0)
		Py_CLEAR(module);
	return module;
}
