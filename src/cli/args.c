/*
 * args.c: command lines from an option table.
 */
#include "cli/args.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/conf_text.h"
#include "base/log.h"
#include "base/mem.h"

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

/* What is parsed into. */
struct args {
	const struct mc_opt *table;
	size_t rows;
	const struct mc_args_other *others;
	void *conf;
	struct mc_diag *diag;
};

/* @param only  nothing but this option is set; NULL: all. @return as mc_args_parse() */
static int walk(const struct args *a, int argc, char **argv, const char *only)
{
	for (int i = 1; i < argc; i++) {
		const struct mc_args_other *other = NULL;
		char name[NAME_MAX_BYTES];
		const struct mc_opt *row;
		const char *value;
		int rc = arg_cut(argv[i], name, &value, a->diag);

		if (rc < 0)
			return rc;
		if (strcmp(name, "help") == 0 || strcmp(name, "h") == 0)
			return 1;
		row = row_find(a->table, a->rows, name, &value);
		if (!row)
			other = other_find(a->others, name, &value);
		if (!row && !other) {
			mc_diag_set(a->diag, "there is no option '%s'; --help names them all",
				    argv[i]);
			return -MC_E_INVAL;
		}
		if (!value && (row ? row->type == MC_OPT_TYPE_BOOL : other->is_bool))
			value = "1";
		else if (!value && i + 1 < argc)
			value = argv[++i];
		if (!value) {
			mc_diag_set(a->diag, "option '--%s' needs a value", name);
			return -MC_E_INVAL;
		}
		if (only && strcmp(row ? row->name : "", only) != 0)
			continue;
		rc = row ? mc_opt_set(row, a->conf, value, a->diag)
			 : other_take(other, value, a->diag);
		if (rc < 0)
			return rc;
	}
	return 0;
}

int mc_args_parse(const struct mc_opt *table, size_t rows, const struct mc_args_other *others,
		  int argc, char **argv, void *conf, struct mc_diag *diag)
{
	const struct args a = {table, rows, others, conf, diag};

	mc_opt_defaults(table, rows, conf);
	return walk(&a, argc, argv, NULL);
}

/* A key of a file. */
static int key_take(void *user, const char *key, const char *value, struct mc_diag *diag)
{
	const struct args *a = user;
	const struct mc_opt *row = mc_opt_find(a->table, a->rows, key);
	const struct mc_args_other *other = NULL;

	for (const struct mc_args_other *o = a->others; !row && o && o->name; o++) {
		if (strcmp(o->name, key) == 0)
			other = o;
	}
	if (!row && !other) {
		mc_diag_set(diag, "there is no option '%s'; --help names them all", key);
		return -MC_E_INVAL;
	}
	if (other)
		return other_take(other, value, diag);
	return value[0] ? mc_opt_set(row, a->conf, value, diag) : 0; /* "key:" alone is unset */
}

static int file_take(struct args *a, const char *path)
{
	char *text = mc_calloc(1, MC_CONF_TEXT_BYTES_MAX + 1);
	FILE *file = text ? fopen(path, "re") : NULL;
	size_t len = 0;
	int rc = 0;

	if (!text)
		return -MC_E_NOMEM;
	if (file)
		len = fread(text, 1, MC_CONF_TEXT_BYTES_MAX + 1, file); /* one more: too long */
	if (!file || ferror(file)) {
		mc_diag_set(a->diag, "%s", strerror(errno));
		rc = -MC_E_INVAL;
	}
	if (file)
		(void)fclose(file);
	if (rc == 0)
		rc = mc_conf_text_parse(text, len, key_take, a, a->diag);
	if (rc < 0)
		mc_diag_wrap(a->diag, "%s", path);
	mc_free(text);
	return rc;
}

int mc_args_parse_file(const struct mc_opt *table, size_t rows, const struct mc_args_other *others,
		       const char *file_opt, int argc, char **argv, void *conf,
		       struct mc_diag *diag)
{
	const struct mc_opt *row = mc_opt_find(table, rows, file_opt);
	struct args a = {table, rows, others, conf, diag};
	const char *path;
	int rc;

	mc_assert(row && row->type == MC_OPT_TYPE_STR);
	mc_opt_defaults(table, rows, conf);
	rc = walk(&a, argc, argv, file_opt);
	path = (const char *)conf + row->offset;
	if (rc == 0 && path[0])
		rc = file_take(&a, path);
	return rc == 0 ? walk(&a, argc, argv, NULL) : rc;
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
