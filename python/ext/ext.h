/*
 * ext.h: what the files of the extension module mooncake._mooncake share.
 *
 * The module is the engine's face for Python: limited API of CPython 3.11, so one binary serves
 * every later version. Rules: the GIL is released around every call of the engine that may wait;
 * a wrong type or a number out of range is an exception that names the argument; everything that
 * can go wrong at run time is upstream's return code plus a text (last_error() and one warning).
 */
#ifndef MC_PYTHON_EXT_H
#define MC_PYTHON_EXT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <mooncake/engine.h>

#define MC_PY_PARAMS_MAX 8

/* *slot = a new reference to obj; the old object may run code as it goes, so it goes last. */
static inline void mc_py_set(PyObject **slot, PyObject *obj)
{
	PyObject *old = *slot;

	*slot = Py_NewRef(obj);
	Py_XDECREF(old);
}

/* ---- arguments: convert.c ---- */

/** How a method is called. Filled at compile time but for `interned`, which sig_ready() makes. */
struct mc_py_sig {
	const char *func;
	int required, total;
	const char *name[MC_PY_PARAMS_MAX];
	PyObject *interned[MC_PY_PARAMS_MAX]; /* owned, live as long as the module */
};

/** Intern the names. @return 0; -1 with an exception */
int mc_py_sig_ready(struct mc_py_sig *sig);
/**
 * Sort positional and keyword arguments into ret[0 … total); missing ones are NULL. Borrowed.
 * @return 0; -1 with a TypeError
 */
int mc_py_args(const struct mc_py_sig *sig, PyObject *const *args, Py_ssize_t n, PyObject *kwnames,
	       PyObject **ret);

/** An int (or what has __index__) in [0, 2^64). @return 0; -1 with a TypeError or OverflowError */
int mc_py_u64(const struct mc_py_sig *sig, int arg, PyObject *obj, uint64_t *ret);
/** UTF-8 text without zeros that lives as long as obj; NULL with an exception otherwise. */
const char *mc_py_text(const struct mc_py_sig *sig, int arg, PyObject *obj);
/** Like mc_py_text(); None and NULL are `instead`. @return 0; -1 with an exception */
int mc_py_text_or(const struct mc_py_sig *sig, int arg, PyObject *obj, const char *instead,
		  const char **ret);
/** TransferOpcode or the same number. @return 0; -1 with an exception */
int mc_py_op(const struct mc_py_sig *sig, int arg, PyObject *obj, uint8_t *ret);

/** A sequence of ints, opened: length first, numbers later. A list or tuple is read in place. */
struct mc_py_seq {
	PyObject *obj; /* list, tuple, or NULL when `view` holds a buffer; owned */
	Py_buffer view;
	int is_list, is_signed;
	size_t n;
};

/** @return 0 (end with mc_py_seq_close()); -1 with a TypeError */
int mc_py_seq_open(const struct mc_py_sig *sig, int arg, PyObject *obj, struct mc_py_seq *ret);
/** Write the n numbers to dst[0], dst[stride], … @return 0; -1 with an exception */
int mc_py_seq_read(const struct mc_py_sig *sig, int arg, struct mc_py_seq *seq, uint64_t *dst,
		   size_t stride);
void mc_py_seq_close(struct mc_py_seq *seq);

/* ---- the module: module.c ---- */

/** Make a type and put it into the module. @return the type, borrowed from the module; NULL with an
 * exception */
PyObject *mc_py_type_add(PyObject *module, const char *name, PyType_Spec *spec);
/** Join tables of methods, each ended by zeros, as the type's: slots has a Py_tp_methods.
 * @return 0; -1 with an exception */
int mc_py_methods_set(PyType_Slot *slots, const PyMethodDef *const *tables, size_t ntables);
/** The types of coll.c. @return 0; -1 with an exception */
int mc_py_coll_ready(PyObject *module);
int mc_py_ep_ready(PyObject *module);
int mc_py_ep_cuda_ready(PyObject *module);

/* ---- the object: object.c ---- */

/** TransferEngine. The GIL guards every field; `eng` is written once, by initialize(). */
struct mc_py_engine {
	PyObject_HEAD PyObject *weakrefs;
	struct mc_engine *eng; /* NULL before initialize() */
	int is_opening;	       /* a thread is inside initialize() */
	PyObject *segments;    /* dict: name -> segment id; owned */
	PyObject *last_error;  /* str or NULL; owned */
};

/**
 * Remember and, when it is news, log what went wrong: "<func>: <diag or text of rc>". Clears
 * nothing and raises nothing.
 */
void mc_py_fail(struct mc_py_engine *self, const char *func, int rc, const struct mc_diag *diag);
/** The engine, or NULL after mc_py_fail("… initialize() first"). */
struct mc_engine *mc_py_ready(struct mc_py_engine *self, const char *func);
/**
 * Id of a segment by its name, from the object's cache or by opening it (GIL released).
 * @return 0; -MC_E_… (reported through mc_py_fail()); -MC_E_COUNT with an exception
 */
int mc_py_segment(struct mc_py_engine *self, const struct mc_py_sig *sig, int arg, PyObject *name,
		  int32_t *ret_segment);
/** Number of upstream's int APIs for an engine code. 0 stays 0. */
int mc_py_code(int rc);

/* ---- tables of methods, joined into the type by module.c ---- */

#define MC_PY_METHOD(fn, doc)                                                                      \
	{                                                                                          \
#fn, (PyCFunction)(void (*)(void))py_##fn, METH_FASTCALL | METH_KEYWORDS, doc      \
	}

extern PyMethodDef mc_py_object_methods[];   /* object.c: life, names, topology */
extern PyMethodDef mc_py_memory_methods[];   /* memory.c */
extern PyMethodDef mc_py_transfer_methods[]; /* transfer.c */
int mc_py_object_ready(void);
int mc_py_memory_ready(void);
int mc_py_transfer_ready(void);

extern PyType_Spec mc_py_inner_spec;
/** The type made from mc_py_inner_spec; set by module.c. */
extern PyObject *mc_py_inner_type;
/** What mooncake.engine gave to _bind(): class TransferNotify, and a function that logs a warning.
 */
extern PyObject *mc_py_notify_type, *mc_py_warn;

PyObject *mc_py_engine_new(PyTypeObject *type, PyObject *args, PyObject *kwargs);
int mc_py_engine_init(PyObject *obj, PyObject *args, PyObject *kwargs);
void mc_py_engine_dealloc(PyObject *obj);

#endif
