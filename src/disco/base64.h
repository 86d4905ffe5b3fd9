/*
 * base64.h: RFC 4648 base64 with padding, for etcd's JSON gateway. Pure.
 */
#ifndef MC_DISCO_BASE64_H
#define MC_DISCO_BASE64_H

#include <stddef.h>

#include "base/str.h"

/** @return as mc_str_append() */
int mc_base64_encode(struct mc_str *out, const void *data, size_t len);
/** @param ret  NUL-terminated, ends with mc_free(). @return 0; -MC_E_INVAL; -MC_E_NOMEM */
MC_MUST_CHECK int mc_base64_decode(const char *text, size_t len, char **ret, size_t *ret_len);

#endif
