/*
 * rundir.h: a folder of this test alone for the sockets of its engines. Other engines of this user
 * look whether the sockets beside theirs are alive: none shall knock at ours while it counts.
 */
#ifndef MC_TESTS_RUNDIR_H
#define MC_TESTS_RUNDIR_H

/** Make it from a template of mkdtemp(), and have engines and children use it. */
void rundir_open(char *dir);
/** It goes, with the sockets of those that were killed. */
void rundir_close(const char *dir);

#endif
