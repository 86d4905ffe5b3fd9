/*
 * transports.c: how to open each transport, and the table of what runs.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "conform.h"
#include "xport/file.h"
#include "xport/self.h"
#include "xport/shm.h"
#include "xport/tcp.h"

#define PORT_MIN 20000
#define PORT_MAX 32000

struct mc_xdev_env env_of(struct side *s)
{
	return (struct mc_xdev_env){.loops = s->loops,
				    .nloops = s->nloops,
				    .regions = s->regions,
				    .clk = &mc_clock_real,
				    .disk = &mc_disk_real,
				    .epoch = s->epoch,
				    .nonce = s->nonce};
}

static int tcp_dev_open(struct side *s)
{
	struct mc_xdev_env e = env_of(s);
	struct mc_tcp_opts o = {
	    .naddrs = s->tr->rails ? s->tr->rails : 1, .port_min = PORT_MIN, .port_max = PORT_MAX};
	char addr[24];
	int rc = 0;

	for (unsigned i = 0; i < o.naddrs && rc == 0; i++) {
		(void)snprintf(addr, sizeof(addr), "127.0.0.%u", 1 + i);
		rc = mc_addr_parse(addr, 0, &o.addrs[i]);
	}

	return rc < 0 ? rc : mc_tcp_dev_open(&e, &o, &s->dev);
}

static void tcp_hello(struct side *s, struct hello *ret_hello)
{
	ret_hello->port = mc_tcp_dev_port(s->inner);
}

static int self_dev_open(struct side *s)
{
	struct mc_xdev_env e = env_of(s);

	return mc_self_dev_open(&e, &s->dev);
}

/* All processes of one run share a directory. */
int shm_dir_make(void)
{
	char dir[] = "/tmp/mc-conform-XXXXXX";

	return mkdtemp(dir) && setenv("CONFORM_DIR", dir, 1) == 0 ? 0 : -MC_E_IO;
}

void shm_dir_remove(void)
{
	const char *path = getenv("CONFORM_DIR");
	struct dirent *entry;
	DIR *dir = path ? opendir(path) : NULL;

	while (dir && (entry = readdir(dir)))
		(void)unlinkat(dirfd(dir), entry->d_name, 0); /* of processes that were killed */
	if (dir)
		(void)closedir(dir);
	if (path)
		(void)rmdir(path);
}

static int shm_dev_open(struct side *s)
{
	struct mc_xdev_env e = env_of(s);
	struct mc_shm_opts o = {.dir = getenv("CONFORM_DIR")};
	struct mc_diag diag = {""};
	int rc = mc_shm_dev_open(&e, &o, &s->dev, &diag);

	if (rc < 0)
		print_error("%s\n", diag.text);
	return rc;
}

static void shm_hello(struct side *s, struct hello *ret_hello)
{
	strncpy(ret_hello->shm_path, mc_shm_dev_socket_path(s->inner),
		sizeof(ret_hello->shm_path) - 1);
}

static int shm_attach(struct side *s, const struct hello *h, void **ret_peer)
{
	struct mc_shm_peer_id id = {h->shm_path, h->nonce, h->epoch, "target"};
	struct mc_shm_peer *p;
	int rc;

	rc = mc_shm_peer_attach(s->inner, &id, mc_now_ns() + WAIT_NS, &p, NULL);
	if (rc == 0)
		*ret_peer = p;
	return rc;
}

static void shm_detach(void *peer)
{
	mc_shm_peer_detach(peer);
}

static uint8_t *shm_mem_alloc(struct side *s, size_t len)
{
	void *p;

	return mc_shm_alloc(s->inner, len, &p) == 0 ? p : NULL;
}

static void shm_desc_fill(struct side *s, struct mc_region_desc *desc)
{
	mc_shm_desc_fill(s->inner, desc);
}

/* ---- a file: the target's memory is a mapping of it ---- */

static struct {
	char path[64];
	int fd;
	uint64_t len;
	struct {
		uint8_t *at;
		uint64_t off;
		size_t len;
	} maps[PLACE_COUNT];
	unsigned nmaps;
} file;

static int file_dev_open(struct side *s)
{
	struct mc_xdev_env e = env_of(s);

	(void)snprintf(file.path, sizeof(file.path), "/tmp/mc-conform-file-XXXXXX");
	file.fd = mkstemp(file.path);
	return file.fd < 0 ? -MC_E_IO : mc_file_dev_open(&e, &s->dev);
}

static uint8_t *file_mem_alloc(struct side *s, size_t len)
{
	uint8_t *m;

	(void)s;
	len = (len + 4095) / 4096 * 4096;
	if (ftruncate(file.fd, (off_t)(file.len + len)) != 0)
		return NULL;
	m = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, file.fd, (off_t)file.len);
	if (m == MAP_FAILED)
		return NULL;
	file.maps[file.nmaps].at = m;
	file.maps[file.nmaps].off = file.len;
	file.maps[file.nmaps++].len = len;
	file.len += len;
	return m;
}

static uint64_t file_raddr(const uint8_t *at)
{
	for (unsigned i = 0; i < file.nmaps; i++)
		if (at >= file.maps[i].at && at < file.maps[i].at + file.maps[i].len)
			return file.maps[i].off + (uint64_t)(at - file.maps[i].at);
	return UINT64_MAX;
}

static int file_attach(struct side *s, const struct hello *h, void **ret_peer)
{
	struct mc_file_seg *seg;
	int rc = mc_file_seg_open(s->inner, file.path, &seg, NULL);

	(void)h;
	if (rc == 0)
		*ret_peer = seg;
	return rc;
}

static void file_detach(void *peer)
{
	mc_file_seg_close(peer);
}

static void file_clean(void)
{
	for (unsigned i = 0; i < file.nmaps; i++)
		(void)munmap(file.maps[i].at, file.maps[i].len);
	(void)close(file.fd);
	(void)unlink(file.path);
	file.nmaps = 0;
}

#define TCP .dev_open = tcp_dev_open, .hello = tcp_hello
#define SHM                                                                                        \
	.dev_open = shm_dev_open, .hello = shm_hello, .attach = shm_attach, .detach = shm_detach,  \
	.desc_fill = shm_desc_fill
#define FILE_                                                                                      \
	.dev_open = file_dev_open, .mem_alloc = file_mem_alloc, .raddr = file_raddr,               \
	.attach = file_attach, .detach = file_detach, .clean = file_clean
/* What of the sweep a row leaves out, and why. */
#define NO_KEYS [SWEEP_KEY] = "regions have no keys"
#define UNFIT_GEN .unfit = {NO_KEYS}
#define UNFIT_ADDR                                                                                 \
	.unfit = {                                                                                 \
	    NO_KEYS, [SWEEP_ZERO] = "upstream's frames may have length 0, which moves nothing",    \
	    [SWEEP_GENERATION] = "upstream's frames name addresses, without generations"}
#define UNFIT_FILE                                                                                 \
	.unfit = {NO_KEYS,                                                                         \
		  [SWEEP_ZERO] = "length 0 is nothing to do",                                      \
		  [SWEEP_RIGHT] = "the rights are the file's as a whole: file_test",               \
		  [SWEEP_FREED] = "a file is not registered",                                      \
		  [SWEEP_AGAIN] = "a file is not registered",                                      \
		  [SWEEP_GENERATION] = "a file has no generations"}
#define SMALL_PIECES                                                                               \
	{                                                                                          \
		.seed = 12, .tiny = 400, .piece_max = 9000                                         \
	}

static const struct transport transports[] = {
    {.name = "self", .flags = T_GEN, UNFIT_GEN, .dev_open = self_dev_open},
    {.name = "self-fault", .flags = T_GEN, UNFIT_GEN, .fault = UNRULY, .dev_open = self_dev_open},
    {.name = "file", .flags = T_ADDR | T_PLAIN, UNFIT_FILE, FILE_},
    {.name = "file-fault", .flags = T_ADDR | T_PLAIN, UNFIT_FILE, .fault = UNRULY, FILE_},
    {.name = "shm-memfd", .flags = T_REMOTE | T_GEN, UNFIT_GEN, SHM, .mem_alloc = shm_mem_alloc},
    {.name = "shm-vm", .flags = T_REMOTE | T_GEN, UNFIT_GEN, SHM},
    {.name = "shm-fault",
     .flags = T_REMOTE | T_GEN,
     UNFIT_GEN,
     .fault = UNRULY,
     SHM,
     .mem_alloc = shm_mem_alloc},
    {.name = "tcp", .flags = T_REMOTE | T_GEN | T_ALIVE | T_AUTH, UNFIT_GEN, TCP},
    {.name = "tcp-rails", .flags = T_REMOTE | T_GEN | T_ALIVE | T_AUTH, UNFIT_GEN, .rails = 2, TCP},
    {.name = "tcp-v2", .flags = T_REMOTE | T_ALIVE | T_ADDR, UNFIT_ADDR, .classic = 2, TCP},
    {.name = "tcp-v1",
     .flags = T_REMOTE | T_ALIVE | T_ADDR | T_MUTE,
     UNFIT_ADDR,
     .classic = 1,
     TCP},
    {.name = "tcp-fault",
     .flags = T_REMOTE | T_GEN | T_ALIVE | T_AUTH,
     UNFIT_GEN,
     .fault = UNRULY,
     TCP},
    {.name = "tcp-relay",
     .flags = T_REMOTE | T_GEN | T_ALIVE | T_AUTH | T_SLOW | T_RELAY,
     UNFIT_GEN,
     .relay = SMALL_PIECES,
     TCP},
    {.name = "tcp-v2-relay",
     .flags = T_REMOTE | T_ALIVE | T_ADDR | T_SLOW | T_RELAY,
     UNFIT_ADDR,
     .classic = 2,
     .relay = SMALL_PIECES,
     TCP},
    /* Everything at once, and lanes that break: only the storm can end well here. */
    {.name = "tcp-storm",
     .flags = T_REMOTE | T_GEN | T_ALIVE | T_AUTH | T_SLOW | T_RELAY | T_LOSSY,
     .fault = {.seed = 13,
	       .refuse = 200,
	       .idle = 100,
	       .hold = 200,
	       .hold_polls = 4,
	       .drop = 10,
	       .lane_break = 4,
	       .corrupt = 10},
     .relay = {.seed = 14,
	       .tiny = 40,
	       .piece_max = 30000,
	       .reset_bytes = 1u << 20,
	       .delay_ns = MC_NS_PER_MS / 2,
	       .buffer_bytes = 8u << 20},
     TCP},
};

const struct transport *transport_at(size_t i)
{
	size_t n;
	const struct transport *more = transports_more(&n);

	if (i < MC_ARRAY_LEN(transports))
		return &transports[i];
	i -= MC_ARRAY_LEN(transports);
	return i < n ? &more[i] : NULL;
}

const struct transport *transport_find(const char *name)
{
	const struct transport *tr;

	for (size_t i = 0; (tr = transport_at(i)); i++)
		if (strcmp(tr->name, name) == 0)
			return tr;
	return NULL;
}

int side_open(struct side *s, const struct transport *tr)
{
	int rc;

	memset(s, 0, sizeof(*s));
	s->tr = tr;
	s->nloops = 2;
	rc = mc_rand_bytes(s->nonce, sizeof(s->nonce));
	if (rc == 0)
		rc = mc_rand_bytes(&s->epoch, sizeof(s->epoch));
	s->epoch |= 1;
	for (unsigned i = 0; i < s->nloops && rc == 0; i++) {
		rc = mc_loop_open("conform", &mc_clock_real, &s->loops[i]);
		if (rc == 0)
			rc = mc_loop_start(s->loops[i]);
	}
	if (rc == 0)
		rc = mc_region_table_open(&s->regions);
	if (rc == 0)
		rc = tr->dev_open(s);
	s->inner = s->dev;
	if (rc == 0 && tr->fault.seed)
		rc = mc_fault_dev_open(s->inner, &tr->fault, &s->dev);
	return rc;
}

void side_close(struct side *s)
{
	if (s->dev)
		s->dev->ops->dev_close(s->dev);
	mc_region_table_close(s->regions);
	for (unsigned i = 0; i < s->nloops; i++)
		mc_loop_close(s->loops[i]);
	if (s->tr && s->tr->clean)
		s->tr->clean();
	memset(s, 0, sizeof(*s));
}
