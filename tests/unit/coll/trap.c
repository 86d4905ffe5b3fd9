/*
 * trap.c: the memory is made read-only; each store faults, is counted, and executed in one step
 * with the memory writable (sigaction(2), the trap flag of the x86's EFLAGS).
 */
#include "trap.h"

#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define LEN 4096u

#if defined(__x86_64__)

#define TRAP_FLAG 0x100

static uint8_t *page;
static _Atomic uint64_t left;

static void on_store(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;

	(void)sig;
	if ((uintptr_t)info->si_addr - (uintptr_t)page >= LEN) {
		(void)signal(SIGSEGV, SIG_DFL); /* a fault of its own: again, and dead */
		return;
	}
	if (left == 0)
		(void)kill(getpid(), SIGKILL);
	left--;
	(void)mprotect(page, LEN, PROT_READ | PROT_WRITE);
	uc->uc_mcontext.gregs[REG_EFL] |= TRAP_FLAG;
}

static void on_step(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;

	(void)sig;
	(void)info;
	(void)mprotect(page, LEN, PROT_READ);
	uc->uc_mcontext.gregs[REG_EFL] &= ~TRAP_FLAG;
}

bool trap_is_possible(void)
{
	return true;
}

void trap_set(void *at, uint64_t n)
{
	const struct sigaction store = {.sa_sigaction = on_store, .sa_flags = SA_SIGINFO};
	const struct sigaction step = {.sa_sigaction = on_step, .sa_flags = SA_SIGINFO};

	page = at;
	left = n;
	if (sigaction(SIGSEGV, &store, NULL) < 0 || sigaction(SIGTRAP, &step, NULL) < 0 ||
	    mprotect(page, LEN, PROT_READ) < 0)
		_exit(9);
}

void trap_clear(void)
{
	(void)mprotect(page, LEN, PROT_READ | PROT_WRITE);
	page = NULL;
}

#else

bool trap_is_possible(void)
{
	return false;
}

void trap_set(void *at, uint64_t n)
{
	(void)at;
	(void)n;
}

void trap_clear(void)
{
}

#endif
