/*
 * coll_ext.h: what objects that live on a group (Coll, EpBuffer) share.
 */
#ifndef MC_PYTHON_COLL_EXT_H
#define MC_PYTHON_COLL_EXT_H

#include "ext.h"

#include <mooncake/coll.h>

/** The group of a Coll: ended by whoever leaves it last. The GIL guards n. */
struct mc_py_uses {
	struct mc_coll *coll;
	PyObject *hub; /* owned */
	size_t n;
};

/** One use more of a Coll's group. @return NULL with an exception: no Coll, or it is closed */
struct mc_py_uses *mc_py_coll_use(PyObject *coll);
/** The GIL is released where this was the last. */
void mc_py_coll_unuse(struct mc_py_uses *u);
/** The end of an object of a type that was made from a spec. */
void mc_py_free_object(PyObject *obj);

#endif
