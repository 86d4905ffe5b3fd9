/*
 * notify.c: messages between the programs of two engines: sending, and the bounded inbox. A message
 * that is sent twice, because its answer was lost, is taken once: the last ids are remembered.
 */
#include <string.h>

#include "base/fork.h"
#include "base/rand.h"
#include "engine/ctl.h"
#include "engine/priv.h"

int mc_notify_check(const struct mc_notify *n)
{
	if ((n->name_len && !n->name) || (n->msg_len && !n->msg))
		return -MC_E_INVAL;
	if (n->name_len > MC_NOTIFY_MAX || n->msg_len > MC_NOTIFY_MAX - n->name_len)
		return -MC_E_TOO_BIG;
	return 0;
}

int mc_notify_deliver(struct mc_session *s, const void *name, uint32_t name_len, const void *msg,
		      uint32_t msg_len, uint64_t deadline_ns)
{
	uint64_t id;
	int rc;

	if (s->kind == MC_PEER_SELF)
		return mc_inbox_put(s->eng, 0, name, name_len, msg, msg_len);
	if (s->kind == MC_PEER_FILE)
		return -MC_E_UNSUPPORTED;
	if (s->kind == MC_PEER_CLASSIC) {
		struct mc_diag diag;
		char to[MC_ADDR_TEXT_MAX];

		return mc_handshake_notify(&s->eng->hs, mc_addr_format(&s->ctl_addr, to), name,
					   name_len, msg, msg_len, deadline_ns, &diag);
	}
	rc = mc_rand_bytes(&id, sizeof(id));
	if (rc < 0)
		return rc;
	return mc_ctl_notify(s, id ? id : 1, name, name_len, msg, msg_len, deadline_ns);
}

int mc_notify_send(struct mc_engine *eng, int32_t segment, const struct mc_notify *n,
		   uint64_t timeout_ns)
{
	uint64_t deadline_ns;
	struct mc_session *s;
	struct mc_peer *p;
	int rc;

	if (mc_engine_is_forked(eng))
		return -MC_E_FORKED;
	rc = mc_notify_check(n);
	if (rc < 0)
		return rc;
	if (timeout_ns == 0)
		timeout_ns = (uint64_t)eng->conf.transfer_timeout_s * MC_NS_PER_S;
	deadline_ns = mc_time_after(mc_now_ns(), timeout_ns);
	rc = mc_peer_by_id(eng, segment, &p);
	if (rc < 0)
		return rc;
	rc = mc_session_get(p, deadline_ns, NULL, &s);
	if (rc < 0)
		return rc;
	rc = mc_notify_deliver(s, n->name, n->name_len, n->msg, n->msg_len, deadline_ns);
	mc_session_put(s);
	return rc;
}

/* ---- inbox ---- */

static void node_free(struct mc_notice_node *n)
{
	mc_free(n->n.name);
	mc_free(n->n.msg);
	mc_free(n);
}

static struct mc_notice_node *node_new(const void *name, size_t name_len, const void *msg,
				       size_t msg_len)
{
	struct mc_notice_node *n = mc_calloc(1, sizeof(*n));

	if (!n)
		return NULL;
	n->n.name = mc_calloc(1, name_len + 1);
	n->n.msg = mc_calloc(1, msg_len + 1);
	if (!n->n.name || !n->n.msg) {
		node_free(n);
		return NULL;
	}
	if (name_len)
		memcpy(n->n.name, name, name_len);
	if (msg_len)
		memcpy(n->n.msg, msg, msg_len);
	n->n.name_len = (uint32_t)name_len;
	n->n.msg_len = (uint32_t)msg_len;
	return n;
}

/* Under inbox_mu. */
static bool was_seen(struct mc_engine *eng, uint64_t id)
{
	if (id == 0)
		return false;
	for (unsigned i = 0; i < MC_ARRAY_LEN(eng->seen_notify); i++)
		if (eng->seen_notify[i] == id)
			return true;
	return false;
}

int mc_inbox_put(struct mc_engine *eng, uint64_t id, const void *name, size_t name_len,
		 const void *msg, size_t msg_len)
{
	struct mc_notice_node *n;
	size_t bytes = name_len + msg_len;
	int rc = 0;

	if (name_len > MC_NOTIFY_MAX || msg_len > MC_NOTIFY_MAX - name_len)
		return -MC_E_TOO_BIG;
	n = node_new(name, name_len, msg, msg_len);
	if (!n)
		return -MC_E_NOMEM;
	pthread_mutex_lock(&eng->inbox_mu);
	if (was_seen(eng, id)) {
		rc = -MC_E_EXIST;
	} else if (eng->inbox_n >= MC_INBOX_MAX || eng->inbox_bytes + bytes > MC_INBOX_BYTES_MAX) {
		rc = -MC_E_AGAIN;
	} else {
		mc_list_push_back(&eng->inbox, &n->link);
		eng->inbox_n++;
		eng->inbox_bytes += bytes;
		if (id)
			eng->seen_notify[eng->seen_at++ % MC_ARRAY_LEN(eng->seen_notify)] = id;
	}
	pthread_mutex_unlock(&eng->inbox_mu);
	if (rc < 0)
		node_free(n);
	return rc;
}

int mc_notices_take(struct mc_engine *eng, struct mc_notice **ret_notices)
{
	struct mc_notice *out = NULL;
	struct mc_notice_node *n;
	int count = 0;

	if (mc_engine_is_forked(eng))
		return -MC_E_FORKED;
	pthread_mutex_lock(&eng->inbox_mu);
	if (eng->inbox_n > 0) {
		out = mc_calloc(eng->inbox_n, sizeof(*out));
		if (!out) {
			pthread_mutex_unlock(&eng->inbox_mu);
			return -MC_E_NOMEM;
		}
		mc_list_each (n, &eng->inbox, link) {
			mc_list_del(&n->link);
			out[count++] = n->n;
			mc_free(n);
		}
		eng->inbox_n = eng->inbox_bytes = 0;
	}
	pthread_mutex_unlock(&eng->inbox_mu);
	*ret_notices = out;
	return count;
}

void mc_notices_free(struct mc_notice *notices, int n)
{
	for (int i = 0; i < n; i++) {
		mc_free(notices[i].name);
		mc_free(notices[i].msg);
	}
	mc_free(notices);
}

void mc_inbox_fini(struct mc_engine *eng)
{
	struct mc_notice_node *n;

	mc_list_each (n, &eng->inbox, link)
		node_free(n);
	mc_list_init(&eng->inbox);
}
