/*
 * base64.c: three bytes to four letters and back.
 */
#include "disco/base64.h"

#include <stdint.h>
#include <string.h>

#include "base/mem.h"

static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

int mc_base64_encode(struct mc_str *out, const void *data, size_t len)
{
	const uint8_t *p = data;

	for (size_t i = 0; i < len; i += 3) {
		size_t n = mc_min(len - i, (size_t)3);
		uint32_t v = (uint32_t)p[i] << 16;
		char four[4] = "====";

		if (n > 1)
			v |= (uint32_t)p[i + 1] << 8;
		if (n > 2)
			v |= p[i + 2];
		for (size_t k = 0; k <= n; k++)
			four[k] = letters[v >> (18 - 6 * k) & 63];
		mc_str_append(out, four, 4);
	}
	return out->rc;
}

/* Value of a letter, or -1. */
static int value(char c)
{
	const char *at = c ? strchr(letters, c) : NULL;

	return at ? (int)(at - letters) : -1;
}

int mc_base64_decode(const char *text, size_t len, char **ret, size_t *ret_len)
{
	size_t pad = 0, at = 0;
	char *out;

	while (pad < 2 && pad < len && text[len - 1 - pad] == '=')
		pad++;
	if (len % 4)
		return -MC_E_INVAL;
	out = mc_calloc(len / 4 * 3 + 1, 1);
	if (!out)
		return -MC_E_NOMEM;
	for (size_t i = 0; i < len; i += 4) {
		uint32_t v = 0;

		for (size_t k = 0; k < 4; k++) {
			int six = i + k >= len - pad ? 0 : value(text[i + k]);

			if (six < 0) {
				mc_free(out);
				return -MC_E_INVAL;
			}
			v = v << 6 | (uint32_t)six;
		}
		out[at++] = (char)(v >> 16);
		out[at++] = (char)(v >> 8);
		out[at++] = (char)v;
	}
	*ret_len = at - pad;
	out[*ret_len] = '\0';
	*ret = out;
	return 0;
}
