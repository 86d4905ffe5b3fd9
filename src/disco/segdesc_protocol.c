/*
 * segdesc_protocol.c: which protocol a descriptor names, found in one walk over its text. A peer
 * sends its descriptor only to get ours, and all that our answer depends on is this one word; its
 * list of buffers may have a megabyte.
 */
#include "disco/segdesc.h"

#include <string.h>

#include "base/mem.h"
#include "base/str.h"

struct walk {
	const char *at, *end;
};

/* The text of a string whose opening quote is at w->at; w is after its end. @return false: it does
 * not end. Escapes stay as they are: no name that matters has one. */
static bool take_string(struct walk *w, struct mc_view *ret)
{
	const char *from = ++w->at;

	for (; w->at < w->end; w->at++) {
		if (*w->at == '\\') {
			w->at++;
		} else if (*w->at == '"') {
			*ret = (struct mc_view){from, (size_t)(w->at++ - from)};
			return true;
		}
	}
	return false;
}

static void skip_blanks(struct walk *w)
{
	while (w->at < w->end && strchr(" \t\r\n", *w->at) && *w->at)
		w->at++;
}

/* A string, or an array of them. */
static bool take_protocol(struct walk *w, const char *want, char *ret)
{
	bool is_array = *w->at == '[', is_found = false;
	struct mc_view v;

	for (w->at += is_array; w->at < w->end && *w->at != ']'; w->at++) {
		skip_blanks(w);
		if (w->at == w->end || *w->at != '"' || !take_string(w, &v))
			return is_found;
		is_found |= mc_view_copy(v, ret, MC_SEGDESC_PROTOCOL_MAX) == 0;
		if (!is_array || mc_view_is(v, want))
			return is_found;
		skip_blanks(w);
		if (w->at == w->end || *w->at != ',')
			return is_found;
	}
	return is_found;
}

bool mc_segdesc_protocol(const void *json, size_t len, const char *want,
			 char ret[MC_SEGDESC_PROTOCOL_MAX])
{
	struct walk w = {json, (const char *)json + len};
	struct mc_view key;
	unsigned depth = 0;

	while (w.at < w.end) {
		char c = *w.at;

		if (c != '"') {
			depth += c == '{' || c == '[';
			depth -= (c == '}' || c == ']') && depth > 0;
			w.at++;
			continue;
		}
		if (!take_string(&w, &key))
			return false;
		skip_blanks(&w);
		/* In the outermost object a string before a colon is a key. */
		if (depth != 1 || !mc_view_is(key, "protocol") || w.at == w.end || *w.at != ':')
			continue;
		w.at++;
		skip_blanks(&w);
		return w.at < w.end && take_protocol(&w, want, ret);
	}
	return false;
}
