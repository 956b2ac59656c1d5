/* The dot product of the levels with VNNI: vpdpbusd takes four unsigned by signed products of each column into its int32,
 * 64 bytes of weights an instruction (two a cycle on Intel's large cores, one on Zen 4; latency 4 to 5). Weights are made
 * unsigned by flipping their top bit, and what that adds is paid for by starting the sum at -128 * sum(a). */
#ifndef WAFERLINE_KERNEL_VNNI_H
#define WAFERLINE_KERNEL_VNNI_H

#include <immintrin.h>

#include "kernel_types.h"

typedef __m512i Line; /* codes [16 columns][4 K] */

enum { Q8_OFFSET = 128, Q4_OFFSET = Q4_ZERO_POINT, Q4_HIGH_SHIFT = 4 }; /* vpdpbusd takes unsigned weights */

INLINE Line load_q8(const uint8_t *codes) {
    return _mm512_xor_si512(_mm512_loadu_si512(codes), _mm512_set1_epi8((char)Q8_OFFSET));
}

INLINE Line load_q4_high(const uint8_t *codes) {
    return _mm512_and_si512(_mm512_loadu_si512(codes), _mm512_set1_epi8((char)0xF0));
}

INLINE Line load_q4_low(const uint8_t *codes) {
    return _mm512_and_si512(_mm512_loadu_si512(codes), _mm512_set1_epi8(15));
}

/* As int16 with 0 above, for vpdpwssd: a sum over 32 products of a code and an activation fits 16 bits too. */
INLINE void load_subscales(const uint8_t *scale_line, Int16 *subscales) {
    const __m512i words = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(scale_line + 2 * TILE_N))); /* [2][16] */
    const __m512i pairs = _mm512_and_si512(_mm512_or_si512(words, _mm512_slli_epi16(words, 4)), _mm512_set1_epi8(15));
    const __m128i values = _mm_setr_epi8(-8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8);
    const __m512i bytes = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(values), pairs); /* int8 [2][16][2] */
    const __m512i halves[2] = {_mm512_cvtepi8_epi16(_mm512_castsi512_si256(bytes)),
                               _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(bytes, 1))};
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        subscales[2 * h].v[0] = (IntV)_mm512_and_si512(halves[h], _mm512_set1_epi32(0xFFFF));
        subscales[2 * h + 1].v[0] = (IntV)_mm512_srli_epi32(halves[h], 16);
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

#endif
