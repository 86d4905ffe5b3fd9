/*
 * segdesc_test.c: descriptors as upstream writes them, ours, limits, and joining ranges.
 */
#include "disco/segdesc.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/json.h"
#include "base/mem.h"

#define UPSTREAM_TCP                                                                               \
	"{\"buffers\":[{\"addr\":140199702028304,\"length\":1048576,\"name\":\"127.0.0.1:15758\"}" \
	"],"                                                                                       \
	"\"name\":\"127.0.0.1:15758\",\"protocol\":\"tcp\",\"rdma_server_name\":\"\","             \
	"\"tcp_data_host\":\"127.0.0.1\",\"tcp_data_port\":16402,\"tcp_proto_version\":2,"         \
	"\"timestamp\":\"2026-11-22 13:53:49.906224\"}\n"

static struct mc_segdesc *decoded(const char *json)
{
	struct mc_segdesc *desc = NULL;
	struct mc_diag diag = {.text = ""};

	if (mc_segdesc_decode(json, strlen(json), &desc, &diag) != 0)
		fail_msg("%s", diag.text);
	return desc;
}

/* Decoding fails with `rc`, and the diag has `word` in it. */
static void assert_refused(const char *json, int rc, const char *word)
{
	struct mc_segdesc *desc = NULL;
	struct mc_diag diag = {.text = ""};
	int64_t live = mc_mem_live();

	assert_int_equal(mc_segdesc_decode(json, strlen(json), &desc, &diag), rc);
	if (!strstr(diag.text, word))
		fail_msg("\"%s\" does not say %s", diag.text, word);
	assert_null(desc);
	assert_int_equal(mc_mem_live(), live);
}

static struct mc_segdesc fixture(struct mc_segdesc_buffer *bufs, size_t n)
{
	return (struct mc_segdesc){.name = "10.0.0.1:15001",
				   .protocol = "tcp",
				   .timestamp = "",
				   .rdma_server_name = "",
				   .tcp_data_host = "10.0.0.1",
				   .tcp_data_port = 15002,
				   .tcp_proto_version = 2,
				   .buffers = bufs,
				   .nbuffers = n,
				   .priority_matrix = ""};
}

static void decode_reads_what_upstream_writes_over_tcp(void **state)
{
	struct mc_segdesc *d = decoded(UPSTREAM_TCP);

	assert_string_equal(d->name, "127.0.0.1:15758");
	assert_string_equal(d->protocol, "tcp");
	assert_string_equal(d->tcp_data_host, "127.0.0.1");
	assert_int_equal(d->tcp_data_port, 16402);
	assert_int_equal(d->tcp_proto_version, 2);
	assert_int_equal(d->nbuffers, 1);
	assert_int_equal(d->buffers[0].addr, 140199702028304);
	assert_int_equal(d->buffers[0].len, 1048576);
	assert_int_equal(d->ext.version, 0);
	mc_segdesc_free(d);
	(void)state;
}

static void decode_reads_devices_keys_and_matrix_of_rdma(void **state)
{
	struct mc_segdesc *d = decoded(
	    "{\"name\":\"h:1\",\"protocol\":\"rdma\",\"devices\":[{\"name\":\"mlx5_0\",\"lid\":7,"
	    "\"gid\":\"aa:bb\"},{\"name\":\"mlx5_1\",\"lid\":0,\"gid\":\"cc\"}],"
	    "\"priority_matrix\":{\"cpu:0\":[[\"mlx5_0\"],[\"mlx5_1\"]]},"
	    "\"buffers\":[{\"name\":\"cpu:0\",\"addr\":4096,\"length\":8192,\"rkey\":[1,4294967295]"
	    ","
	    "\"lkey\":[3,4]}]}");

	assert_int_equal(d->ndevices, 2);
	assert_string_equal(d->devices[0].name, "mlx5_0");
	assert_int_equal(d->devices[0].lid, 7);
	assert_string_equal(d->devices[1].gid, "cc");
	assert_int_equal(d->buffers[0].nkeys, 2);
	assert_int_equal(d->buffers[0].rkey[1], 4294967295u);
	assert_int_equal(d->buffers[0].lkey[0], 3);
	assert_string_equal(d->priority_matrix, "{\"cpu:0\":[[\"mlx5_0\"],[\"mlx5_1\"]]}");
	mc_segdesc_free(d);
	(void)state;
}

static void decode_takes_tcp_out_of_several_protocols(void **state)
{
	struct mc_segdesc *d = decoded("{\"name\":\"h:1\",\"protocol\":[\"rdma\",\"tcp\"]}");

	assert_string_equal(d->protocol, "tcp");
	assert_int_equal(d->nbuffers, 0);
	mc_segdesc_free(d);
	(void)state;
}

static void decode_names_the_member_that_is_wrong(void **state)
{
#define HEAD "{\"name\":\"h:1\",\"protocol\":\"tcp\","
#define ONE(buf) HEAD "\"buffers\":[" buf "]}"
	assert_refused("", -MC_E_PROTO, "not JSON");
	assert_refused("null\n", -MC_E_PROTO, "not JSON");
	assert_refused("[]", -MC_E_PROTO, "name");
	assert_refused("{\"protocol\":\"tcp\"}", -MC_E_PROTO, "name");
	assert_refused("{\"name\":\"\",\"protocol\":\"tcp\"}", -MC_E_PROTO, "name");
	assert_refused("{\"name\":\"h:1\"}", -MC_E_PROTO, "protocol");
	assert_refused("{\"name\":\"h:1\",\"protocol\":\"cxl\"}", -MC_E_UNSUPPORTED, "cxl");
	assert_refused(HEAD "\"tcp_data_port\":65536}", -MC_E_PROTO, "tcp_data_port");
	assert_refused(HEAD "\"tcp_data_port\":-1}", -MC_E_PROTO, "tcp_data_port");
	assert_refused(HEAD "\"tcp_data_port\":\"1\"}", -MC_E_PROTO, "tcp_data_port");
	assert_refused(HEAD "\"buffers\":{}}", -MC_E_PROTO, "buffers");
	assert_refused(ONE("7"), -MC_E_PROTO, "buffers[0]");
	assert_refused(ONE("{\"name\":\"n\",\"length\":1}"), -MC_E_PROTO, "addr");
	assert_refused(ONE("{\"name\":\"n\",\"addr\":1}"), -MC_E_PROTO, "length");
	assert_refused(ONE("{\"name\":\"n\",\"addr\":0,\"length\":1}"), -MC_E_PROTO, "addr");
	assert_refused(ONE("{\"name\":\"n\",\"addr\":1,\"length\":0}"), -MC_E_PROTO, "length");
	assert_refused(ONE("{\"name\":\"\",\"addr\":1,\"length\":1}"), -MC_E_PROTO, "name");
	assert_refused(ONE("{\"name\":\"n\",\"addr\":9223372036854775807,\"length\":1}"),
		       -MC_E_PROTO, "addr");
	assert_refused(ONE("{\"name\":\"n\",\"addr\":18446744073709551615,\"length\":1}"),
		       -MC_E_PROTO, "not JSON");
	assert_refused(ONE("{\"name\":\"n\",\"addr\":1,\"length\":1,\"rkey\":[1]}"), -MC_E_PROTO,
		       "devices");
	assert_refused(HEAD "\"mc\":7}", -MC_E_PROTO, "mc");
	assert_refused(HEAD "\"mc\":{\"v\":1}}", -MC_E_PROTO, "epoch");
	assert_refused(HEAD "\"mc\":{\"v\":0,\"epoch\":\"1\"}}", -MC_E_PROTO, "\"v\"");
	assert_refused(HEAD "\"mc\":{\"v\":1,\"epoch\":\"18446744073709551616\"}}", -MC_E_PROTO,
		       "epoch");
	assert_refused(HEAD "\"mc\":{\"v\":1,\"epoch\":\"1\",\"rails\":[5]}}", -MC_E_PROTO,
		       "rails");
	(void)state;
}

static void decode_bounds_buffers_and_texts(void **state)
{
	char *json = mc_calloc(3 * MC_SEGDESC_BUFFERS_MAX + 200, 1);
	size_t at;

	assert_non_null(json);
	at = (size_t)snprintf(json, 100, HEAD "\"buffers\":[0");
	for (size_t i = 0; i < MC_SEGDESC_BUFFERS_MAX; i++, at += 2)
		memcpy(json + at, ",0", 2);
	memcpy(json + at, "]}", 3);
	assert_refused(json, -MC_E_TOO_BIG, "buffers");
	at = (size_t)snprintf(json, 100, "{\"protocol\":\"tcp\",\"name\":\"");
	memset(json + at, 'x', MC_SEGDESC_TEXT_MAX + 1);
	memcpy(json + at + MC_SEGDESC_TEXT_MAX + 1, "\"}", 3);
	assert_refused(json, -MC_E_TOO_BIG, "name");
	mc_free(json);
	(void)state;
}

static void encode_and_decode_keep_every_member(void **state)
{
	const uint64_t keys[] = {5, 6};
	const char *rails[] = {"10.0.0.1:15009", "[fd00::1]:15010"};
	struct mc_segdesc_buffer bufs[] = {
	    {.name = "cpu:0", .addr = 1 << 20, .len = 4096, .rkey = keys, .lkey = keys, .nkeys = 2},
	    {.name = "cuda:0 \"x\"", .addr = 0x7fffffffffff, .len = 1}};
	struct mc_segdesc_device devs[] = {{.name = "a", .gid = "00", .lid = 3},
					   {.name = "b", .gid = "", .lid = 0}};
	struct mc_segdesc in = fixture(bufs, 2);
	struct mc_segdesc *out;
	char *json;
	size_t len;

	in.devices = devs;
	in.ndevices = 2;
	in.priority_matrix = "{\"cpu:0\":[[\"a\"],[\"b\"]]}";
	in.ext = (struct mc_segdesc_ext){
	    .version = 1, .epoch = UINT64_MAX, .caps = 5, .rails = rails, .nrails = 2};
	assert_int_equal(mc_segdesc_encode(&in, 1 << 20, &json, &len, NULL), 0);
	assert_int_equal(len, strlen(json));
	out = decoded(json);
	assert_string_equal(out->name, in.name);
	assert_string_equal(out->tcp_data_host, "10.0.0.1");
	assert_int_equal(out->nbuffers, 2);
	assert_int_equal(out->buffers[0].rkey[1], 6);
	assert_string_equal(out->buffers[1].name, "cuda:0 \"x\"");
	assert_int_equal(out->buffers[1].addr, 0x7fffffffffff);
	assert_string_equal(out->devices[1].name, "b");
	assert_string_equal(out->priority_matrix, in.priority_matrix);
	assert_true(out->ext.epoch == UINT64_MAX);
	assert_int_equal(out->ext.caps, 5);
	assert_int_equal(out->ext.nrails, 2);
	assert_string_equal(out->ext.rails[1], "[fd00::1]:15010");
	mc_segdesc_free(out);
	mc_free(json);
	(void)state;
}

/* n ranges of 4 KiB in a shuffled order, every second one touching its neighbour. */
static struct mc_segdesc_buffer *many(size_t n)
{
	struct mc_segdesc_buffer *bufs = mc_calloc(n, sizeof(*bufs));

	assert_non_null(bufs);
	for (size_t i = 0; i < n; i++) {
		size_t k = i * 7919 % n;

		bufs[i].name = "10.0.0.1:15001";
		bufs[i].addr = 0x7f0000000000 + k * 65536 + (k % 2 ? 0 : 61440);
		bufs[i].len = 4096;
	}
	return bufs;
}

static bool covers(const struct mc_segdesc *d, const struct mc_segdesc_buffer *b)
{
	for (size_t i = 0; i < d->nbuffers; i++) {
		if (d->buffers[i].addr <= b->addr &&
		    b->addr + b->len <= d->buffers[i].addr + d->buffers[i].len)
			return true;
	}
	return false;
}

static void encode_joins_ranges_only_when_it_must(void **state)
{
	static const size_t limits[] = {1 << 20, 64 << 10, 2048};
	struct mc_segdesc_buffer *bufs = many(20011);
	struct mc_segdesc in = fixture(bufs, 20011);
	struct mc_segdesc *out;
	char *json;
	size_t len;

	assert_int_equal(mc_segdesc_encode(&in, 8 << 20, &json, &len, NULL), 0);
	out = decoded(json);
	assert_int_equal(out->nbuffers, 20011);
	mc_segdesc_free(out);
	mc_free(json);
	for (size_t k = 0; k < MC_ARRAY_LEN(limits); k++) {
		assert_int_equal(mc_segdesc_encode(&in, limits[k], &json, &len, NULL), 0);
		assert_true(len <= limits[k]);
		out = decoded(json);
		assert_int_equal(out->buffers[0].addr, bufs[0].addr);
		assert_int_equal(out->buffers[0].len, bufs[0].len);
		for (size_t i = 0; i < 20011; i += 97)
			assert_true(covers(out, &bufs[i]));
		mc_segdesc_free(out);
		mc_free(json);
	}
	mc_free(bufs);
	(void)state;
}

static void encode_refuses_what_no_joining_helps(void **state)
{
	const uint64_t key[] = {1};
	struct mc_segdesc_buffer *bufs = many(100);
	struct mc_segdesc in = fixture(bufs, 100);
	struct mc_diag diag;
	char *json;
	size_t len;

	assert_int_equal(mc_segdesc_encode(&in, 300, &json, &len, &diag), -MC_E_TOO_BIG);
	assert_non_null(strstr(diag.text, "300"));
	bufs[50].rkey = bufs[50].lkey = key;
	bufs[50].nkeys = 1;
	assert_int_equal(mc_segdesc_encode(&in, 2048, &json, &len, NULL), -MC_E_TOO_BIG);
	bufs[50].len = 0;
	assert_int_equal(mc_segdesc_encode(&in, 1 << 20, &json, &len, &diag), -MC_E_INVAL);
	assert_non_null(strstr(diag.text, "buffers[50]"));
	in.name = "\xff";
	bufs[50].len = 1;
	assert_int_equal(mc_segdesc_encode(&in, 1 << 20, &json, &len, &diag), -MC_E_INVAL);
	mc_free(bufs);
	(void)state;
}

static void fit_tells_how_many_buffers_with_keys_have_room(void **state)
{
	enum { N = 500 };
	static struct mc_segdesc_buffer bufs[N];
	static uint64_t rkeys[N][2];
	static const uint64_t none[2];
	struct mc_segdesc_device devs[2] = {{"mlx5_0", "aa", 0}, {"mlx5_1", "bb", 1}};
	struct mc_segdesc in = fixture(bufs, N), *out;
	struct mc_diag diag = {.text = ""};
	size_t len, all;
	char *json;
	int n;

	for (size_t i = 0; i < N; i++) {
		rkeys[i][0] = i * i * i;
		rkeys[i][1] = UINT32_MAX - i;
		bufs[i] = (struct mc_segdesc_buffer){
		    "cpu:\"0\"", 0x7f0000000000 + i * 4096, i + 1, rkeys[i], none, 2};
	}
	in.protocol = "rdma";
	in.devices = devs;
	in.ndevices = 2;
	assert_int_equal(mc_segdesc_fit(&in, 64 << 20, &diag), N);
	assert_int_equal(mc_segdesc_encode(&in, 64 << 20, &json, &all, &diag), 0);
	mc_free(json);
	for (size_t room = 600; room < all; room += 997) {
		in.nbuffers = N;
		assert_int_equal(mc_segdesc_encode(&in, room, &json, &len, &diag), -MC_E_TOO_BIG);
		n = mc_segdesc_fit(&in, room, &diag);
		assert_in_range(n, 1, N - 1);
		in.nbuffers = (size_t)n;
		assert_int_equal(mc_segdesc_encode(&in, room, &json, &len, &diag), 0);
		assert_true(room - len < 130); /* no whole entry would have had room */
		out = decoded(json);
		assert_int_equal(out->nbuffers, n);
		assert_int_equal(out->buffers[n - 1].rkey[1], UINT32_MAX - (unsigned)n + 1);
		mc_segdesc_free(out);
		mc_free(json);
	}
	in.nbuffers = N;
	assert_int_equal(mc_segdesc_fit(&in, 20, &diag), -MC_E_TOO_BIG);
	(void)state;
}

static void protocol_is_found_without_decoding(void **state)
{
	static const struct {
		const char *json, *protocol;
	} cases[] = {
	    {UPSTREAM_TCP, "tcp"},
	    {"{\"protocol\":\"rdma\"}", "rdma"},
	    {" { \"a\" : { \"protocol\" : \"no\" } , \"protocol\" : \"rdma\" } ", "rdma"},
	    {"{\"buffers\":[{\"protocol\":\"no\"}],\"protocol\":\"tcp\"}", "tcp"},
	    {"{\"name\":\"protocol\",\"protocol\":\"tcp\"}", "tcp"},
	    {"{\"name\":\"}\\\"\",\"protocol\":\"tcp\"}", "tcp"},
	    {"{\"protocol\":[\"cxl\", \"rdma\" ,\"tcp\"]}", "rdma"},
	    {"{\"protocol\":[\"cxl\",\"tcp\"]}", "tcp"},
	    {"{\"protocol\":[]}", NULL},
	    {"{\"protocol\":1}", NULL},
	    {"{\"protocol\":\"longer than any protocol\"}", NULL},
	    {"{\"protocol\":", NULL},
	    {"{\"protocol\"", NULL},
	    {"{\"proto", NULL},
	    {"null\n", NULL},
	    {"", NULL},
	};
	char got[MC_SEGDESC_PROTOCOL_MAX];

	for (size_t i = 0; i < MC_ARRAY_LEN(cases); i++) {
		size_t len = strlen(cases[i].json);

		assert_int_equal(mc_segdesc_protocol(cases[i].json, len, "rdma", got),
				 cases[i].protocol != NULL);
		if (cases[i].protocol)
			assert_string_equal(got, cases[i].protocol);
	}
	(void)state;
}

static void join_takes_the_smallest_gaps_and_overlaps_first(void **state)
{
	struct mc_segdesc_buffer b[] = {{.name = "n", .addr = 500, .len = 10},
					{.name = "n", .addr = 1000, .len = 100},
					{.name = "n", .addr = 1050, .len = 10},
					{.name = "n", .addr = 1200, .len = 10},
					{.name = "n", .addr = 1110, .len = 10}};

	assert_int_equal(mc_segdesc_join(b, 5, 3), 3);
	assert_int_equal(b[0].addr, 500);
	assert_int_equal(b[0].len, 10);
	assert_int_equal(b[1].addr, 1000);
	assert_int_equal(b[1].len, 120);
	assert_int_equal(b[2].addr, 1200);
	(void)state;
}

static void decode_and_encode_survive_every_failing_allocation(void **state)
{
	struct mc_segdesc_buffer *bufs = many(500);
	struct mc_segdesc in = fixture(bufs, 500);
	int64_t live = mc_mem_live();
	struct mc_segdesc *out;
	char *json = NULL;
	size_t len;
	int rc = -1;

	for (int64_t n = 0; rc != 0; n++) {
		mc_mem_fail_after(n);
		rc = mc_segdesc_encode(&in, 8192, &json, &len, NULL);
		mc_mem_fail_after(-1);
		assert_true(rc == 0 || rc == -MC_E_NOMEM);
	}
	rc = -1;
	for (int64_t n = 0; rc != 0; n++) {
		mc_mem_fail_after(n);
		rc = mc_segdesc_decode(json, len, &out, NULL);
		mc_mem_fail_after(-1);
		assert_true(rc == 0 || rc == -MC_E_NOMEM);
	}
	mc_segdesc_free(out);
	mc_free(json);
	assert_int_equal(mc_mem_live(), live);
	mc_free(bufs);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(decode_reads_what_upstream_writes_over_tcp),
	    cmocka_unit_test(decode_reads_devices_keys_and_matrix_of_rdma),
	    cmocka_unit_test(decode_takes_tcp_out_of_several_protocols),
	    cmocka_unit_test(decode_names_the_member_that_is_wrong),
	    cmocka_unit_test(decode_bounds_buffers_and_texts),
	    cmocka_unit_test(encode_and_decode_keep_every_member),
	    cmocka_unit_test(encode_joins_ranges_only_when_it_must),
	    cmocka_unit_test(encode_refuses_what_no_joining_helps),
	    cmocka_unit_test(fit_tells_how_many_buffers_with_keys_have_room),
	    cmocka_unit_test(protocol_is_found_without_decoding),
	    cmocka_unit_test(join_takes_the_smallest_gaps_and_overlaps_first),
	    cmocka_unit_test(decode_and_encode_survive_every_failing_allocation),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
