#include "levels.h"

#include <string.h>

#include "amx.h"

#if defined(__aarch64__) && defined(__linux__)
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
    const int has_avx2 = __builtin_cpu_supports("x86-64-v3");
    const int has_vnni = __builtin_cpu_supports("x86-64-v4") && __builtin_cpu_supports("avx512vnni");
    if (has_avx2) levels[count++] = &kernels_avx2;
    if (has_avx2 && __builtin_cpu_supports("avxvnni")) levels[count++] = &kernels_avxvnni;
    if (has_vnni) levels[count++] = &kernels_avx512;
    if (has_vnni && __builtin_cpu_supports("avx512bf16") && amx_permit()) levels[count++] = &kernels_amx;
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
