/*
 * store_tasks.c: the methods of _mooncake.Store that have replicas copied and moved.
 */
#include "store_ext.h"

static PyObject *created(const struct mc_store_task_id *id, int code)
{
	return Py_BuildValue("((KK)i)", (unsigned long long)id->hi, (unsigned long long)id->lo,
			     code);
}

static PyObject *py_copy_task(PyObject *obj, PyObject *args)
{
	const char *targets[MC_STORE_REPLICAS_MAX];
	struct mc_store_task_id id = {0};
	struct mc_py_store_uses *uses;
	struct mc_store_key key;
	PyObject *list, *fast;
	const char *text;
	Py_ssize_t len, n;
	int code = MC_STORE_INVALID_PARAMS;

	if (!PyArg_ParseTuple(args, "s#O", &text, &len, &list))
		return NULL;
	key = (struct mc_store_key){text, (size_t)len};
	/* A tuple of ours: whoever changes the list meanwhile does not change it. */
	fast = PySequence_Tuple(list);
	if (!fast)
		return NULL;
	n = PyTuple_Size(fast);
	for (Py_ssize_t i = 0; i < n && i < (Py_ssize_t)MC_STORE_REPLICAS_MAX; i++) {
		targets[i] = PyUnicode_AsUTF8AndSize(PyTuple_GetItem(fast, i), NULL);
		if (!targets[i]) {
			Py_DECREF(fast);
			return NULL;
		}
	}
	uses = mc_py_store_use((struct mc_py_store *)obj);
	if (uses && n <= (Py_ssize_t)MC_STORE_REPLICAS_MAX) {
		Py_BEGIN_ALLOW_THREADS
		code = mc_store_copy(uses->store, &key, targets, (uint32_t)n, &id);
		Py_END_ALLOW_THREADS
	}
	if (uses)
		mc_py_store_unuse(uses);
	Py_DECREF(fast);
	return created(&id, code);
}

static PyObject *py_move_task(PyObject *obj, PyObject *args)
{
	struct mc_store_task_id id = {0};
	struct mc_py_store_uses *uses;
	const char *text, *source, *target;
	struct mc_store_key key;
	Py_ssize_t len;
	int code = MC_STORE_INVALID_PARAMS;

	if (!PyArg_ParseTuple(args, "s#ss", &text, &len, &source, &target))
		return NULL;
	key = (struct mc_store_key){text, (size_t)len};
	uses = mc_py_store_use((struct mc_py_store *)obj);
	if (uses) {
		Py_BEGIN_ALLOW_THREADS
		code = mc_store_move(uses->store, &key, source, target, &id);
		Py_END_ALLOW_THREADS
		mc_py_store_unuse(uses);
	}
	return created(&id, code);
}

static PyObject *py_task(PyObject *obj, PyObject *args)
{
	struct mc_py_store_uses *uses;
	struct mc_store_task_id id;
	struct mc_store_task t;
	int code = MC_STORE_INVALID_PARAMS;

	if (!PyArg_ParseTuple(args, "(O&O&)", mc_py_number, &id.hi, mc_py_number, &id.lo))
		return NULL;
	uses = mc_py_store_use((struct mc_py_store *)obj);
	if (uses) {
		Py_BEGIN_ALLOW_THREADS
		code = mc_store_task(uses->store, id, &t);
		Py_END_ALLOW_THREADS
		mc_py_store_unuse(uses);
	}
	if (code != 0)
		return Py_BuildValue("(Oi)", Py_None, code);
	return Py_BuildValue("((iiKKss)i)", t.is_move, (int)t.state,
			     (unsigned long long)t.created_ms, (unsigned long long)t.updated_ms,
			     t.segment, t.message, 0);
}

PyMethodDef mc_py_store_task_methods[] = {
    {"copy_task", py_copy_task, METH_VARARGS, "copy_task(key, targets) -> ((hi, lo), code)"},
    {"move_task", py_move_task, METH_VARARGS, "move_task(key, source, target) -> ((hi, lo), code)"},
    {"task", py_task, METH_VARARGS,
     "task((hi, lo)) -> ((type, status, created, updated, segment, message) or None, code)"},
    {NULL, NULL, 0, NULL},
};
