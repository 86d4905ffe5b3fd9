/*
 * limits_tcp.c: the least a transfer engine over TCP can do, with blocking sockets.
 *
 * One operation is one message: a head, one descriptor an item, and for a write the data, gathered
 * from where it lies. The server scatters into the described places and answers a write with 8
 * bytes, a read with the data. A client thread waits for each operation. With several streams the
 * items (or the bytes of a single item) are dealt over the connections, a thread each at both ends,
 * and the operation ends with the last of them.
 */
#include "limits.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define NS_PER_S 1000000000ull
enum { IOV_CALL_MAX = 1024, PORTS_TRIED = 200, WARM_OPS = 3 };

struct head {
	uint64_t count;
	uint64_t is_write;
};

struct desc {
	uint64_t off;
	uint64_t len;
	uint64_t flags; /* unused; makes it the 24 bytes of a real engine's descriptor */
};

/* One connection of a client and what it sends. */
struct lane {
	const struct options *opt;
	struct run *run;
	int fd;
	int index;
	char *near;
	size_t slot;	   /* next block of the pool, within the lane's own part of it */
	size_t slot_first; /* that part */
	size_t slot_count;
	uint64_t ops;
	struct samples samples;
	struct head *head; /* head and descriptors, contiguous */
	struct iovec *iov;
};

/* Shared by the client threads; `go` and `done` bracket the measured interval, or each operation
 * when streams share it. */
struct run {
	pthread_barrier_t go;
	pthread_barrier_t done;
	atomic_bool is_over; /* release by the main thread before `go`; read after it */
	uint64_t end_ns;     /* written before `go` */
};

static int tcp_socket(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) < 0)
		die("socket");
	return fd;
}

static struct sockaddr_in loopback(int port)
{
	return (struct sockaddr_in){.sin_family = AF_INET,
				    .sin_port = htons((uint16_t)port),
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static int listen_from(int first_port, int *ret_port)
{
	int fd = tcp_socket();

	for (int port = first_port; port < first_port + PORTS_TRIED; port++) {
		struct sockaddr_in a = loopback(port);

		if (bind(fd, (const struct sockaddr *)&a, sizeof(a)) == 0) {
			if (listen(fd, LANES_MAX) < 0)
				die("listen");
			*ret_port = port;
			return fd;
		}
		if (errno != EADDRINUSE)
			break;
	}
	die("bind");
}

static int connect_to(int port)
{
	struct sockaddr_in a = loopback(port);
	int fd = tcp_socket();

	if (connect(fd, (const struct sockaddr *)&a, sizeof(a)) < 0)
		die("connect");
	return fd;
}

static int accept_one(int listener)
{
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC), one = 1;

	if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) < 0)
		die("accept");
	return fd;
}

/* Send or receive all of the vector; it is consumed. False when the other side is gone. */
static bool move_all(int fd, struct iovec *v, size_t n, bool is_send)
{
	while (n > 0) {
		struct msghdr m = {.msg_iov = v, .msg_iovlen = n < IOV_CALL_MAX ? n : IOV_CALL_MAX};
		ssize_t r = is_send ? sendmsg(fd, &m, MSG_NOSIGNAL) : recvmsg(fd, &m, MSG_WAITALL);
		size_t left;

		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			return false;
		left = (size_t)r;
		while (n > 0 && left >= v->iov_len) {
			left -= v->iov_len;
			v++;
			n--;
		}
		if (n > 0) {
			v->iov_base = (char *)v->iov_base + left;
			v->iov_len -= left;
		}
	}
	return true;
}

static bool move_one(int fd, void *p, size_t len, bool is_send)
{
	struct iovec v = {p, len};

	return move_all(fd, &v, 1, is_send);
}

struct served {
	int fd;
	char *pool;
};

static void *serve(void *arg)
{
	struct served s = *(struct served *)arg;
	struct desc *desc = malloc(sizeof(*desc) * BATCH_MAX);
	struct iovec *iov = malloc(sizeof(*iov) * BATCH_MAX);
	uint64_t ack = 0;
	struct head h;

	free(arg);
	if (!desc || !iov)
		die("memory");
	while (move_one(s.fd, &h, sizeof(h), false)) {
		if (h.count > BATCH_MAX || !move_one(s.fd, desc, h.count * sizeof(*desc), false))
			break;
		for (uint64_t i = 0; i < h.count; i++)
			iov[i] = (struct iovec){s.pool + desc[i].off, desc[i].len};
		if (!move_all(s.fd, iov, h.count, !h.is_write))
			break;
		if (h.is_write && !move_one(s.fd, &ack, sizeof(ack), true))
			break;
	}
	free(desc);
	free(iov);
	close(s.fd);
	return NULL;
}

/* Fork the target: a thread for each of `count` connections. Returns when its memory is warm. */
static pid_t server_open(const struct options *opt, int count, int *ret_port)
{
	int listener = listen_from(opt->port, ret_port), ready[2];
	char byte = 1;
	pid_t pid;

	if (pipe(ready) < 0)
		die("pipe");
	pid = fork_peer();
	if (pid == 0) {
		char *pool = map_pool(opt->pool, -1);

		memset(pool, 1, opt->pool);
		if (write(ready[1], &byte, 1) != 1)
			_exit(1);
		for (int i = 0; i < count; i++) {
			struct served *s = malloc(sizeof(*s));
			pthread_t thread;

			if (!s)
				die("memory");
			*s = (struct served){accept_one(listener), pool};
			if (pthread_create(&thread, NULL, serve, s) != 0)
				die("thread");
		}
		for (;;)
			pause();
	}
	close(listener);
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1)
		die("the target ended early");
	close(ready[0]);
	return pid;
}

/* Describe this lane's share of the next operation; returns the number of items. */
static size_t lane_fill(struct lane *l)
{
	const struct options *opt = l->opt;
	int streams = opt->streams, first = 0, last = opt->batch;
	size_t skip = 0, len = opt->block, n = 0;
	struct desc *desc = (struct desc *)(l->head + 1);

	if (opt->batch >= streams) {
		first = opt->batch * l->index / streams;
		last = opt->batch * (l->index + 1) / streams;
	} else {
		skip = opt->block * (size_t)l->index / (size_t)streams;
		len = opt->block * (size_t)(l->index + 1) / (size_t)streams - skip;
	}
	for (int k = 0; k < opt->batch; k++) {
		size_t off = l->slot * opt->block + skip;

		if (k >= first && k < last) {
			desc[n] = (struct desc){off, len, 0};
			l->iov[n + 1] = (struct iovec){l->near + off, len};
			n++;
		}
		if (++l->slot == l->slot_first + l->slot_count)
			l->slot = l->slot_first;
	}
	*l->head = (struct head){n, opt->is_write};
	return n;
}

static void lane_op(struct lane *l)
{
	size_t n = lane_fill(l), head_len = sizeof(*l->head) + n * sizeof(struct desc);
	bool ok;

	l->iov[0] = (struct iovec){l->head, head_len};
	if (l->opt->is_write) {
		uint64_t ack;

		ok = move_all(l->fd, l->iov, n + 1, true) &&
		     move_one(l->fd, &ack, sizeof(ack), false);
	} else {
		ok = move_all(l->fd, l->iov, 1, true) && move_all(l->fd, l->iov + 1, n, false);
	}
	if (!ok)
		die("the connection broke");
}

/* Sleep until `at`, the way a caller with 1/rate between its operations does. */
static void sleep_until(uint64_t at)
{
	struct timespec t = {(time_t)(at / NS_PER_S), (long)(at % NS_PER_S)};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

/* A client of its own: operations until the time is over. */
static void *client_alone(void *arg)
{
	struct lane *l = arg;
	uint64_t t, next = 0, step = l->opt->rate > 0 ? (uint64_t)(1e9 / l->opt->rate) : 0;

	for (int i = 0; i < WARM_OPS; i++)
		lane_op(l);
	pthread_barrier_wait(&l->run->go);
	for (t = next = now_ns(); t < l->run->end_ns;) {
		uint64_t start = t;

		if (step) {
			next += step;
			sleep_until(next);
			start = now_ns();
		}
		lane_op(l);
		t = now_ns();
		samples_add(&l->samples, t - start);
		l->ops++;
	}
	pthread_barrier_wait(&l->run->done);
	return NULL;
}

/* One of several streams of an operation: the main thread's barriers begin and end each operation.
 */
static void *client_shared(void *arg)
{
	struct lane *l = arg;

	for (;;) {
		pthread_barrier_wait(&l->run->go);
		if (atomic_load_explicit(&l->run->is_over, memory_order_acquire))
			return NULL;
		lane_op(l);
		pthread_barrier_wait(&l->run->done);
	}
}

static void lanes_open(const struct options *opt, struct lane *lanes, int count, struct run *run,
		       int port)
{
	char *near = map_pool(opt->pool, -1);
	size_t slots = opt->pool / opt->block / (size_t)opt->threads;

	memset(near, 1, opt->pool);
	for (int i = 0; i < count; i++) {
		struct lane *l = &lanes[i];

		*l = (struct lane){.opt = opt,
				   .run = run,
				   .fd = connect_to(port),
				   .near = near,
				   .slot_count = slots};
		l->index = opt->streams > 1 ? i : 0;
		l->slot = l->slot_first = opt->threads > 1 ? slots * (size_t)i : 0;
		l->head = malloc(sizeof(*l->head) + sizeof(struct desc) * BATCH_MAX);
		l->iov = malloc(sizeof(*l->iov) * (BATCH_MAX + 1));
		if (!l->head || !l->iov)
			die("memory");
		samples_init(&l->samples);
	}
}

/* What the pacing alone costs this process, in CPU us an operation. */
static double pacing_cost(const struct options *opt)
{
	uint64_t step = (uint64_t)(1e9 / opt->rate), next = now_ns(),
		 count = (uint64_t)(opt->secs * opt->rate) + 1;
	double cpu = cpu_s(CLOCK_PROCESS_CPUTIME_ID);

	for (uint64_t i = 0; i < count; i++) {
		next += step;
		sleep_until(next);
	}
	return (cpu_s(CLOCK_PROCESS_CPUTIME_ID) - cpu) / (double)count * 1e6;
}

static void run_alone(const struct options *opt, struct lane *lanes, struct run *run, pid_t peer)
{
	double base_us = opt->rate > 0 ? pacing_cost(opt) : 0;
	pthread_t thread[LANES_MAX];
	uint64_t ops = 0;
	struct samples all;
	struct meter m;

	samples_init(&all);
	run->end_ns = UINT64_MAX;
	for (int i = 0; i < opt->threads; i++) {
		if (pthread_create(&thread[i], NULL, client_alone, &lanes[i]) != 0)
			die("thread");
	}
	usleep(50000); /* the first operations, which fault in both ends, are not measured */
	run->end_ns = now_ns() + (uint64_t)(opt->secs * 1e9);
	meter_start(&m, peer);
	pthread_barrier_wait(&run->go);
	pthread_barrier_wait(&run->done);
	meter_stop(&m);
	for (int i = 0; i < opt->threads; i++) {
		pthread_join(thread[i], NULL);
		ops += lanes[i].ops;
		samples_merge(&all, &lanes[i].samples);
	}
	report(opt, &m, &all, ops, base_us);
}

static void run_shared(const struct options *opt, struct lane *lanes, struct run *run, pid_t peer)
{
	pthread_t thread[LANES_MAX];
	uint64_t last, t, ops = 0;
	struct samples all;
	struct meter m;

	samples_init(&all);
	for (int i = 1; i < opt->streams; i++) {
		if (pthread_create(&thread[i], NULL, client_shared, &lanes[i]) != 0)
			die("thread");
	}
	run->end_ns = 0;
	for (int i = -WARM_OPS; i <= 0 || now_ns() < run->end_ns; i++) {
		if (i == 0) {
			meter_start(&m, peer);
			run->end_ns = now_ns() + (uint64_t)(opt->secs * 1e9);
		}
		last = now_ns();
		pthread_barrier_wait(&run->go);
		lane_op(&lanes[0]);
		pthread_barrier_wait(&run->done);
		t = now_ns();
		if (i >= 0) {
			samples_add(&all, t - last);
			ops++;
		}
	}
	meter_stop(&m);
	atomic_store_explicit(&run->is_over, true,
			      memory_order_release); /* pairs with client_shared() */
	pthread_barrier_wait(&run->go);
	for (int i = 1; i < opt->streams; i++)
		pthread_join(thread[i], NULL);
	report(opt, &m, &all, ops, 0);
}

void run_tcp(const struct options *opt)
{
	int count = opt->streams > 1 ? opt->streams : opt->threads, port;
	bool is_shared = opt->streams > 1;
	unsigned waiters = (unsigned)(is_shared ? count : count + 1);
	pid_t peer = server_open(opt, count, &port);
	struct lane lanes[LANES_MAX];
	struct run run = {0};

	pthread_barrier_init(&run.go, NULL, waiters);
	pthread_barrier_init(&run.done, NULL, waiters);
	lanes_open(opt, lanes, count, &run, port);
	if (is_shared)
		run_shared(opt, lanes, &run, peer);
	else
		run_alone(opt, lanes, &run, peer);
	kill(peer, SIGKILL);
	waitpid(peer, NULL, 0);
}

static bool echo_recv(const struct options *opt, int fd, char *buf)
{
	size_t have = 0;

	while (have < opt->block) {
		ssize_t r = recv(fd, buf + have, opt->block - have,
				 opt->is_spinning ? MSG_DONTWAIT : MSG_WAITALL);

		if (r == 0 || (r < 0 && errno != EAGAIN && errno != EINTR))
			return false;
		have += r > 0 ? (size_t)r : 0;
	}
	return true;
}

void run_pingpong(const struct options *opt)
{
	int port, listener = listen_from(opt->port, &port), fd;
	char *buf = map_pool(opt->block, -1);
	uint64_t ops = 0, start, last, t;
	struct samples s;
	struct meter m;
	pid_t peer;

	peer = fork_peer();
	if (peer == 0) {
		fd = accept_one(listener);
		while (echo_recv(opt, fd, buf) && move_one(fd, buf, opt->block, true))
			;
		_exit(0);
	}
	fd = connect_to(port);
	samples_init(&s);
	meter_start(&m, peer);
	for (start = last = now_ns(); (double)(last - start) < opt->secs * 1e9; last = t) {
		if (!move_one(fd, buf, opt->block, true) || !echo_recv(opt, fd, buf))
			die("the connection broke");
		t = now_ns();
		samples_add(&s, t - last);
		ops++;
	}
	meter_stop(&m);
	report(opt, &m, &s, ops, 0);
	kill(peer, SIGKILL);
	waitpid(peer, NULL, 0);
	close(fd);
	close(listener);
}
