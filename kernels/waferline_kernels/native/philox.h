/* Philox4x32-10 as philox.py states it: a number for each (seed, completion index, position). */
#ifndef WAFERLINE_PHILOX_H
#define WAFERLINE_PHILOX_H

#include <stdint.h>

static inline double philox_uniform(uint64_t seed, uint32_t completion_index, uint32_t position) {
    uint32_t c0 = position, c1 = completion_index, c2 = 0, c3 = 0;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (double)((((uint64_t)c1 << 32) | c0) >> 11) * 0x1p-53;
}

#endif
