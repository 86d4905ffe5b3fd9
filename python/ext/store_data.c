/*
 * store_data.c: the methods of _mooncake.Store that move or ask about objects.
 *
 * Each takes a batch and answers with a list, one code a key. A store that is not open answers -1
 * for each; lengths that do not match, MC_STORE_INVALID_PARAMS.
 */
#include "store_ext.h"

/* What a call on a batch is made of. */
struct call {
	struct mc_py_batch b;
	struct mc_py_store_conf conf;
	struct mc_py_store_uses *uses;
	int32_t *codes;
	int64_t *lens;
};

static void call_close(struct call *c)
{
	if (c->uses)
		mc_py_store_unuse(c->uses);
	PyMem_Free(c->codes);
	PyMem_Free(c->lens);
	mc_py_store_conf_close(&c->conf);
	mc_py_batch_close(&c->b);
}

/* Room for the answers, and the store. @return 0; 1 with *ret = the answer; -1 */
static int call_ready(struct call *c, PyObject *obj, int mismatch, PyObject **ret)
{
	if (mismatch < 0)
		return -1;
	*ret = NULL;
	if (mismatch > 0)
		*ret = mc_py_list_of(MC_STORE_INVALID_PARAMS, c->b.n);
	else if (c->b.n == 0)
		*ret = PyList_New(0);
	if (mismatch > 0 || c->b.n == 0)
		return *ret ? 1 : -1;
	c->uses = mc_py_store_use((struct mc_py_store *)obj);
	if (!c->uses) {
		*ret = mc_py_list_of(MC_STORE_INTERNAL_ERROR, c->b.n);
		return *ret ? 1 : -1;
	}
	c->codes = PyMem_Calloc(c->b.n, sizeof(*c->codes));
	c->lens = PyMem_Calloc(c->b.n, sizeof(*c->lens));
	if (!c->codes || !c->lens) {
		PyErr_NoMemory();
		return -1;
	}
	return 0;
}

/* ---- whole objects ---- */

static PyObject *put(PyObject *obj, struct call *c, int rc, PyObject *conf, unsigned flags)
{
	PyObject *ret = NULL;

	if (rc == 0)
		rc = mc_py_store_conf_open(&c->conf, conf, c->b.n);
	if (call_ready(c, obj, rc, &ret) == 0) {
		Py_BEGIN_ALLOW_THREADS(void)
		!mc_store_put(c->uses->store, c->b.items, c->b.n, &c->conf.conf, flags, c->codes);
		Py_END_ALLOW_THREADS
		ret = mc_py_list32(c->codes, c->b.n);
	}
	call_close(c);
	return ret;
}

static PyObject *py_put_values(PyObject *obj, PyObject *args)
{
	struct call c = {0};
	PyObject *keys, *values, *conf;
	unsigned flags;
	int rc;

	if (!PyArg_ParseTuple(args, "OOOI", &keys, &values, &conf, &flags))
		return NULL;
	rc = mc_py_batch_keys(&c.b, keys);
	return put(obj, &c, rc == 0 ? mc_py_batch_values(&c.b, values) : rc, conf, flags);
}

static PyObject *py_put_memory(PyObject *obj, PyObject *args)
{
	struct call c = {0};
	PyObject *keys, *ptrs, *sizes, *conf;
	unsigned flags;
	int rc;

	if (!PyArg_ParseTuple(args, "OOOOI", &keys, &ptrs, &sizes, &conf, &flags))
		return NULL;
	rc = mc_py_batch_keys(&c.b, keys);
	return put(obj, &c, rc == 0 ? mc_py_batch_memory(&c.b, ptrs, sizes) : rc, conf, flags);
}

static PyObject *py_get_memory(PyObject *obj, PyObject *args)
{
	struct call c = {0};
	PyObject *keys, *ptrs, *sizes, *ret = NULL;
	int rc;

	if (!PyArg_ParseTuple(args, "OOO", &keys, &ptrs, &sizes))
		return NULL;
	rc = mc_py_batch_keys(&c.b, keys);
	if (rc == 0)
		rc = mc_py_batch_memory(&c.b, ptrs, sizes);
	if (call_ready(&c, obj, rc, &ret) == 0) {
		Py_BEGIN_ALLOW_THREADS(void)
		!mc_store_get(c.uses->store, c.b.items, c.b.n, c.lens);
		Py_END_ALLOW_THREADS
		ret = mc_py_list64(c.lens, c.b.n);
	}
	call_close(&c);
	return ret;
}

/* ---- objects of unknown length, into new memory ---- */

static PyObject *bytes_new(size_t len, void **ret_mem)
{
	PyObject *obj = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)len);

	*ret_mem = obj ? PyBytes_AsString(obj) : NULL;
	return obj;
}

/* Sizes are known: make an object for each and point its item there. A list, holding None where
 * there is none. */
static PyObject *objects_make(struct call *c, PyObject *(*make)(size_t len, void **ret_mem))
{
	PyObject *list = PyList_New((Py_ssize_t)c->b.n);

	for (uint32_t i = 0; list && i < c->b.n; i++) {
		struct mc_store_part *part = &c->b.parts[i];
		PyObject *one;

		*part = (struct mc_store_part){.len = c->lens[i] > 0 ? (size_t)c->lens[i] : 0};
		one = part->len > 0 ? make(part->len, &part->addr) : Py_NewRef(Py_None);
		c->b.items[i].parts = part;
		c->b.items[i].nparts = part->len > 0;
		if (!one || PyList_SetItem(list, (Py_ssize_t)i, one) < 0)
			Py_CLEAR(list);
	}
	return list;
}

/* Those there are into their objects; what could not be read becomes None. */
static int objects_read(struct call *c, PyObject *list)
{
	struct mc_store_item *there = PyMem_Calloc(c->b.n, sizeof(*there));
	uint32_t *place = PyMem_Calloc(c->b.n, sizeof(*place)), n = 0;
	int rc = 0;

	if (!there || !place) {
		PyErr_NoMemory();
		rc = -1;
		goto out;
	}
	for (uint32_t i = 0; i < c->b.n; i++) {
		if (c->b.items[i].nparts == 0)
			continue;
		place[n] = i;
		there[n++] = c->b.items[i];
	}
	if (n > 0) {
		Py_BEGIN_ALLOW_THREADS(void)
		!mc_store_get(c->uses->store, there, n, c->lens);
		Py_END_ALLOW_THREADS
	}
	for (uint32_t i = 0; i < n && rc == 0; i++)
		if (c->lens[i] != (int64_t)there[i].parts->len)
			rc = PyList_SetItem(list, (Py_ssize_t)place[i], Py_NewRef(Py_None));
out:
	PyMem_Free(there);
	PyMem_Free(place);
	return rc;
}

static PyObject *nothing(uint32_t n)
{
	PyObject *one = Py_BuildValue("[O]", Py_None), *list;

	list = one ? PySequence_Repeat(one, (Py_ssize_t)n) : NULL;
	Py_XDECREF(one);
	return list;
}

static PyObject *get_new(PyObject *obj, PyObject *keys,
			 PyObject *(*make)(size_t len, void **ret_mem))
{
	struct call c = {0};
	struct mc_store_key *names = NULL;
	PyObject *ret = NULL;
	int rc = mc_py_batch_keys(&c.b, keys);

	if (rc == 0 && c.b.n > MC_PY_BATCH_SMALL) {
		c.b.parts = PyMem_Calloc(c.b.n, sizeof(*c.b.parts));
		rc = c.b.parts ? 0 : -1;
	}
	if (rc == 0) {
		names = PyMem_Calloc(c.b.n + 1u, sizeof(*names));
		rc = names ? 0 : -1;
	}
	if (rc < 0 && !PyErr_Occurred())
		PyErr_NoMemory();
	for (uint32_t i = 0; names && i < c.b.n; i++)
		names[i] = c.b.items[i].key;
	rc = call_ready(&c, obj, rc, &ret);
	if (rc == 1 && c.b.n > 0) { /* not open: nothing is found */
		Py_DECREF(ret);
		ret = nothing(c.b.n);
	} else if (rc == 0) {
		Py_BEGIN_ALLOW_THREADS(void)
		!mc_store_size(c.uses->store, names, c.b.n, c.lens);
		Py_END_ALLOW_THREADS
		ret = objects_make(&c, make);
		if (ret && objects_read(&c, ret) < 0)
			Py_CLEAR(ret);
	}
	PyMem_Free(names);
	call_close(&c);
	return ret;
}

static PyObject *py_get_bytes(PyObject *obj, PyObject *keys)
{
	return get_new(obj, keys, bytes_new);
}

static PyObject *py_get_handles(PyObject *obj, PyObject *keys)
{
	return get_new(obj, keys, mc_py_handle_new);
}

/* ---- pieces ---- */

/* The offsets of each key's pieces, beside its parts. @return the pieces; NULL with rc 1, -1 */
static struct mc_store_range *ranges_read(struct mc_py_batch *b, PyObject *offsets, int *ret_rc)
{
	struct mc_py_batch at = {.keys = NULL};
	struct mc_store_range *ranges = PyMem_Calloc(b->nparts + 1, sizeof(*ranges));

	*ret_rc = ranges ? mc_py_batch_keys(&at, b->keys) : -1;
	if (!ranges)
		PyErr_NoMemory();
	if (*ret_rc == 0) /* offsets are read as addresses, beside themselves as sizes */
		*ret_rc = mc_py_batch_memory(&at, offsets, offsets);
	if (*ret_rc == 0 && at.nparts != b->nparts)
		*ret_rc = 1;
	for (uint32_t i = 0; *ret_rc == 0 && i < b->n; i++)
		*ret_rc = at.items[i].nparts == b->items[i].nparts ? 0 : 1;
	for (size_t i = 0; *ret_rc == 0 && i < b->nparts; i++)
		ranges[i] = (struct mc_store_range){
		    .offset = at.parts[i].len, .addr = b->parts[i].addr, .len = b->parts[i].len};
	mc_py_batch_close(&at);
	if (*ret_rc != 0) {
		PyMem_Free(ranges);
		ranges = NULL;
	}
	return ranges;
}

static PyObject *py_ranges(PyObject *obj, PyObject *args)
{
	struct call c = {0};
	PyObject *keys, *ptrs, *sizes, *offsets, *ret = NULL;
	struct mc_store_range *ranges = NULL;
	struct mc_store_ranged *items = NULL;
	int rc, is_put;

	if (!PyArg_ParseTuple(args, "pOOOO", &is_put, &keys, &ptrs, &sizes, &offsets))
		return NULL;
	rc = mc_py_batch_keys(&c.b, keys);
	if (rc == 0)
		rc = mc_py_batch_memory(&c.b, ptrs, sizes);
	if (rc == 0)
		ranges = ranges_read(&c.b, offsets, &rc);
	if (rc == 0) {
		items = PyMem_Calloc(c.b.n + 1u, sizeof(*items));
		if (!items) {
			PyErr_NoMemory();
			rc = -1;
		}
	}
	for (uint32_t i = 0; items && i < c.b.n; i++)
		items[i] =
		    (struct mc_store_ranged){.key = c.b.items[i].key,
					     .ranges = ranges + (c.b.items[i].parts - c.b.parts),
					     .nranges = c.b.items[i].nparts};
	if (call_ready(&c, obj, rc, &ret) == 0) {
		Py_BEGIN_ALLOW_THREADS
		if (is_put)
			(void)!mc_store_put_ranges(c.uses->store, items, c.b.n, c.lens);
		else
			(void)!mc_store_get_ranges(c.uses->store, items, c.b.n, c.lens);
		Py_END_ALLOW_THREADS
		ret = mc_py_list64(c.lens, c.b.n);
	}
	PyMem_Free(items);
	PyMem_Free(ranges);
	call_close(&c);
	return ret;
}

/* ---- calls about keys ---- */

enum ask {
	ASK_EXIST,
	ASK_SIZE,
	ASK_REMOVE,
	ASK_END,
};

static void ask(struct call *c, const struct mc_store_key *names, enum ask what, bool flag)
{
	Py_BEGIN_ALLOW_THREADS
	switch (what) {
	case ASK_EXIST:
		(void)!mc_store_exist(c->uses->store, names, c->b.n, c->codes);
		break;
	case ASK_SIZE:
		(void)!mc_store_size(c->uses->store, names, c->b.n, c->lens);
		break;
	case ASK_REMOVE:
		(void)!mc_store_remove(c->uses->store, names, c->b.n, flag, c->codes);
		break;
	case ASK_END:
		(void)!mc_store_put_end(c->uses->store, names, c->b.n, flag, c->codes);
		break;
	}
	Py_END_ALLOW_THREADS
}

static struct mc_store_key *names_of(struct mc_py_batch *b)
{
	struct mc_store_key *names = PyMem_Calloc(b->n + 1u, sizeof(*names));

	if (!names)
		PyErr_NoMemory();
	for (uint32_t i = 0; names && i < b->n; i++)
		names[i] = b->items[i].key;
	return names;
}

static PyObject *about_keys(PyObject *obj, PyObject *keys, enum ask what, bool flag)
{
	struct call c = {0};
	struct mc_store_key *names = NULL;
	PyObject *ret = NULL;
	int rc = mc_py_batch_keys(&c.b, keys);

	if (rc == 0) {
		names = names_of(&c.b);
		rc = names ? 0 : -1;
	}
	if (call_ready(&c, obj, rc, &ret) == 0) {
		ask(&c, names, what, flag);
		ret = what == ASK_SIZE ? mc_py_list64(c.lens, c.b.n) : mc_py_list32(c.codes, c.b.n);
	}
	PyMem_Free(names);
	call_close(&c);
	return ret;
}

static PyObject *py_exist(PyObject *obj, PyObject *keys)
{
	return about_keys(obj, keys, ASK_EXIST, false);
}

static PyObject *py_sizes(PyObject *obj, PyObject *keys)
{
	return about_keys(obj, keys, ASK_SIZE, false);
}

static PyObject *py_remove_keys(PyObject *obj, PyObject *args)
{
	PyObject *keys;
	int is_forced;

	if (!PyArg_ParseTuple(args, "Op", &keys, &is_forced))
		return NULL;
	return about_keys(obj, keys, ASK_REMOVE, is_forced);
}

static PyObject *py_put_end(PyObject *obj, PyObject *args)
{
	PyObject *keys;
	int is_revoked;

	if (!PyArg_ParseTuple(args, "Op", &keys, &is_revoked))
		return NULL;
	return about_keys(obj, keys, ASK_END, is_revoked);
}

static PyObject *py_clear(PyObject *obj, PyObject *args)
{
	struct call c = {0};
	struct mc_store_key *names = NULL;
	PyObject *keys, *ret = NULL;
	const char *segment;
	int rc;

	if (!PyArg_ParseTuple(args, "Os", &keys, &segment))
		return NULL;
	rc = mc_py_batch_keys(&c.b, keys);
	if (rc == 0) {
		names = names_of(&c.b);
		rc = names ? 0 : -1;
	}
	if (call_ready(&c, obj, rc, &ret) == 0) {
		Py_BEGIN_ALLOW_THREADS(void)
		!mc_store_clear(c.uses->store, names, c.b.n, segment, c.codes);
		Py_END_ALLOW_THREADS
		ret = mc_py_list32(c.codes, c.b.n);
	}
	PyMem_Free(names);
	call_close(&c);
	return ret;
}

static PyObject *py_put_begin(PyObject *obj, PyObject *args)
{
	struct call c = {0};
	struct mc_store_key *names = NULL;
	uint64_t *lens = NULL;
	PyObject *keys, *sizes, *conf, *ret = NULL;
	int rc;

	if (!PyArg_ParseTuple(args, "OOO", &keys, &sizes, &conf))
		return NULL;
	rc = mc_py_batch_keys(&c.b, keys);
	if (rc == 0)
		rc = mc_py_batch_memory(&c.b, sizes, sizes);
	if (rc == 0)
		rc = mc_py_store_conf_open(&c.conf, conf, c.b.n);
	if (rc == 0) {
		names = names_of(&c.b);
		lens = PyMem_Calloc(c.b.n + 1u, sizeof(*lens));
		rc = names && lens ? 0 : -1;
		if (rc < 0 && !PyErr_Occurred())
			PyErr_NoMemory();
	}
	for (uint32_t i = 0; rc == 0 && i < c.b.n; i++)
		lens[i] = c.b.parts[i].len;
	if (call_ready(&c, obj, rc, &ret) == 0) {
		Py_BEGIN_ALLOW_THREADS(void)
		!mc_store_put_begin(c.uses->store, names, lens, c.b.n, &c.conf.conf, c.codes);
		Py_END_ALLOW_THREADS
		ret = mc_py_list32(c.codes, c.b.n);
	}
	PyMem_Free(lens);
	PyMem_Free(names);
	call_close(&c);
	return ret;
}

static PyObject *py_remove_like(PyObject *obj, PyObject *args)
{
	struct mc_py_store_uses *uses;
	const char *regex;
	int64_t n;
	int is_forced;

	if (!PyArg_ParseTuple(args, "zp", &regex, &is_forced))
		return NULL;
	uses = mc_py_store_use((struct mc_py_store *)obj);
	if (!uses)
		return PyLong_FromLong(MC_STORE_INTERNAL_ERROR);
	Py_BEGIN_ALLOW_THREADS
	n = mc_store_remove_like(uses->store, regex, is_forced);
	Py_END_ALLOW_THREADS
	mc_py_store_unuse(uses);
	return PyLong_FromLongLong(n);
}

static PyObject *replica_list(const struct mc_store_replica *replicas, int n)
{
	PyObject *list = PyList_New(0);

	for (int i = 0; list && i < n; i++) {
		PyObject *one = Py_BuildValue("(isKK)", replicas[i].kind, replicas[i].segment,
					      (unsigned long long)replicas[i].addr,
					      (unsigned long long)replicas[i].len);

		if (!one || PyList_Append(list, one) < 0)
			Py_CLEAR(list);
		Py_XDECREF(one);
	}
	return list;
}

static PyObject *py_replicas(PyObject *obj, PyObject *keys)
{
	struct mc_store_replica replicas[MC_STORE_REPLICAS_MAX];
	struct call c = {0};
	PyObject *ret = NULL;
	int rc = mc_py_batch_keys(&c.b, keys);

	if (call_ready(&c, obj, rc, &ret) == 0) {
		ret = PyList_New(0);
		for (uint32_t i = 0; ret && i < c.b.n; i++) {
			PyObject *one;

			Py_BEGIN_ALLOW_THREADS
			rc = mc_store_replicas(c.uses->store, &c.b.items[i].key, replicas);
			Py_END_ALLOW_THREADS
			one = replica_list(replicas, rc);
			if (!one || PyList_Append(ret, one) < 0)
				Py_CLEAR(ret);
			Py_XDECREF(one);
		}
	}
	call_close(&c);
	return ret;
}

PyMethodDef mc_py_store_data_methods[] = {
    {"put_values", py_put_values, METH_VARARGS, "put_values(keys, values, conf, flags) -> codes"},
    {"put_memory", py_put_memory, METH_VARARGS,
     "put_memory(keys, ptrs, sizes, conf, flags) -> codes"},
    {"get_memory", py_get_memory, METH_VARARGS, "get_memory(keys, ptrs, sizes) -> bytes or codes"},
    {"get_bytes", py_get_bytes, METH_O, "get_bytes(keys) -> bytes or None of each"},
    {"get_handles", py_get_handles, METH_O, "get_handles(keys) -> BufferHandle or None of each"},
    {"ranges", py_ranges, METH_VARARGS,
     "ranges(is_put, keys, ptrs, sizes, offsets) -> bytes or codes"},
    {"exist", py_exist, METH_O, "exist(keys) -> 1, 0 or a code of each"},
    {"sizes", py_sizes, METH_O, "sizes(keys) -> bytes or code of each"},
    {"remove_keys", py_remove_keys, METH_VARARGS, "remove_keys(keys, force) -> codes"},
    {"clear", py_clear, METH_VARARGS, "clear(keys, segment) -> codes"},
    {"remove_like", py_remove_like, METH_VARARGS, "remove_like(regex or None, force) -> how many"},
    {"put_begin", py_put_begin, METH_VARARGS, "put_begin(keys, sizes, conf) -> codes"},
    {"put_end", py_put_end, METH_VARARGS, "put_end(keys, revoke) -> codes"},
    {"replicas", py_replicas, METH_O, "replicas(keys) -> [(kind, segment, address, bytes), …]"},
    {NULL, NULL, 0, NULL},
};
