/*
 * cluster.h: a Store of simulated processes: master, nodes and clients run the code that ships.
 */
#ifndef TESTS_SIM_CLUSTER_H
#define TESTS_SIM_CLUSTER_H

#include <stdbool.h>
#include <stdint.h>

#include "sim/vos/sim_disk.h"
#include "sim/vos/vos.h"

#define NODES_MAX 4u
#define CLIENTS_MAX 4u
#define MASTER_HOST 0u
#define NODE_HOST 1u   /* the first */
#define CLIENT_HOST 8u /* the first */

struct mc_node;
struct mc_store;

struct sim_node {
	struct vos_proc *proc;
	struct mc_node *node; /* NULL: not open yet */
	unsigned index;
	uint64_t bytes;
	struct sim_disk *disk; /* outlives its processes; NULL: none */
};

struct sim_client {
	struct vos_proc *proc;
	struct mc_store *store;
	unsigned index, workers; /* that work */
};

struct cluster {
	struct vos_proc *master;
	struct sim_disk *state; /* the master's directory */
	uint64_t ttl_ms, lease_ms, timeout_ms;
	struct sim_node nodes[NODES_MAX];
	unsigned nnodes;
	struct sim_client clients[CLIENTS_MAX];
	unsigned nclients;
};
extern struct cluster cluster;

void cluster_master_start(void);
void cluster_node_start(struct sim_node *n);
/** @param work  runs in the new process when its store is open */
void cluster_client_start(struct sim_client *c, void *(*work)(void *client));
/** All of a process that was killed or whose host died. */
void cluster_kill(struct vos_proc *proc);
/** What its pool says that slots take; asks in the node's process. Runs the world. */
bool cluster_node_used(struct sim_node *n, uint64_t *ret_bytes);

#endif
