/*
 * memory.c: registration, memory from the engine, and copies between Python bytes and addresses.
 *
 * The copies go through the kernel (process_vm_readv on ourselves), so that a wrong address is an
 * exception and not the end of the process; where that call is forbidden they are plain.
 */
#include "ext.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* ---- registration ---- */

static struct mc_py_sig sig_register = {
    .func = "register_memory",
    .required = 2,
    .total = 3,
    .name = {"buffer_addr", "capacity", "location"},
};

/* Answer of a call about one range; a failure names it. */
static PyObject *range_result(struct mc_py_engine *self, const char *func, int rc, uint64_t addr,
			      uint64_t len)
{
	struct mc_diag diag;

	if (rc < 0) {
		(void)PyOS_snprintf(diag.text, sizeof(diag.text), "%llu bytes at 0x%llx: %s",
				    (unsigned long long)len, (unsigned long long)addr,
				    mc_err_text(rc));
		mc_py_fail(self, func, rc, &diag);
	}
	return PyLong_FromLong(mc_py_code(rc));
}

static PyObject *py_register_memory(PyObject *obj, PyObject *const *args, Py_ssize_t n,
				    PyObject *kw)
{
	struct mc_py_engine *self = (struct mc_py_engine *)obj;
	PyObject *arg[MC_PY_PARAMS_MAX];
	const char *location;
	uint64_t addr, len;
	int rc;

	if (mc_py_args(&sig_register, args, n, kw, arg) < 0 ||
	    mc_py_u64(&sig_register, 0, arg[0], &addr) < 0 ||
	    mc_py_u64(&sig_register, 1, arg[1], &len) < 0 ||
	    mc_py_text_or(&sig_register, 2, arg[2], "*", &location) < 0)
		return NULL;
	if (!mc_py_ready(self, sig_register.func))
		return PyLong_FromLong(-1);
	Py_BEGIN_ALLOW_THREADS
	rc = mc_mem_reg(self->eng, (void *)(uintptr_t)addr, len, location,
			MC_MEM_REMOTE_READ | MC_MEM_REMOTE_WRITE);
	Py_END_ALLOW_THREADS
	return range_result(self, sig_register.func, rc, addr, len);
}

static struct mc_py_sig sig_unregister = {
    .func = "unregister_memory",
    .required = 1,
    .total = 1,
    .name = {"buffer_addr"},
};

static PyObject *py_unregister_memory(PyObject *obj, PyObject *const *args, Py_ssize_t n,
				      PyObject *kw)
{
	struct mc_py_engine *self = (struct mc_py_engine *)obj;
	PyObject *arg[MC_PY_PARAMS_MAX];
	uint64_t addr;
	int rc;

	if (mc_py_args(&sig_unregister, args, n, kw, arg) < 0 ||
	    mc_py_u64(&sig_unregister, 0, arg[0], &addr) < 0)
		return NULL;
	if (!mc_py_ready(self, sig_unregister.func))
		return PyLong_FromLong(-1);
	Py_BEGIN_ALLOW_THREADS
	rc = mc_mem_unreg(self->eng, (void *)(uintptr_t)addr);
	Py_END_ALLOW_THREADS
	return range_result(self, sig_unregister.func, rc, addr, 0);
}

static struct mc_py_sig sig_batch_register = {
    .func = "batch_register_memory",
    .required = 2,
    .total = 3,
    .name = {"buffer_addresses", "capacities", "location"},
};

/* Two sequences of the same length into ranges. @return 0; 1 when the lengths differ; -1 with an
 * exception. *ret_mem ends with PyMem_Free(). */
static int mem_args(const struct mc_py_sig *sig, PyObject **arg, struct mc_mem **ret_mem,
		    size_t *ret_n)
{
	struct mc_py_seq addrs, lens;
	struct mc_mem *mem = NULL;
	int rc = -1;

	_Static_assert(sizeof(struct mc_mem) == 16, "two words, read as such below");
	if (mc_py_seq_open(sig, 0, arg[0], &addrs) < 0)
		return -1;
	if (mc_py_seq_open(sig, 1, arg[1], &lens) < 0) {
		mc_py_seq_close(&addrs);
		return -1;
	}
	if (addrs.n != lens.n) {
		rc = 1;
		goto out;
	}
	mem = PyMem_Malloc((addrs.n ? addrs.n : 1) * sizeof(*mem));
	if (!mem) {
		PyErr_NoMemory();
		goto out;
	}
	if (mc_py_seq_read(sig, 0, &addrs, (uint64_t *)(void *)mem, 2) < 0 ||
	    mc_py_seq_read(sig, 1, &lens, (uint64_t *)(void *)mem + 1, 2) < 0) {
		PyMem_Free(mem);
		goto out;
	}
	*ret_mem = mem;
	*ret_n = addrs.n;
	rc = 0;
out:
	mc_py_seq_close(&addrs);
	mc_py_seq_close(&lens);
	return rc;
}

static PyObject *py_batch_register_memory(PyObject *obj, PyObject *const *args, Py_ssize_t n,
					  PyObject *kw)
{
	static const struct mc_diag differ = {
	    .text = "buffer_addresses and capacities have different lengths",
	};
	const struct mc_py_sig *sig = &sig_batch_register;
	struct mc_py_engine *self = (struct mc_py_engine *)obj;
	PyObject *arg[MC_PY_PARAMS_MAX];
	struct mc_mem *mem;
	const char *location;
	size_t count;
	int rc;

	if (mc_py_args(sig, args, n, kw, arg) < 0 ||
	    mc_py_text_or(sig, 2, arg[2], "*", &location) < 0)
		return NULL;
	rc = mem_args(sig, arg, &mem, &count);
	if (rc < 0)
		return NULL;
	if (rc > 0) {
		mc_py_fail(self, sig->func, -MC_E_INVAL, &differ);
		return PyLong_FromLong(-1);
	}
	rc = -MC_E_INVAL;
	if (mc_py_ready(self, sig->func)) {
		Py_BEGIN_ALLOW_THREADS
		rc = count ? mc_mem_reg_batch(self->eng, mem, count, location,
					      MC_MEM_REMOTE_READ | MC_MEM_REMOTE_WRITE)
			   : 0;
		Py_END_ALLOW_THREADS
		if (rc < 0)
			mc_py_fail(self, sig->func, rc, NULL);
	}
	PyMem_Free(mem);
	return PyLong_FromLong(mc_py_code(rc));
}

static struct mc_py_sig sig_batch_unregister = {
    .func = "batch_unregister_memory",
    .required = 1,
    .total = 1,
    .name = {"buffer_addresses"},
};

static PyObject *py_batch_unregister_memory(PyObject *obj, PyObject *const *args, Py_ssize_t n,
					    PyObject *kw)
{
	const struct mc_py_sig *sig = &sig_batch_unregister;
	struct mc_py_engine *self = (struct mc_py_engine *)obj;
	PyObject *arg[MC_PY_PARAMS_MAX];
	struct mc_py_seq addrs;
	uint64_t *addr;
	size_t count;
	int rc;

	_Static_assert(sizeof(void *) == sizeof(*addr), "addresses are read as numbers");
	if (mc_py_args(sig, args, n, kw, arg) < 0 || mc_py_seq_open(sig, 0, arg[0], &addrs) < 0)
		return NULL;
	count = addrs.n;
	addr = PyMem_Malloc((count ? count : 1) * sizeof(*addr));
	rc = addr ? mc_py_seq_read(sig, 0, &addrs, addr, 1) : -1;
	mc_py_seq_close(&addrs);
	if (rc < 0) {
		PyMem_Free(addr);
		return addr ? NULL : PyErr_NoMemory();
	}
	rc = -MC_E_INVAL;
	if (mc_py_ready(self, sig->func)) {
		Py_BEGIN_ALLOW_THREADS
		rc = count ? mc_mem_unreg_batch(self->eng, (void *const *)(void *)addr, count) : 0;
		Py_END_ALLOW_THREADS
		if (rc < 0)
			mc_py_fail(self, sig->func, rc, NULL);
	}
	PyMem_Free(addr);
	return PyLong_FromLong(mc_py_code(rc));
}

/* ---- memory from the engine ---- */

static struct mc_py_sig sig_alloc = {
    .func = "allocate_managed_buffer",
    .required = 1,
    .total = 1,
    .name = {"length"},
};

static PyObject *py_allocate_managed_buffer(PyObject *obj, PyObject *const *args, Py_ssize_t n,
					    PyObject *kw)
{
	struct mc_py_engine *self = (struct mc_py_engine *)obj;
	PyObject *arg[MC_PY_PARAMS_MAX];
	uint64_t len;
	void *addr;

	if (mc_py_args(&sig_alloc, args, n, kw, arg) < 0 ||
	    mc_py_u64(&sig_alloc, 0, arg[0], &len) < 0)
		return NULL;
	if (!mc_py_ready(self, sig_alloc.func))
		return PyLong_FromLong(0);
	Py_BEGIN_ALLOW_THREADS
	addr = mc_mem_alloc(self->eng, len);
	Py_END_ALLOW_THREADS
	if (!addr)
		mc_py_fail(self, sig_alloc.func, -MC_E_NOMEM, NULL);
	return PyLong_FromUnsignedLongLong((uintptr_t)addr);
}

static struct mc_py_sig sig_free = {
    .func = "free_managed_buffer",
    .required = 2,
    .total = 2,
    .name = {"buffer_addr", "length"},
};

static PyObject *py_free_managed_buffer(PyObject *obj, PyObject *const *args, Py_ssize_t n,
					PyObject *kw)
{
	struct mc_py_engine *self = (struct mc_py_engine *)obj;
	PyObject *arg[MC_PY_PARAMS_MAX];
	uint64_t addr, len; /* the engine knows the length, a wrong one does no harm */
	int rc;

	if (mc_py_args(&sig_free, args, n, kw, arg) < 0 ||
	    mc_py_u64(&sig_free, 0, arg[0], &addr) < 0 || mc_py_u64(&sig_free, 1, arg[1], &len) < 0)
		return NULL;
	if (!mc_py_ready(self, sig_free.func))
		return PyLong_FromLong(-1);
	Py_BEGIN_ALLOW_THREADS
	rc = mc_mem_free(self->eng, (void *)(uintptr_t)addr);
	Py_END_ALLOW_THREADS
	return range_result(self, sig_free.func, rc, addr, len);
}

/* ---- bytes ---- */

/*
 * Copy with the checks of the kernel. A signal or a page border may cut a call short, so it goes on
 * until a call moves nothing. @return 0 or -1: the addresses are not this process's
 */
static int copy_checked(void *dst, const void *src, size_t len)
{
	size_t done = 0;

	while (done < len) {
		struct iovec to = {(char *)dst + done, len - done};
		struct iovec from = {(char *)(uintptr_t)src + done, len - done};
		ssize_t moved = process_vm_readv(getpid(), &to, 1, &from, 1, 0);

		if (moved < 0 && (errno == ENOSYS || errno == EPERM)) {
			memcpy(to.iov_base, from.iov_base, to.iov_len);
			return 0;
		}
		if (moved <= 0)
			return -1;
		done += (size_t)moved;
	}
	return 0;
}

static PyObject *fail_address(const struct mc_py_sig *sig, int arg, uint64_t addr, uint64_t len)
{
	return PyErr_Format(PyExc_ValueError,
			    "%s(): argument '%s': %llu bytes at %p are not memory of this "
			    "process",
			    sig->func, sig->name[arg], (unsigned long long)len,
			    (void *)(uintptr_t)addr);
}

static struct mc_py_sig sig_write_bytes = {
    .func = "write_bytes_to_buffer",
    .required = 3,
    .total = 3,
    .name = {"dest_address", "src", "length"},
};

static PyObject *py_write_bytes_to_buffer(PyObject *obj, PyObject *const *args, Py_ssize_t n,
					  PyObject *kw)
{
	const struct mc_py_sig *sig = &sig_write_bytes;
	PyObject *arg[MC_PY_PARAMS_MAX];
	Py_buffer view = {.obj = NULL};
	const char *text;
	Py_ssize_t have;
	uint64_t addr, len;
	int rc;

	(void)obj;
	if (mc_py_args(sig, args, n, kw, arg) < 0 || mc_py_u64(sig, 0, arg[0], &addr) < 0 ||
	    mc_py_u64(sig, 2, arg[2], &len) < 0)
		return NULL;
	if (PyUnicode_Check(arg[1])) {
		text = PyUnicode_AsUTF8AndSize(arg[1], &have);
		if (!text)
			return NULL;
	} else {
		if (PyObject_GetBuffer(arg[1], &view, PyBUF_SIMPLE) < 0)
			return NULL;
		text = view.buf;
		have = view.len;
	}
	if (len > (uint64_t)have) {
		PyErr_Format(PyExc_ValueError,
			     "%s(): argument 'length' is %llu, but 'src' has %zd bytes", sig->func,
			     (unsigned long long)len, have);
		rc = -2;
	} else {
		Py_BEGIN_ALLOW_THREADS
		rc = copy_checked((void *)(uintptr_t)addr, text, len);
		Py_END_ALLOW_THREADS
	}
	PyBuffer_Release(&view); /* nothing to do for a str */
	if (rc == -1)
		return fail_address(sig, 0, addr, len);
	return rc < 0 ? NULL : PyLong_FromLong(0);
}

static struct mc_py_sig sig_read_bytes = {
    .func = "read_bytes_from_buffer",
    .required = 2,
    .total = 2,
    .name = {"src_address", "length"},
};

static PyObject *py_read_bytes_from_buffer(PyObject *obj, PyObject *const *args, Py_ssize_t n,
					   PyObject *kw)
{
	const struct mc_py_sig *sig = &sig_read_bytes;
	PyObject *arg[MC_PY_PARAMS_MAX], *bytes;
	uint64_t addr, len;
	char *dst;
	int rc;

	(void)obj;
	if (mc_py_args(sig, args, n, kw, arg) < 0 || mc_py_u64(sig, 0, arg[0], &addr) < 0 ||
	    mc_py_u64(sig, 1, arg[1], &len) < 0)
		return NULL;
	if (len > PY_SSIZE_T_MAX)
		return fail_address(sig, 0, addr, len);
	bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)len);
	dst = bytes ? PyBytes_AsString(bytes) : NULL;
	if (!dst)
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	rc = copy_checked(dst, (const void *)(uintptr_t)addr, len);
	Py_END_ALLOW_THREADS
	if (rc < 0) {
		Py_DECREF(bytes);
		return fail_address(sig, 0, addr, len);
	}
	return bytes;
}

PyMethodDef mc_py_memory_methods[] = {
    MC_PY_METHOD(register_memory, "register_memory($self, buffer_addr, capacity, "
				  "location='*')\n--\n\n"
				  "Let peers read and write a range. 0 or a negative code."),
    MC_PY_METHOD(unregister_memory, "unregister_memory($self, buffer_addr)\n--\n\n"
				    "End a registration; returns when no peer touches it."),
    MC_PY_METHOD(batch_register_memory,
		 "batch_register_memory($self, buffer_addresses, capacities, location='*')\n--\n\n"
		 "All or none, with one update of the metadata."),
    MC_PY_METHOD(batch_unregister_memory,
		 "batch_unregister_memory($self, buffer_addresses)\n--\n\n"
		 "End several registrations. 0 or the first negative code."),
    MC_PY_METHOD(allocate_managed_buffer,
		 "allocate_managed_buffer($self, length)\n--\n\n"
		 "Registered memory from the engine: its address, 0 when there is none."),
    MC_PY_METHOD(free_managed_buffer, "free_managed_buffer($self, buffer_addr, length)\n--\n\n"
				      "Give it back. 0 or a negative code."),
    MC_PY_METHOD(write_bytes_to_buffer,
		 "write_bytes_to_buffer($self, dest_address, src, length)\n--\n\n"
		 "Copy length bytes of src to an address of this process. 0."),
    MC_PY_METHOD(read_bytes_from_buffer,
		 "read_bytes_from_buffer($self, src_address, length)\n--\n\n"
		 "Bytes at an address of this process."),
    {NULL, NULL, 0, NULL},
};

int mc_py_memory_ready(void)
{
	struct mc_py_sig *all[] = {
	    &sig_register, &sig_unregister, &sig_batch_register, &sig_batch_unregister,
	    &sig_alloc,	   &sig_free,	    &sig_write_bytes,	 &sig_read_bytes,
	};

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		if (mc_py_sig_ready(all[i]) < 0)
			return -1;
	return 0;
}
