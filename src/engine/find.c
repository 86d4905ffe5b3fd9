/*
 * find.c: from a segment's name to where its process is and what it shows: directly (P2P, the name
 * is an address) or through the metadata service. Also the two kinds of session that have no
 * control connection: upstream's processes and local files.
 */
#include <string.h>

#include "base/log.h"
#include "disco/segdesc.h"
#include "engine/pump.h"
#include "xport/file.h"

#define CLASSIC_LEN_MAX (1ull << 47) /* a buffer's length that we believe */

static int find_p2p(struct mc_session *s, uint64_t deadline_ns, struct mc_diag *diag,
		    struct mc_addr *ret_ctl_addr, char **ret_json, size_t *ret_len)
{
	struct mc_engine *eng = s->eng;
	char *mine;
	size_t mine_len;
	int rc = mc_addr_resolve(s->peer->name, (uint16_t)eng->hs.port_default, ret_ctl_addr, diag);

	if (rc < 0)
		return rc;
	rc = mc_serve_descriptor(eng, (size_t)eng->hs.bytes_max, &mine, &mine_len, diag);
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

/* ---- upstream's processes ---- */

static int classic_learn(struct mc_session *s, const struct mc_segdesc *desc)
{
	const struct mc_remote_region *known;

	for (size_t i = 0; i < desc->nbuffers; i++) {
		const struct mc_segdesc_buffer *b = &desc->buffers[i];
		struct mc_remote_region r = {
		    .addr = b->addr, .len = b->len, .rights = MC_RIGHT_READ | MC_RIGHT_WRITE};
		int rc;

		if (b->len == 0 || b->len > CLASSIC_LEN_MAX || b->addr > UINT64_MAX - b->len)
			continue;
		rc = mc_session_learn(s, &r, &known);
		if (rc < 0)
			return rc;
	}
	return 0;
}

int mc_classic_open(struct mc_session *s, const struct mc_segdesc *desc, struct mc_diag *diag)
{
	struct mc_rail *rail = &s->tcp.v[0];
	char text[MC_ADDR_TEXT_MAX];
	int rc = 0;

	if (strcmp(desc->protocol, "tcp") != 0 || desc->tcp_data_port == 0) {
		mc_diag_set(diag,
			    "peer offers protocol \"%s\" only; this build reaches upstream "
			    "peers over tcp",
			    desc->protocol);
		return -MC_E_UNSUPPORTED;
	}
	rail->remote = s->ctl_addr;
	if (desc->tcp_data_host[0])
		rc = mc_addr_resolve(desc->tcp_data_host, desc->tcp_data_port, &rail->remote, diag);
	if (rc < 0)
		return rc;
	mc_addr_port_set(&rail->remote, desc->tcp_data_port);
	rail->stats = mc_stats_rail(s->eng, "tcp-classic", "any", s->peer->name);
	s->classic_proto = s->eng->conf.classic_proto == 1 ? 1 : (int)desc->tcp_proto_version;
	if (s->classic_proto < 1)
		s->classic_proto = 1;
	if (s->classic_proto == 1)
		mc_log_warn("peer does not confirm writes", "peer=%s frames=1 data=%s",
			    s->peer->name, mc_addr_format(&rail->remote, text));
	return classic_learn(s, desc);
}

int mc_classic_refresh(struct mc_session *s, uint64_t addr, uint64_t deadline_ns,
		       const struct mc_remote_region **ret_region)
{
	struct mc_segdesc *desc;
	struct mc_inode *n;
	struct mc_addr at;
	int rc = mc_find_peer(s, deadline_ns, NULL, &at, &desc);

	if (rc < 0)
		return rc;
	/* Another data port is another process under the same name. */
	if (desc->tcp_data_port != mc_addr_port(&s->tcp.v[0].remote))
		rc = -MC_E_PEER_RESTARTED;
	else
		rc = classic_learn(s, desc);
	mc_segdesc_free(desc);
	if (rc < 0) {
		if (rc == -MC_E_PEER_RESTARTED)
			mc_session_gone(s);
		return rc;
	}
	pthread_mutex_lock(&s->mu);
	n = mc_itree_find(&s->regions, addr, 1);
	*ret_region = n ? &mc_container_of(n, struct mc_eregion, node)->r : NULL;
	pthread_mutex_unlock(&s->mu);
	return *ret_region ? 0 : -MC_E_RANGE;
}

/* ---- local files ---- */

int mc_session_open_file(struct mc_session *s, struct mc_diag *diag)
{
	struct mc_engine *eng = s->eng;
	struct mc_remote_region r = {.len = UINT64_MAX >> 1, .gen = 1, .kind = MC_MEM_FILE};
	const struct mc_remote_region *known;
	int rc = 0;

	s->kind = MC_PEER_FILE;
	pthread_mutex_lock(&eng->publish_mu);
	if (!eng->file) {
		struct mc_xdev_env env = mc_engine_xdev_env(eng);

		rc = mc_file_dev_open(&env, &eng->file);
	}
	pthread_mutex_unlock(&eng->publish_mu);
	if (rc == 0)
		rc = mc_file_seg_open(eng->file, s->peer->name + strlen(MC_FILE_SCHEME), &s->file,
				      diag);
	if (rc < 0)
		return rc;
	r.rights = mc_file_seg_rights(s->file);
	return mc_session_learn(s, &r, &known);
}
