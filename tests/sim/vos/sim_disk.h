/*
 * sim_disk.h: disks of simulated hosts: mem_disk, whose memory is the host's so that it outlives
 * processes, with calls that take time. Files of a process that dies are closed.
 */
#ifndef TESTS_SIM_SIM_DISK_H
#define TESTS_SIM_SIM_DISK_H

#include "io/disk.h"
#include "sim/mem_disk.h"

struct vos_proc;
struct sim_disk;

extern uint64_t sim_disk_slow_max_ns; /* of one call; 0: none takes time */

struct sim_disk *sim_disk_new(uint64_t space_bytes);
const struct mc_disk *sim_disk_ops(struct sim_disk *disk);
/** What mc_disk_real is for a process. */
void sim_disk_give(struct vos_proc *proc, struct sim_disk *disk);
/** After vos_kill(). */
void sim_disk_proc_end(struct vos_proc *proc);
/** The power of a disk fails, and no process has it open: what was not synced may be gone. */
void sim_disk_cut(struct sim_disk *disk);

#endif
