#include "levels.h"

#include <string.h>

#include "amx.h"

#ifdef __x86_64__
#include <cpuid.h>

/* By features: not all compilers know x86-64-v3 and v4 here. Every processor with these has the others of its level. */
static int has_x86_64_v3(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2");
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
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

static int has_dot_product(void) {
    enum { HWCAP_DOT_PRODUCT = 1 << 20 };
    return (getauxval(AT_HWCAP) & HWCAP_DOT_PRODUCT) != 0;
}
#endif

const KernelTable *level_by_number(int number) {
    const KernelTable *levels[8] = {&kernels_base};
    int count = 1;
#ifdef __x86_64__
    __builtin_cpu_init();
    const int has_avx2 = has_x86_64_v3(), has_avx512 = has_avx2 && has_avx512_vnni();
    if (has_avx2) levels[count++] = &kernels_avx2;
    if (has_avx2 && has_avx_vnni()) levels[count++] = &kernels_avxvnni;
    if (has_avx512) levels[count++] = &kernels_avx512;
    if (has_avx512 && __builtin_cpu_supports("avx512bf16") && amx_permit()) levels[count++] = &kernels_amx;
#elif defined(__aarch64__) && defined(__linux__)
    if (has_dot_product()) levels[count++] = &kernels_dotprod;
#endif
    return number < count ? levels[number] : NULL;
}

const KernelTable *level_by_name(const char *name) {
    const KernelTable *kernels;
    for (int n = 0; (kernels = level_by_number(n)); n++)
        if (strcmp(kernels->level, name) == 0) return kernels;
    return NULL;
}
