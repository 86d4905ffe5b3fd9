/*
 * calls_test.c: what clients and the process around it ask of an owner, over rpc and directly.
 */
#include "owner_fix.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/crc.h"

#define POOL (8u << 20)

static uint8_t payload[MC_ST_INLINE_MAX];

static void put_is_readable_and_repeats(void **state)
{
	struct mc_st_granted ret[2], again;
	struct fix f;

	fix_open(&f, (struct mc_owner_opts){.bytes = POOL});
	memset(payload, 'p', sizeof(payload));
	const struct mc_st_grant g[] = {fix_grant("a", 11, 100, payload),
					fix_grant("b", 12, 200000, payload)};

	assert_int_equal(fix_put(f.conn, g, 2, true, FIX_SOON_NS, ret), 0);
	assert_int_equal(ret[0].status, 0);
	assert_int_equal(ret[1].status, 0);
	assert_true(ret[0].incarnation == f.incarnation);
	fix_check(ret[0].addr, "a", 11, 100, 'p');
	fix_check(ret[1].addr, "b", 12, 200000, 'p');
	assert_int_equal(fix_put_one(&f, "a", 11, 100, payload, &again), 0);
	assert_true(again.addr == ret[0].addr);
	/* One generation, another key. */
	assert_int_equal(fix_put_one(&f, "c", 11, 100, payload, &again), MC_STORE_INVALID_PARAMS);
	fix_close(&f);
	(void)state;
}

static void put_that_the_wire_changed_is_refused_and_leaves_nothing(void **state)
{
	struct mc_st_granted ret[2];
	struct fix f;

	fix_open(&f, (struct mc_owner_opts){.bytes = POOL});
	memset(payload, 'p', sizeof(payload));
	struct mc_st_grant g[] = {fix_grant("a", 11, 100, payload),
				  fix_grant("b", 12, 200000, payload)};

	for (int i = 0; i < 2; i++)
		g[i].crc = mc_crc32c(0, payload, g[i].len) ^ 1u << i;
	assert_int_equal(fix_put(f.conn, g, 2, true, FIX_SOON_NS, ret), 0);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(ret[i].status, MC_STORE_CHECKSUM_MISMATCH);
		g[i].crc ^= 1u << i;
	}
	assert_int_equal(fix_put(f.conn, g, 2, true, FIX_SOON_NS, ret), 0);
	fix_check(ret[0].addr, "a", 11, 100, 'p');
	fix_check(ret[1].addr, "b", 12, 200000, 'p');
	fix_close(&f);
	(void)state;
}

static void grant_is_sealed_by_table_or_by_the_owner(void **state)
{
	struct mc_st_granted a, b, again;
	struct mc_slot_info info = {.gen = 5, .key_len = 1, .len = 150000};
	struct fix f;
	uint32_t table[3];

	fix_open(&f, (struct mc_owner_opts){.bytes = POOL});
	assert_int_equal(fix_put_one(&f, "a", 5, 150000, NULL, &a), 0);
	assert_int_equal(fix_put_one(&f, "b", 6, 3u << 20, NULL, &b), 0);
	assert_int_equal(fix_put_one(&f, "a", 5, 150000, NULL, &again), 0);
	assert_true(again.addr == a.addr);
	assert_false(fix_is_readable(a.addr));
	assert_int_equal(mc_slot_layout(&info), 0);
	info.incarnation = f.incarnation;
	info.key_hash = mc_hash64("a", 1, 0);
	memset((uint8_t *)(uintptr_t)a.addr + info.payload_off, 'x', 150000);
	for (uint32_t i = 0; i < 3; i++)
		table[i] = mc_slot_chunk_crc(&info, i,
					     (uint8_t *)(uintptr_t)a.addr + info.payload_off +
						 (size_t)i * MC_SLOT_CHUNK,
					     mc_slot_chunk_len(&info, i));
	assert_int_equal(fix_seal(f.conn, a.addr, 5, 2, table), MC_STORE_INVALID_PARAMS);
	assert_int_equal(fix_seal(f.conn, a.addr, 7, 3, table), MC_STORE_REPLICA_IS_GONE);
	assert_int_equal(fix_seal(f.conn, a.addr, 5, 3, table), 0);
	assert_int_equal(fix_seal(f.conn, a.addr, 5, 3, table), 0);
	fix_check(a.addr, "a", 5, 150000, 'x');
	/* Large enough for the thread that counts. */
	memset((uint8_t *)(uintptr_t)b.addr + 4096, 'y', 3u << 20);
	assert_int_equal(fix_seal(f.conn, b.addr, 6, 0, NULL), 0);
	fix_check(b.addr, "b", 6, 3u << 20, 'y');
	fix_close(&f);
	(void)state;
}

static void what_the_owner_computes_is_checked_with_what_the_writer_meant(void **state)
{
	static const uint64_t lens[] = {1000, 3u << 20}; /* on the loop, and by the thread */
	struct fix f;

	fix_open(&f, (struct mc_owner_opts){.bytes = POOL});
	for (uint64_t i = 0; i < MC_ARRAY_LEN(lens); i++) {
		struct mc_slot_info info = {.key_len = 1, .len = lens[i]};
		struct mc_st_granted ret;
		uint32_t crc;

		assert_int_equal(mc_slot_layout(&info), 0);
		assert_int_equal(fix_put_one(&f, "a", 5 + i, info.len, NULL, &ret), 0);
		memset((uint8_t *)(uintptr_t)ret.addr + info.payload_off, 'x', info.len);
		crc = mc_crc32c(0, (uint8_t *)(uintptr_t)ret.addr + info.payload_off, info.len);
		assert_int_equal(fix_seal_checked(f.conn, ret.addr, 5 + i, crc ^ 4),
				 MC_STORE_CHECKSUM_MISMATCH);
		assert_int_equal(fix_seal_checked(f.conn, ret.addr, 5 + i, crc),
				 MC_STORE_REPLICA_IS_GONE);
		assert_int_equal(fix_put_one(&f, "a", 15 + i, info.len, NULL, &ret), 0);
		memset((uint8_t *)(uintptr_t)ret.addr + info.payload_off, 'x', info.len);
		assert_int_equal(fix_seal_checked(f.conn, ret.addr, 15 + i, crc), 0);
		fix_check(ret.addr, "a", 15 + i, info.len, 'x');
	}
	fix_close(&f);
	(void)state;
}

static void drop_gives_the_bytes_back(void **state)
{
	struct mc_owner_stats stats;
	struct mc_st_granted a, b;
	struct fix f;

	fix_open(&f, (struct mc_owner_opts){.bytes = POOL});
	assert_int_equal(fix_put_one(&f, "a", 5, 1000, NULL, &a), 0);
	assert_int_equal(fix_put_one(&f, "b", 6, 1000, payload, &b), 0);
	for (int round = 0; round < 2; round++) {
		const struct mc_st_granted *g[] = {&a, &b};

		for (unsigned i = 0; i < 2; i++) {
			uint8_t buf[64];
			struct mc_wr w = mc_wr_make(buf, sizeof(buf));

			mc_wr_u32(&w, 1);
			mc_st_place_encode(&w,
					   &(struct mc_st_place){.addr = g[i]->addr, .gen = 5 + i});
			assert_int_equal(fix_status(f.conn, MC_ST_DROP, &w), 0);
		}
	}
	assert_false(fix_is_readable(b.addr));
	mc_owner_stats(f.o, &stats);
	assert_true(stats.used == 0 && stats.drops == 2 && stats.granted == 0);
	fix_close(&f);
	(void)state;
}

static int32_t regen(struct fix *f, uint64_t addr, uint64_t gen, uint64_t new_gen)
{
	uint8_t buf[64];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));

	mc_wr_u32(&w, 1);
	mc_st_regen_encode(&w, &(struct mc_st_regen){.addr = addr, .gen = gen, .new_gen = new_gen});
	return fix_status(f->conn, MC_ST_REGEN, &w);
}

static int32_t drop(struct fix *f, uint64_t addr, uint64_t gen)
{
	uint8_t buf[64];
	struct mc_wr w = mc_wr_make(buf, sizeof(buf));

	mc_wr_u32(&w, 1);
	mc_st_place_encode(&w, &(struct mc_st_place){.addr = addr, .gen = gen});
	return fix_status(f->conn, MC_ST_DROP, &w);
}

/* The answer with the address was lost, and an older copy of the call is still on its way. */
static void a_drop_by_generation_is_the_last_word(void **state)
{
	struct mc_st_granted a, b, late;
	struct mc_owner_stats stats;
	struct fix f;

	fix_open(&f, (struct mc_owner_opts){.bytes = POOL});
	assert_int_equal(fix_put_one(&f, "a", 5, 1000, payload, &a), 0);
	assert_int_equal(fix_put_one(&f, "b", 6, 1000, payload, &b), 0);
	assert_int_equal(drop(&f, 0, 5), 0);
	assert_false(fix_is_readable(a.addr));
	assert_int_equal(drop(&f, 0, 7), 0); /* before it has come */
	mc_owner_stats(f.o, &stats);
	assert_true(stats.drops == 1 && stats.sealed == 1);
	assert_int_equal(fix_put_one(&f, "a", 5, 1000, payload, &late), MC_STORE_REPLICA_IS_GONE);
	assert_int_equal(fix_put_one(&f, "a", 7, 1000, NULL, &late), MC_STORE_REPLICA_IS_GONE);
	assert_int_equal(regen(&f, b.addr, 6, 7), MC_STORE_REPLICA_IS_GONE);
	assert_int_equal(regen(&f, b.addr, 6, 8), 0);
	assert_int_equal(fix_put_one(&f, "a", 9, 1000, payload, &late), 0);
	mc_owner_stats(f.o, &stats);
	assert_true(stats.sealed == 2 && stats.granted == 0);
	fix_close(&f);
	(void)state;
}

static void regen_keeps_the_bytes_and_what_is_wrong_with_them(void **state)
{
	struct mc_st_granted a, b;
	struct mc_slot_info info;
	struct fix f;
	uint8_t *image;

	fix_open(&f, (struct mc_owner_opts){.bytes = POOL});
	memset(payload, 'r', sizeof(payload));
	assert_int_equal(fix_put_one(&f, "a", 5, 100000, payload, &a), 0);
	assert_int_equal(fix_put_one(&f, "b", 6, 1000, payload, &b), 0);
	assert_int_equal(regen(&f, a.addr, 5, 5), 0);
	assert_int_equal(regen(&f, a.addr, 5, 4), MC_STORE_INVALID_VERSION);
	assert_int_equal(regen(&f, a.addr, 5, 6), MC_STORE_INVALID_PARAMS);
	assert_int_equal(regen(&f, a.addr, 5, 9), 0);
	assert_int_equal(regen(&f, a.addr, 5, 9), 0);
	assert_int_equal(regen(&f, a.addr, 5, 10), MC_STORE_REPLICA_IS_GONE);
	fix_check(a.addr, "a", 9, 100000, 'r');
	/* A bit that flipped before is found after it. */
	image = (uint8_t *)(uintptr_t)b.addr;
	assert_int_equal(mc_slot_decode(image, 4096, &info, NULL), 0);
	image[info.payload_off + 7] ^= 1;
	assert_int_equal(regen(&f, b.addr, 6, 12), 0);
	assert_int_equal(mc_slot_decode(image, 4096, &info, NULL), 0);
	assert_int_not_equal(mc_slot_chunk_crc(&info, 0, image + info.payload_off, 1000),
			     mc_slot_table(image, &info, 0));
	fix_close(&f);
	(void)state;
}

static void what_no_slot_may_have_is_refused(void **state)
{
	static char long_key[MC_SLOT_KEY_MAX + 1];
	struct mc_st_granted ret;
	struct fix f;
	uint8_t bytes[8] = {2, 0, 0, 0, 1, 2, 3, 4};
	uint8_t many[4] = {255, 255, 255, 255};

	fix_open(&f, (struct mc_owner_opts){.bytes = POOL});
	memset(long_key, 'k', sizeof(long_key) - 1);
	assert_int_equal(fix_put_one(&f, "a", 0, 10, NULL, &ret), MC_STORE_INVALID_PARAMS);
	assert_int_equal(fix_put_one(&f, "a", 1, UINT64_MAX, NULL, &ret), MC_STORE_INVALID_PARAMS);
	assert_int_equal(fix_put_one(&f, "a", 1, POOL, NULL, &ret), MC_STORE_NO_AVAILABLE_HANDLE);
	assert_int_equal(fix_put_one(&f, long_key, 1, 10, NULL, &ret), 0);
	for (uint16_t method = MC_ST_PUT; method <= MC_ST_REGEN; method++) {
		uint8_t reply[64];

		assert_int_equal(fix_call(f.conn, method, bytes, sizeof(bytes), reply,
					  sizeof(reply), FIX_SOON_NS),
				 -MC_E_PROTO);
		assert_int_equal(
		    fix_call(f.conn, method, bytes, 2, reply, sizeof(reply), FIX_SOON_NS),
		    -MC_E_PROTO);
		assert_int_equal(
		    fix_call(f.conn, method, many, 4, reply, sizeof(reply), FIX_SOON_NS),
		    -MC_E_TOO_BIG);
	}
	fix_close(&f);
	(void)state;
}

static void full_pool_waits_until_the_deadline(void **state)
{
	const struct mc_st_grant g = fix_grant("b", 2, 5u << 20, NULL);
	struct mc_owner_stats stats;
	struct mc_st_granted a, b;
	struct fix f;
	uint64_t start;

	fix_open(&f, (struct mc_owner_opts){.bytes = POOL});
	assert_int_equal(fix_put_one(&f, "a", 1, 5u << 20, NULL, &a), 0);
	start = mc_now_ns();
	assert_int_equal(fix_put(f.conn, &g, 1, false, 400 * MC_NS_PER_MS, &b), 0);
	assert_int_equal(b.status, MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS);
	assert_true(mc_now_ns() - start >= 250 * MC_NS_PER_MS);
	assert_int_equal(mc_owner_grant(f.o, &g, mc_now_ns() + 100 * MC_NS_PER_MS, &b),
			 MC_STORE_UNAVAILABLE_IN_CURRENT_STATUS);
	fix_until(f.m, f.m->notes[MC_ST_NOTE_WANT] > 0);
	assert_true(f.m->want.want >= 5u << 20);
	mc_owner_stats(f.o, &stats);
	assert_true(stats.waiting == 0 && stats.refused == 2);
	fix_close(&f);
	(void)state;
}

struct putter {
	struct mc_owner *o;
	struct mc_rpc_conn *conn;
	struct mc_st_grant g[2];
	struct mc_st_granted ret[2];
	int32_t status;
};

static void *put_by_rpc(void *arg)
{
	struct putter *p = arg;

	p->status = fix_put(p->conn, p->g, 2, true, FIX_SOON_NS, p->ret);
	return NULL;
}

static void *put_direct(void *arg)
{
	struct putter *p = arg;

	p->status = mc_owner_put(p->o, &p->g[0], mc_now_ns() + FIX_SOON_NS, &p->ret[0]);
	return NULL;
}

/* Two objects in one call and one of the process itself wait for one free. */
static void full_pool_is_served_in_order_once_there_is_room(void **state)
{
	struct putter rpc = {0}, own = {0};
	struct mc_st_granted a, b;
	pthread_t t[2];
	struct fix f;

	fix_open(&f, (struct mc_owner_opts){.bytes = 1u << 20});
	memset(payload, 'w', sizeof(payload));
	assert_int_equal(fix_put_one(&f, "big", 1, 200000, payload, &a), 0);
	assert_int_equal(fix_put_one(&f, "fill", 2, 800000, NULL, &b), 0);
	rpc.conn = f.conn;
	rpc.g[0] = fix_grant("r1", 10, 100000, payload);
	rpc.g[1] = fix_grant("r2", 11, 100, payload);
	own.o = f.o;
	own.g[0] = fix_grant("own", 12, 50000, payload);
	assert_int_equal(pthread_create(&t[0], NULL, put_by_rpc, &rpc), 0);
	assert_int_equal(pthread_create(&t[1], NULL, put_direct, &own), 0);
	fix_until(f.m, f.m->notes[MC_ST_NOTE_WANT] > 0 && f.m->want.want > 150000);
	fix_say_free(f.m, a.addr, 1);
	assert_int_equal(pthread_join(t[0], NULL), 0);
	assert_int_equal(pthread_join(t[1], NULL), 0);
	assert_int_equal(rpc.status, 0);
	assert_int_equal(rpc.ret[0].status, 0);
	assert_int_equal(rpc.ret[1].status, 0);
	assert_int_equal(own.status, 0);
	fix_check(rpc.ret[0].addr, "r1", 10, 100000, 'w');
	fix_check(rpc.ret[1].addr, "r2", 11, 100, 'w');
	fix_check(own.ret[0].addr, "own", 12, 50000, 'w');
	fix_close(&f);
	(void)state;
}

static void say_no_room(struct fix *f)
{
	pthread_mutex_lock(&f->m->lock);
	fix_say_no_room(f->m);
	pthread_mutex_unlock(&f->m->lock);
}

/* What is granted to somebody else may be evicted once it is committed. */
static void no_room_ends_a_call_once_nobody_else_is_writing(void **state)
{
	struct putter own = {0};
	struct mc_owner_stats stats;
	struct mc_st_granted a;
	struct fix f;
	uint64_t start = mc_now_ns();
	pthread_t t;

	fix_open(&f, (struct mc_owner_opts){.bytes = 1u << 20});
	assert_int_equal(fix_put_one(&f, "fill", 2, 900000, NULL, &a), 0);
	own.o = f.o;
	own.g[0] = fix_grant("own", 12, 200000, payload);
	assert_int_equal(pthread_create(&t, NULL, put_direct, &own), 0);
	fix_until(f.m, f.m->notes[MC_ST_NOTE_WANT] > 0);
	say_no_room(&f);
	fix_say_free(f.m, 0, 77); /* its answer says that the note before it was read */
	fix_until(f.m, f.m->nfreed == 1);
	mc_owner_stats(f.o, &stats);
	assert_int_equal(stats.waiting, 1);
	assert_int_equal(fix_seal(f.conn, a.addr, 2, 0, NULL), 0);
	do { /* as a master does to an owner that asks again */
		say_no_room(&f);
		fix_say_free(f.m, 0, 77);
		(void)poll(NULL, 0, 20);
		mc_owner_stats(f.o, &stats);
	} while (stats.waiting > 0);
	assert_int_equal(pthread_join(t, NULL), 0);
	assert_int_equal(own.status, MC_STORE_NO_AVAILABLE_HANDLE);
	assert_true(mc_now_ns() - start < FIX_SOON_NS);
	fix_close(&f);
	(void)state;
}

static void pinned_bytes_stay_until_the_unpin(void **state)
{
	struct mc_owner_stats stats;
	struct mc_owner_view view, other;
	struct mc_st_granted a;
	struct fix f;

	fix_open(&f, (struct mc_owner_opts){.bytes = POOL});
	memset(payload, 'v', sizeof(payload));
	assert_int_equal(fix_put_one(&f, "a", 1, 1000, payload, &a), 0);
	assert_int_equal(mc_owner_pin(f.o, a.addr, 2, &view), -MC_E_NOENT);
	assert_int_equal(mc_owner_pin(f.o, a.addr, 1, &view), 0);
	assert_int_equal(view.info.key_len, 1);
	assert_int_equal(view.info.key[0], 'a');
	fix_say_free(f.m, a.addr, 1);
	fix_until(f.m, f.m->nfreed == 1);
	assert_true(f.m->freed[0].addr == a.addr && f.m->freed[0].gen == 1);
	assert_false(fix_is_readable(a.addr));
	assert_int_equal(view.image[view.info.payload_off], 'v');
	assert_int_equal(mc_owner_pin(f.o, a.addr, 1, &other), -MC_E_NOENT);
	mc_owner_stats(f.o, &stats);
	assert_true(stats.used > 0);
	mc_owner_unpin(f.o, &view);
	mc_owner_stats(f.o, &stats);
	assert_true(stats.used == 0);
	/* Freed twice: acknowledged twice. */
	fix_say_free(f.m, a.addr, 1);
	fix_until(f.m, f.m->nfreed == 2);
	fix_close(&f);
	(void)state;
}

/* ---- writers ---- */

static int join(struct mc_rpc_conn *conn, uint64_t client, const char *segment)
{
	Mc__St__Writer v = MC__ST__WRITER__INIT;
	uint8_t buf[512];
	size_t len;

	v.client = client;
	v.segment = (char *)(uintptr_t)segment;
	assert_int_equal(mc_pb_pack(&v.base, buf, sizeof(buf), &len), 0);
	return fix_call(conn, MC_ST_WRITER, buf, len, NULL, 0, FIX_SOON_NS);
}

/* Another process, which takes a grant and stays. */
_Noreturn static void writer_main(const char *address)
{
	const struct mc_st_grant g = fix_grant("orphan", 77, 1000, NULL);
	struct mc_engine *eng = fix_engine();
	struct mc_loop *loop;
	struct mc_rpc_conn *conn;
	struct mc_st_granted ret;
	struct mc_addr at;

	assert_int_equal(mc_addr_parse(address, 0, &at), 0);
	assert_int_equal(mc_loop_open("client", &mc_clock_real, &loop), 0);
	assert_int_equal(mc_loop_start(loop), 0);
	assert_int_equal(mc_rpc_conn_open(&mc_env_real, loop, &at, NULL, &conn), 0);
	assert_int_equal(join(conn, 4711, mc_engine_name(eng)), 0);
	assert_int_equal(fix_put(conn, &g, 1, false, FIX_SOON_NS, &ret), 0);
	(void)!write(STDOUT_FILENO, "g", 1);
	for (;;)
		(void)pause();
}

static bool is_granted(struct mc_owner *o)
{
	struct mc_owner_stats stats;

	mc_owner_stats(o, &stats);
	return stats.granted > 0;
}

static void grants_of_a_killed_writer_come_back(void **state)
{
	struct mc_owner_stats stats;
	struct fix f;
	int fds[2], status;
	char byte;
	pid_t pid;

	fix_open(&f, (struct mc_owner_opts){.bytes = POOL});
	assert_int_equal(pipe(fds), 0);
	pid = fork();
	if (pid == 0) {
		(void)dup2(fds[1], STDOUT_FILENO);
		(void)execl("/proc/self/exe", "calls_test", "writer", mc_owner_address(f.o),
			    (char *)NULL);
		_exit(1);
	}
	(void)close(fds[1]);
	assert_int_equal(read(fds[0], &byte, 1), 1);
	assert_true(is_granted(f.o));
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	fix_until(f.m, !is_granted(f.o)); /* looked at with each note of the owner */
	mc_owner_stats(f.o, &stats);
	assert_true(stats.granted == 0 && stats.orphans == 1 && stats.used == 0);
	(void)close(fds[0]);
	fix_close(&f);
	(void)state;
}

/* Somebody listens there, and says nothing. */
static int silent_listen(char *name, size_t cap)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), rc = -1;

	assert_true(fd >= 0);
	for (unsigned i = 0; rc < 0 && i < 2000; i++) {
		at.sin_port = htons((uint16_t)(20000 + ((unsigned)getpid() * 7 + i) % 12000));
		rc = bind(fd, (const struct sockaddr *)&at, sizeof(at));
	}
	assert_int_equal(rc, 0);
	assert_int_equal(listen(fd, 16), 0);
	(void)snprintf(name, cap, "127.0.0.1:%u", ntohs(at.sin_port));
	return fd;
}

/* Found by the simulator: nobody looked for it again, and its grants stayed when it died. */
static void a_writer_that_was_silent_is_watched_later(void **state)
{
	const struct mc_st_grant g = fix_grant("a", 7, 1000, NULL);
	struct mc_owner_stats stats;
	struct mc_st_granted ret;
	struct mc_rpc_conn *conn;
	char name[64];
	struct fix f;
	int fd;

	fix_open(&f, (struct mc_owner_opts){.bytes = POOL, .watch_ms = 100});
	fd = silent_listen(name, sizeof(name));
	conn = fix_connect(f.loop, f.o);
	assert_int_equal(join(conn, 4712, name), 0);
	assert_int_equal(fix_put(conn, &g, 1, false, FIX_SOON_NS, &ret), 0);
	(void)close(fd);
	mc_rpc_conn_close(conn);
	fix_until(f.m, !is_granted(f.o));
	mc_owner_stats(f.o, &stats);
	assert_true(stats.used == 0 && stats.orphans == 1);
	fix_close(&f);
	(void)state;
}

/* It does not say who it is, so nothing but time tells. */
static void grants_of_a_lost_connection_come_back_after_a_while(void **state)
{
	const struct mc_st_grant g = fix_grant("a", 7, 1000, NULL);
	struct mc_st_granted ret, again;
	struct mc_rpc_conn *conn;
	struct fix f;

	fix_open(&f, (struct mc_owner_opts){.bytes = POOL, .grant_timeout_ms = 300});
	assert_int_equal(fix_put_one(&f, "stays", 6, 1000, NULL, &again), 0);
	conn = fix_connect(f.loop, f.o);
	assert_int_equal(fix_put(conn, &g, 1, false, FIX_SOON_NS, &ret), 0);
	mc_rpc_conn_close(conn);
	fix_until(f.m,
		  fix_seal(f.conn, ret.addr, 7, 0, (uint32_t[]){0}) == MC_STORE_REPLICA_IS_GONE);
	assert_int_equal(fix_seal(f.conn, again.addr, 6, 0, NULL), 0);
	fix_close(&f);
	(void)state;
}

/* Found by the simulator: an order to copy what a writer had been granted and never wrote. */
static void an_order_does_not_keep_what_a_writer_was_granted(void **state)
{
	const struct mc_st_grant g = fix_grant("a", 7, 1000, NULL);
	struct mc_owner_stats stats;
	struct mc_st_granted ret;
	struct mc_rpc_conn *conn;
	bool is_old = false;
	uint32_t id;
	struct fix f;

	fix_open(&f, (struct mc_owner_opts){.bytes = POOL, .grant_timeout_ms = 300});
	conn = fix_connect(f.loop, f.o);
	assert_int_equal(fix_put(conn, &g, 1, false, FIX_SOON_NS, &ret), 0);
	assert_int_equal(mc_owner_begin(f.o, &g, mc_now_ns() + FIX_SOON_NS, &id, &is_old), 0);
	assert_true(is_old);
	mc_rpc_conn_close(conn);
	fix_until(f.m, !is_granted(f.o));
	mc_owner_stats(f.o, &stats);
	assert_true(stats.used == 0 && stats.orphans == 1);
	fix_close(&f);
	(void)state;
}

static void a_writer_that_comes_back_keeps_its_grants(void **state)
{
	const struct mc_st_grant g = fix_grant("a", 7, 1000, NULL);
	struct mc_st_granted ret;
	struct mc_rpc_conn *conn;
	struct mc_owner_stats stats;
	struct fix f;

	fix_open(&f, (struct mc_owner_opts){.bytes = POOL, .grant_timeout_ms = 300});
	conn = fix_connect(f.loop, f.o);
	assert_int_equal(join(conn, 0, "x"), -MC_E_INVAL);
	assert_int_equal(join(conn, 5, ""), 0);
	assert_int_equal(join(conn, 5, ""), 0);
	assert_int_equal(join(conn, 6, ""), -MC_E_INVAL);
	assert_int_equal(join(f.conn, 5, ""), 0);
	assert_int_equal(fix_put(conn, &g, 1, false, FIX_SOON_NS, &ret), 0);
	mc_rpc_conn_close(conn);
	fix_until(f.m, f.m->notes[MC_ST_NOTE_SPACE] > 3); /* more than half a second */
	mc_owner_stats(f.o, &stats);
	assert_true(stats.granted == 1);
	fix_close(&f);
	(void)state;
}

/* ---- many threads ---- */

struct worker {
	struct fix *f;
	unsigned number;
	unsigned puts;
};

static void *work(void *arg)
{
	struct worker *w = arg;
	struct mc_rpc_conn *conn = fix_connect(w->f->loop, w->f->o);
	struct mc_owner_view view;
	struct mc_st_granted ret;
	struct mc_st_grant g;
	char key[32];

	for (unsigned i = 0; i < 150; i++) {
		uint64_t gen = 1 + i + ((uint64_t)w->number << 32);
		int fill = 'a' + (int)(i % 20);
		uint8_t bytes[3000];

		(void)snprintf(key, sizeof(key), "k%u-%u", w->number, i);
		memset(bytes, fill, sizeof(bytes));
		g = fix_grant(key, gen, sizeof(bytes), bytes);
		if (i % 2)
			ret.status = mc_owner_put(w->f->o, &g, mc_now_ns() + FIX_SOON_NS, &ret);
		else if (fix_put(conn, &g, 1, true, FIX_SOON_NS, &ret) < 0)
			break;
		if (ret.status < 0 || mc_owner_pin(w->f->o, ret.addr, gen, &view) < 0)
			break;
		if (view.image[view.info.payload_off] != fill)
			break;
		mc_owner_unpin(w->f->o, &view);
		if (i % 3 == 0)
			fix_say_free(w->f->m, ret.addr, gen);
		else
			(void)mc_owner_drop(w->f->o,
					    &(struct mc_st_place){.addr = ret.addr, .gen = gen});
		w->puts++;
	}
	mc_rpc_conn_close(conn);
	return NULL;
}

/* The pool has room for some of what is under way only. */
static void many_threads_put_pin_and_drop(void **state)
{
	struct mc_owner_stats stats;
	struct worker w[4];
	pthread_t t[4];
	struct fix f;

	fix_open(&f, (struct mc_owner_opts){.bytes = 12000, .check_after_ms = 1});
	for (unsigned i = 0; i < 4; i++) {
		w[i] = (struct worker){.f = &f, .number = i};
		assert_int_equal(pthread_create(&t[i], NULL, work, &w[i]), 0);
	}
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(pthread_join(t[i], NULL), 0);
		assert_int_equal(w[i].puts, 150);
	}
	fix_until(f.m, f.m->nfreed >= 200);
	mc_owner_stats(f.o, &stats);
	assert_true(stats.used == 0 && stats.waiting == 0 && stats.puts == 600);
	fix_close(&f);
	(void)state;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(put_is_readable_and_repeats),
	    cmocka_unit_test(put_that_the_wire_changed_is_refused_and_leaves_nothing),
	    cmocka_unit_test(grant_is_sealed_by_table_or_by_the_owner),
	    cmocka_unit_test(what_the_owner_computes_is_checked_with_what_the_writer_meant),
	    cmocka_unit_test(drop_gives_the_bytes_back),
	    cmocka_unit_test(a_drop_by_generation_is_the_last_word),
	    cmocka_unit_test(regen_keeps_the_bytes_and_what_is_wrong_with_them),
	    cmocka_unit_test(what_no_slot_may_have_is_refused),
	    cmocka_unit_test(full_pool_waits_until_the_deadline),
	    cmocka_unit_test(full_pool_is_served_in_order_once_there_is_room),
	    cmocka_unit_test(no_room_ends_a_call_once_nobody_else_is_writing),
	    cmocka_unit_test(pinned_bytes_stay_until_the_unpin),
	    cmocka_unit_test(grants_of_a_killed_writer_come_back),
	    cmocka_unit_test(grants_of_a_lost_connection_come_back_after_a_while),
	    cmocka_unit_test(a_writer_that_was_silent_is_watched_later),
	    cmocka_unit_test(an_order_does_not_keep_what_a_writer_was_granted),
	    cmocka_unit_test(a_writer_that_comes_back_keeps_its_grants),
	    cmocka_unit_test(many_threads_put_pin_and_drop),
	};

	if (argc == 3 && strcmp(argv[1], "writer") == 0)
		writer_main(argv[2]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
