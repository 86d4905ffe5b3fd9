/*
 * detour.c: see detour.h. Calls of the program itself, the relays' among them, are let through:
 * they come from its own text.
 */
#include "detour.h"

#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

#define RELAYS_MAX 16u

typedef int connect_fn(int fd, const struct sockaddr *to, socklen_t len);

extern const char __executable_start[], etext[]; /* the linker's */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards all below */
static struct relay_opts opts;
static bool is_on, is_all_paused;
static char paused_host[MC_ADDR_TEXT_MAX]; /* "": none */
static struct {
	struct mc_addr to;
	struct relay *relay;
} relays[RELAYS_MAX];
static unsigned nrelays;

static connect_fn *libc_connect(void)
{
	static connect_fn *_Atomic found;
	connect_fn *fn = found;

	if (!fn) {
		*(void **)&fn = dlsym(RTLD_NEXT, "connect");
		found = fn;
	}
	return fn;
}

static bool is_quiet(const struct mc_addr *to)
{
	char host[MC_ADDR_TEXT_MAX];

	return is_all_paused || strcmp(mc_addr_format_host(to, host), paused_host) == 0;
}

/* NULL: there is none and none can be made. */
static struct relay *relay_to(const struct sockaddr *to, socklen_t len)
{
	struct mc_addr addr = {.len = len};
	unsigned i = 0;

	memcpy(&addr.ss, to, len);
	while (i < nrelays && !mc_addr_is_equal(&relays[i].to, &addr))
		i++;
	if (i < nrelays)
		return relays[i].relay;
	if (i == RELAYS_MAX || relay_open(&addr, &opts, &relays[i].relay) < 0)
		return NULL;
	opts.seed++;
	relays[i].to = addr;
	relay_pause(relays[i].relay, is_quiet(&addr));
	nrelays++;
	return relays[i].relay;
}

__attribute__((visibility("default"))) int connect(int fd, const struct sockaddr *to, socklen_t len)
{
	const char *caller = __builtin_return_address(0);
	bool is_ours = caller >= __executable_start && caller < etext;
	struct mc_addr at;

	if (is_ours || to->sa_family != AF_INET)
		return libc_connect()(fd, to, len);
	pthread_mutex_lock(&lock);
	if (is_on) {
		struct relay *r = relay_to(to, len);

		if (!r) {
			pthread_mutex_unlock(&lock);
			errno = ECONNREFUSED;
			return -1;
		}
		at = *relay_addr(r);
		to = &at.sa;
		len = at.len;
	}
	pthread_mutex_unlock(&lock);
	return libc_connect()(fd, to, len);
}

void detour_begin(const struct relay_opts *new_opts)
{
	detour_end();
	pthread_mutex_lock(&lock);
	opts = *new_opts;
	is_on = true;
	pthread_mutex_unlock(&lock);
}

void detour_end(void)
{
	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < nrelays; i++)
		relay_close(relays[i].relay);
	nrelays = 0;
	is_on = is_all_paused = false;
	paused_host[0] = '\0';
	pthread_mutex_unlock(&lock);
}

void detour_pause(const char *host, bool is_paused)
{
	pthread_mutex_lock(&lock);
	is_all_paused = !host && is_paused;
	(void)snprintf(paused_host, sizeof(paused_host), "%s", host && is_paused ? host : "");
	for (unsigned i = 0; i < nrelays; i++)
		relay_pause(relays[i].relay, is_quiet(&relays[i].to));
	pthread_mutex_unlock(&lock);
}

void detour_stats(struct relay_stats *ret)
{
	struct relay_stats one;

	*ret = (struct relay_stats){0};
	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < nrelays; i++) {
		relay_stats(relays[i].relay, &one);
		ret->open += one.open;
		ret->conns += one.conns;
		ret->resets += one.resets;
		ret->flips += one.flips;
		ret->bytes += one.bytes;
	}
	pthread_mutex_unlock(&lock);
}
