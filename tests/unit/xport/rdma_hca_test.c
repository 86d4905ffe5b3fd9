/*
 * rdma_hca_test.c: which ports are opened and why not the others, what their events do, and every
 * verb failing at every call.
 */
#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "rdma_fix.h"

#define DEVS3                                                                                      \
	(&(struct verbs_fake_conf){                                                                \
	    .ndevs = 3,                                                                            \
	})

static void assert_diag_has(const struct rdma_fix *f, const char *part)
{
	if (!strstr(f->diag.text, part))
		fail_msg("\"%s\" lacks \"%s\"", f->diag.text, part);
}

/* ---- which ---- */

static void devices_are_opened_in_the_order_of_their_names(void **state)
{
	struct rdma_fix f;

	(void)state;
	fix_start(&f, DEVS3);
	assert_int_equal(fix_open(&f), 0);
	assert_int_equal(f.dev->nhcas, 3);
	for (unsigned i = 0; i < 3; i++) {
		const struct mc_rdma_port *p = &f.dev->hca[i].port;

		assert_int_equal(p->name[4], '0' + (int)i);
		assert_int_equal(p->port_num, 1);
		assert_int_equal(p->mtu, IBV_MTU_1024);
		assert_int_equal(p->mbps, 40000);
		assert_int_equal(p->numa, -1);
		assert_true(p->is_ethernet);
		assert_int_equal(p->gid_index, 1); /* IPv4 before link-local */
		assert_true(atomic_load(&f.dev->hca[i].is_up));
	}
	mc_rdma_hcas_close(f.dev);
	fix_end(&f);
}

static void infiniband_port_has_its_lid_and_first_gid(void **state)
{
	struct rdma_fix f;

	(void)state;
	fix_start(&f, &(struct verbs_fake_conf){.is_infiniband = true});
	assert_int_equal(fix_open(&f), 0);
	assert_false(f.dev->hca[0].port.is_ethernet);
	assert_int_equal(f.dev->hca[0].port.lid, 17);
	assert_int_equal(f.dev->hca[0].port.gid_index, 0);
	mc_rdma_hcas_close(f.dev);
	fix_end(&f);
}

static void only_listed_devices_are_opened(void **state)
{
	struct rdma_fix f;

	(void)state;
	fix_start(&f, DEVS3);
	f.opts.devices = " fake2,, fake0";
	assert_int_equal(fix_open(&f), 0);
	assert_int_equal(f.dev->nhcas, 2);
	assert_string_equal(f.dev->hca[0].port.name, "fake0");
	assert_string_equal(f.dev->hca[1].port.name, "fake2");
	mc_rdma_hcas_close(f.dev);
	fix_end(&f);
}

static void name_of_no_device_is_refused_with_those_that_there_are(void **state)
{
	struct rdma_fix f;

	(void)state;
	fix_start(&f, DEVS3);
	f.opts.devices = "fake0,mlx5_7";
	assert_int_equal(fix_open(&f), -MC_E_NOENT);
	assert_diag_has(&f, "\"mlx5_7\"");
	assert_diag_has(&f, "fake0, fake1, fake2");
	mc_rdma_hcas_close(f.dev);
	fix_end(&f);
}

static void port_that_is_down_at_first_comes_in_later(void **state)
{
	static const uint8_t none[16];
	uint8_t gid[16];
	struct rdma_fix f;

	(void)state;
	fix_start(&f, DEVS3);
	verbs_fake_gid_get(1, 1, 1, gid);
	verbs_fake_link(1, 1, VERBS_FAKE_DOWN);
	verbs_fake_gid_set(1, 1, 0, none);
	verbs_fake_gid_set(1, 1, 1, none);
	assert_int_equal(fix_open(&f), 0);
	assert_int_equal(f.dev->nhcas, 3);
	assert_false(atomic_load(&f.dev->hca[1].is_up));
	assert_false(f.dev->hca[1].port.has_addr);
	assert_true(atomic_load(&f.dev->hca[2].is_up));
	assert_string_equal(f.diag.text, "");
	verbs_fake_link(1, 1, VERBS_FAKE_UP);
	fix_step(&f);
	assert_false(atomic_load(&f.dev->hca[1].is_up)); /* it has no address */
	verbs_fake_gid_set(1, 1, 1, gid);
	fix_step(&f);
	assert_true(atomic_load(&f.dev->hca[1].is_up));
	assert_int_equal(f.dev->hca[1].port.gid_index, 1);
	assert_memory_equal(f.dev->hca[1].port.gid, gid, sizeof(gid));
	mc_rdma_hcas_close(f.dev);
	fix_end(&f);
}

static void reason_is_told_when_no_port_is_up(void **state)
{
	struct rdma_fix f;

	(void)state;
	fix_start(&f, DEVS3);
	verbs_fake_link(1, 1, VERBS_FAKE_DOWN);
	f.opts.devices = "fake1";
	assert_int_equal(fix_open(&f), 0);
	assert_diag_has(&f, "fake1: port 1 is not active: down");
	mc_rdma_hcas_close(f.dev);
	fix_end(&f);
}

static void ports_that_are_up_come_first_where_there_are_too_many(void **state)
{
	struct rdma_fix f;

	(void)state;
	fix_start(&f, &(struct verbs_fake_conf){.ndevs = 10});
	for (unsigned i = 0; i < 3; i++)
		verbs_fake_link(i, 1, VERBS_FAKE_DOWN);
	assert_int_equal(fix_open(&f), 0);
	assert_int_equal(f.dev->nhcas, MC_RDMA_PORTS_MAX);
	assert_string_equal(f.dev->hca[0].port.name, "fake3");
	assert_string_equal(f.dev->hca[6].port.name, "fake9");
	assert_string_equal(f.dev->hca[7].port.name, "fake0");
	assert_false(atomic_load(&f.dev->hca[7].is_up));
	mc_rdma_hcas_close(f.dev);
	fix_end(&f);
}

static void machine_without_devices_is_told_so(void **state)
{
	struct rdma_fix f;

	(void)state;
	fix_start(&f, DEVS3);
	verbs_fake_fail(VERBS_FAKE_GET_DEVICE_LIST, 0, ENOSYS);
	assert_int_equal(fix_open(&f), -MC_E_UNAVAILABLE);
	assert_diag_has(&f, "no RDMA device");
	mc_rdma_hcas_close(f.dev);
	fix_end(&f);
}

static void missing_permission_or_file_is_named(void **state)
{
	struct rdma_fix f;

	(void)state;
	fix_start(&f, &(struct verbs_fake_conf){.ndevs = 1});
	verbs_fake_fail(VERBS_FAKE_OPEN_DEVICE, 0, EACCES);
	assert_int_equal(fix_open(&f), -MC_E_UNAVAILABLE);
	assert_diag_has(&f, "no permission for /dev/infiniband/uverbs0");
	mc_rdma_hcas_close(f.dev);
	if (access("/dev/infiniband/uverbs0", F_OK) < 0) {
		verbs_fake_fail(VERBS_FAKE_OPEN_DEVICE, 0, EINVAL);
		assert_int_equal(fix_open(&f), -MC_E_UNAVAILABLE);
		assert_diag_has(&f, "no /dev/infiniband/uverbs0");
		mc_rdma_hcas_close(f.dev);
	}
	fix_end(&f);
}

static void port_and_address_that_are_asked_for_must_be_there(void **state)
{
	struct rdma_fix f;

	(void)state;
	fix_start(&f, DEVS3);
	assert_int_equal(setenv("MC_GID_INDEX", "3", 1), 0);
	assert_int_equal(fix_open(&f), -MC_E_UNAVAILABLE);
	assert_diag_has(&f, "GID index 3");
	assert_diag_has(&f, "1 (::ffff:10.77.0.1)");
	mc_rdma_hcas_close(f.dev);
	assert_int_equal(setenv("MC_GID_INDEX", "0", 1), 0);
	assert_int_equal(fix_open(&f), 0);
	assert_int_equal(f.dev->hca[0].port.gid_index, 0);
	mc_rdma_hcas_close(f.dev);
	assert_int_equal(unsetenv("MC_GID_INDEX"), 0);
	assert_int_equal(setenv("MC_IB_PORT", "2", 1), 0);
	assert_int_equal(fix_open(&f), -MC_E_UNAVAILABLE);
	assert_diag_has(&f, "no port 2");
	mc_rdma_hcas_close(f.dev);
	assert_int_equal(unsetenv("MC_IB_PORT"), 0);
	fix_end(&f);
}

/* ---- sysfs ---- */

static char root[] = "/tmp/rdma_hca_test.XXXXXX";

static void put(const char *path, const char *text)
{
	char full[512];
	FILE *file;

	(void)snprintf(full, sizeof(full), "%s/%s", root, path);
	for (char *at = strchr(full + strlen(root) + 1, '/'); at; at = strchr(at + 1, '/')) {
		*at = '\0';
		assert_true(mkdir(full, 0700) == 0 || errno == EEXIST);
		*at = '/';
	}
	file = fopen(full, "w");
	assert_non_null(file);
	assert_true(fputs(text, file) >= 0);
	assert_int_equal(fclose(file), 0);
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st;
	(void)flag;
	(void)ftw;
	return remove(path);
}

static void address_of_an_interface_that_is_here_is_chosen(void **state)
{
	static const uint8_t loopback[16] = {[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1};
	static const uint8_t other[16] = {[10] = 0xff, [11] = 0xff, [12] = 10, [15] = 9};
	struct rdma_fix f;

	(void)state;
	assert_non_null(mkdtemp(root));
	put("class/infiniband/fake0/ports/1/gid_attrs/types/1", "RoCE v2\n");
	put("class/infiniband/fake0/ports/1/gid_attrs/ndevs/1", "nosuch0\n");
	put("class/infiniband/fake0/ports/1/gid_attrs/types/2", "IB/RoCE v1\n");
	put("class/infiniband/fake0/ports/1/gid_attrs/ndevs/2", "lo\n");
	put("class/infiniband/fake0/ports/1/gid_attrs/types/3", "RoCE v2\n");
	put("class/infiniband/fake0/ports/1/gid_attrs/ndevs/3", "lo\n");
	put("class/infiniband/fake0/parent", "eth7\n");
	put("class/net/eth7/device/numa_node", "1\n");
	put("class/infiniband/fake1/device/numa_node", "-1\n");
	fix_start(&f, &(struct verbs_fake_conf){.ndevs = 2});
	f.opts.sys_root = root;
	verbs_fake_gid_set(0, 1, 2, loopback);
	verbs_fake_gid_set(0, 1, 3, loopback);
	assert_int_equal(fix_open(&f), 0);
	assert_int_equal(f.dev->hca[0].port.gid_index, 3);
	assert_int_equal(f.dev->hca[0].port.numa, 1);
	assert_int_equal(f.dev->hca[1].port.numa, -1);
	mc_rdma_hcas_close(f.dev);
	/* Both are of the interface that is here, but one address is another's. */
	verbs_fake_gid_set(0, 1, 2, other);
	put("class/infiniband/fake0/ports/1/gid_attrs/types/2", "RoCE v2\n");
	assert_int_equal(fix_open(&f), 0);
	assert_int_equal(f.dev->hca[0].port.gid_index, 3);
	mc_rdma_hcas_close(f.dev);
	assert_int_equal(nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
	fix_end(&f);
}

/* ---- events ---- */

static void port_goes_down_and_up_with_its_link(void **state)
{
	struct rdma_fix f;
	uint32_t version;

	(void)state;
	fix_start(&f, DEVS3);
	assert_int_equal(fix_open(&f), 0);
	version = atomic_load(&f.dev->ports_version);
	verbs_fake_link(1, 1, VERBS_FAKE_DOWN);
	fix_step(&f);
	assert_false(atomic_load(&f.dev->hca[1].is_up));
	assert_true(atomic_load(&f.dev->hca[0].is_up));
	assert_true(atomic_load(&f.dev->ports_version) > version);
	verbs_fake_event(1, IBV_EVENT_PORT_ACTIVE, 2); /* of another port */
	fix_step(&f);
	assert_false(atomic_load(&f.dev->hca[1].is_up));
	version = atomic_load(&f.dev->ports_version);
	verbs_fake_link(1, 1, VERBS_FAKE_UP);
	fix_step(&f);
	assert_true(atomic_load(&f.dev->hca[1].is_up));
	assert_true(atomic_load(&f.dev->ports_version) > version);
	mc_rdma_hcas_close(f.dev);
	fix_end(&f);
}

static void port_is_down_while_its_address_is_gone(void **state)
{
	static const uint8_t none[16];
	uint8_t gid[16];
	struct rdma_fix f;

	(void)state;
	fix_start(&f, DEVS3);
	verbs_fake_gid_get(0, 1, 1, gid);
	assert_int_equal(fix_open(&f), 0);
	verbs_fake_gid_set(0, 1, 0, none);
	fix_step(&f);
	assert_true(atomic_load(&f.dev->hca[0].is_up)); /* another address */
	verbs_fake_gid_set(0, 1, 1, none);
	fix_step(&f);
	assert_false(atomic_load(&f.dev->hca[0].is_up));
	verbs_fake_link(0, 1, VERBS_FAKE_DOWN);
	verbs_fake_link(0, 1, VERBS_FAKE_UP);
	fix_step(&f);
	assert_false(atomic_load(&f.dev->hca[0].is_up));
	verbs_fake_gid_set(0, 1, 1, gid);
	fix_step(&f);
	assert_true(atomic_load(&f.dev->hca[0].is_up));
	mc_rdma_hcas_close(f.dev);
	fix_end(&f);
}

static void address_that_comes_back_at_another_index_is_used(void **state)
{
	static const uint8_t none[16];
	uint8_t gid[16];
	struct rdma_fix f;
	uint32_t gen, version;

	(void)state;
	fix_start(&f, DEVS3);
	verbs_fake_gid_get(0, 1, 1, gid);
	assert_int_equal(fix_open(&f), 0);
	verbs_fake_gid_set(0, 1, 0, none);
	verbs_fake_gid_set(0, 1, 1, none);
	fix_step(&f);
	assert_false(atomic_load(&f.dev->hca[0].is_up));
	gen = atomic_load(&f.dev->hca[0].addr_gen);
	version = atomic_load(&f.dev->ports_version);
	verbs_fake_gid_set(0, 1, 3, gid);
	fix_step(&f);
	assert_true(atomic_load(&f.dev->hca[0].is_up));
	assert_int_equal(f.dev->hca[0].port.gid_index, 3);
	assert_true(atomic_load(&f.dev->hca[0].addr_gen) != gen);
	assert_true(atomic_load(&f.dev->ports_version) != version);
	mc_rdma_hcas_close(f.dev);
	fix_end(&f);
}

/* DHCP may be late: until then there is a link-local one. */
static void better_address_is_taken_when_it_comes(void **state)
{
	static const uint8_t none[16];
	uint8_t gid[16];
	struct rdma_fix f;
	uint32_t gen;

	(void)state;
	fix_start(&f, DEVS3);
	verbs_fake_gid_get(0, 1, 1, gid);
	verbs_fake_gid_set(0, 1, 1, none);
	assert_int_equal(fix_open(&f), 0);
	assert_int_equal(f.dev->hca[0].port.gid_index, 0);
	verbs_fake_gid_set(0, 1, 2, gid);
	fix_step(&f);
	assert_int_equal(f.dev->hca[0].port.gid_index, 2);
	gen = atomic_load(&f.dev->hca[0].addr_gen);
	verbs_fake_gid_set(0, 1, 1, gid); /* no better: lanes use the other */
	fix_step(&f);
	assert_int_equal(f.dev->hca[0].port.gid_index, 2);
	assert_int_equal(atomic_load(&f.dev->hca[0].addr_gen), gen);
	mc_rdma_hcas_close(f.dev);
	fix_end(&f);
}

static void changed_lid_is_asked_for(void **state)
{
	struct ibv_port_attr attr;
	struct rdma_fix f;
	uint32_t gen;

	(void)state;
	fix_start(&f, &(struct verbs_fake_conf){.is_infiniband = true});
	assert_int_equal(fix_open(&f), 0);
	gen = atomic_load(&f.dev->hca[0].addr_gen);
	verbs_fake_lid_set(0, 1, 99);
	fix_step(&f);
	assert_true(atomic_load(&f.dev->hca[0].is_up));
	assert_true(atomic_load(&f.dev->hca[0].addr_gen) != gen);
	assert_int_equal(mc_rdma_port_ask(&f.dev->hca[0], &attr), 0);
	assert_int_equal(mc_rdma_port_now(&f.dev->hca[0]).lid, 99);
	mc_rdma_hcas_close(f.dev);
	fix_end(&f);
}

static void failed_device_never_comes_back(void **state)
{
	struct rdma_fix f;

	(void)state;
	fix_start(&f, DEVS3);
	assert_int_equal(fix_open(&f), 0);
	verbs_fake_kill_dev(2);
	fix_step(&f);
	assert_true(atomic_load(&f.dev->hca[2].is_fatal));
	assert_false(atomic_load(&f.dev->hca[2].is_up));
	verbs_fake_event(2, IBV_EVENT_PORT_ACTIVE, 1);
	fix_step(&f);
	assert_false(atomic_load(&f.dev->hca[2].is_up));
	mc_rdma_hcas_close(f.dev);
	fix_end(&f);
}

static void device_that_is_taken_away_is_not_listened_to_any_more(void **state)
{
	struct rdma_fix f;

	(void)state;
	fix_start(&f, DEVS3);
	assert_int_equal(fix_open(&f), 0);
	verbs_fake_fail(VERBS_FAKE_GET_ASYNC_EVENT, 0, EIO);
	verbs_fake_event(0, IBV_EVENT_SM_CHANGE, 1);
	fix_step(&f); /* would not end if it were listened to */
	assert_true(verbs_fake_fail_clear());
	assert_true(atomic_load(&f.dev->hca[0].is_fatal));
	assert_int_equal(f.dev->hca[0].async.fd, -1);
	mc_rdma_hcas_close(f.dev);
	fix_end(&f);
}

static void ports_close_while_events_wait(void **state)
{
	struct rdma_fix f;

	(void)state;
	fix_start(&f, DEVS3);
	assert_int_equal(fix_open(&f), 0);
	verbs_fake_link(0, 1, VERBS_FAKE_DOWN);
	verbs_fake_kill_dev(1);
	mc_rdma_hcas_close(f.dev);
	fix_step(&f);
	fix_end(&f);
}

/* ---- failures ---- */

static void every_verb_fails_at_every_call_without_a_leak(void **state)
{
	static const int errs[] = {ENOMEM, EIO, EINVAL};
	struct rdma_fix f;
	unsigned failed = 0;

	(void)state;
	fix_start(&f, &(struct verbs_fake_conf){.ndevs = 2});
	for (size_t e = 0; e < MC_ARRAY_LEN(errs); e++) {
		for (unsigned i = 0;; i++) {
			int rc;

			verbs_fake_fail(VERBS_FAKE_ANY, i, errs[e]);
			rc = fix_open(&f);
			if (!verbs_fake_fail_clear()) {
				assert_int_equal(rc, 0);
				assert_int_equal(f.dev->nhcas, 2);
				mc_rdma_hcas_close(f.dev);
				break;
			}
			failed++;
			/* The other device still serves, or all of it is refused with a reason. */
			if (rc < 0)
				assert_true(f.diag.text[0]);
			mc_rdma_hcas_close(f.dev);
			assert_int_equal(verbs_fake_live_all(), 0);
		}
	}
	assert_true(failed > 3 * 2 * 5);
	fix_end(&f);
}

static void failing_ends_are_told_and_survived(void **state)
{
	struct rdma_fix f;

	(void)state;
	fix_start(&f, &(struct verbs_fake_conf){.ndevs = 2});
	assert_int_equal(fix_open(&f), 0);
	verbs_fake_fail(VERBS_FAKE_DEALLOC_PD, 0, EIO);
	mc_rdma_hcas_close(f.dev);
	assert_true(verbs_fake_fail_clear());
	assert_int_equal(fix_open(&f), 0);
	verbs_fake_fail(VERBS_FAKE_CLOSE_DEVICE, 0, EIO);
	mc_rdma_hcas_close(f.dev);
	assert_true(verbs_fake_fail_clear());
	fix_end(&f);
}

static void every_allocation_fails_without_a_leak(void **state)
{
	struct rdma_fix f;

	(void)state;
	fix_start(&f, &(struct verbs_fake_conf){.ndevs = 2});
	for (int i = 0;; i++) {
		int64_t live = mc_mem_live();
		int rc;

		mc_mem_fail_after(i);
		rc = fix_open(&f);
		mc_mem_fail_after(-1);
		mc_rdma_hcas_close(f.dev);
		assert_int_equal(mc_mem_live(), live);
		assert_int_equal(verbs_fake_live_all(), 0);
		if (rc == 0)
			break;
		assert_int_equal(rc, -MC_E_NOMEM);
	}
	fix_end(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(devices_are_opened_in_the_order_of_their_names),
	    cmocka_unit_test(infiniband_port_has_its_lid_and_first_gid),
	    cmocka_unit_test(only_listed_devices_are_opened),
	    cmocka_unit_test(name_of_no_device_is_refused_with_those_that_there_are),
	    cmocka_unit_test(port_that_is_down_at_first_comes_in_later),
	    cmocka_unit_test(reason_is_told_when_no_port_is_up),
	    cmocka_unit_test(ports_that_are_up_come_first_where_there_are_too_many),
	    cmocka_unit_test(machine_without_devices_is_told_so),
	    cmocka_unit_test(missing_permission_or_file_is_named),
	    cmocka_unit_test(port_and_address_that_are_asked_for_must_be_there),
	    cmocka_unit_test(address_of_an_interface_that_is_here_is_chosen),
	    cmocka_unit_test(port_goes_down_and_up_with_its_link),
	    cmocka_unit_test(port_is_down_while_its_address_is_gone),
	    cmocka_unit_test(address_that_comes_back_at_another_index_is_used),
	    cmocka_unit_test(better_address_is_taken_when_it_comes),
	    cmocka_unit_test(changed_lid_is_asked_for),
	    cmocka_unit_test(failed_device_never_comes_back),
	    cmocka_unit_test(device_that_is_taken_away_is_not_listened_to_any_more),
	    cmocka_unit_test(ports_close_while_events_wait),
	    cmocka_unit_test(every_verb_fails_at_every_call_without_a_leak),
	    cmocka_unit_test(failing_ends_are_told_and_survived),
	    cmocka_unit_test(every_allocation_fails_without_a_leak),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
