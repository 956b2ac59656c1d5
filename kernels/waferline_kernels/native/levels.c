#include "levels.h"

#include <pthread.h>
#include <string.h>

#include "amx.h"

#ifdef __x86_64__
#include <cpuid.h>

/* x86-64-v3, feature by feature: not all compilers know it by name here. */
static int has_avx2(void) {
    unsigned a, b, basic, extended, d;
    const unsigned wanted = bit_FMA | bit_MOVBE | bit_F16C;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("bmi2")) return 0;
    if (!__get_cpuid(1, &a, &b, &basic, &d) || (basic & wanted) != wanted) return 0;
    return __get_cpuid(0x80000001, &a, &b, &extended, &d) && (extended & bit_LZCNT);
}

static int has_avx512_vnni(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

static int has_avx_vnni(void) {
    enum { LEAF_7_1_EAX_AVX_VNNI = 1 << 4 };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & LEAF_7_1_EAX_AVX_VNNI);
}
#elif defined(__aarch64__)
#ifdef __linux__
#include <sys/auxv.h>
#endif

static int has_dot_product(void) {
#ifdef __linux__
    enum { HWCAP_DOT_PRODUCT = 1 << 20 };
    return (getauxval(AT_HWCAP) & HWCAP_DOT_PRODUCT) != 0;
#elif defined(__APPLE__)
    return 1; /* from the M1 on */
#else
    return 0;
#endif
}
#endif

enum { MOST_LEVELS = 5 };

static pthread_once_t levels_once = PTHREAD_ONCE_INIT;
static Kernels levels[MOST_LEVELS + 1]; /* ends with NULL */

static void find_levels(void) {
    int count = 0;
    levels[count++] = &kernels_base;
#ifdef __x86_64__
    __builtin_cpu_init();
    const int avx2 = has_avx2(), avx512 = avx2 && has_avx512_vnni();
    if (avx2) levels[count++] = &kernels_avx2;
    if (avx2 && has_avx_vnni()) levels[count++] = &kernels_avxvnni;
    if (avx512) levels[count++] = &kernels_avx512;
    if (avx512 && amx_permit()) levels[count++] = &kernels_amx;
#elif defined(__aarch64__)
    if (has_dot_product()) levels[count++] = &kernels_dotprod;
#endif
}

const Kernels *supported_kernels(void) {
    pthread_once(&levels_once, find_levels);
    return levels;
}

const KernelTable *kernels_of_level(const char *name) {
    const Kernels *kernels = supported_kernels();
    while (*kernels && strcmp((*kernels)->level, name) != 0) kernels++;
    return *kernels;
}
