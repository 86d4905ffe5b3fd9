/*
 * sanitized.h: does this program run under a sanitizer? Those keep freed memory, are slow, and have
 * threads of their own.
 */
#ifndef MC_TEST_SANITIZED_H
#define MC_TEST_SANITIZED_H

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IS_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define IS_SANITIZED 1
#endif
#endif
#ifndef IS_SANITIZED
#define IS_SANITIZED 0
#endif

#endif
