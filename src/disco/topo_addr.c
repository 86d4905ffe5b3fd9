/*
 * topo_addr.c: local addresses with what sysfs knows of their interface.
 */
#include <errno.h>
#include <ifaddrs.h>
#include <limits.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/opt.h"
#include "base/str.h"
#include "disco/topo.h"

static bool read_number(const char *sys, const char *ifname, const char *file, long *ret)
{
	char path[PATH_MAX], text[32], *end;
	FILE *f;
	bool is_read;

	(void)snprintf(path, sizeof(path), "%s/class/net/%s/%s", sys, ifname, file);
	f = fopen(path, "re");
	if (!f)
		return false;
	is_read = fgets(text, sizeof(text), f) != NULL; /* EINVAL when the link is down */
	(void)fclose(f);				/* nothing was written */
	if (!is_read)
		return false;
	*ret = strtol(text, &end, 10);
	return end != text;
}

static bool take(const struct ifaddrs *ifa, const char *sys, struct mc_topo_addr *ret)
{
	long v;

	if (!ifa->ifa_addr || !(ifa->ifa_flags & IFF_UP))
		return false;
	*ret = (struct mc_topo_addr){.numa = -1};
	if (ifa->ifa_addr->sa_family == AF_INET) {
		ret->addr.len = sizeof(struct sockaddr_in);
	} else if (ifa->ifa_addr->sa_family == AF_INET6) {
		const struct sockaddr_in6 *in6 = (const void *)ifa->ifa_addr;

		if (IN6_IS_ADDR_LINKLOCAL(&in6->sin6_addr))
			return false;
		ret->addr.len = sizeof(struct sockaddr_in6);
	} else {
		return false;
	}
	memcpy(&ret->addr.ss, ifa->ifa_addr, ret->addr.len);
	(void)mc_strlcpy(ret->ifname, sizeof(ret->ifname), ifa->ifa_name); /* IFNAMSIZ is 16 */
	ret->is_loopback = (ifa->ifa_flags & IFF_LOOPBACK) != 0;
	if (read_number(sys, ret->ifname, "speed", &v) && v > 0 && v <= UINT32_MAX)
		ret->mbps = (uint32_t)v;
	if (read_number(sys, ret->ifname, "device/numa_node", &v) && v >= 0 && v <= INT_MAX)
		ret->numa = (int)v;
	return true;
}

static int by_interface(const void *a, const void *b)
{
	const struct mc_topo_addr *x = a, *y = b;
	int diff = mc_name_cmp(x->ifname, y->ifname);

	if (diff == 0)
		diff = (int)x->addr.sa.sa_family - (int)y->addr.sa.sa_family;
	return diff ? diff : memcmp(&x->addr.ss, &y->addr.ss, x->addr.len);
}

int mc_topo_addrs(const char *sys_root, struct mc_topo_addr **ret)
{
	struct mc_topo_addr one;
	struct ifaddrs *all;
	void *list = NULL;
	size_t n = 0, cap = 0;
	int rc = 0;

	if (getifaddrs(&all) < 0)
		return errno == ENOMEM ? -MC_E_NOMEM : -MC_E_IO;
	for (const struct ifaddrs *ifa = all; ifa && rc == 0; ifa = ifa->ifa_next) {
		if (n == MC_TOPO_ADDRS_MAX || !take(ifa, sys_root ? sys_root : "/sys", &one))
			continue;
		rc = mc_array_grow(&list, &cap, n + 1, MC_TOPO_ADDRS_MAX, sizeof(one));
		if (rc == 0)
			((struct mc_topo_addr *)list)[n++] = one;
	}
	freeifaddrs(all);
	if (rc < 0) {
		mc_free(list);
		return rc;
	}
	if (n)
		qsort(list, n, sizeof(one), by_interface);
	*ret = list;
	return (int)n;
}
