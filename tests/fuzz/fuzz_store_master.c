/*
 * fuzz_store_master.c: what a hostile client and a hostile owner say to a master, through its rpc
 * server: calls with payloads of any bytes, and notes on owners' streams (raw_calls.h). Each input
 * has a master of its own, without a state directory.
 *
 * Of the byte that chooses, bit 7 is a piece of the last stream as it stands, bit 6 a note on it
 * whose head is made here (its first byte is the type), bit 5 ends the direction with it; else it
 * is a call.
 */
#include "base/log.h"
#include "master/priv.h"
#include "raw_calls.h"

#define RAW_PIECE 0x80u
#define RAW_NOTE 0x40u
#define RAW_LAST 0x20u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static struct mc_loop *loop, *side;

static void setup(void)
{
	mc_log_level_set(MC_LOG_ERROR);
	mc_assert(mc_loop_open("master", mc_env_real.clk, &loop) == 0);
	mc_assert(mc_loop_open("side", mc_env_real.clk, &side) == 0);
	mc_assert(mc_loop_start(loop) == 0 && mc_loop_start(side) == 0);
}

struct streams {
	uint64_t call; /* the last one; 0: none yet */
	uint64_t number;
};

static void note(struct raw *r, struct streams *s, const struct raw_item *item)
{
	uint8_t buf[MC_ST_NOTE_HEAD_LEN + RAW_PAYLOAD_MAX];
	struct mc_st_note_head head;

	if (item->len == 0)
		return;
	head = (struct mc_st_note_head){
	    .len = item->len - 1u, .type = item->bytes[0], .number = ++s->number};
	mc_st_note_head_encode(&head, buf);
	memcpy(buf + MC_ST_NOTE_HEAD_LEN, item->bytes + 1, head.len);
	raw_chunk(r, s->call, item->what & RAW_LAST, buf, MC_ST_NOTE_HEAD_LEN + head.len);
}

static void say(struct raw *r, struct streams *s, const struct raw_item *item)
{
	static const uint16_t methods[] = {
	    MC_ST_OWNER,    MC_ST_JOIN,	  MC_ST_VIEW,	     MC_ST_GENS,       MC_ST_EXIST,
	    MC_ST_LOOKUP,   MC_ST_COMMIT, MC_ST_BAD,	     MC_ST_LIST,       MC_ST_REMOVE_LIKE,
	    MC_ST_SEGMENTS, MC_ST_REMOVE, MC_ST_TASK_CREATE, MC_ST_TASK_QUERY, MC_ST_CLEAR};
	uint16_t method = methods[item->what % MC_ARRAY_LEN(methods)];
	uint64_t call;

	if (item->what & (RAW_PIECE | RAW_NOTE)) {
		if (s->call == 0)
			return;
		if (item->what & RAW_PIECE)
			raw_chunk(r, s->call, item->what & RAW_LAST, item->bytes, item->len);
		else
			note(r, s, item);
		return;
	}
	call = raw_call(r, method, method == MC_ST_OWNER ? MC_FRAME_STREAM : 0, item->bytes,
			item->len);
	if (method != MC_ST_OWNER || !call)
		return;
	raw_wait(r, call); /* the welcome, or the refusal */
	*s = (struct streams){.call = call};
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static const uint8_t nothing[4];
	static struct raw_item item;
	struct mc_master_conf conf;
	struct streams streams = {0};
	struct mc_diag diag = {""};
	struct mc_master *master;
	struct mc_addr at, port;
	struct raw r;

	if (!loop)
		setup();
	mc_master_conf_defaults(&conf);
	conf.lease_ms = 0;
	conf.seed = 1;
	mc_assert(mc_addr_parse("127.0.0.1:0", 0, &at) == 0);
	mc_assert(mc_master_open(&mc_env_real, loop, side, &conf, &diag, &master) == 0);
	mc_assert(mc_master_listen(master, &at, &port) == 0);
	raw_open(&r, &port);
	while (raw_next(&data, &len, &item) && r.ncalls < RAW_CALLS_MAX - 1)
		say(&r, &streams, &item);
	/* Answered at once, and after all that was sent before it. */
	raw_wait(&r, raw_call(&r, MC_ST_EXIST, 0, nothing, sizeof(nothing)));
	raw_close(&r);
	mc_master_close(master);
	return 0;
}
