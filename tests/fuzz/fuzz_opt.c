/*
 * fuzz_opt.c: option values as a user may type them. An accepted value is within its row's range; a
 * refused one leaves its field alone and gets a complaint.
 */
#include "base/opt.h"

#include <string.h>

#include "base/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

struct conf {
	int64_t lanes;
	uint64_t slice;
	bool force;
	double ratio;
	char name[8];
	int store;
};

static const char *const stores[] = {"SIEVE", "FIFO", NULL};

static const struct mc_opt table[] = {
    MC_OPT_INT(struct conf, lanes, "LANES", "-4", -5, 16, "a number"),
    MC_OPT_SIZE(struct conf, slice, "SLICE", "64kb", 4096, 1 << 30, "a size"),
    MC_OPT_BOOL(struct conf, force, "FORCE", "0", "a switch"),
    MC_OPT_DOUBLE(struct conf, ratio, "RATIO", "0.5", 0.0, 1.0, "a share"),
    MC_OPT_STR(struct conf, name, "NAME", "", "a name"),
    MC_OPT_ENUM(struct conf, store, "STORE", "sieve", stores, "a choice"),
};

static void check_split(const char *text)
{
	struct mc_view parts[4];
	int n = mc_str_split(text, ',', parts, MC_ARRAY_LEN(parts));

	for (int i = 0; i < n; i++) {
		struct mc_view v = mc_view_trim(parts[i]);

		mc_assert(v.at >= text && v.at + v.len <= text + strlen(text));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	char text[256];
	struct mc_diag diag;
	uint64_t u, size;
	struct conf c;
	int64_t i;

	if (len >= sizeof(text))
		return 0;
	if (len)
		memcpy(text, data, len);
	text[len] = '\0';
	for (size_t row = 0; row < MC_ARRAY_LEN(table); row++) {
		struct conf before;

		memset(&c, 0, sizeof(c));
		mc_opt_defaults(table, MC_ARRAY_LEN(table), &c);
		memcpy(&before, &c, sizeof(c)); /* padding too */
		diag.text[0] = '\0';
		if (mc_opt_set(&table[row], &c, text, &diag) < 0)
			mc_assert(diag.text[0] && memcmp(&before, &c, sizeof(c)) == 0);
		mc_assert(c.lanes >= -5 && c.lanes <= 16 && c.slice >= 4096 && c.slice <= 1 << 30);
		mc_assert(c.ratio >= 0 && c.ratio <= 1 && c.store >= 0 && c.store <= 1);
		mc_assert(memchr(c.name, '\0', sizeof(c.name)));
	}
	if (mc_opt_parse_u64(text, &u) == 0)
		mc_assert(mc_opt_parse_size(text, &size) == 0 && size == u);
	if (mc_opt_parse_i64(text, &i) == 0 && text[0] != '-')
		mc_assert(mc_opt_parse_u64(text, &u) == 0 && u == (uint64_t)i);
	check_split(text);
	return 0;
}
