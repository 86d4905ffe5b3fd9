/*
 * object.c: a TransferEngine object: life, names, errors, peers, messages.
 *
 * One object holds one reference to one engine, opened by initialize(). Other modules of the
 * package share it: get_engine() gives an object with a reference of its own, get_engine_ptr() the
 * bare address.
 */
#include "ext.h"

#include <string.h>

#include "base/upstream.h"

#define SEGMENT_CACHE_MAX 65536 /* names; more, and the cache starts anew */

PyObject *mc_py_inner_type, *mc_py_notify_type, *mc_py_warn;

/* ---- errors ---- */

int mc_py_code(int rc)
{
	return rc < 0 ? mc_upstream_code(rc) : 0;
}

void mc_py_fail(struct mc_py_engine *self, const char *func, int rc, const struct mc_diag *diag)
{
	const char *why = diag && diag->text[0] ? diag->text : mc_err_text(rc);
	PyObject *text = PyUnicode_FromFormat("%s(): %s", func, why);
	int is_news;

	if (!text) {
		PyErr_Clear();
		return;
	}
	is_news = !self->last_error || PyUnicode_Compare(self->last_error, text) != 0;
	mc_py_set(&self->last_error, text);
	if (is_news && mc_py_warn) {
		PyObject *done = PyObject_CallFunctionObjArgs(mc_py_warn, text, NULL);

		/* What a log handler raises is not the caller's error. */
		if (!done)
			PyErr_WriteUnraisable(mc_py_warn);
		Py_XDECREF(done);
	}
	Py_DECREF(text);
}

struct mc_engine *mc_py_ready(struct mc_py_engine *self, const char *func)
{
	static const struct mc_diag not_open = {
	    .text = "the engine is not open; call initialize() first",
	};

	if (!self->eng)
		mc_py_fail(self, func, -MC_E_CLOSED, &not_open);
	return self->eng;
}

/* ---- life ---- */

PyObject *mc_py_engine_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
	struct mc_py_engine *self = (struct mc_py_engine *)alloc(type, 0);

	(void)args; /* a subclass may take what it likes; see mc_py_engine_init() */
	(void)kwargs;
	if (!self)
		return NULL;
	self->segments = PyDict_New();
	if (!self->segments) {
		Py_DECREF(self);
		return NULL;
	}
	return (PyObject *)self;
}

int mc_py_engine_init(PyObject *obj, PyObject *args, PyObject *kwargs)
{
	(void)obj;
	if (PyTuple_Size(args) > 0 || (kwargs && PyDict_Size(kwargs) > 0)) {
		PyErr_SetString(PyExc_TypeError, "TransferEngine() takes no arguments");
		return -1;
	}
	return 0;
}

void mc_py_engine_dealloc(PyObject *obj)
{
	struct mc_py_engine *self = (struct mc_py_engine *)obj;
	PyTypeObject *type = Py_TYPE(obj);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	if (self->weakrefs)
		PyObject_ClearWeakRefs(obj);
	if (self->eng) {
		/* It may say farewell to a metadata service. */
		Py_BEGIN_ALLOW_THREADS
		mc_engine_close(self->eng);
		Py_END_ALLOW_THREADS
	}
	Py_XDECREF(self->segments);
	Py_XDECREF(self->last_error);
	release(obj);
	Py_DECREF(type);
}

static int engine_open(struct mc_py_engine *self, const char *func,
		       const struct mc_engine_opts *opts)
{
	struct mc_engine *eng = NULL;
	struct mc_diag diag = {.text = ""};
	int rc;

	if (self->eng || self->is_opening) {
		(void)PyOS_snprintf(diag.text, sizeof(diag.text),
				    "this object is initialized already; use a new TransferEngine");
		mc_py_fail(self, func, -MC_E_EXIST, &diag);
		return -1;
	}
	self->is_opening = 1;
	Py_BEGIN_ALLOW_THREADS
	rc = mc_engine_open(opts, &diag, &eng);
	Py_END_ALLOW_THREADS
	self->is_opening = 0;
	if (rc < 0) {
		mc_py_fail(self, func, rc, &diag);
		return -1;
	}
	self->eng = eng;
	return 0;
}

static struct mc_py_sig sig_initialize = {
    .func = "initialize",
    .required = 4,
    .total = 4,
    .name = {"local_hostname", "metadata_server", "protocol", "device_name"},
};

/* The four arguments that both forms share. @return 0; -1 with an exception */
static int open_args(const struct mc_py_sig *sig, PyObject **arg, struct mc_engine_opts *opts)
{
	if (mc_py_text_or(sig, 0, arg[0], "", &opts->name) < 0 ||
	    mc_py_text_or(sig, 1, arg[1], "P2PHANDSHAKE", &opts->metadata) < 0 ||
	    mc_py_text_or(sig, 2, arg[2], "tcp", &opts->protocol) < 0 ||
	    mc_py_text_or(sig, 3, arg[3], NULL, &opts->devices) < 0)
		return -1;
	return 0;
}

static PyObject *py_initialize(PyObject *obj, PyObject *const *args, Py_ssize_t n, PyObject *kw)
{
	struct mc_engine_opts opts = {.size = sizeof(opts)};
	PyObject *arg[MC_PY_PARAMS_MAX];

	if (mc_py_args(&sig_initialize, args, n, kw, arg) < 0 ||
	    open_args(&sig_initialize, arg, &opts) < 0)
		return NULL;
	return PyLong_FromLong(engine_open((struct mc_py_engine *)obj, sig_initialize.func, &opts));
}

static struct mc_py_sig sig_initialize_ext = {
    .func = "initialize_ext",
    .required = 5,
    .total = 5,
    .name = {"local_hostname", "metadata_server", "protocol", "device_name", "metadata_type"},
};

static PyObject *py_initialize_ext(PyObject *obj, PyObject *const *args, Py_ssize_t n, PyObject *kw)
{
	struct mc_engine_opts opts = {.size = sizeof(opts)};
	PyObject *arg[MC_PY_PARAMS_MAX], *joined = NULL, *ret = NULL;
	const char *kind;

	if (mc_py_args(&sig_initialize_ext, args, n, kw, arg) < 0 ||
	    open_args(&sig_initialize_ext, arg, &opts) < 0 ||
	    mc_py_text_or(&sig_initialize_ext, 4, arg[4], "", &kind) < 0)
		return NULL;
	if (*kind && strcmp(opts.metadata, "P2PHANDSHAKE") != 0 && !strstr(opts.metadata, "://")) {
		joined = PyUnicode_FromFormat("%s://%s", kind, opts.metadata);
		opts.metadata = joined ? PyUnicode_AsUTF8AndSize(joined, NULL) : NULL;
		if (!opts.metadata)
			goto out;
	}
	ret = PyLong_FromLong(
	    engine_open((struct mc_py_engine *)obj, sig_initialize_ext.func, &opts));
out:
	Py_XDECREF(joined);
	return ret;
}

static PyObject *py_get_rpc_port(PyObject *obj, PyObject *none)
{
	struct mc_engine *eng = mc_py_ready((struct mc_py_engine *)obj, "get_rpc_port");

	(void)none;
	return PyLong_FromLong(eng ? mc_engine_port(eng) : 0);
}

static PyObject *py_last_error(PyObject *obj, PyObject *none)
{
	struct mc_py_engine *self = (struct mc_py_engine *)obj;

	(void)none;
	return self->last_error ? Py_NewRef(self->last_error) : PyUnicode_FromString("");
}

/* ---- sharing ---- */

struct inner {
	PyObject_HEAD struct mc_engine *eng; /* own reference */
};

static void capsule_free(PyObject *capsule)
{
	struct mc_engine *eng = PyCapsule_GetPointer(capsule, "mooncake.engine");

	Py_BEGIN_ALLOW_THREADS
	mc_engine_close(eng);
	Py_END_ALLOW_THREADS
}

static PyObject *inner_capsule(PyObject *obj, PyObject *none)
{
	struct mc_engine *eng = mc_engine_ref(((struct inner *)obj)->eng);
	PyObject *capsule = PyCapsule_New(eng, "mooncake.engine", capsule_free);

	(void)none;
	if (!capsule)
		mc_engine_close(eng);
	return capsule;
}

static void inner_dealloc(PyObject *obj)
{
	PyTypeObject *type = Py_TYPE(obj);
	freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

	if (((struct inner *)obj)->eng) {
		Py_BEGIN_ALLOW_THREADS
		mc_engine_close(((struct inner *)obj)->eng);
		Py_END_ALLOW_THREADS
	}
	release(obj);
	Py_DECREF(type);
}

static PyObject *inner_ptr(PyObject *obj, PyObject *none)
{
	(void)none;
	return PyLong_FromVoidPtr(((struct inner *)obj)->eng);
}

static PyMethodDef inner_methods[] = {
    {"get_engine_ptr", inner_ptr, METH_NOARGS, "Address of the engine, while this object lives."},
    {"_capsule", inner_capsule, METH_NOARGS,
     "PyCapsule \"mooncake.engine\" of a struct mc_engine * with a reference of its own."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot inner_slots[] = {
    {Py_tp_doc, "An engine, for other modules of the package to share."},
    {Py_tp_dealloc, inner_dealloc},
    {Py_tp_methods, inner_methods},
    {0, NULL},
};

PyType_Spec mc_py_inner_spec = {
    .name = "mooncake.engine.InnerTransferEngine",
    .basicsize = sizeof(struct inner),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = inner_slots,
};

static PyObject *py_get_engine(PyObject *obj, PyObject *none)
{
	struct mc_engine *eng = mc_py_ready((struct mc_py_engine *)obj, "get_engine");
	PyTypeObject *type = (PyTypeObject *)mc_py_inner_type;
	struct inner *inner;

	(void)none;
	if (!eng)
		return Py_NewRef(Py_None);
	inner = (struct inner *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
	if (inner)
		inner->eng = mc_engine_ref(eng);
	return (PyObject *)inner;
}

static PyObject *py_get_engine_ptr(PyObject *obj, PyObject *none)
{
	(void)none;
	return PyLong_FromVoidPtr(mc_py_ready((struct mc_py_engine *)obj, "get_engine_ptr"));
}

/* ---- segments ---- */

static int segment_open(struct mc_py_engine *self, const char *func, const char *name,
			int32_t *ret_segment)
{
	struct mc_diag diag = {.text = ""};
	int32_t segment = -1;
	int rc;

	Py_BEGIN_ALLOW_THREADS
	rc = mc_segment_open(self->eng, name, 0, &diag, &segment);
	Py_END_ALLOW_THREADS
	if (rc < 0)
		mc_py_fail(self, func, rc, &diag);
	else
		*ret_segment = segment;
	return rc;
}

int mc_py_segment(struct mc_py_engine *self, const struct mc_py_sig *sig, int arg, PyObject *name,
		  int32_t *ret_segment)
{
	PyObject *known = NULL;
	const char *text;
	int rc;

	if (PyUnicode_CheckExact(name)) {
		known = PyDict_GetItemWithError(self->segments, name);
		if (known) {
			*ret_segment = (int32_t)PyLong_AsLong(known);
			return 0;
		}
	}
	text = PyErr_Occurred() ? NULL : mc_py_text(sig, arg, name);
	if (!text)
		return -MC_E_COUNT;
	rc = segment_open(self, sig->func, text, ret_segment);
	if (rc < 0 || !PyUnicode_CheckExact(name))
		return rc;
	if (PyDict_Size(self->segments) >= SEGMENT_CACHE_MAX)
		PyDict_Clear(self->segments);
	known = PyLong_FromLong(*ret_segment);
	rc = known ? PyDict_SetItem(self->segments, name, known) : -1;
	Py_XDECREF(known);
	return rc < 0 ? -MC_E_COUNT : 0;
}

static struct mc_py_sig sig_first_addr = {
    .func = "get_first_buffer_address",
    .required = 1,
    .total = 1,
    .name = {"segment_name"},
};

static PyObject *py_get_first_buffer_address(PyObject *obj, PyObject *const *args, Py_ssize_t n,
					     PyObject *kw)
{
	struct mc_py_engine *self = (struct mc_py_engine *)obj;
	PyObject *arg[MC_PY_PARAMS_MAX];
	uint64_t addr = 0;
	int32_t segment;
	int rc;

	if (mc_py_args(&sig_first_addr, args, n, kw, arg) < 0)
		return NULL;
	if (!mc_py_ready(self, sig_first_addr.func))
		return PyLong_FromLong(0);
	rc = mc_py_segment(self, &sig_first_addr, 0, arg[0], &segment);
	if (rc == -MC_E_COUNT)
		return NULL;
	if (rc == 0) {
		Py_BEGIN_ALLOW_THREADS
		rc = mc_segment_first_addr(self->eng, segment, &addr);
		Py_END_ALLOW_THREADS
		if (rc == -MC_E_STALE)
			(void)PyDict_DelItem(self->segments, arg[0]), PyErr_Clear();
		if (rc < 0)
			mc_py_fail(self, sig_first_addr.func, rc, NULL);
	}
	return PyLong_FromUnsignedLongLong(rc < 0 ? 0 : addr);
}

static struct mc_py_sig sig_warmup = {
    .func = "warmup_efa_segment",
    .required = 1,
    .total = 1,
    .name = {"segment_name"},
};

static PyObject *py_warmup_efa_segment(PyObject *obj, PyObject *const *args, Py_ssize_t n,
				       PyObject *kw)
{
	PyObject *arg[MC_PY_PARAMS_MAX];

	(void)obj; /* off EFA there is nothing to warm, upstream says 0 too */
	if (mc_py_args(&sig_warmup, args, n, kw, arg) < 0 || !mc_py_text(&sig_warmup, 0, arg[0]))
		return NULL;
	return PyLong_FromLong(0);
}

static struct mc_py_sig sig_probe = {
    .func = "send_probe",
    .required = 1,
    .total = 1,
    .name = {"peer_server_name"},
};

static PyObject *py_send_probe(PyObject *obj, PyObject *const *args, Py_ssize_t n, PyObject *kw)
{
	struct mc_py_engine *self = (struct mc_py_engine *)obj;
	PyObject *arg[MC_PY_PARAMS_MAX];
	struct mc_diag diag = {.text = ""};
	const char *name;
	int rc;

	if (mc_py_args(&sig_probe, args, n, kw, arg) < 0)
		return NULL;
	name = mc_py_text(&sig_probe, 0, arg[0]);
	if (!name)
		return NULL;
	if (!mc_py_ready(self, sig_probe.func))
		return PyLong_FromLong(-1);
	Py_BEGIN_ALLOW_THREADS
	rc = mc_segment_probe(self->eng, name, 0, &diag);
	Py_END_ALLOW_THREADS
	if (rc < 0)
		mc_py_fail(self, sig_probe.func, rc, &diag);
	return PyLong_FromLong(rc < 0 ? -1 : 0);
}

/* ---- observation ---- */

static PyObject *text_taken(char *text)
{
	PyObject *str;

	if (!text)
		return PyErr_NoMemory();
	str = PyUnicode_FromString(text);
	mc_text_free(text);
	return str;
}

static struct mc_py_sig sig_topology = {
    .func = "get_local_topology",
    .total = 1,
    .name = {"device_name"},
};

static PyObject *py_get_local_topology(PyObject *obj, PyObject *const *args, Py_ssize_t n,
				       PyObject *kw)
{
	PyObject *arg[MC_PY_PARAMS_MAX];
	const char *devices;
	char *text;

	(void)obj;
	if (mc_py_args(&sig_topology, args, n, kw, arg) < 0 ||
	    mc_py_text_or(&sig_topology, 0, arg[0], NULL, &devices) < 0)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	text = mc_topology_json(devices);
	Py_END_ALLOW_THREADS
	return text_taken(text);
}

static PyObject *py_metrics_text(PyObject *obj, PyObject *none)
{
	struct mc_engine *eng = mc_py_ready((struct mc_py_engine *)obj, "metrics_text");
	char *text;

	(void)none;
	if (!eng)
		return PyUnicode_FromString("");
	Py_BEGIN_ALLOW_THREADS
	text = mc_metrics_text(eng);
	Py_END_ALLOW_THREADS
	return text_taken(text);
}

/* ---- messages ---- */

/* Any bytes come through: what is no UTF-8 is kept as lone surrogates, and goes out as it came. */
static PyObject *notice_object(const struct mc_notice *notice)
{
	PyObject *name = PyUnicode_DecodeUTF8(notice->name, notice->name_len, "surrogateescape");
	PyObject *msg = PyUnicode_DecodeUTF8(notice->msg, notice->msg_len, "surrogateescape");
	PyObject *ret = NULL;

	if (name && msg)
		ret = PyObject_CallFunctionObjArgs(mc_py_notify_type, name, msg, NULL);
	Py_XDECREF(name);
	Py_XDECREF(msg);
	return ret;
}

static PyObject *py_get_notifies(PyObject *obj, PyObject *none)
{
	struct mc_py_engine *self = (struct mc_py_engine *)obj;
	struct mc_notice *notices = NULL;
	PyObject *list = PyList_New(0);
	int n;

	(void)none;
	if (!list || !mc_py_ready(self, "get_notifies"))
		return list;
	Py_BEGIN_ALLOW_THREADS
	n = mc_notices_take(self->eng, &notices);
	Py_END_ALLOW_THREADS
	if (n < 0)
		mc_py_fail(self, "get_notifies", n, NULL);
	for (int i = 0; i < n && list; i++) {
		PyObject *item = notice_object(&notices[i]);

		if (!item || PyList_Append(list, item) < 0)
			Py_CLEAR(list);
		Py_XDECREF(item);
	}
	if (n > 0)
		mc_notices_free(notices, n);
	return list;
}

PyMethodDef mc_py_object_methods[] = {
    MC_PY_METHOD(initialize,
		 "initialize($self, local_hostname, metadata_server, protocol, device_name)\n--\n\n"
		 "Open the engine. 0, or -1 (see last_error())."),
    MC_PY_METHOD(initialize_ext,
		 "initialize_ext($self, local_hostname, metadata_server, protocol, device_name, "
		 "metadata_type)\n--\n\n"
		 "initialize() with the metadata service's kind apart: \"http\", \"redis\", …"),
    {"get_rpc_port", py_get_rpc_port, METH_NOARGS,
     "get_rpc_port($self)\n--\n\nControl port; 0 before initialize()."},
    {"last_error", py_last_error, METH_NOARGS,
     "last_error($self)\n--\n\nWhat the last failure of this object was, for a person."},
    {"get_engine", py_get_engine, METH_NOARGS,
     "get_engine($self)\n--\n\nThe engine, for other modules to share. None before initialize()."},
    {"get_engine_ptr", py_get_engine_ptr, METH_NOARGS,
     "get_engine_ptr($self)\n--\n\nAddress of the engine (struct mc_engine *); 0 before "
     "initialize()."},
    MC_PY_METHOD(get_first_buffer_address,
		 "get_first_buffer_address($self, segment_name)\n--\n\n"
		 "Address of a segment's first registered buffer; 0 when there is none."),
    MC_PY_METHOD(warmup_efa_segment, "warmup_efa_segment($self, segment_name)\n--\n\n"
				     "0: without EFA there is nothing to warm."),
    MC_PY_METHOD(send_probe, "send_probe($self, peer_server_name)\n--\n\n"
			     "0 when the peer's process answers, else -1."),
    MC_PY_METHOD(get_local_topology, "get_local_topology($self, device_name=None)\n--\n\n"
				     "JSON: location -> [[preferred devices], [others]]."),
    {"metrics_text", py_metrics_text, METH_NOARGS,
     "metrics_text($self)\n--\n\nAll metrics as Prometheus text."},
    {"get_notifies", py_get_notifies, METH_NOARGS,
     "get_notifies($self)\n--\n\nTake the messages that have come: list of TransferNotify."},
    {NULL, NULL, 0, NULL},
};

int mc_py_object_ready(void)
{
	struct mc_py_sig *all[] = {&sig_initialize, &sig_initialize_ext, &sig_first_addr,
				   &sig_warmup,	    &sig_probe,		 &sig_topology};

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		if (mc_py_sig_ready(all[i]) < 0)
			return -1;
	return 0;
}
