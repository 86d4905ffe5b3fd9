/*
 * args.h: command lines from an option table. "--name value", "--name=value", one dash or two, and
 * for booleans "--name" and "--noname", as upstream's tools take them. The table is base/opt.h's;
 * a wrong value is told with what is accepted.
 */
#ifndef MC_CLI_ARGS_H
#define MC_CLI_ARGS_H

#include "base/opt.h"

/**
 * Fill conf with the table's defaults, then the arguments.
 * @return 0; 1 when --help was asked for; -MC_E_INVAL with a diag that names the argument
 */
int mc_args_parse(const struct mc_opt *table, size_t rows, int argc, char **argv, void *conf,
		  struct mc_diag *diag);
/** Print all options with their defaults and ranges to stdout. */
void mc_args_help(const struct mc_opt *table, size_t rows, const char *usage);

#endif
