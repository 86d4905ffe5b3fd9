/*
 * sock.h: socket addresses and the few socket calls of the project, with errors as -enum mc_err.
 * Every descriptor is CLOEXEC and non-blocking.
 */
#ifndef MC_IO_SOCK_H
#define MC_IO_SOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/err.h"

#define MC_ADDR_TEXT_MAX 80 /* "[v6%scope]:port" with its zero */

struct mc_addr {
	union {
		struct sockaddr sa;
		struct sockaddr_storage ss;
	};
	socklen_t len;
};

/** "ip:port", "[v6]:port", "ip" with `port_default`. Numeric only, never DNS. @return 0;
 * -MC_E_INVAL */
int mc_addr_parse(const char *text, uint16_t port_default, struct mc_addr *ret_addr);
/** Like parse, and host names through DNS. Blocks; not on a loop. @return 0; -MC_E_INVAL; -MC_E_DNS
 */
int mc_addr_resolve(const char *text, uint16_t port_default, struct mc_addr *ret_addr,
		    struct mc_diag *diag);
/** The same text with a port, that of `text` or `port_default`. @return 0; -MC_E_INVAL (no such
 * text, or longer than cap) */
int mc_addr_text_full(const char *text, uint16_t port_default, char *buf, size_t cap);
/** A unix socket; a leading '@' is the abstract name space. @return 0; -MC_E_INVAL (empty or longer
 * than sun_path) */
int mc_addr_unix(const char *path, struct mc_addr *ret_addr);
/** "ip:port" / "[v6]:port" into buf (MC_ADDR_TEXT_MAX). Returns buf. */
char *mc_addr_format(const struct mc_addr *addr, char *buf);
/** Same without the port and brackets. */
char *mc_addr_format_host(const struct mc_addr *addr, char *buf);
uint16_t mc_addr_port(const struct mc_addr *addr);
void mc_addr_port_set(struct mc_addr *addr, uint16_t port);
bool mc_addr_is_equal(const struct mc_addr *a, const struct mc_addr *b);
bool mc_addr_is_loopback(const struct mc_addr *addr);
bool mc_addr_is_any(const struct mc_addr *addr);
/** True when the address belongs to an interface of this network namespace. */
bool mc_addr_is_local(const struct mc_addr *addr);
/** True when the address is on an interface that is up and has its link; also when the kernel does
 * not tell. */
bool mc_addr_is_running(const struct mc_addr *addr);
/** First address of an UP, non-loopback interface (loopback when there is no other). @param family
 * AF_INET or AF_INET6 */
int mc_addr_default(int family, struct mc_addr *ret_addr);

/** A process with many peers needs descriptors: take what the hard limit allows, as upstream does.
 */
void mc_fd_limit_raise(void);

/** Listen on addr (port 0: any). @return 0; -MC_E_ADDR_IN_USE; -MC_E_ADDR; -MC_E_LIMIT; -MC_E_PERM;
 * -MC_E_IO */
int mc_sock_listen(const struct mc_addr *addr, int backlog, int *ret_fd, struct mc_addr *ret_bound);
/** Listen on the first free port of [port_min, port_max], tried from a random start; never a port
 * above 32767 by itself. */
int mc_sock_listen_range(const struct mc_addr *host, uint16_t port_min, uint16_t port_max,
			 int backlog, int *ret_fd, struct mc_addr *ret_bound);
/** Start a connection from `from` (NULL: any). The socket may still be connecting. @return 0;
 * -MC_E_REFUSED; -MC_E_UNREACHABLE; … */
int mc_sock_connect(const struct mc_addr *to, const struct mc_addr *from, int *ret_fd);
/** Outcome of a started connection once it is writable. @return 0 or the error */
int mc_sock_connect_result(int fd);
/** @return 0; -MC_E_AGAIN; -MC_E_LIMIT (descriptors: the caller backs off); -MC_E_IO */
int mc_sock_accept(int listen_fd, int *ret_fd, struct mc_addr *ret_peer);
int mc_sock_nodelay(int fd);
/** Give up on unacknowledged data after this long (TCP_USER_TIMEOUT), and probe an idle peer
 * (keep-alive). */
int mc_sock_user_timeout(int fd, uint32_t timeout_ms);
void mc_fd_close(int *fd); /* closes *fd unless it is -1, sets -1, keeps errno */

/** Blocking helpers for cold paths with a deadline (absolute mc_now_ns). @return 0; -MC_E_TIMEDOUT;
 * -MC_E_RESET; -MC_E_IO */
int mc_sock_wait(int fd, short events, uint64_t deadline_ns);
int mc_sock_send_all(int fd, const void *data, size_t len, uint64_t deadline_ns);
int mc_sock_recv_all(int fd, void *data, size_t len, uint64_t deadline_ns);

#endif
