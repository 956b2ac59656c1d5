#include "fetch.h"

#ifdef __x86_64__
#include <cpuid.h>
#endif

/* A worker's weights up to so many bytes are taken to stay within its core's L2; on AMD's processors, which share an L3 of
 * 16 or 32 MB among a few cores, all workers' within L3. */
enum { MOST_IN_L2 = 3 << 20, MOST_IN_AMD_L2 = 1 << 20, MOST_IN_AMD_L3 = 24 << 20 };
enum { ZEN_5_FAMILY = 0x1A };

/* As CPUID's leaf 1 has it; 0 for other makers' processors. */
static int amd_family(void) {
#ifdef __x86_64__
    unsigned eax, ebx, ecx, edx;
    __builtin_cpu_init();
    if (!__builtin_cpu_is("amd") || !__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return 0;
    return (int)((eax >> 8 & 0xF) + (eax >> 20 & 0xFF));
#else
    return 0;
#endif
}

static int has_avx512(void) {
#ifdef __x86_64__
    return __builtin_cpu_supports("avx512f");
#else
    return 0;
#endif
}

/* What was measured, where, is in docs/kernels.md ("Fetching ahead"). */
Fetch choose_fetch(int64_t bytes, int64_t total_bytes) {
    const int family = amd_family(), is_zen_5 = family >= ZEN_5_FAMILY;
    const int is_in_l2 = bytes <= (family ? MOST_IN_AMD_L2 : MOST_IN_L2), is_in_l3 = total_bytes <= MOST_IN_AMD_L3;
    Fetch fetch = {
        .one_row = FETCH_L1, .rows = FETCH_L1, .read = FETCH_L1,
        .one_ahead = NEAR_BYTES, .rows_ahead = NEAR_BYTES, .read_ahead = NEAR_BYTES,
        .long_strip = INT32_MAX,
        .paired_strip = is_in_l2 ? 0 : INT32_MAX,
    };
    if (is_in_l2) {
        if (is_zen_5) fetch.rows = FETCH_NONE;
        return fetch;
    }
    if (!family) {
        fetch.one_row = fetch.read = FETCH_L1_L2;
        return fetch;
    }
    fetch.rows = FETCH_L2;
    fetch.rows_ahead = 8 << 10;
    if (is_zen_5) {
        fetch.one_ahead = is_in_l3 ? 2 << 10 : 6 << 10;
        fetch.read_ahead = is_in_l3 ? 4 << 10 : 6 << 10;
        if (!is_in_l3) fetch.long_strip = 16 << 10;
    } else if (has_avx512()) { /* Zen 4, which shares its family with Zen 3 */
        fetch.one_row = is_in_l3 ? FETCH_NONE : FETCH_L2;
        fetch.read = is_in_l3 ? FETCH_NONE : FETCH_L1_L2;
    } else {
        fetch.one_ahead = is_in_l3 ? 4 << 10 : 1 << 10;
        fetch.paired_strip = 32 << 10;
        if (!is_in_l3) fetch.read = FETCH_NONE;
        fetch.read_ahead = 4 << 10;
    }
    return fetch;
}
