/*
 * store_real.h: a cluster of real processes for tests of the Store: mooncake_master, and owners
 * that are this program again, or mooncake_client with a disk.
 */
#ifndef MC_TEST_STORE_REAL_H
#define MC_TEST_STORE_REAL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include <mooncake/store.h>

#define REAL_OWNERS_MAX 8u

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
	unsigned lease_ms; /* that the master grants */
};

/** main() of an owner: "--owner MASTER BYTES". @return true: this process was one, exit with *ret
 */
bool real_is_owner(int argc, char **argv, int *ret);
/** The program of the master, once, before anything else. */
void real_init(const char *master_program);
/** Leases of 300 ms. */
struct real *real_open(unsigned nowners, uint64_t bytes);
struct real *real_open_leased(unsigned nowners, uint64_t bytes, unsigned lease_ms);
void real_close(struct real *c);
void real_master_start(struct real *c);
void real_master_kill(struct real *c);
/** @return its number */
unsigned real_owner_start(struct real *c, uint64_t bytes);
/** A node with a disk: mooncake_client. @param quota  of the directory's files. @return its number
 */
unsigned real_node_start(struct real *c, const char *client_program, uint64_t bytes,
			 const char *dir, uint64_t quota);
void real_owner_kill(struct real *c, unsigned i);
/** SIGTERM; it has to end well. */
void real_owner_end(struct real *c, unsigned i);
/** SIGSTOP; returns when it stands still. */
void real_owner_stop(struct real *c, unsigned i);
struct mc_store *real_store(struct real *c, uint32_t timeout_ms, uint64_t segment_bytes);

#endif
