/*
 * topo_sysfs.c: devices, NUMA nodes and PCI paths from sysfs.
 *
 *   class/infiniband/<dev>/ports/<n>/state         "4: ACTIVE"
 *   class/infiniband/<dev>/ports/<n>/gids/<i>      not all zero
 *   class/infiniband/<dev>/device                  link to the PCI device; numa_node is in it
 *   class/infiniband_verbs/uverbs<n>/ibdev         the device whose file is
 * /dev/infiniband/uverbs<n> devices/system/node/node<n>                    places of memory
 *   bus/pci/devices/<address>                      link to the path through bridges
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/str.h"
#include "disco/topo_build.h"

#define NODES_MAX 256
#define GIDS_MAX 256
#define PORTS_MAX 256
#define HOPS_UNKNOWN UINT32_MAX

struct disco {
	const struct mc_topo_conf *conf;
	const char *sys, *dev, *filters;
	struct mc_topo *topo;
	int nodes[NODES_MAX];
	size_t nnodes;
};

/* First line of a small file without its newline. @return length, or -1 */
static int read_line(const char *path, char *buf, size_t cap)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -1;
	n = read(fd, buf, cap - 1);
	(void)close(fd); /* nothing was written */
	if (n < 0)
		return -1;
	buf[n] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
	return (int)strlen(buf);
}

static int read_int(const char *path, int missing)
{
	char text[32], *end;
	long v;

	if (read_line(path, text, sizeof(text)) <= 0)
		return missing;
	v = strtol(text, &end, 10);
	return *end || v < INT_MIN || v > INT_MAX ? missing : (int)v;
}

static void free_names(char **names, size_t n)
{
	for (size_t i = 0; i < n; i++)
		mc_free(names[i]);
	mc_free(names);
}

/* Names in a folder, at most `max`; none when there is no such folder. End with free_names(). */
static int list_names(const char *path, size_t max, char ***ret, size_t *ret_n)
{
	size_t cap = 0, n = 0;
	void *names = NULL;
	struct dirent *d;
	DIR *dir = opendir(path);
	int rc = 0;

	while (dir && rc == 0 && n < max && (d = readdir(dir))) {
		if (d->d_name[0] == '.')
			continue;
		rc = mc_array_grow(&names, &cap, n + 1, max, sizeof(char *));
		if (rc == 0 && !(((char **)names)[n++] = mc_strdup(d->d_name)))
			rc = -MC_E_NOMEM;
	}
	if (dir)
		(void)closedir(dir); /* nothing was written */
	if (rc < 0) {
		free_names(names, n);
		names = NULL;
		n = 0;
	}
	*ret = names;
	*ret_n = n;
	return rc;
}

static bool gid_is_set(const char *gid)
{
	return gid[strspn(gid, "0:")] != '\0';
}

static bool port_is_usable(const struct disco *d, const char *hca, const char *port)
{
	char path[PATH_MAX], text[64];

	(void)snprintf(path, sizeof(path), "%s/class/infiniband/%s/ports/%s/state", d->sys, hca,
		       port);
	if (read_line(path, text, sizeof(text)) < 0 || strncmp(text, "4:", 2) != 0)
		return false;
	for (int i = 0; i < GIDS_MAX; i++) {
		(void)snprintf(path, sizeof(path), "%s/class/infiniband/%s/ports/%s/gids/%d",
			       d->sys, hca, port, i);
		if (read_line(path, text, sizeof(text)) < 0)
			return false;
		if (gid_is_set(text))
			return true;
	}
	return false;
}

static bool has_usable_port(const struct disco *d, const char *hca)
{
	char path[PATH_MAX], **names;
	bool is_usable = false;
	size_t n;

	(void)snprintf(path, sizeof(path), "%s/class/infiniband/%s/ports", d->sys, hca);
	(void)list_names(path, PORTS_MAX, &names, &n); /* none: not usable */
	for (size_t i = 0; i < n && !is_usable; i++)
		is_usable = port_is_usable(d, hca, names[i]);
	free_names(names, n);
	return is_usable;
}

/* True when the device's file can be opened by us; containers often hide it. */
static bool verbs_file_is_open(const struct disco *d, const char *hca)
{
	char path[PATH_MAX], text[MC_TOPO_NAME_MAX], **names;
	bool is_open = false;
	size_t n;

	(void)snprintf(path, sizeof(path), "%s/class/infiniband_verbs", d->sys);
	(void)list_names(path, MC_TOPO_HCAS_MAX * 2, &names, &n); /* none: not usable */
	for (size_t i = 0; i < n && !is_open; i++) {
		(void)snprintf(path, sizeof(path), "%s/class/infiniband_verbs/%s/ibdev", d->sys,
			       names[i]);
		if (read_line(path, text, sizeof(text)) < 0 || strcmp(text, hca) != 0)
			continue;
		(void)snprintf(path, sizeof(path), "%s/infiniband/%s", d->dev, names[i]);
		is_open = access(path, R_OK | W_OK) == 0;
	}
	free_names(names, n);
	return is_open;
}

static const char *why_unusable(const struct disco *d, const char *hca)
{
	if (!mc_topo_is_listed(d->conf->devices, hca) || !mc_topo_is_listed(d->filters, hca))
		return "not in the list of devices";
	if (!verbs_file_is_open(d, hca))
		return "no access to its /dev/infiniband/uverbs file";
	if (!has_usable_port(d, hca))
		return "no active port with an address";
	return NULL;
}

static int add_hca(struct disco *d, const char *name)
{
	char path[PATH_MAX], link[PATH_MAX];
	struct mc_topo_hca *hca;
	const char *slash;
	size_t at;
	int rc = mc_topo_build_hca(d->topo, name, &at);

	if (rc < 0) {
		mc_log_warn("RDMA device left out", "name=%.80s reason=too many or too long", name);
		return 0;
	}
	hca = &d->topo->hcas[at];
	(void)snprintf(path, sizeof(path), "%s/class/infiniband/%s/device/numa_node", d->sys, name);
	hca->numa = read_int(path, -1);
	(void)snprintf(path, sizeof(path), "%s/class/infiniband/%s/device", d->sys, name);
	if (realpath(path, link) && (slash = strrchr(link, '/')) && strchr(slash, ':'))
		(void)mc_strlcpy(hca->pci, sizeof(hca->pci),
				 slash + 1); /* cut: then it is unknown */
	return 0;
}

static int by_name(const void *a, const void *b)
{
	return mc_name_cmp(*(char *const *)a, *(char *const *)b);
}

static int find_hcas(struct disco *d)
{
	char path[PATH_MAX], **names;
	const char *why;
	size_t n;
	int rc;

	(void)snprintf(path, sizeof(path), "%s/class/infiniband", d->sys);
	rc = list_names(path, MC_TOPO_HCAS_MAX, &names, &n);
	if (n)
		qsort(names, n, sizeof(*names), by_name);
	for (size_t i = 0; i < n && rc == 0; i++) {
		why = why_unusable(d, names[i]);
		if (why)
			mc_log_info("RDMA device left out", "name=%s reason=\"%s\"", names[i], why);
		else
			rc = add_hca(d, names[i]);
	}
	free_names(names, n);
	return rc;
}

static int by_number(const void *a, const void *b)
{
	return *(const int *)a - *(const int *)b;
}

static int find_nodes(struct disco *d)
{
	char path[PATH_MAX], **names, *end;
	size_t n;
	int rc;

	(void)snprintf(path, sizeof(path), "%s/devices/system/node", d->sys);
	rc = list_names(path, NODES_MAX * 4, &names, &n);
	for (size_t i = 0; i < n && rc == 0 && d->nnodes < NODES_MAX; i++) {
		long v = strncmp(names[i], "node", 4) == 0 ? strtol(names[i] + 4, &end, 10) : -1;

		if (v >= 0 && v <= INT_MAX && names[i][4] && !*end)
			d->nodes[d->nnodes++] = (int)v;
	}
	free_names(names, n);
	if (d->nnodes == 0)
		d->nodes[d->nnodes++] = 0; /* a kernel without NUMA */
	qsort(d->nodes, d->nnodes, sizeof(d->nodes[0]), by_number);
	return rc;
}

/* A place whose preferred devices are those that `is_near` marks. */
static int add_location(struct disco *d, const char *name, const bool *is_near)
{
	struct mc_topo_location *loc = &d->topo->locations[d->topo->nlocations];

	if (mc_strlcpy(loc->name, sizeof(loc->name), name) < 0)
		return -MC_E_INVAL;
	loc->devs = mc_calloc(mc_max(d->topo->nhcas, (size_t)1), sizeof(*loc->devs));
	if (!loc->devs)
		return -MC_E_NOMEM;
	d->topo->nlocations++;
	for (size_t i = 0; i < d->topo->nhcas; i++) {
		if (is_near[i])
			loc->devs[loc->npreferred++] = (uint16_t)i;
	}
	loc->ndevs = loc->npreferred;
	for (size_t i = 0; i < d->topo->nhcas; i++) {
		if (!is_near[i])
			loc->devs[loc->ndevs++] = (uint16_t)i;
	}
	return 0;
}

static int add_nodes(struct disco *d)
{
	bool is_near[MC_TOPO_HCAS_MAX];
	char name[MC_TOPO_NAME_MAX];
	int rc = 0;

	for (size_t k = 0; k < d->nnodes && rc == 0; k++) {
		for (size_t i = 0; i < d->topo->nhcas; i++) {
			int numa = d->topo->hcas[i].numa;

			/* One node only: a device of unknown place is near it all the same. */
			is_near[i] = numa == d->nodes[k] || (numa < 0 && d->nnodes == 1);
		}
		(void)snprintf(name, sizeof(name), "cpu:%d", d->nodes[k]);
		rc = add_location(d, name, is_near);
	}
	return rc;
}

/* Where a PCI device hangs, as a path of bridges below its root. */
static bool pci_path(const struct disco *d, const char *pci, char *ret)
{
	char path[PATH_MAX];

	(void)snprintf(path, sizeof(path), "%s/bus/pci/devices/%s", d->sys, pci);
	return pci[0] && realpath(path, ret);
}

static uint32_t parts_of(const char *path)
{
	uint32_t n = 0;

	for (; *path; path++)
		n += *path == '/';
	return n;
}

/* Links between two devices of the PCI tree: the parts of both paths that are not common. */
static uint32_t hops(const char *a, const char *b)
{
	size_t common = 0;

	for (size_t i = 0; a[i] && a[i] == b[i]; i++) {
		if ((a[i + 1] == '/' || !a[i + 1]) && (b[i + 1] == '/' || !b[i + 1]))
			common = i + 1;
	}
	return parts_of(a + common) + parts_of(b + common);
}

static int add_gpu(struct disco *d, const struct mc_topo_gpu *gpu)
{
	char mine[PATH_MAX], other[PATH_MAX], path[PATH_MAX];
	bool is_near[MC_TOPO_HCAS_MAX], is_any_local = false;
	struct mc_topo *t = d->topo;
	uint32_t least = HOPS_UNKNOWN;
	bool is_found = pci_path(d, gpu->pci, mine);
	int numa;

	(void)snprintf(path, sizeof(path), "%s/bus/pci/devices/%s/numa_node", d->sys, gpu->pci);
	numa = read_int(path, -1);
	for (size_t i = 0; i < t->nhcas; i++) {
		is_any_local = is_any_local || (numa >= 0 && t->hcas[i].numa == numa);
		t->hcas[i].hops = HOPS_UNKNOWN;
		if (is_found && pci_path(d, t->hcas[i].pci, other))
			t->hcas[i].hops = hops(mine, other);
	}
	for (size_t i = 0; i < t->nhcas; i++) {
		is_near[i] = !is_any_local || t->hcas[i].numa == numa;
		if (is_near[i])
			least = mc_min(least, t->hcas[i].hops);
	}
	for (size_t i = 0; i < t->nhcas; i++)
		is_near[i] = is_near[i] && t->hcas[i].hops == least;
	return add_location(d, gpu->name, is_near);
}

static int read_custom(const char *path, struct mc_topo **ret, struct mc_diag *diag)
{
	char *text = NULL;
	FILE *f = fopen(path, "re");
	size_t len;
	int rc;

	if (!f) {
		rc = mc_err_from_errno(errno);
		mc_diag_set(diag, "MC_CUSTOM_TOPO_JSON \"%.300s\": %s", path, mc_err_text(rc));
		return rc == -MC_E_NOMEM ? rc : -MC_E_NOENT;
	}
	text = mc_calloc(MC_TOPO_BYTES_MAX + 1, 1);
	len = text ? fread(text, 1, MC_TOPO_BYTES_MAX + 1, f) : 0;
	rc = !text ? -MC_E_NOMEM : (ferror(f) ? -MC_E_NOENT : 0);
	(void)fclose(f); /* nothing was written */
	if (rc == 0)
		rc = mc_topo_parse(text, len, ret, diag);
	mc_free(text);
	if (rc < 0)
		mc_diag_wrap(diag, "MC_CUSTOM_TOPO_JSON \"%.200s\"", path);
	return rc;
}

int mc_topo_discover(const struct mc_topo_conf *conf, struct mc_topo **ret, struct mc_diag *diag)
{
	const char *custom = conf->custom_path ? conf->custom_path : getenv("MC_CUSTOM_TOPO_JSON");
	struct disco d = {.conf = conf,
			  .sys = conf->sys_root ? conf->sys_root : "/sys",
			  .dev = conf->dev_root ? conf->dev_root : "/dev",
			  .filters = conf->filters ? conf->filters : getenv("MC_TE_FILTERS")};
	int rc;

	if (custom && custom[0])
		return read_custom(custom, ret, diag);
	mc_assert(conf->ngpus <= MC_TOPO_LOCATIONS_MAX - NODES_MAX);
	d.topo = mc_topo_build(NODES_MAX + conf->ngpus);
	if (!d.topo)
		return -MC_E_NOMEM;
	rc = find_hcas(&d);
	if (rc == 0)
		rc = find_nodes(&d);
	if (rc == 0)
		rc = add_nodes(&d);
	for (size_t i = 0; i < conf->ngpus && rc == 0; i++)
		rc = add_gpu(&d, &conf->gpus[i]);
	if (rc < 0) {
		mc_topo_free(d.topo);
		return rc;
	}
	*ret = d.topo;
	return 0;
}
