/*
 * statreg.c: the registry keeps its metrics sorted by (name, labels), so the series of a name are
 * together as the format asks, and equal ones are found by binary search. Labels are kept as the
 * text that is printed.
 */
#include "base/statreg.h"

#include <inttypes.h>
#include <pthread.h>
#include <string.h>

#include "base/mem.h"

#define STAT_LABELS_BYTES_MAX 1024
#define STAT_LE_FIRST 10
#define STAT_LE_LAST 36

struct mc_stat {
	char *name, *help;
	char *labels; /* key="value",… without braces */
	enum mc_stat_kind kind;
	double scale;
	unsigned int le_first, le_last;
	const void *numbers; /* the caller's */
};

struct mc_stat_reg {
	pthread_mutex_t lock; /* guards all below; leaf lock */
	struct mc_stat **stats;
	size_t len, cap, max;
};

int mc_stat_reg_open(size_t stats_max, struct mc_stat_reg **ret_reg)
{
	struct mc_stat_reg *reg = mc_calloc(1, sizeof(*reg));

	if (!reg)
		return -MC_E_NOMEM;
	pthread_mutex_init(&reg->lock, NULL);
	reg->max = stats_max;
	*ret_reg = reg;
	return 0;
}

static void stat_close(struct mc_stat *stat)
{
	mc_free(stat->name);
	mc_free(stat->help);
	mc_free(stat->labels);
	mc_free(stat);
}

void mc_stat_reg_close(struct mc_stat_reg *reg)
{
	if (!reg)
		return;
	for (size_t i = 0; i < reg->len; i++)
		stat_close(reg->stats[i]);
	pthread_mutex_destroy(&reg->lock);
	mc_free(reg->stats);
	mc_free(reg);
}

static bool stat_is_name(const char *name, bool with_colon)
{
	if (!name[0] || (name[0] >= '0' && name[0] <= '9'))
		return false;
	for (; *name; name++) {
		char low = (char)(*name | 0x20);
		bool is_digit = *name >= '0' && *name <= '9';

		if (!is_digit && !(low >= 'a' && low <= 'z') && *name != '_' &&
		    !(with_colon && *name == ':'))
			return false;
	}
	return true;
}

/* Escapes of label values; help texts take all but the quote, which does no harm there. */
static void stat_escape(struct mc_str *out, const char *text)
{
	for (; *text; text++) {
		if (*text == '\n')
			mc_str_puts(out, "\\n");
		else if (*text == '\\' || *text == '"')
			mc_str_appendf(out, "\\%c", *text);
		else
			mc_str_append(out, text, 1);
	}
}

/* @return 0; -MC_E_INVAL; -MC_E_NOMEM; -MC_E_TOO_BIG */
static int stat_labels(const struct mc_stat_label *labels, size_t len, char **ret_text)
{
	struct mc_str out;
	int rc;

	mc_str_init(&out, STAT_LABELS_BYTES_MAX);
	for (size_t i = 0; i < len; i++) {
		if (!stat_is_name(labels[i].key, false)) {
			mc_str_fini(&out);
			return -MC_E_INVAL;
		}
		mc_str_appendf(&out, "%s%s=\"", i ? "," : "", labels[i].key);
		stat_escape(&out, labels[i].value);
		mc_str_puts(&out, "\"");
	}
	rc = mc_str_append(&out, "", 0);
	*ret_text = mc_str_take(&out);
	return rc;
}

static int stat_open(const struct mc_stat_desc *desc, const struct mc_stat_label *labels,
		     size_t labels_len, struct mc_stat **ret_stat)
{
	struct mc_stat *stat = mc_calloc(1, sizeof(*stat));
	struct mc_str help;
	int rc;

	if (!stat)
		return -MC_E_NOMEM;
	stat->kind = desc->kind;
	stat->scale = desc->scale > 0 ? desc->scale : 1;
	stat->le_first = desc->le_last ? desc->le_first : STAT_LE_FIRST;
	stat->le_last = desc->le_last ? desc->le_last : STAT_LE_LAST;
	stat->name = mc_strdup(desc->name);
	mc_str_init(&help, STAT_LABELS_BYTES_MAX);
	stat_escape(&help, desc->help);
	stat->help = mc_str_take(&help);
	rc = stat_labels(labels, labels_len, &stat->labels);
	if (rc == 0 && (!stat->name || !stat->help))
		rc = -MC_E_NOMEM;
	if (rc < 0) {
		stat_close(stat);
		return rc;
	}
	*ret_stat = stat;
	return 0;
}

static int stat_order(const struct mc_stat *a, const struct mc_stat *b)
{
	int order = strcmp(a->name, b->name);

	return order ? order : strcmp(a->labels, b->labels);
}

/* Caller holds the lock. Place of the first metric that is not before `stat`. */
static size_t stat_place(const struct mc_stat_reg *reg, const struct mc_stat *stat)
{
	size_t low = 0;
	size_t high = reg->len;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (stat_order(reg->stats[mid], stat) < 0)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

/* Caller holds the lock. */
static int stat_insert(struct mc_stat_reg *reg, struct mc_stat *stat)
{
	size_t at = stat_place(reg, stat);
	void *stats = reg->stats;
	int rc;

	if (at < reg->len && stat_order(reg->stats[at], stat) == 0)
		return -MC_E_EXIST;
	for (size_t i = at ? at - 1 : 0; i < reg->len && i <= at; i++) {
		if (strcmp(reg->stats[i]->name, stat->name) == 0 &&
		    reg->stats[i]->kind != stat->kind)
			return -MC_E_INVAL;
	}
	if (reg->len >= reg->max)
		return -MC_E_LIMIT;
	rc = mc_array_grow(&stats, &reg->cap, reg->len + 1, reg->max, sizeof(struct mc_stat *));
	if (rc < 0)
		return rc;
	reg->stats = stats;
	memmove(&reg->stats[at + 1], &reg->stats[at], (reg->len - at) * sizeof(struct mc_stat *));
	reg->stats[at] = stat;
	reg->len++;
	return 0;
}

int mc_stat_add(struct mc_stat_reg *reg, const struct mc_stat_desc *desc,
		const struct mc_stat_label *labels, size_t labels_len, const void *numbers,
		struct mc_stat **ret_stat)
{
	struct mc_stat *stat;
	int rc;

	mc_assert(desc->kind < MC_STAT_KIND_COUNT && numbers);
	if (!stat_is_name(desc->name, true) || desc->le_last > 63 || desc->le_first > desc->le_last)
		return -MC_E_INVAL;
	rc = stat_open(desc, labels, labels_len, &stat);
	if (rc < 0)
		return rc;
	stat->numbers = numbers;
	pthread_mutex_lock(&reg->lock);
	rc = stat_insert(reg, stat);
	pthread_mutex_unlock(&reg->lock);
	if (rc < 0) {
		stat_close(stat);
		return rc;
	}
	if (ret_stat)
		*ret_stat = stat;
	return 0;
}

void mc_stat_del(struct mc_stat_reg *reg, struct mc_stat *stat)
{
	size_t at;

	if (!stat)
		return;
	pthread_mutex_lock(&reg->lock);
	at = stat_place(reg, stat);
	mc_assert(at < reg->len && reg->stats[at] == stat);
	reg->len--;
	memmove(&reg->stats[at], &reg->stats[at + 1], (reg->len - at) * sizeof(struct mc_stat *));
	pthread_mutex_unlock(&reg->lock);
	stat_close(stat);
}

/* name<suffix>{labels} and a blank. */
static void stat_series(struct mc_str *out, const struct mc_stat *stat, const char *suffix)
{
	mc_str_appendf(out, "%s%s", stat->name, suffix);
	if (stat->labels[0])
		mc_str_appendf(out, "{%s}", stat->labels);
	mc_str_puts(out, " ");
}

/* Whole numbers stay exact. */
static void stat_number(struct mc_str *out, const struct mc_stat *stat, uint64_t n)
{
	if (stat->scale == 1)
		mc_str_appendf(out, "%" PRIu64 "\n", n);
	else
		mc_str_appendf(out, "%.9g\n", (double)n * stat->scale);
}

static void stat_render_hist(struct mc_str *out, const struct mc_stat *stat)
{
	const struct mc_hist *h = stat->numbers;
	const char *comma = stat->labels[0] ? "," : "";
	uint64_t sum = atomic_load_explicit(&h->sum, memory_order_relaxed);
	uint64_t count = 0;
	unsigned int at = 0;

	for (unsigned int k = stat->le_first; k <= stat->le_last; k++) {
		unsigned int last = mc_hist_bucket(1ull << k);

		for (; at <= last; at++)
			count += atomic_load_explicit(&h->buckets[at], memory_order_relaxed);
		mc_str_appendf(out, "%s_bucket{%s%sle=\"%.9g\"} %" PRIu64 "\n", stat->name,
			       stat->labels, comma, (double)(1ull << k) * stat->scale, count);
	}
	for (; at < MC_HIST_BUCKETS; at++)
		count += atomic_load_explicit(&h->buckets[at], memory_order_relaxed);
	mc_str_appendf(out, "%s_bucket{%s%sle=\"+Inf\"} %" PRIu64 "\n", stat->name, stat->labels,
		       comma, count);
	stat_series(out, stat, "_sum");
	stat_number(out, stat, sum);
	stat_series(out, stat, "_count");
	mc_str_appendf(out, "%" PRIu64 "\n", count);
}

static void stat_render_one(struct mc_str *out, const struct mc_stat *stat)
{
	int64_t n;

	if (stat->kind == MC_STAT_HIST) {
		stat_render_hist(out, stat);
		return;
	}
	stat_series(out, stat, "");
	if (stat->kind == MC_STAT_COUNTER) {
		stat_number(out, stat, mc_counter_read(stat->numbers));
		return;
	}
	n = mc_gauge_read(stat->numbers);
	if (n < 0)
		mc_str_puts(out, "-");
	stat_number(out, stat, n < 0 ? 0 - (uint64_t)n : (uint64_t)n);
}

int mc_stat_render(struct mc_stat_reg *reg, struct mc_str *out)
{
	static const char *const kinds[] = {
	    [MC_STAT_COUNTER] = "counter",
	    [MC_STAT_GAUGE] = "gauge",
	    [MC_STAT_HIST] = "histogram",
	};
	const char *name = "";

	pthread_mutex_lock(&reg->lock);
	for (size_t i = 0; i < reg->len && out->rc == 0; i++) {
		const struct mc_stat *stat = reg->stats[i];

		if (strcmp(stat->name, name) != 0)
			mc_str_appendf(out, "# HELP %s %s\n# TYPE %s %s\n", stat->name, stat->help,
				       stat->name, kinds[stat->kind]);
		name = stat->name;
		stat_render_one(out, stat);
	}
	pthread_mutex_unlock(&reg->lock);
	return out->rc;
}
