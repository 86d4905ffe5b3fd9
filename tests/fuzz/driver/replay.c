/*
 * replay.c: run a fuzz target over a folder of inputs without libFuzzer, as zstd's regression
 * driver does, so that every compiler and sanitizer build checks what fuzzing once found.
 *
 * Each input runs as it is and cut at its first CUTS_MAX lengths: a parser meets every short read.
 * A buffer is exactly as long as its input, so that a sanitizer sees the first byte beyond.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define INPUT_BYTES_MAX (16u << 20)
#define CUTS_MAX 512

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void run_copy(const uint8_t *data, size_t len)
{
	uint8_t *copy = malloc(len ? len : 1);

	if (!copy) {
		fprintf(stderr, "replay: no memory for %zu bytes\n", len);
		exit(1);
	}
	memcpy(copy, data, len);
	(void)LLVMFuzzerTestOneInput(copy, len);
	free(copy);
}

static int read_all(int fd, uint8_t *buf, size_t len)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = read(fd, buf + done, len - done);

		if (n == 0)
			errno = EIO; /* the file got shorter meanwhile */
		if (n <= 0)
			return -1;
		done += (size_t)n;
	}
	return 0;
}

/* Returns 0, or -1 with errno. */
static int run_file(int dir_fd, const char *name)
{
	struct stat st;
	uint8_t *buf = NULL;
	size_t len;
	int rc = -1;
	int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -1;
	if (fstat(fd, &st) < 0)
		goto out;
	if (!S_ISREG(st.st_mode) || st.st_size > (off_t)INPUT_BYTES_MAX) {
		errno = EFBIG;
		goto out;
	}
	len = (size_t)st.st_size;
	buf = malloc(len ? len : 1);
	if (!buf || read_all(fd, buf, len) < 0)
		goto out;
	run_copy(buf, len);
	for (size_t cut = 0; cut < len && cut < CUTS_MAX; cut++)
		run_copy(buf, cut);
	rc = 0;
out:
	free(buf);
	close(fd);
	return rc;
}

/* Returns how many inputs ran, or -1 after it printed why. */
static int run_folder(const char *path)
{
	struct dirent *entry;
	int count = 0;
	DIR *dir = opendir(path);

	if (!dir) {
		fprintf(stderr, "replay: %s: %s\n", path, strerror(errno));
		return -1;
	}
	while ((entry = readdir(dir))) {
		if (entry->d_name[0] == '.')
			continue;
		if (run_file(dirfd(dir), entry->d_name) < 0) {
			fprintf(stderr, "replay: %s/%s: %s\n", path, entry->d_name,
				strerror(errno));
			count = -1;
			break;
		}
		count++;
	}
	closedir(dir);
	return count;
}

int main(int argc, char **argv)
{
	int count;

	if (argc != 2) {
		fprintf(stderr, "usage: %s CORPUS-FOLDER\n", argv[0]);
		return 2;
	}
	count = run_folder(argv[1]);
	if (count == 0)
		fprintf(stderr, "replay: %s: no input; a target needs a corpus\n", argv[1]);
	if (count <= 0)
		return 1;
	printf("%d inputs\n", count);
	return 0;
}
