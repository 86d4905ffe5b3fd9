/*
 * transfer_engine_c.h: the place where programs written for upstream Mooncake look.
 */
#include <mooncake/transfer_engine_c.h>
