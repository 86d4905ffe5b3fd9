/*
 * topo_test.c: discovery over sysfs trees that the test builds, JSON, filters, and the choice of
 * protocol.
 */
#include "disco/topo.h"

#include <ftw.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/mem.h"

static char root[64];

/* Makes the folders above and the file with this text. */
static void put_file(const char *rel, const char *text)
{
	char path[PATH_MAX];
	FILE *f;

	(void)snprintf(path, sizeof(path), "%s/%s", root, rel);
	for (char *p = path + 1; (p = strchr(p, '/')); p++) {
		*p = '\0';
		(void)mkdir(path, 0755);
		*p = '/';
	}
	f = fopen(path, "w");
	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
}

static void put_link(const char *rel, const char *to_rel)
{
	char path[PATH_MAX], to[PATH_MAX];

	(void)snprintf(path, sizeof(path), "%s/%s.dir", root, rel);
	put_file(path + strlen(root) + 1, ""); /* for the folders */
	(void)unlink(path);
	path[strlen(path) - 4] = '\0';
	(void)snprintf(to, sizeof(to), "%s/%s", root, to_rel);
	assert_int_equal(symlink(to, path), 0);
}

/* An HCA at a PCI path with the state of its port. */
static void put_hca(const char *name, int number, const char *pci_dir, int numa, const char *state)
{
	const char *pci = strrchr(pci_dir, '/') + 1;
	char rel[512], text[128];

	(void)snprintf(rel, sizeof(rel), "sys/%s/numa_node", pci_dir);
	(void)snprintf(text, sizeof(text), "%d\n", numa);
	put_file(rel, text);
	(void)snprintf(rel, sizeof(rel), "sys/bus/pci/devices/%s", pci);
	(void)snprintf(text, sizeof(text), "sys/%s", pci_dir);
	put_link(rel, text);
	(void)snprintf(rel, sizeof(rel), "sys/class/infiniband/%s/device", name);
	put_link(rel, text);
	(void)snprintf(rel, sizeof(rel), "sys/class/infiniband/%s/ports/1/state", name);
	put_file(rel, state);
	(void)snprintf(rel, sizeof(rel), "sys/class/infiniband/%s/ports/1/gids/0", name);
	put_file(rel, "0000:0000:0000:0000:0000:0000:0000:0000\n");
	(void)snprintf(rel, sizeof(rel), "sys/class/infiniband/%s/ports/1/gids/1", name);
	put_file(rel, "fe80:0000:0000:0000:0000:0000:0000:0001\n");
	(void)snprintf(rel, sizeof(rel), "sys/class/infiniband_verbs/uverbs%d/ibdev", number);
	(void)snprintf(text, sizeof(text), "%s\n", name);
	put_file(rel, text);
	(void)snprintf(rel, sizeof(rel), "dev/infiniband/uverbs%d", number);
	put_file(rel, "");
}

/* Two nodes; node 1 is listed first by some kernels, so the numbers are not in creation order. */
static void put_host(void)
{
	put_file("sys/devices/system/node/node1/cpulist", "1");
	put_file("sys/devices/system/node/node0/cpulist", "0");
	put_file("sys/devices/system/node/online", "0-1");
	put_hca("mlx5_10", 3, "devices/pci0000:80/0000:80:01.0/0000:81:00.0", 1, "4: ACTIVE\n");
	put_hca("mlx5_2", 2, "devices/pci0000:00/0000:00:02.0/0000:03:00.0", 0, "4: ACTIVE\n");
	put_hca("mlx5_0", 0, "devices/pci0000:00/0000:00:01.0/0000:01:00.0", 0, "4: ACTIVE\n");
	put_hca("mlx5_1", 1, "devices/pci0000:00/0000:00:01.0/0000:02:00.0", 0, "1: DOWN\n");
}

static int make_root(void **state)
{
	(void)snprintf(root, sizeof(root), "/tmp/mc-topo-test-XXXXXX");
	(void)state;
	return mkdtemp(root) ? 0 : -1;
}

static int drop(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st, (void)flag, (void)ftw;
	return remove(path);
}

static int drop_root(void **state)
{
	(void)state;
	return nftw(root, drop, 16, FTW_DEPTH | FTW_PHYS);
}

static char *discovered(const char *devices, const char *filters, const struct mc_topo_gpu *gpus,
			size_t ngpus)
{
	char sys[96], dev[96], *json;
	struct mc_topo_conf conf = {.sys_root = sys,
				    .dev_root = dev,
				    .devices = devices,
				    .filters = filters,
				    .custom_path = "",
				    .gpus = gpus,
				    .ngpus = ngpus};
	struct mc_diag diag = {.text = ""};
	struct mc_topo *topo;

	(void)snprintf(sys, sizeof(sys), "%s/sys", root);
	(void)snprintf(dev, sizeof(dev), "%s/dev", root);
	assert_int_equal(mc_topo_discover(&conf, &topo, &diag), 0);
	assert_int_equal(mc_topo_json(topo, &json), 0);
	mc_topo_free(topo);
	return json;
}

static void assert_topo(char *got, const char *want)
{
	assert_string_equal(got, want);
	mc_free(got);
}

static void devices_stand_in_numeric_order_by_numa_node(void **state)
{
	put_host();
	assert_topo(discovered(NULL, "", NULL, 0),
		    "{\"cpu:0\":[[\"mlx5_0\",\"mlx5_2\"],[\"mlx5_10\"]],"
		    "\"cpu:1\":[[\"mlx5_10\"],[\"mlx5_0\",\"mlx5_2\"]]}");
	(void)state;
}

static void filters_and_missing_rights_leave_devices_out(void **state)
{
	char path[128];

	put_host();
	assert_topo(discovered("mlx5_0, mlx5_1,nothing", "", NULL, 0),
		    "{\"cpu:0\":[[\"mlx5_0\"],[]],\"cpu:1\":[[],[\"mlx5_0\"]]}");
	assert_topo(discovered(NULL, "mlx5_10", NULL, 0),
		    "{\"cpu:0\":[[],[\"mlx5_10\"]],\"cpu:1\":[[\"mlx5_10\"],[]]}");
	(void)snprintf(path, sizeof(path), "%s/dev/infiniband/uverbs3", root);
	assert_int_equal(unlink(path), 0);
	assert_topo(
	    discovered(NULL, "", NULL, 0),
	    "{\"cpu:0\":[[\"mlx5_0\",\"mlx5_2\"],[]],\"cpu:1\":[[],[\"mlx5_0\",\"mlx5_2\"]]}");
	(void)state;
}

static void gpu_prefers_the_device_with_the_shortest_pci_path(void **state)
{
	static const struct mc_topo_gpu gpus[] = {
	    {"cuda:0", "0000:04:00.0"}, {"cuda:1", "0000:82:00.0"}, {"cuda:2", "0000:ff:00.0"}};

	put_host();
	put_file("sys/devices/pci0000:00/0000:00:02.0/0000:04:00.0/numa_node", "0\n");
	put_link("sys/bus/pci/devices/0000:04:00.0",
		 "sys/devices/pci0000:00/0000:00:02.0/0000:04:00.0");
	put_file("sys/devices/pci0000:80/0000:80:01.0/0000:82:00.0/numa_node", "1\n");
	put_link("sys/bus/pci/devices/0000:82:00.0",
		 "sys/devices/pci0000:80/0000:80:01.0/0000:82:00.0");
	assert_topo(discovered("", "", gpus, 3),
		    "{\"cpu:0\":[[\"mlx5_0\",\"mlx5_2\"],[\"mlx5_10\"]],"
		    "\"cpu:1\":[[\"mlx5_10\"],[\"mlx5_0\",\"mlx5_2\"]],"
		    "\"cuda:0\":[[\"mlx5_2\"],[\"mlx5_0\",\"mlx5_10\"]],"
		    "\"cuda:1\":[[\"mlx5_10\"],[\"mlx5_0\",\"mlx5_2\"]],"
		    "\"cuda:2\":[[\"mlx5_0\",\"mlx5_2\",\"mlx5_10\"],[]]}");
	(void)state;
}

static void host_without_anything_has_one_empty_place(void **state)
{
	assert_topo(discovered(NULL, NULL, NULL, 0), "{\"cpu:0\":[[],[]]}");
	(void)state;
}

static void software_device_of_unknown_node_is_near_the_only_node(void **state)
{
	put_file("sys/devices/system/node/node0/cpulist", "0");
	put_file("sys/class/infiniband/rxe0/ports/1/state", "4: ACTIVE\n");
	put_file("sys/class/infiniband/rxe0/ports/1/gids/0", "fe80::1\n");
	put_file("sys/class/infiniband_verbs/uverbs0/ibdev", "rxe0\n");
	put_file("dev/infiniband/uverbs0", "");
	assert_topo(discovered(NULL, NULL, NULL, 0), "{\"cpu:0\":[[\"rxe0\"],[]]}");
	(void)state;
}

static void custom_file_replaces_discovery(void **state)
{
	struct mc_topo_conf conf = {.sys_root = root};
	struct mc_topo *topo;
	struct mc_diag diag;
	char path[128], *json;

	put_file("topo.json", "{\"cuda:0\": [[\"b\", \"a\"], [\"c\", \"b\"]]}");
	(void)snprintf(path, sizeof(path), "%s/topo.json", root);
	setenv("MC_CUSTOM_TOPO_JSON", path, 1);
	assert_int_equal(mc_topo_discover(&conf, &topo, &diag), 0);
	assert_int_equal(mc_topo_json(topo, &json), 0);
	assert_string_equal(json, "{\"cuda:0\":[[\"b\",\"a\"],[\"c\"]]}");
	assert_non_null(mc_topo_find(topo, "cuda:0"));
	assert_null(mc_topo_find(topo, "cuda:1"));
	mc_free(json);
	mc_topo_free(topo);
	put_file("topo.json", "{\"cuda:0\": 7}");
	assert_int_equal(mc_topo_discover(&conf, &topo, &diag), -MC_E_PROTO);
	assert_non_null(strstr(diag.text, "cuda:0"));
	assert_non_null(strstr(diag.text, path));
	setenv("MC_CUSTOM_TOPO_JSON", "/no/such/file", 1);
	assert_int_equal(mc_topo_discover(&conf, &topo, &diag), -MC_E_NOENT);
	assert_non_null(strstr(diag.text, "/no/such/file"));
	unsetenv("MC_CUSTOM_TOPO_JSON");
	(void)state;
}

static void parse_names_what_is_wrong(void **state)
{
	static const char *const rows[][2] = {
	    {"[]", "places"},
	    {"{\"cpu:0\":[]}", "cpu:0"},
	    {"{\"cpu:0\":[[],{}]}", "cpu:0"},
	    {"{\"cpu:0\":[[1],[]]}", "cpu:0"},
	    {"{\"cpu:0\":[[\"\"],[]]}", "cpu:0"},
	    {"{\"\":[[],[]]}", "place"},
	    {"{", "JSON"},
	};
	struct mc_topo *topo;
	struct mc_diag diag;

	for (size_t i = 0; i < MC_ARRAY_LEN(rows); i++) {
		assert_int_equal(mc_topo_parse(rows[i][0], strlen(rows[i][0]), &topo, &diag),
				 -MC_E_PROTO);
		if (!strstr(diag.text, rows[i][1]))
			fail_msg("row %zu: %s", i, diag.text);
	}
	(void)state;
}

/* What upstream's reader makes of a matrix: devices as they first appear. */
static void assert_published(const char *matrix, const char *names, const char *order,
			     const char *want)
{
	const char *list[8];
	char text[128], got[128] = "", *json, *save = NULL;
	struct mc_diag diag = {.text = ""};
	struct mc_topo *t = NULL;
	uint16_t at[8];
	size_t n = 0;

	(void)snprintf(text, sizeof(text), "%s", names);
	for (char *p = strtok_r(text, ",", &save); p; p = strtok_r(NULL, ",", &save))
		list[n++] = p;
	if (matrix)
		assert_int_equal(mc_topo_parse(matrix, strlen(matrix), &t, &diag), 0);
	assert_int_equal(mc_topo_publish(t, list, n, at, &json), 0);
	for (size_t i = 0; i < n; i++) {
		size_t len = strlen(got);

		(void)snprintf(got + len, sizeof(got) - len, i ? ",%s" : "%s", list[at[i]]);
	}
	assert_string_equal(got, order);
	assert_string_equal(json, want);
	mc_free(json);
	mc_topo_free(t);
}

static void published_devices_stand_as_upstream_counts_them(void **state)
{
	assert_published("{\"cpu:0\":[[\"a\",\"b\"],[\"c\",\"d\"]],"
			 "\"cpu:1\":[[\"c\",\"d\"],[\"a\",\"b\"]]}",
			 "a,b,c,d", "c,d,a,b",
			 "{\"cpu:1\":[[\"c\",\"d\"],[\"a\",\"b\"]],"
			 "\"cpu:0\":[[\"a\",\"b\"],[\"c\",\"d\"]]}");
	/* Only what is open is shown; what no place lists stands last; empty places are left out.
	 */
	assert_published("{\"cpu:0\":[[\"a\",\"b\"],[\"c\"]],\"cpu:1\":[[\"b\"],[]]}", "x,c,a",
			 "a,c,x", "{\"cpu:0\":[[\"a\"],[\"c\"]]}");
	assert_published("{\"cpu:0\":[[],[]]}", "b,a", "b,a", "{\"cpu:0\":[[\"b\",\"a\"],[]]}");
	assert_published(NULL, "a", "a", "{\"cpu:0\":[[\"a\"],[]]}");
	(void)state;
}

static void devices_are_listed_by_comma(void **state)
{
	assert_true(mc_topo_is_listed(NULL, "x"));
	assert_true(mc_topo_is_listed(" , ", "x"));
	assert_true(mc_topo_is_listed("a, x", "x"));
	assert_false(mc_topo_is_listed("a,xx", "x"));
	(void)state;
}

static void protocol_without_device_becomes_tcp_with_a_reason(void **state)
{
	struct mc_diag diag;

	assert_int_equal(mc_topo_choose("rdma", 0, false, false, &diag), MC_TOPO_USE_TCP_INSTEAD);
	assert_non_null(strstr(diag.text, "using TCP"));
	assert_int_equal(mc_topo_choose("rdma", 1, false, false, &diag), MC_TOPO_USE_RDMA);
	assert_int_equal(mc_topo_choose("rdma", 1, true, false, &diag), MC_TOPO_USE_TCP);
	assert_int_equal(mc_topo_choose("rdma", 0, true, false, &diag), MC_TOPO_USE_TCP);
	assert_int_equal(mc_topo_choose("tcp", 4, false, false, &diag), MC_TOPO_USE_TCP);
	assert_int_equal(mc_topo_choose("", 4, false, false, &diag), MC_TOPO_USE_RDMA);
	assert_int_equal(mc_topo_choose("", 0, false, false, &diag), MC_TOPO_USE_TCP);
	assert_int_equal(mc_topo_choose("tcp", 0, false, true, &diag), MC_TOPO_USE_NONE);
	assert_non_null(strstr(diag.text, "MC_FORCE_HCA"));
	assert_int_equal(mc_topo_choose("xgmi", 1, false, false, &diag), MC_TOPO_USE_NONE);
	assert_non_null(strstr(diag.text, "xgmi"));
	(void)state;
}

static void addresses_hold_loopback_with_what_sysfs_says(void **state)
{
	struct mc_topo_addr *list;
	bool is_found = false;
	char sys[96];
	int n;

	put_file("sys/class/net/lo/speed", "25000\n");
	put_file("sys/class/net/lo/device/numa_node", "1\n");
	(void)snprintf(sys, sizeof(sys), "%s/sys", root);
	n = mc_topo_addrs(sys, &list);
	assert_true(n >= 1);
	for (int i = 0; i < n; i++) {
		if (strcmp(list[i].ifname, "lo") != 0)
			continue;
		is_found = true;
		assert_true(list[i].is_loopback);
		assert_int_equal(list[i].mbps, 25000);
		assert_int_equal(list[i].numa, 1);
	}
	assert_true(is_found);
	mc_free(list);
	(void)state;
}

static void every_failing_allocation_is_an_error_without_leak(void **state)
{
	char sys[96], dev[96];
	struct mc_topo_conf conf = {.sys_root = sys, .dev_root = dev, .custom_path = ""};
	int64_t live = mc_mem_live();
	struct mc_topo *topo = NULL;
	char *json;
	int rc = -1;

	put_host();
	(void)snprintf(sys, sizeof(sys), "%s/sys", root);
	(void)snprintf(dev, sizeof(dev), "%s/dev", root);
	for (int64_t k = 0; rc != 0 && k < 1000; k++) {
		mc_mem_fail_after(k);
		rc = mc_topo_discover(&conf, &topo, NULL);
		if (rc == 0) {
			rc = mc_topo_json(topo, &json);
			mc_topo_free(topo);
		}
		mc_mem_fail_after(-1);
		assert_true(rc == 0 || rc == -MC_E_NOMEM);
	}
	mc_free(json);
	assert_int_equal(mc_mem_live(), live);
	(void)state;
}

int main(void)
{
#define ROW(f) cmocka_unit_test_setup_teardown(f, make_root, drop_root)
	const struct CMUnitTest tests[] = {
	    ROW(devices_stand_in_numeric_order_by_numa_node),
	    ROW(filters_and_missing_rights_leave_devices_out),
	    ROW(gpu_prefers_the_device_with_the_shortest_pci_path),
	    ROW(host_without_anything_has_one_empty_place),
	    ROW(software_device_of_unknown_node_is_near_the_only_node),
	    ROW(custom_file_replaces_discovery),
	    ROW(parse_names_what_is_wrong),
	    ROW(devices_are_listed_by_comma),
	    ROW(published_devices_stand_as_upstream_counts_them),
	    ROW(protocol_without_device_becomes_tcp_with_a_reason),
	    ROW(addresses_hold_loopback_with_what_sysfs_says),
	    ROW(every_failing_allocation_is_an_error_without_leak),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
