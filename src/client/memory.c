/*
 * memory.c: the user's registered ranges, and memory of the engine's within a budget.
 */
#include "client/priv.h"

#define RANGES_MAX (1u << 20)

struct range {
	void *addr;
	size_t len;
	bool is_ours; /* allocated here */
};

struct mc_cli_memory {
	struct mc_engine *eng;
	pthread_mutex_t mu; /* guards the rest */
	struct range *v;    /* by address */
	size_t n, cap;
	uint64_t left;
};

int mc_cli_memory_open(struct mc_engine *eng, uint64_t bytes_max, struct mc_cli_memory **ret)
{
	struct mc_cli_memory *m = mc_calloc(1, sizeof(*m));

	if (!m)
		return -MC_E_NOMEM;
	m->eng = eng;
	m->left = bytes_max;
	pthread_mutex_init(&m->mu, NULL);
	*ret = m;
	return 0;
}

void mc_cli_memory_close(struct mc_cli_memory *m)
{
	if (!m)
		return;
	for (size_t i = 0; i < m->n; i++)
		if (m->v[i].is_ours)
			(void)mc_mem_free(m->eng, m->v[i].addr);
		else
			(void)mc_mem_unreg(m->eng, m->v[i].addr);
	mc_free(m->v);
	pthread_mutex_destroy(&m->mu);
	mc_free(m);
}

/* First range that does not begin before addr. Under mu. */
static size_t place_of(const struct mc_cli_memory *m, const void *addr)
{
	size_t lo = 0, hi = m->n;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if ((uintptr_t)m->v[mid].addr < (uintptr_t)addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static struct range *find(struct mc_cli_memory *m, const void *addr)
{
	size_t i = place_of(m, addr);

	return i < m->n && m->v[i].addr == addr ? &m->v[i] : NULL;
}

/* Under mu. */
static int add(struct mc_cli_memory *m, void *addr, size_t len, bool is_ours)
{
	size_t at = place_of(m, addr);
	void *v = m->v;

	if (mc_array_grow(&v, &m->cap, m->n + 1, RANGES_MAX, sizeof(*m->v)) < 0)
		return MC_STORE_INTERNAL_ERROR;
	m->v = v;
	memmove(&m->v[at + 1], &m->v[at], (m->n - at) * sizeof(*m->v));
	m->v[at] = (struct range){addr, len, is_ours};
	m->n++;
	return 0;
}

static void del(struct mc_cli_memory *m, struct range *r)
{
	size_t at = (size_t)(r - m->v);

	memmove(r, r + 1, (m->n - at - 1) * sizeof(*r));
	m->n--;
}

int mc_store_register(struct mc_store *store, void *addr, size_t len)
{
	struct mc_cli_memory *m = store->memory;
	int rc = MC_STORE_INVALID_PARAMS;

	if (!addr || len == 0)
		return rc;
	pthread_mutex_lock(&m->mu);
	if (!find(m, addr)) {
		rc = mc_mem_reg(m->eng, addr, len, NULL, MC_MEM_REMOTE_READ | MC_MEM_REMOTE_WRITE);
		if (rc == 0) {
			rc = add(m, addr, len, false);
			if (rc < 0)
				(void)mc_mem_unreg(m->eng, addr);
		} else {
			rc = rc == -MC_E_INVAL ? MC_STORE_INVALID_PARAMS : MC_STORE_INTERNAL_ERROR;
		}
	}
	pthread_mutex_unlock(&m->mu);
	return rc;
}

/* Take it out of the table. @return its length; 0: there is none of that kind */
static size_t take(struct mc_cli_memory *m, void *addr, bool is_ours)
{
	struct range *r;
	size_t len = 0;

	pthread_mutex_lock(&m->mu);
	r = find(m, addr);
	if (r && r->is_ours == is_ours) {
		len = r->len;
		del(m, r);
	}
	pthread_mutex_unlock(&m->mu);
	return len;
}

int mc_store_unregister(struct mc_store *store, void *addr)
{
	if (take(store->memory, addr, false) == 0)
		return MC_STORE_INVALID_PARAMS;
	return mc_mem_unreg(store->eng, addr) == 0 ? 0 : MC_STORE_INTERNAL_ERROR;
}

void *mc_store_alloc(struct mc_store *store, size_t len)
{
	struct mc_cli_memory *m = store->memory;
	bool has_budget;
	void *addr = NULL;

	len = mc_max(len, (size_t)4096); /* so that it is page-aligned */
	pthread_mutex_lock(&m->mu);
	has_budget = len <= m->left;
	if (has_budget)
		m->left -= len;
	pthread_mutex_unlock(&m->mu);
	if (has_budget)
		addr = mc_mem_alloc(store->eng, len);
	pthread_mutex_lock(&m->mu);
	if (addr && add(m, addr, len, true) < 0) {
		(void)mc_mem_free(store->eng, addr);
		addr = NULL;
	}
	if (has_budget && !addr)
		m->left += len;
	pthread_mutex_unlock(&m->mu);
	return addr;
}

int mc_store_free(struct mc_store *store, void *addr)
{
	struct mc_cli_memory *m = store->memory;
	size_t len = take(m, addr, true);

	if (len == 0)
		return MC_STORE_INVALID_PARAMS;
	if (mc_mem_free(store->eng, addr) < 0)
		return MC_STORE_INTERNAL_ERROR;
	pthread_mutex_lock(&m->mu);
	m->left += len;
	pthread_mutex_unlock(&m->mu);
	return 0;
}
