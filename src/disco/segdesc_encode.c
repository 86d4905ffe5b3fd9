/*
 * segdesc_encode.c: a descriptor to JSON within a size limit.
 *
 * The text is written directly, since a tree of 10,000 buffers costs ten times as much as the text;
 * only strings go through jansson, which knows what UTF-8 is. When the exact list is too long, the
 * number of ranges that surely fit follows from the longest possible entry, and
 * mc_segdesc_join() brings the list down to it in one pass.
 */
#include "disco/segdesc.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/mem.h"

/* {"addr":,"length":,"name":} with two 20-digit numbers and a comma; the name comes on top. */
#define ENTRY_BYTES_MAX (28u + 40u + 1u)

/* Appends `"text"` with what JSON needs escaped. */
static int put_text(struct mc_str *out, const char *text, struct mc_diag *diag)
{
	json_t *v = json_string(text);
	int rc;

	if (!v) {
		mc_diag_set(diag, "segment descriptor: \"%.64s\" is not UTF-8", text);
		return -MC_E_INVAL;
	}
	rc = mc_json_dump(v, out);
	json_decref(v);
	return rc;
}

static int put_member(struct mc_str *out, const char *key, const char *text, struct mc_diag *diag)
{
	int rc = mc_str_appendf(out, ",\"%s\":", key);

	return rc < 0 ? rc : put_text(out, text, diag);
}

static void put_keys(struct mc_str *out, const char *key, const uint64_t *keys, uint32_t n)
{
	if (!keys)
		return;
	mc_str_appendf(out, ",\"%s\":[", key);
	for (uint32_t i = 0; i < n; i++)
		mc_str_appendf(out, "%s%llu", i ? "," : "", (unsigned long long)keys[i]);
	mc_str_puts(out, "]");
}

static int put_buffers(struct mc_str *out, const struct mc_segdesc_buffer *bufs, size_t n,
		       struct mc_diag *diag)
{
	const char *last = NULL;
	struct mc_str quoted;
	int rc = 0;

	mc_str_init(&quoted, MC_SEGDESC_TEXT_MAX * 8);
	mc_str_puts(out, "{\"buffers\":[");
	for (size_t i = 0; i < n && rc == 0 && out->rc == 0; i++) {
		const struct mc_segdesc_buffer *b = &bufs[i];

		if (!last || (last != b->name && strcmp(last, b->name) != 0)) {
			mc_str_reset(&quoted);
			rc = put_text(&quoted, b->name, diag);
			last = b->name;
		}
		mc_str_appendf(out, "%s{\"addr\":%llu,\"length\":%llu,\"name\":%s", i ? "," : "",
			       (unsigned long long)b->addr, (unsigned long long)b->len,
			       mc_str_text(&quoted));
		put_keys(out, "rkey", b->rkey, b->nkeys);
		put_keys(out, "lkey", b->lkey, b->nkeys);
		mc_str_puts(out, "}");
	}
	mc_str_puts(out, "]");
	mc_str_fini(&quoted);
	return rc;
}

static int put_devices(struct mc_str *out, const struct mc_segdesc *desc, struct mc_diag *diag)
{
	int rc = 0;

	if (desc->ndevices == 0)
		return 0;
	mc_str_puts(out, ",\"devices\":[");
	for (size_t i = 0; i < desc->ndevices && rc == 0; i++) {
		const struct mc_segdesc_device *dev = &desc->devices[i];

		mc_str_appendf(out, "%s{\"lid\":%u", i ? "," : "", dev->lid);
		rc = put_member(out, "gid", dev->gid, diag);
		if (rc == 0)
			rc = put_member(out, "name", dev->name, diag);
		mc_str_puts(out, "}");
	}
	mc_str_puts(out, "]");
	return rc;
}

static int put_ext(struct mc_str *out, const struct mc_segdesc_ext *ext, struct mc_diag *diag)
{
	int rc = 0;

	if (ext->version == 0)
		return 0;
	mc_str_appendf(out, ",\"mc\":{\"v\":%u,\"epoch\":\"%llu\",\"caps\":%llu,\"rails\":[",
		       ext->version, (unsigned long long)ext->epoch, (unsigned long long)ext->caps);
	for (size_t i = 0; i < ext->nrails && rc == 0; i++) {
		if (i)
			mc_str_puts(out, ",");
		rc = put_text(out, ext->rails[i], diag);
	}
	mc_str_puts(out, "]}");
	return rc;
}

/* All members but the buffers, with the closing brace. */
static int put_rest(struct mc_str *out, const struct mc_segdesc *desc, struct mc_diag *diag)
{
	int rc;

	if ((rc = put_devices(out, desc, diag)) < 0 ||
	    (rc = put_member(out, "name", desc->name, diag)) < 0)
		return rc;
	if (desc->priority_matrix[0])
		mc_str_appendf(out, ",\"priority_matrix\":%s", desc->priority_matrix);
	if ((rc = put_member(out, "protocol", desc->protocol, diag)) < 0 ||
	    (rc = put_member(out, "rdma_server_name", desc->rdma_server_name, diag)) < 0)
		return rc;
	if (desc->tcp_data_port) {
		if (desc->tcp_data_host[0] &&
		    (rc = put_member(out, "tcp_data_host", desc->tcp_data_host, diag)) < 0)
			return rc;
		mc_str_appendf(out, ",\"tcp_data_port\":%u,\"tcp_proto_version\":%u",
			       desc->tcp_data_port, desc->tcp_proto_version);
	}
	if ((rc = put_member(out, "timestamp", desc->timestamp, diag)) < 0 ||
	    (rc = put_ext(out, &desc->ext, diag)) < 0)
		return rc;
	return mc_str_puts(out, "}");
}

static int check(const struct mc_segdesc *desc, struct mc_diag *diag)
{
	uint64_t end;

	if (!desc->name[0] || !desc->protocol[0]) {
		mc_diag_set(diag, "segment descriptor: no name or no protocol");
		return -MC_E_INVAL;
	}
	for (size_t i = 0; i < desc->nbuffers; i++) {
		const struct mc_segdesc_buffer *b = &desc->buffers[i];

		if (b->addr && b->len && b->name[0] && b->len <= INT64_MAX &&
		    !__builtin_add_overflow(b->addr, b->len, &end) && end <= INT64_MAX)
			continue;
		mc_diag_set(diag, "segment descriptor: buffers[%zu] addr 0x%llx length %llu", i,
			    (unsigned long long)b->addr, (unsigned long long)b->len);
		return -MC_E_INVAL;
	}
	return 0;
}

/* Most bytes that a name takes as JSON: a control character is "\u0001". */
static size_t quoted_len(const char *name)
{
	size_t len = 2;

	for (; *name; name++)
		len += (unsigned char)*name < ' ' ? 6 : (*name == '"' || *name == '\\' ? 2 : 1);
	return len;
}

/* A list of ranges that fits room_bytes. @return 0 and *ret_bufs (mc_free), or an error */
static int shrink(const struct mc_segdesc *desc, size_t room_bytes,
		  struct mc_segdesc_buffer **ret_bufs, size_t *ret_n)
{
	struct mc_segdesc_buffer *bufs;
	size_t name_max = 0, want;
	int n;

	for (size_t i = 0; i < desc->nbuffers; i++) {
		if (desc->buffers[i].nkeys)
			return -MC_E_TOO_BIG; /* a joined range has no key of its own */
		name_max = mc_max(name_max, quoted_len(desc->buffers[i].name));
	}
	want = room_bytes / (ENTRY_BYTES_MAX + name_max);
	if (name_max && want < 2)
		return -MC_E_TOO_BIG;
	bufs = mc_calloc(desc->nbuffers, sizeof(*bufs));
	if (!bufs)
		return -MC_E_NOMEM;
	memcpy(bufs, desc->buffers, desc->nbuffers * sizeof(*bufs));
	n = mc_segdesc_join(bufs, desc->nbuffers, want);
	if (n < 0) {
		mc_free(bufs);
		return n;
	}
	*ret_bufs = bufs;
	*ret_n = (size_t)n;
	return 0;
}

static int encode(const struct mc_segdesc *desc, const struct mc_segdesc_buffer *bufs, size_t n,
		  struct mc_str *out, struct mc_diag *diag)
{
	int rc = put_buffers(out, bufs, n, diag);

	if (rc == 0)
		rc = put_rest(out, desc, diag);
	return rc < 0 ? rc : out->rc;
}

int mc_segdesc_encode(const struct mc_segdesc *desc, size_t bytes_max, char **ret_json,
		      size_t *ret_len, struct mc_diag *diag)
{
	struct mc_segdesc_buffer *bufs = NULL;
	struct mc_str out;
	size_t n, rest_len;
	int rc = check(desc, diag);

	if (rc < 0)
		return rc;
	mc_str_init(&out, bytes_max);
	rc = encode(desc, desc->buffers, desc->nbuffers, &out, diag);
	if (rc == -MC_E_TOO_BIG) {
		mc_str_reset(&out);
		rc = encode(desc, NULL, 0, &out, diag);
		rest_len = out.len;
		if (rc == 0)
			rc = shrink(desc, bytes_max - rest_len, &bufs, &n);
		if (rc == 0) {
			mc_str_reset(&out);
			rc = encode(desc, bufs, n, &out, diag);
		}
		if (rc == -MC_E_TOO_BIG)
			mc_diag_set(diag,
				    "segment descriptor of %zu buffers does not fit %zu bytes",
				    desc->nbuffers, bytes_max);
	}
	mc_free(bufs);
	if (rc == 0) {
		*ret_len = out.len;
		*ret_json = mc_str_take(&out);
	}
	mc_str_fini(&out);
	return rc;
}

static size_t digits(uint64_t v)
{
	size_t n = 1;

	for (; v >= 10; v /= 10)
		n++;
	return n;
}

static size_t keys_len(const uint64_t *keys, uint32_t n)
{
	static const char shape[] = ",\"rkey\":[]";
	size_t len = keys ? sizeof(shape) - 1 + (n ? n - 1 : 0) : 0;

	for (uint32_t i = 0; i < n && keys; i++)
		len += digits(keys[i]);
	return len;
}

/* What put_buffers() writes for this one, with a comma; no less. */
static size_t entry_len(const struct mc_segdesc_buffer *b)
{
	static const char shape[] = "{\"addr\":,\"length\":,\"name\":},";

	return sizeof(shape) - 1 + digits(b->addr) + digits(b->len) + quoted_len(b->name) +
	       keys_len(b->rkey, b->nkeys) + keys_len(b->lkey, b->nkeys);
}

int mc_segdesc_fit(const struct mc_segdesc *desc, size_t bytes_max, struct mc_diag *diag)
{
	struct mc_segdesc bare = *desc;
	size_t len = 0, n = 0;
	char *json = NULL;
	int rc;

	bare.nbuffers = 0;
	rc = mc_segdesc_encode(&bare, bytes_max, &json, &len, diag);
	if (rc < 0)
		return rc;
	mc_free(json);
	for (; n < mc_min(desc->nbuffers, (size_t)INT32_MAX); n++) {
		len += entry_len(&desc->buffers[n]);
		if (len > bytes_max)
			break;
	}
	return (int)n;
}

/* The space between a range and the next one in order of address; 0 when they touch or overlap. */
struct gap {
	uint64_t len;
	uint32_t before; /* index of the upper range */
};

static int by_addr(const void *a, const void *b)
{
	const struct mc_segdesc_buffer *x = a, *y = b;

	return (x->addr > y->addr) - (x->addr < y->addr);
}

static int by_len(const void *a, const void *b)
{
	const struct gap *x = a, *y = b;

	if (x->len != y->len)
		return (x->len > y->len) - (x->len < y->len);
	return (x->before > y->before) - (x->before < y->before);
}

/* Marks with len 0 the ranges that disappear into their lower neighbour: those of the `drop`
 * smallest gaps. The reach of what lies below counts, not only the last range. */
static void mark_joined(struct mc_segdesc_buffer *rest, struct gap *gaps, size_t n, size_t drop)
{
	uint64_t reach = rest[0].addr + rest[0].len;

	for (size_t i = 1; i < n; i++) {
		gaps[i - 1].before = (uint32_t)i;
		gaps[i - 1].len = rest[i].addr > reach ? rest[i].addr - reach : 0;
		reach = mc_max(reach, rest[i].addr + rest[i].len);
	}
	qsort(gaps, n - 1, sizeof(*gaps), by_len);
	for (size_t i = 0; i < drop; i++)
		gaps[i].len = UINT64_MAX; /* chosen */
	for (size_t i = 0; i < n - 1; i++) {
		if (gaps[i].len == UINT64_MAX)
			rest[gaps[i].before].name = NULL;
	}
}

int mc_segdesc_join(struct mc_segdesc_buffer *bufs, size_t n, size_t want)
{
	struct mc_segdesc_buffer *rest = bufs + 1;
	struct gap *gaps;
	size_t kept = 1;
	uint64_t end;

	mc_assert(want >= 2);
	if (n <= want)
		return (int)n;
	gaps = mc_calloc(n - 2, sizeof(*gaps));
	if (!gaps)
		return -MC_E_NOMEM;
	qsort(rest, n - 1, sizeof(*rest), by_addr);
	mark_joined(rest, gaps, n - 1, n - want);
	mc_free(gaps);
	for (size_t i = 1; i < n - 1; i++) {
		if (rest[i].name) {
			rest[kept++] = rest[i];
			continue;
		}
		end = mc_max(rest[kept - 1].addr + rest[kept - 1].len, rest[i].addr + rest[i].len);
		rest[kept - 1].len = end - rest[kept - 1].addr;
	}
	return (int)kept + 1;
}
