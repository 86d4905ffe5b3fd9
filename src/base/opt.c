/*
 * opt.c: strict parsing of option values. Nothing here accepts trailing characters, overflow or
 * another locale's digits.
 */
#include "base/opt.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/log.h"
#include "base/mem.h"

/* Digits at *at, at least one; moves *at behind them. */
static int opt_digits(const char **at, uint64_t *ret_value)
{
	const char *p = *at;
	uint64_t v = 0;

	if (*p < '0' || *p > '9')
		return -MC_E_INVAL;
	for (; *p >= '0' && *p <= '9'; p++) {
		if (__builtin_mul_overflow(v, 10u, &v) ||
		    __builtin_add_overflow(v, (uint64_t)(*p - '0'), &v))
			return -MC_E_INVAL;
	}
	*at = p;
	*ret_value = v;
	return 0;
}

int mc_opt_parse_u64(const char *text, uint64_t *ret_value)
{
	uint64_t v;

	if (opt_digits(&text, &v) < 0 || *text)
		return -MC_E_INVAL;
	*ret_value = v;
	return 0;
}

int mc_opt_parse_i64(const char *text, int64_t *ret_value)
{
	bool is_negative = text[0] == '-';
	uint64_t v;

	if (mc_opt_parse_u64(text + is_negative, &v) < 0 || v > (uint64_t)INT64_MAX + is_negative)
		return -MC_E_INVAL;
	*ret_value = (int64_t)(is_negative ? 0 - v : v);
	return 0;
}

static const struct {
	char letter;
	unsigned int shift;
} opt_units[] = {{'k', 10}, {'m', 20}, {'g', 30}, {'t', 40}};

/* Power of two of a unit's name, or -1. */
static int opt_unit_shift(const char *unit)
{
	if (!unit[0] || strcasecmp(unit, "b") == 0)
		return 0;
	for (size_t i = 0; i < MC_ARRAY_LEN(opt_units); i++) {
		if ((unit[0] | 0x20) != opt_units[i].letter)
			continue;
		if (!unit[1] || strcasecmp(unit + 1, "b") == 0 || strcasecmp(unit + 1, "ib") == 0)
			return (int)opt_units[i].shift;
	}
	return -1;
}

int mc_opt_parse_size(const char *text, uint64_t *ret_bytes)
{
	uint64_t v;
	int shift;

	if (opt_digits(&text, &v) < 0)
		return -MC_E_INVAL;
	while (*text == ' ')
		text++;
	shift = opt_unit_shift(text);
	if (shift < 0 || v > UINT64_MAX >> shift)
		return -MC_E_INVAL;
	*ret_bytes = v << shift;
	return 0;
}

int mc_opt_parse_bool(const char *text, bool *ret_value)
{
	static const char *const words[] = {"0", "1", "false", "true", "no", "yes", "off", "on"};

	for (size_t i = 0; i < MC_ARRAY_LEN(words); i++) {
		if (strcasecmp(text, words[i]) == 0) {
			*ret_value = i & 1;
			return 0;
		}
	}
	return -MC_E_INVAL;
}

/* Digits, one point and an exponent: what strtod() takes beyond that (hex, inf, nan, blanks) is
 * refused. */
static int opt_parse_double(const char *text, double *ret_value)
{
	char *end;
	double v;

	if (!text[0] || text[strspn(text, "0123456789.eE+-")])
		return -MC_E_INVAL;
	v = strtod(text, &end);
	if (*end || !isfinite(v))
		return -MC_E_INVAL;
	*ret_value = v;
	return 0;
}

/* "512 … 1024", for messages and documents. */
static void opt_accepted(const struct mc_opt *opt, struct mc_str *out)
{
	switch (opt->type) {
	case MC_OPT_TYPE_INT:
		mc_str_appendf(out, "%" PRId64 " to %" PRId64, opt->min, opt->max);
		break;
	case MC_OPT_TYPE_SIZE:
		mc_str_appendf(out, "%" PRId64 " to %" PRId64 " bytes (units kb mb gb tb)",
			       opt->min, opt->max);
		break;
	case MC_OPT_TYPE_BOOL:
		mc_str_puts(out, "1, true, yes, on or 0, false, no, off");
		break;
	case MC_OPT_TYPE_DOUBLE:
		mc_str_appendf(out, "%g to %g", opt->dmin, opt->dmax);
		break;
	case MC_OPT_TYPE_STR:
		mc_str_appendf(out, "text of %" PRId64 " to %" PRId64 " bytes", opt->min, opt->max);
		break;
	case MC_OPT_TYPE_ENUM:
		for (size_t i = 0; opt->choices[i]; i++)
			mc_str_appendf(out, "%s%s", i ? ", " : "", opt->choices[i]);
		break;
	case MC_OPT_TYPE_COUNT:
		break;
	}
}

static int opt_parse_enum(const struct mc_opt *opt, const char *text, int *ret_value)
{
	for (int i = 0; opt->choices[i]; i++) {
		if (strcasecmp(text, opt->choices[i]) == 0) {
			*ret_value = i;
			return 0;
		}
	}
	return -MC_E_INVAL;
}

static int opt_parse_str(const struct mc_opt *opt, const char *text, char *field)
{
	size_t len = strlen(text);

	if (len < (uint64_t)opt->min || len > (uint64_t)opt->max)
		return -MC_E_INVAL;
	memcpy(field, text, len + 1);
	return 0;
}

static int opt_parse_number(const struct mc_opt *opt, const char *text, void *field)
{
	uint64_t u;
	int64_t i;
	double d;

	if (opt->type == MC_OPT_TYPE_INT) {
		if (mc_opt_parse_i64(text, &i) < 0 || i < opt->min || i > opt->max)
			return -MC_E_INVAL;
		*(int64_t *)field = i;
	} else if (opt->type == MC_OPT_TYPE_SIZE) {
		if (mc_opt_parse_size(text, &u) < 0 || u < (uint64_t)opt->min ||
		    u > (uint64_t)opt->max)
			return -MC_E_INVAL;
		*(uint64_t *)field = u;
	} else {
		if (opt_parse_double(text, &d) < 0 || d < opt->dmin || d > opt->dmax)
			return -MC_E_INVAL;
		*(double *)field = d;
	}
	return 0;
}

static int opt_parse(const struct mc_opt *opt, void *conf, const char *text)
{
	void *field = (char *)conf + opt->offset;

	switch (opt->type) {
	case MC_OPT_TYPE_INT:
	case MC_OPT_TYPE_SIZE:
	case MC_OPT_TYPE_DOUBLE:
		return opt_parse_number(opt, text, field);
	case MC_OPT_TYPE_BOOL:
		return mc_opt_parse_bool(text, field);
	case MC_OPT_TYPE_STR:
		return opt_parse_str(opt, text, field);
	case MC_OPT_TYPE_ENUM:
		return opt_parse_enum(opt, text, field);
	case MC_OPT_TYPE_COUNT:
		break;
	}
	return -MC_E_INVAL;
}

int mc_opt_set(const struct mc_opt *opt, void *conf, const char *text, struct mc_diag *diag)
{
	struct mc_str accepted;

	if (opt_parse(opt, conf, text) == 0)
		return 0;
	mc_str_init(&accepted, 256);
	opt_accepted(opt, &accepted);
	mc_diag_set(diag, "%s=\"%.64s\" is not accepted: use %s", opt->name, text,
		    mc_str_text(&accepted));
	mc_str_fini(&accepted);
	return -MC_E_INVAL;
}

void mc_opt_defaults(const struct mc_opt *table, size_t rows, void *conf)
{
	for (size_t i = 0; i < rows; i++) {
		int rc = opt_parse(&table[i], conf, table[i].def);

		mc_assert(rc == 0);
	}
}

const struct mc_opt *mc_opt_find(const struct mc_opt *table, size_t rows, const char *name)
{
	for (size_t i = 0; i < rows; i++) {
		if (strcmp(table[i].name, name) == 0)
			return &table[i];
	}
	return NULL;
}

int mc_opt_load_env(const struct mc_opt *table, size_t rows, void *conf, struct mc_diag *diag)
{
	int wrong = 0;

	mc_opt_defaults(table, rows, conf);
	for (size_t i = 0; i < rows; i++) {
		const char *text = getenv(table[i].name);
		struct mc_diag one;

		if (!text || !text[0] || mc_opt_set(&table[i], conf, text, &one) == 0)
			continue;
		mc_log_warn("environment variable keeps its default", "reason='%s' default=%s",
			    one.text, table[i].def);
		if (!wrong++)
			mc_diag_set(diag, "%s", one.text);
	}
	return wrong;
}

int mc_opt_dump(const struct mc_opt *table, size_t rows, struct mc_str *out)
{
	mc_str_puts(out, "| variable | default | accepted | meaning |\n|---|---|---|---|\n");
	for (size_t i = 0; i < rows; i++) {
		mc_str_appendf(out, "| `%s` | %s | ", table[i].name,
			       table[i].def[0] ? table[i].def : "(empty)");
		opt_accepted(&table[i], out);
		mc_str_appendf(out, " | %s |\n", table[i].help);
	}
	return out->rc;
}
