/*
 * args.c: command lines from an option table.
 */
#include "cli/args.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"

#define NAME_MAX_BYTES 64

/* "--name=value" cut in two. @return 0 or -MC_E_INVAL */
static int arg_cut(const char *arg, char *name, const char **ret_value, struct mc_diag *diag)
{
	const char *start = arg + strspn(arg, "-");
	size_t len = strcspn(start, "=");

	if (start == arg || start - arg > 2 || len == 0 || len >= NAME_MAX_BYTES) {
		mc_diag_set(diag, "'%s' is no option; --help names them all", arg);
		return -MC_E_INVAL;
	}
	memcpy(name, start, len);
	name[len] = '\0';
	*ret_value = start[len] == '=' ? start + len + 1 : NULL;
	return 0;
}

/* Row of a name; for "noname" the boolean's row and value "0". */
static const struct mc_opt *row_find(const struct mc_opt *table, size_t rows, const char *name,
				     const char **value)
{
	const struct mc_opt *row = mc_opt_find(table, rows, name);

	if (row || strncmp(name, "no", 2) != 0 || *value)
		return row;
	row = mc_opt_find(table, rows, name + 2);
	if (!row || row->type != MC_OPT_TYPE_BOOL)
		return NULL;
	*value = "0";
	return row;
}

static const struct mc_args_other *other_find(const struct mc_args_other *others, const char *name,
					      const char **value)
{
	for (const struct mc_args_other *o = others; o && o->name; o++) {
		if (strcmp(o->name, name) == 0)
			return o;
		if (o->is_bool && !*value && strncmp(name, "no", 2) == 0 &&
		    strcmp(o->name, name + 2) == 0) {
			*value = "0";
			return o;
		}
	}
	return NULL;
}

static bool is_nothing(const char *value)
{
	bool is_true;

	return value[0] == '\0' || (mc_opt_parse_bool(value, &is_true) == 0 && !is_true);
}

static int other_take(const struct mc_args_other *o, const char *value, struct mc_diag *diag)
{
	if (is_nothing(value))
		return 0;
	if (o->refusal) {
		mc_diag_set(diag, "option '--%s': %s", o->name, o->refusal);
		return -MC_E_INVAL;
	}
	mc_log_warn("option has no effect here", "name=%s value=%s", o->name, value);
	return 0;
}

int mc_args_parse(const struct mc_opt *table, size_t rows, const struct mc_args_other *others,
		  int argc, char **argv, void *conf, struct mc_diag *diag)
{
	mc_opt_defaults(table, rows, conf);
	for (int i = 1; i < argc; i++) {
		const struct mc_args_other *other = NULL;
		char name[NAME_MAX_BYTES];
		const struct mc_opt *row;
		const char *value;
		int rc = arg_cut(argv[i], name, &value, diag);

		if (rc < 0)
			return rc;
		if (strcmp(name, "help") == 0 || strcmp(name, "h") == 0)
			return 1;
		row = row_find(table, rows, name, &value);
		if (!row)
			other = other_find(others, name, &value);
		if (!row && !other) {
			mc_diag_set(diag, "there is no option '%s'; --help names them all",
				    argv[i]);
			return -MC_E_INVAL;
		}
		if (!value && (row ? row->type == MC_OPT_TYPE_BOOL : other->is_bool))
			value = "1";
		else if (!value && i + 1 < argc)
			value = argv[++i];
		if (!value) {
			mc_diag_set(diag, "option '--%s' needs a value", name);
			return -MC_E_INVAL;
		}
		rc = row ? mc_opt_set(row, conf, value, diag) : other_take(other, value, diag);
		if (rc < 0)
			return rc;
	}
	return 0;
}

void mc_args_help(const struct mc_opt *table, size_t rows, const char *usage)
{
	printf("%s\noptions (default):\n", usage);
	for (size_t i = 0; i < rows; i++) {
		printf("  --%-22s %s", table[i].name, table[i].help);
		for (const char *const *it = table[i].choices; it && *it; it++)
			printf("%s%s", it == table[i].choices ? ": " : ", ", *it);
		printf(" (%s)\n", table[i].def[0] ? table[i].def : "none");
	}
}
