/*
 * ledger.c: see ledger.h. Operations overlap in time; only what must hold in every order of those
 * that do is asked for.
 */
#include "sim/vos/ledger.h"

#include <string.h>

#include <mooncake/store.h>

#include "sim/vos/vos.h"

#define LOSS_SETTLES_NS                                                                            \
	(15 * MC_NS_PER_S) /* until all owners are known again, or known as gone                   \
			    */

struct ledger_stats ledger_stats;

static struct ledger_op *keys[LEDGER_KEYS_MAX];
static uint64_t ids, lost_ns, forgot_ns;

void ledger_init(void)
{
	memset(keys, 0, sizeof(keys));
	memset(&ledger_stats, 0, sizeof(ledger_stats));
	ids = lost_ns = forgot_ns = 0;
}

struct ledger_op *ledger_begin(uint32_t key, uint32_t len, bool is_upsert)
{
	struct ledger_op *op = vos_host_alloc(sizeof(*op));

	*op = (struct ledger_op){.next = keys[key],
				 .id = ++ids,
				 .start_ns = vos_now(),
				 .end_ns = MC_TIME_NEVER,
				 .len = len,
				 .key = key,
				 .is_remove = len == 0,
				 .is_upsert = is_upsert};
	keys[key] = op;
	ledger_stats.writes += len > 0;
	ledger_stats.removes += len == 0;
	return op;
}

void ledger_end(struct ledger_op *op, int code)
{
	op->code = code;
	op->end_ns = vos_now();
	if (code == 0)
		op->state = LEDGER_DONE;
	else if (op->is_remove)
		/* "Not found" may be the answer to a repetition of what was done already. */
		op->state = code == MC_STORE_OBJECT_HAS_LEASE ? LEDGER_FAILED : LEDGER_UNKNOWN;
	else
		op->state = code == MC_STORE_RPC_FAIL || code == MC_STORE_RPC_TIMEOUT
				? LEDGER_UNKNOWN
				: LEDGER_FAILED;
	if (!op->is_remove) {
		ledger_stats.acked += op->state == LEDGER_DONE;
		ledger_stats.unknown += op->state == LEDGER_UNKNOWN;
		ledger_stats.failed += op->state == LEDGER_FAILED;
	}
}

void ledger_owner_lost(void)
{
	lost_ns = vos_now();
}

void ledger_state_lost(void)
{
	forgot_ns = vos_now();
}

/* ---- bytes ---- */

static uint64_t word(uint64_t id, size_t i)
{
	return i == 0 ? id : (id * 0x9e3779b97f4a7c15ull) ^ (i * 0xd6e8feb86659fd93ull);
}

void ledger_fill(uint64_t id, uint8_t *buf, size_t len)
{
	for (size_t i = 0; i * 8 < len; i++) {
		uint64_t w = word(id, i);

		memcpy(buf + i * 8, &w, len - i * 8 < 8 ? len - i * 8 : 8);
	}
}

static bool are_of(uint64_t id, const uint8_t *bytes, size_t at, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		uint64_t w;

		if (i + 8 <= len && (at + i) % 8 == 0) {
			w = word(id, (at + i) / 8);
			if (memcmp(bytes + i, &w, 8) != 0)
				return false;
			i += 7;
			continue;
		}
		w = word(id, (at + i) / 8);
		if (bytes[i] != ((const uint8_t *)&w)[(at + i) % 8])
			return false;
	}
	return true;
}

/* ---- reads ---- */

static const char *text_of(const struct ledger_op *op)
{
	static char text[4][160];
	static unsigned turn;
	char *at = text[turn++ % 4];

	(void)snprintf(at, 160, "%s %llu of key %u [%.6f, %.6f] code %d",
		       op->is_remove   ? "removal"
		       : op->is_upsert ? "upsert"
				       : "put",
		       (unsigned long long)op->id, op->key, (double)op->start_ns / 1e9,
		       op->end_ns == MC_TIME_NEVER ? 0.0 : (double)op->end_ns / 1e9, op->code);
	return at;
}

/* Acknowledged before the read began, and began after the write was over. */
static bool is_between(const struct ledger_op *op, const struct ledger_op *w, uint64_t start_ns)
{
	return op->state == LEDGER_DONE && op->end_ns < start_ns &&
	       (w->state == LEDGER_DONE || w->state == LEDGER_FAILED) && op->start_ns > w->end_ns &&
	       (forgot_ns == 0 || op->start_ns > forgot_ns + LOSS_SETTLES_NS);
}

void ledger_read(uint32_t key, uint64_t start_ns, const uint8_t *head, const uint8_t *bytes,
		 size_t at, size_t part, uint64_t len)
{
	struct ledger_op *w = keys[key], *op;
	uint64_t id;

	ledger_stats.reads++;
	memcpy(&id, head, sizeof(id));
	while (w && (w->is_remove || w->id != id))
		w = w->next;
	if (!w)
		vos_fail("WRONG READ: key %u: no write of it has these bytes (id %llu)", key,
			 (unsigned long long)id);
	if (len && w->len != len)
		vos_fail("WRONG READ: %s has %u bytes, %llu were read", text_of(w), w->len,
			 (unsigned long long)len);
	if (!are_of(id, bytes, at, part))
		vos_fail("WRONG READ: bytes of %s are mixed with others", text_of(w));
	if (w->state == LEDGER_FAILED)
		vos_fail("FAILED AND VISIBLE: %s, read at %.6f", text_of(w),
			 (double)start_ns / 1e9);
	for (op = keys[key]; op; op = op->next) {
		if (op->is_remove && is_between(op, w, start_ns))
			vos_fail("REMOVED AND BACK: %s, then %s, read at %.6f", text_of(w),
				 text_of(op), (double)start_ns / 1e9);
		if (op->is_upsert && is_between(op, w, start_ns))
			vos_fail("OLD BYTES: %s, then %s, read at %.6f", text_of(w), text_of(op),
				 (double)start_ns / 1e9);
	}
}

/* No removal may have come after it or beside it, and its owner lives. */
static bool must_be_there(const struct ledger_op *w, uint64_t start_ns)
{
	if (w->is_remove || w->state != LEDGER_DONE || w->end_ns >= start_ns)
		return false;
	if (lost_ns && w->start_ns < lost_ns + LOSS_SETTLES_NS)
		return false;
	for (const struct ledger_op *op = keys[w->key]; op; op = op->next) {
		if (op->is_remove && op->state != LEDGER_FAILED &&
		    (op->state != LEDGER_DONE || op->end_ns >= w->start_ns))
			return false;
	}
	return true;
}

void ledger_missed(uint32_t key, uint64_t start_ns, bool has_room)
{
	ledger_stats.misses++;
	for (const struct ledger_op *w = keys[key]; w && has_room; w = w->next) {
		if (must_be_there(w, start_ns))
			vos_fail("LOST: %s is not there at %.6f", text_of(w),
				 (double)start_ns / 1e9);
	}
}
