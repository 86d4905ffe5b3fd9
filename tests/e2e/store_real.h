/*
 * store_real.h: a cluster of real processes for tests of the Store: mooncake_master, and owners
 * that are this program again, or mooncake_client with a disk.
 */
#ifndef MC_TEST_STORE_REAL_H
#define MC_TEST_STORE_REAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <mooncake/store.h>

#define REAL_OWNERS_MAX 8u
#define REAL_FLAGS_MAX 8u

struct real_proc {
	pid_t pid; /* 0: none */
	int in;	   /* its stdin: closed, it ends */
	int signo; /* that ends it instead; 0: none */
};

struct real {
	char dir[64]; /* state of the master */
	char master[32];
	struct real_proc m, owners[REAL_OWNERS_MAX];
	char segments[REAL_OWNERS_MAX][128];
	unsigned nowners;
	const char *flags[REAL_FLAGS_MAX]; /* of the master */
	unsigned lease_ms;		   /* that the master grants */
	bool has_hosts;			   /* owner i is at 127.0.0.(2 + i), not at 127.0.0.1 */
};

/** Start a program, and take the first line that it says; its stdin stays open. It is killed when
 * the calling thread ends. */
void real_spawn(struct real_proc *p, const char *path, char *const argv[], char *line, size_t cap);
/** @param signo  0: its own, or the end of its stdin */
void real_reap(struct real_proc *p, int signo);
/** SIGSTOP; returns when it stands still. */
void real_stop(struct real_proc *p);
/** main() of an owner: "--owner MASTER BYTES HOST". @return true: this process was one, exit with
 * *ret
 */
bool real_is_owner(int argc, char **argv, int *ret);
/** The program of the master, once, before anything else. */
void real_init(const char *master_program);
/** "PROGRAM MASTER [--long] [--seed=N] [TEST]": real_init(), and says how to repeat the run.
 * @return false: usage was said */
bool real_args(int argc, char **argv, bool *ret_is_long, uint64_t *seed, const char **ret_test);
/** Leases of 300 ms. */
struct real *real_open(unsigned nowners, uint64_t bytes);
struct real *real_open_leased(unsigned nowners, uint64_t bytes, unsigned lease_ms);
/** @param flags  more options of the master, up to NULL; not copied. NULL: none */
struct real *real_open_with(unsigned nowners, uint64_t bytes, unsigned lease_ms,
			    const char *const *flags);
void real_close(struct real *c);
void real_master_start(struct real *c);
void real_master_kill(struct real *c);
/** @return its number */
unsigned real_owner_start(struct real *c, uint64_t bytes);
/** The same number again, after a kill. */
void real_owner_again(struct real *c, unsigned i, uint64_t bytes);
/** A node with a disk: mooncake_client. @param quota  of the directory's files. @return its number
 */
unsigned real_node_start(struct real *c, const char *client_program, uint64_t bytes,
			 const char *dir, uint64_t quota);
void real_owner_kill(struct real *c, unsigned i);
/** SIGTERM; it has to end well. */
void real_owner_end(struct real *c, unsigned i);
void real_owner_stop(struct real *c, unsigned i);
struct mc_store *real_store(struct real *c, uint32_t timeout_ms, uint64_t segment_bytes);
/** Bytes of memory in use at all owners, as the master knows them; UINT64_MAX: it does not say. */
uint64_t real_used(struct mc_store *st);

#endif
