/*
 * segdesc_decode.c: JSON to a descriptor. Everything is copied into one arena, so the JSON tree
 * (ten times as large) goes away at once, and freeing is one walk over a few blocks.
 */
#include "disco/segdesc.h"

#include <string.h>

#include "base/json.h"
#include "base/mem.h"
#include "base/opt.h"

#define ARENA_BLOCK_BYTES 16384u

struct arena_block {
	struct arena_block *next;
	size_t used, cap;
	char bytes[] __attribute__((aligned(16)));
};

/* The descriptor and what it points to. */
struct owned {
	struct mc_segdesc desc;
	struct arena_block *blocks;
};

struct decoder {
	struct owned *own;
	struct mc_diag *diag;
};

static void *arena_take(struct owned *own, size_t count, size_t size)
{
	struct arena_block *b = own->blocks;
	size_t len, cap;
	void *p;

	if (__builtin_mul_overflow(count, size, &len) || len > SIZE_MAX - ARENA_BLOCK_BYTES)
		return NULL;
	len = (len + 15) & ~(size_t)15;
	if (!b || b->cap - b->used < len) {
		cap = mc_max(len, (size_t)ARENA_BLOCK_BYTES);
		b = mc_calloc(1, sizeof(*b) + cap);
		if (!b)
			return NULL;
		b->cap = cap;
		b->next = own->blocks;
		own->blocks = b;
	}
	p = b->bytes + b->used;
	b->used += len;
	return p;
}

/* A copy of a text that is not empty. */
static int copy_text(struct decoder *d, const char *key, const char *text, const char **ret)
{
	size_t len = strlen(text);
	char *copy;

	if (len == 0 || len > MC_SEGDESC_TEXT_MAX) {
		mc_diag_set(d->diag, "\"%s\" has %zu bytes, not 1 to %u", key, len,
			    MC_SEGDESC_TEXT_MAX);
		return len ? -MC_E_TOO_BIG : -MC_E_PROTO;
	}
	copy = arena_take(d->own, len + 1, 1);
	if (!copy)
		return -MC_E_NOMEM;
	memcpy(copy, text, len + 1);
	*ret = copy;
	return 0;
}

static int need_text(struct decoder *d, const json_t *obj, const char *key, const char **ret)
{
	const char *text;
	int rc = mc_json_get_str(obj, key, &text, d->diag);

	return rc < 0 ? rc : copy_text(d, key, text, ret);
}

/* "" when the member is missing or empty. */
static int take_text(struct decoder *d, const json_t *obj, const char *key, const char **ret)
{
	const char *text = "";
	int rc = 0;

	*ret = "";
	if (mc_json_has(obj, key))
		rc = mc_json_get_str(obj, key, &text, d->diag);
	if (rc < 0 || !text[0])
		return rc;
	return copy_text(d, key, text, ret);
}

/* 0 when the member is missing. */
static int take_u64(struct decoder *d, const json_t *obj, const char *key, uint64_t max,
		    uint64_t *ret)
{
	*ret = 0;
	return mc_json_has(obj, key) ? mc_json_get_u64(obj, key, max, ret, d->diag) : 0;
}

/* An array with its length; NULL and 0 when the member is missing. */
static int take_array(struct decoder *d, const json_t *obj, const char *key, size_t max,
		      json_t **ret, size_t *ret_n)
{
	int rc;

	*ret = NULL;
	*ret_n = 0;
	if (!mc_json_has(obj, key))
		return 0;
	if (json_array_size(json_object_get(obj, key)) > max) {
		mc_diag_set(d->diag, "\"%s\" has %zu elements, the limit is %zu", key,
			    json_array_size(json_object_get(obj, key)), max);
		return -MC_E_TOO_BIG;
	}
	rc = mc_json_get_array(obj, key, max, ret, d->diag);
	if (rc == 0)
		*ret_n = json_array_size(*ret);
	return rc;
}

static int take_keys(struct decoder *d, const json_t *obj, const char *key, const uint64_t **ret,
		     size_t *ret_n)
{
	json_t *arr;
	uint64_t *keys;
	int rc;

	*ret = NULL;
	rc = take_array(d, obj, key, MC_SEGDESC_DEVICES_MAX, &arr, ret_n);
	if (rc < 0 || *ret_n == 0)
		return rc;
	keys = arena_take(d->own, *ret_n, sizeof(*keys));
	if (!keys)
		return -MC_E_NOMEM;
	for (size_t i = 0; i < *ret_n; i++) {
		const json_t *v = json_array_get(arr, i);

		if (!json_is_integer(v) || json_integer_value(v) < 0) {
			mc_diag_set(d->diag, "\"%s\"[%zu] is no key >= 0", key, i);
			return -MC_E_PROTO;
		}
		keys[i] = (uint64_t)json_integer_value(v);
	}
	*ret = keys;
	return 0;
}

static int decode_buffer(struct decoder *d, const json_t *obj, const char *last_name,
			 struct mc_segdesc_buffer *b)
{
	size_t nrkeys = 0, nlkeys = 0, ndevices = d->own->desc.ndevices;
	const char *name;
	uint64_t end;
	int rc;

	if ((rc = mc_json_get_str(obj, "name", &name, d->diag)) < 0)
		return rc;
	/* Over TCP every buffer carries the segment's name: keep one copy. */
	if (last_name && strcmp(name, last_name) == 0)
		b->name = last_name;
	else if ((rc = copy_text(d, "name", name, &b->name)) < 0)
		return rc;
	if ((rc = mc_json_get_u64(obj, "addr", INT64_MAX, &b->addr, d->diag)) < 0 ||
	    (rc = mc_json_get_u64(obj, "length", INT64_MAX, &b->len, d->diag)) < 0 ||
	    (rc = take_keys(d, obj, "rkey", &b->rkey, &nrkeys)) < 0 ||
	    (rc = take_keys(d, obj, "lkey", &b->lkey, &nlkeys)) < 0)
		return rc;
	if (b->addr == 0 || b->len == 0 || __builtin_add_overflow(b->addr, b->len, &end) ||
	    end > INT64_MAX) {
		mc_diag_set(d->diag, "\"addr\" 0x%llx with \"length\" %llu is no range of memory",
			    (unsigned long long)b->addr, (unsigned long long)b->len);
		return -MC_E_PROTO;
	}
	b->nkeys = (uint32_t)mc_max(nrkeys, nlkeys);
	if ((nrkeys && nlkeys && nrkeys != nlkeys) || (b->nkeys && b->nkeys != ndevices)) {
		mc_diag_set(d->diag, "%zu \"rkey\" and %zu \"lkey\" for %zu devices", nrkeys,
			    nlkeys, ndevices);
		return -MC_E_PROTO;
	}
	return 0;
}

static int decode_buffers(struct decoder *d, const json_t *root)
{
	struct mc_segdesc *desc = &d->own->desc;
	const char *last = NULL;
	json_t *arr;
	size_t n;
	int rc;

	rc = take_array(d, root, "buffers", MC_SEGDESC_BUFFERS_MAX, &arr, &n);
	if (rc < 0 || n == 0)
		return rc;
	desc->buffers = arena_take(d->own, n, sizeof(*desc->buffers));
	if (!desc->buffers)
		return -MC_E_NOMEM;
	for (size_t i = 0; i < n; i++) {
		rc = decode_buffer(d, json_array_get(arr, i), last, &desc->buffers[i]);
		if (rc < 0) {
			mc_diag_wrap(d->diag, "buffers[%zu]", i);
			return rc;
		}
		last = desc->buffers[i].name;
	}
	desc->nbuffers = n;
	return 0;
}

static int decode_devices(struct decoder *d, const json_t *root)
{
	struct mc_segdesc *desc = &d->own->desc;
	uint64_t lid;
	json_t *arr;
	size_t n;
	int rc;

	rc = take_array(d, root, "devices", MC_SEGDESC_DEVICES_MAX, &arr, &n);
	if (rc < 0 || n == 0)
		return rc;
	desc->devices = arena_take(d->own, n, sizeof(*desc->devices));
	if (!desc->devices)
		return -MC_E_NOMEM;
	for (size_t i = 0; i < n; i++) {
		struct mc_segdesc_device *dev = &desc->devices[i];
		const json_t *obj = json_array_get(arr, i);

		if ((rc = need_text(d, obj, "name", &dev->name)) < 0 ||
		    (rc = take_text(d, obj, "gid", &dev->gid)) < 0 ||
		    (rc = take_u64(d, obj, "lid", UINT16_MAX, &lid)) < 0) {
			mc_diag_wrap(d->diag, "devices[%zu]", i);
			return rc;
		}
		dev->lid = (uint16_t)lid;
	}
	desc->ndevices = n;
	return 0;
}

static int decode_rails(struct decoder *d, const json_t *obj)
{
	struct mc_segdesc_ext *ext = &d->own->desc.ext;
	json_t *arr;
	size_t n;
	int rc;

	rc = take_array(d, obj, "rails", MC_SEGDESC_RAILS_MAX, &arr, &n);
	if (rc < 0 || n == 0)
		return rc;
	ext->rails = arena_take(d->own, n, sizeof(*ext->rails));
	if (!ext->rails)
		return -MC_E_NOMEM;
	for (size_t i = 0; i < n; i++) {
		const json_t *v = json_array_get(arr, i);

		if (!json_is_string(v)) {
			mc_diag_set(d->diag, "\"rails\"[%zu] is no address", i);
			return -MC_E_PROTO;
		}
		rc = copy_text(d, "rails", json_string_value(v), &ext->rails[i]);
		if (rc < 0)
			return rc;
	}
	ext->nrails = n;
	return 0;
}

/* The epoch may pass 2^53, so it travels as text, which every JSON reader keeps exactly. */
static int decode_ext(struct decoder *d, const json_t *root)
{
	struct mc_segdesc_ext *ext = &d->own->desc.ext;
	const char *epoch;
	uint64_t version;
	json_t *obj;
	int rc;

	if (!mc_json_has(root, "mc"))
		return 0;
	if ((rc = mc_json_get_object(root, "mc", &obj, d->diag)) < 0)
		return rc;
	if ((rc = mc_json_get_u64(obj, "v", UINT32_MAX, &version, d->diag)) < 0 ||
	    (rc = mc_json_get_str(obj, "epoch", &epoch, d->diag)) < 0 ||
	    (rc = take_u64(d, obj, "caps", (1ull << 53) - 1, &ext->caps)) < 0 ||
	    (rc = decode_rails(d, obj)) < 0) {
		mc_diag_wrap(d->diag, "mc");
		return rc;
	}
	if (version == 0) {
		mc_diag_set(d->diag, "mc: \"v\" is 0");
		return -MC_E_PROTO;
	}
	if (mc_opt_parse_u64(epoch, &ext->epoch) < 0) {
		mc_diag_set(d->diag, "mc: \"epoch\" \"%.32s\" is no number below 2^64", epoch);
		return -MC_E_PROTO;
	}
	ext->version = (uint32_t)version;
	return 0;
}

/* Upstream writes a text, or an array when it was built with several transports. */
static int decode_protocol(struct decoder *d, const json_t *root)
{
	static const char *const no_ranges[] = {"nvmeof", "cxl", "ascend", "ubshmem"};
	const json_t *v = json_object_get(root, "protocol"), *best = v;

	if (json_is_array(v)) {
		best = json_array_get(v, 0);
		for (size_t i = 0; i < json_array_size(v); i++) {
			const json_t *e = json_array_get(v, i);

			if (json_is_string(e) && strcmp(json_string_value(e), "tcp") == 0)
				best = e;
		}
	}
	if (!json_is_string(best)) {
		mc_diag_set(d->diag, "\"protocol\" is missing, or no text and no array of texts");
		return -MC_E_PROTO;
	}
	for (size_t i = 0; i < MC_ARRAY_LEN(no_ranges); i++) {
		if (strcmp(json_string_value(best), no_ranges[i]) == 0) {
			mc_diag_set(d->diag, "protocol \"%s\" is not supported", no_ranges[i]);
			return -MC_E_UNSUPPORTED;
		}
	}
	return copy_text(d, "protocol", json_string_value(best), &d->own->desc.protocol);
}

static int decode_matrix(struct decoder *d, const json_t *root)
{
	const char **ret = &d->own->desc.priority_matrix;
	json_t *matrix;
	struct mc_str text;
	char *copy;
	int rc;

	*ret = "";
	if (!mc_json_has(root, "priority_matrix"))
		return 0;
	rc = mc_json_get_object(root, "priority_matrix", &matrix, d->diag);
	if (rc < 0)
		return rc;
	mc_str_init(&text, MC_SEGDESC_BYTES_MAX);
	rc = mc_json_dump(matrix, &text);
	copy = rc == 0 ? arena_take(d->own, text.len + 1, 1) : NULL;
	if (copy)
		*ret = memcpy(copy, mc_str_text(&text), text.len);
	else if (rc == 0)
		rc = -MC_E_NOMEM;
	mc_str_fini(&text);
	return rc;
}

static int decode_root(struct decoder *d, const json_t *root)
{
	struct mc_segdesc *desc = &d->own->desc;
	uint64_t port, proto;
	int rc;

	if ((rc = need_text(d, root, "name", &desc->name)) < 0 ||
	    (rc = take_text(d, root, "timestamp", &desc->timestamp)) < 0 ||
	    (rc = take_text(d, root, "rdma_server_name", &desc->rdma_server_name)) < 0 ||
	    (rc = take_text(d, root, "tcp_data_host", &desc->tcp_data_host)) < 0 ||
	    (rc = take_u64(d, root, "tcp_data_port", UINT16_MAX, &port)) < 0 ||
	    (rc = take_u64(d, root, "tcp_proto_version", UINT32_MAX, &proto)) < 0)
		return rc;
	desc->tcp_data_port = (uint16_t)port;
	desc->tcp_proto_version = (uint32_t)proto;
	if ((rc = decode_protocol(d, root)) < 0 || (rc = decode_devices(d, root)) < 0 ||
	    (rc = decode_buffers(d, root)) < 0 || (rc = decode_matrix(d, root)) < 0)
		return rc;
	return decode_ext(d, root);
}

int mc_segdesc_decode(const void *json, size_t len, struct mc_segdesc **ret_desc,
		      struct mc_diag *diag)
{
	static const struct mc_json_limits limits = {.bytes_max = MC_SEGDESC_BYTES_MAX,
						     .depth_max = 16};
	struct decoder d = {.diag = diag};
	json_t *root;
	int rc;

	rc = mc_json_parse(json, len, &limits, &root, diag);
	if (rc < 0) {
		mc_diag_wrap(diag, "segment descriptor");
		return rc;
	}
	d.own = mc_calloc(1, sizeof(*d.own));
	rc = d.own ? decode_root(&d, root) : -MC_E_NOMEM;
	json_decref(root);
	if (rc < 0) {
		if (rc == -MC_E_NOMEM)
			mc_diag_set(diag, "%s", mc_err_text(rc));
		mc_diag_wrap(diag, "segment descriptor");
		mc_segdesc_free(d.own ? &d.own->desc : NULL);
		return rc;
	}
	*ret_desc = &d.own->desc;
	return 0;
}

void mc_segdesc_free(struct mc_segdesc *desc)
{
	struct owned *own;
	struct arena_block *b;

	if (!desc)
		return;
	own = mc_container_of(desc, struct owned, desc);
	while ((b = own->blocks)) {
		own->blocks = b->next;
		mc_free(b);
	}
	mc_free(own);
}
