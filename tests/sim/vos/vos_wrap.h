/*
 * vos_wrap.h: what the linker puts in the place of libc's functions (--wrap, meson.build), with
 * libc's own contracts as far as the object files under test use them.
 */
#ifndef TESTS_SIM_VOS_WRAP_H
#define TESTS_SIM_VOS_WRAP_H

#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>

int vos_epoll_wait(int fd, struct epoll_event *events, int max, uint64_t deadline_ns);

int __wrap_clock_gettime(clockid_t id, struct timespec *ts);
int __wrap_nanosleep(const struct timespec *ts, struct timespec *left);
ssize_t __wrap_getrandom(void *buf, size_t len, unsigned flags);
int __wrap_pthread_create(pthread_t *ret, const pthread_attr_t *attr, void *(*fn)(void *arg),
			  void *arg);
int __wrap_pthread_join(pthread_t thread, void **ret);
pthread_t __wrap_pthread_self(void);
int __wrap_pthread_setname_np(pthread_t thread, const char *name);
int __wrap_pthread_sigmask(int how, const sigset_t *set, sigset_t *old);
int __wrap_pthread_mutex_init(pthread_mutex_t *mu, const pthread_mutexattr_t *attr);
int __wrap_pthread_mutex_destroy(pthread_mutex_t *mu);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mu);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *mu);
int __wrap_pthread_cond_init(pthread_cond_t *cond, const pthread_condattr_t *attr);
int __wrap_pthread_cond_destroy(pthread_cond_t *cond);
int __wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mu);
int __wrap_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mu,
				  const struct timespec *until);
int __wrap_pthread_cond_clockwait(pthread_cond_t *cond, pthread_mutex_t *mu, clockid_t clock,
				  const struct timespec *until);
int __wrap_pthread_cond_signal(pthread_cond_t *cond);
int __wrap_pthread_cond_broadcast(pthread_cond_t *cond);
int __wrap_sem_init(sem_t *sem, int is_shared, unsigned value);
int __wrap_sem_destroy(sem_t *sem);
int __wrap_sem_post(sem_t *sem);
int __wrap_sem_wait(sem_t *sem);
long __wrap_syscall(long number, ...);

int __wrap_socket(int family, int type, int protocol);
int __wrap_bind(int fd, const struct sockaddr *addr, socklen_t len);
int __wrap_listen(int fd, int backlog);
int __wrap_accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags);
int __wrap_connect(int fd, const struct sockaddr *addr, socklen_t len);
int __wrap_getsockname(int fd, struct sockaddr *addr, socklen_t *len);
int __wrap_getpeername(int fd, struct sockaddr *addr, socklen_t *len);
int __wrap_setsockopt(int fd, int level, int name, const void *value, socklen_t len);
int __wrap_getsockopt(int fd, int level, int name, void *value, socklen_t *len);
ssize_t __wrap_send(int fd, const void *data, size_t len, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *msg, int flags);
ssize_t __wrap_recv(int fd, void *buf, size_t len, int flags);
int __wrap_shutdown(int fd, int how);
int __wrap_close(int fd);
int __wrap_fcntl64(int fd, int cmd, ...);
ssize_t __wrap_read(int fd, void *buf, size_t len);
ssize_t __wrap_write(int fd, const void *data, size_t len);
int __wrap_eventfd(unsigned value, int flags);
int __wrap_epoll_create1(int flags);
int __wrap_epoll_ctl(int fd, int op, int target, struct epoll_event *ev);
int __wrap_epoll_wait(int fd, struct epoll_event *events, int max, int timeout_ms);
int __wrap_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *ts, const sigset_t *mask);

#endif
