/*
 * fuzz_dlog.c: a directory of the disk log whose files hold anything. The first byte says how many
 * 64-byte units of the rest are the segment; what follows is the checkpoint. CRCs, log id and
 * places are put right first where a record or a checkpoint begins, so that what they guard is
 * reached.
 */
#include "log/dlog.h"

#include <stdio.h>
#include <string.h>

#include "base/codec.h"
#include "base/crc.h"
#include "base/log.h"
#include "base/mem.h"
#include "sim/mem_disk.h"

#define SPACE (16u << 20)
#define LOG_ID 1u
#define HEAD 128u
#define CKPT_HEAD 64u
#define BUF 4096u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void put32(uint8_t *to, uint32_t v)
{
	struct mc_wr w = mc_wr_make(to, 4);

	mc_wr_u32(&w, v);
}

static void put64(uint8_t *to, uint64_t v)
{
	struct mc_wr w = mc_wr_make(to, 8);

	mc_wr_u64(&w, v);
}

static void mend_segment(uint8_t *seg, size_t len)
{
	for (size_t at = 0; at + HEAD <= len; at += 64) {
		if (memcmp(seg + at, "MCLR", 4) != 0)
			continue;
		put64(seg + at + 8, LOG_ID);
		put64(seg + at + 16, at);
		put32(seg + at + 24, 0);
		put32(seg + at + 4, mc_crc32c(0, seg + at + 8, HEAD - 8));
	}
}

static void mend_ckpt(uint8_t *ckpt, size_t len)
{
	if (len < CKPT_HEAD || memcmp(ckpt, "MCLC", 4) != 0)
		return;
	put64(ckpt + 8, LOG_ID);
	put32(ckpt + 32, mc_crc32c(0, ckpt + CKPT_HEAD, len - CKPT_HEAD));
	put32(ckpt + 4, mc_crc32c(0, ckpt + 8, CKPT_HEAD - 8));
}

static void write_file(const struct mc_disk *disk, const char *name, const void *bytes, size_t len)
{
	struct mc_disk_file *file;
	char path[64];

	(void)snprintf(path, sizeof(path), "%s/%s", MEM_DISK_DIR, name);
	mc_assert(disk->open(disk, path, MC_DISK_WRITE | MC_DISK_CREATE, 0600, &file) == 0);
	mc_assert(disk->write(file, bytes, len, 0) == (ssize_t)len);
	disk->close(file);
}

static void write_format(const struct mc_disk *disk)
{
	char line[65];
	int n = snprintf(line, sizeof(line), "mooncake log 1 id %016x", LOG_ID);

	memset(line + n, ' ', 64 - (size_t)n);
	(void)snprintf(line + 55, 10, "%08x\n", mc_crc32c(0, line, 55));
	write_file(disk, "format", line, 64);
}

static void on_done(struct mc_dlog_op *op, int rc)
{
	*(bool *)op->user = true;
	mc_assert(rc <= 0);
}

static void get(struct mc_dlog *log, const struct mc_dlog_item *item)
{
	static uint8_t buf[BUF];
	struct iovec iov = {buf, mc_min(item->info.payload_len, (uint64_t)BUF)};
	bool is_done = false;
	struct mc_dlog_op op = {.key = item->key,
				.key_len = item->key_len,
				.iov = &iov,
				.niov = 1,
				.on_done = on_done,
				.user = &is_done};

	if (mc_dlog_get(log, &op) < 0)
		return;
	while (!is_done)
		(void)mc_dlog_reap(log, 0);
}

static void on_item(void *user, const struct mc_dlog_item *item)
{
	get(user, item);
}

static void use(const struct mc_disk *disk)
{
	struct mc_dlog_conf conf = {
	    .disk = disk, .path = MEM_DISK_DIR, .segment_bytes = MC_DLOG_SEGMENT_MIN, .depth = 2};
	struct mc_dlog_cursor cursor = {0};
	struct mc_diag diag = {.text = ""};
	struct mc_dlog *log;

	if (mc_dlog_open(&conf, &log, &diag) < 0) {
		mc_assert(diag.text[0]);
		return;
	}
	while (mc_dlog_list(log, &cursor, 1 << 20, on_item, log) == 1)
		;
	for (unsigned i = 0; i < 8 && mc_dlog_step(log, 1 << 20) == 1; i++)
		(void)mc_dlog_reap(log, 0);
	mc_dlog_close(log);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	size_t seg_len = len > 0 ? data[0] * 64ul : 0;
	struct mem_disk *mem;
	uint8_t *copy;

	if (len == 0 || len > SPACE / 4)
		return 0;
	seg_len = mc_min(seg_len, len - 1);
	mc_log_level_set(MC_LOG_OFF); /* damage is what this is about */
	copy = mc_calloc(1, len);
	mc_assert(copy);
	memcpy(copy, data + 1, len - 1);
	mend_segment(copy, seg_len);
	mend_ckpt(copy + seg_len, len - 1 - seg_len);
	mem = mem_disk_open(SPACE);
	write_format(mem_disk_ops(mem));
	write_file(mem_disk_ops(mem), "seg-00000000", copy, seg_len);
	write_file(mem_disk_ops(mem), "checkpoint", copy + seg_len, len - 1 - seg_len);
	use(mem_disk_ops(mem));
	mem_disk_close(mem);
	mc_free(copy);
	return 0;
}
