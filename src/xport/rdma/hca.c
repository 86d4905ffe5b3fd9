/*
 * hca.c: the devices that this process uses: which ones, why not the others, and what happens to
 * their ports while they are open.
 *
 * Devices are taken in the order of their names, so that two runs number them alike. One that
 * cannot be used is left out with a reason; only when none is left the transport is not available,
 * and then the reasons are the message. A port that is down is not left out: it is used once its
 * events say that it is up, and has an address. They are read on the first loop.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fork.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/str.h"
#include "xport/rdma/priv.h"

#define DEVICES_MAX 256 /* looked at */
#define EVENTS_MAX 64	/* in one go */
#define REASONS_MAX 400 /* bytes */

/* What opening needs and gathers. */
struct opening {
	struct mc_rdma_dev *dev;
	const struct mc_rdma_opts *opts;
	struct ibv_device **list;
	unsigned n;
	bool
	    is_up_only; /* there are more devices than can be used: those that are down come last */
	struct mc_str reasons;
};

static const char *name_of(const struct opening *o, unsigned i)
{
	return o->dev->v->get_device_name(o->list[i]);
}

/* ---- events; on the first loop ---- */

static void state_set(struct mc_rdma_hca *h, const char *why)
{
	bool is_up = h->is_link_up && h->is_addr_ok && !atomic_load(&h->is_fatal);

	if (atomic_exchange(&h->is_up, is_up) == is_up)
		return;
	atomic_fetch_add(&h->dev->ports_version, 1);
	if (is_up)
		mc_log_info("RDMA port is up", "dev=%s port=%u why='%s'", h->port.name,
			    h->port.port_num, why);
	else
		mc_log_warn("RDMA port is down", "dev=%s port=%u why='%s'", h->port.name,
			    h->port.port_num, why);
}

static void fatal_set(struct mc_rdma_hca *h, const char *why)
{
	atomic_store(&h->is_fatal, true);
	state_set(h, why);
}

static void readdress(struct mc_rdma_hca *h)
{
	uint32_t gen = atomic_load(&h->addr_gen);

	h->is_addr_ok = mc_rdma_port_readdress(h);
	if (atomic_load(&h->addr_gen) != gen)
		atomic_fetch_add(&h->dev->ports_version, 1);
}

static void on_port_event(struct mc_rdma_hca *h, enum ibv_event_type type)
{
	switch (type) {
	case IBV_EVENT_PORT_ACTIVE:
		h->is_link_up = true;
		readdress(h);
		state_set(h, h->is_addr_ok ? "link is up" : "link is up, without an address");
		break;
	case IBV_EVENT_PORT_ERR:
		h->is_link_up = false;
		state_set(h, "link is down");
		break;
	case IBV_EVENT_GID_CHANGE:
		readdress(h);
		state_set(h, h->is_addr_ok ? "it has an address" : "its address is gone");
		break;
	case IBV_EVENT_LID_CHANGE:
		/* Lanes are made anew; their introductions ask the device for the new one. */
		if (!h->port.is_ethernet) {
			mc_log_info("RDMA port has another LID", "dev=%s port=%u", h->port.name,
				    h->port.port_num);
			atomic_fetch_add(&h->addr_gen, 1);
			atomic_fetch_add(&h->dev->ports_version, 1);
		}
		break;
	default:
		mc_log_debug("RDMA port event", "dev=%s port=%u type=%d", h->port.name,
			     h->port.port_num, (int)type);
		break;
	}
}

static void on_one_event(struct mc_rdma_hca *h, const struct ibv_async_event *ev)
{
	switch (ev->event_type) {
	case IBV_EVENT_DEVICE_FATAL:
		fatal_set(h, "device failed");
		break;
	case IBV_EVENT_PORT_ACTIVE:
	case IBV_EVENT_PORT_ERR:
	case IBV_EVENT_LID_CHANGE:
	case IBV_EVENT_PKEY_CHANGE:
	case IBV_EVENT_SM_CHANGE:
	case IBV_EVENT_CLIENT_REREGISTER:
	case IBV_EVENT_GID_CHANGE:
		if (ev->element.port_num == h->port.port_num)
			on_port_event(h, ev->event_type);
		break;
	default: /* of queue pairs: whoever owns them sees their completions fail */
		mc_log_debug("RDMA event", "dev=%s type=%d", h->port.name, (int)ev->event_type);
		break;
	}
}

static void on_async(struct mc_watch *w, uint32_t events)
{
	struct mc_rdma_hca *h = mc_container_of(w, struct mc_rdma_hca, async);
	const struct mc_verbs *v = h->dev->v;
	struct ibv_async_event ev;

	(void)events;
	for (unsigned i = 0; i < EVENTS_MAX; i++) {
		if (v->get_async_event(h->ctx, &ev) != 0) {
			if (errno == EAGAIN || errno == EINTR)
				return;
			/* The device was taken away: nothing will ever be told again. */
			mc_loop_unwatch(h->dev->env.loops[0], &h->async);
			h->async.fd = -1;
			fatal_set(h, "device is gone");
			return;
		}
		/* At once: destroying what the event is about waits for this. */
		v->ack_async_event(&ev);
		on_one_event(h, &ev);
	}
}

struct watching {
	struct mc_rdma_hca *h;
	int rc;
};

static void watch_on_loop(void *arg)
{
	struct watching *w = arg;

	w->rc = mc_loop_watch(w->h->dev->env.loops[0], &w->h->async);
}

static void unwatch_on_loop(void *arg)
{
	struct mc_rdma_hca *h = arg;

	if (h->async.fd >= 0)
		mc_loop_unwatch(h->dev->env.loops[0], &h->async);
	h->async.fd = -1;
}

/* ---- one device ---- */

/* The library's errno is that of its last attempt, not of the file that matters. */
static int device_file_errno(const struct ibv_device *device, int err)
{
	char path[sizeof("/dev/infiniband/") + IBV_SYSFS_NAME_MAX];
	int fd;

	if (err == EACCES || err == EPERM || err == ENOMEM)
		return err;
	(void)snprintf(path, sizeof(path), "/dev/infiniband/%s", device->dev_name);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return errno;
	(void)close(fd); /* nothing was written */
	return err;
}

static int open_context(struct mc_rdma_hca *h, struct ibv_device *device, struct mc_diag *diag)
{
	const struct mc_verbs *v = h->dev->v;
	int err;

	errno = 0;
	h->ctx = v->open_device(device);
	if (!h->ctx) {
		err = device_file_errno(device, errno);
		if (err == EACCES || err == EPERM)
			mc_diag_set(diag,
				    "no permission for /dev/infiniband/%s: let this user read and "
				    "write it, or give the device to the container",
				    device->dev_name);
		else if (err == ENOENT || err == ENODEV || err == ENXIO)
			mc_diag_set(diag,
				    "no /dev/infiniband/%s: give the device to the container "
				    "(--device=/dev/infiniband/%s)",
				    device->dev_name, device->dev_name);
		else
			mc_diag_set(diag, "it cannot be opened: %s", strerror(err));
		return err == ENOMEM ? -MC_E_NOMEM : -MC_E_UNAVAILABLE;
	}
	err = v->query_device(h->ctx, &h->attr);
	if (err) {
		mc_diag_set(diag, "it cannot be queried: %s", strerror(err));
		return -MC_E_UNAVAILABLE;
	}
	return 0;
}

static int open_watch(struct mc_rdma_hca *h, struct mc_diag *diag)
{
	struct watching w = {.h = h};
	int flags = fcntl(h->ctx->async_fd, F_GETFL);

	if (flags < 0 || fcntl(h->ctx->async_fd, F_SETFL, flags | O_NONBLOCK) < 0) {
		mc_diag_set(diag, "its events cannot be read: %s", strerror(errno));
		return -MC_E_UNAVAILABLE;
	}
	atomic_store(&h->is_up, h->is_link_up && h->is_addr_ok);
	h->async =
	    (struct mc_watch){.fd = h->ctx->async_fd, .events = EPOLLIN, .on_event = on_async};
	mc_loop_call(h->dev->env.loops[0], watch_on_loop, &w);
	if (w.rc < 0) {
		h->async.fd = -1;
		mc_diag_set(diag, "its events cannot be watched: %s", mc_err_text(w.rc));
	}
	return w.rc;
}

static int open_one(struct opening *o, struct mc_rdma_hca *h, struct ibv_device *device,
		    struct mc_diag *diag)
{
	int rc;

	h->dev = o->dev;
	h->index = o->dev->nhcas;
	h->async.fd = -1;
	h->has_port_mu = pthread_mutex_init(&h->port_mu, NULL) == 0;
	if (!h->has_port_mu)
		return -MC_E_NOMEM;
	if (mc_strlcpy(h->port.name, sizeof(h->port.name), o->dev->v->get_device_name(device)) <
	    0) {
		mc_diag_set(diag, "its name is too long");
		return -MC_E_UNAVAILABLE;
	}
	if (device->transport_type != IBV_TRANSPORT_IB) {
		mc_diag_set(diag, "it is neither InfiniBand nor RoCE");
		return -MC_E_UNAVAILABLE;
	}
	rc = open_context(h, device, diag);
	if (rc < 0)
		return rc;
	rc = mc_rdma_port_load(h, diag);
	if (rc == 0 && o->is_up_only && !(h->is_link_up && h->is_addr_ok))
		rc = -MC_E_LINK_DOWN;
	if (rc < 0)
		return rc;
	errno = 0;
	h->pd = o->dev->v->alloc_pd(h->ctx);
	if (!h->pd) {
		mc_diag_set(diag, "no protection domain: %s", strerror(errno));
		return errno == ENOMEM ? -MC_E_NOMEM : -MC_E_UNAVAILABLE;
	}
	return open_watch(h, diag);
}

static void warn_kept(const struct mc_rdma_hca *h, const char *what, int err)
{
	if (err)
		mc_log_warn("RDMA object did not end", "dev=%s what=%s errno=%d", h->port.name,
			    what, err);
}

static void close_one(struct mc_rdma_hca *h)
{
	const struct mc_verbs *v = h->dev->v;

	if (h->has_port_mu)
		(void)pthread_mutex_destroy(&h->port_mu); /* nobody holds it */
	h->has_port_mu = false;
	if (mc_fork_is_child(h->dev->fork_gen))
		return;
	if (h->async.fd >= 0)
		mc_loop_call(h->dev->env.loops[0], unwatch_on_loop, h);
	if (h->pd)
		warn_kept(h, "protection domain", v->dealloc_pd(h->pd));
	if (h->ctx)
		warn_kept(h, "context", v->close_device(h->ctx));
	h->pd = NULL;
	h->ctx = NULL;
}

/* ---- all of them ---- */

static int list_cmp(const void *a, const void *b, void *v)
{
	return mc_name_cmp(
	    ((const struct mc_verbs *)v)->get_device_name(*(struct ibv_device *const *)a),
	    ((const struct mc_verbs *)v)->get_device_name(*(struct ibv_device *const *)b));
}

static int list_open(struct opening *o, struct mc_diag *diag)
{
	int n = 0, err;

	errno = 0;
	o->list = o->dev->v->get_device_list(&n);
	if (!o->list || n <= 0) {
		err = o->list ? 0 : errno;
		mc_diag_set(diag, "no RDMA device: %s",
			    err ? strerror(err)
				: "libibverbs finds none (a driver of the package "
				  "ibverbs-providers, the module ib_uverbs and, in a container, "
				  "/dev/infiniband are needed)");
		return err == ENOMEM ? -MC_E_NOMEM : -MC_E_UNAVAILABLE;
	}
	o->n = (unsigned)mc_min(n, DEVICES_MAX);
	qsort_r(o->list, o->n, sizeof(struct ibv_device *), list_cmp, (void *)o->dev->v);
	return 0;
}

/* Place of the part in the list of devices, or -1. */
static int list_find(const struct opening *o, struct mc_view part)
{
	for (unsigned i = 0; i < o->n; i++) {
		if (mc_view_is(part, name_of(o, i)))
			return (int)i;
	}
	return -1;
}

/* Mark the devices that the user's list names; none: all. */
static int list_filter(const struct opening *o, bool *is_wanted, struct mc_diag *diag)
{
	const char *text = o->opts->devices ? o->opts->devices : "";
	struct mc_str all;
	bool is_any = false;

	for (const char *end; *text; text = *end ? end + 1 : end) {
		struct mc_view part = {.at = text};
		int at;

		end = text + strcspn(text, ",");
		part.len = (size_t)(end - text);
		part = mc_view_trim(part);
		if (part.len == 0)
			continue;
		is_any = true;
		at = list_find(o, part);
		if (at >= 0) {
			is_wanted[at] = true;
			continue;
		}
		mc_str_init(&all, REASONS_MAX);
		for (unsigned i = 0; i < o->n; i++)
			mc_str_appendf(&all, "%s%s", i ? ", " : "", name_of(o, i));
		mc_diag_set(diag, "there is no RDMA device \"%.*s\" on this machine; there are: %s",
			    (int)mc_min(part.len, (size_t)MC_RDMA_NAME_MAX), part.at,
			    mc_str_text(&all));
		mc_str_fini(&all);
		return -MC_E_NOENT;
	}
	for (unsigned i = 0; i < o->n && !is_any; i++)
		is_wanted[i] = true;
	return 0;
}

static void reason_add(struct opening *o, const char *name, const struct mc_diag *why)
{
	(void)mc_str_appendf(&o->reasons, "%s%s: %s", o->reasons.len ? "; " : "", name,
			     why->text); /* the rest does not fit: those before it are told */
}

/* Open device i, or note why it is left out. @return 1: it is settled; 0: it comes later;
 * -MC_E_NOMEM, -MC_E_LIMIT: give up */
static int take(struct opening *o, unsigned i)
{
	struct mc_rdma_dev *dev = o->dev;
	struct mc_rdma_hca *h = &dev->hca[dev->nhcas];
	struct mc_diag why = {.text = ""};
	const char *name = name_of(o, i);
	int rc;

	if (dev->nhcas == MC_RDMA_PORTS_MAX) {
		mc_log_warn("RDMA device left out: more than can be used", "dev=%s max=%u", name,
			    MC_RDMA_PORTS_MAX);
		return 1;
	}
	rc = open_one(o, h, o->list[i], &why);
	if (rc == 0) {
		dev->nhcas++;
		if (why.text[0]) {
			reason_add(o, name, &why);
			mc_log_info("RDMA port waits until it is up", "dev=%s why='%s'", name,
				    why.text);
			return 1;
		}
		mc_log_info("RDMA port opened", "dev=%s port=%u gid_index=%u mbps=%u numa=%d",
			    h->port.name, h->port.port_num, h->port.gid_index, h->port.mbps,
			    h->port.numa);
		return 1;
	}
	close_one(h);
	memset(h, 0, sizeof(*h));
	if (rc == -MC_E_LINK_DOWN)
		return 0;
	mc_log_info("RDMA device left out", "dev=%s why='%s'", name, why.text);
	reason_add(o, name, &why);
	return rc == -MC_E_NOMEM || rc == -MC_E_LIMIT ? rc : 1;
}

static int take_all(struct opening *o, bool *is_wanted)
{
	unsigned wanted = 0;
	int rc;

	for (unsigned i = 0; i < o->n; i++)
		wanted += is_wanted[i];
	o->is_up_only = wanted > MC_RDMA_PORTS_MAX;
	for (;;) {
		for (unsigned i = 0; i < o->n; i++) {
			rc = is_wanted[i] ? take(o, i) : 0;
			if (rc < 0)
				return rc;
			is_wanted[i] &= rc == 0;
		}
		if (!o->is_up_only)
			return 0;
		o->is_up_only = false;
	}
}

static bool has_one_up(const struct mc_rdma_dev *dev)
{
	for (unsigned i = 0; i < dev->nhcas; i++)
		if (atomic_load(&dev->hca[i].is_up))
			return true;
	return false;
}

int mc_rdma_hcas_open(struct mc_rdma_dev *dev, const struct mc_rdma_opts *opts,
		      struct mc_diag *diag)
{
	struct opening o = {.dev = dev, .opts = opts};
	bool is_wanted[DEVICES_MAX] = {false};
	int rc;

	mc_assert(dev->env.nloops > 0);
	dev->fork_gen = mc_fork_gen();
	atomic_store(&dev->ports_version, 1);
	dev->sys_root = mc_strdup(opts->sys_root ? opts->sys_root : "/sys");
	if (!dev->sys_root)
		return -MC_E_NOMEM;
	mc_str_init(&o.reasons, REASONS_MAX);
	rc = list_open(&o, diag);
	if (rc < 0)
		goto out;
	rc = list_filter(&o, is_wanted, diag);
	if (rc < 0)
		goto out;
	rc = take_all(&o, is_wanted);
	if (rc < 0)
		mc_diag_set(diag, "%s", mc_str_text(&o.reasons));
	else if (dev->nhcas == 0) {
		mc_diag_set(diag, "no RDMA device can be used: %s", mc_str_text(&o.reasons));
		rc = -MC_E_UNAVAILABLE;
	} else if (!has_one_up(dev)) {
		mc_diag_set(diag, "no RDMA port is up: %s", mc_str_text(&o.reasons));
	}
out:
	if (o.list)
		dev->v->free_device_list(o.list);
	mc_str_fini(&o.reasons);
	return rc;
}

void mc_rdma_hcas_close(struct mc_rdma_dev *dev)
{
	while (dev->nhcas > 0)
		close_one(&dev->hca[--dev->nhcas]);
	mc_free(dev->sys_root);
	dev->sys_root = NULL;
}
