/* Arithmetic on sixteen columns, written out operation by operation: the same bits on every level, but that `multiply_add`
 * rounds twice on base. */
#ifndef WAFERLINE_KERNEL_VECTORS_H
#define WAFERLINE_KERNEL_VECTORS_H

#include "kernel_types.h"

#if LANES >= 8
#include <immintrin.h>
#elif defined(LEVEL_HAS_NEON)
#include <arm_neon.h>
#endif

INLINE FloatV splat(float x) {
    return x - (FloatV){0};
}

INLINE FloatV choose(IntV mask, FloatV yes, FloatV no) {
    return (FloatV)((mask & (IntV)yes) | (~mask & (IntV)no));
}

/* a * b + c, rounded once where the level has an instruction for it. */
INLINE FloatV multiply_add(FloatV a, FloatV b, FloatV c) {
#if LANES == 16
    return (FloatV)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LANES == 8
    return (FloatV)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(LEVEL_HAS_NEON)
    return (FloatV)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/* a > b ? a : b, so b where either is NaN; x86 has an instruction for just that. */
INLINE FloatV larger(FloatV a, FloatV b) {
#if LANES == 16
    return (FloatV)_mm512_max_ps((__m512)a, (__m512)b);
#elif LANES == 8
    return (FloatV)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return choose(a > b, a, b);
#endif
}

INLINE FloatV smaller(FloatV a, FloatV b) {
#if LANES == 16
    return (FloatV)_mm512_min_ps((__m512)a, (__m512)b);
#elif LANES == 8
    return (FloatV)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return choose(a < b, a, b);
#endif
}

#define NO_FRACTION 12582912.0f /* 1.5 * 2^23: adding it leaves no room for a fraction */

/* To the nearest integer, ties to even, for |x| < 2^22. */
INLINE FloatV round_even(FloatV x) {
    return (x + NO_FRACTION) - NO_FRACTION;
}

/* exp(x), 2 ulp: 2^n * p(r) with |r| <= ln(2) / 2 and Cephes' expf polynomial. Zero below -87.3, finite above 88. */
INLINE FloatV exponential(FloatV x) {
    const IntV vanishes = x < -87.3f;
    x = smaller(splat(88.0f), larger(splat(-87.3f), x));
    const FloatV shifted = multiply_add(x, splat(1.44269504f), splat(NO_FRACTION)); /* round_even, with n in the low bits */
    const FloatV n = shifted - NO_FRACTION;
    const FloatV r = multiply_add(n, splat(2.12194440e-4f), multiply_add(n, splat(-0.693359375f), x));
    FloatV p = splat(1.9875691500e-4f);
    p = multiply_add(p, r, splat(1.3981999507e-3f));
    p = multiply_add(p, r, splat(8.3334519073e-3f));
    p = multiply_add(p, r, splat(4.1665795894e-2f));
    p = multiply_add(p, r, splat(1.6666665459e-1f));
    p = multiply_add(p, r, splat(5.0000001201e-1f));
    p = multiply_add(p, r * r, r) + 1.0f;
    const IntV power = ((IntV)shifted + 127) << 23;
    return (FloatV)(~vanishes & (IntV)(p * (FloatV)power));
}

/* 2^x for x <= 0, 2 ulp, 2^0 = 1: r in [-1/2, 1/2] and Cephes' exp2f polynomial. Zero below -125. */
INLINE FloatV power_of_two(FloatV x) {
    const IntV vanishes = x < -125.0f;
    x = larger(splat(-125.0f), x);
    const FloatV shifted = x + NO_FRACTION, r = x - (shifted - NO_FRACTION); /* n in the low bits of `shifted` */
    FloatV p = splat(1.535336188e-4f);
    p = multiply_add(p, r, splat(1.339887440e-3f));
    p = multiply_add(p, r, splat(9.618437358e-3f));
    p = multiply_add(p, r, splat(5.550332471e-2f));
    p = multiply_add(p, r, splat(2.402264791e-1f));
    p = multiply_add(p, r, splat(6.931472029e-1f));
    p = multiply_add(p, r, splat(1.0f));
    return (FloatV)(~vanishes & ((IntV)p + ((IntV)shifted << 23)));
}

INLINE Float16 splat16(float x) {
    Float16 y;
    EACH(p) y.v[p] = splat(x);
    return y;
}

INLINE Float16 load16(const float *x) {
    Float16 y;
    EACH(p) memcpy(&y.v[p], x + p * LANES, sizeof y.v[p]);
    return y;
}

/* The numbers of a vector's lanes. */
INLINE IntV count_lanes(void) {
    static const int32_t lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    IntV lane;
    memcpy(&lane, lanes, sizeof lane);
    return lane;
}

/* The first `count` of x, then `other`. */
INLINE Float16 first_lanes(Float16 x, int count, float other) {
    EACH(p) x.v[p] = choose(count_lanes() < count - p * LANES, x.v[p], splat(other));
    return x;
}

/* x[n], at most 16, then zeros; nothing beyond is read. */
INLINE Float16 load_first(const float *x, int n) {
    Float16 y;
#if LANES == 16
    y.v[0] = (FloatV)_mm512_maskz_loadu_ps((1u << n) - 1, x);
#elif LANES == 8
    EACH(p) y.v[p] = (FloatV)_mm256_maskload_ps(x + p * LANES, (__m256i)(count_lanes() < n - p * LANES));
#else
    float padded[16] = {0};
    memcpy(padded, x, n * sizeof *x);
    y = load16(padded);
#endif
    return y;
}

INLINE void store16(float *y, Float16 x) {
    EACH(p) memcpy(y + p * LANES, &x.v[p], sizeof x.v[p]);
}

/* y[LANES] = the low bytes of codes. */
INLINE void store_codes(void *y, IntV codes) {
#ifdef LEVEL_HAS_NEON /* the compiler would take lanes out one by one */
    const int16x4_t halves = vmovn_s32((int32x4_t)codes);
    const int32_t bytes = vget_lane_s32((int32x2_t)vmovn_s16(vcombine_s16(halves, halves)), 0);
#else
    const CodeV bytes = __builtin_convertvector(codes, CodeV);
#endif
    memcpy(y, &bytes, sizeof bytes);
}

INLINE Float16 load_bfloat16(const uint8_t *bits) {
    Float16 y;
    EACH(p) { /* the compiler widens in halves */
#if LANES == 16
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)bits));
        y.v[p] = (FloatV)_mm512_slli_epi32(wide, 16);
#elif LANES == 8
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(bits + 16 * p)));
        y.v[p] = (FloatV)_mm256_slli_epi32(wide, 16);
#else
        HalfV x;
        memcpy(&x, bits + p * sizeof x, sizeof x);
        y.v[p] = (FloatV)(__builtin_convertvector(x, UintV) << 16);
#endif
    }
    return y;
}

/* Vectors i and i + 1, i even, of float32 [n][16], `step` bytes apart, or of bfloat16 [n / 2][16][2], loaded once for both. */
INLINE void load_pair(const int is_bf16, const uint8_t *x, int64_t i, int64_t step, Float16 *even, Float16 *odd) {
    if (!is_bf16) {
        *even = load16((const float *)(x + i * step));
        *odd = load16((const float *)(x + (i + 1) * step));
        return;
    }
    EACH(p) {
        UintV pairs;
        memcpy(&pairs, x + i * (LINE_BYTES / 2) + p * sizeof pairs, sizeof pairs);
        even->v[p] = (FloatV)(pairs << 16);
        odd->v[p] = (FloatV)(pairs & 0xFFFF0000u);
    }
}

/* The lanes of y, moved down by `by`, those of the lower end coming in at the upper. */
INLINE IntV rotate_lanes(IntV y, int by) {
    IntV z;
    UNROLL(16)
    for (int lane = 0; lane < LANES; lane++) z[lane] = y[(lane + by) % LANES];
    return z;
}

/* Halves are folded onto each other: one tree for every level. */
#define FOLD(x, combine)                                                                 \
    UNROLL(4)                                                                            \
    for (int width = PARTS / 2; width > 0; width /= 2)                                   \
        for (int p = 0; p < width; p++) x.v[p] = combine(x.v[p], x.v[p + width]);        \
    UNROLL(4)                                                                            \
    for (int width = LANES / 2; width > 0; width /= 2)                                   \
        x.v[0] = combine(x.v[0], (FloatV)rotate_lanes((IntV)x.v[0], width));
#define SUM(a, b) ((a) + (b))
#define LARGER(a, b) larger(b, a)

INLINE float sum16(Float16 x) {
    FOLD(x, SUM)
    return x.v[0][0];
}

INLINE float max16(Float16 x) {
    FOLD(x, LARGER)
    return x.v[0][0];
}

INLINE IntV larger_int(IntV a, IntV b) {
#if LANES == 16
    return (IntV)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif LANES == 8
    return (IntV)_mm256_max_epi32((__m256i)a, (__m256i)b);
#elif defined(LEVEL_HAS_NEON)
    return (IntV)vmaxq_s32((int32x4_t)a, (int32x4_t)b);
#endif
    const IntV is_larger = a > b;
    return (is_larger & a) | (~is_larger & b);
}

INLINE int32_t sum16_int(Int16 x) {
    IntV y = {0};
    EACH(p) y = y + x.v[p];
    UNROLL(4)
    for (int width = LANES / 2; width > 0; width /= 2) y = y + rotate_lanes(y, width);
    return y[0];
}

/* The largest lane; magnitudes of floats are in the order of their bits. */
INLINE int32_t max16_int(Int16 x) {
    IntV y = x.v[0];
    EACH(p) y = larger_int(x.v[p], y);
    UNROLL(4)
    for (int width = LANES / 2; width > 0; width /= 2) y = larger_int(rotate_lanes(y, width), y);
    return y[0];
}

#endif
