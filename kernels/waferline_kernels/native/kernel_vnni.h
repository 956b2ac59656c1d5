/* The dot product of the levels with VNNI: vpdpbusd takes four unsigned by signed products of each column into its int32,
 * 64 bytes of weights an instruction (two a cycle on Intel's large cores, one on Zen 4; latency 4 to 5). Weights are made
 * unsigned by flipping their top bit, and what that adds is paid for by starting the sum at -128 * sum(a). */
#ifndef WAFERLINE_KERNEL_VNNI_H
#define WAFERLINE_KERNEL_VNNI_H

#include <immintrin.h>

#include "kernel_types.h"

typedef __m512i Line; /* codes [16 columns][4 K] */

enum { Q8_OFFSET = 128, Q4_OFFSET = Q4_ZERO_POINT }; /* vpdpbusd takes unsigned weights */

INLINE Line load_q8(const uint8_t *codes) {
    return _mm512_xor_si512(_mm512_loadu_si512(codes), _mm512_set1_epi8((char)Q8_OFFSET));
}

INLINE void load_q4(const uint8_t *codes, Line *low, Line *high) {
    const __m512i pairs = _mm512_loadu_si512(codes), nibble = _mm512_set1_epi8(15);
    *low = _mm512_and_si512(pairs, nibble);
    *high = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), nibble);
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
