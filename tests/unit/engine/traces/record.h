/*
 * record.h: how the traces of this folder are recorded: a build of the shipped sources with this
 * file in front of each (-include), run as an initiator of transfer_engine_bench. README.md has the
 * commands.
 *
 * A trace must tell what would have come of the choice that a policy does not make. So the build
 * makes all choices in turn: bulk transfers over 1, 2, 4 lanes, waits that poll and waits that
 * sleep; and writes down how long each took.
 */
#ifndef MC_TESTS_RECORD_H
#define MC_TESTS_RECORD_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/spin.h"
#include "engine/climb.h"

/* The waits of initiators' lanes are these; others poll as ever. */
#define RECORD_SPIN_FILE "base/spin.c"
#define RECORD_LOOK_NS 10000000u
#define RECORD_BURST 16u /* waits on end, of every RECORD_BURST * RECORD_STEP */
#define RECORD_STEP 64u

struct record {
	char text[1u << 16];
	size_t len;
	unsigned n;
	uint64_t looked_ns;
	long runnable;
};

static struct record record __attribute__((unused));

static inline bool record_is_on(void)
{
	return getenv("MC_RECORD") != NULL;
}

__attribute__((destructor, unused)) static void record_flush(void)
{
	const char *path = getenv("MC_RECORD");
	FILE *f = path && record.len ? fopen(path, "ae") : NULL;

	if (f && fwrite(record.text, 1, record.len, f) != record.len)
		perror(path);
	if (f)
		(void)fclose(f);
	record.len = 0;
}

static inline void record_line(const char *kind, unsigned long long a, unsigned long long b,
			       unsigned long long c, long d)
{
	if (record.len + 128 > sizeof(record.text))
		return; /* a trace is small */
	record.len += (size_t)snprintf(record.text + record.len, 128, "%s %llu %llu %llu %ld\n",
				       kind, a, b, c, d);
}

/* Runnable threads of the machine, as spin.c sees them. */
static inline long record_runnable(uint64_t now_ns)
{
	float a, b, c;
	FILE *f;

	if (now_ns - record.looked_ns < RECORD_LOOK_NS)
		return record.runnable;
	record.looked_ns = now_ns;
	f = fopen("/proc/loadavg", "re");
	if (!f || fscanf(f, "%f %f %f %ld", &a, &b, &c, &record.runnable) != 4)
		record.runnable = 0;
	if (f)
		(void)fclose(f);
	return record.runnable;
}

static inline uint32_t record_budget(struct mc_spin *s, uint64_t now_ns, const char *file)
{
	if (!record_is_on() || !strstr(file, RECORD_SPIN_FILE))
		return mc_spin_budget(s, now_ns);
	return record.n % 2 == 0 ? MC_SPIN_BUSY_MAX_NS : 0;
}

static inline void record_note(struct mc_spin *s, uint64_t now_ns, uint64_t waited_ns,
			       bool has_polled, const char *file)
{
	if (record_is_on() && strstr(file, RECORD_SPIN_FILE)) {
		if (record.n / RECORD_BURST % RECORD_STEP == 0)
			record_line("wait", now_ns - waited_ns, waited_ns, has_polled,
				    record_runnable(now_ns));
		record.n++;
	}
	mc_spin_note(s, now_ns, waited_ns, has_polled);
}

static inline unsigned record_width(struct mc_climb *c, unsigned lanes_max)
{
	return record_is_on() ? record.n++ % MC_CLIMB_WIDTHS : mc_climb_width(c, lanes_max);
}

static inline void record_climb(struct mc_climb *c, unsigned width, uint64_t bytes,
				uint64_t took_ns)
{
	if (record_is_on())
		record_line("bulk", mc_now_ns(), bytes, took_ns, (long)width);
	mc_climb_note(c, width, bytes, took_ns);
}

#define mc_spin_budget(s, now_ns) record_budget(s, now_ns, __FILE__)
#define mc_spin_note(s, now_ns, waited_ns, polled)                                                 \
	record_note(s, now_ns, waited_ns, polled, __FILE__)
#define mc_climb_width record_width
#define mc_climb_note record_climb

#endif
