/*
 * store_ext.h: what the files of the extension share about the Store.
 *
 * _mooncake.Store is the thin half of mooncake.store.MooncakeDistributedStore: it takes batches
 * only, by position, and answers with lists of upstream's codes; names, defaults and single forms
 * are Python's (mooncake/store.py). The GIL is released around every call of the library.
 */
#ifndef MC_PYTHON_STORE_EXT_H
#define MC_PYTHON_STORE_EXT_H

#include "ext.h"

#include <mooncake/store.h>

/** The GIL guards every field. Who is inside a call holds a use; the last one ends the store. */
struct mc_py_store {
	PyObject_HEAD PyObject *weakrefs;
	struct mc_py_store_uses *uses; /* one of its uses is ours; NULL: not open */
};

/** Counts the calls under way on one open store; freed by the last. */
struct mc_py_store_uses {
	struct mc_store *store;
	size_t n;
};

/** Hold the store open for a call. @return NULL without an exception when it is not open. */
struct mc_py_store_uses *mc_py_store_use(struct mc_py_store *self);
/** GIL held; may release it for a while. */
void mc_py_store_unuse(struct mc_py_store_uses *uses);

/* ---- batches: store_batch.c ---- */

#define MC_PY_BATCH_SMALL 4 /* objects and pieces that need no allocation */

/** Keys with the memory of each, ready for the library. Zero it, end with mc_py_batch_close(). */
struct mc_py_batch {
	PyObject *keys; /* tuple of str or bytes: keeps the texts alive; owned */
	uint32_t n;
	struct mc_store_item *items;
	struct mc_store_part *parts;
	size_t nparts, parts_cap;
	Py_buffer *views; /* held until close */
	size_t nviews, views_cap;
	struct mc_store_item small_items[MC_PY_BATCH_SMALL];
	struct mc_store_part small_parts[MC_PY_BATCH_SMALL];
	Py_buffer small_views[MC_PY_BATCH_SMALL];
};

/** For "O&" of PyArg_ParseTuple(): as mc_py_u64(). @param ret  uint64_t */
int mc_py_number(PyObject *obj, void *ret);
/** A sequence of str or bytes; items get their keys. @return 0; -1 with an exception */
int mc_py_batch_keys(struct mc_py_batch *b, PyObject *keys);
/** Values: of each key one object with the buffer protocol, or a sequence of such. @return 0; 1: as
 * many values as keys there are not; -1 with an exception */
int mc_py_batch_values(struct mc_py_batch *b, PyObject *values);
/** Memory: of each key an address and a size, or a sequence of both. @return as above */
int mc_py_batch_memory(struct mc_py_batch *b, PyObject *ptrs, PyObject *sizes);
void mc_py_batch_close(struct mc_py_batch *b);

/** (replica_num, data_type, soft_pin, hard_pin, same_host, ttl_ms, segments, groups), or None. */
struct mc_py_store_conf {
	struct mc_store_conf conf;
	PyObject *segments, *groups; /* tuples; owned */
	const char **segment_texts, **group_texts;
};
/** @param n  keys of the call. @return 0; 1: a length is wrong; -1 with an exception */
int mc_py_store_conf_open(struct mc_py_store_conf *c, PyObject *obj, uint32_t n);
void mc_py_store_conf_close(struct mc_py_store_conf *c);

/** list of n ints. NULL with an exception. */
PyObject *mc_py_list32(const int32_t *codes, uint32_t n);
PyObject *mc_py_list64(const int64_t *codes, uint32_t n);
/** list of n times this code. */
PyObject *mc_py_list_of(int code, uint32_t n);

/* ---- memory that Python holds: store_buffer.c ---- */

extern PyType_Spec mc_py_handle_spec;
extern PyObject *mc_py_handle_type; /* made by module.c */
/** A BufferHandle of `len` bytes, not yet written. @param ret_mem  its memory. NULL with an
 * exception. */
PyObject *mc_py_handle_new(size_t len, void **ret_mem);

extern PyType_Spec mc_py_lease_spec; /* store_lease.c */

extern PyType_Spec mc_py_store_spec; /* store.c */
/** Join the tables of methods. Before the type is made. @return 0; -1 with an exception */
int mc_py_store_ready(void);
extern PyMethodDef mc_py_store_data_methods[]; /* store_data.c */
extern PyMethodDef mc_py_store_task_methods[]; /* store_tasks.c */

#endif
