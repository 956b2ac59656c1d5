/* The dot product of the levels with VNNI: vpdpbusd takes four unsigned by signed products of each column into its int32,
 * 64 or 32 bytes of weights an instruction (two a cycle on Intel's large cores and Zen 5, one on Zen 4; latency 4 to 5).
 * Weights are made unsigned by flipping their top bit, and what that adds is paid for by starting the sum at
 * -128 * sum(a). */
#ifndef WAFERLINE_KERNEL_VNNI_H
#define WAFERLINE_KERNEL_VNNI_H

#include <immintrin.h>

#define LEVEL_HAS_VNNI
#include "kernel_types.h"
#if LANES == 8
#include "kernel_subscales.h"
#endif

typedef Int16 Line; /* codes [16 columns][4 K] */

enum { LEVEL_CHAINS = 4, LINES_TOGETHER = 1 };
enum { LINES_UNROLL = LANES == 16 ? 4 : 2, SUBGROUPS_UNROLL = LANES == 16 ? 4 : 1 };
enum { Q8_OFFSET = 128, HAS_Q4_OFFSETS = 1 }; /* vpdpbusd takes unsigned weights */

/* sum[i] += u[4 i .. 4 i + 3] . s[4 i .. 4 i + 3], unsigned by signed bytes */
INLINE IntV dot_bytes(IntV sum, IntV u, IntV s) {
#if LANES == 16
    return (IntV)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)u, (__m512i)s);
#else
    return (IntV)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)u, (__m256i)s);
#endif
}

/* sum[i] += a[2 i] * b[2 i] + a[2 i + 1] * b[2 i + 1], int16 */
INLINE IntV dot_halves(IntV sum, IntV a, IntV b) {
#if LANES == 16
    return (IntV)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#else
    return (IntV)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#endif
}

INLINE Line load_line(const uint8_t *codes) {
    Line line;
    EACH(p) memcpy(&line.v[p], codes + 4 * LANES * p, sizeof line.v[p]);
    return line;
}

INLINE Line load_q8(const uint8_t *codes) {
    Line line = load_line(codes);
    EACH(p) line.v[p] = line.v[p] ^ (int)(Q8_OFFSET * 0x01010101u);
    return line;
}

INLINE Line high_codes(Line line) {
    EACH(p) line.v[p] = line.v[p] & (int)0xF0F0F0F0;
    return line;
}

INLINE Line low_codes(Line line) {
    EACH(p) line.v[p] = line.v[p] & 0x0F0F0F0F;
    return line;
}

/* Sixteen times too large: shifting their sum once costs less than shifting every line. */
INLINE Line load_q4_high(const uint8_t *codes) {
    return high_codes(load_line(codes));
}

INLINE Line load_q4_low(const uint8_t *codes) {
    return low_codes(load_line(codes));
}

/* Both codes of a line, loaded once: the compiler takes a second load for cheaper than a register, unless it cannot know
 * that it would load the same. Volatile, it keeps requests for lines apart, too, which the compiler else gathers. */
INLINE void load_q4(const uint8_t *codes, Line *high, Line *low) {
    Line line = load_line(codes);
    EACH(p) __asm__ volatile("" : "+v"(line.v[p]));
    *high = high_codes(line);
    *low = low_codes(line);
}

/* As int16 with 0 above, for vpdpwssd: a sum over 32 products of a code and an activation fits 16 bits too. */
INLINE void load_subscales(const uint8_t *scale_line, Int16 *subscales) {
#if LANES == 16 /* vpermd looks at the low four bits of a lane alone */
    const __m512i values = _mm512_setr_epi32(0xFFF8, 0xFFF9, 0xFFFA, 0xFFFB, 0xFFFC, 0xFFFD, 0xFFFE, 0xFFFF, 1, 2, 3, 4, 5, 6,
                                             7, 8);
    UNROLL(2)
    for (int h = 0; h < 2; h++) {
        const __m512i nibbles = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(scale_line + (2 + h) * TILE_N)));
        subscales[2 * h].v[0] = (IntV)_mm512_permutexvar_epi32(nibbles, values);
        subscales[2 * h + 1].v[0] = (IntV)_mm512_permutexvar_epi32(_mm512_srli_epi32(nibbles, 4), values);
    }
#else
    spread_subscales(scale_line, subscales, 0);
#endif
}

INLINE Int16 add_scaled(Int16 isum, Int16 dot, Int16 subscales) {
    EACH(p) isum.v[p] = dot_halves(isum.v[p], dot.v[p], subscales.v[p]);
    return isum;
}

INLINE Int16 add_signed_line(Int16 isum, const uint8_t *line, const uint8_t *a) {
    const Line codes = load_line(line);
    EACH(p) isum.v[p] = dot_bytes(isum.v[p], broadcast_four(a), codes.v[p]);
    return isum;
}

INLINE Int16 add_line(Int16 isum, Line line, const int8_t *a) {
    EACH(p) isum.v[p] = dot_bytes(isum.v[p], line.v[p], broadcast_four(a));
    return isum;
}

INLINE int32_t q4_offset(int32_t sum) {
    return -Q4_ZERO_POINT * 16 * sum;
}

INLINE Int16 add_q4_line(Int16 sums, Line line, const int8_t *a) {
    return add_line(sums, line, a);
}

INLINE Int16 add_high(Int16 high, Int16 low) {
    EACH(p) high.v[p] = (high.v[p] >> 4) + low.v[p];
    return high;
}

#endif
