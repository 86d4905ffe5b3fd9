/*
 * control_place.c: which address and port a process listens on, from its name, the kind of
 * metadata and the environment. See control.h for the rules.
 */
#include "disco/control.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/opt.h"
#include "base/str.h"

struct name_parts {
	char host[MC_CONTROL_HOST_MAX];
	uint16_t port;	 /* 0: none */
	bool is_numeric; /* addr is set */
	struct mc_addr addr;
};

/* "host", "host:port", "[v6]:port", "v6" */
static int split(const char *name, struct name_parts *ret, struct mc_diag *diag)
{
	const char *colon = strrchr(name, ':');
	char text[MC_ADDR_TEXT_MAX];
	uint64_t port = 0;
	size_t len = colon ? (size_t)(colon - name) : strlen(name);

	*ret = (struct name_parts){0};
	if (mc_addr_parse(name, 0, &ret->addr) == 0) {
		ret->is_numeric = true;
		ret->port = mc_addr_port(&ret->addr);
		return mc_strlcpy(ret->host, sizeof(ret->host),
				  mc_addr_format_host(&ret->addr, text));
	}
	if (len == 0 || len >= sizeof(ret->host) || memchr(name, ':', len) ||
	    memchr(name, '[', len) ||
	    (colon && (mc_opt_parse_u64(colon + 1, &port) < 0 || port == 0 || port > UINT16_MAX))) {
		mc_diag_set(diag, "server name \"%.256s\" is no host, host:port or [v6]:port",
			    name);
		return -MC_E_INVAL;
	}
	memcpy(ret->host, name, len);
	ret->port = (uint16_t)port;
	return 0;
}

static void any_address(bool is_ipv6, struct mc_addr *ret)
{
	int rc = mc_addr_parse(is_ipv6 ? "::" : "0.0.0.0", 0, ret);

	mc_assert(rc == 0);
}

/* Bind what the advertised host stands for, if that is an address peers elsewhere can mean. */
static void bind_host(const struct mc_hs_conf *conf, const struct name_parts *n,
		      struct mc_addr *ret)
{
	struct mc_addr addr = n->addr;
	bool is_found = n->is_numeric || mc_addr_resolve(n->host, 0, &addr, NULL) == 0;

	if (is_found && mc_addr_is_local(&addr) && (n->is_numeric || !mc_addr_is_loopback(&addr))) {
		*ret = addr;
		return;
	}
	if (strcmp(n->host, "localhost") == 0 && is_found) {
		*ret = addr;
		return;
	}
	any_address(is_found ? addr.sa.sa_family == AF_INET6 : conf->is_ipv6, ret);
	if (!is_found || !mc_addr_is_any(&addr))
		mc_log_warn("name is no address of this machine, listening on all",
			    "host=%s reason=%s", n->host,
			    !is_found ? "does not resolve"
				      : (mc_addr_is_loopback(&addr) ? "resolves to loopback"
								    : "is not local"));
}

/* With a metadata service peers look the address up, and without a name they are told it, so any
 * local one will do. */
static int place_by_address(const struct mc_hs_conf *conf, const struct name_parts *n,
			    struct mc_control_place *ret, struct mc_diag *diag)
{
	int rc;

	if (conf->bind_address[0]) {
		rc = mc_addr_parse(conf->bind_address, 0, &ret->bind);
		if (rc < 0 || !mc_addr_is_local(&ret->bind)) {
			mc_diag_set(diag,
				    "MC_TCP_BIND_ADDRESS \"%s\" is no address of this machine",
				    conf->bind_address);
			return rc < 0 ? rc : -MC_E_ADDR;
		}
	} else if (n->is_numeric && !mc_addr_is_any(&n->addr) && mc_addr_is_local(&n->addr)) {
		ret->bind = n->addr;
	} else {
		rc = mc_addr_default(conf->is_ipv6 ? AF_INET6 : AF_INET, &ret->bind);
		if (rc < 0) {
			mc_diag_set(diag, "this machine has no %s address",
				    conf->is_ipv6 ? "IPv6" : "IPv4");
			return rc;
		}
	}
	mc_addr_format_host(&ret->bind, ret->host);
	return 0;
}

int mc_control_place(const struct mc_hs_conf *conf, const char *name, bool is_p2p,
		     struct mc_control_place *ret, struct mc_diag *diag)
{
	struct mc_control_place place = {0};
	struct name_parts n = {0};
	uint16_t port = 0;
	int rc = name[0] ? split(name, &n, diag) : 0;

	if (rc < 0)
		return rc;
	if (name[0] && (is_p2p || conf->is_legacy_port)) {
		memcpy(place.host, n.host, sizeof(place.host));
		bind_host(conf, &n, &place.bind);
	} else {
		rc = place_by_address(conf, &n, &place, diag);
	}
	if (rc < 0)
		return rc;
	if (!is_p2p && conf->is_legacy_port)
		port = n.port ? n.port : (uint16_t)conf->port_default;
	mc_addr_port_set(&place.bind, port);
	*ret = place;
	return 0;
}

int mc_control_name(const char *host, uint16_t port, char *buf, size_t cap)
{
	bool is_v6 = strchr(host, ':') != NULL;
	int len = snprintf(buf, cap, is_v6 ? "[%s]:%u" : "%s:%u", host, port);

	return len < 0 || (size_t)len >= cap ? -MC_E_TOO_BIG : 0;
}
