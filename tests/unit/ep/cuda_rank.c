/*
 * cuda_rank.c: copies to and from the GPU around mooncake/ep_cuda.h.
 */
#include "cuda_rank.h"

#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bf16.h"
#include "base/mem.h"
#include "ep/gpu.h"
#include "ep/rows.h"
#include "io/dl.h"

static struct {
	int (*to_gpu)(uint64_t to, const void *from, size_t len);
	int (*to_host)(void *to, uint64_t from, size_t len);
} copies;

static struct mc_gpu gpu; /* of the process: the primary context, as that of a framework */

bool gpu_is_there(void)
{
	struct mc_diag diag = {.text = ""};
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		int rc = mc_ep_cuda_check(&diag);

		if (rc < 0)
			printf("# skipped: %s\n", diag.text);
		fflush(stdout);
		_exit(rc < 0);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) &&
	       WEXITSTATUS(status) == 0;
}

static int load(struct mc_diag *diag)
{
	static const char *const names[] = {"libcuda.so.1", NULL};
	struct mc_dl_sym syms[] = {
	    MC_DL_SYM(__typeof__(copies), to_gpu, "cuMemcpyHtoD_v2"),
	    MC_DL_SYM(__typeof__(copies), to_host, "cuMemcpyDtoH_v2"),
	};
	int rc = mc_gpu_init(&gpu, 0, diag);

	return rc ? rc : mc_dl_load(names, syms, MC_ARRAY_LEN(syms), &copies, NULL, diag);
}

static void *at(uint64_t address)
{
	return (void *)(uintptr_t)address;
}

/* In the context. */
static int alloc_all(struct gpu_rank *r)
{
	const struct mc_ep_shape *s = &r->layer.shape;
	uint64_t n = r->layer.le * (r->layer.room + s->align), entries, rows, scales, extra;
	uint64_t counts, tokens, ranges;
	const struct mc_gpu_api *api = gpu.api;

	entries = (uint64_t)s->tokens_max * s->topk;
	if (api->alloc(&r->rows, (uint64_t)s->tokens_max * s->hidden * 2) ||
	    api->alloc(&r->topk, entries * 8) || api->alloc(&r->weights, entries * 4) ||
	    api->alloc(&r->extra, (uint64_t)s->tokens_max * 4) || api->alloc(&r->active, 64 * 4) ||
	    api->alloc(&r->made, n * s->hidden * 2) ||
	    api->alloc(&r->sums, (uint64_t)s->tokens_max * s->hidden * 2) ||
	    api->alloc(&rows, n * s->hidden * 2) || api->alloc(&scales, n * r->layer.groups * 4) ||
	    api->alloc(&extra, n * 4) || api->alloc(&counts, r->layer.le * 4ull) ||
	    api->alloc(&tokens, n * 4) || api->alloc(&ranges, s->experts * 8ull))
		return -MC_E_NOMEM;
	r->got = (struct mc_ep_arrived){at(rows),
					at(scales),
					at(extra),
					at(counts),
					at(tokens),
					at(ranges),
					r->layer.got.is_packed};
	return 0;
}

int gpu_rank_open(struct gpu_rank *r, struct mc_coll *coll, const struct mc_ep_shape *shape,
		  uint32_t rank, enum mc_ep_format format, bool is_packed)
{
	struct mc_diag *diag = &r->layer.diag;
	int rc;

	*r = (struct gpu_rank){.layer = layer_of(NULL, shape, rank, format, is_packed)};
	rc = load(diag);
	if (rc == 0)
		rc = mc_gpu_enter(&gpu, diag);
	if (rc == 0)
		rc = alloc_all(r);
	return rc ? rc : mc_ep_cuda_open(coll, 0, mc_ep_cuda_slot_bytes(shape, 2, 4), diag, &r->ep);
}

void gpu_rank_close(struct gpu_rank *r)
{
	const uint64_t all[] = {r->rows,
				r->topk,
				r->weights,
				r->extra,
				r->active,
				r->made,
				r->sums,
				(uintptr_t)r->got.rows,
				(uintptr_t)r->got.scales,
				(uintptr_t)r->got.extra,
				(uintptr_t)r->got.counts,
				(uintptr_t)r->got.tokens,
				(uintptr_t)r->got.ranges};

	mc_ep_cuda_close(r->ep);
	for (unsigned i = 0; i < MC_ARRAY_LEN(all); i++)
		(void)gpu.api->free(all[i]);
	mc_gpu_leave(&gpu);
	mc_gpu_fini(&gpu);
	layer_free(&r->layer);
}

/* ---- halves ---- */

static int to_gpu(uint64_t to, const void *from, uint64_t len)
{
	return len && copies.to_gpu(to, from, len) ? -MC_E_DEVICE : 0;
}

static int to_host(void *to, const void *from, uint64_t len)
{
	return len && copies.to_host(to, (uintptr_t)from, len) ? -MC_E_DEVICE : 0;
}

static struct mc_ep_patience patience_of(struct gpu_rank *r, const int32_t *active,
					 uint64_t timeout_ns)
{
	if (active && to_gpu(r->active, active, r->layer.shape.ranks * 4ull) < 0)
		active = NULL;
	return (struct mc_ep_patience){active ? at(r->active) : NULL, timeout_ns};
}

int gpu_dispatch_begin(struct gpu_rank *r, const struct tokens *t, const int32_t *active,
		       uint64_t timeout_ns, struct mc_ep_cuda_half **ret)
{
	const struct mc_ep_shape *s = &r->layer.shape;
	struct mc_ep_patience patience = patience_of(r, active, timeout_ns);
	struct mc_ep_rows rows = {r->layer.format, 2, 4, at(r->rows), at(r->extra)};
	uint64_t entries = (uint64_t)s->tokens * s->topk;
	int rc;

	rc = to_gpu(r->rows, t->rows, (uint64_t)s->tokens * s->hidden * 2);
	rc = rc ? rc : to_gpu(r->topk, t->topk, entries * 8);
	rc = rc ? rc : to_gpu(r->weights, t->weights, entries * 4);
	rc = rc ? rc : to_gpu(r->extra, t->extra, s->tokens * 4ull);
	return rc ? rc
		  : mc_ep_cuda_dispatch_begin(r->ep, s, &rows, at(r->topk), &patience, NULL,
					      &r->layer.diag, ret);
}

static int result(struct gpu_rank *r, bool is_combine, int32_t *active, uint64_t *ret_ranks)
{
	struct mc_coll_result result;
	int rc = mc_ep_cuda_result(r->ep, is_combine, &r->layer.diag, &result);

	*ret_ranks = result.ranks;
	if (rc == 0 && active)
		rc = to_host(active, at(r->active), r->layer.shape.ranks * 4ull);
	return rc;
}

int gpu_dispatch_end(struct gpu_rank *r, struct mc_ep_cuda_half *h, int32_t *active)
{
	struct layer *l = &r->layer;
	uint64_t n = l->le * (l->room + l->shape.align);
	int rc = mc_ep_cuda_dispatch_end(h, &r->got, NULL, &l->diag);

	rc = rc ? rc : result(r, false, active, &l->there);
	rc = rc ? rc
		: to_host(l->got.rows, r->got.rows,
			  n * l->shape.hidden * (l->format == MC_EP_SAME ? 2 : 1));
	rc = rc ? rc : to_host(l->got.scales, r->got.scales, n * l->groups * 4);
	rc = rc ? rc : to_host(l->got.extra, r->got.extra, n * 4);
	rc = rc ? rc : to_host(l->got.counts, r->got.counts, l->le * 4ull);
	rc = rc ? rc : to_host(l->got.tokens, r->got.tokens, n * 4);
	return rc ? rc : to_host(l->got.ranges, r->got.ranges, l->shape.experts * 8ull);
}

bool gpu_row_is(const struct gpu_rank *r, uint32_t expert, uint64_t at_row, const uint16_t *row)
{
	const struct layer *l = &r->layer;
	uint64_t place = expert * l->room + at_row;
	const uint8_t *codes = (const uint8_t *)l->got.rows + place * l->shape.hidden;
	uint8_t want[1024];
	float scales[8];
	bool ok = true;

	mc_ep_quantize(row, l->shape.hidden, l->format == MC_EP_FP8_POW2, want, scales);
	for (uint32_t g = 0; g < l->groups; g++)
		ok = ok && mc_f32_bits(layer_scale(l, expert, at_row, g)) == mc_f32_bits(scales[g]);
	return ok && memcmp(codes, want, l->shape.hidden) == 0;
}

int gpu_compute(struct gpu_rank *r, bool is_lent)
{
	struct layer *l = &r->layer;
	struct mc_ep_patience patience = {NULL, MC_EP_NEVER};
	uint64_t n = l->le * (l->room + l->shape.align);
	uint16_t *made = at(r->made);
	int rc = 0;

	layer_compute(l);
	if (is_lent)
		rc = mc_ep_cuda_combine_rows(r->ep, &l->shape, &patience, NULL, &l->diag, &made);
	if (is_lent && rc == 0) {
		/* Where the window ends, so does what may be written. */
		n = l->le * l->room;
		r->lent = (uintptr_t)made;
	}
	return rc ? rc : to_gpu((uintptr_t)made, l->rows, n * l->shape.hidden * 2);
}

int gpu_combine_begin(struct gpu_rank *r, bool is_kept, const int32_t *active, uint64_t timeout_ns,
		      struct mc_ep_cuda_half **ret)
{
	struct mc_ep_patience patience = patience_of(r, active, timeout_ns);

	uint64_t made = r->lent ? r->lent : r->made;

	r->lent = 0;
	return mc_ep_cuda_combine_begin(r->ep, &r->layer.shape, at(made), is_kept, at(r->topk),
					r->got.ranges, &patience, NULL, &r->layer.diag, ret);
}

int gpu_combine_end(struct gpu_rank *r, struct mc_ep_cuda_half *h, int32_t *active)
{
	struct layer *l = &r->layer;
	int rc = mc_ep_cuda_combine_end(h, at(r->weights), at(r->sums), NULL, &l->diag), copied;

	rc = rc ? rc : result(r, true, active, &l->back);
	copied = to_host(l->out, at(r->sums), (uint64_t)l->shape.tokens * l->shape.hidden * 2);
	return rc ? rc : copied;
}
