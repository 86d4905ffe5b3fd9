/*
 * node.h: an owner in a process of its own: an engine, an owner on it, perhaps a disk behind it,
 * and HTTP for monitors.
 */
#ifndef MC_NODE_NODE_H
#define MC_NODE_NODE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct mc_node;

/** Strings are not kept. */
struct mc_node_conf {
	const char *name; /* as mc_engine_opts.name; NULL: first address of an UP interface */
	const char *metadata, *protocol, *devices; /* as mc_engine_opts */
	const char *master;			   /* "host:port" */
	const char *tenant;			   /* of dummy clients; NULL: the default one */
	uint16_t dummy_port;	/* they are served under its number; 0: none are */
	uint64_t segment_bytes; /* of memory for the pool */
	const char *disk_path;	/* directory of the SSD tier; NULL: none */
	uint64_t disk_bytes;	/* its files may take so much; 0: nine tenths of what is free */
	bool has_http;
	const char *http_host; /* address to listen on */
	uint16_t http_port;    /* 0: any */
};

/**
 * Open. Does not wait for the master.
 * @return 0; < 0 with a diag that says what is wrong: codes of mc_engine_open(), mc_owner_open(),
 * mc_ssd_open(), mc_http_server_open(), mc_dummies_open() (but that another process serves dummies
 * under that number is only logged)
 */
MC_MUST_CHECK int mc_node_open(const struct mc_node_conf *conf, struct mc_diag *diag,
			       struct mc_node **ret);
/** Leaves the pool with its objects; what is on the disk comes back with the next node on it. NULL
 * is allowed. */
void mc_node_close(struct mc_node *node);
/** "host:port" that peers open. */
const char *mc_node_segment(const struct mc_node *node);
/** "ip:port" of its rpc. */
const char *mc_node_address(const struct mc_node *node);
/** Of /health and /metrics; 0: not served. */
uint16_t mc_node_http_port(const struct mc_node *node);
/** The master knows what the node has. */
bool mc_node_is_adopted(struct mc_node *node);
/** What /metrics gives. mc_text_free(); NULL without memory */
char *mc_node_metrics(struct mc_node *node);

#endif
