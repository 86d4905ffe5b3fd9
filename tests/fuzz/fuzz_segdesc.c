/*
 * fuzz_segdesc.c: descriptors from peers and metadata services. What is accepted can be encoded,
 * also into very little room, and then says the same again and still covers every buffer.
 */
#include "disco/segdesc.h"

#include <string.h>

#include "base/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static bool is_covered(const struct mc_segdesc *d, const struct mc_segdesc_buffer *b)
{
	for (size_t i = 0; i < d->nbuffers; i++) {
		if (d->buffers[i].addr <= b->addr &&
		    b->addr + b->len <= d->buffers[i].addr + d->buffers[i].len)
			return true;
	}
	return false;
}

static void again(const struct mc_segdesc *in, size_t bytes_max, bool is_exact)
{
	struct mc_segdesc *out;
	struct mc_diag diag;
	char *json;
	size_t len;
	int rc = mc_segdesc_encode(in, bytes_max, &json, &len, &diag);

	if (rc < 0) {
		mc_assert(!is_exact && rc == -MC_E_TOO_BIG);
		return;
	}
	mc_assert(len <= bytes_max && json[len] == '\0');
	rc = mc_segdesc_decode(json, len, &out, &diag);
	mc_assert(rc == 0);
	mc_assert(strcmp(out->name, in->name) == 0 && strcmp(out->protocol, in->protocol) == 0);
	mc_assert(out->ndevices == in->ndevices && out->ext.epoch == in->ext.epoch);
	mc_assert(!is_exact || out->nbuffers == in->nbuffers);
	if (in->nbuffers)
		mc_assert(out->buffers[0].addr == in->buffers[0].addr);
	for (size_t i = 0; i < in->nbuffers; i++)
		mc_assert(is_covered(out, &in->buffers[i]));
	mc_segdesc_free(out);
	mc_free(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct mc_segdesc *desc;
	struct mc_diag diag = {.text = ""};
	char protocol[MC_SEGDESC_PROTOCOL_MAX];
	bool has_protocol = mc_segdesc_protocol(data, len, "tcp", protocol);
	int rc = mc_segdesc_decode(data, len, &desc, &diag);

	mc_assert(!has_protocol || memchr(protocol, '\0', sizeof(protocol)));
	if (rc < 0) {
		mc_assert(diag.text[0]);
		return 0;
	}
	mc_assert(mc_segdesc_fit(desc, 64 << 20, &diag) == (int)desc->nbuffers);
	again(desc, 64 << 20, true);
	again(desc, 700, false);
	mc_segdesc_free(desc);
	return 0;
}
