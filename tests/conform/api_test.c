/*
 * api_test.c: the native C API as a program of an operator uses it, against its contracts: life,
 * segments, transfers that are waited for, files, observation, fork. Groups that are not
 * waited for are api_async_test.c's.
 *
 * "api_test tcp" forbids shared memory; "api_test shm" has it where the machine does.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "api_fix.h"

/* At exit the leak checker would look at threads that a forked child has not, and guess. */
#ifdef __SANITIZE_ADDRESS__
#define CHILD_EXIT _exit
#else
#define CHILD_EXIT exit /* with all that is run at exit */
#endif

/* ---- life ---- */

static int opened(struct mc_engine_opts opts, struct mc_diag *diag)
{
	struct mc_engine *eng = NULL;
	int rc;

	opts.size = sizeof(opts);
	diag->text[0] = '\0';
	rc = mc_engine_open(&opts, diag, &eng);
	assert_true(rc < 0 ? !eng : eng != NULL);
	mc_engine_close(eng);
	return rc;
}

static void an_engine_refuses_bad_options_and_names_them(void **state)
{
	static const struct {
		struct mc_engine_opts opts;
		int rc;
		const char *word;
	} bad[] = {
	    {{.name = "127.0.0.1", .protocol = "pigeon"}, -MC_E_UNSUPPORTED, "pigeon"},
	    {{.name = "127.0.0.1:99999"}, -MC_E_INVAL, "99999"},
	    {{.name = "[::1"}, -MC_E_INVAL, "[::1"},
	    {{.name = "no-such-host.invalid"}, -MC_E_DNS, "no-such-host.invalid"},
	    {{.name = "192.0.2.7"}, -MC_E_ADDR, "192.0.2.7"},
	    {{.name = "127.0.0.1", .devices = "192.0.2.7"}, -MC_E_ADDR, "192.0.2.7"},
	    {{.name = "127.0.0.1", .metadata = "gopher://127.0.0.1:1"}, -MC_E_INVAL, "gopher"},
	    {{.name = "127.0.0.1", .metadata = "http://127.0.0.1:1/metadata"},
	     -MC_E_METADATA,
	     "127.0.0.1:1"},
	};
	struct mc_engine *eng = NULL;
	struct mc_diag diag;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		int rc = opened(bad[i].opts, &diag);

		if (rc != bad[i].rc || !strstr(diag.text, bad[i].word))
			fail_msg("options %zu: %s (%s)", i, mc_err_name(rc), diag.text);
	}
	assert_int_equal(mc_engine_open(NULL, &diag, &eng), -MC_E_INVAL);
	assert_int_equal(mc_engine_open(&(struct mc_engine_opts){0}, &diag, &eng), -MC_E_INVAL);
	assert_null(eng);
}

static void an_engine_names_the_metrics_port_that_is_taken(void **state)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(at);
	struct mc_diag diag;
	char port[16];
	int fd = -1;

	(void)state;
	for (unsigned p = 20000 + (unsigned)getpid() % 9000; fd < 0 && p < 32000; p++) {
		at.sin_port = htons((uint16_t)p);
		fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (bind(fd, (struct sockaddr *)&at, len) < 0 || listen(fd, 1) < 0) {
			(void)close(fd);
			fd = -1;
		}
	}
	assert_true(fd >= 0);
	(void)snprintf(port, sizeof(port), "%u", ntohs(at.sin_port));
	assert_int_equal(
	    opened((struct mc_engine_opts){.name = "127.0.0.1", .metrics_port = ntohs(at.sin_port)},
		   &diag),
	    -MC_E_ADDR_IN_USE);
	assert_non_null(strstr(diag.text, port));
	(void)close(fd);
}

static void an_engine_takes_options_of_any_age(void **state)
{
	struct {
		struct mc_engine_opts opts;
		char later[64];
	} grown = {.opts = {.size = sizeof(grown), .name = "127.0.0.1"}};
	struct mc_engine_opts old = {.size = offsetof(struct mc_engine_opts, metadata),
				     .name = "127.0.0.1",
				     .metadata = "not there yet"};
	struct mc_engine *eng;

	(void)state;
	assert_int_equal(mc_engine_open(&grown.opts, NULL, &eng), 0);
	mc_engine_close(eng);
	assert_int_equal(mc_engine_open(&old, NULL, &eng), 0);
	mc_engine_close(eng);
}

static void an_engine_lives_as_long_as_a_reference(void **state)
{
	struct mc_engine *eng = engine_open(), *same;
	struct mc_diag diag;
	char at[64];

	(void)state;
	assert_non_null(eng);
	same = mc_engine_ref(eng);
	assert_ptr_equal(same, eng);
	(void)snprintf(at, sizeof(at), "127.0.0.1:%u", mc_engine_port(eng));
	assert_string_equal(mc_engine_address(eng), at);
	assert_string_equal(mc_engine_name(eng), at); /* with P2P metadata */
	mc_engine_close(eng);
	assert_int_equal(mc_segment_probe(same, at, NS_PER_S, &diag), 0);
	mc_engine_close(same);
	mc_engine_close(NULL);
	assert_true(strlen(mc_version()) >= 5);
}

/* ---- memory ---- */

static void the_first_address_is_the_first_ranges(void **state)
{
	static uint8_t a[4096];
	uint64_t addr = 7;
	struct world w;

	(void)state;
	world_open(&w);
	assert_int_equal(mc_segment_first_addr(w.eng, MC_SEGMENT_LOCAL, &addr), 0);
	assert_int_equal(addr, 0);
	assert_int_equal(mc_mem_reg(w.eng, a, sizeof(a), NULL, RIGHTS), 0);
	assert_int_equal(mc_segment_first_addr(w.eng, MC_SEGMENT_LOCAL, &addr), 0);
	assert_int_equal(addr, (uintptr_t)a);
	assert_int_equal(mc_segment_first_addr(w.eng, w.seg, &addr), 0);
	assert_true(addr == w.peer.base || addr == w.peer.readonly);
	assert_int_equal(mc_segment_first_addr(w.eng, w.seg + 1, &addr), -MC_E_STALE);
	assert_int_equal(mc_segment_first_addr(w.eng, -1, &addr), -MC_E_STALE);
	world_close(&w);
}

/* ---- segments ---- */

static void a_segment_has_one_id_until_it_is_closed(void **state)
{
	struct mc_diag diag = {.text = ""};
	uint8_t buf[64] = {0};
	int32_t again = -1;
	struct world w;

	(void)state;
	world_open(&w);
	assert_int_equal(mc_segment_open(w.eng, w.peer.name, 0, &diag, &again), 0);
	assert_int_equal(again, w.seg);
	assert_int_equal(mc_segment_close(w.eng, w.seg), 0);
	assert_int_equal(mc_segment_close(w.eng, w.seg), -MC_E_STALE);
	assert_int_equal(mc_segment_close(w.eng, -1), -MC_E_STALE);
	assert_int_equal(mc_segment_close(w.eng, 12345), -MC_E_STALE);
	assert_int_equal(mc_segment_close(w.eng, MC_SEGMENT_LOCAL), 0);
	assert_int_equal(move(w.eng, MC_WRITE, w.seg, buf, w.peer.base, 64), -MC_E_STALE);
	assert_int_equal(mc_segment_open(w.eng, w.peer.name, 0, &diag, &w.seg), 0);
	assert_int_equal(move(w.eng, MC_WRITE, w.seg, buf, w.peer.base, 64), 0);
	world_close(&w);
}

static void a_segment_that_cannot_be_opened_says_why_and_which(void **state)
{
	static const struct {
		const char *name;
		int rc;
	} bad[] = {
	    {NULL, -MC_E_INVAL},
	    {"", -MC_E_INVAL},
	    {"no-such-host.invalid:12345", -MC_E_DNS},
	    {"127.0.0.1:1", -MC_E_REFUSED},
	    {"127.0.0.1:99999", -MC_E_INVAL},
	};
	struct mc_engine *eng = engine_open();
	struct mc_diag diag;
	char name[5000];
	int32_t seg = -7;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		int rc;

		diag.text[0] = '\0';
		rc = mc_segment_open(eng, bad[i].name, 2 * NS_PER_S, &diag, &seg);
		if (rc != bad[i].rc || !diag.text[0] ||
		    (bad[i].name && !strstr(diag.text, bad[i].name)))
			fail_msg("open %s: %s (%s)", bad[i].name, mc_err_name(rc), diag.text);
		rc = mc_segment_probe(eng, bad[i].name, 2 * NS_PER_S, &diag);
		if (rc != bad[i].rc)
			fail_msg("probe %s: %s (%s)", bad[i].name, mc_err_name(rc), diag.text);
	}
	memset(name, 'n', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	assert_int_equal(mc_segment_open(eng, name, 0, &diag, &seg), -MC_E_INVAL);
	assert_int_equal(mc_segment_probe(eng, name, 0, NULL), -MC_E_INVAL);
	assert_int_equal(mc_segment_open(eng, "127.0.0.1:1", 0, NULL, &seg), -MC_E_REFUSED);
	assert_int_equal(seg, -7);
	mc_engine_close(eng);
}

static void a_stopped_peer_costs_opening_and_probing_their_timeout(void **state)
{
	struct mc_engine *eng = engine_open();
	struct mc_diag diag = {.text = ""};
	struct peer peer;
	uint64_t at;
	int32_t seg;

	(void)state;
	peer_open(&peer);
	assert_int_equal(mc_segment_probe(eng, peer.name, NS_PER_S, &diag), 0);
	peer_stop(&peer);
	at = now_ns();
	assert_int_equal(mc_segment_probe(eng, peer.name, 300 * NS_PER_MS, &diag), -MC_E_TIMEDOUT);
	assert_int_equal(mc_segment_open(eng, peer.name, 300 * NS_PER_MS, &diag, &seg),
			 -MC_E_TIMEDOUT);
	assert_non_null(strstr(diag.text, peer.name));
	assert_true(now_ns() - at < 600 * NS_PER_MS + LATE_NS);
	peer_go(&peer);
	assert_int_equal(mc_segment_open(eng, peer.name, 0, &diag, &seg), 0);
	mc_engine_close(eng);
	peer_close(&peer);
}

/* ---- transfers ---- */

#define CUTS 67u

/* Cut [addr, addr + len) into n ranges of uneven length, some of them empty. */
static void cut(struct mc_iov *iov, unsigned n, uint64_t addr, uint64_t len, unsigned step)
{
	uint64_t left = len;

	for (unsigned i = 0; i < n; i++) {
		uint64_t take = i + 1 == n ? left : (i * step * 977u) % 9000u;

		if (i % 13 == 5)
			take = 0;
		take = take < left ? take : left;
		iov[i] = (struct mc_iov){addr, i + 1 == n ? left : take};
		addr += iov[i].len;
		left -= iov[i].len;
	}
}

static void ranges_cut_differently_meet_over_two_segments_in_one_group(void **state)
{
	static uint8_t src[3][MIB / 2], dst[MIB];
	struct mc_iov local[3][CUTS], remote[3][CUTS];
	struct mc_transfer t[3];
	struct mc_group g = {
	    .size = sizeof(g), .n = 3, .transfers = t, .priority = MC_PRIO_NORMAL, .user = 77};
	struct mc_engine *other = engine_open();
	struct mc_completion done[2];
	struct mc_cq *cq;
	struct world w;
	int32_t seg2;
	uint64_t id;

	(void)state;
	world_open(&w);
	assert_int_equal(mc_mem_reg(other, dst, sizeof(dst), NULL, RIGHTS), 0);
	assert_int_equal(mc_segment_open(w.eng, mc_engine_name(other), 0, NULL, &seg2), 0);
	for (unsigned i = 0; i < 3; i++) {
		uint64_t to = i == 1 ? (uintptr_t)dst + 3 : w.peer.base + i * MIB + 1;

		fill(src[i], sizeof(src[i]), i);
		cut(local[i], 61, (uintptr_t)src[i], sizeof(src[i]), 3 + i);
		cut(remote[i], CUTS, to, sizeof(src[i]), 5 + i);
		t[i] = (struct mc_transfer){.op = MC_WRITE,
					    .segment = i == 1 ? seg2 : w.seg,
					    .nlocal = 61,
					    .nremote = CUTS,
					    .local = local[i],
					    .remote = remote[i]};
	}
	assert_int_equal(mc_transfer_sync(w.eng, &g, NULL), 0);
	assert_true(is_filled(dst + 3, sizeof(src[1]), 1));
	assert_true(is_filled_at(w.eng, w.seg, w.peer.base + 1, sizeof(src[0]), 0));
	assert_true(is_filled_at(w.eng, w.seg, w.peer.base + 2 * MIB + 1, sizeof(src[2]), 2));

	/* The same backwards, through a queue: one completion that counts all bytes. */
	memset(src, 0, sizeof(src));
	for (unsigned i = 0; i < 3; i++)
		t[i].op = MC_READ;
	assert_int_equal(mc_cq_open(w.eng, 2, &cq), 0);
	g.cq = cq;
	assert_int_equal(mc_submit(w.eng, &g, &id), 0);
	assert_int_equal(mc_cq_wait(cq, done, 2, 20 * NS_PER_S), 1);
	assert_int_equal(done[0].status, 0);
	assert_int_equal(done[0].bytes, sizeof(src));
	assert_int_equal(done[0].user, 77);
	assert_int_equal(mc_cq_wait(cq, done, 2, 0), 0);
	for (unsigned i = 0; i < 3; i++)
		assert_true(is_filled(src[i], sizeof(src[i]), i));
	mc_cq_close(cq);
	world_close(&w);
	mc_engine_close(other);
}

static void transfers_of_nothing_succeed(void **state)
{
	struct mc_iov empty[2] = {{0}};
	struct mc_transfer t[2] = {{.op = MC_READ, .segment = 999}};
	struct mc_group g = {.size = sizeof(g), .priority = MC_PRIO_LOW};
	struct mc_status st;
	struct world w;
	uint64_t id;

	(void)state;
	world_open(&w);
	t[0].segment = w.seg;
	t[1] = (struct mc_transfer){.op = MC_WRITE,
				    .segment = w.seg,
				    .nlocal = 2,
				    .nremote = 1,
				    .local = empty,
				    .remote = empty};
	assert_int_equal(mc_transfer_sync(w.eng, &g, NULL), 0); /* no transfer at all */
	assert_int_equal(mc_submit(w.eng, &g, &id), 0);
	assert_int_equal(mc_group_wait(w.eng, id, 10 * NS_PER_S, &st), 0);
	assert_true(st.is_done && st.status == 0 && st.bytes == 0);
	assert_int_equal(mc_group_free(w.eng, id), 0);
	g.n = 2;
	g.transfers = t;
	assert_int_equal(mc_transfer_sync(w.eng, &g, NULL), 0);
	assert_int_equal(mc_submit(w.eng, &g, &id), 0);
	assert_int_equal(mc_group_wait(w.eng, id, 10 * NS_PER_S, &st), 0);
	assert_int_equal(mc_group_transfer_status(w.eng, id, 1, &st), 0);
	assert_true(st.is_done && st.status == 0 && st.bytes == 0);
	assert_int_equal(mc_group_free(w.eng, id), 0);
	world_close(&w);
}

/* What both ways to start a group say of it. */
static int refused(struct mc_engine *eng, const struct mc_group *g)
{
	uint64_t id = 12345;
	struct mc_diag diag = {.text = ""};
	int rc = mc_transfer_sync(eng, g, &diag);

	assert_true(rc < 0);
	assert_true(diag.text[0] != '\0');
	assert_int_equal(mc_submit(eng, g, &id), rc);
	assert_int_equal(id, 12345);
	return rc;
}

/* What only the peer can know is said at once to who waits, and by the completion to who does not.
 */
static int failed(struct mc_engine *eng, const struct mc_group *g)
{
	struct mc_diag diag = {.text = ""};
	struct mc_status st;
	uint64_t id;
	int rc = mc_transfer_sync(eng, g, &diag);

	assert_true(rc < 0);
	assert_int_equal(mc_submit(eng, g, &id), 0);
	assert_int_equal(mc_group_wait(eng, id, 20 * NS_PER_S, &st), 0);
	assert_int_equal(st.status, rc);
	assert_int_equal(st.bytes, 0);
	assert_int_equal(mc_group_transfer_status(eng, id, 0, &st), 0);
	assert_true(st.is_done && st.status == rc);
	assert_true(diag.text[0] != '\0');
	assert_int_equal(mc_group_diag(eng, id, &diag), 0);
	assert_true(diag.text[0] != '\0');
	assert_int_equal(mc_group_free(eng, id), 0);
	return rc;
}

static void malformed_groups_are_refused_as_a_whole(void **state)
{
	uint8_t buf[4096] = {0};
	struct mc_iov huge[2] = {{4096, UINT64_MAX - 8192}, {8192, UINT64_MAX - 16384}};
	struct one o;
	struct world w;

	(void)state;
	world_open(&w);
#define BAD_BY(how, code, change)                                                                  \
	do {                                                                                       \
		(void)one(&o, MC_WRITE, w.seg, buf, w.peer.base, 64, 0);                           \
		change;                                                                            \
		assert_int_equal(how(w.eng, &o.g), -(code));                                       \
	} while (0)
#define BAD(code, change) BAD_BY(refused, code, change)
	BAD(MC_E_INVAL, o.g.size = 8);
	BAD(MC_E_INVAL, o.g.priority = MC_PRIO_COUNT);
	BAD(MC_E_INVAL, o.g.transfers = NULL);
	BAD(MC_E_INVAL, o.g.n = MC_GROUP_MAX + 1);
	BAD(MC_E_INVAL, o.t.op = 2);
	BAD(MC_E_INVAL, o.t.local = NULL);
	BAD(MC_E_INVAL, o.t.remote = NULL);
	BAD(MC_E_INVAL, o.t.nlocal = MC_IOV_MAX + 1);
	BAD(MC_E_INVAL, o.t.nremote = MC_IOV_MAX + 1);
	BAD(MC_E_INVAL, o.local.len = 63);
	BAD(MC_E_INVAL, o.local.addr = 0);
	BAD(MC_E_INVAL, (o.local.addr = UINT64_MAX - 32));
	BAD(MC_E_INVAL, (o.remote.addr = UINT64_MAX - 32));
	BAD(MC_E_INVAL,
	    (o.t.nlocal = o.t.nremote = 2, o.t.local = huge, o.t.remote = huge)); /* the sum */
	BAD(MC_E_STALE, o.t.segment = -1);
	BAD(MC_E_STALE, o.t.segment = w.seg + 1);
	BAD_BY(failed, MC_E_RANGE, o.remote.addr = 0);
	BAD_BY(failed, MC_E_RANGE, o.remote.addr = w.peer.base - 1);
	BAD_BY(failed, MC_E_RANGE, (o.remote.addr = w.peer.base + REGION_BYTES - 63));
#undef BAD
#undef BAD_BY
	assert_int_equal(move(w.eng, MC_WRITE, w.seg, buf, w.peer.base + REGION_BYTES - 64, 64), 0);
	world_close(&w);
}

static void one_bad_transfer_keeps_its_group_from_starting(void **state)
{
	uint8_t good[64], bad[64] = {0};
	struct one o[2];
	struct mc_transfer t[2];
	struct mc_group g = {.size = sizeof(g), .n = 2, .transfers = t, .priority = MC_PRIO_NORMAL};
	struct world w;

	(void)state;
	world_open(&w);
	fill(good, sizeof(good), 3);
	assert_int_equal(move(w.eng, MC_WRITE, w.seg, good, w.peer.base, 64), 0);
	(void)one(&o[0], MC_WRITE, w.seg, bad, w.peer.base, 64, 0);
	(void)one(&o[1], MC_WRITE, w.seg, bad, 4096, 64, 0);
	t[0] = o[0].t;
	t[1] = o[1].t;
	assert_int_equal(failed(w.eng, &g), -MC_E_RANGE);
	assert_true(is_filled_at(w.eng, w.seg, w.peer.base, 64, 3));
	world_close(&w);
}

static void rights_are_kept(void **state)
{
	struct mc_diag diag = {.text = ""};
	uint8_t buf[64] = {0};
	struct one o;
	struct world w;

	(void)state;
	world_open(&w);
	assert_int_equal(
	    mc_transfer_sync(w.eng, one(&o, MC_WRITE, w.seg, buf, w.peer.readonly, 64, 0), &diag),
	    -MC_E_PERM);
	assert_non_null(strstr(diag.text, w.peer.name));
	assert_non_null(strstr(diag.text, mc_err_text(MC_E_PERM)));
	assert_true(is_filled_at(w.eng, w.seg, w.peer.readonly, 64, 9));
	world_close(&w);
}

static void unregistered_memory_is_out_of_reach_at_once(void **state)
{
	static uint8_t mem[4096];
	struct mc_engine *a = engine_open(), *b = engine_open();
	uint8_t buf[64];
	int32_t seg;
	int rc;

	(void)state;
	fill(buf, sizeof(buf), 1);
	assert_int_equal(mc_mem_reg(b, mem, sizeof(mem), NULL, RIGHTS), 0);
	assert_int_equal(mc_segment_open(a, mc_engine_name(b), 0, NULL, &seg), 0);
	assert_int_equal(move(a, MC_WRITE, seg, buf, (uintptr_t)mem, 64), 0);
	assert_true(is_filled(mem, 64, 1));
	assert_int_equal(mc_mem_unreg(b, mem), 0);
	memset(mem, 0, sizeof(mem));
	rc = move(a, MC_WRITE, seg, buf, (uintptr_t)mem, 64);
	assert_true(rc == -MC_E_RANGE || rc == -MC_E_STALE);
	assert_int_equal(mem[0], 0);
	assert_int_equal(mc_mem_reg(b, mem, sizeof(mem), NULL, RIGHTS), 0);
	assert_int_equal(move(a, MC_WRITE, seg, buf, (uintptr_t)mem, 64), 0);
	assert_true(is_filled(mem, 64, 1));
	mc_engine_close(a);
	mc_engine_close(b);
}

/* ---- files ---- */

struct file {
	char path[64], name[80];
	int fd;
};

/* Where files outlive a reboot: a disk, where /tmp may be memory. */
static void file_open(struct file *f, size_t bytes)
{
	uint8_t block[4096];

	(void)snprintf(f->path, sizeof(f->path), "/var/tmp/mc-api-XXXXXX");
	f->fd = mkostemp(f->path, O_CLOEXEC);
	assert_true(f->fd >= 0);
	for (size_t at = 0; at < bytes; at += sizeof(block)) {
		fill(block, sizeof(block), (unsigned)(at / sizeof(block)));
		assert_int_equal(write(f->fd, block, sizeof(block)), sizeof(block));
	}
	(void)snprintf(f->name, sizeof(f->name), "file://%s", f->path);
}

static void file_close(struct file *f)
{
	(void)close(f->fd);
	(void)unlink(f->path);
}

static void a_file_is_a_segment_of_offsets(void **state)
{
	static _Alignas(4096) uint8_t buf[MIB], got[MIB + 4096];
	struct mc_engine *eng = engine_open();
	struct mc_diag diag = {.text = ""};
	uint64_t addr = 7;
	struct file f;
	int32_t seg;

	(void)state;
	file_open(&f, 4096 * 8);
	assert_int_equal(mc_segment_open(eng, f.name, 0, &diag, &seg), 0);
	assert_int_equal(mc_segment_first_addr(eng, seg, &addr), 0);
	assert_int_equal(addr, 0);
	for (unsigned i = 0; i < 8; i++)
		assert_true(is_filled_at(eng, seg, i * 4096, 4096, i));
	/* An odd place, odd memory, past the end: the file grows. */
	fill(buf, sizeof(buf), 42);
	assert_int_equal(move(eng, MC_WRITE, seg, buf, 8191, MIB), 0);
	assert_true(is_filled_at(eng, seg, 8191, MIB, 42));
	assert_int_equal(pread(f.fd, got, MIB, 8191), MIB);
	assert_true(is_filled(got, MIB, 42));
	assert_int_equal(pread(f.fd, got, 4096, 0), 4096);
	assert_true(is_filled(got, 4096, 0)); /* what lies before is untouched */
	assert_int_equal(lseek(f.fd, 0, SEEK_END), 8191 + MIB);
	assert_int_equal(mc_segment_close(eng, seg), 0);
	mc_engine_close(eng);
	file_close(&f);
}

static void reading_past_the_end_of_a_file_is_an_error_that_names_it(void **state)
{
	uint8_t buf[8192];
	struct mc_engine *eng = engine_open();
	struct mc_diag diag = {.text = ""};
	struct file f;
	struct one o;
	int32_t seg;

	(void)state;
	file_open(&f, 4096);
	assert_int_equal(mc_segment_open(eng, f.name, 0, &diag, &seg), 0);
	assert_int_equal(
	    mc_transfer_sync(eng, one(&o, MC_READ, seg, buf, 0, sizeof(buf), 0), &diag),
	    -MC_E_RANGE);
	assert_non_null(strstr(diag.text, f.path));
	assert_int_equal(move(eng, MC_READ, seg, buf, 1ull << 40, 1), -MC_E_RANGE);
	assert_int_equal(move(eng, MC_READ, seg, buf, UINT64_MAX - 8192, 4096), -MC_E_RANGE);
	assert_int_equal(move(eng, MC_READ, seg, buf, 0, 4096), 0);
	assert_true(is_filled(buf, 4096, 0));
	mc_engine_close(eng);
	file_close(&f);
}

static void a_file_that_may_not_be_written_is_read(void **state)
{
	bool is_root = geteuid() == 0;
	uint8_t buf[64] = {0};
	struct mc_engine *eng = engine_open();
	struct mc_diag diag = {.text = ""};
	struct file f;
	struct one o;
	int32_t seg;

	(void)state;
	file_open(&f, 4096);
	assert_int_equal(fchmod(f.fd, 0444), 0);
	/* Root may write it all the same: be somebody else for a moment. */
	assert_true(!is_root || seteuid(65534) == 0);
	assert_int_equal(mc_segment_open(eng, f.name, 0, &diag, &seg), 0);
	assert_true(!is_root || seteuid(0) == 0);
	assert_int_equal(move(eng, MC_READ, seg, buf, 0, 64), 0);
	assert_true(is_filled(buf, 64, 0));
	assert_int_equal(mc_transfer_sync(eng, one(&o, MC_WRITE, seg, buf, 1, 64, 0), &diag),
			 -MC_E_PERM);
	assert_non_null(strstr(diag.text, f.path));
	assert_true(is_filled_at(eng, seg, 0, 4096, 0));
	mc_engine_close(eng);
	file_close(&f);
}

static void a_file_that_cannot_be_opened_is_named(void **state)
{
	struct mc_engine *eng = engine_open();
	struct mc_diag diag = {.text = ""};
	int32_t seg;

	(void)state;
	assert_int_equal(mc_segment_open(eng, "file:///no/such/file", 0, &diag, &seg), -MC_E_NOENT);
	assert_non_null(strstr(diag.text, "/no/such/file"));
	assert_int_equal(mc_segment_open(eng, "file:///", 0, &diag, &seg), -MC_E_INVAL);
	assert_int_equal(mc_segment_open(eng, "file://relative", 0, &diag, &seg), -MC_E_INVAL);
	assert_non_null(strstr(diag.text, "relative"));
	assert_int_equal(mc_segment_probe(eng, "file:///no/such/file", 0, &diag),
			 -MC_E_UNSUPPORTED);
	mc_engine_close(eng);
}

static void a_file_takes_no_messages(void **state)
{
	struct mc_notify n = {"a", "b", 1, 1};
	struct mc_engine *eng = engine_open();
	uint8_t buf[64] = {0};
	struct file f;
	struct one o;
	int32_t seg;

	(void)state;
	file_open(&f, 4096);
	assert_int_equal(mc_segment_open(eng, f.name, 0, NULL, &seg), 0);
	assert_int_equal(mc_notify_send(eng, seg, &n, 0), -MC_E_UNSUPPORTED);
	(void)one(&o, MC_WRITE, seg, buf, 0, 64, 0);
	o.g.notify = &n;
	assert_int_equal(mc_transfer_sync(eng, &o.g, NULL), -MC_E_UNSUPPORTED);
	mc_engine_close(eng);
	file_close(&f);
}

/* ---- observation ---- */

static void metrics_tell_what_moved_and_to_whom(void **state)
{
	uint8_t buf[4096] = {0};
	struct world w;
	char *text;

	(void)state;
	world_open(&w);
	assert_int_equal(move(w.eng, MC_WRITE, w.seg, buf, w.peer.base, 4096), 0);
	text = mc_metrics_text(w.eng);
	assert_non_null(text);
	assert_non_null(strstr(text, "# TYPE mc_transfer_bytes_total counter"));
	assert_non_null(strstr(text, w.peer.name));
	mc_text_free(text);
	mc_text_free(NULL);
	world_close(&w);
	text = mc_topology_json(NULL);
	assert_non_null(text);
	assert_non_null(strstr(text, "cpu:0"));
	mc_text_free(text);
	text = mc_topology_json("no_such_device");
	assert_non_null(text);
	mc_text_free(text);
}

/* ---- fork ---- */

/* @return 0, or the line of what went wrong */
static int in_child(struct world *w, struct mc_cq *cq, uint64_t id)
{
	uint8_t buf[64] = {0};
	struct mc_mem mem = {buf, sizeof(buf)};
	struct mc_notify n = {"a", "b", 1, 1};
	struct mc_completion done;
	struct mc_notice *notices;
	struct mc_status st;
	struct mc_diag diag;
	struct mc_cq *cq2;
	void *at = buf;
	uint64_t addr;
	struct one o;
	int32_t seg;

#define DEAD(call)                                                                                 \
	do {                                                                                       \
		if ((call) != -MC_E_FORKED)                                                        \
			return __LINE__;                                                           \
	} while (0)
	(void)one(&o, MC_WRITE, w->seg, buf, w->peer.base, 64, 0);
	DEAD(mc_transfer_sync(w->eng, &o.g, NULL));
	DEAD(mc_submit(w->eng, &o.g, &addr));
	DEAD(mc_group_status(w->eng, id, &st));
	DEAD(mc_group_transfer_status(w->eng, id, 0, &st));
	DEAD(mc_group_wait(w->eng, id, NS_PER_S, &st));
	DEAD(mc_group_diag(w->eng, id, &diag));
	DEAD(mc_group_cancel(w->eng, id));
	DEAD(mc_group_free(w->eng, id));
	DEAD(mc_mem_reg(w->eng, buf, sizeof(buf), NULL, RIGHTS));
	DEAD(mc_mem_reg_batch(w->eng, &mem, 1, NULL, RIGHTS));
	DEAD(mc_mem_unreg(w->eng, buf));
	DEAD(mc_mem_unreg_batch(w->eng, &at, 1));
	DEAD(mc_mem_free(w->eng, buf));
	DEAD(mc_segment_open(w->eng, w->peer.name, 0, NULL, &seg));
	DEAD(mc_segment_close(w->eng, w->seg));
	DEAD(mc_segment_watch(w->eng, w->seg, NULL, 0, &addr));
	DEAD(mc_segment_probe(w->eng, w->peer.name, 0, NULL));
	DEAD(mc_segment_first_addr(w->eng, w->seg, &addr));
	DEAD(mc_cq_open(w->eng, 1, &cq2));
	DEAD(mc_cq_wait(cq, &done, 1, NS_PER_S));
	DEAD(mc_cq_fd(cq));
	DEAD(mc_notify_send(w->eng, w->seg, &n, 0));
	DEAD(mc_notices_take(w->eng, &notices));
#undef DEAD
	if (mc_mem_alloc(w->eng, 64) || mc_metrics_text(w->eng))
		return __LINE__;
	mc_cq_close(cq);
	mc_engine_close(mc_engine_ref(w->eng));
	mc_engine_close(w->eng);
	return 0;
}

static void a_forked_child_is_told_so_by_every_call_and_can_exit(void **state)
{
	static uint8_t buf[64];
	struct mc_cq *cq;
	struct world w;
	struct one o;
	uint64_t id;
	pid_t pid;
	int status;

	(void)state;
	world_open(&w);
	assert_int_equal(mc_cq_open(w.eng, 4, &cq), 0);
	assert_int_equal(mc_submit(w.eng, one(&o, MC_WRITE, w.seg, buf, w.peer.base, 64, 0), &id),
			 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		int line = in_child(&w, cq, id);

		if (line)
			(void)fprintf(stderr, "line %d: not MC_E_FORKED\n", line);
		(void)alarm(20);
		CHILD_EXIT(line ? 1 : 0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	assert_int_equal(move(w.eng, MC_WRITE, w.seg, buf, w.peer.base, 64), 0);
	assert_int_equal(mc_group_free(w.eng, id), 0);
	mc_cq_close(cq);
	world_close(&w);
}

static void every_code_has_a_text_a_name_and_a_scope(void **state)
{
	(void)state;
	for (int i = 0; i < MC_E_COUNT; i++) {
		assert_true(mc_err_text(-i)[0] && mc_err_name(-i)[0]);
		assert_string_equal(mc_err_text(i), mc_err_text(-i));
		assert_string_equal(mc_err_name(i), mc_err_name(-i));
		assert_true(mc_err_scope(-i) < MC_SCOPE_COUNT);
	}
	assert_string_equal(mc_err_text(-9999), "unknown error");
	assert_string_equal(mc_err_name(INT32_MIN), "UNKNOWN");
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(an_engine_refuses_bad_options_and_names_them),
	    cmocka_unit_test(an_engine_names_the_metrics_port_that_is_taken),
	    cmocka_unit_test(an_engine_takes_options_of_any_age),
	    cmocka_unit_test(an_engine_lives_as_long_as_a_reference),
	    cmocka_unit_test(the_first_address_is_the_first_ranges),
	    cmocka_unit_test(a_segment_has_one_id_until_it_is_closed),
	    cmocka_unit_test(a_segment_that_cannot_be_opened_says_why_and_which),
	    cmocka_unit_test(a_stopped_peer_costs_opening_and_probing_their_timeout),
	    cmocka_unit_test(ranges_cut_differently_meet_over_two_segments_in_one_group),
	    cmocka_unit_test(transfers_of_nothing_succeed),
	    cmocka_unit_test(malformed_groups_are_refused_as_a_whole),
	    cmocka_unit_test(one_bad_transfer_keeps_its_group_from_starting),
	    cmocka_unit_test(rights_are_kept),
	    cmocka_unit_test(unregistered_memory_is_out_of_reach_at_once),
	    cmocka_unit_test(a_file_is_a_segment_of_offsets),
	    cmocka_unit_test(reading_past_the_end_of_a_file_is_an_error_that_names_it),
	    cmocka_unit_test(a_file_that_may_not_be_written_is_read),
	    cmocka_unit_test(a_file_that_cannot_be_opened_is_named),
	    cmocka_unit_test(a_file_takes_no_messages),
	    cmocka_unit_test(metrics_tell_what_moved_and_to_whom),
	    cmocka_unit_test(a_forked_child_is_told_so_by_every_call_and_can_exit),
	    cmocka_unit_test(every_code_has_a_text_a_name_and_a_scope),
	};

	if (argc > 1 && strcmp(argv[1], "peer") == 0)
		return peer_main();
	if (argc > 1 && strcmp(argv[1], "tcp") == 0)
		(void)setenv("MC_FORCE_TCP", "1", 1);
	(void)unsetenv("MC_TCP_BIND_ADDRESS"); /* it would decide what names may be */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
