/* The dot product of the levels with VNNI: vpdpbusd takes four unsigned by signed products of each column into its int32,
 * 64 bytes of weights an instruction (two a cycle on Intel's large cores and Zen 5, one on Zen 4; latency 4 to 5). Weights
 * are made unsigned by flipping their top bit, and what that adds is paid for by starting the sum at -128 * sum(a). */
#ifndef WAFERLINE_KERNEL_VNNI_H
#define WAFERLINE_KERNEL_VNNI_H

#include <immintrin.h>

#include "kernel_types.h"

typedef __m512i Line; /* codes [16 columns][4 K] */

enum { LEVEL_CHAINS = 4, LINES_TOGETHER = 1, LINES_UNROLL = 4, SUBGROUPS_UNROLL = 4 };
enum { Q8_OFFSET = 128, HAS_Q4_OFFSETS = 1 }; /* vpdpbusd takes unsigned weights */

INLINE Line load_q8(const uint8_t *codes) {
    return _mm512_xor_si512(_mm512_loadu_si512(codes), _mm512_set1_epi8((char)Q8_OFFSET));
}

/* Sixteen times too large: shifting their sum once costs less than shifting every line. */
INLINE Line load_q4_high(const uint8_t *codes) {
    return _mm512_and_si512(_mm512_loadu_si512(codes), _mm512_set1_epi8((char)0xF0));
}

INLINE Line load_q4_low(const uint8_t *codes) {
    return _mm512_and_si512(_mm512_loadu_si512(codes), _mm512_set1_epi8(15));
}

/* Both codes of a line, loaded once: the compiler takes a second load for cheaper than a register, unless it cannot know
 * that it would load the same. Volatile, it keeps requests for lines apart, too, which the compiler else gathers. */
INLINE void load_q4(const uint8_t *codes, Line *high, Line *low) {
    Line line = _mm512_loadu_si512(codes);
    __asm__ volatile("" : "+v"(line));
    *high = _mm512_and_si512(line, _mm512_set1_epi8((char)0xF0));
    *low = _mm512_and_si512(line, _mm512_set1_epi8(15));
}

/* As int16 with 0 above, for vpdpwssd: a sum over 32 products of a code and an activation fits 16 bits too. vpermd looks
 * at the low four bits of a lane alone. */
INLINE void load_subscales(const uint8_t *scale_line, Int16 *subscales) {
    const __m512i values = _mm512_setr_epi32(0xFFF8, 0xFFF9, 0xFFFA, 0xFFFB, 0xFFFC, 0xFFFD, 0xFFFE, 0xFFFF, 1, 2, 3, 4, 5, 6,
                                             7, 8);
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        const __m512i nibbles = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(scale_line + (2 + h) * TILE_N)));
        subscales[2 * h].v[0] = (IntV)_mm512_permutexvar_epi32(nibbles, values);
        subscales[2 * h + 1].v[0] = (IntV)_mm512_permutexvar_epi32(_mm512_srli_epi32(nibbles, 4), values);
    }
}

INLINE Int16 add_scaled(Int16 isum, Int16 dot, Int16 subscales) {
    isum.v[0] = (IntV)_mm512_dpwssd_epi32((__m512i)isum.v[0], (__m512i)dot.v[0], (__m512i)subscales.v[0]);
    return isum;
}

INLINE Int16 add_signed_line(Int16 isum, const uint8_t *line, const uint8_t *a) {
    int32_t four;
    memcpy(&four, a, 4);
    isum.v[0] = (IntV)_mm512_dpbusd_epi32((__m512i)isum.v[0], _mm512_set1_epi32(four), _mm512_loadu_si512(line));
    return isum;
}

INLINE Int16 add_line(Int16 isum, Line line, const int8_t *a) {
    int32_t four;
    memcpy(&four, a, 4);
    isum.v[0] = (IntV)_mm512_dpbusd_epi32((__m512i)isum.v[0], line, _mm512_set1_epi32(four));
    return isum;
}

INLINE int32_t q4_offset(int32_t sum) {
    return -Q4_ZERO_POINT * 16 * sum;
}

INLINE Int16 add_q4_line(Int16 sums, Line line, const int8_t *a) {
    return add_line(sums, line, a);
}

INLINE Int16 add_high(Int16 high, Int16 low) {
    high.v[0] = (high.v[0] >> 4) + low.v[0];
    return high;
}

#endif
