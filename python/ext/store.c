/*
 * store.c: _mooncake.Store: life, memory, health.
 */
#include "store_ext.h"

#include <structmember.h>

/* ---- who is inside ---- */

struct mc_py_store_uses *mc_py_store_use(struct mc_py_store *self)
{
	if (self->uses)
		self->uses->n++;
	return self->uses;
}

void mc_py_store_unuse(struct mc_py_store_uses *uses)
{
	if (--uses->n > 0)
		return;
	Py_BEGIN_ALLOW_THREADS
	mc_store_close(uses->store);
	Py_END_ALLOW_THREADS
	PyMem_Free(uses);
}

/* ---- life ---- */

static PyObject *py_open(PyObject *obj, PyObject *args)
{
	struct mc_py_store *self = (struct mc_py_store *)obj;
	struct mc_store_opts opts = {.size = sizeof(opts)};
	struct mc_py_store_uses *uses;
	struct mc_diag diag = {.text = ""};
	unsigned long long segment, buffer, engine;
	struct mc_store *store = NULL;
	int rc;

	if (!PyArg_ParseTuple(args, "ssssssKKKzzz", &opts.name, &opts.metadata, &opts.protocol,
			      &opts.devices, &opts.master, &opts.tenant, &segment, &buffer, &engine,
			      &opts.node, &opts.disk_path, &opts.dummy_socket))
		return NULL;
	opts.segment_bytes = segment;
	opts.buffer_bytes = buffer;
	opts.engine = (struct mc_engine *)(uintptr_t)engine;
	uses = PyMem_Calloc(1, sizeof(*uses));
	if (!uses)
		return PyErr_NoMemory();
	Py_BEGIN_ALLOW_THREADS
	rc = mc_store_open(&opts, &diag, &store);
	Py_END_ALLOW_THREADS
	if (rc == 0 && self->uses) { /* another thread was faster */
		Py_BEGIN_ALLOW_THREADS
		mc_store_close(store);
		Py_END_ALLOW_THREADS
		store = NULL;
	}
	if (!store) {
		PyMem_Free(uses);
		return Py_BuildValue("(is)", rc, diag.text);
	}
	*uses = (struct mc_py_store_uses){.store = store, .n = 1};
	self->uses = uses;
	return Py_BuildValue("(is)", 0, "");
}

static PyObject *py_shut(PyObject *obj, PyObject *none)
{
	struct mc_py_store *self = (struct mc_py_store *)obj;
	struct mc_py_store_uses *uses = self->uses;

	(void)none;
	self->uses = NULL;
	if (uses)
		mc_py_store_unuse(uses);
	return Py_NewRef(Py_None);
}

static void store_dealloc(PyObject *obj)
{
	struct mc_py_store *self = (struct mc_py_store *)obj;
	PyTypeObject *type = Py_TYPE(obj);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	if (self->weakrefs)
		PyObject_ClearWeakRefs(obj);
	if (self->uses)
		mc_py_store_unuse(self->uses);
	release(obj);
	Py_DECREF(type);
}

static PyObject *py_is_open(PyObject *obj, PyObject *none)
{
	(void)none;
	return PyBool_FromLong(((struct mc_py_store *)obj)->uses != NULL);
}

/* ---- memory ---- */

static PyObject *py_reg(PyObject *obj, PyObject *args)
{
	struct mc_py_store_uses *uses;
	uint64_t addr, len;
	int rc;

	if (!PyArg_ParseTuple(args, "O&O&", mc_py_number, &addr, mc_py_number, &len))
		return NULL;
	uses = mc_py_store_use((struct mc_py_store *)obj);
	if (!uses)
		return PyLong_FromLong(MC_STORE_INTERNAL_ERROR);
	Py_BEGIN_ALLOW_THREADS
	rc = mc_store_register(uses->store, (void *)(uintptr_t)addr, (size_t)len);
	Py_END_ALLOW_THREADS
	mc_py_store_unuse(uses);
	return PyLong_FromLong(rc);
}

/* One argument, an address. */
static PyObject *at_address(PyObject *obj, PyObject *args,
			    int (*call)(struct mc_store *store, void *addr))
{
	struct mc_py_store_uses *uses;
	uint64_t addr;
	int rc;

	if (!PyArg_ParseTuple(args, "O&", mc_py_number, &addr))
		return NULL;
	uses = mc_py_store_use((struct mc_py_store *)obj);
	if (!uses)
		return PyLong_FromLong(MC_STORE_INTERNAL_ERROR);
	Py_BEGIN_ALLOW_THREADS
	rc = call(uses->store, (void *)(uintptr_t)addr);
	Py_END_ALLOW_THREADS
	mc_py_store_unuse(uses);
	return PyLong_FromLong(rc);
}

static PyObject *py_unreg(PyObject *obj, PyObject *args)
{
	return at_address(obj, args, mc_store_unregister);
}

static PyObject *py_alloc(PyObject *obj, PyObject *args)
{
	struct mc_py_store_uses *uses;
	uint64_t len;
	void *mem;

	if (!PyArg_ParseTuple(args, "O&", mc_py_number, &len))
		return NULL;
	uses = mc_py_store_use((struct mc_py_store *)obj);
	if (!uses)
		return PyLong_FromLong(0);
	Py_BEGIN_ALLOW_THREADS
	mem = mc_store_alloc(uses->store, (size_t)len);
	Py_END_ALLOW_THREADS
	mc_py_store_unuse(uses);
	return PyLong_FromVoidPtr(mem);
}

static PyObject *py_release(PyObject *obj, PyObject *args)
{
	return at_address(obj, args, mc_store_free);
}

/* ---- segments at run time ---- */

static PyObject *py_mount(PyObject *obj, PyObject *args)
{
	struct mc_store_mount mount = {.size = sizeof(mount)};
	struct mc_store_segment_id id = {0, 0};
	struct mc_py_store_uses *uses;
	struct mc_diag diag = {.text = ""};
	int rc;

	if (!PyArg_ParseTuple(args, "O&zO&ss", mc_py_number, &mount.bytes, &mount.path,
			      mc_py_number, &mount.offset, &mount.protocol, &mount.location))
		return NULL;
	uses = mc_py_store_use((struct mc_py_store *)obj);
	if (!uses)
		return Py_BuildValue("(isKK)", MC_STORE_INTERNAL_ERROR, "not set up", 0ull, 0ull);
	Py_BEGIN_ALLOW_THREADS
	rc = mc_store_mount(uses->store, &mount, &diag, &id);
	Py_END_ALLOW_THREADS
	mc_py_store_unuse(uses);
	return Py_BuildValue("(isKK)", rc, diag.text, (unsigned long long)id.hi,
			     (unsigned long long)id.lo);
}

static PyObject *py_unmount(PyObject *obj, PyObject *args)
{
	struct mc_py_store_uses *uses;
	struct mc_store_segment_id id;
	unsigned long long hi, lo, grace_ms;
	int is_file, rc;

	if (!PyArg_ParseTuple(args, "KKpK", &hi, &lo, &is_file, &grace_ms))
		return NULL;
	uses = mc_py_store_use((struct mc_py_store *)obj);
	if (!uses)
		return PyLong_FromLong(MC_STORE_INTERNAL_ERROR);
	id = (struct mc_store_segment_id){hi, lo};
	Py_BEGIN_ALLOW_THREADS
	rc = mc_store_unmount(uses->store, &id, is_file, grace_ms);
	Py_END_ALLOW_THREADS
	mc_py_store_unuse(uses);
	return PyLong_FromLong(rc);
}

/* ---- state ---- */

static PyObject *py_fetches(PyObject *obj, PyObject *none)
{
	struct mc_py_store_uses *uses = mc_py_store_use((struct mc_py_store *)obj);
	uint64_t n;

	(void)none;
	if (!uses)
		return PyLong_FromLong(0);
	n = mc_store_fetches(uses->store);
	mc_py_store_unuse(uses);
	return PyLong_FromUnsignedLongLong(n);
}

static PyObject *py_hostname(PyObject *obj, PyObject *none)
{
	struct mc_py_store_uses *uses = mc_py_store_use((struct mc_py_store *)obj);
	PyObject *ret;

	(void)none;
	if (!uses)
		return PyUnicode_FromString("");
	ret = PyUnicode_FromString(mc_store_hostname(uses->store));
	mc_py_store_unuse(uses);
	return ret;
}

static PyObject *py_metrics(PyObject *obj, PyObject *none)
{
	struct mc_py_store_uses *uses = mc_py_store_use((struct mc_py_store *)obj);
	PyObject *ret;
	char *text;

	(void)none;
	if (!uses)
		return PyUnicode_FromString("");
	Py_BEGIN_ALLOW_THREADS
	text = mc_metrics_text(mc_store_engine(uses->store));
	Py_END_ALLOW_THREADS
	mc_py_store_unuse(uses);
	ret = text ? PyUnicode_FromString(text) : PyErr_NoMemory();
	mc_text_free(text);
	return ret;
}

static PyObject *py_health(PyObject *obj, PyObject *none)
{
	struct mc_py_store_uses *uses = mc_py_store_use((struct mc_py_store *)obj);
	int rc;

	(void)none;
	if (!uses)
		return PyLong_FromLong(1);
	Py_BEGIN_ALLOW_THREADS
	rc = mc_store_health(uses->store);
	Py_END_ALLOW_THREADS
	mc_py_store_unuse(uses);
	return PyLong_FromLong(rc);
}

static PyMethodDef life_methods[] = {
    {"open", py_open, METH_VARARGS,
     "open(name, metadata, protocol, devices, master, tenant, segment_bytes, buffer_bytes, "
     "engine_address, node or None, directory of a disk or None) -> (code, why)"},
    {"shut", py_shut, METH_NOARGS, "Close, once the calls under way have ended."},
    {"is_open", py_is_open, METH_NOARGS, "is_open() -> bool"},
    {"reg", py_reg, METH_VARARGS, "reg(address, bytes) -> code"},
    {"unreg", py_unreg, METH_VARARGS, "unreg(address) -> code"},
    {"alloc", py_alloc, METH_VARARGS, "alloc(bytes) -> address or 0"},
    {"release", py_release, METH_VARARGS, "release(address) -> code"},
    {"mount", py_mount, METH_VARARGS,
     "mount(bytes, path or None, offset, protocol, location) -> (code, why, id_hi, id_lo)"},
    {"unmount", py_unmount, METH_VARARGS, "unmount(id_hi, id_lo, is_file, grace_ms) -> code"},
    {"fetches", py_fetches, METH_NOARGS, "fetches() -> objects that came from disks"},
    {"hostname", py_hostname, METH_NOARGS, "hostname() -> str"},
    {"metrics", py_metrics, METH_NOARGS, "metrics() -> Prometheus text of the store's engine"},
    {"health", py_health, METH_NOARGS, "health() -> 0, 1 not open, 2 no master"},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef store_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(struct mc_py_store, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot store_slots[] = {
    {Py_tp_doc, "The thin half of mooncake.store.MooncakeDistributedStore: batches, by position."},
    {Py_tp_dealloc, store_dealloc},
    {Py_tp_methods, NULL}, /* mc_py_store_ready() */
    {Py_tp_members, store_members},
    {0, NULL},
};

PyType_Spec mc_py_store_spec = {
    .name = "mooncake._mooncake.Store",
    .basicsize = sizeof(struct mc_py_store),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = store_slots,
};

int mc_py_store_ready(void)
{
	static const PyMethodDef *const tables[] = {life_methods, mc_py_store_data_methods,
						    mc_py_store_task_methods};

	return mc_py_methods_set(store_slots, tables, sizeof(tables) / sizeof(tables[0]));
}
