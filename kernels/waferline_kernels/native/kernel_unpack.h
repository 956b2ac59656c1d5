/* Strips of q4 unpacked to int8, codes times subscales, for rows so many that products are what takes time. */
#ifndef WAFERLINE_KERNEL_UNPACK_H
#define WAFERLINE_KERNEL_UNPACK_H

#include "kernel_strips.h"

enum { GROUP_BYTES = GROUP * TILE_N };

/* Of a strip, where the scale line of group g of K lies; of q8 that of two groups. */
INLINE int64_t group_offset(int g, const int format) {
    return (format == FORMAT_Q4 ? g * (Q4_BLOCK_LINES + 1) : g / 2 * (Q8_BLOCK_LINES + 1)) * LINE_BYTES;
}

typedef int8_t BytesV __attribute__((vector_size(4 * LANES)));

/* Codes [LANES][4] times factors, with signs of 0 or -1, without their zero points. */
INLINE BytesV apply_subscales(IntV codes, ShortV factors, ShortV signs, BytesV zeros) {
    return (BytesV)(((ShortV)codes * factors) ^ signs) - zeros;
}

/* Up to SUBGROUP K of q4, lines of codes [16][4] in halves, times their subscales, int16 with 0 above: int8
 * [K / 4][16][4]. A code times a magnitude stays below 128, so 16-bit products of byte pairs do not carry; -x is ~x + 1, and
 * the 1 is in the zero point that is taken off. */
INLINE void unpack_subgroup(const uint8_t *lines, const int num_lines, Int16 subscales, int8_t *tiles) {
    ShortV factors[PARTS], signs[PARTS]; /* [16][2] */
    BytesV zeros[PARTS];                 /* [16][4] */
    EACH(p) {
        const ShortV both = (ShortV)(subscales.v[p] | subscales.v[p] << 16);
        signs[p] = both >> 15;
        factors[p] = (both ^ signs[p]) - signs[p];
        zeros[p] = (BytesV)(((factors[p] | factors[p] << 8) << 3) ^ signs[p]);
    }
    UNROLL(4)
    for (int line = 0; line < num_lines; line++) {
        const Line pairs = load_line(lines + line * LINE_BYTES);
        prefetch_ahead(lines + line * LINE_BYTES, FETCH_L1, NEAR_BYTES);
        EACH(p) {
            const BytesV low = apply_subscales(pairs.v[p] & 0x0F0F0F0F, factors[p], signs[p], zeros[p]);
            const BytesV high = apply_subscales(pairs.v[p] >> 4 & 0x0F0F0F0F, factors[p], signs[p], zeros[p]);
            memcpy(tiles + 2 * line * LINE_BYTES + p * sizeof low, &low, sizeof low);
            memcpy(tiles + (2 * line + 1) * LINE_BYTES + p * sizeof high, &high, sizeof high);
        }
    }
}

/* Subgroup `sub` of group g of a q4 strip, its codes times subscales, into int8 [GROUP_BYTES]. */
INLINE void unpack_group(const uint8_t *strip, int g, int sub, int k, int8_t *tiles) {
    enum { FULL = SUBGROUP / Q4_LINE_K };
    const uint8_t *scale_line = strip + group_offset(g, FORMAT_Q4);
    const uint8_t *lines = scale_line + (1 + sub * FULL) * LINE_BYTES;
    const int num_lines = (k - g * GROUP - sub * SUBGROUP + Q4_LINE_K - 1) / Q4_LINE_K;
    Int16 subscales[SUBGROUPS];
    load_subscales(scale_line, subscales);
    if (num_lines >= FULL)
        unpack_subgroup(lines, FULL, subscales[sub], tiles + sub * SUBGROUP * TILE_N);
    else if (num_lines > 0)
        unpack_subgroup(lines, num_lines, subscales[sub], tiles + sub * SUBGROUP * TILE_N);
    __asm__ volatile("" : : : "memory"); /* gcc 12 does not know that tileloadd reads memory */
}

/* A strip of q4 as one of q8, which gives the same sums: its codes are within int8, its scales the same. Up to a line more
 * than such a strip has is written. */
INLINE void unpack_strip(const uint8_t *strip, int k, uint8_t *q8) {
    for (int g = 0; g * GROUP < k; g++) {
        uint8_t *scale_line = q8 + group_offset(g, FORMAT_Q8);
        memcpy(scale_line + g % 2 * TILE_N * 2, strip + group_offset(g, FORMAT_Q4), TILE_N * 2);
        for (int sub = 0; sub < SUBGROUPS; sub++)
            unpack_group(strip, g, sub, k, (int8_t *)scale_line + LINE_BYTES + g % 2 * GROUP_BYTES);
    }
}

#endif
