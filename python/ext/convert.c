/*
 * convert.c: from Python arguments to C numbers and texts, fast for what engines pass.
 *
 * vLLM and SGLang hand over three lists of exact ints; a list of 128 is read in about a
 * microsecond. Everything else that is a sequence of ints works too: tuples, numpy scalars
 * (__index__), and arrays of 64-bit integers through the buffer protocol without an object an item.
 */
#include "ext.h"

#include <string.h>

int mc_py_sig_ready(struct mc_py_sig *sig)
{
	for (int i = 0; i < sig->total; i++) {
		sig->interned[i] = PyUnicode_InternFromString(sig->name[i]);
		if (!sig->interned[i])
			return -1;
	}
	return 0;
}

static int arg_index(const struct mc_py_sig *sig, PyObject *key)
{
	for (int i = 0; i < sig->total; i++)
		if (sig->interned[i] == key)
			return i;
	for (int i = 0; i < sig->total; i++)
		if (PyUnicode_Compare(sig->interned[i], key) == 0)
			return i;
	PyErr_Format(PyExc_TypeError, "%s(): no argument is named '%U'", sig->func, key);
	return -1;
}

int mc_py_args(const struct mc_py_sig *sig, PyObject *const *args, Py_ssize_t n, PyObject *kwnames,
	       PyObject **ret)
{
	Py_ssize_t n_kw = kwnames ? PyTuple_Size(kwnames) : 0;

	if (n > sig->total) {
		PyErr_Format(PyExc_TypeError, "%s() takes at most %d arguments, %zd given",
			     sig->func, sig->total, n);
		return -1;
	}
	for (int i = 0; i < sig->total; i++)
		ret[i] = i < n ? args[i] : NULL;
	for (Py_ssize_t i = 0; i < n_kw; i++) {
		int at = arg_index(sig, PyTuple_GetItem(kwnames, i));

		if (at < 0)
			return -1;
		if (ret[at]) {
			PyErr_Format(PyExc_TypeError, "%s(): argument '%s' is given twice",
				     sig->func, sig->name[at]);
			return -1;
		}
		ret[at] = args[n + i];
	}
	for (int i = 0; i < sig->required; i++) {
		if (ret[i])
			continue;
		PyErr_Format(PyExc_TypeError, "%s(): argument '%s' is missing", sig->func,
			     sig->name[i]);
		return -1;
	}
	return 0;
}

/* The name of an object's type, for messages. New reference or NULL without an exception. */
static PyObject *type_name(PyObject *obj)
{
	PyObject *name = PyType_GetName(Py_TYPE(obj));

	if (!name)
		PyErr_Clear();
	return name;
}

/* item < 0: the argument itself. */
static int fail_type(const struct mc_py_sig *sig, int arg, Py_ssize_t item, const char *want,
		     PyObject *obj)
{
	PyObject *got = type_name(obj);

	if (item < 0)
		PyErr_Format(PyExc_TypeError, "%s(): argument '%s' must be %s, not %V", sig->func,
			     sig->name[arg], want, got, "?");
	else
		PyErr_Format(PyExc_TypeError, "%s(): argument '%s'[%zd] must be %s, not %V",
			     sig->func, sig->name[arg], item, want, got, "?");
	Py_XDECREF(got);
	return -1;
}

static int fail_range(const struct mc_py_sig *sig, int arg, Py_ssize_t item)
{
	if (item < 0)
		PyErr_Format(PyExc_OverflowError, "%s(): argument '%s' is not in [0, 2**64)",
			     sig->func, sig->name[arg]);
	else
		PyErr_Format(PyExc_OverflowError, "%s(): argument '%s'[%zd] is not in [0, 2**64)",
			     sig->func, sig->name[arg], item);
	return -1;
}

/* The long way: what is no int but has __index__, and every error. */
static int u64_slow(const struct mc_py_sig *sig, int arg, Py_ssize_t item, PyObject *obj,
		    uint64_t *ret)
{
	PyObject *num;
	uint64_t value;

	PyErr_Clear();
	num = PyNumber_Index(obj);
	if (!num) {
		if (!PyErr_ExceptionMatches(PyExc_TypeError))
			return -1;
		PyErr_Clear();
		return fail_type(sig, arg, item, "an int", obj);
	}
	value = PyLong_AsUnsignedLongLong(num);
	Py_DECREF(num);
	if (value == UINT64_MAX && PyErr_Occurred()) {
		PyErr_Clear();
		return fail_range(sig, arg, item);
	}
	*ret = value;
	return 0;
}

/*
 * PyLong_AsUnsignedLong() walks the digits; the long long form goes through a byte array and takes
 * five times as long for an address.
 */
_Static_assert(sizeof(long) == 8, "a C long holds an address and a length");

static inline int u64_item(const struct mc_py_sig *sig, int arg, Py_ssize_t item, PyObject *obj,
			   uint64_t *ret)
{
	uint64_t value;

	if (PyLong_CheckExact(obj)) {
		value = PyLong_AsUnsignedLong(obj);
		if (value != UINT64_MAX || !PyErr_Occurred()) {
			*ret = value;
			return 0;
		}
	}
	return u64_slow(sig, arg, item, obj, ret);
}

int mc_py_u64(const struct mc_py_sig *sig, int arg, PyObject *obj, uint64_t *ret)
{
	return u64_item(sig, arg, -1, obj, ret);
}

const char *mc_py_text(const struct mc_py_sig *sig, int arg, PyObject *obj)
{
	Py_ssize_t len;
	const char *text;

	if (!PyUnicode_Check(obj)) {
		fail_type(sig, arg, -1, "a str", obj);
		return NULL;
	}
	text = PyUnicode_AsUTF8AndSize(obj, &len);
	if (text && strlen(text) != (size_t)len) {
		PyErr_Format(PyExc_ValueError, "%s(): argument '%s' contains a zero character",
			     sig->func, sig->name[arg]);
		return NULL;
	}
	return text;
}

int mc_py_text_or(const struct mc_py_sig *sig, int arg, PyObject *obj, const char *instead,
		  const char **ret)
{
	const char *text = instead;

	if (obj && obj != Py_None) {
		text = mc_py_text(sig, arg, obj);
		if (!text)
			return -1;
	}
	*ret = text;
	return 0;
}

int mc_py_op(const struct mc_py_sig *sig, int arg, PyObject *obj, uint8_t *ret)
{
	long op;

	if (!PyLong_Check(obj))
		return fail_type(sig, arg, -1, "a TransferOpcode", obj);
	op = PyLong_AsLong(obj);
	if (op != MC_READ && op != MC_WRITE) {
		PyErr_Clear();
		PyErr_Format(PyExc_ValueError,
			     "%s(): argument '%s' is neither TransferOpcode.Read nor .Write",
			     sig->func, sig->name[arg]);
		return -1;
	}
	*ret = (uint8_t)op;
	return 0;
}

/* A one-dimensional buffer of native 64-bit integers? @return 1, seq->view held; 0 without an
 * exception */
static int seq_try_buffer(PyObject *obj, struct mc_py_seq *seq)
{
	const char *format;

	if (!PyObject_CheckBuffer(obj))
		return 0;
	if (PyObject_GetBuffer(obj, &seq->view, PyBUF_ND | PyBUF_FORMAT) < 0) {
		PyErr_Clear();
		return 0;
	}
	format = seq->view.format ? seq->view.format : "B";
	if (*format == '@' || *format == '=' || *format == '<')
		format++;
	if (seq->view.ndim == 1 && seq->view.itemsize == 8 && strchr("QLqlNn", *format) &&
	    *format && !format[1]) {
		seq->is_signed = strchr("qln", *format) != NULL;
		seq->n = (size_t)seq->view.len / 8;
		return 1;
	}
	PyBuffer_Release(&seq->view);
	return 0;
}

int mc_py_seq_open(const struct mc_py_sig *sig, int arg, PyObject *obj, struct mc_py_seq *ret)
{
	ret->obj = NULL;
	ret->is_list = 1;
	if (PyList_Check(obj) || PyTuple_Check(obj)) {
		ret->obj = Py_NewRef(obj);
		ret->is_list = PyList_Check(obj);
		ret->n = (size_t)(ret->is_list ? PyList_Size(obj) : PyTuple_Size(obj));
		return 0;
	}
	if (PyUnicode_Check(obj) || PyBytes_Check(obj) || PyByteArray_Check(obj) ||
	    !PySequence_Check(obj))
		return fail_type(sig, arg, -1, "a sequence of ints", obj);
	if (seq_try_buffer(obj, ret))
		return 0;
	ret->obj = PySequence_List(obj);
	if (!ret->obj) {
		if (!PyErr_ExceptionMatches(PyExc_TypeError))
			return -1;
		PyErr_Clear();
		return fail_type(sig, arg, -1, "a sequence of ints", obj);
	}
	ret->n = (size_t)PyList_Size(ret->obj);
	return 0;
}

static int seq_read_buffer(const struct mc_py_sig *sig, int arg, struct mc_py_seq *seq,
			   uint64_t *dst, size_t stride)
{
	const char *src = seq->view.buf;

	for (size_t i = 0; i < seq->n; i++) {
		uint64_t value;

		memcpy(&value, src + i * 8, 8);
		if (seq->is_signed && value >> 63)
			return fail_range(sig, arg, (Py_ssize_t)i);
		dst[i * stride] = value;
	}
	return 0;
}

int mc_py_seq_read(const struct mc_py_sig *sig, int arg, struct mc_py_seq *seq, uint64_t *dst,
		   size_t stride)
{
	if (!seq->obj)
		return seq_read_buffer(sig, arg, seq, dst, stride);
	for (size_t i = 0; i < seq->n; i++) {
		Py_ssize_t at = (Py_ssize_t)i;
		PyObject *item =
		    seq->is_list ? PyList_GetItem(seq->obj, at) : PyTuple_GetItem(seq->obj, at);
		int rc;

		if (!item) /* an __index__ shortened the list */
			return -1;
		if (PyLong_CheckExact(item)) {
			rc = u64_item(sig, arg, at, item, &dst[i * stride]);
		} else {
			Py_INCREF(item); /* its __index__ may drop it from the list */
			rc = u64_slow(sig, arg, at, item, &dst[i * stride]);
			Py_DECREF(item);
		}
		if (rc < 0)
			return -1;
	}
	return 0;
}

void mc_py_seq_close(struct mc_py_seq *seq)
{
	if (seq->obj)
		Py_CLEAR(seq->obj);
	else
		PyBuffer_Release(&seq->view);
}
