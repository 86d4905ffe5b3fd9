/*
 * rundir.c: see rundir.h.
 */
#include "rundir.h"

#include <dirent.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

void rundir_open(char *dir)
{
	assert_non_null(mkdtemp(dir));
	assert_int_equal(setenv("XDG_RUNTIME_DIR", dir, 1), 0);
}

void rundir_close(const char *dir)
{
	char path[PATH_MAX];
	struct dirent *e;
	DIR *d;

	(void)snprintf(path, sizeof(path), "%s/mooncake", dir);
	d = opendir(path);
	while (d && (e = readdir(d)))
		(void)unlinkat(dirfd(d), e->d_name, 0); /* of those that were killed */
	if (d)
		(void)closedir(d);
	(void)rmdir(path);
	(void)rmdir(dir);
}
