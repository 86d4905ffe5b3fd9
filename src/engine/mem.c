/*
 * mem.c: registration. Without a metadata service it is a local matter of microseconds: peers ask
 * for the regions they need. With one the descriptor is brought up to date before the call returns,
 * once for a whole batch.
 */
#include <sys/mman.h>

#include "base/fork.h"
#include "base/log.h"
#include "engine/describe.h"
#include "engine/files.h"
#include "engine/hca.h"
#include "xport/shm.h"

#define PUBLISH_NS (10 * MC_NS_PER_S)
#define PART_ALIGN 4096ull

/* A region of its own, at the HCAs, too, unless that is done in parts. */
static int region_add(struct mc_engine *eng, const struct mc_region_desc *like, uint64_t addr,
		      uint64_t len, struct mc_region_info *ret_info)
{
	struct mc_region_desc d = *like;
	int rc;

	d.addr = addr;
	d.len = len;
	if (eng->shm)
		mc_shm_desc_fill(eng->shm, &d);
	if (!d.is_split)
		d.is_read_only = mc_hca_mem_add(eng, d.addr, d.len, d.rights);
	if (d.is_read_only)
		d.rights &= ~(unsigned)MC_RIGHT_WRITE;
	mc_hca_locate(eng, &d);
	rc = mc_region_add(eng->regions, &d, ret_info);
	if (rc < 0 && !d.is_split)
		mc_hca_mem_del(eng, d.addr, d.len);
	return rc;
}

/* Length of the part that begins at addr. Parts end at pages, so that no signal lies in two. */
static uint64_t part_len(const struct mc_engine *eng, uint64_t addr, uint64_t end)
{
	uint64_t most = mc_hca_range_max(eng);

	return end - addr <= most ? end - addr : ((addr + most) & ~(PART_ALIGN - 1)) - addr;
}

static void parts_del(struct mc_engine *eng, uint64_t addr, uint64_t to, uint64_t end)
{
	uint64_t len;

	for (; addr < to; addr += len) {
		len = part_len(eng, addr, end);
		(void)mc_region_del_part(eng->regions, addr, len); /* it is there */
		mc_hca_mem_del(eng, addr, len);
	}
}

static int parts_add(struct mc_engine *eng, const struct mc_region_desc *whole)
{
	uint64_t end = whole->addr + whole->len, at = whole->addr, len;
	struct mc_region_desc d = *whole;
	struct mc_region_info info;
	int rc = 0;

	d.is_split = false;
	d.is_part = true;
	for (; at < end && rc == 0; at += len) {
		len = part_len(eng, at, end);
		rc = region_add(eng, &d, at, len, &info);
		if (rc < 0)
			parts_del(eng, whole->addr, at, end);
	}
	return rc;
}

static int reg_any(struct mc_engine *eng, void *addr, size_t len, const char *location,
		   unsigned rights, struct mc_region_info *ret_info)
{
	struct mc_region_desc d = {.addr = (uintptr_t)addr, .len = len, .rights = rights};
	int rc;

	if (len > UINTPTR_MAX - d.addr ||
	    mc_strlcpy(d.location, sizeof(d.location), location ? location : "*") < 0)
		return -MC_E_INVAL;
	d.is_split = len > mc_hca_range_max(eng);
	rc = region_add(eng, &d, d.addr, d.len, ret_info);
	if (rc < 0 || !d.is_split)
		return rc;
	rc = parts_add(eng, &d);
	if (rc < 0)
		(void)mc_region_del(eng->regions, d.addr); /* it was added just now */
	return rc;
}

static int reg_one(struct mc_engine *eng, void *addr, size_t len, const char *location,
		   unsigned rights)
{
	struct mc_region_info info;

	if (!addr || len == 0 || (rights & ~(unsigned)(MC_MEM_REMOTE_READ | MC_MEM_REMOTE_WRITE)))
		return -MC_E_INVAL;
	return reg_any(eng, addr, len, location, rights, &info);
}

/* No peer touches it from the return on. */
static int unreg_one(struct mc_engine *eng, uint64_t addr)
{
	uint64_t len;
	int rc = mc_region_del_range(eng->regions, addr, &len);

	if (rc < 0)
		return rc;
	if (len > mc_hca_range_max(eng))
		parts_del(eng, addr, addr + len, addr + len);
	else
		mc_hca_mem_del(eng, addr, len);
	mc_files_drop(eng, addr, len);
	return 0;
}

int mc_mem_publish(struct mc_engine *eng, struct mc_diag *diag)
{
	char *json;
	size_t len;
	int rc = 0;

	if (!eng->meta)
		return 0;
	pthread_mutex_lock(&eng->publish_mu);
	if (eng->is_joined)
		rc = mc_describe(eng, mc_describe_has_rdma(eng), (size_t)eng->hs.bytes_max, &json,
				 &len, diag);
	if (eng->is_joined && rc == 0) {
		rc = mc_meta_segment_put(eng->meta, eng->name, json, len, mc_now_ns() + PUBLISH_NS,
					 diag);
		mc_free(json);
	}
	pthread_mutex_unlock(&eng->publish_mu);
	return rc;
}

int mc_mem_reg_batch(struct mc_engine *eng, const struct mc_mem *mem, size_t n,
		     const char *location, unsigned rights)
{
	struct mc_diag diag = {0};
	size_t done = 0;
	int rc = 0;

	if (mc_engine_is_forked(eng))
		return -MC_E_FORKED;
	if (n && !mem)
		return -MC_E_INVAL;
	for (; done < n && rc == 0; done++)
		rc = reg_one(eng, mem[done].addr, mem[done].len, location, rights);
	if (rc < 0)
		done--; /* the one that failed */
	else
		rc = mc_mem_publish(eng, &diag);
	if (rc == 0)
		return 0;
	if (diag.text[0])
		mc_log_warn("registration not published", "cause=\"%s\"", diag.text);
	while (done-- > 0)
		(void)unreg_one(eng, (uintptr_t)mem[done].addr);
	return rc;
}

int mc_mem_reg(struct mc_engine *eng, void *addr, size_t len, const char *location, unsigned rights)
{
	struct mc_mem m = {addr, len};

	return mc_mem_reg_batch(eng, &m, 1, location, rights);
}

int mc_mem_unreg_batch(struct mc_engine *eng, void *const *addr, size_t n)
{
	struct mc_diag diag = {0};
	int rc = 0, first = 0;

	if (mc_engine_is_forked(eng))
		return -MC_E_FORKED;
	if (n && !addr)
		return -MC_E_INVAL;
	for (size_t i = 0; i < n; i++) {
		rc = unreg_one(eng, (uintptr_t)addr[i]);
		if (rc < 0 && first == 0)
			first = rc;
	}
	/* The ranges are gone whatever the service says: an old descriptor only leads to refusals.
	 */
	if (mc_mem_publish(eng, &diag) < 0)
		mc_log_warn("unregistration not published", "cause=\"%s\"", diag.text);
	return first;
}

int mc_mem_unreg(struct mc_engine *eng, void *addr)
{
	return mc_mem_unreg_batch(eng, &addr, 1);
}

/* Where memfds are forbidden: ordinary memory, remembered, so that a foreign pointer is never
 * freed. Much of it is a mapping of its own: a pool takes pages only as it fills. */
struct plain {
	struct mc_list link;
	void *ptr;
	size_t mapped; /* bytes; 0: it is the heap's */
};

#define MAP_MIN ((size_t)1 << 20)

/* @return zeroed memory, or NULL */
static void *map_alloc(size_t len)
{
	void *ptr = mmap(NULL, len, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (ptr == MAP_FAILED)
		return NULL;
	/* As the other kind: a child has no use of it, and it is not copied for one. */
	if (madvise(ptr, len, MADV_DONTFORK) == 0)
		return ptr;
	(void)munmap(ptr, len);
	return NULL;
}

static void *plain_alloc(struct mc_engine *eng, size_t len)
{
	struct plain *p = mc_calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	p->mapped = len >= MAP_MIN ? len : 0;
	p->ptr = p->mapped > 0 ? map_alloc(len) : mc_aligned_alloc(len >= 4096 ? 4096 : 64, len);
	if (!p->ptr) {
		mc_free(p);
		return NULL;
	}
	pthread_mutex_lock(&eng->plain_mu);
	mc_list_push_back(&eng->plain, &p->link);
	pthread_mutex_unlock(&eng->plain_mu);
	return p->ptr;
}

static int plain_free(struct mc_engine *eng, void *ptr)
{
	struct plain *p, *found = NULL;

	pthread_mutex_lock(&eng->plain_mu);
	mc_list_each (p, &eng->plain, link)
		if (p->ptr == ptr)
			found = p;
	if (found)
		mc_list_del(&found->link);
	pthread_mutex_unlock(&eng->plain_mu);
	if (!found)
		return -MC_E_NOENT;
	if (found->mapped > 0)
		(void)munmap(found->ptr, found->mapped);
	else
		mc_free(found->ptr);
	mc_free(found);
	return 0;
}

/* From mc_mem_alloc()? A registration of the caller's own memory must not be touched. */
static bool is_ours(struct mc_engine *eng, void *ptr)
{
	struct mc_region_desc d = {.addr = (uintptr_t)ptr, .len = 1};
	bool is_plain = false;
	struct plain *p;

	if (!ptr)
		return false;
	if (eng->shm) {
		mc_shm_desc_fill(eng->shm, &d);
		return d.kind == MC_MEM_MEMFD;
	}
	pthread_mutex_lock(&eng->plain_mu);
	mc_list_each (p, &eng->plain, link)
		is_plain |= p->ptr == ptr;
	pthread_mutex_unlock(&eng->plain_mu);
	return is_plain;
}

static void *raw_alloc(struct mc_engine *eng, size_t len)
{
	void *ptr;

	if (!eng->shm)
		return plain_alloc(eng, len);
	return mc_shm_alloc(eng->shm, len, &ptr) < 0 ? NULL : ptr;
}

static int raw_free(struct mc_engine *eng, void *ptr)
{
	return eng->shm ? mc_shm_free(eng->shm, ptr) : plain_free(eng, ptr);
}

void *mc_mem_alloc(struct mc_engine *eng, size_t len)
{
	void *ptr;

	if (mc_engine_is_forked(eng) || len == 0)
		return NULL;
	ptr = raw_alloc(eng, len);
	if (!ptr)
		return NULL;
	if (mc_mem_reg(eng, ptr, len, "*", MC_MEM_REMOTE_READ | MC_MEM_REMOTE_WRITE) == 0)
		return ptr;
	(void)raw_free(eng, ptr);
	return NULL;
}

int mc_bounce_alloc(struct mc_engine *eng, size_t len, void **ret_addr,
		    struct mc_region_info *ret_info)
{
	void *ptr = raw_alloc(eng, len);
	int rc;

	if (!ptr)
		return -MC_E_NOMEM;
	rc = reg_any(eng, ptr, len, "*", MC_RIGHT_READ | MC_RIGHT_WRITE | MC_RIGHT_UNLISTED,
		     ret_info);
	if (rc < 0) {
		(void)raw_free(eng, ptr);
		return rc;
	}
	*ret_addr = ptr;
	return 0;
}

void mc_bounce_free(struct mc_engine *eng, void *addr)
{
	if (unreg_one(eng, (uintptr_t)addr) == 0)
		(void)raw_free(eng, addr);
}

int mc_mem_free(struct mc_engine *eng, void *addr)
{
	int rc;

	if (mc_engine_is_forked(eng))
		return -MC_E_FORKED;
	if (!is_ours(eng, addr))
		return -MC_E_NOENT;
	/* All registrations that begin there, the user's own too; he may also have ended ours. */
	do {
		rc = mc_mem_unreg(eng, addr);
	} while (rc == 0);
	if (rc != -MC_E_NOENT)
		return rc;
	return raw_free(eng, addr);
}

static void keep_addr(void *user, const struct mc_region_info *info)
{
	uint64_t *addr = user;

	if (!info->desc.is_part)
		*addr = info->desc.addr;
}

void mc_mem_drop_all(struct mc_engine *eng)
{
	struct plain *p;
	uint64_t addr;

	while (mc_region_count(eng->regions) > 0) {
		mc_region_each(eng->regions, keep_addr, &addr);
		if (unreg_one(eng, addr) < 0)
			return;
	}
	while ((p = mc_list_first(&eng->plain, struct plain, link)))
		(void)plain_free(eng, p->ptr);
}

struct first {
	uint64_t addr;
	bool is_found;
};

static void first_of(void *user, const struct mc_region_info *info)
{
	struct first *f = user;

	if (!f->is_found && !(info->desc.rights & MC_RIGHT_UNLISTED) &&
	    info->desc.kind != MC_MEM_FILE)
		*f = (struct first){info->desc.addr, true};
}

int mc_mem_first(struct mc_engine *eng, uint64_t *ret_addr)
{
	struct first f = {0};

	mc_region_each(eng->regions, first_of, &f);
	*ret_addr = f.addr;
	return 0;
}
