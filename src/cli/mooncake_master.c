/*
 * mooncake_master.c: the master of a Store as a program.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "cli/master_flags.h"
#include "io/sock.h"
#include "master/admin.h"
#include "master/metadata.h"

#define PATH_MAX_BYTES 4096

/* mkdir -p. @return 0 or -errno */
static int directory_make(char *path)
{
	for (char *at = path + 1;; at++) {
		char c = *at;

		if (c != '/' && c != '\0')
			continue;
		*at = '\0';
		if (mkdir(path, 0700) != 0 && errno != EEXIST)
			return -errno;
		*at = c;
		if (c == '\0')
			return access(path, W_OK | X_OK) == 0 ? 0 : -errno;
	}
}

/* Where the state is kept when nobody says. */
static void directory_choose(uint16_t port, char path[PATH_MAX_BYTES])
{
	const char *base = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
	const char *below = "";

	if (!base || base[0] != '/') {
		base = "/var/lib";
		if (geteuid() != 0 && home && home[0] == '/') {
			base = home;
			below = "/.local/state";
		}
	}
	(void)snprintf(path, PATH_MAX_BYTES, "%s%s/mooncake/master-%u", base, below, port);
}

/* NULL: nothing can be kept, which is told. */
static const char *state_dir(const struct mc_master_flags *flags, char path[PATH_MAX_BYTES])
{
	int rc;

	if (strcmp(flags->state_dir, "-") == 0)
		return NULL;
	if (flags->state_dir[0])
		(void)snprintf(path, PATH_MAX_BYTES, "%s", flags->state_dir);
	else
		directory_choose(flags->listen_port, path);
	rc = directory_make(path);
	if (rc == 0)
		return path;
	mc_log_warn("state directory cannot be used; a restart of this master will not know its "
		    "epoch and what was removed",
		    "dir=%s error=%s hint=--state_dir", path, strerror(-rc));
	return NULL;
}

static int listen_on(struct mc_master *master, const struct mc_master_flags *flags,
		     struct mc_diag *diag)
{
	char text[MC_ADDR_TEXT_MAX];
	struct mc_addr at, bound;
	int rc = mc_addr_resolve(flags->rpc_address, flags->listen_port, &at, diag);

	if (rc < 0) {
		mc_diag_wrap(diag, "option '--rpc_address'");
		return rc;
	}
	mc_addr_port_set(&at, flags->listen_port);
	rc = mc_master_listen(master, &at, &bound);
	if (rc < 0) {
		mc_diag_set(diag, "%s: %s; choose another with --rpc_address and --rpc_port",
			    mc_addr_format(&at, text), mc_err_text(rc));
		return rc;
	}
	printf("mooncake_master serves on %s, epoch %" PRIu64 "\n", mc_addr_format(&bound, text),
	       mc_master_epoch(master));
	(void)fflush(stdout);
	return 0;
}

/* Without libmicrohttpd, or with its port in use, the master serves all the same. */
static void admin_open(struct mc_master *master, const struct mc_master_flags *flags,
		       struct mc_master_admin **ret_admin)
{
	struct mc_diag diag = {.text = ""};
	struct mc_addr at;
	int rc;

	if (flags->metrics_port == 0)
		return;
	rc = mc_addr_resolve(flags->metrics_host, (uint16_t)flags->metrics_port, &at, &diag);
	if (rc == 0)
		rc = mc_master_admin_open(master, &at, &diag, ret_admin);
	if (rc < 0)
		mc_log_warn("no metrics and no administration over HTTP",
			    "cause=\"%s\" hint=\"--metrics_port, --metrics_host\"", diag.text);
}

/* Engines were told to look there: without it they would wait in vain. */
static int metadata_open(struct mc_loop *side, const struct mc_master_flags *flags,
			 struct mc_diag *diag, struct mc_metadata **ret)
{
	char text[MC_ADDR_TEXT_MAX];
	struct mc_addr at;
	int rc;

	if (!flags->has_metadata)
		return 0;
	rc = mc_addr_resolve(flags->metadata_host, (uint16_t)flags->metadata_port, &at, diag);
	if (rc == 0)
		rc = mc_metadata_open(side, &at, 0, diag, ret);
	if (rc < 0) {
		mc_diag_wrap(diag, "--enable_http_metadata_server (--http_metadata_server_host, "
				   "--http_metadata_server_port)");
		return rc;
	}
	mc_addr_port_set(&at, mc_metadata_port(*ret));
	printf("mooncake_master serves http://%s/metadata\n", mc_addr_format(&at, text));
	(void)fflush(stdout);
	return 0;
}

static int run(struct mc_master_flags *flags, const sigset_t *stop, struct mc_diag *diag)
{
	struct mc_loop *loop = NULL, *side = NULL;
	struct mc_master_admin *admin = NULL;
	struct mc_metadata *metadata = NULL;
	struct mc_master *master = NULL;
	char path[PATH_MAX_BYTES];
	int rc, signo;

	flags->conf.state_dir = state_dir(flags, path);
	rc = mc_loop_open("master", mc_env_real.clk, &loop);
	if (rc == 0)
		rc = mc_loop_open("master-side", mc_env_real.clk, &side);
	if (rc == 0)
		rc = mc_loop_start(loop);
	if (rc == 0)
		rc = mc_loop_start(side);
	if (rc < 0)
		mc_diag_set(diag, "threads do not start: %s", mc_err_text(rc));
	if (rc == 0)
		rc = mc_master_open(&mc_env_real, loop, side, &flags->conf, diag, &master);
	if (rc == 0)
		rc = listen_on(master, flags, diag);
	if (rc == 0)
		rc = metadata_open(side, flags, diag, &metadata);
	if (rc == 0)
		admin_open(master, flags, &admin); /* last: who sees it sees all */
	if (rc == 0)
		(void)sigwait(stop, &signo);
	mc_metadata_close(metadata);
	mc_master_admin_close(admin);
	mc_master_close(master);
	mc_loop_close(side);
	mc_loop_close(loop);
	return rc;
}

int main(int argc, char **argv)
{
	struct mc_master_flags *flags = mc_calloc(1, sizeof(*flags));
	struct mc_diag diag = {.text = ""};
	sigset_t stop;
	int rc;

	if (!flags)
		return 1;
	sigemptyset(&stop);
	sigaddset(&stop, SIGINT);
	sigaddset(&stop, SIGTERM);
	(void)pthread_sigmask(SIG_BLOCK, &stop, NULL); /* before there are threads */
	(void)signal(SIGPIPE, SIG_IGN);
	mc_fd_limit_raise();
	rc = mc_master_flags_parse(argc, argv, flags, &diag);
	if (rc == 0)
		rc = run(flags, &stop, &diag);
	if (rc < 0)
		(void)fprintf(stderr, "mooncake_master: %s\n", diag.text);
	mc_free(flags);
	return rc < 0 ? 1 : 0;
}
