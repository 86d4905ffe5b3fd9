/*
 * mooncake_client.c: a node of a Store as a program: memory for the pool, until it is told to stop.
 */
#include <signal.h>
#include <stdio.h>
#include <time.h>

#include "base/log.h"
#include "base/mem.h"
#include "cli/node_flags.h"

#define PATIENCE_S 3

static int run(struct mc_node_flags *flags, const sigset_t *stop, struct mc_diag *diag)
{
	const struct timespec patience = {.tv_sec = PATIENCE_S};
	struct mc_node *node;
	int rc = mc_node_open(&flags->conf, diag, &node), signo;

	if (rc < 0)
		return rc;
	printf("mooncake_client serves on %s, segment %s", mc_node_address(node),
	       mc_node_segment(node));
	if (mc_node_http_port(node))
		printf(", HTTP port %u", mc_node_http_port(node));
	printf("\n");
	(void)fflush(stdout);
	signo = sigtimedwait(stop, NULL, &patience);
	if (signo < 0 && !mc_node_is_adopted(node))
		mc_log_warn("the master does not answer; the node goes on trying",
			    "master=%s hint=--master_server_address", flags->master);
	if (signo < 0)
		(void)sigwait(stop, &signo);
	mc_node_close(node);
	return 0;
}

int main(int argc, char **argv)
{
	struct mc_node_flags *flags = mc_calloc(1, sizeof(*flags));
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
	rc = mc_node_flags_parse(argc, argv, flags, &diag);
	if (rc == 0)
		rc = run(flags, &stop, &diag);
	if (rc < 0)
		(void)fprintf(stderr, "mooncake_client: %s\n", diag.text);
	mc_free(flags);
	return rc < 0 ? 1 : 0;
}
