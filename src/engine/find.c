/*
 * find.c: from a segment's name to where its process is and what it shows: directly (P2P, the name
 * is an address) or through the metadata service. Also sessions of local files.
 */
#include <string.h>

#include "base/log.h"
#include "disco/segdesc.h"
#include "engine/describe.h"
#include "engine/files.h"
#include "engine/pump.h"
#include "xport/file.h"

static int find_p2p(struct mc_session *s, uint64_t deadline_ns, struct mc_diag *diag,
		    struct mc_addr *ret_ctl_addr, char **ret_json, size_t *ret_len)
{
	struct mc_engine *eng = s->eng;
	char *mine;
	size_t mine_len;
	int rc = mc_addr_resolve(s->peer->name, (uint16_t)eng->hs.port_default, ret_ctl_addr, diag);

	if (rc < 0)
		return rc;
	rc = mc_describe(eng, mc_describe_has_rdma(eng), (size_t)eng->hs.bytes_max, &mine,
			 &mine_len, diag);
	if (rc < 0)
		return rc;
	rc = mc_handshake_metadata(&eng->hs, s->peer->name, mine, deadline_ns, ret_json, ret_len,
				   diag);
	mc_free(mine);
	return rc;
}

static int find_meta(struct mc_session *s, uint64_t deadline_ns, struct mc_diag *diag,
		     struct mc_addr *ret_ctl_addr, char **ret_json, size_t *ret_len)
{
	struct mc_meta_rpc rpc;
	int rc =
	    mc_meta_segment_get(s->eng->meta, s->peer->name, deadline_ns, ret_json, ret_len, diag);

	if (rc < 0)
		return rc;
	rc = mc_meta_rpc_get(s->eng->meta, s->peer->name, deadline_ns, &rpc, diag);
	if (rc == 0)
		rc = mc_addr_resolve(rpc.host, rpc.port, ret_ctl_addr, diag);
	if (rc == 0)
		mc_addr_port_set(ret_ctl_addr, rpc.port);
	if (rc < 0)
		mc_free(*ret_json);
	return rc;
}

int mc_find_peer(struct mc_session *s, uint64_t deadline_ns, struct mc_diag *diag,
		 struct mc_addr *ret_ctl_addr, struct mc_segdesc **ret_desc)
{
	char *json = NULL;
	size_t len;
	int rc = s->eng->meta ? find_meta(s, deadline_ns, diag, ret_ctl_addr, &json, &len)
			      : find_p2p(s, deadline_ns, diag, ret_ctl_addr, &json, &len);

	if (rc < 0)
		return rc;
	rc = mc_segdesc_decode(json, len, ret_desc, diag);
	mc_free(json);
	return rc;
}

/* ---- local files ---- */

int mc_session_open_file(struct mc_session *s, struct mc_diag *diag)
{
	struct mc_engine *eng = s->eng;
	struct mc_remote_region r = {.len = UINT64_MAX >> 1, .gen = 1, .kind = MC_MEM_FILE};
	const struct mc_remote_region *known;
	struct mc_xdev *dev;
	int rc;

	s->kind = MC_PEER_FILE;
	rc = mc_files_dev(eng, &dev);
	if (rc == 0)
		rc = mc_file_seg_open(dev, s->peer->name + strlen(MC_FILE_SCHEME), &s->file, diag);
	if (rc < 0)
		return rc;
	s->fence_key = mc_file_seg_id(s->file);
	r.rights = mc_file_seg_rights(s->file);
	return mc_session_learn(s, &r, &known);
}
