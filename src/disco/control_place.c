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

/* MC_TCP_BIND_ADDRESS. It may mean all addresses where peers are told a name. */
static int bind_asked(const struct mc_hs_conf *conf, bool is_any_ok, struct mc_addr *ret,
		      struct mc_diag *diag)
{
	int rc = mc_addr_parse(conf->bind_address, 0, ret);

	if (rc == 0 && (mc_addr_is_local(ret) || (is_any_ok && mc_addr_is_any(ret))))
		return 0;
	mc_diag_set(diag, "MC_TCP_BIND_ADDRESS \"%s\" is no address of this machine",
		    conf->bind_address);
	return rc < 0 ? rc : -MC_E_ADDR;
}

/* Bind what the advertised host stands for. Where that is not here, or here alone although the name
 * may mean more to others, MC_TCP_BIND_ADDRESS says what is meant. */
static int bind_host(const struct mc_hs_conf *conf, const struct name_parts *n, struct mc_addr *ret,
		     struct mc_diag *diag)
{
	struct mc_diag why = {0};
	struct mc_addr addr = n->addr;
	char text[MC_ADDR_TEXT_MAX];
	int rc = n->is_numeric ? 0 : mc_addr_resolve(n->host, 0, &addr, &why);
	bool is_here = rc == 0 && (mc_addr_is_local(&addr) || mc_addr_is_any(&addr));
	bool is_alone = !n->is_numeric && is_here && mc_addr_is_loopback(&addr) &&
			strcmp(n->host, "localhost") != 0;

	if ((!is_here || is_alone) && conf->bind_address[0])
		return bind_asked(conf, true, ret, diag);
	if (!is_here) {
		mc_diag_set(diag,
			    "server name \"%s\" is no address of this machine (%s); use one that "
			    "is, or set MC_TCP_BIND_ADDRESS to the one to listen on, 0.0.0.0 or :: "
			    "for all",
			    n->host,
			    rc < 0	    ? why.text
			    : n->is_numeric ? "no interface has it"
					    : mc_addr_format_host(&addr, text));
		return rc < 0 ? rc : -MC_E_ADDR;
	}
	if (is_alone)
		mc_log_warn("name resolves to loopback: peers on other hosts cannot reach it",
			    "host=%s address=%s fix=\"use an address as name, or set "
			    "MC_TCP_BIND_ADDRESS to the one to listen on\"",
			    n->host, mc_addr_format_host(&addr, text));
	*ret = addr;
	return 0;
}

/* With a metadata service peers look the address up, and without a name they are told it, so any
 * local one will do. */
static int place_by_address(const struct mc_hs_conf *conf, const struct name_parts *n,
			    struct mc_control_place *ret, struct mc_diag *diag)
{
	int rc;

	if (conf->bind_address[0]) {
		rc = bind_asked(conf, false, &ret->bind, diag);
		if (rc < 0)
			return rc;
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
	if (n.port == 0)
		memcpy(place.name_host, n.host, sizeof(place.name_host));
	if (name[0] && (is_p2p || conf->is_legacy_port)) {
		memcpy(place.host, n.host, sizeof(place.host));
		rc = bind_host(conf, &n, &place.bind, diag);
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
