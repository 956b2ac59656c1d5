#include "fetch.h"

/* A worker's weights up to so many bytes are taken to stay within its core's L2; on AMD's processors, which share an L3 of 16
 * or 32 MB among a few cores, all workers' within L3. */
enum { MOST_IN_L2 = 3 << 20, MOST_IN_AMD_L2 = 1 << 20, MOST_IN_AMD_L3 = 24 << 20 };

static int is_amd(void) {
#ifdef __x86_64__
    __builtin_cpu_init();
    return __builtin_cpu_is("amd");
#else
    return 0;
#endif
}

int choose_fetch(int64_t bytes, int64_t total_bytes) {
    if (!is_amd()) return bytes <= MOST_IN_L2 ? FETCH_L1 : FETCH_L1_L2;
    if (bytes <= MOST_IN_AMD_L2) return FETCH_L1;
    return total_bytes <= MOST_IN_AMD_L3 ? FETCH_NONE : FETCH_L2;
}
