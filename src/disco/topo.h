/*
 * topo.h: which RDMA device is near which memory, which local addresses can be rails, and what
 * "protocol rdma" means on a machine without such devices.
 *
 * Discovery reads sysfs below a root that tests replace. Devices are named and sorted by name with
 * numbers by value (mlx5_2 before mlx5_10), so two runs, and two processes, agree on the order.
 */
#ifndef MC_DISCO_TOPO_H
#define MC_DISCO_TOPO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "io/sock.h"

#define MC_TOPO_NAME_MAX 64u
#define MC_TOPO_HCAS_MAX 256u
#define MC_TOPO_LOCATIONS_MAX 1024u
#define MC_TOPO_BYTES_MAX (4u << 20) /* of topology JSON */
#define MC_TOPO_ADDRS_MAX 256u

/** An RDMA device with at least one active port that has an address. */
struct mc_topo_hca {
	char name[MC_TOPO_NAME_MAX];
	char pci[16];  /* "0000:3b:00.0"; "": none (software device) */
	int numa;      /* -1: unknown */
	uint32_t hops; /* scratch of discovery */
};

/** A place of memory and the devices for it, by index into hcas. */
struct mc_topo_location {
	char name[MC_TOPO_NAME_MAX]; /* "cpu:0", "cuda:1" */
	uint16_t *devs;		     /* preferred ones, then the other available ones */
	uint16_t npreferred, ndevs;
};

/** Immutable once made. */
struct mc_topo {
	struct mc_topo_hca *hcas;
	size_t nhcas;
	struct mc_topo_location *locations;
	size_t nlocations;
};

/** A GPU that the caller knows of: "cuda:0" and its PCI address. */
struct mc_topo_gpu {
	const char *name, *pci;
};

struct mc_topo_conf {
	const char *sys_root; /* NULL: "/sys" */
	const char
	    *dev_root; /* NULL: "/dev"; a device whose uverbs file cannot be opened is left out */
	const char *devices;	 /* comma list of names that may be used; NULL or "": all */
	const char *custom_path; /* NULL: MC_CUSTOM_TOPO_JSON; "" is none */
	const char *filters;	 /* NULL: MC_TE_FILTERS; a second comma list */
	const struct mc_topo_gpu *gpus;
	size_t ngpus;
};

/**
 * Find devices and places, or read MC_CUSTOM_TOPO_JSON's file instead. A machine without devices
 * has places with empty lists. Blocks on files; not on a loop.
 *
 * @return 0; -MC_E_NOENT, -MC_E_PROTO, -MC_E_TOO_BIG (the custom file; diag names it); -MC_E_NOMEM
 */
MC_MUST_CHECK int mc_topo_discover(const struct mc_topo_conf *conf, struct mc_topo **ret,
				   struct mc_diag *diag);
/**
 * Read {"cpu:0": [[preferred…], [available…]], …}, which is also a descriptor's priority_matrix.
 * Pure.
 * @return 0; -MC_E_PROTO; -MC_E_TOO_BIG; -MC_E_NOMEM; the diag names the place
 */
MC_MUST_CHECK int mc_topo_parse(const char *json, size_t len, struct mc_topo **ret,
				struct mc_diag *diag);
/** NULL is allowed. */
void mc_topo_free(struct mc_topo *topo);
/** JSON as mc_topo_parse() reads it. @param ret  ends with mc_free() */
MC_MUST_CHECK int mc_topo_json(const struct mc_topo *topo, char **ret);
/**
 * How a descriptor shows these devices (that are open) to upstream's readers. Pure.
 * @param topo       NULL: unknown
 * @param names      n devices, each once, at most MC_TOPO_HCAS_MAX
 * @param ret_order  n positions in `names`: the order of devices[] and of keys
 * @param ret_matrix priority_matrix of these devices alone; ends with mc_free()
 * @return 0; -MC_E_TOO_BIG; -MC_E_NOMEM
 */
MC_MUST_CHECK int mc_topo_publish(const struct mc_topo *topo, const char *const *names, size_t n,
				  uint16_t *ret_order, char **ret_matrix);
/** The place of this name, or NULL. */
const struct mc_topo_location *mc_topo_find(const struct mc_topo *topo, const char *location);

/** True when `name` is in the comma list, or the list is NULL or empty. Blanks do not count. */
bool mc_topo_is_listed(const char *list, const char *name);

/* ---- addresses ---- */

struct mc_topo_addr {
	char ifname[MC_TOPO_NAME_MAX];
	struct mc_addr addr;
	uint32_t mbps; /* link rate; 0: unknown */
	int numa;      /* -1: unknown */
	bool is_loopback;
};
/**
 * Addresses of interfaces that are up, link-local IPv6 left out; those of one interface together.
 * @param ret  mc_free()
 * @return how many; -MC_E_NOMEM; -MC_E_IO
 */
MC_MUST_CHECK int mc_topo_addrs(const char *sys_root, struct mc_topo_addr **ret);

/* ---- protocol ---- */

enum mc_topo_use {
	MC_TOPO_USE_TCP,
	MC_TOPO_USE_RDMA,
	MC_TOPO_USE_TCP_INSTEAD, /* RDMA was asked for and there is none: warn once */
	MC_TOPO_USE_NONE, /* an unknown protocol, or MC_FORCE_HCA without a device: an error */
	MC_TOPO_USE_COUNT,
};
/**
 * What to use. Pure; "rdma", "tcp" and "" (auto) are protocols.
 * @param diag  receives the sentence for the log or the user in the last two cases
 */
enum mc_topo_use mc_topo_choose(const char *protocol, size_t nhcas, bool is_tcp_forced,
				bool is_hca_forced, struct mc_diag *diag);

#endif
