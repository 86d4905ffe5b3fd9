/*
 * fuzz_master_state.c: a master's state directory whose two files hold anything. Bit 0 of the first
 * byte puts a check line behind the text, bit 1 puts the hashes of tombstones right, so that what
 * they guard is reached; two bytes are the length of the text, the tombstones follow it.
 *
 * What is found is within its bounds, and what the master writes of it at once is found again.
 */
#include "master/state.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/codec.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "sim/mem_disk.h"

#define SPACE (16u << 20)
#define TEXT_MAX 8192u
#define TOMB_LEN 32u
#define CHECK_LEN 23u /* with the end of its line */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void write_file(const struct mc_disk *disk, const char *name, const void *bytes, size_t len)
{
	struct mc_disk_file *file;
	char path[64];

	(void)snprintf(path, sizeof(path), "%s/%s", MEM_DISK_DIR, name);
	mc_assert(disk->open(disk, path, MC_DISK_WRITE | MC_DISK_CREATE, 0600, &file) == 0);
	mc_assert(disk->write(file, bytes, len, 0) == (ssize_t)len);
	disk->close(file);
}

static void text_write(const struct mc_disk *disk, const uint8_t *at, size_t len, bool is_checked)
{
	char text[TEXT_MAX + CHECK_LEN + 1];

	if (len)
		memcpy(text, at, len);
	if (is_checked)
		(void)snprintf(text + len, CHECK_LEN + 1, "check %016" PRIx64 "\n",
			       mc_hash64(text, len, 0));
	write_file(disk, "state", text, is_checked ? len + CHECK_LEN : len);
}

static void tombs_write(const struct mc_disk *disk, const uint8_t *at, size_t len, bool is_checked)
{
	uint8_t *tombs = mc_calloc(1, len + 1);

	mc_assert(tombs);
	if (len)
		memcpy(tombs, at, len);
	for (size_t i = 0; is_checked && i + TOMB_LEN <= len; i += TOMB_LEN) {
		struct mc_wr w = mc_wr_make(tombs + i + TOMB_LEN - 8, 8);

		mc_wr_u64(&w, mc_hash64(tombs + i, TOMB_LEN - 8, 0));
	}
	write_file(disk, "tombstones", tombs, len);
	mc_free(tombs);
}

static void read_state(const struct mc_disk *disk, struct mc_state_found *found)
{
	struct mc_env env = mc_env_real;
	struct mc_state *state;

	env.disk = disk;
	/* Nothing is asked for later, so no loop is needed. */
	mc_assert(mc_state_open(&env, NULL, NULL, MEM_DISK_DIR, &state, found) == 0);
	mc_state_close(state);
	mc_assert(found->is_there == (found->epoch > 0));
	mc_assert(found->nowners <= MC_STATE_OWNERS_MAX && found->nquotas <= MC_STATE_QUOTAS_MAX);
	for (size_t i = 0; i < found->nowners; i++)
		mc_assert(strlen(found->owners[i].segment) < MC_STATE_NAME_MAX);
	for (size_t i = 0; i < found->nquotas; i++)
		mc_assert(found->quotas[i].tenant[0] &&
			  strlen(found->quotas[i].tenant) < MC_STATE_TENANT_MAX);
}

static void is_same(const struct mc_state_found *a, const struct mc_state_found *b)
{
	mc_assert(b->epoch == a->epoch + 1);
	mc_assert(a->nowners == b->nowners && a->nquotas == b->nquotas && a->ntombs == b->ntombs);
	for (size_t i = 0; i < a->nowners; i++) {
		const struct mc_state_owner *x = &a->owners[i], *y = &b->owners[i];

		mc_assert(x->id == y->id && x->incarnation == y->incarnation &&
			  x->seen_s == y->seen_s && x->is_away == y->is_away);
		mc_assert(strcmp(x->segment, y->segment) == 0);
	}
	for (size_t i = 0; i < a->nquotas; i++)
		mc_assert(a->quotas[i].bytes == b->quotas[i].bytes &&
			  strcmp(a->quotas[i].tenant, b->quotas[i].tenant) == 0);
	for (size_t i = 0; i < a->ntombs; i++)
		mc_assert(memcmp(&a->tombs[i], &b->tombs[i], sizeof(a->tombs[i])) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct mc_state_found found, again;
	const struct mc_disk *disk;
	struct mem_disk *mem;
	size_t text_len;

	if (len < 3 || len > SPACE / 4)
		return 0;
	text_len = mc_min((size_t)(data[1] | data[2] << 8), len - 3);
	text_len = mc_min(text_len, (size_t)TEXT_MAX);
	mc_log_level_set(MC_LOG_OFF); /* damage is what this is about */
	mem = mem_disk_open(SPACE);
	disk = mem_disk_ops(mem);
	text_write(disk, data + 3, text_len, data[0] & 1);
	tombs_write(disk, data + 3 + text_len, len - 3 - text_len, data[0] & 2);
	read_state(disk, &found);
	read_state(disk, &again);
	if (found.epoch < UINT64_MAX) /* one more and it has none */
		is_same(&found, &again);
	mc_state_found_fini(&found);
	mc_state_found_fini(&again);
	mem_disk_close(mem);
	return 0;
}
