/*
 * op.c: a public call under way: its deadline, its arena, its scratch memory. Kept for the next one
 * when it ends, unless it grew large.
 */
#include <time.h>

#include "base/fork.h"
#include "base/hash.h"
#include "client/priv.h"

#define CHUNK_BYTES (16u << 10)
#define SCRATCH_STEP (64u << 10)

bool mc_cli_is_closing(struct mc_store *st)
{
	bool is_closing;

	pthread_mutex_lock(&st->ops_mu);
	is_closing = st->is_closing;
	pthread_mutex_unlock(&st->ops_mu);
	return is_closing;
}

int mc_cli_op_begin(struct mc_store *st, struct mc_cli_op **ret_op)
{
	struct mc_cli_op *op = NULL;
	struct mc_list *node;

	if (mc_fork_is_child(st->fork_gen))
		return MC_STORE_INTERNAL_ERROR;
	pthread_mutex_lock(&st->ops_mu);
	if (st->is_closing) {
		pthread_mutex_unlock(&st->ops_mu);
		return MC_STORE_INTERNAL_ERROR;
	}
	atomic_fetch_add_explicit(&st->nusers, 1, memory_order_relaxed);
	node = mc_list_pop_front(&st->ops_idle);
	if (node) {
		op = mc_list_entry(node, struct mc_cli_op, link);
		st->nops_idle--;
	}
	pthread_mutex_unlock(&st->ops_mu);
	if (!op) {
		op = mc_calloc(1, sizeof(*op));
		if (!op) {
			atomic_fetch_sub_explicit(&st->nusers, 1, memory_order_release);
			return MC_STORE_INTERNAL_ERROR;
		}
		mc_list_init(&op->link);
		op->st = st;
	}
	op->start_ns = mc_now_ns();
	op->deadline_ns = mc_time_after(op->start_ns, st->timeout_ms * MC_NS_PER_MS);
	op->backoff_ns = MC_CLI_BACKOFF_MIN_NS;
	*ret_op = op;
	return 0;
}

static void call_free(struct mc_cli_call *c)
{
	mc_free(c->req);
	mc_free(c->reply);
	mc_free(c->items);
	mc_free(c);
}

void mc_cli_op_free(struct mc_cli_op *op)
{
	while (op->chunks) {
		struct mc_cli_chunk *next = op->chunks->next;

		mc_free(op->chunks);
		op->chunks = next;
	}
	for (size_t i = 0; i < op->ncalls_made; i++)
		call_free(op->calls[i]);
	mc_free(op->calls);
	if (op->scratch)
		(void)mc_mem_free(op->st->eng, op->scratch);
	mc_free(op);
}

static size_t kept_bytes(const struct mc_cli_op *op)
{
	size_t bytes = op->scratch_cap;

	for (const struct mc_cli_chunk *c = op->chunks; c; c = c->next)
		bytes += c->cap;
	for (size_t i = 0; i < op->ncalls_made; i++)
		bytes += op->calls[i]->req_cap + op->calls[i]->reply_cap;
	return bytes;
}

void mc_cli_op_end(struct mc_cli_op *op)
{
	struct mc_store *st = op->st;
	bool is_kept = kept_bytes(op) <= MC_CLI_OP_KEPT_BYTES;

	mc_cli_calls_reset(op);
	for (struct mc_cli_chunk *c = op->chunks; c; c = c->next)
		c->used = 0;
	pthread_mutex_lock(&st->ops_mu);
	is_kept = is_kept && st->nops_idle < MC_CLI_OPS_KEPT;
	if (is_kept) {
		mc_list_push_front(&st->ops_idle, &op->link);
		st->nops_idle++;
	}
	pthread_mutex_unlock(&st->ops_mu);
	if (!is_kept)
		mc_cli_op_free(op);
	/* release: pairs with the acquire of the close, which frees the store then */
	atomic_fetch_sub_explicit(&st->nusers, 1, memory_order_release);
}

static void *chunk_take(struct mc_cli_chunk *c, size_t bytes)
{
	void *at = c->bytes + c->used;

	c->used += bytes;
	memset(at, 0, bytes);
	return at;
}

void *mc_cli_alloc(struct mc_cli_op *op, size_t n, size_t size)
{
	struct mc_cli_chunk *c;
	size_t bytes;

	if (__builtin_mul_overflow(n, size, &bytes) || bytes > SIZE_MAX / 2)
		return NULL;
	bytes = (bytes + 15) & ~(size_t)15;
	/* The newest one first; the others were filled before it, or are empty again. */
	for (c = op->chunks; c; c = c->next)
		if (c->cap - c->used >= bytes)
			return chunk_take(c, bytes);
	c = mc_calloc(1, sizeof(*c) + mc_max(bytes, (size_t)CHUNK_BYTES));
	if (!c)
		return NULL;
	c->cap = mc_max(bytes, (size_t)CHUNK_BYTES);
	c->next = op->chunks;
	op->chunks = c;
	return chunk_take(c, bytes);
}

uint8_t *mc_cli_scratch(struct mc_cli_op *op, size_t len)
{
	if (len <= op->scratch_cap)
		return op->scratch;
	if (op->scratch)
		(void)mc_mem_free(op->st->eng, op->scratch);
	op->scratch_cap = 0;
	len = (len + SCRATCH_STEP - 1) & ~(size_t)(SCRATCH_STEP - 1);
	op->scratch = mc_mem_alloc(op->st->eng, len);
	if (op->scratch)
		op->scratch_cap = len;
	return op->scratch;
}

bool mc_cli_is_over(const struct mc_cli_op *op)
{
	return mc_now_ns() >= op->deadline_ns || mc_cli_is_closing(op->st);
}

bool mc_cli_backoff(struct mc_cli_op *op)
{
	uint64_t now_ns = mc_now_ns(), wait_ns = op->backoff_ns;
	struct timespec ts;

	if (now_ns >= op->deadline_ns || mc_cli_is_closing(op->st))
		return false;
	wait_ns = mc_min(wait_ns, op->deadline_ns - now_ns);
	ts = (struct timespec){.tv_sec = (time_t)(wait_ns / MC_NS_PER_S),
			       .tv_nsec = (long)(wait_ns % MC_NS_PER_S)};
	(void)nanosleep(&ts, NULL);
	op->backoff_ns = mc_min(op->backoff_ns * 2, MC_CLI_BACKOFF_MAX_NS);
	return !mc_cli_is_over(op);
}

uint64_t mc_cli_attempt_ns(const struct mc_cli_op *op)
{
	uint64_t now_ns = mc_now_ns(), left_ns, share_ns;

	if (now_ns >= op->deadline_ns)
		return op->deadline_ns;
	left_ns = op->deadline_ns - now_ns;
	share_ns = mc_max(left_ns / 4, MC_NS_PER_S);
	return now_ns + mc_min(left_ns, share_ns);
}

int mc_cli_key_make(struct mc_cli_op *op, const struct mc_store_key *key, struct mc_cli_key *ret)
{
	struct mc_store *st = op->st;
	size_t len = st->tenant_len + key->len;
	uint8_t *bytes;

	if (key->len == 0 || !key->bytes || key->len > MC_SLOT_KEY_MAX || len > MC_SLOT_KEY_MAX)
		return MC_STORE_INVALID_PARAMS;
	bytes = mc_cli_alloc(op, 1, len);
	if (!bytes)
		return MC_STORE_INTERNAL_ERROR;
	memcpy(bytes, st->tenant, st->tenant_len);
	memcpy(bytes + st->tenant_len, key->bytes, key->len);
	*ret = (struct mc_cli_key){
	    .bytes = bytes, .len = (uint16_t)len, .hash = mc_hash64(bytes, len, 0)};
	return 0;
}

struct mc_store_key mc_cli_key_text(const char *text)
{
	return (struct mc_store_key){.bytes = text, .len = text ? strlen(text) : 0};
}
