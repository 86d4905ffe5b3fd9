/*
 * transfer.c: the calls that move bytes.
 *
 * A call becomes one group: one transfer for up to MC_IOV_MAX ranges, more beyond. Small calls
 * build it on the stack. A synchronous call that meets a stale segment id (the segment was closed
 * in between) opens the segment anew, once.
 */
#include "ext.h"

#include <stdbool.h>
#include <string.h>
#include <time.h>

#define STACK_RANGES 128
#define WAIT_SLICE_NS 1000000000ull /* between looks at signals */
#define AGAIN_NS_MIN 50000l	    /* back-pressure: first pause, doubled up to … */
#define AGAIN_NS_MAX 4000000l
#define AGAIN_TRIES_MAX 256 /* … about a second in all */

/* One call's group and all it points to. Lives on the stack; job_fini() when job_init() was called.
 */
struct job {
	struct mc_group group;
	struct mc_transfer *transfer; /* first_transfer or allocated */
	struct mc_iov *local, *remote;
	struct mc_notify notify;
	PyObject *name, *msg; /* bytes that notify points into; owned */
	void *heap;	      /* owned */
	struct mc_transfer first_transfer;
	struct mc_iov stack[2 * STACK_RANGES];
};

/* Room for n ranges. @return 0; -1 with a MemoryError */
static int job_init(struct job *job, uint8_t op, size_t n)
{
	size_t n_transfers = n ? (n + MC_IOV_MAX - 1) / MC_IOV_MAX : 1;

	memset(job, 0, offsetof(struct job, first_transfer));
	job->transfer = &job->first_transfer;
	job->local = job->stack;
	job->remote = job->stack + STACK_RANGES;
	if (n > STACK_RANGES) {
		size_t ranges = 2 * n * sizeof(struct mc_iov);
		char *heap;

		if (n > PY_SSIZE_T_MAX / 64) {
			PyErr_NoMemory();
			return -1;
		}
		heap = PyMem_Malloc(ranges + n_transfers * sizeof(struct mc_transfer));
		if (!heap) {
			PyErr_NoMemory();
			return -1;
		}
		job->heap = heap;
		job->local = (struct mc_iov *)(void *)heap;
		job->remote = job->local + n;
		job->transfer = (struct mc_transfer *)(void *)(heap + ranges);
	}
	for (size_t i = 0; i < n_transfers; i++) {
		size_t first = i * MC_IOV_MAX;
		uint32_t count = (uint32_t)(n - first < MC_IOV_MAX ? n - first : MC_IOV_MAX);

		job->transfer[i] = (struct mc_transfer){
		    .op = op,
		    .nlocal = count,
		    .nremote = count,
		    .local = job->local + first,
		    .remote = job->remote + first,
		};
	}
	job->group = (struct mc_group){
	    .size = sizeof(job->group),
	    .n = (uint32_t)n_transfers,
	    .transfers = job->transfer,
	    .priority = MC_PRIO_NORMAL,
	};
	return 0;
}

static void job_fini(struct job *job)
{
	PyMem_Free(job->heap);
	Py_XDECREF(job->name);
	Py_XDECREF(job->msg);
}

static void job_aim(struct job *job, int32_t segment)
{
	for (uint32_t i = 0; i < job->group.n; i++)
		job->transfer[i].segment = segment;
}

/* ---- arguments ---- */

/* Attribute of a TransferNotify as bytes. NULL with an exception. */
static PyObject *notify_part(const struct mc_py_sig *sig, PyObject *notify, const char *attr)
{
	PyObject *value = PyObject_GetAttrString(notify, attr), *bytes;

	if (!value || PyBytes_CheckExact(value))
		return value;
	if (!PyUnicode_Check(value)) {
		PyErr_Format(PyExc_TypeError, "%s(): 'notify.%s' must be a str", sig->func, attr);
		Py_DECREF(value);
		return NULL;
	}
	bytes = PyUnicode_AsEncodedString(value, "utf-8", "surrogateescape");
	Py_DECREF(value);
	return bytes;
}

/* @return 0; -1 with an exception. NULL and None: no message. */
static int job_notify(struct job *job, const struct mc_py_sig *sig, PyObject *notify)
{
	Py_ssize_t name_len, msg_len;
	char *name, *msg;
	int is_one;

	if (!notify || notify == Py_None)
		return 0;
	is_one = PyObject_IsInstance(notify, mc_py_notify_type);
	if (is_one < 0)
		return -1;
	if (!is_one) {
		PyErr_Format(PyExc_TypeError,
			     "%s(): argument 'notify' must be a TransferNotify or None", sig->func);
		return -1;
	}
	job->name = notify_part(sig, notify, "name");
	job->msg = job->name ? notify_part(sig, notify, "msg") : NULL;
	if (!job->msg || PyBytes_AsStringAndSize(job->name, &name, &name_len) < 0 ||
	    PyBytes_AsStringAndSize(job->msg, &msg, &msg_len) < 0)
		return -1;
	if (name_len > MC_NOTIFY_MAX || msg_len > MC_NOTIFY_MAX - name_len) {
		PyErr_Format(PyExc_ValueError,
			     "%s(): argument 'notify': name and msg have more than %u bytes",
			     sig->func, MC_NOTIFY_MAX);
		return -1;
	}
	job->notify = (struct mc_notify){
	    .name = name,
	    .msg = msg,
	    .name_len = (uint32_t)name_len,
	    .msg_len = (uint32_t)msg_len,
	};
	job->group.notify = &job->notify;
	return 0;
}

/* A hint names a transport of other builds; here it is checked for its type and ignored. */
static int hint_check(const struct mc_py_sig *sig, int arg, PyObject *hint)
{
	return hint && !mc_py_text(sig, arg, hint) ? -1 : 0;
}

static int single_args(struct job *job, const struct mc_py_sig *sig, PyObject **arg)
{
	uint64_t len;

	if (mc_py_u64(sig, 1, arg[1], &job->local[0].addr) < 0 ||
	    mc_py_u64(sig, 2, arg[2], &job->remote[0].addr) < 0 ||
	    mc_py_u64(sig, 3, arg[3], &len) < 0)
		return -1;
	job->local[0].len = job->remote[0].len = len;
	return 0;
}

/*
 * The three sequences of a batch call.
 * @return 0, the job is made; 1 when their lengths differ; -1 with an exception
 */
static int batch_args(struct job *job, const struct mc_py_sig *sig, PyObject **arg, uint8_t op)
{
	struct mc_py_seq seq[3];
	int open = 0, rc = -1;

	_Static_assert(sizeof(struct mc_iov) == 16, "two words, read as such below");
	for (; open < 3; open++)
		if (mc_py_seq_open(sig, open + 1, arg[open + 1], &seq[open]) < 0)
			goto out;
	if (seq[0].n != seq[1].n || seq[0].n != seq[2].n) {
		rc = 1;
		goto out;
	}
	if (job_init(job, op, seq[0].n) < 0)
		goto out;
	if (mc_py_seq_read(sig, 1, &seq[0], &job->local->addr, 2) < 0 ||
	    mc_py_seq_read(sig, 2, &seq[1], &job->remote->addr, 2) < 0 ||
	    mc_py_seq_read(sig, 3, &seq[2], &job->local->len, 2) < 0) {
		job_fini(job);
		goto out;
	}
	for (size_t i = 0; i < seq[0].n; i++)
		job->remote[i].len = job->local[i].len;
	rc = 0;
out:
	while (open-- > 0)
		mc_py_seq_close(&seq[open]);
	return rc;
}

/* ---- running ---- */

/* Forget a cached id. Never leaves an exception. */
static void segment_forget(struct mc_py_engine *self, PyObject *target)
{
	if (PyDict_DelItem(self->segments, target) < 0)
		PyErr_Clear();
}

/* mc_submit() with patience: too many groups under way is back-pressure. Without the GIL. */
static int submit_patient(struct mc_engine *eng, const struct mc_group *group, uint64_t *ret_id)
{
	struct timespec pause = {.tv_nsec = AGAIN_NS_MIN};
	int rc = mc_submit(eng, group, ret_id);

	for (int i = 0; rc == -MC_E_AGAIN && i < AGAIN_TRIES_MAX; i++) {
		(void)nanosleep(&pause, NULL);
		if (pause.tv_nsec < AGAIN_NS_MAX)
			pause.tv_nsec *= 2;
		rc = mc_submit(eng, group, ret_id);
	}
	return rc;
}

/*
 * Move and wait (ret_id NULL), or start.
 * @return 0; -MC_E_…, reported; -MC_E_COUNT with an exception
 */
static int job_run(struct mc_py_engine *self, const struct mc_py_sig *sig, PyObject *target,
		   struct job *job, uint64_t *ret_id)
{
	struct mc_diag diag;
	int32_t segment;
	int rc;

	for (int tries = 0;; tries++) {
		rc = mc_py_segment(self, sig, 0, target, &segment);
		if (rc < 0)
			return rc;
		job_aim(job, segment);
		diag.text[0] = '\0';
		Py_BEGIN_ALLOW_THREADS
		rc = ret_id ? submit_patient(self->eng, &job->group, ret_id)
			    : mc_transfer_sync(self->eng, &job->group, &diag);
		Py_END_ALLOW_THREADS
		if (rc != -MC_E_STALE || tries > 0)
			break;
		segment_forget(self, target);
	}
	if (rc < 0)
		mc_py_fail(self, sig->func, rc, &diag);
	return rc;
}

/* ---- the calls ---- */

#define ARG_NONE 0 /* argument 0 is always the target */
#define OP_ARG 255

/* One method: how it is called, and what of the arguments means what. */
struct call {
	struct mc_py_sig sig;
	uint8_t op;    /* OP_ARG: argument 4 says it */
	bool is_batch; /* arguments 1 to 3 are sequences */
	bool is_async;
	uint8_t notify, hint; /* which argument, or ARG_NONE */
};

#define RANGE_NAMES "target_hostname", "buffer", "peer_buffer_address", "length"
#define RANGES_NAMES "target_hostname", "buffers", "peer_buffer_addresses", "lengths"
#define SIG(func_, required_, total_, ...)                                                         \
	{                                                                                          \
		.func = func_, .required = required_, .total = total_, .name = {__VA_ARGS__},      \
	}

static struct call transfer_sync_write = {
    .sig = SIG("transfer_sync_write", 4, 5, RANGE_NAMES, "transport_hint"),
    .op = MC_WRITE,
    .hint = 4,
};

static struct call transfer_sync_read = {
    .sig = SIG("transfer_sync_read", 4, 5, RANGE_NAMES, "transport_hint"),
    .op = MC_READ,
    .hint = 4,
};

static struct call transfer_submit_write = {
    .sig = SIG("transfer_submit_write", 4, 5, RANGE_NAMES, "transport_hint"),
    .op = MC_WRITE,
    .is_async = true,
    .hint = 4,
};

static struct call transfer_sync = {
    .sig = SIG("transfer_sync", 5, 7, RANGE_NAMES, "opcode", "notify", "transport_hint"),
    .op = OP_ARG,
    .notify = 5,
    .hint = 6,
};

static struct call batch_transfer_sync_write = {
    .sig = SIG("batch_transfer_sync_write", 4, 5, RANGES_NAMES, "transport_hint"),
    .op = MC_WRITE,
    .is_batch = true,
    .hint = 4,
};

static struct call batch_transfer_sync_read = {
    .sig = SIG("batch_transfer_sync_read", 4, 5, RANGES_NAMES, "transport_hint"),
    .op = MC_READ,
    .is_batch = true,
    .hint = 4,
};

static struct call batch_transfer_async_write = {
    .sig = SIG("batch_transfer_async_write", 4, 5, RANGES_NAMES, "transport_hint"),
    .op = MC_WRITE,
    .is_batch = true,
    .is_async = true,
    .hint = 4,
};

static struct call batch_transfer_async_read = {
    .sig = SIG("batch_transfer_async_read", 4, 5, RANGES_NAMES, "transport_hint"),
    .op = MC_READ,
    .is_batch = true,
    .is_async = true,
    .hint = 4,
};

static struct call batch_transfer_sync = {
    .sig = SIG("batch_transfer_sync", 5, 7, RANGES_NAMES, "opcode", "notify", "transport_hint"),
    .op = OP_ARG,
    .is_batch = true,
    .notify = 5,
    .hint = 6,
};

static struct call batch_transfer_async = {
    .sig = SIG("batch_transfer_async", 5, 6, RANGES_NAMES, "opcode", "transport_hint"),
    .op = OP_ARG,
    .is_batch = true,
    .is_async = true,
    .hint = 5,
};

/* What a call answers. rc -MC_E_COUNT: an exception. */
static PyObject *call_answer(const struct call *c, int rc, uint64_t id)
{
	if (rc == -MC_E_COUNT)
		return NULL;
	if (c->is_async)
		return PyLong_FromUnsignedLongLong(rc < 0 ? 0 : id);
	return PyLong_FromLong(rc < 0 ? -1 : 0);
}

/* The ranges, made into a job. @return 0; 1 when the sequences differ in length; -1 with an
 * exception. Only after 0 there is a job to end */
static int call_ranges(struct job *job, const struct call *c, PyObject **arg, uint8_t op)
{
	if (c->is_batch)
		return batch_args(job, &c->sig, arg, op);
	return job_init(job, op, 1) < 0 ? -1 : single_args(job, &c->sig, arg);
}

static PyObject *call(PyObject *obj, const struct call *c, PyObject *const *args, Py_ssize_t n,
		      PyObject *kw)
{
	static const struct mc_diag differ = {
	    .text = "buffers, peer_buffer_addresses and lengths have different lengths",
	};
	struct mc_py_engine *self = (struct mc_py_engine *)obj;
	PyObject *arg[MC_PY_PARAMS_MAX];
	uint8_t op = c->op;
	uint64_t id = 0;
	struct job job;
	int rc;

	if (mc_py_args(&c->sig, args, n, kw, arg) < 0 ||
	    (op == OP_ARG && mc_py_op(&c->sig, 4, arg[4], &op) < 0) ||
	    hint_check(&c->sig, c->hint, arg[c->hint]) < 0)
		return NULL;
	rc = call_ranges(&job, c, arg, op);
	if (rc < 0)
		return NULL;
	if (rc > 0) {
		mc_py_fail(self, c->sig.func, -MC_E_INVAL, &differ);
		return call_answer(c, -MC_E_INVAL, 0);
	}
	if (c->notify != ARG_NONE && job_notify(&job, &c->sig, arg[c->notify]) < 0)
		rc = -MC_E_COUNT;
	else if (!mc_py_ready(self, c->sig.func))
		rc = -MC_E_CLOSED;
	else
		rc = job_run(self, &c->sig, arg[0], &job, c->is_async ? &id : NULL);
	job_fini(&job);
	return call_answer(c, rc, id);
}

#define CALL(name)                                                                                 \
	static PyObject *py_##name(PyObject *obj, PyObject *const *args, Py_ssize_t n,             \
				   PyObject *kw)                                                   \
	{                                                                                          \
		return call(obj, &name, args, n, kw);                                              \
	}

CALL(transfer_sync_write)
CALL(transfer_sync_read)
CALL(transfer_submit_write)
CALL(transfer_sync)
CALL(batch_transfer_sync_write)
CALL(batch_transfer_sync_read)
CALL(batch_transfer_async_write)
CALL(batch_transfer_async_read)
CALL(batch_transfer_sync)
CALL(batch_transfer_async)

/* ---- how a batch stands ---- */

static void fail_id(struct mc_py_engine *self, const char *func, int rc, uint64_t id)
{
	struct mc_diag diag;

	(void)PyOS_snprintf(diag.text, sizeof(diag.text), "batch id %llu: %s",
			    (unsigned long long)id, mc_err_text(rc));
	mc_py_fail(self, func, rc, &diag);
}

/* A group has ended: say why it failed, then forget it. @return 0 or its error */
static int group_end(struct mc_py_engine *self, const char *func, uint64_t id,
		     const struct mc_status *status)
{
	struct mc_diag diag = {.text = ""};

	if (status->status < 0) {
		(void)mc_group_diag(self->eng, id, &diag); /* the code says it when this cannot */
		mc_py_fail(self, func, status->status, &diag);
	}
	(void)mc_group_free(self->eng, id); /* stale: another thread has asked as well */
	return status->status;
}

static struct mc_py_sig sig_check = {
    .func = "transfer_check_status",
    .required = 1,
    .total = 1,
    .name = {"batch_id"},
};

static PyObject *py_transfer_check_status(PyObject *obj, PyObject *const *args, Py_ssize_t n,
					  PyObject *kw)
{
	struct mc_py_engine *self = (struct mc_py_engine *)obj;
	PyObject *arg[MC_PY_PARAMS_MAX];
	struct mc_status status;
	uint64_t id;
	int rc;

	if (mc_py_args(&sig_check, args, n, kw, arg) < 0 ||
	    mc_py_u64(&sig_check, 0, arg[0], &id) < 0)
		return NULL;
	if (!mc_py_ready(self, sig_check.func))
		return PyLong_FromLong(-1);
	rc = mc_group_status(self->eng, id, &status);
	if (rc < 0) {
		fail_id(self, sig_check.func, rc, id);
		return PyLong_FromLong(-1);
	}
	if (!status.is_done)
		return PyLong_FromLong(0);
	rc = group_end(self, sig_check.func, id, &status);
	if (rc == 0)
		return PyLong_FromLong(1);
	return PyLong_FromLong(rc == -MC_E_TIMEDOUT ? -2 : -1);
}

/* Wait as long as it takes: every group ends by its deadline. @return 0; -MC_E_…; -MC_E_COUNT with
 * an exception */
static int group_wait(struct mc_py_engine *self, const char *func, uint64_t id)
{
	struct mc_status status;
	int rc;

	do {
		Py_BEGIN_ALLOW_THREADS
		rc = mc_group_wait(self->eng, id, WAIT_SLICE_NS, &status);
		Py_END_ALLOW_THREADS
		if (rc == -MC_E_TIMEDOUT && PyErr_CheckSignals() < 0)
			return -MC_E_COUNT;
	} while (rc == -MC_E_TIMEDOUT);
	if (rc < 0) {
		fail_id(self, func, rc, id);
		return rc;
	}
	return group_end(self, func, id, &status);
}

static struct mc_py_sig sig_batch_status = {
    .func = "get_batch_transfer_status",
    .required = 1,
    .total = 1,
    .name = {"batch_ids"},
};

static PyObject *py_get_batch_transfer_status(PyObject *obj, PyObject *const *args, Py_ssize_t n,
					      PyObject *kw)
{
	const struct mc_py_sig *sig = &sig_batch_status;
	struct mc_py_engine *self = (struct mc_py_engine *)obj;
	PyObject *arg[MC_PY_PARAMS_MAX];
	struct mc_py_seq seq;
	uint64_t *id;
	size_t count;
	int rc, first = 0;

	if (mc_py_args(sig, args, n, kw, arg) < 0 || mc_py_seq_open(sig, 0, arg[0], &seq) < 0)
		return NULL;
	count = seq.n;
	id = PyMem_Malloc((count ? count : 1) * sizeof(*id));
	rc = id ? mc_py_seq_read(sig, 0, &seq, id, 1) : -1;
	mc_py_seq_close(&seq);
	if (rc < 0) {
		PyMem_Free(id);
		return id ? NULL : PyErr_NoMemory();
	}
	if (!mc_py_ready(self, sig->func))
		first = -MC_E_CLOSED;
	/* All of them, also behind a failed one: none may stay behind unfreed. */
	for (size_t i = 0; i < count && self->eng && first != -MC_E_COUNT; i++) {
		rc = group_wait(self, sig->func, id[i]);
		if (rc < 0 && (first == 0 || rc == -MC_E_COUNT))
			first = rc;
	}
	PyMem_Free(id);
	return first == -MC_E_COUNT ? NULL : PyLong_FromLong(first < 0 ? -1 : 0);
}

#define SINGLE_ARGS "($self, target_hostname, buffer, peer_buffer_address, length, "
#define BATCH_ARGS "($self, target_hostname, buffers, peer_buffer_addresses, lengths, "

PyMethodDef mc_py_transfer_methods[] = {
    MC_PY_METHOD(transfer_sync_write, "transfer_sync_write" SINGLE_ARGS "transport_hint='')\n--\n\n"
				      "Write to the peer and wait. 0 or -1."),
    MC_PY_METHOD(transfer_sync_read, "transfer_sync_read" SINGLE_ARGS "transport_hint='')\n--\n\n"
				     "Read from the peer and wait. 0 or -1."),
    MC_PY_METHOD(transfer_sync,
		 "transfer_sync" SINGLE_ARGS "opcode, notify=None, transport_hint='')\n--\n\n"
		 "Move, wait, then leave a message with the peer. 0 or -1."),
    MC_PY_METHOD(transfer_submit_write,
		 "transfer_submit_write" SINGLE_ARGS "transport_hint='')\n--\n\n"
		 "Start to write. A batch id, or 0."),
    MC_PY_METHOD(transfer_check_status,
		 "transfer_check_status($self, batch_id)\n--\n\n"
		 "Of the whole batch: 1 done, 0 under way, -1 failed, -2 out of time. The id is "
		 "gone once it is not 0."),
    MC_PY_METHOD(batch_transfer_sync_write,
		 "batch_transfer_sync_write" BATCH_ARGS "transport_hint='')\n--\n\n"
		 "Write many ranges and wait. 0 or -1."),
    MC_PY_METHOD(batch_transfer_sync_read,
		 "batch_transfer_sync_read" BATCH_ARGS "transport_hint='')\n--\n\n"
		 "Read many ranges and wait. 0 or -1."),
    MC_PY_METHOD(batch_transfer_sync,
		 "batch_transfer_sync" BATCH_ARGS "opcode, notify=None, transport_hint='')\n--\n\n"
		 "Move many ranges, wait, then leave a message with the peer. 0 or -1."),
    MC_PY_METHOD(batch_transfer_async_write,
		 "batch_transfer_async_write" BATCH_ARGS "transport_hint='')\n--\n\n"
		 "Start to write many ranges. A batch id, or 0."),
    MC_PY_METHOD(batch_transfer_async_read,
		 "batch_transfer_async_read" BATCH_ARGS "transport_hint='')\n--\n\n"
		 "Start to read many ranges. A batch id, or 0."),
    MC_PY_METHOD(batch_transfer_async,
		 "batch_transfer_async" BATCH_ARGS "opcode, transport_hint='')\n--\n\n"
		 "Start to move many ranges. A batch id, or 0."),
    MC_PY_METHOD(get_batch_transfer_status,
		 "get_batch_transfer_status($self, batch_ids)\n--\n\n"
		 "Wait for all of them. 0, or -1 when one failed. All ids are gone then."),
    {NULL, NULL, 0, NULL},
};

int mc_py_transfer_ready(void)
{
	struct mc_py_sig *all[] = {
	    &transfer_sync_write.sig,
	    &transfer_sync_read.sig,
	    &transfer_submit_write.sig,
	    &transfer_sync.sig,
	    &batch_transfer_sync_write.sig,
	    &batch_transfer_sync_read.sig,
	    &batch_transfer_async_write.sig,
	    &batch_transfer_async_read.sig,
	    &batch_transfer_sync.sig,
	    &batch_transfer_async.sig,
	    &sig_check,
	    &sig_batch_status,
	};

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		if (mc_py_sig_ready(all[i]) < 0)
			return -1;
	return 0;
}
