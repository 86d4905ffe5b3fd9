/*
 * call.c: an op's calls: messages of records, started together, waited for one after the other (the
 * thread that waits on one connection reads it itself; the loop reads the others meanwhile).
 */
#include "client/link.h"
#include "wire/pb.h"

#define REQ_MIN 256u
#define REQ_MAX (64u << 20)
#define CALLS_MAX (1u << 20)
#define PB_ARENA_BYTES (256u << 10)

void mc_cli_calls_reset(struct mc_cli_op *op)
{
	op->ncalls = 0;
}

static int req_room(struct mc_cli_call *c, size_t len)
{
	void *req = c->req;
	int rc;

	if (c->req_cap - c->req_len >= len)
		return 0;
	rc =
	    mc_array_grow(&req, &c->req_cap, mc_max(c->req_len + len, (size_t)REQ_MIN), REQ_MAX, 1);
	c->req = req;
	return rc;
}

int mc_cli_call_set(struct mc_cli_call *c, const void *req, size_t len)
{
	c->req_len = 0;
	if (req_room(c, len) < 0)
		return -MC_E_NOMEM;
	if (len)
		memcpy(c->req, req, len);
	c->req_len = len;
	return 0;
}

static struct mc_cli_call *call_new(struct mc_cli_op *op)
{
	void *calls = op->calls;
	struct mc_cli_call *c;

	if (op->ncalls == op->ncalls_made) {
		if (mc_array_grow(&calls, &op->calls_cap, op->ncalls_made + 1, CALLS_MAX,
				  sizeof(*op->calls)) < 0)
			return NULL;
		op->calls = calls;
		c = mc_calloc(1, sizeof(*c));
		if (!c)
			return NULL;
		op->calls[op->ncalls_made++] = c;
	}
	return op->calls[op->ncalls++];
}

struct mc_cli_call *mc_cli_call_open_head(struct mc_cli_op *op, struct mc_cli_end *end,
					  uint16_t method, const void *head, size_t head_len)
{
	struct mc_cli_call *c = call_new(op);

	if (!c)
		return NULL;
	*c = (struct mc_cli_call){.rpc = {.method = method},
				  .end = end,
				  .req = c->req,
				  .req_cap = c->req_cap,
				  .reply = c->reply,
				  .reply_cap = c->reply_cap,
				  .items = c->items,
				  .items_cap = c->items_cap};
	if (mc_cli_call_set(c, head, head_len) < 0 || req_room(c, sizeof(uint32_t)) < 0) {
		op->ncalls--;
		return NULL;
	}
	c->count_at = c->req_len;
	memset(c->req + c->req_len, 0, sizeof(uint32_t));
	c->req_len += sizeof(uint32_t);
	return c;
}

struct mc_cli_call *mc_cli_call_open(struct mc_cli_op *op, struct mc_cli_end *end, uint16_t method)
{
	return mc_cli_call_open_head(op, end, method, NULL, 0);
}

struct mc_cli_call *mc_cli_call_for(struct mc_cli_op *op, size_t first, struct mc_cli_end *end,
				    uint16_t method, size_t len)
{
	for (size_t i = op->ncalls; i > first; i--) {
		struct mc_cli_call *c = op->calls[i - 1];

		if (c->end != end || c->rpc.method != method)
			continue;
		if (mc_cli_call_has_room(c, len))
			return c;
		break;
	}
	return mc_cli_call_open(op, end, method);
}

bool mc_cli_call_has_room(const struct mc_cli_call *c, size_t len)
{
	return c->n == 0 || (c->n < MC_CLI_CALL_RECORDS_MAX && len <= MC_CLI_CALL_BYTES_MAX &&
			     c->req_len <= MC_CLI_CALL_BYTES_MAX - len);
}

int mc_cli_call_add(struct mc_cli_call *c, size_t len, uint32_t item, struct mc_wr *ret_w)
{
	void *items = c->items;

	if (req_room(c, len) < 0 || mc_array_grow(&items, &c->items_cap, c->n + 1,
						  MC_CLI_CALL_RECORDS_MAX, sizeof(*c->items)) < 0)
		return -MC_E_NOMEM;
	c->items = items;
	c->items[c->n] = item;
	*ret_w = mc_wr_make(c->req + c->req_len, len);
	return 0;
}

void mc_cli_call_added(struct mc_cli_call *c, const struct mc_wr *w)
{
	struct mc_wr count = mc_wr_make(c->req + c->count_at, sizeof(uint32_t));

	mc_assert(!w->is_bad); /* its size was ours to know */
	c->req_len += mc_wr_len(w);
	c->n++;
	mc_wr_u32(&count, c->n);
}

/* The thread that waits reads what this stored: mc_rpc_wait() orders the two. */
static void on_end(struct mc_rpc_call *call, int rc, const struct mc_rpc_msg *reply)
{
	struct mc_cli_call *c = mc_container_of(call, struct mc_cli_call, rpc);
	void *buf = c->reply;

	c->rc = rc;
	c->end_ns = mc_now_ns();
	mc_cli_count_rpc(c->end->st->counts, call->method, c->end_ns - c->start_ns);
	c->reply_len = 0;
	if (rc < 0 || reply->len == 0)
		return;
	if (reply->len > c->reply_cap &&
	    mc_array_grow(&buf, &c->reply_cap, reply->len, MC_RPC_FRAME_MAX, 1) < 0) {
		c->rc = -MC_E_NOMEM;
		return;
	}
	c->reply = buf;
	memcpy(c->reply, reply->data, reply->len);
	c->reply_len = reply->len;
}

static void call_prepare(struct mc_cli_call *c, uint64_t deadline_ns)
{
	c->rpc = (struct mc_rpc_call){.method = c->rpc.method,
				      .flags = MC_RPC_WAITED,
				      .req = c->req,
				      .req_len = c->req_len,
				      .deadline_ns = deadline_ns,
				      .on_end = on_end};
	c->is_started = c->is_over = false;
	c->rc = 0;
}

static void call_start(struct mc_cli_call *c, uint64_t deadline_ns)
{
	int rc;

	call_prepare(c, deadline_ns);
	rc = mc_cli_link_get(c->end, deadline_ns, &c->link);
	if (rc < 0) {
		c->rc = rc;
		c->is_over = true;
		return;
	}
	c->start_ns = mc_now_ns();
	rc = mc_rpc_start(c->link->rpc, &c->rpc);
	c->is_started = rc == 0;
	c->nsent += rc == 0 || rc == -MC_E_AGAIN;
	if (rc == 0 || rc == -MC_E_AGAIN) /* no room: later, when others have ended */
		return;
	c->rc = rc;
	c->is_over = true;
}

static void call_wait(struct mc_cli_call *c)
{
	if (!c->is_over && c->is_started)
		(void)mc_rpc_wait(c->link->rpc, &c->rpc);
	else if (!c->is_over && mc_rpc_sync(c->link->rpc, &c->rpc) < 0 && c->rc == 0)
		c->rc = c->rpc.rc; /* not started after all: there was no end */
	c->is_over = true;
	if (c->link)
		mc_cli_link_put(c->link);
	c->link = NULL;
}

void mc_cli_calls_run(struct mc_cli_op *op, size_t first, uint64_t deadline_ns)
{
	for (size_t i = first; i < op->ncalls; i++)
		call_start(op->calls[i], deadline_ns);
	for (size_t i = first; i < op->ncalls; i++)
		call_wait(op->calls[i]);
}

void mc_cli_calls_repeat(struct mc_cli_op *op, size_t first, uint64_t deadline_ns)
{
	for (size_t i = first; i < op->ncalls; i++)
		if (op->calls[i]->rc < 0 && !op->calls[i]->rpc.is_answered)
			call_start(op->calls[i], deadline_ns);
	for (size_t i = first; i < op->ncalls; i++)
		call_wait(op->calls[i]);
}

/* The master did not answer: it restarts, or says that it is too early. */
static bool is_worth_repeating(const struct mc_cli_call *c)
{
	if (c->rc == 0)
		return false;
	if (c->rpc.is_answered)
		return c->rc == -MC_E_AGAIN || c->rc == -MC_E_BUSY || c->rc == -MC_E_UNAVAILABLE;
	return c->rc != -MC_E_NOMEM && c->rc != -MC_E_TOO_BIG && c->rc != -MC_E_FORKED &&
	       c->rc != -MC_E_VERSION;
}

void mc_cli_calls_master(struct mc_cli_op *op, size_t first)
{
	bool is_again;

	for (size_t i = first; i < op->ncalls; i++)
		call_start(op->calls[i], op->deadline_ns);
	do {
		is_again = false;
		for (size_t i = first; i < op->ncalls; i++) {
			call_wait(op->calls[i]);
			is_again |= is_worth_repeating(op->calls[i]);
		}
		if (!is_again || !mc_cli_backoff(op))
			return;
		for (size_t i = first; i < op->ncalls; i++)
			if (is_worth_repeating(op->calls[i]))
				call_start(op->calls[i], op->deadline_ns);
	} while (true);
}

int mc_cli_call_records(struct mc_cli_call *c, struct mc_rd *ret_r)
{
	int n;

	*ret_r = mc_rd_make(c->reply, c->reply_len);
	n = mc_st_count_decode(ret_r);
	return n >= 0 && (uint32_t)n == c->n ? 0 : -MC_E_PROTO;
}

int mc_cli_call_pb(struct mc_cli_op *op, uint16_t method, const void *msg, const void *type,
		   void **ret_reply)
{
	size_t first = op->ncalls, len = protobuf_c_message_get_packed_size(msg), need;
	struct mc_cli_call *c = mc_cli_call_open(op, &op->st->master, method);
	struct mc_pb_arena *arena = mc_cli_alloc(op, 1, sizeof(*arena));
	ProtobufCMessage *reply;
	uint8_t *buf = mc_cli_alloc(op, 1, len + 1);
	int rc;

	if (!c || !arena || !buf)
		return -MC_E_NOMEM;
	rc = mc_pb_pack(msg, buf, len + 1, &need);
	if (rc == 0)
		rc = mc_cli_call_set(c, buf, need);
	if (rc < 0)
		return rc;
	mc_cli_calls_master(op, first);
	if (c->rc < 0)
		return c->rc;
	len = PB_ARENA_BYTES + 16 * c->reply_len;
	buf = mc_cli_alloc(op, 1, len);
	if (!buf)
		return -MC_E_NOMEM;
	mc_pb_arena_init(arena, buf, len);
	rc = mc_pb_unpack(arena, type, c->reply, c->reply_len, &reply);
	op->ncalls = first;
	if (rc == 0)
		*ret_reply = reply;
	return rc;
}
