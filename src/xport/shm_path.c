/*
 * shm_path.c: where the rendezvous socket lies. Abstract names are bound to a network namespace, so
 * it is a path, in a directory that nobody else may enter; sockets that dead processes left there
 * are removed on the way.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "base/rand.h"
#include "base/str.h"
#include "xport/shm_priv.h"

#define LISTEN_BACKLOG 1024
#define STALE_SCAN_MAX 4096 /* directory entries looked at */
#define NAME_PREFIX "te-"
#define NAME_MAX_LEN 32 /* "/.te-<16 hex>.sock" and zero */

/* Make dir ours alone, or say why it cannot be used. */
static int dir_claim(const char *dir, struct mc_diag *diag)
{
	struct stat st;

	if (strlen(dir) + NAME_MAX_LEN > MC_SHM_PATH_MAX) {
		mc_diag_set(diag, "%s: longer than a socket's path may be", dir);
		return -MC_E_UNAVAILABLE;
	}
	if (mkdir(dir, 0700) < 0 && errno != EEXIST) {
		mc_diag_set(diag, "mkdir %s: %s", dir, strerrordesc_np(errno));
		return -MC_E_UNAVAILABLE;
	}
	/* lstat: a link put there by another user must not lead us elsewhere. */
	if (lstat(dir, &st) < 0 || !S_ISDIR(st.st_mode) || st.st_uid != geteuid() ||
	    (st.st_mode & 077) != 0) {
		mc_diag_set(diag, "%s: not a directory of uid %u with mode 0700", dir,
			    (unsigned)geteuid());
		return -MC_E_UNAVAILABLE;
	}
	return 0;
}

/* Nobody listens on it any more. */
static bool is_stale(const char *path)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int sock, rc;

	if (mc_strlcpy(sun.sun_path, sizeof(sun.sun_path), path) < 0)
		return false;
	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (sock < 0)
		return false;
	rc = connect(sock, (const struct sockaddr *)&sun, sizeof(sun)) < 0 ? errno : 0;
	mc_fd_close(&sock);
	return rc == ECONNREFUSED;
}

static void stale_remove(const char *dir)
{
	char path[MC_SHM_PATH_MAX];
	struct dirent *e;
	DIR *d = opendir(dir);

	if (!d)
		return;
	for (int i = 0; i < STALE_SCAN_MAX && (e = readdir(d)); i++) {
		if (strncmp(e->d_name, NAME_PREFIX, strlen(NAME_PREFIX)) != 0 ||
		    snprintf(path, sizeof(path), "%s/%s", dir, e->d_name) >= (int)sizeof(path))
			continue;
		if (is_stale(path) && unlink(path) == 0)
			mc_log_debug("removed a dead engine's socket", "path=%s", path);
	}
	closedir(d);
}

/*
 * Bind, listen, and only then take the name that others look at: between bind() and listen() a
 * socket looks as stale as a dead one, and whoever tidies up would remove it.
 */
static int sock_listen_at(int sock, const char *hidden, const char *path)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};

	(void)mc_strlcpy(sun.sun_path, sizeof(sun.sun_path), hidden); /* of the same size */
	if (bind(sock, (const struct sockaddr *)&sun, sizeof(sun)) < 0)
		return -MC_E_UNAVAILABLE;
	if (listen(sock, LISTEN_BACKLOG) < 0 || rename(hidden, path) < 0) {
		(void)unlink(hidden); /* the first error counts */
		return -MC_E_UNAVAILABLE;
	}
	return 0;
}

static int path_bind(const char *dir, char path[MC_SHM_PATH_MAX], int *ret_fd, struct mc_diag *diag)
{
	char hidden[MC_SHM_PATH_MAX];
	unsigned long long name;
	uint64_t unique;
	int sock, rc;

	rc = mc_rand_bytes(&unique, sizeof(unique));
	if (rc < 0)
		return rc;
	name = unique;
	/* Both fit: dir_claim() has looked. */
	(void)snprintf(path, MC_SHM_PATH_MAX, "%s/" NAME_PREFIX "%016llx.sock", dir, name);
	(void)snprintf(hidden, sizeof(hidden), "%s/." NAME_PREFIX "%016llx.sock", dir, name);
	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (sock < 0) {
		rc = mc_err_from_errno(errno);
		mc_diag_set(diag, "unix socket: %s", strerrordesc_np(errno));
		return rc;
	}
	rc = sock_listen_at(sock, hidden, path);
	if (rc < 0) {
		mc_diag_set(diag, "listen on %s: %s", path, strerrordesc_np(errno));
		mc_fd_close(&sock);
		return rc;
	}
	*ret_fd = sock;
	return 0;
}

static int dir_try(const char *dir, char path[MC_SHM_PATH_MAX], int *ret_fd, struct mc_diag *diag)
{
	int rc;

	rc = dir_claim(dir, diag);
	if (rc < 0)
		return rc;
	stale_remove(dir);
	return path_bind(dir, path, ret_fd, diag);
}

int mc_shm_path_listen(const char *dir, char path[MC_SHM_PATH_MAX], int *ret_fd,
		       struct mc_diag *diag)
{
	const char *run = getenv("XDG_RUNTIME_DIR");
	struct mc_diag why = {0};
	char own[MC_SHM_PATH_MAX];

	if (dir)
		return dir_try(dir, path, ret_fd, diag);
	if (run && run[0] == '/' &&
	    snprintf(own, sizeof(own), "%s/mooncake", run) < (int)sizeof(own)) {
		if (dir_try(own, path, ret_fd, &why) == 0)
			return 0;
		mc_log_debug("no socket in the run-time directory", "dir=%s cause=\"%s\"", own,
			     why.text);
	} else if (run && run[0]) {
		mc_log_debug("no socket in the run-time directory", "dir=%.64s cause=\"%s\"", run,
			     run[0] == '/' ? "longer than a socket's path may be"
					   : "not an absolute path");
	}
	snprintf(own, sizeof(own), "/tmp/mooncake-%u", (unsigned)geteuid());
	return dir_try(own, path, ret_fd, diag);
}
