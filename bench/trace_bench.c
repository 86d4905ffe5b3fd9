/*
 * trace_bench.c: which share of a trace's blocks each eviction policy serves from a pool of this
 * size.
 *
 * A trace is JSON, a request a line, in the order of time: {"timestamp": ms, "input_length":
 * tokens, "hash_ids": [...]} with one id for each block of --block tokens, root first. A hit counts
 * when all blocks before it hit: an engine can use no others. The answer is JSON on stdout.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "trace_policies.h"

#define LINE_MAX_BYTES (16u << 20)
#define BLOCKS_MAX (1u << 20) /* a request */
#define CAPACITIES_MAX 32

struct reader {
	const char *path;
	struct trace t;
	size_t cap;
	uint64_t **ids; /* of requests, before they are made dense */
	size_t ids_cap;
	uint64_t block_tokens;
};

static int line_read(struct reader *rd, const char *line, size_t len, struct mc_diag *diag)
{
	const struct mc_json_limits limits = {.bytes_max = LINE_MAX_BYTES, .depth_max = 4};
	struct trace_request r = {0};
	json_t *json, *ids;
	uint64_t tokens = 0;
	int rc = mc_json_parse(line, len, &limits, &json, diag);

	if (rc < 0)
		return rc;
	rc = mc_json_get_u64(json, "timestamp", UINT64_MAX >> 1, &r.at_ms, diag);
	if (rc == 0)
		rc = mc_json_get_u64(json, "input_length", UINT64_MAX >> 1, &tokens, diag);
	if (rc == 0)
		rc = mc_json_get_array(json, "hash_ids", BLOCKS_MAX, &ids, diag);
	if (rc == 0)
		rc = mc_array_grow((void **)&rd->t.requests, &rd->cap, rd->t.n + 1, SIZE_MAX / 64,
				   sizeof(*rd->t.requests));
	if (rc == 0)
		rc = mc_array_grow((void **)&rd->ids, &rd->ids_cap, rd->t.n + 1, SIZE_MAX / 64,
				   sizeof(*rd->ids));
	if (rc == 0) {
		r.n = (uint32_t)json_array_size(ids);
		r.nstored = r.n && tokens % rd->block_tokens ? r.n - 1 : r.n;
		r.blocks = mc_calloc(r.n + 1u, sizeof(*r.blocks));
		r.next = mc_calloc(r.n + 1u, sizeof(*r.next));
		rd->ids[rd->t.n] = mc_calloc(r.n + 1u, sizeof(**rd->ids));
		rd->t.requests[rd->t.n] = r;
		rc = r.blocks && r.next && rd->ids[rd->t.n] ? 0 : -MC_E_NOMEM;
		rd->t.n++;
	}
	for (uint32_t i = 0; i < r.n && rc == 0; i++) {
		const json_t *id = json_array_get(ids, i);

		if (!json_is_integer(id)) {
			mc_diag_set(diag, "hash_ids[%u] is not an integer", i);
			rc = -MC_E_PROTO;
		} else {
			rd->ids[rd->t.n - 1][i] = (uint64_t)json_integer_value(id);
		}
	}
	rd->t.nrefs += r.n;
	json_decref(json);
	return rc;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* Ids become numbers from 0, and every use learns of the next. */
static int make_dense(struct reader *rd)
{
	uint64_t *all = mc_calloc(rd->t.nrefs + 1, sizeof(*all)), *next;
	size_t n = 0, unique = 0;

	if (!all)
		return -MC_E_NOMEM;
	for (size_t i = 0; i < rd->t.n; i++)
		for (uint32_t d = 0; d < rd->t.requests[i].n; d++)
			all[n++] = rd->ids[i][d];
	qsort(all, n, sizeof(*all), by_value);
	for (size_t i = 0; i < n; i++)
		if (i == 0 || all[i] != all[unique - 1])
			all[unique++] = all[i];
	rd->t.nblocks = (uint32_t)unique;
	next = mc_calloc(unique + 1, sizeof(*next));
	for (size_t i = 0; i < unique && next; i++)
		next[i] = UINT64_MAX;
	for (size_t i = rd->t.n; i-- > 0 && next;)
		for (uint32_t d = 0; d < rd->t.requests[i].n; d++) {
			const uint64_t *at =
			    bsearch(&rd->ids[i][d], all, unique, sizeof(*all), by_value);
			uint32_t block = (uint32_t)(at - all);

			rd->t.requests[i].blocks[d] = block;
			rd->t.requests[i].next[d] = next[block];
			next[block] = i;
		}
	mc_free(all);
	mc_free(next);
	return next ? 0 : -MC_E_NOMEM;
}

static int trace_read(struct reader *rd)
{
	FILE *f = fopen(rd->path, "r");
	struct mc_diag diag = {0};
	char *line = NULL;
	size_t cap = 0, number = 0;
	ssize_t len;
	int rc = 0;

	if (!f) {
		(void)fprintf(stderr, "%s: %s\n", rd->path, strerror(errno));
		return -MC_E_NOENT;
	}
	while (rc == 0 && (len = getline(&line, &cap, f)) > 0) {
		number++;
		if (len > 1)
			rc = line_read(rd, line, (size_t)len, &diag);
		if (rc < 0)
			(void)fprintf(stderr, "%s:%zu: %s\n", rd->path, number,
				      diag.text[0] ? diag.text : mc_err_text(rc));
	}
	free(line);
	(void)fclose(f);
	if (rc == 0 && rd->t.nrefs == 0) {
		(void)fprintf(stderr, "%s: no request\n", rd->path);
		rc = -MC_E_PROTO;
	}
	if (rc == 0)
		rc = make_dense(rd);
	return rc;
}

static void trace_free(struct reader *rd)
{
	for (size_t i = 0; i < rd->t.n; i++) {
		mc_free(rd->t.requests[i].blocks);
		mc_free(rd->t.requests[i].next);
		mc_free(rd->ids[i]);
	}
	mc_free(rd->t.requests);
	mc_free(rd->ids);
}

static int play_all(const struct trace *t, const size_t *capacities, size_t n)
{
	(void)printf("{\"requests\": %zu, \"refs\": %" PRIu64 ", \"blocks\": %u, \"capacities\": [",
		     t->n, t->nrefs, t->nblocks);
	for (size_t c = 0; c < n; c++)
		(void)printf("%s%zu", c ? ", " : "", capacities[c]);
	(void)printf("], \"hit_share\": {");
	for (size_t p = 0; p < trace_policies_n; p++) {
		(void)printf("%s\n  \"%s\": [", p ? "," : "", trace_policies[p].name);
		for (size_t c = 0; c < n; c++) {
			uint64_t hits = trace_policies[p].run(t, capacities[c]);

			if (hits == UINT64_MAX) {
				(void)fprintf(stderr, "out of memory\n");
				return 1;
			}
			(void)printf("%s%.5f", c ? ", " : "", (double)hits / (double)t->nrefs);
			(void)fflush(stdout);
		}
		(void)printf("]");
	}
	(void)printf("}}\n");
	return 0;
}

static int usage(int code)
{
	(void)fprintf(code ? stderr : stdout,
		      "usage: trace_bench [--block TOKENS] TRACE.jsonl [BLOCKS ...]\n"
		      "BLOCKS: sizes of the pool; default 1000 3000 10000 30000 50000 100000,\n"
		      "as far as the trace has more\n");
	return code;
}

static bool number_read(const char *text, uint64_t max, uint64_t *ret)
{
	char *end;

	errno = 0;
	*ret = strtoull(text, &end, 10);
	return text[0] >= '0' && text[0] <= '9' && *end == '\0' && errno == 0 && *ret >= 1 &&
	       *ret <= max;
}

int main(int argc, char **argv)
{
	static const size_t defaults[] = {1000, 3000, 10000, 30000, 50000, 100000};
	struct reader rd = {.block_tokens = 512};
	size_t capacities[CAPACITIES_MAX], n = 0;
	uint64_t v;
	int i = 1, code = 1;

	if (i < argc && strcmp(argv[i], "--help") == 0)
		return usage(0);
	if (i + 1 < argc && strcmp(argv[i], "--block") == 0) {
		if (!number_read(argv[i + 1], UINT32_MAX, &rd.block_tokens))
			return usage(2);
		i += 2;
	}
	if (i >= argc || argv[i][0] == '-')
		return usage(2);
	rd.path = argv[i++];
	for (; i < argc; i++) {
		if (n == CAPACITIES_MAX || !number_read(argv[i], UINT32_MAX, &v))
			return usage(2);
		capacities[n++] = (size_t)v;
	}
	if (trace_read(&rd) == 0) {
		for (size_t k = 0, given = n; k < MC_ARRAY_LEN(defaults) && given == 0; k++)
			if (defaults[k] < rd.t.nblocks)
				capacities[n++] = defaults[k];
		code = play_all(&rd.t, capacities, n);
	}
	trace_free(&rd);
	return code;
}
