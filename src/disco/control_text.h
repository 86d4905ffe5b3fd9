/*
 * control_text.h: what the control port's own files see of a reply text.
 */
#ifndef MC_DISCO_CONTROL_TEXT_H
#define MC_DISCO_CONTROL_TEXT_H

#include <stddef.h>

struct mc_control_text;

void mc_control_text_view(const struct mc_control_text *text, const char **ret_json,
			  size_t *ret_len);

#endif
