/*
 * widest.h: one build for every machine: of a function marked MC_WIDEST the loader takes the widest
 * version that the processor has.
 */
#ifndef MC_BASE_WIDEST_H
#define MC_BASE_WIDEST_H

/* Sanitizers run before the loader's choice could be made; clang 14 has no such attribute. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) &&                             \
    !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define MC_WIDEST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MC_WIDEST
#endif

/*
 * In front of a loop: what it writes at one index it reads at no other. clang takes it for a demand
 * and warns where a sanitizer's checks, or the loop, do not allow vectors.
 */
#if defined(__clang__)
#pragma clang diagnostic ignored "-Wpass-failed"
#define MC_NO_ALIAS _Pragma("clang loop vectorize(assume_safety)")
#else
#define MC_NO_ALIAS _Pragma("GCC ivdep")
#endif

#endif
