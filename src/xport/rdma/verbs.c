/*
 * verbs.c: libibverbs by dlopen, once a process. Its inline functions are not used where they would
 * need a symbol: ibv_query_port() is done here, with the library's two ways.
 */
#include "xport/rdma/verbs.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "io/dl.h"

struct library {
	struct mc_verbs v;
	/* For devices whose driver is older than the extended context; fills less of the struct. */
	int (*query_port_old)(struct ibv_context *ctx, uint8_t port,
			      struct _compat_ibv_port_attr *attr);
};

#define REQUIRED(field) MC_DL_SYM(struct library, v.field, "ibv_" #field)
#define OPTIONAL(field) MC_DL_SYM_OPTIONAL(struct library, v.field, "ibv_" #field)

static const struct mc_dl_sym symbols[] = {
    REQUIRED(get_device_list),
    REQUIRED(free_device_list),
    REQUIRED(get_device_name),
    REQUIRED(open_device),
    REQUIRED(close_device),
    REQUIRED(query_device),
    MC_DL_SYM(struct library, query_port_old, "ibv_query_port"),
    REQUIRED(query_gid),
    REQUIRED(alloc_pd),
    REQUIRED(dealloc_pd),
    MC_DL_SYM(struct library, v.reg_mr, "ibv_reg_mr"), /* by text: the header has a macro */
    OPTIONAL(reg_mr_iova2),
    REQUIRED(dereg_mr),
    REQUIRED(create_comp_channel),
    REQUIRED(destroy_comp_channel),
    REQUIRED(create_cq),
    REQUIRED(destroy_cq),
    REQUIRED(get_cq_event),
    REQUIRED(ack_cq_events),
    REQUIRED(create_qp),
    REQUIRED(modify_qp),
    REQUIRED(destroy_qp),
    REQUIRED(get_async_event),
    REQUIRED(ack_async_event),
    REQUIRED(fork_init),
};

/* Written once, under the lock; read-only from then on. */
static pthread_mutex_t load_lock = PTHREAD_MUTEX_INITIALIZER; /* a leaf */
static struct library lib;
static bool is_loaded;

static int query_port(struct ibv_context *ctx, uint8_t port, struct ibv_port_attr *attr)
{
	struct verbs_context *ext = verbs_get_ctx_op(ctx, query_port);

	memset(attr, 0, sizeof(*attr));
	if (ext)
		return ext->query_port(ctx, port, attr, sizeof(*attr));
	return lib.query_port_old(ctx, port, (struct _compat_ibv_port_attr *)attr);
}

int mc_verbs_load(const struct mc_verbs **ret_verbs, struct mc_diag *diag)
{
	static const char *const names[] = {"libibverbs.so.1", NULL};
	int rc = 0, err;

	pthread_mutex_lock(&load_lock);
	if (!is_loaded) {
		rc = mc_dl_load(names, symbols, MC_ARRAY_LEN(symbols), &lib, NULL, diag);
		if (rc < 0)
			goto out;
		lib.v.query_port = query_port;
		/*
		 * Before the first registration. Nothing to do where the kernel copies pinned pages
		 * at fork() (Linux 5.12); with an older one it keeps registered pages out of the
		 * child. It cannot be done after another library has registered memory.
		 */
		err = lib.v.fork_init();
		if (err)
			mc_log_debug("libibverbs cannot protect registered memory from fork()",
				     "errno=%d", err);
		is_loaded = true;
	}
	*ret_verbs = &lib.v;
out:
	pthread_mutex_unlock(&load_lock);
	if (rc < 0)
		mc_diag_wrap(diag, "RDMA needs libibverbs: install the packages libibverbs1 and "
				   "ibverbs-providers");
	return rc;
}
