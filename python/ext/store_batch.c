/*
 * store_batch.c: from Python lists of keys, buffers and addresses to the items of a batch.
 *
 * Most calls name one object, so that small ones need no allocation.
 */
#include "store_ext.h"

#include <string.h>

/* ---- room ---- */

/* Grow *mem, which may be `small`, for one more. @return 0; -1 with MemoryError */
static int grow(void **mem, void *small, size_t *cap, size_t len, size_t size)
{
	size_t more = *cap * 2;
	void *fresh;

	if (len < *cap)
		return 0;
	fresh = PyMem_Malloc(more * size);
	if (!fresh) {
		PyErr_NoMemory();
		return -1;
	}
	memcpy(fresh, *mem, len * size);
	if (*mem != small)
		PyMem_Free(*mem);
	*mem = fresh;
	*cap = more;
	return 0;
}

static struct mc_store_part *part_add(struct mc_py_batch *b)
{
	if (grow((void **)&b->parts, b->small_parts, &b->parts_cap, b->nparts, sizeof(*b->parts)) <
	    0)
		return NULL;
	return &b->parts[b->nparts++];
}

/* Items hold counts until all parts are there: those may move. */
static void parts_settle(struct mc_py_batch *b)
{
	struct mc_store_part *at = b->parts;

	for (uint32_t i = 0; i < b->n; i++) {
		b->items[i].parts = at;
		at += b->items[i].nparts;
	}
}

/* ---- keys ---- */

static int key_read(PyObject *obj, Py_ssize_t at, struct mc_store_key *ret)
{
	Py_ssize_t len;
	char *bytes;

	if (PyUnicode_Check(obj)) {
		ret->bytes = PyUnicode_AsUTF8AndSize(obj, &len);
		if (!ret->bytes)
			return -1;
	} else if (PyBytes_Check(obj)) {
		if (PyBytes_AsStringAndSize(obj, &bytes, &len) < 0)
			return -1;
		ret->bytes = bytes;
	} else {
		PyErr_Format(PyExc_TypeError, "key [%zd] must be a str", at);
		return -1;
	}
	ret->len = (size_t)len;
	return 0;
}

int mc_py_batch_keys(struct mc_py_batch *b, PyObject *keys)
{
	Py_ssize_t n;

	b->items = b->small_items;
	b->parts = b->small_parts;
	b->views = b->small_views;
	b->parts_cap = b->views_cap = MC_PY_BATCH_SMALL;
	if (PyUnicode_Check(keys) || PyBytes_Check(keys)) {
		PyErr_SetString(PyExc_TypeError, "keys must be a list of str");
		return -1;
	}
	b->keys = PySequence_Tuple(keys);
	if (!b->keys)
		return -1;
	n = PyTuple_Size(b->keys);
	if (n > (Py_ssize_t)MC_STORE_BATCH_MAX) {
		PyErr_Format(PyExc_ValueError, "%zd keys in one call; at most %u", n,
			     MC_STORE_BATCH_MAX);
		return -1;
	}
	if (n > MC_PY_BATCH_SMALL) {
		b->items = PyMem_Calloc((size_t)n, sizeof(*b->items));
		if (!b->items) {
			PyErr_NoMemory();
			return -1;
		}
	}
	b->n = (uint32_t)n;
	for (Py_ssize_t i = 0; i < n; i++)
		if (key_read(PyTuple_GetItem(b->keys, i), i, &b->items[i].key) < 0)
			return -1;
	return 0;
}

/* ---- values ---- */

static int view_add(struct mc_py_batch *b, struct mc_store_item *item, PyObject *obj)
{
	struct mc_store_part *part;
	Py_buffer *view;

	if (grow((void **)&b->views, b->small_views, &b->views_cap, b->nviews, sizeof(*b->views)) <
	    0)
		return -1;
	view = &b->views[b->nviews];
	if (PyObject_GetBuffer(obj, view, PyBUF_SIMPLE) < 0)
		return -1;
	b->nviews++;
	part = part_add(b);
	if (!part)
		return -1;
	*part = (struct mc_store_part){.addr = view->buf, .len = (size_t)view->len};
	item->nparts++;
	return 0;
}

static int views_add(struct mc_py_batch *b, struct mc_store_item *item, PyObject *obj)
{
	PyObject *pieces;
	int rc = 0;

	if (PyObject_CheckBuffer(obj))
		return view_add(b, item, obj);
	if (!PyList_Check(obj) && !PyTuple_Check(obj)) {
		PyErr_SetString(PyExc_TypeError,
				"a value must be bytes or have the buffer protocol");
		return -1;
	}
	pieces = PySequence_Tuple(obj);
	if (!pieces)
		return -1;
	for (Py_ssize_t i = 0; i < PyTuple_Size(pieces) && rc == 0; i++)
		rc = view_add(b, item, PyTuple_GetItem(pieces, i));
	Py_DECREF(pieces);
	return rc;
}

int mc_py_batch_values(struct mc_py_batch *b, PyObject *values)
{
	PyObject *all = PySequence_Tuple(values);
	int rc;

	if (!all)
		return -1;
	rc = PyTuple_Size(all) == (Py_ssize_t)b->n ? 0 : 1;
	for (uint32_t i = 0; i < b->n && rc == 0; i++)
		rc = views_add(b, &b->items[i], PyTuple_GetItem(all, (Py_ssize_t)i));
	Py_DECREF(all);
	parts_settle(b);
	return rc;
}

/* ---- memory ---- */

int mc_py_number(PyObject *obj, void *ret)
{
	static const struct mc_py_sig sig = {.func = "Store", .name = {"number"}};

	return mc_py_u64(&sig, 0, obj, ret) == 0;
}

static const struct mc_py_sig sig_memory = {
    .func = "buffers",
    .total = 2,
    .name = {"buffer_ptrs", "sizes"},
};

#define NUMBERS_SMALL 64

/* All numbers of a sequence: addresses (arg 0) make parts, sizes (arg 1) fill in those from `first`
 * on. @return 0; 1: the lengths differ; -1 */
static int numbers_read(struct mc_py_batch *b, int arg, PyObject *obj, size_t first)
{
	uint64_t small[NUMBERS_SMALL], *nums = small;
	struct mc_py_seq seq;
	int rc;

	if (mc_py_seq_open(&sig_memory, arg, obj, &seq) < 0)
		return -1;
	rc = arg == 0 || seq.n == b->nparts - first ? 0 : 1;
	if (rc == 0 && seq.n > NUMBERS_SMALL) {
		nums = PyMem_Malloc(seq.n * sizeof(*nums));
		if (!nums) {
			PyErr_NoMemory();
			rc = -1;
		}
	}
	if (rc == 0)
		rc = mc_py_seq_read(&sig_memory, arg, &seq, nums, 1);
	for (size_t i = 0; i < seq.n && rc == 0; i++) {
		struct mc_store_part *part = arg == 0 ? part_add(b) : &b->parts[first + i];

		if (!part)
			rc = -1;
		else if (arg == 0)
			*part = (struct mc_store_part){.addr = (void *)(uintptr_t)nums[i]};
		else
			part->len = (size_t)nums[i];
	}
	if (nums && nums != small)
		PyMem_Free(nums);
	mc_py_seq_close(&seq);
	return rc;
}

/* [[address, …], …], [[size, …], …] */
static int nested_read(struct mc_py_batch *b, PyObject *ptrs, PyObject *sizes)
{
	PyObject *all[2] = {PySequence_Tuple(ptrs), NULL};
	int rc = all[0] ? 0 : -1;

	if (rc == 0)
		all[1] = PySequence_Tuple(sizes);
	if (!all[1])
		rc = -1;
	if (rc == 0 &&
	    (PyTuple_Size(all[0]) != (Py_ssize_t)b->n || PyTuple_Size(all[1]) != (Py_ssize_t)b->n))
		rc = 1;
	for (uint32_t i = 0; i < b->n && rc == 0; i++) {
		size_t first = b->nparts;

		for (int arg = 0; arg < 2 && rc == 0; arg++)
			rc = numbers_read(b, arg, PyTuple_GetItem(all[arg], (Py_ssize_t)i), first);
		b->items[i].nparts = (uint32_t)(b->nparts - first);
	}
	Py_XDECREF(all[0]);
	Py_XDECREF(all[1]);
	return rc;
}

static int is_nested(PyObject *ptrs)
{
	PyObject *first;
	int answer;

	if (!PyList_Check(ptrs) && !PyTuple_Check(ptrs))
		return 0;
	first = PySequence_Size(ptrs) > 0 ? PySequence_GetItem(ptrs, 0) : NULL;
	answer = first && !PyLong_Check(first) && PySequence_Check(first);
	Py_XDECREF(first);
	return answer;
}

int mc_py_batch_memory(struct mc_py_batch *b, PyObject *ptrs, PyObject *sizes)
{
	int rc = 0;

	if (is_nested(ptrs)) {
		rc = nested_read(b, ptrs, sizes);
	} else {
		for (int arg = 0; arg < 2 && rc == 0; arg++)
			rc = numbers_read(b, arg, arg == 0 ? ptrs : sizes, 0);
		if (rc == 0 && b->nparts != b->n)
			rc = 1;
		for (uint32_t i = 0; i < b->n; i++)
			b->items[i].nparts = 1;
	}
	if (rc == 0)
		parts_settle(b);
	return rc;
}

void mc_py_batch_close(struct mc_py_batch *b)
{
	for (size_t i = 0; i < b->nviews; i++)
		PyBuffer_Release(&b->views[i]);
	if (b->views && b->views != b->small_views)
		PyMem_Free(b->views);
	if (b->parts && b->parts != b->small_parts)
		PyMem_Free(b->parts);
	if (b->items && b->items != b->small_items)
		PyMem_Free(b->items);
	Py_CLEAR(b->keys);
}

/* ---- how objects are kept ---- */

/* UTF-8 texts of a sequence of str. @return 0; -1 with an exception */
static int texts_read(PyObject *obj, PyObject **ret_tuple, const char ***ret_texts, uint32_t *ret_n)
{
	PyObject *all = PySequence_Tuple(obj);
	Py_ssize_t n = all ? PyTuple_Size(all) : 0;

	*ret_tuple = all;
	*ret_n = (uint32_t)n;
	if (!all)
		return -1;
	if (n == 0)
		return 0;
	*ret_texts = PyMem_Calloc((size_t)n, sizeof(**ret_texts));
	if (!*ret_texts) {
		PyErr_NoMemory();
		return -1;
	}
	for (Py_ssize_t i = 0; i < n; i++) {
		(*ret_texts)[i] = PyUnicode_AsUTF8AndSize(PyTuple_GetItem(all, i), NULL);
		if (!(*ret_texts)[i])
			return -1;
	}
	return 0;
}

int mc_py_store_conf_open(struct mc_py_store_conf *c, PyObject *obj, uint32_t n)
{
	PyObject *segments, *groups;
	unsigned type, soft;
	uint64_t replicas, ttl;
	int hard, same;
	uint32_t ngroups = 0;

	*c = (struct mc_py_store_conf){.conf = {.size = sizeof(c->conf)}};
	if (obj == Py_None)
		return 0;
	if (!PyArg_ParseTuple(obj, "O&IIppO&OO", mc_py_number, &replicas, &type, &soft, &hard,
			      &same, mc_py_number, &ttl, &segments, &groups))
		return -1;
	/* 0 is the library's default, but upstream refuses it. */
	if (replicas == 0 || replicas > UINT32_MAX)
		return 1;
	c->conf.replicas = (uint32_t)replicas;
	c->conf.type = type;
	c->conf.soft_pin = (uint8_t)soft;
	c->conf.is_hard_pinned = hard;
	c->conf.wants_same_host = same;
	c->conf.soft_pin_ttl_ms = ttl;
	if (texts_read(segments, &c->segments, &c->segment_texts, &c->conf.nsegments) < 0)
		return -1;
	c->conf.segments = c->segment_texts;
	if (groups == Py_None)
		return 0;
	if (texts_read(groups, &c->groups, &c->group_texts, &ngroups) < 0)
		return -1;
	c->conf.groups = c->group_texts;
	return ngroups == n ? 0 : 1;
}

void mc_py_store_conf_close(struct mc_py_store_conf *c)
{
	PyMem_Free(c->segment_texts);
	PyMem_Free(c->group_texts);
	Py_XDECREF(c->segments);
	Py_XDECREF(c->groups);
}

/* ---- answers ---- */

#define LIST_OF(name, type)                                                                        \
	PyObject *name(const type *codes, uint32_t n)                                              \
	{                                                                                          \
		PyObject *list = PyList_New((Py_ssize_t)n);                                        \
                                                                                                   \
		for (uint32_t i = 0; list && i < n; i++) {                                         \
			PyObject *num = PyLong_FromLongLong(codes[i]);                             \
                                                                                                   \
			if (!num || PyList_SetItem(list, (Py_ssize_t)i, num) < 0)                  \
				Py_CLEAR(list);                                                    \
		}                                                                                  \
		return list;                                                                       \
	}
LIST_OF(mc_py_list32, int32_t)
LIST_OF(mc_py_list64, int64_t)
#undef LIST_OF

PyObject *mc_py_list_of(int code, uint32_t n)
{
	PyObject *one = Py_BuildValue("[i]", code), *list;

	list = one ? PySequence_Repeat(one, (Py_ssize_t)n) : NULL;
	Py_XDECREF(one);
	return list;
}
