/*
 * shm_fail_test.c: the shared-memory transport when things go wrong: either side killed, stopped,
 * restarted or forked; strangers, lies and junk on the socket; few descriptors, forbidden system
 * calls, odd directories.
 */
#include "shm_peers.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include "base/log.h"
#include "xport/shm_page.h"
#include "xport/shm_priv.h"

/* ---- a third role: attaches under some handicap and tells how it went ---- */

enum handicap {
	OTHER_USER,
	NO_VM_CALLS,	   /* seccomp answers EPERM from the beginning */
	NO_VM_CALLS_LATER, /* from after the attachment */
	FEW_DESCRIPTORS,
	OTHER_PID_NS,
	OTHER_NET_NS,
	OTHER_USER_NS,
};

struct task {
	struct hello h;
	enum handicap handicap;
};

struct outcome {
	int attach, memfd, foreign;
	bool can_memfd, can_foreign;
};

/* process_vm_readv and process_vm_writev give EPERM. */
static int forbid_vm_calls(void)
{
	struct sock_filter f[] = {
	    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 1, 0),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_writev, 0, 1),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {MC_ARRAY_LEN(f), f};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -1;
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &prog);
}

static int limit_descriptors(struct rlimit *ret_old)
{
	int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	struct rlimit low;

	if (fd < 0 || getrlimit(RLIMIT_NOFILE, ret_old) < 0)
		return -1;
	close(fd);
	low = (struct rlimit){(rlim_t)fd + 1, ret_old->rlim_max};
	return setrlimit(RLIMIT_NOFILE, &low);
}

static int attach_handicapped(const char *dir, int ctl, struct task t)
{
	struct side s = {0};
	struct mc_shm_peer *peer = NULL;
	struct mc_xlane *lane = NULL;
	struct outcome o = {0};
	struct rlimit old;
	char own[64] = "/tmp/mc-shm-test-XXXXXX";
	bool is_ok;

	is_ok = t.handicap != OTHER_USER ||
		(setgid(65534) == 0 && setuid(65534) == 0 && (dir = mkdtemp(own)));
	is_ok = is_ok && side_open(&s, dir, false) == 0;
	is_ok = is_ok && (t.handicap != NO_VM_CALLS || forbid_vm_calls() == 0);
	is_ok = is_ok && (t.handicap != FEW_DESCRIPTORS || limit_descriptors(&old) == 0);
	if (!is_ok)
		return 1;
	o.attach = side_attach(&s, t.h.path, t.h.nonce, t.h.epoch, WAIT_NS, &peer);
	if (t.handicap == FEW_DESCRIPTORS && (o.attach == 0 || setrlimit(RLIMIT_NOFILE, &old) < 0))
		return 1;
	if (t.handicap == FEW_DESCRIPTORS)
		o.foreign = side_attach(&s, t.h.path, t.h.nonce, t.h.epoch, WAIT_NS, &peer);
	if (t.handicap == NO_VM_CALLS_LATER && forbid_vm_calls() < 0)
		return 1;
	if (o.attach == 0 && side_lane(&s, peer, &lane) == 0) {
		o.memfd =
		    frag_run(lane, MC_OP_WRITE, s.mem[0], &t.h.rr[MEMFD], t.h.rr[MEMFD].addr, 4096);
		o.foreign = frag_run(lane, MC_OP_WRITE, s.mem[0], &t.h.rr[FOREIGN],
				     t.h.rr[FOREIGN].addr, 4096);
		o.can_memfd = mc_shm_peer_can(peer, &t.h.rr[MEMFD]);
		o.can_foreign = mc_shm_peer_can(peer, &t.h.rr[FOREIGN]);
		lane->ops->lane_close(lane);
	}
	mc_shm_peer_detach(peer);
	side_close(&s);
	if (t.handicap == OTHER_USER && rmdir(own) != 0)
		return 1;
	return send(ctl, &o, sizeof(o), MSG_NOSIGNAL) == sizeof(o) ? 0 : 1;
}

static int role_handicapped(const char *dir, int ctl)
{
	int status = -1;
	struct task t;
	pid_t pid;

	if (recv(ctl, &t, sizeof(t), 0) != sizeof(t))
		return 1;
	if (t.handicap == OTHER_NET_NS && unshare(CLONE_NEWNET) < 0)
		return 1;
	if (t.handicap == OTHER_USER_NS && unshare(CLONE_NEWUSER) < 0)
		return 1;
	if (t.handicap != OTHER_PID_NS)
		return attach_handicapped(dir, ctl, t);
	/* The caller of unshare() stays where it is; its children are in the new namespace. */
	if (unshare(CLONE_NEWPID) < 0)
		return 1;
	pid = fork();
	if (pid == 0)
		_exit(attach_handicapped(dir, ctl, t));
	/* No exit handlers: a leak checker's thread could not be made from here. */
	_exit(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0 ? 0 : 1);
}

static struct outcome handicapped(enum handicap handicap)
{
	struct proc p = proc_start("handicapped", test_dir);
	struct task t = {.handicap = handicap};
	struct outcome o;

	hello_of(&me, &t.h);
	assert_int_equal(send(p.ctl, &t, sizeof(t), MSG_NOSIGNAL), sizeof(t));
	assert_int_equal(recv(p.ctl, &o, sizeof(o), 0), sizeof(o));
	assert_int_equal(proc_wait(&p), 0);
	return o;
}

static void without_process_vm_only_foreign_memory_is_out_of_reach(void **state)
{
	struct outcome o = handicapped(NO_VM_CALLS);

	assert_int_equal(o.attach, 0);
	assert_int_equal(o.memfd, 0);
	assert_int_equal(o.foreign, -MC_E_UNAVAILABLE);
	assert_true(o.can_memfd);
	assert_false(o.can_foreign);
	(void)state;
}

static void process_vm_that_is_taken_away_later_is_noticed(void **state)
{
	struct outcome o = handicapped(NO_VM_CALLS_LATER);

	assert_int_equal(o.attach, 0);
	assert_int_equal(o.memfd, 0);
	assert_int_equal(o.foreign, -MC_E_UNAVAILABLE);
	assert_false(o.can_foreign);
	(void)state;
}

static void another_user_gets_nothing(void **state)
{
	struct outcome o;

	if (geteuid() != 0) {
		print_message("skipped: needs root to become another user\n");
		skip();
	}
	o = handicapped(OTHER_USER);
	assert_int_equal(o.attach, -MC_E_PERM); /* the directory's mode */
	/* And if the directory let them in: the socket's credentials. */
	assert_int_equal(chmod(test_dir, 0755), 0);
	assert_int_equal(chmod(mc_shm_dev_socket_path(me.dev), 0777), 0);
	o = handicapped(OTHER_USER);
	assert_int_equal(o.attach, -MC_E_AUTH);
	assert_int_equal(chmod(test_dir, 0700), 0);
	(void)state;
}

/* Root, and allowed to make namespaces (not in every container). */
static bool can_unshare(int flag)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0)
		_exit(unshare(flag) == 0 ? 0 : 1);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (status != 0)
		print_message("skipped: may not make namespaces\n");
	return status == 0;
}

static void from_another_pid_namespace_mapped_memory_is_reached(void **state)
{
	struct outcome o;

	if (!can_unshare(CLONE_NEWPID))
		skip();
	o = handicapped(OTHER_PID_NS);
	assert_int_equal(o.attach, 0);
	assert_int_equal(o.memfd, 0);
	assert_int_equal(o.foreign, -MC_E_UNAVAILABLE); /* our pid means nothing there */
	assert_false(o.can_foreign);
	/* Its death was seen all the same. */
	assert_int_equal(mc_region_del(me.regions, (uintptr_t)me.mem[MEMFD]), 0);
	(void)state;
}

static void from_another_network_namespace_all_is_reached(void **state)
{
	struct outcome o;

	if (!can_unshare(CLONE_NEWNET))
		skip();
	o = handicapped(OTHER_NET_NS);
	assert_int_equal(o.attach, 0);
	assert_int_equal(o.memfd, 0);
	assert_int_equal(o.foreign, 0);
	(void)state;
}

static void from_another_user_namespace_mapped_memory_is_reached(void **state)
{
	struct outcome o;

	if (!can_unshare(CLONE_NEWUSER))
		skip();
	o = handicapped(OTHER_USER_NS);
	assert_int_equal(o.attach, 0);
	assert_int_equal(o.memfd, 0);
	assert_true(o.foreign == 0 || !o.can_foreign); /* which, is the kernel's to say */
	(void)state;
}

static void too_few_descriptors_are_an_error_that_passes(void **state)
{
	struct outcome o = handicapped(FEW_DESCRIPTORS);

	assert_int_equal(o.attach, -MC_E_LIMIT);
	assert_int_equal(o.foreign, 0); /* the second attempt, with enough */
	(void)state;
}

/* ---- death ---- */

static void a_killed_writer_does_not_hold_up_unregistering(void **state)
{
	enum { ROUNDS = 12 };
	struct proc w;
	int kind;

	for (int i = 0; i < ROUNDS; i++) {
		kind = i % 2;
		w = writer_start(test_dir, &me, kind);
		dawdle(i * 137); /* die at different points of a copy */
		proc_kill(&w);
		assert_int_equal(mc_region_del(me.regions, (uintptr_t)me.mem[kind]), 0);
		memset(me.mem[kind], i, MEM_LEN);
		dawdle(200);
		for (size_t k = 0; k < MEM_LEN; k += 509)
			assert_int_equal(me.mem[kind][k], i);
		assert_int_equal(side_reg(&me, me.mem[kind], MEM_LEN, &me.rr[kind]), 0);
	}
	assert_int_equal(guards_changed(&me, MEMFD), 0);
	assert_int_equal(guards_changed(&me, FOREIGN), 0);
	(void)state;
}

static void *del_thread(void *arg)
{
	int *kind = arg;

	assert_int_equal(mc_region_del(me.regions, (uintptr_t)me.mem[*kind]), 0);
	return NULL;
}

static void a_stopped_writer_is_waited_for(void **state)
{
	struct reply r;
	struct proc w;
	pthread_t th;
	int kind, status;

	for (int i = 0; i < 8; i++) {
		kind = i % 2;
		w = writer_start(test_dir, &me, kind);
		dawdle(i * 211);
		assert_int_equal(kill(w.pid, SIGSTOP), 0);
		assert_int_equal(waitpid(w.pid, &status, WUNTRACED), w.pid);
		assert_int_equal(pthread_create(&th, NULL, del_thread, &kind), 0);
		dawdle(2000);
		assert_int_equal(kill(w.pid, SIGCONT), 0);
		assert_int_equal(pthread_join(th, NULL), 0);
		memset(me.mem[kind], i, MEM_LEN);
		assert_int_equal(recv(w.ctl, &r, sizeof(r), 0), sizeof(r));
		assert_int_equal(r.rc, -MC_E_STALE);
		for (size_t k = 0; k < MEM_LEN; k += 509)
			assert_int_equal(me.mem[kind][k], i);
		assert_int_equal(proc_wait(&w), 0);
		assert_int_equal(side_reg(&me, me.mem[kind], MEM_LEN, &me.rr[kind]), 0);
	}
	(void)state;
}

static _Atomic int named_pid; /* by the log */

static void note_wait(void *user, enum mc_log_level level, const char *line)
{
	const char *at = strstr(line, "pid=");

	(void)user;
	/* The line's own pid comes first. */
	at = at ? strstr(at + 1, "pid=") : NULL;
	if (level == MC_LOG_WARN && strstr(line, "unregistering waits") && at)
		atomic_store(&named_pid, (int)strtol(at + 4, NULL, 10));
}

static void whoever_holds_up_unregistering_is_named(void **state)
{
	struct mc_shm_page *page = mc_shm_dev_of(me.dev)->page;
	struct proc w = writer_start(test_dir, &me, MEMFD);
	uint64_t end_ns = mc_now_ns() + WAIT_NS;
	int kind = MEMFD, status;
	uint32_t seat = 0;
	struct reply r;
	pthread_t th;

	while (atomic_load(&page->owner[seat]) == 0 && mc_now_ns() < end_ns)
		seat = (seat + 1) % MC_SHM_SEATS;
	assert_int_equal(kill(w.pid, SIGSTOP), 0);
	assert_int_equal(waitpid(w.pid, &status, WUNTRACED), w.pid);
	/* As if it had been stopped in the middle of a copy. */
	mc_shm_seat_enter(page, seat);
	mc_log_sink_set(note_wait, NULL);
	assert_int_equal(pthread_create(&th, NULL, del_thread, &kind), 0);
	while (atomic_load(&named_pid) != w.pid && mc_now_ns() < end_ns)
		dawdle(1000);
	mc_log_sink_set(NULL, NULL);
	mc_shm_seat_exit(page, seat);
	assert_int_equal(kill(w.pid, SIGCONT), 0);
	assert_int_equal(pthread_join(th, NULL), 0);
	assert_int_equal(atomic_load(&named_pid), w.pid);
	assert_int_equal(recv(w.ctl, &r, sizeof(r), 0), sizeof(r));
	assert_int_equal(proc_wait(&w), 0);
	assert_int_equal(side_reg(&me, me.mem[kind], MEM_LEN, &me.rr[kind]), 0);
	(void)state;
}

static void a_killed_target_is_noticed_without_harm(void **state)
{
	struct mc_shm_peer *peer, *none;
	struct mc_xlane *lane;
	struct proc t;
	int rc;

	for (int kind = 0; kind < 2; kind++) {
		t = target_start(test_dir);
		assert_int_equal(
		    side_attach(&me, t.hello.path, t.hello.nonce, t.hello.epoch, WAIT_NS, &peer),
		    0);
		assert_int_equal(side_lane(&me, peer, &lane), 0);
		for (int i = 0; i < 3; i++)
			assert_int_equal(frag_run(lane, MC_OP_READ, me.mem[FOREIGN],
						  &t.hello.rr[kind], t.hello.rr[kind].addr,
						  MEM_LEN),
					 0);
		proc_kill(&t);
		do {
			rc = frag_run(lane, MC_OP_WRITE, me.mem[FOREIGN], &t.hello.rr[kind],
				      t.hello.rr[kind].addr, MEM_LEN);
		} while (rc == 0);
		assert_int_equal(rc, -MC_E_PEER_DEAD);
		wait_until(mc_shm_peer_is_dead(peer));
		lane->ops->lane_close(lane);
		assert_int_equal(side_lane(&me, peer, &lane), -MC_E_PEER_DEAD);
		assert_int_equal(
		    side_attach(&me, t.hello.path, t.hello.nonce, t.hello.epoch, WAIT_NS, &none),
		    -MC_E_REFUSED);
		mc_shm_peer_detach(peer);
	}
	(void)state;
}

static void a_target_that_closes_in_order_is_gone_at_once(void **state)
{
	struct proc t = target_start(test_dir);
	struct mc_shm_peer *peer, *none;
	struct mc_xlane *lane;

	assert_int_equal(
	    side_attach(&me, t.hello.path, t.hello.nonce, t.hello.epoch, WAIT_NS, &peer), 0);
	assert_int_equal(side_lane(&me, peer, &lane), 0);
	assert_int_equal(order(&t, ORDER_QUIT, 0, 0).rc, 0);
	assert_true(mc_shm_peer_is_dead(peer));
	assert_int_equal(
	    frag_run(lane, MC_OP_READ, me.mem[FOREIGN], &t.hello.rr[0], t.hello.rr[0].addr, 1),
	    -MC_E_PEER_DEAD);
	lane->ops->lane_close(lane);
	mc_shm_peer_detach(peer);
	assert_int_equal(proc_wait(&t), 0);
	assert_int_equal(
	    side_attach(&me, t.hello.path, t.hello.nonce, t.hello.epoch, WAIT_NS, &none),
	    -MC_E_UNREACHABLE);
	(void)state;
}

static void a_stopped_target_is_served_from_what_is_mapped(void **state)
{
	struct proc t = target_start(test_dir);
	struct mc_shm_peer *peer, *none;
	struct mc_remote_region fresh;
	struct mc_xlane *lane;
	int status;

	assert_int_equal(
	    side_attach(&me, t.hello.path, t.hello.nonce, t.hello.epoch, WAIT_NS, &peer), 0);
	assert_int_equal(side_lane(&me, peer, &lane), 0);
	assert_int_equal(frag_run(lane, MC_OP_READ, me.mem[FOREIGN], &t.hello.rr[MEMFD],
				  t.hello.rr[MEMFD].addr, 1),
			 0);
	fresh = order(&t, ORDER_ALLOC, 0, (uint64_t)100 << 20).rr;
	assert_int_equal(kill(t.pid, SIGSTOP), 0);
	assert_int_equal(waitpid(t.pid, &status, WUNTRACED), t.pid);
	for (int i = 0; i < 2; i++)
		assert_int_equal(frag_run(lane, MC_OP_READ, me.mem[FOREIGN], &t.hello.rr[i],
					  t.hello.rr[i].addr, MEM_LEN),
				 0);
	/* Its new arena cannot be asked for; the kernel reads it all the same. */
	assert_int_equal(frag_run(lane, MC_OP_READ, me.mem[FOREIGN], &fresh, fresh.addr, 4096), 0);
	assert_int_equal(
	    side_attach(&me, t.hello.path, t.hello.nonce, t.hello.epoch, 20 * MC_NS_PER_MS, &none),
	    -MC_E_TIMEDOUT);
	assert_int_equal(kill(t.pid, SIGCONT), 0);
	assert_int_equal(frag_run(lane, MC_OP_READ, me.mem[FOREIGN], &fresh, fresh.addr, 4096), 0);
	assert_int_equal(
	    side_attach(&me, t.hello.path, t.hello.nonce, t.hello.epoch, WAIT_NS, &none), 0);
	mc_shm_peer_detach(none);
	lane->ops->lane_close(lane);
	mc_shm_peer_detach(peer);
	proc_kill(&t);
	(void)state;
}

/* ---- fork ---- */

static void a_forked_child_is_refused_and_disturbs_nobody(void **state)
{
	struct proc t = target_start(test_dir);
	struct mc_shm_peer *peer, *none;
	struct mc_xlane *lane;
	int status, bad;
	void *p;
	pid_t pid;

	assert_int_equal(
	    side_attach(&me, t.hello.path, t.hello.nonce, t.hello.epoch, WAIT_NS, &peer), 0);
	assert_int_equal(side_lane(&me, peer, &lane), 0);
	assert_int_equal(
	    frag_run(lane, MC_OP_READ, me.mem[FOREIGN], &t.hello.rr[0], t.hello.rr[0].addr, 1), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		bad = mc_shm_alloc(me.dev, 1, &p) != -MC_E_FORKED;
		bad |= side_attach(&me, t.hello.path, t.hello.nonce, t.hello.epoch, WAIT_NS,
				   &none) != -MC_E_FORKED;
		bad |= frag_run(lane, MC_OP_READ, me.mem[FOREIGN], &t.hello.rr[0],
				t.hello.rr[0].addr, 1) != -MC_E_FORKED;
		lane->ops->lane_close(lane);
		bad |= side_lane(&me, peer, &lane) != -MC_E_FORKED;
		mc_shm_peer_detach(peer);
		me.dev->ops->dev_close(me.dev);
		_exit(bad);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	for (int i = 0; i < 2; i++)
		assert_int_equal(frag_run(lane, MC_OP_READ, me.mem[FOREIGN], &t.hello.rr[i],
					  t.hello.rr[i].addr, MEM_LEN),
				 0);
	assert_int_equal(access(mc_shm_dev_socket_path(me.dev), F_OK), 0);
	assert_int_equal(order(&t, ORDER_DEL, 0, 0).rc, 0);
	lane->ops->lane_close(lane);
	mc_shm_peer_detach(peer);
	proc_kill(&t);
	(void)state;
}

/* ---- lies ---- */

static void a_wrong_nonce_or_incarnation_is_refused(void **state)
{
	struct proc t = target_start(test_dir);
	struct mc_shm_peer *peer;
	uint8_t nonce[16];

	memcpy(nonce, t.hello.nonce, sizeof(nonce));
	nonce[15] ^= 1;
	assert_int_equal(side_attach(&me, t.hello.path, nonce, t.hello.epoch, WAIT_NS, &peer),
			 -MC_E_AUTH);
	assert_int_equal(
	    side_attach(&me, t.hello.path, t.hello.nonce, t.hello.epoch + 2, WAIT_NS, &peer),
	    -MC_E_PEER_RESTARTED);
	assert_int_equal(side_attach(&me, t.hello.path, nonce, t.hello.epoch + 2, WAIT_NS, &peer),
			 -MC_E_PEER_RESTARTED);
	assert_int_equal(side_attach(&me, t.hello.path, t.hello.nonce, t.hello.epoch, 0, &peer),
			 -MC_E_TIMEDOUT);
	proc_kill(&t);
	(void)state;
}

static void a_path_that_leads_nowhere_is_refused(void **state)
{
	struct mc_shm_peer *peer;
	char path[256];

	snprintf(path, sizeof(path), "%s/none.sock", test_dir);
	assert_int_equal(side_attach(&me, path, me.nonce, me.epoch, WAIT_NS, &peer),
			 -MC_E_UNREACHABLE);
	memset(path, 'x', 200);
	path[200] = '\0';
	assert_int_equal(side_attach(&me, path, me.nonce, me.epoch, WAIT_NS, &peer), -MC_E_INVAL);
	assert_int_equal(side_attach(&me, "", me.nonce, me.epoch, WAIT_NS, &peer), -MC_E_INVAL);
	snprintf(path, sizeof(path), "%s/plain", test_dir);
	assert_int_equal(close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600)), 0);
	assert_int_equal(side_attach(&me, path, me.nonce, me.epoch, WAIT_NS, &peer), -MC_E_REFUSED);
	assert_int_equal(unlink(path), 0);
	(void)state;
}

static int raw_connect(void)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	strncpy(sun.sun_path, mc_shm_dev_socket_path(me.dev), sizeof(sun.sun_path) - 1);
	assert_int_equal(connect(fd, (struct sockaddr *)&sun, sizeof(sun)), 0);
	return fd;
}

static void junk_on_the_socket_ends_that_connection_only(void **state)
{
	struct mc_shm_peer *peer;
	uint8_t junk[4096], byte;
	struct mc_rand r;
	int fd, silent;

	mc_rand_seed(&r, 7);
	silent = raw_connect();
	for (int i = 0; i < 200; i++) {
		for (size_t k = 0; k < sizeof(junk); k++)
			junk[k] = (uint8_t)mc_rand_u64(&r);
		if (i % 2) {
			memcpy(junk, &(uint32_t){0x6d63736d}, 4); /* the head of a message */
			memcpy(junk + 4, &(uint16_t){1}, 2);
			memcpy(junk + 6, &(uint16_t){(uint16_t)(i % 5)}, 2);
		}
		fd = raw_connect();
		assert_true(send(fd, junk, i % 3 ? 72 : mc_rand_below(&r, sizeof(junk)),
				 MSG_NOSIGNAL) >= 0);
		while (recv(fd, junk, sizeof(junk), 0) > 0)
			assert_true(send(fd, &byte, 1, MSG_NOSIGNAL) >= 0 || errno == EPIPE);
		assert_int_equal(close(fd), 0);
	}
	assert_int_equal(
	    side_attach(&me, mc_shm_dev_socket_path(me.dev), me.nonce, me.epoch, WAIT_NS, &peer),
	    0);
	mc_shm_peer_detach(peer);
	assert_int_equal(close(silent), 0);
	(void)state;
}

static void a_peer_that_scribbles_on_the_control_page_cannot_hang_or_crash_its_owner(void **state)
{
	struct mc_shm_peer *peer;
	struct mc_shm_page *page = NULL;
	char line[512];
	void *start, *end;
	FILE *f;

	assert_int_equal(
	    side_attach(&me, mc_shm_dev_socket_path(me.dev), me.nonce, me.epoch, WAIT_NS, &peer),
	    0);
	f = fopen("/proc/self/maps", "re");
	while (fgets(line, sizeof(line), f)) {
		if (strstr(line, "mooncake-ctl") &&
		    sscanf(line, "%p-%p", &start, &end) == 2) /* NOLINT: kernel's text */
			page = start;
	}
	assert_int_equal(fclose(f), 0);
	assert_non_null(page);
	memset(page, 0xff, sizeof(*page) - sizeof(page->word) + 8000);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(mc_region_del(me.regions, (uintptr_t)me.mem[i]), 0);
		memset(page->owner, 0x7f, sizeof(page->owner));
		for (uint32_t k = 0; k < MC_SHM_SEATS; k++)
			page->seat[k].busy = 1;
	}
	mc_shm_peer_detach(peer);
	(void)state;
}

/* ---- surroundings ---- */

static int open_in(const char *dir)
{
	struct side s = {0};
	int rc = side_open(&s, dir, false);

	if (rc == 0) {
		side_close(&s);
		return 0;
	}
	/* side_open() stops half-way when the device does not open. */
	mc_region_table_close(s.regions);
	return rc;
}

static void directories_that_are_not_ours_alone_are_refused(void **state)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/open", test_dir);
	assert_int_equal(mkdir(path, 0777), 0);
	assert_int_equal(chmod(path, 0755), 0);
	assert_int_equal(open_in(path), -MC_E_UNAVAILABLE);
	assert_int_equal(rmdir(path), 0);
	assert_int_equal(symlink("/tmp", path), 0);
	assert_int_equal(open_in(path), -MC_E_UNAVAILABLE);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600)), 0);
	assert_int_equal(open_in(path), -MC_E_UNAVAILABLE);
	assert_int_equal(unlink(path), 0);
	snprintf(path, sizeof(path), "%s/no/such/parent", test_dir);
	assert_int_equal(open_in(path), -MC_E_UNAVAILABLE);
	memset(path, 'y', 150);
	memcpy(path, "/tmp/", 5);
	path[150] = '\0';
	assert_int_equal(open_in(path), -MC_E_UNAVAILABLE);
	snprintf(path, sizeof(path), "%s/fresh", test_dir);
	assert_int_equal(open_in(path), 0);
	assert_int_equal(rmdir(path), 0);
	(void)state;
}

static void sockets_of_dead_engines_are_removed(void **state)
{
	struct proc t = target_start(test_dir), alive = target_start(test_dir);

	assert_int_equal(access(t.hello.path, F_OK), 0);
	proc_kill(&t);
	assert_int_equal(access(t.hello.path, F_OK), 0);
	assert_int_equal(open_in(test_dir), 0);
	assert_int_equal(access(t.hello.path, F_OK), -1);
	assert_int_equal(access(alive.hello.path, F_OK), 0);
	proc_kill(&alive);
	(void)state;
}

static void a_device_without_memory_does_not_open(void **state)
{
	char path[128];
	int rc = -1;

	snprintf(path, sizeof(path), "%s/nomem", test_dir);
	for (int n = 0; rc < 0 && n < 200; n++) {
		struct side s = {0};
		struct mc_xdev_env env = {.clk = &mc_clock_real, .epoch = 5, .nonce = me.nonce};
		struct mc_shm_opts opts = {.dir = path};

		assert_int_equal(mc_region_table_open(&s.regions), 0);
		env.regions = s.regions;
		mc_mem_fail_after(n);
		rc = mc_shm_dev_open(&env, &opts, &s.dev, NULL);
		mc_mem_fail_after(-1);
		if (rc == 0)
			s.dev->ops->dev_close(s.dev);
		else
			assert_int_equal(rc, -MC_E_NOMEM);
		mc_region_table_close(s.regions);
	}
	assert_int_equal(rc, 0);
	assert_int_equal(rmdir(path), 0);
	(void)state;
}

static void many_cycles_of_attach_transfer_and_death_leave_nothing(void **state)
{
	struct mc_shm_peer *peer;
	struct mc_xlane *lane;
	struct proc t;

	for (int i = 0; i < 25; i++) {
		t = target_start(test_dir);
		assert_int_equal(
		    side_attach(&me, t.hello.path, t.hello.nonce, t.hello.epoch, WAIT_NS, &peer),
		    0);
		assert_int_equal(side_lane(&me, peer, &lane), 0);
		assert_int_equal(frag_run(lane, MC_OP_WRITE, me.mem[0], &t.hello.rr[i % 2],
					  t.hello.rr[i % 2].addr, 65536),
				 0);
		proc_kill(&t);
		lane->ops->lane_close(lane);
		mc_shm_peer_detach(peer);
	}
	/* The teardown counts descriptors and allocations. */
	(void)state;
}

static void hundreds_of_peers_attach_at_once(void **state)
{
	enum { PEERS = 300 };
	static struct mc_shm_peer *peer[PEERS];
	static struct mc_xlane *lane[PEERS];
	uint8_t buf[64];

	for (int i = 0; i < PEERS; i++) {
		assert_int_equal(side_attach(&me, mc_shm_dev_socket_path(me.dev), me.nonce,
					     me.epoch, WAIT_NS, &peer[i]),
				 0);
		assert_int_equal(side_lane(&me, peer[i], &lane[i]), 0);
	}
	for (int i = 0; i < PEERS; i++)
		assert_int_equal(
		    frag_run(lane[i], MC_OP_READ, buf, &me.rr[i % 2], me.rr[i % 2].addr, 64), 0);
	assert_int_equal(mc_region_del(me.regions, (uintptr_t)me.mem[0]), 0);
	for (int i = 0; i < PEERS; i++) {
		lane[i]->ops->lane_close(lane[i]);
		mc_shm_peer_detach(peer[i]);
	}
	(void)state;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    T(without_process_vm_only_foreign_memory_is_out_of_reach),
	    T(process_vm_that_is_taken_away_later_is_noticed),
	    T(another_user_gets_nothing),
	    T(from_another_pid_namespace_mapped_memory_is_reached),
	    T(from_another_network_namespace_all_is_reached),
	    T(from_another_user_namespace_mapped_memory_is_reached),
	    T(too_few_descriptors_are_an_error_that_passes),
	    T(a_killed_writer_does_not_hold_up_unregistering),
	    T(whoever_holds_up_unregistering_is_named),
	    T(a_stopped_writer_is_waited_for),
	    T(a_killed_target_is_noticed_without_harm),
	    T(a_target_that_closes_in_order_is_gone_at_once),
	    T(a_stopped_target_is_served_from_what_is_mapped),
	    T(a_forked_child_is_refused_and_disturbs_nobody),
	    T(a_wrong_nonce_or_incarnation_is_refused),
	    T(a_path_that_leads_nowhere_is_refused),
	    T(junk_on_the_socket_ends_that_connection_only),
	    T(a_peer_that_scribbles_on_the_control_page_cannot_hang_or_crash_its_owner),
	    T(directories_that_are_not_ours_alone_are_refused),
	    T(sockets_of_dead_engines_are_removed),
	    T(a_device_without_memory_does_not_open),
	    T(many_cycles_of_attach_transfer_and_death_leave_nothing),
	    T(hundreds_of_peers_attach_at_once),
	};
	int rc;

	if (argc == 3 && strcmp(argv[1], "handicapped") == 0)
		return role_handicapped(argv[2], ROLE_CTL);
	rc = role_main(argc, argv);
	return rc >= 0 ? rc : cmocka_run_group_tests(tests, NULL, NULL);
}
