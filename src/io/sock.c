/*
 * sock.c: addresses and sockets over the system calls, with errors as -enum mc_err.
 */
#include "io/sock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"

#define PORT_OURS_MAX 32767u /* above begins the range that the kernel hands out by itself */
#define ACCEPT_TRIES_MAX 16  /* connections that died in the queue, skipped in one call */

/* Like mc_err_from_errno(), read from the side of a connection. */
static int sock_err(int err)
{
	switch (err) {
	case ETIMEDOUT: /* the peer stopped to acknowledge: the path is broken, not the operation */
		return -MC_E_UNREACHABLE;
	case ENOENT: /* no such unix socket */
		return -MC_E_REFUSED;
	case ENOBUFS:
	case ENOMEM:
		return -MC_E_LIMIT;
	default:
		return mc_err_from_errno(err);
	}
}

static void addr_set4(struct mc_addr *a, struct in_addr ip, uint16_t port)
{
	struct sockaddr_in *in = (void *)&a->ss; /* the storage of any address */

	memset(a, 0, sizeof(*a));
	in->sin_family = AF_INET;
	in->sin_addr = ip;
	in->sin_port = htons(port);
	a->len = sizeof(*in);
}

static void addr_set6(struct mc_addr *a, struct in6_addr ip, uint32_t scope, uint16_t port)
{
	struct sockaddr_in6 *in6 = (void *)&a->ss; /* the storage of any address */

	memset(a, 0, sizeof(*a));
	in6->sin6_family = AF_INET6;
	in6->sin6_addr = ip;
	in6->sin6_scope_id = scope;
	in6->sin6_port = htons(port);
	a->len = sizeof(*in6);
}

/* "1" … "65535", nothing else. */
static bool port_parse(const char *text, uint16_t *ret_port)
{
	uint32_t v = 0;

	if (!*text || strlen(text) > 5)
		return false;
	for (; *text; text++) {
		if (*text < '0' || *text > '9')
			return false;
		v = v * 10 + (uint32_t)(*text - '0');
	}
	if (v > UINT16_MAX)
		return false;
	*ret_port = (uint16_t)v;
	return true;
}

/*
 * Splits "host", "host:port", "[v6]:port", "[v6]" and a bare "v6" (more than one colon).
 * @return false when the text is none of them or the host does not fit
 */
static bool host_split(const char *text, uint16_t port_default, char *host, size_t host_size,
		       uint16_t *ret_port)
{
	const char *colon, *end;
	size_t len;

	*ret_port = port_default;
	if (*text == '[') {
		end = strchr(++text, ']');
		if (!end || (end[1] && (end[1] != ':' || !port_parse(end + 2, ret_port))))
			return false;
	} else {
		colon = strchr(text, ':');
		end = text + strlen(text);
		if (colon && !strchr(colon + 1, ':')) {
			end = colon;
			if (!port_parse(colon + 1, ret_port))
				return false;
		}
	}
	len = (size_t)(end - text);
	if (len == 0 || len >= host_size)
		return false;
	memcpy(host, text, len);
	host[len] = '\0';
	return true;
}

static bool scope_parse(const char *text, uint32_t *ret_scope)
{
	uint16_t num;

	*ret_scope = if_nametoindex(text);
	if (*ret_scope == 0 && port_parse(text, &num)) /* a small decimal number: an index */
		*ret_scope = num;
	return *ret_scope != 0;
}

static int host_parse(char *host, uint16_t port, struct mc_addr *ret_addr)
{
	struct in_addr ip4;
	struct in6_addr ip6;
	uint32_t scope = 0;
	char *percent;

	if (inet_pton(AF_INET, host, &ip4) == 1) {
		addr_set4(ret_addr, ip4, port);
		return 0;
	}
	percent = strchr(host, '%');
	if (percent) {
		*percent = '\0';
		if (!scope_parse(percent + 1, &scope))
			return -MC_E_INVAL;
	}
	if (inet_pton(AF_INET6, host, &ip6) != 1)
		return -MC_E_INVAL;
	addr_set6(ret_addr, ip6, scope, port);
	return 0;
}

int mc_addr_parse(const char *text, uint16_t port_default, struct mc_addr *ret_addr)
{
	char host[INET6_ADDRSTRLEN + 1 + IF_NAMESIZE];
	uint16_t port;

	if (!host_split(text, port_default, host, sizeof(host), &port))
		return -MC_E_INVAL;
	return host_parse(host, port, ret_addr);
}

int mc_addr_resolve(const char *text, uint16_t port_default, struct mc_addr *ret_addr,
		    struct mc_diag *diag)
{
	const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
	struct addrinfo *list = NULL, *best;
	char host[NI_MAXHOST];
	uint16_t port;
	int rc;

	if (mc_addr_parse(text, port_default, ret_addr) == 0)
		return 0;
	if (!host_split(text, port_default, host, sizeof(host), &port)) {
		mc_diag_set(diag, "address \"%s\": expected host, host:port or [v6]:port", text);
		return -MC_E_INVAL;
	}
	rc = getaddrinfo(host, NULL, &hints, &list);
	if (rc != 0) {
		mc_diag_set(diag, "host \"%s\": %s", host, gai_strerror(rc));
		return -MC_E_DNS;
	}
	mc_assert(list); /* success gives an address */
	/* IPv4 first: that is where a listener on the default address is. */
	best = list;
	for (struct addrinfo *it = list; it; it = it->ai_next) {
		if (it->ai_family == AF_INET) {
			best = it;
			break;
		}
	}
	memset(ret_addr, 0, sizeof(*ret_addr));
	memcpy(&ret_addr->ss, best->ai_addr, best->ai_addrlen);
	ret_addr->len = best->ai_addrlen;
	mc_addr_port_set(ret_addr, port);
	freeaddrinfo(list);
	return 0;
}

int mc_addr_text_full(const char *text, uint16_t port_default, char *buf, size_t cap)
{
	char host[NI_MAXHOST];
	uint16_t port;
	int n;

	if (!host_split(text, port_default, host, sizeof(host), &port))
		return -MC_E_INVAL;
	n = snprintf(buf, cap, strchr(host, ':') ? "[%s]:%u" : "%s:%u", host, port);
	return n < 0 || (size_t)n >= cap ? -MC_E_INVAL : 0;
}

int mc_addr_unix(const char *path, struct mc_addr *ret_addr)
{
	struct sockaddr_un *un = (void *)&ret_addr->ss; /* the storage of any address */
	size_t len = strlen(path);

	if (len == 0 || len >= sizeof(un->sun_path))
		return -MC_E_INVAL;
	memset(ret_addr, 0, sizeof(*ret_addr));
	un->sun_family = AF_UNIX;
	memcpy(un->sun_path, path, len);
	if (*path == '@') /* the abstract name space: a leading zero, no closing one */
		un->sun_path[0] = '\0';
	ret_addr->len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + (*path != '@'));
	return 0;
}

static char *format_unix(const struct mc_addr *addr, char *buf)
{
	const struct sockaddr_un *un = (const void *)&addr->ss;
	size_t off = offsetof(struct sockaddr_un, sun_path);
	int len = addr->len > off ? (int)(addr->len - off) : 0;

	if (len > 0 && un->sun_path[0] == '\0')
		(void)snprintf(buf, MC_ADDR_TEXT_MAX, "unix:@%.*s", len - 1, un->sun_path + 1);
	else
		(void)snprintf(buf, MC_ADDR_TEXT_MAX, "unix:%.*s", len, un->sun_path);
	return buf;
}

char *mc_addr_format_host(const struct mc_addr *addr, char *buf)
{
	const struct sockaddr_in *in = (const void *)&addr->ss;
	const struct sockaddr_in6 *in6 = (const void *)&addr->ss;
	char name[IF_NAMESIZE];
	size_t len;

	switch (addr->len ? addr->sa.sa_family : AF_UNSPEC) {
	case AF_INET:
		(void)inet_ntop(AF_INET, &in->sin_addr, buf, MC_ADDR_TEXT_MAX);
		return buf;
	case AF_INET6:
		(void)inet_ntop(AF_INET6, &in6->sin6_addr, buf, MC_ADDR_TEXT_MAX);
		len = strlen(buf);
		if (in6->sin6_scope_id && if_indextoname(in6->sin6_scope_id, name))
			(void)snprintf(buf + len, MC_ADDR_TEXT_MAX - len, "%%%s", name);
		else if (in6->sin6_scope_id)
			(void)snprintf(buf + len, MC_ADDR_TEXT_MAX - len, "%%%u",
				       in6->sin6_scope_id);
		return buf;
	case AF_UNIX:
		return format_unix(addr, buf);
	default:
		(void)snprintf(buf, MC_ADDR_TEXT_MAX, "none");
		return buf;
	}
}

char *mc_addr_format(const struct mc_addr *addr, char *buf)
{
	char host[MC_ADDR_TEXT_MAX];

	(void)mc_addr_format_host(addr, host);
	if (addr->len && addr->sa.sa_family == AF_INET6)
		(void)snprintf(buf, MC_ADDR_TEXT_MAX, "[%.*s]:%u", MC_ADDR_TEXT_MAX - 10, host,
			       mc_addr_port(addr));
	else if (addr->len && addr->sa.sa_family == AF_INET)
		(void)snprintf(buf, MC_ADDR_TEXT_MAX, "%.*s:%u", MC_ADDR_TEXT_MAX - 8, host,
			       mc_addr_port(addr));
	else
		(void)snprintf(buf, MC_ADDR_TEXT_MAX, "%s", host);
	return buf;
}

uint16_t mc_addr_port(const struct mc_addr *addr)
{
	if (addr->sa.sa_family == AF_INET)
		return ntohs(((const struct sockaddr_in *)&addr->ss)->sin_port);
	if (addr->sa.sa_family == AF_INET6)
		return ntohs(((const struct sockaddr_in6 *)&addr->ss)->sin6_port);
	return 0;
}

void mc_addr_port_set(struct mc_addr *addr, uint16_t port)
{
	if (addr->sa.sa_family == AF_INET)
		((struct sockaddr_in *)&addr->ss)->sin_port = htons(port);
	else if (addr->sa.sa_family == AF_INET6)
		((struct sockaddr_in6 *)&addr->ss)->sin6_port = htons(port);
}

/* Bytes of the IP address and their number; an IPv4 address mapped into IPv6 counts as IPv4. */
static const uint8_t *addr_ip(const struct mc_addr *addr, size_t *ret_len)
{
	static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
	const uint8_t *ip;

	*ret_len = 0;
	if (addr->len == 0)
		return NULL;
	if (addr->sa.sa_family == AF_INET) {
		*ret_len = 4;
		return (const uint8_t *)&((const struct sockaddr_in *)&addr->ss)->sin_addr;
	}
	if (addr->sa.sa_family != AF_INET6)
		return NULL;
	ip = (const uint8_t *)&((const struct sockaddr_in6 *)&addr->ss)->sin6_addr;
	if (memcmp(ip, mapped, sizeof(mapped)) == 0) {
		*ret_len = 4;
		return ip + sizeof(mapped);
	}
	*ret_len = 16;
	return ip;
}

static bool ip_is_equal(const struct mc_addr *a, const struct mc_addr *b)
{
	size_t la, lb;
	const uint8_t *ia = addr_ip(a, &la), *ib = addr_ip(b, &lb);

	if (!ia || !ib || la != lb || memcmp(ia, ib, la) != 0)
		return false;
	return la == 4 || ((const struct sockaddr_in6 *)&a->ss)->sin6_scope_id ==
			      ((const struct sockaddr_in6 *)&b->ss)->sin6_scope_id;
}

bool mc_addr_is_equal(const struct mc_addr *a, const struct mc_addr *b)
{
	if (a->len && a->len == b->len && a->sa.sa_family == AF_UNIX)
		return memcmp(&a->ss, &b->ss, a->len) == 0;
	return ip_is_equal(a, b) && mc_addr_port(a) == mc_addr_port(b);
}

bool mc_addr_is_loopback(const struct mc_addr *addr)
{
	size_t len;
	const uint8_t *ip = addr_ip(addr, &len);

	if (!ip)
		return addr->len && addr->sa.sa_family == AF_UNIX;
	return len == 4 ? ip[0] == 127 : memcmp(ip, &in6addr_loopback, 16) == 0;
}

bool mc_addr_is_any(const struct mc_addr *addr)
{
	static const uint8_t zero[16];
	size_t len;
	const uint8_t *ip = addr_ip(addr, &len);

	return ip && memcmp(ip, zero, len) == 0;
}

/* @return false for an entry without an IP address */
static bool ifa_addr(const struct ifaddrs *ifa, struct mc_addr *ret_addr)
{
	if (!ifa->ifa_addr)
		return false;
	memset(ret_addr, 0, sizeof(*ret_addr));
	if (ifa->ifa_addr->sa_family == AF_INET)
		ret_addr->len = sizeof(struct sockaddr_in);
	else if (ifa->ifa_addr->sa_family == AF_INET6)
		ret_addr->len = sizeof(struct sockaddr_in6);
	else
		return false;
	memcpy(&ret_addr->ss, ifa->ifa_addr, ret_addr->len);
	return true;
}

bool mc_addr_is_local(const struct mc_addr *addr)
{
	struct ifaddrs *list = NULL;
	struct mc_addr own;
	bool found = mc_addr_is_loopback(addr);

	if (found || getifaddrs(&list) != 0)
		return found;
	for (struct ifaddrs *it = list; it && !found; it = it->ifa_next)
		found = ifa_addr(it, &own) && ip_is_equal(&own, addr);
	freeifaddrs(list);
	return found;
}

bool mc_addr_is_running(const struct mc_addr *addr)
{
	struct ifaddrs *list = NULL;
	struct mc_addr own;
	bool is_running = false;

	if (mc_addr_is_loopback(addr))
		return true;
	if (getifaddrs(&list) != 0)
		return true;
	for (struct ifaddrs *it = list; it && !is_running; it = it->ifa_next)
		is_running = ifa_addr(it, &own) && ip_is_equal(&own, addr) &&
			     (it->ifa_flags & IFF_UP) && (it->ifa_flags & IFF_RUNNING);
	freeifaddrs(list);
	return is_running;
}

/* 2: what a peer on the network can use; 1: link-local (needs a scope at the peer); 0: loopback. */
static int ifa_rank(const struct ifaddrs *ifa, const struct mc_addr *addr)
{
	const struct sockaddr_in6 *in6 = (const void *)&addr->ss;

	if (ifa->ifa_flags & IFF_LOOPBACK)
		return 0;
	if (addr->sa.sa_family == AF_INET6 && IN6_IS_ADDR_LINKLOCAL(&in6->sin6_addr))
		return 1;
	return 2;
}

int mc_addr_default(int family, struct mc_addr *ret_addr)
{
	struct ifaddrs *list = NULL;
	struct mc_addr own;
	int best = -1;

	if (getifaddrs(&list) != 0)
		return mc_err_from_errno(errno);
	for (struct ifaddrs *it = list; it; it = it->ifa_next) {
		if (!(it->ifa_flags & IFF_UP) || !ifa_addr(it, &own) ||
		    own.sa.sa_family != family || ifa_rank(it, &own) <= best)
			continue;
		best = ifa_rank(it, &own);
		*ret_addr = own;
	}
	freeifaddrs(list);
	return best < 0 ? -MC_E_ADDR : 0;
}

static int listen_fill(int fd, const struct mc_addr *addr, int backlog, struct mc_addr *ret_bound)
{
	const int one = 1;

	if (addr->sa.sa_family != AF_UNIX &&
	    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) != 0)
		return sock_err(errno);
	if (bind(fd, &addr->sa, addr->len) != 0 || listen(fd, backlog) != 0)
		return sock_err(errno);
	if (ret_bound) {
		ret_bound->len = sizeof(ret_bound->ss);
		if (getsockname(fd, &ret_bound->sa, &ret_bound->len) != 0)
			return sock_err(errno);
	}
	return 0;
}

int mc_sock_listen(const struct mc_addr *addr, int backlog, int *ret_fd, struct mc_addr *ret_bound)
{
	int fd = socket(addr->sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int rc;

	if (fd < 0)
		return sock_err(errno);
	rc = listen_fill(fd, addr, backlog, ret_bound);
	if (rc < 0) {
		mc_fd_close(&fd);
		return rc;
	}
	*ret_fd = fd;
	return 0;
}

int mc_sock_listen_range(const struct mc_addr *host, uint16_t port_min, uint16_t port_max,
			 int backlog, int *ret_fd, struct mc_addr *ret_bound)
{
	struct mc_addr addr = *host;
	uint32_t start = 0, count;
	int rc = -MC_E_ADDR_IN_USE;

	if (port_min == 0 || port_max < port_min)
		return -MC_E_INVAL;
	/* Only a caller that asks for nothing else gets a port that the kernel may hand out. */
	if (port_min <= PORT_OURS_MAX && port_max > PORT_OURS_MAX)
		port_max = PORT_OURS_MAX;
	count = (uint32_t)port_max - port_min + 1;
	if (getrandom(&start, sizeof(start), GRND_NONBLOCK) < 0)
		start = (uint32_t)getpid(); /* any start is right, a common one only slower */
	for (uint32_t i = 0; i < count; i++) {
		mc_addr_port_set(&addr, (uint16_t)(port_min + (start + i) % count));
		rc = mc_sock_listen(&addr, backlog, ret_fd, ret_bound);
		if (rc != -MC_E_ADDR_IN_USE)
			return rc;
	}
	return rc;
}

void mc_fd_limit_raise(void)
{
	struct rlimit r;

	if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < r.rlim_max) {
		r.rlim_cur = r.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &r);
	}
}

int mc_sock_connect(const struct mc_addr *to, const struct mc_addr *from, int *ret_fd)
{
	const int one = 1;
	int fd = socket(to->sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int rc = 0;

	if (fd < 0)
		return sock_err(errno);
	if (from && from->len) {
		/* Choose the port at connect, by the whole 4-tuple. Refused only by old kernels. */
		if (mc_addr_port(from) == 0)
			(void)setsockopt(fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
		if (bind(fd, &from->sa, from->len) != 0)
			rc = sock_err(errno);
	}
	if (rc == 0 && connect(fd, &to->sa, to->len) != 0 && errno != EINPROGRESS)
		rc = sock_err(errno);
	if (rc < 0) {
		mc_fd_close(&fd);
		return rc;
	}
	*ret_fd = fd;
	return 0;
}

int mc_sock_connect_result(int fd)
{
	struct mc_addr own = {.len = sizeof(own.ss)}, peer = {.len = sizeof(peer.ss)};
	socklen_t len = sizeof(int);
	int err = 0;

	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) != 0)
		return sock_err(errno);
	if (err)
		return sock_err(err);
	if (getsockname(fd, &own.sa, &own.len) != 0 || getpeername(fd, &peer.sa, &peer.len) != 0)
		return sock_err(errno);
	/* A port nobody listens on can be chosen as our own: TCP then connects to itself. */
	if (own.sa.sa_family != AF_UNIX && mc_addr_is_equal(&own, &peer))
		return -MC_E_REFUSED;
	return 0;
}

int mc_sock_accept(int listen_fd, int *ret_fd, struct mc_addr *ret_peer)
{
	struct mc_addr peer;
	int fd;

	for (int i = 0; i < ACCEPT_TRIES_MAX; i++) {
		peer.len = sizeof(peer.ss);
		fd = accept4(listen_fd, &peer.sa, &peer.len, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd >= 0) {
			if (ret_peer)
				*ret_peer = peer;
			*ret_fd = fd;
			return 0;
		}
		switch (errno) {
		case EAGAIN:
			return -MC_E_AGAIN;
		case EMFILE:
		case ENFILE:
		case ENOBUFS:
		case ENOMEM:
			return -MC_E_LIMIT;
		case EBADF:
		case EINVAL:
		case ENOTSOCK:
			return -MC_E_IO;
		default: /* accept(2): errors of the new connection come out here, try the next */
			break;
		}
	}
	return -MC_E_AGAIN;
}

int mc_sock_nodelay(int fd)
{
	const int one = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) != 0 && errno != EOPNOTSUPP)
		return sock_err(errno);
	return 0;
}

int mc_sock_user_timeout(int fd, uint32_t timeout_ms)
{
	const int one = 1, probes = 3;
	const int wait_s = (int)mc_max(timeout_ms / 4000, 1u); /* idle + 3 probes = the timeout */
	const unsigned int user_ms = timeout_ms;

	if (setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_ms, sizeof(user_ms)) != 0)
		return errno == EOPNOTSUPP ? 0 : sock_err(errno); /* a unix socket */
	if (setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one)) != 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &wait_s, sizeof(wait_s)) != 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &wait_s, sizeof(wait_s)) != 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes)) != 0)
		return sock_err(errno);
	return 0;
}

void mc_fd_close(int *fd)
{
	int saved = errno;

	if (*fd >= 0)
		(void)close(*fd); /* the descriptor is gone whatever it says */
	*fd = -1;
	errno = saved;
}

int mc_sock_wait(int fd, short events, uint64_t deadline_ns)
{
	struct pollfd p = {.fd = fd, .events = events};
	struct timespec ts, *tp;
	uint64_t now;
	int n;

	do {
		now = mc_now_ns();
		tp = NULL;
		if (deadline_ns != MC_TIME_NEVER) {
			uint64_t left = deadline_ns > now ? deadline_ns - now : 0;

			ts.tv_sec = (time_t)(left / MC_NS_PER_S);
			ts.tv_nsec = (long)(left % MC_NS_PER_S);
			tp = &ts;
		}
		n = ppoll(&p, 1, tp, NULL);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return sock_err(errno);
	return n == 0 ? -MC_E_TIMEDOUT : 0;
}

/* What one send() or recv() said; waits when it could do nothing yet. @return bytes moved; 0: try
 * again; < 0 */
static ssize_t moved(int fd, ssize_t n, short events, uint64_t deadline_ns)
{
	if (n >= 0)
		return n;
	if (errno == EINTR)
		return 0;
	return errno == EAGAIN ? mc_sock_wait(fd, events, deadline_ns) : sock_err(errno);
}

int mc_sock_send_all(int fd, const void *data, size_t len, uint64_t deadline_ns)
{
	const uint8_t *at = data;
	ssize_t n;

	while (len > 0) {
		n = moved(fd, send(fd, at, len, MSG_NOSIGNAL), POLLOUT, deadline_ns);
		if (n < 0)
			return (int)n;
		at += n;
		len -= (size_t)n;
	}
	return 0;
}

int mc_sock_recv_all(int fd, void *data, size_t len, uint64_t deadline_ns)
{
	uint8_t *at = data;
	ssize_t n;

	while (len > 0) {
		n = recv(fd, at, len, 0);
		if (n == 0)
			return -MC_E_RESET;
		n = moved(fd, n, POLLIN, deadline_ns);
		if (n < 0)
			return (int)n;
		at += n;
		len -= (size_t)n;
	}
	return 0;
}
