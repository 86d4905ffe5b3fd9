/*
 * dl.c: dlopen() with local symbols, so that what we load stays out of everybody else's way.
 */
#include "io/dl.h"

#include <dlfcn.h>
#include <string.h>

static const char *dl_why(void)
{
	const char *why = dlerror();

	return why ? why : "unknown reason";
}

int mc_dl_load(const char *const *sonames, const struct mc_dl_sym *syms, size_t nsyms, void *table,
	       size_t *ret_which, struct mc_diag *diag)
{
	void *lib = NULL, *sym;
	size_t at;

	for (at = 0; sonames[at]; at++) {
		lib = dlopen(sonames[at], RTLD_NOW | RTLD_LOCAL);
		if (lib)
			break;
		if (at == 0)
			mc_diag_set(diag, "not available: %s", dl_why());
	}
	if (!lib)
		return -MC_E_UNAVAILABLE;
	for (size_t i = 0; i < nsyms; i++) {
		sym = dlsym(lib, syms[i].name);
		if (!sym && !syms[i].is_optional) {
			mc_diag_set(diag, "not available: %s lacks %s", sonames[at], syms[i].name);
			(void)dlclose(lib);
			return -MC_E_UNAVAILABLE;
		}
		memcpy((char *)table + syms[i].offset, &sym, sizeof(sym));
	}
	if (ret_which)
		*ret_which = at;
	return 0;
}
