/*
 * jansson_stdin.c: what a jansson inside libmooncake.so sees as stdin.
 *
 * Debian's libjansson.a is compiled for executables: json_loadf() compares its argument with the
 * libc variable stdin through a reference that a shared object cannot hold. We never parse from a
 * FILE, so the link wraps that one symbol (see meson.build) with a variable of our own.
 */
#include <stdio.h>

extern FILE *__wrap_stdin;
FILE *__wrap_stdin;
