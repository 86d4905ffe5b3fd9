/*
 * codes.c: names of the Store's codes.
 */
#include <mooncake/store.h>

const char *mc_store_err_name(int code)
{
	switch (code) {
#define MC_STORE_ERR_NAME(name, num)                                                               \
	case num:                                                                                  \
		return #name;
		MC_STORE_ERR_TABLE(MC_STORE_ERR_NAME)
#undef MC_STORE_ERR_NAME
	default:
		return "UNKNOWN";
	}
}
