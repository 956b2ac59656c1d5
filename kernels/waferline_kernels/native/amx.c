#include "amx.h"

#ifdef EMULATE_AMX
int amx_permit(void) {
    return __builtin_cpu_supports("avx512bf16") != 0;
}
#elif defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { LEAF_7_EDX_AMX_BF16 = 1 << 22, LEAF_7_EDX_AMX_TILE = 1 << 24, LEAF_7_EDX_AMX_INT8 = 1 << 25 };
enum { LEAF_7_1_EAX_AVX512_BF16 = 1 << 5, XCR0_TILES = 3 << 17, XTILEDATA = 18 };
enum { ARCH_REQ_XCOMP_PERM = 0x1023 };

int amx_permit(void) {
    uint32_t a, b, c, d, xcr0, high;
    const uint32_t wanted = LEAF_7_EDX_AMX_BF16 | LEAF_7_EDX_AMX_TILE | LEAF_7_EDX_AMX_INT8;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    __asm__("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
    if ((xcr0 & XCR0_TILES) != XCR0_TILES) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & wanted) != wanted) return 0;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & LEAF_7_1_EAX_AVX512_BF16)) return 0;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
}
#else
int amx_permit(void) {
    return 0;
}
#endif
