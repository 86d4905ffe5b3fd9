/*
 * hub.c: how ranks find each other: a unix socket of the process, on which a rank asks another for
 * its memory and gives its own. Descriptors travel with the call and its answer; a pidfd among them
 * tells when the process is dead, in whatever pid namespace it is.
 *
 * A call for a group that is not open here yet is held until it is. Only processes of the same user
 * (or root) are answered. Ranks of other hosts call a port (net_port.c).
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/opt.h"
#include "base/rand.h"
#include "base/str.h"
#include "coll/net.h"
#include "coll/shmem.h"

#define METHOD_ATTACH 0x0c01
#define METHOD_LEND 0x0c02 /* ranks of one host in a group over hosts: memory for memory */
#define ATTACH_VERSION 4u
#define SETTLE_NS (2 * MC_NS_PER_S) /* for a death that is not known everywhere yet */
#define HELD_MAX 4096u
#define ADDRESS_PARTS 4

/* Both ends are on one machine: the struct as it is. With page and pid descriptors, and in answers
 * the board's if there is one. */
struct attach {
	uint32_t version, slot, ranks_max, to_slot;
	uint64_t inc, scratch_max;
	char group[MC_COLL_NAME_MAX + 1];
};

struct held_attach {
	struct mc_list link;
	struct mc_coll_hub *hub;
	struct mc_rpc_req *req;
	struct attach ask;
	int page_fd, pid_fd;
};

/* ---- addresses: "mc-coll-2|host|@socket|ip:port" ---- */

static int read_line(const char *path, char *buf, size_t cap)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return mc_err_from_errno(errno);
	n = read(fd, buf, cap - 1);
	mc_fd_close(&fd);
	if (n <= 0)
		return -MC_E_IO;
	buf[n] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
	return 0;
}

/* What has to be equal for two processes to share abstract sockets and memory. */
static int host_text(char *buf, size_t cap)
{
	char boot[64];
	struct stat st;
	int rc = read_line("/proc/sys/kernel/random/boot_id", boot, sizeof(boot));

	if (rc < 0 || stat("/proc/self/ns/net", &st) < 0)
		return -MC_E_UNAVAILABLE;
	(void)snprintf(buf, cap, "%.40s.%llu", boot, (unsigned long long)st.st_ino);
	return 0;
}

static int address_parse(const char *text, struct mc_view parts[ADDRESS_PARTS],
			 struct mc_diag *diag)
{
	int n = mc_str_split(text, '|', parts, ADDRESS_PARTS);

	if (n != ADDRESS_PARTS || !mc_view_is(parts[0], "mc-coll-2") || parts[1].len == 0 ||
	    parts[1].len >= MC_COLL_HOST_MAX || parts[2].len < 2 || parts[2].at[0] != '@' ||
	    parts[2].len >= MC_COLL_ID_MAX || parts[3].len == 0 ||
	    parts[3].len >= MC_ADDR_TEXT_MAX) {
		mc_diag_set(diag, "\"%.80s\" is no address of a hub", text);
		return -MC_E_INVAL;
	}
	return 0;
}

static void part_copy(char *to, struct mc_view part)
{
	memcpy(to, part.at, part.len);
	to[part.len] = '\0';
}

int mc_coll_hub_is_near(const struct mc_coll_hub *hub, const char *address, struct mc_diag *diag)
{
	struct mc_view parts[ADDRESS_PARTS];
	int rc = address_parse(address, parts, diag);

	return rc < 0 ? rc : mc_view_is(parts[1], hub->host);
}

int mc_coll_address_net(const char *address, struct mc_addr *ret_at,
			char ret_hub[MC_COLL_HUB_ID_MAX], struct mc_diag *diag)
{
	struct mc_view parts[ADDRESS_PARTS];
	char text[MC_ADDR_TEXT_MAX];
	int rc = address_parse(address, parts, diag);

	if (rc < 0)
		return rc;
	part_copy(text, parts[3]);
	rc = mc_addr_parse(text, 0, ret_at);
	if (rc < 0 || mc_addr_port(ret_at) == 0) {
		mc_diag_set(diag, "\"%s\" is no address of a port", text);
		return -MC_E_INVAL;
	}
	part_copy(ret_hub, parts[2]);
	return 0;
}

/* ---- serving ---- */

static bool is_same_user(const struct mc_rpc_peer *peer)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);
	int fd = mc_rpc_peer_fd(peer);

	return fd >= 0 && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 &&
	       (cred.uid == geteuid() || cred.uid == 0);
}

static struct mc_coll *find(struct mc_coll_hub *hub, const char *name)
{
	struct mc_coll *g;

	mc_list_each (g, &hub->groups, hub_link) {
		if (strcmp(g->name, name) == 0)
			return g;
	}
	return NULL;
}

/* Take their memory, answer with ours. */
static void serve(struct mc_coll *g, struct held_attach *h)
{
	struct attach reply = {.version = ATTACH_VERSION,
			       .slot = g->rank,
			       .ranks_max = g->ranks_max,
			       .inc = g->inc,
			       .scratch_max = g->scratch_max};
	int fds[3] = {g->fd, g->hub->pidfd, g->board_fd};
	int none = -1, rc = 0;

	if (g->net)
		rc = -MC_E_UNSUPPORTED; /* it goes over hosts: call its port */
	else if (h->ask.ranks_max != g->ranks_max || h->ask.scratch_max != g->scratch_max ||
		 h->ask.to_slot != g->rank)
		rc = -MC_E_INVAL;
	if (rc == 0)
		rc = mc_coll_peer_take(g, h->ask.slot, h->ask.inc, &h->page_fd, &h->pid_fd, &none);
	(void)mc_rpc_reply(h->req, rc, rc == 0 ? &reply : NULL, rc == 0 ? sizeof(reply) : 0, fds,
			   rc < 0	      ? 0
			   : g->board_fd >= 0 ? 3
					      : 2);
}

static void held_free(struct held_attach *h)
{
	mc_list_del(&h->link);
	h->hub->nheld--;
	mc_fd_close(&h->page_fd);
	mc_fd_close(&h->pid_fd);
	mc_free(h);
}

static void on_held_cancel(struct mc_rpc_req *req)
{
	held_free(req->user);
	(void)mc_rpc_reply(req, -MC_E_CANCELED, NULL, 0, NULL, 0);
}

static int ask_read(const struct mc_rpc_req *req, const struct mc_rpc_msg *msg, struct attach *ret)
{
	if (msg->len != sizeof(*ret) || msg->nfds != 2)
		return -MC_E_PROTO;
	if (!is_same_user(req->peer))
		return -MC_E_PERM;
	memcpy(ret, msg->data, sizeof(*ret));
	if (ret->version != ATTACH_VERSION || ret->group[MC_COLL_NAME_MAX] != '\0' ||
	    ret->slot >= MC_COLL_RANKS_MAX)
		return -MC_E_PROTO;
	return 0;
}

static int held_make(struct mc_coll_hub *hub, struct mc_rpc_req *req, const struct mc_rpc_msg *msg,
		     struct held_attach **ret)
{
	struct held_attach *h;
	struct attach asked;
	int rc = ask_read(req, msg, &asked);

	if (rc < 0)
		return rc;
	if (hub->nheld >= HELD_MAX)
		return -MC_E_LIMIT;
	h = mc_calloc(1, sizeof(*h));
	if (!h)
		return -MC_E_NOMEM;
	h->ask = asked;
	h->hub = hub;
	h->req = req;
	h->page_fd = msg->fds[0];
	h->pid_fd = msg->fds[1];
	msg->fds[0] = msg->fds[1] = -1;
	mc_list_push_back(&hub->held, &h->link);
	hub->nheld++;
	*ret = h;
	return 0;
}

static void on_attach(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	struct mc_coll_hub *hub = user;
	struct held_attach *h;
	struct mc_coll *g;
	int rc = held_make(hub, req, msg, &h);

	if (rc < 0) {
		(void)mc_rpc_reply(req, rc, NULL, 0, NULL, 0);
		return;
	}
	g = find(hub, h->ask.group);
	if (g) {
		serve(g, h);
		held_free(h);
		return;
	}
	req->user = h;
	req->on_cancel = on_held_cancel;
}

/* A rank of a group over hosts that is connected already. */
static void on_lend(struct mc_rpc_req *req, const struct mc_rpc_msg *msg, void *user)
{
	struct mc_coll_hub *hub = user;
	struct attach asked, reply = {.version = ATTACH_VERSION};
	struct mc_coll *g = NULL;
	int fds[2], rc = ask_read(req, msg, &asked);

	if (rc == 0)
		g = find(hub, asked.group);
	if (rc == 0 && (!g || !g->net || asked.to_slot != g->rank))
		rc = -MC_E_NOENT;
	if (rc == 0)
		rc = mc_coll_net_lent(g, asked.slot, asked.inc, &msg->fds[0]);
	if (rc < 0) {
		(void)mc_rpc_reply(req, rc, NULL, 0, NULL, 0);
		return;
	}
	reply.slot = g->rank;
	reply.inc = g->inc;
	fds[0] = g->fd;
	fds[1] = hub->pidfd;
	(void)mc_rpc_reply(req, 0, &reply, sizeof(reply), fds, 2);
}

struct add {
	struct mc_coll_hub *hub;
	struct mc_coll *g;
};

static void add_on_loop(void *arg)
{
	struct add *a = arg;
	struct held_attach *h;

	mc_list_push_back(&a->hub->groups, &a->g->hub_link);
	mc_list_each (h, &a->hub->held, link) {
		if (strcmp(h->ask.group, a->g->name) != 0)
			continue;
		serve(a->g, h);
		held_free(h);
	}
	if (a->g->net)
		mc_coll_port_admit(a->hub, a->g);
}

void mc_coll_hub_add(struct mc_coll_hub *hub, struct mc_coll *g)
{
	struct add a = {hub, g};

	mc_loop_call(hub->loop, add_on_loop, &a);
}

static void del_on_loop(void *arg)
{
	struct add *a = arg;
	struct mc_coll_peer *p;

	mc_list_del(&a->g->hub_link);
	if (a->g->net)
		mc_coll_net_stop(a->g);
	mc_list_each (p, &a->g->peers, link) {
		if (p->is_watched)
			mc_loop_unwatch(a->hub->loop, &p->pid);
		p->is_watched = false;
	}
}

void mc_coll_hub_del(struct mc_coll_hub *hub, struct mc_coll *g)
{
	struct add a = {hub, g};

	mc_loop_call(hub->loop, del_on_loop, &a);
}

/* ---- asking ---- */

struct answer {
	struct mc_rpc_call call;
	struct mc_coll *g;
	struct attach reply;
	int fds[3]; /* page, pid, board or -1 */
	int rc;
};

static void on_answer(struct mc_rpc_call *call, int rc, const struct mc_rpc_msg *msg)
{
	struct answer *a = mc_container_of(call, struct answer, call);

	a->rc = rc;
	if (rc < 0)
		return;
	if (msg->len != sizeof(a->reply) || msg->nfds < 2) {
		a->rc = -MC_E_PROTO;
		return;
	}
	memcpy(&a->reply, msg->data, sizeof(a->reply));
	for (unsigned i = 0; i < 3; i++) {
		a->fds[i] = i < msg->nfds ? msg->fds[i] : -1;
		if (i < msg->nfds)
			msg->fds[i] = -1;
	}
}

static void take_on_loop(void *arg)
{
	struct answer *a = arg;

	if (a->g->net)
		a->rc = mc_coll_net_lent(a->g, a->reply.slot, a->reply.inc, &a->fds[0]);
	else
		a->rc = mc_coll_peer_take(a->g, a->reply.slot, a->reply.inc, &a->fds[0], &a->fds[1],
					  &a->fds[2]);
}

static int ask(struct mc_coll *g, uint32_t slot, const struct mc_addr *to, uint64_t deadline_ns)
{
	struct attach req = {.version = ATTACH_VERSION,
			     .slot = g->rank,
			     .to_slot = slot,
			     .ranks_max = g->ranks_max,
			     .inc = g->inc,
			     .scratch_max = g->scratch_max};
	int fds[2] = {g->fd, g->hub->pidfd};
	struct answer a = {.call = {.method = g->net ? METHOD_LEND : METHOD_ATTACH,
				    .req = &req,
				    .req_len = sizeof(req),
				    .fds = fds,
				    .nfds = 2,
				    .deadline_ns = deadline_ns,
				    .on_end = on_answer},
			   .g = g,
			   .fds = {-1, -1, -1}};
	struct mc_rpc_conn *conn;
	int rc;

	(void)mc_strlcpy(req.group, sizeof(req.group), g->name);
	rc = mc_rpc_conn_open(&mc_env_real, g->hub->loop, to, NULL, &conn);
	if (rc < 0)
		return rc;
	rc = mc_rpc_sync(conn, &a.call);
	mc_rpc_conn_close(conn);
	if (rc == 0)
		rc = a.rc;
	if (rc == 0 && a.reply.slot != slot)
		rc = -MC_E_PROTO;
	if (rc == 0) {
		mc_loop_call(g->hub->loop, take_on_loop, &a);
		rc = a.rc;
	}
	for (int i = 0; i < 3; i++)
		mc_fd_close(&a.fds[i]);
	return rc;
}

int mc_coll_hub_attach(struct mc_coll *g, uint32_t slot, const char *address, uint64_t deadline_ns,
		       struct mc_diag *diag)
{
	struct mc_view parts[ADDRESS_PARTS];
	char sock[MC_COLL_ID_MAX];
	uint64_t settle_ns;
	struct mc_addr to;
	int rc;

	rc = address_parse(address, parts, diag);
	if (rc < 0)
		return rc;
	part_copy(sock, parts[2]);
	rc = mc_addr_unix(sock, &to);
	if (rc == 0 && g->net)
		rc = mc_coll_net_attach(g, slot, address, deadline_ns, diag);
	if (rc < 0)
		return rc;
	settle_ns = mc_min(deadline_ns, mc_now_ns() + SETTLE_NS);
	if (g->net) {
		/* Where it fails, or the other one has asked, it stays as it is. */
		if (mc_view_is(parts[1], g->hub->host))
			(void)ask(g, slot, &to, settle_ns);
		return 0;
	}
	do {
		rc = ask(g, slot, &to, deadline_ns);
		/* Perhaps it does not know yet that who had our slot is dead. */
	} while (rc == -MC_E_EXIST && mc_now_ns() < settle_ns && poll(NULL, 0, 1) == 0);
	if (rc < 0)
		mc_diag_set(diag, "rank %u of group %s at %s: %s", slot, g->name, sock,
			    mc_err_text(rc));
	return rc;
}

/* ---- life ---- */

struct conf {
	char host[MC_COLL_HOST_MAX], ip[MC_ADDR_TEXT_MAX];
	int64_t silent_s;
};

static const struct mc_opt rows[] = {
    MC_OPT_STR(struct conf, host, "MC_COLL_HOST", "",
	       "process groups: name of this host; unset: boot id and network namespace. Processes "
	       "with equal names share memory"),
    MC_OPT_STR(
	struct conf, ip, "MC_COLL_IP", "",
	"process groups: IP address at which ranks of other hosts reach this process; unset: "
	"the first interface's"),
    MC_OPT_INT(struct conf, silent_s, "MC_COLL_SILENT", "10", 1, 86400,
	       "process groups: seconds without any answer after which a host counts as silent"),
};

static void conf_load(struct conf *conf, const struct mc_coll_hub_opts *opts)
{
	(void)mc_opt_load_env(rows, MC_ARRAY_LEN(rows), conf, NULL); /* complaints are logged */
	if (!opts)
		return;
	if (opts->host)
		(void)mc_strlcpy(conf->host, sizeof(conf->host), opts->host);
	if (opts->ip)
		(void)mc_strlcpy(conf->ip, sizeof(conf->ip), opts->ip);
}

static int names_make(struct mc_coll_hub *hub, const struct conf *conf)
{
	char own[MC_COLL_HOST_MAX];
	uint8_t id[12];
	int rc = host_text(own, sizeof(own)), n;

	if (rc == 0)
		rc = mc_rand_bytes(id, sizeof(id));
	if (rc < 0)
		return rc;
	/* Another name is another host, but one name on two hosts is none. */
	n = snprintf(hub->host, sizeof(hub->host), "%s%s%s", own, conf->host[0] ? "." : "",
		     conf->host);
	if (n < 0 || (size_t)n >= sizeof(hub->host) || strchr(hub->host, '|'))
		return -MC_E_INVAL;
	n = snprintf(hub->id, sizeof(hub->id), "@mooncake-coll-");
	for (size_t i = 0; i < sizeof(id); i++)
		n += snprintf(hub->id + n, sizeof(hub->id) - (size_t)n, "%02x", id[i]);
	return 0;
}

static int address_make(struct mc_coll_hub *hub)
{
	char at[MC_ADDR_TEXT_MAX];
	int n = snprintf(hub->address, sizeof(hub->address), "mc-coll-2|%s|%s|%s", hub->host,
			 hub->id, mc_addr_format(&hub->port->at, at));

	return n < 0 || (size_t)n >= sizeof(hub->address) ? -MC_E_INVAL : 0;
}

static int listen_at(struct mc_coll_hub *hub, const char *sock)
{
	const struct mc_rpc_method methods[] = {
	    {.method = METHOD_ATTACH, .name = "attach", .handle = on_attach, .user = hub},
	    {.method = METHOD_LEND, .name = "lend", .handle = on_lend, .user = hub}};
	struct mc_rpc_server_opts opts = {.methods = methods, .nmethods = MC_ARRAY_LEN(methods)};
	struct mc_addr at, bound;
	int rc = mc_addr_unix(sock, &at);

	if (rc == 0)
		rc = mc_rpc_server_open(&mc_env_real, hub->loop, &opts, &hub->server);
	if (rc == 0)
		rc = mc_rpc_server_listen(hub->server, &at, &bound);
	return rc < 0 ? rc : mc_loop_start(hub->loop);
}

int mc_coll_hub_open(const struct mc_coll_hub_opts *opts, struct mc_diag *diag,
		     struct mc_coll_hub **ret_hub)
{
	struct mc_coll_hub *hub;
	struct conf conf;
	int rc;

	if (opts && opts->size != sizeof(*opts))
		return -MC_E_INVAL;
	hub = mc_calloc(1, sizeof(*hub));
	if (!hub)
		return -MC_E_NOMEM;
	conf_load(&conf, opts);
	hub->silent_ns = (uint64_t)conf.silent_s * MC_NS_PER_S;
	mc_list_init(&hub->groups);
	mc_list_init(&hub->held);
	hub->fork_gen = mc_fork_gen();
	hub->pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	if (hub->pidfd < 0) {
		mc_diag_set(diag, "pidfd_open: %s; deaths are proved by it (Linux 5.3)",
			    strerror(errno));
		rc = -MC_E_UNAVAILABLE;
		goto fail;
	}
	rc = mc_loop_open("mc-coll", &mc_clock_real, &hub->loop);
	if (rc == 0)
		rc = names_make(hub, &conf);
	if (rc == 0)
		rc = mc_coll_port_open(hub, conf.ip, diag);
	if (rc == 0)
		rc = address_make(hub);
	if (rc == 0)
		rc = listen_at(hub, hub->id);
	if (rc < 0)
		goto fail;
	*ret_hub = hub;
	return 0;
fail:
	mc_coll_hub_close(hub);
	return rc;
}

static void refuse_held(void *arg)
{
	struct mc_coll_hub *hub = arg;
	struct held_attach *h;

	mc_list_each (h, &hub->held, link) {
		(void)mc_rpc_reply(h->req, -MC_E_CLOSED, NULL, 0, NULL, 0);
		held_free(h);
	}
}

static void port_close(void *arg)
{
	mc_coll_port_close(arg);
}

void mc_coll_hub_close(struct mc_coll_hub *hub)
{
	if (!hub)
		return;
	if (hub->server)
		mc_loop_call(hub->loop, refuse_held, hub);
	mc_rpc_server_close(hub->server);
	if (hub->server)
		mc_loop_call(hub->loop, port_close, hub);
	else
		mc_coll_port_close(hub);
	mc_loop_close(hub->loop);
	mc_fd_close(&hub->pidfd);
	mc_free(hub);
}

const char *mc_coll_hub_address(const struct mc_coll_hub *hub)
{
	return hub->address;
}
