/* The subscales of q4 on levels that multiply them by 32-bit sums. */
#ifndef WAFERLINE_KERNEL_SUBSCALES_H
#define WAFERLINE_KERNEL_SUBSCALES_H

#include "kernel_types.h"

/* Of the subgroups of a group, 16 columns each: -8..-1, 1..8. */
INLINE void load_subscales(const uint8_t *scale_line, Int16 *subscales) {
#pragma GCC unroll 4
    for (int s = 0; s < SUBGROUPS; s++) EACH(p) {
            ByteV nibbles;
            memcpy(&nibbles, scale_line + (2 + s / 2) * TILE_N + p * sizeof nibbles, sizeof nibbles);
            const IntV below = (__builtin_convertvector(nibbles, IntV) >> (s % 2 * 4) & 15) - MAX_SUBSCALE;
            subscales[s].v[p] = below - (below >= 0);
        }
}

INLINE Int16 add_scaled(Int16 isum, Int16 dot, Int16 subscales) {
    EACH(p) isum.v[p] = isum.v[p] + dot.v[p] * subscales.v[p];
    return isum;
}

#endif
