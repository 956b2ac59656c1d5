/* Kernels over single rows: norm, quantisation, the vocabulary, and the plain read that limits are measured with. */
#ifndef WAFERLINE_KERNEL_ROWS_H
#define WAFERLINE_KERNEL_ROWS_H

#include "kernel_vectors.h"
#include "kernels.h"
#include "kernel_strips.h"

/* In floats. A row of many was written by all workers and lies in L3, and its pages end the processor's own prefetching:
 * quantising 512 rows of 8192 takes 16 ms so, 26 without. */
enum { ROW_PREFETCH = 512 };

/* Squares are added in four chains, so that latency does not bound them. */
static void NAMED(rms_norm)(const float *x, const float *gain, int32_t k, float eps, float *y) {
    enum { CHAINS = 4 };
    Float16 squares[CHAINS];
    for (int c = 0; c < CHAINS; c++) squares[c] = splat16(0.0f);
    for (int i = 0; i < k; i += 16 * CHAINS)
        UNROLL(4)
        for (int c = 0; c < CHAINS; c++) {
            if (i + 16 * c >= k) break;
            const Float16 v = load16(x + i + 16 * c);
            __builtin_prefetch(x + i + 16 * c + ROW_PREFETCH);
            EACH(p) squares[c].v[p] = squares[c].v[p] + v.v[p] * v.v[p];
        }
    EACH(p) squares[0].v[p] = (squares[0].v[p] + squares[1].v[p]) + (squares[2].v[p] + squares[3].v[p]);
    const float inverse = 1.0f / sqrtf(sum16(squares[0]) / (float)k + eps);
    for (int i = 0; i < k; i += 16) {
        Float16 v = load16(x + i);
        const Float16 g = load16(gain + i);
        EACH(p) v.v[p] = v.v[p] * inverse * g.v[p];
        store16(y + i, v);
    }
}

/* codes[n] nearest to x[n] * inverse, ties to even, n to whole vectors and at most SUBGROUP; returns their sum. */
INLINE int32_t quantize_subgroup(const float *x, int n, float inverse, int8_t *codes) {
#if LANES == 16 /* vpsadbw adds up eight unsigned bytes, here codes + 128 */
    __m128i sums = _mm_setzero_si128();
    for (int i = 0; i < n; i += 16) {
        const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(inverse));
        const __m128i narrow = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(scaled));
        _mm_storeu_si128((__m128i *)(codes + i), narrow);
        sums = _mm_add_epi64(sums, _mm_sad_epu8(_mm_xor_si128(narrow, _mm_set1_epi8((char)0x80)), _mm_setzero_si128()));
    }
    return _mm_cvtsi128_si32(sums) + _mm_extract_epi32(sums, 2) - 128 * (int)round_up(n, 16);
#elif LANES == 8
    __m256i sums = _mm256_setzero_si256();
    for (int i = 0; i < n; i += 16) {
        const __m256i first = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(inverse)));
        const __m256i second = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8), _mm256_set1_ps(inverse)));
        const __m256i narrow = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xD8); /* it packs by halves */
        const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(narrow), _mm256_extracti128_si256(narrow, 1));
        _mm_storeu_si128((__m128i *)(codes + i), bytes);
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1)));
    }
    return sum16_int((Int16){{(IntV)sums}});
#else
    Int16 sum = {{{0}}};
    for (int i = 0; i < n; i += 16) {
        const Float16 v = load16(x + i);
        EACH(p) {
            const IntV code = __builtin_convertvector(round_even(v.v[p] * inverse), IntV);
            sum.v[p] = sum.v[p] + code;
            store_codes(codes + i + p * LANES, code);
        }
    }
    return sum16_int(sum);
#endif
}

/* Bits of x[n]'s largest magnitude, n to whole vectors; two chains, so that latency does not bound them. */
INLINE int32_t largest_magnitude(const float *x, const int n) {
    Int16 even = splat16_int(0), odd = splat16_int(0);
    UNROLL(4)
    for (int i = 0; i < n; i += 32) {
        const Float16 v = load16(x + i);
        __builtin_prefetch(x + i + ROW_PREFETCH);
        EACH(p) even.v[p] = larger_int((IntV)v.v[p] & 0x7FFFFFFF, even.v[p]);
        if (i + 16 >= n) break;
        const Float16 w = load16(x + i + 16);
        __builtin_prefetch(x + i + 16 + ROW_PREFETCH);
        EACH(p) odd.v[p] = larger_int((IntV)w.v[p] & 0x7FFFFFFF, odd.v[p]);
    }
    EACH(p) even.v[p] = larger_int(even.v[p], odd.v[p]);
    return max16_int(even);
}

/* x[n] -> codes[n], sums[SUBGROUPS]; returns the scale. */
INLINE float quantize_group(const float *x, const int n, int8_t *codes, int32_t *sums) {
    const int32_t bits = largest_magnitude(x, n);
    float amax;
    memcpy(&amax, &bits, sizeof amax);
    const float inverse = amax < MIN_QUANTIZED ? 0.0f : 127.0f / amax; /* below, it would overflow */
    UNROLL(4)
    for (int s = 0; s < SUBGROUPS; s++) {
        const int i = s * SUBGROUP, left = n - i;
        sums[s] = left <= 0 ? 0 : quantize_subgroup(x + i, left < SUBGROUP ? left : SUBGROUP, inverse, codes + i);
    }
    return amax < MIN_QUANTIZED ? 0.0f : amax / 127.0f;
}

static void NAMED(quantize)(const float *x, int32_t k, int8_t *codes, float *scales, int32_t *sums) {
    int i = 0;
    for (; i + GROUP <= k; i += GROUP, sums += SUBGROUPS) *scales++ = quantize_group(x + i, GROUP, codes + i, sums);
    if (i < k) *scales = quantize_group(x + i, k - i, codes + i, sums);
    memset(codes + round_up(k, 16), 0, round_up(k, 64) - round_up(k, 16));
}

static float NAMED(max)(const float *x, int32_t n) {
    Float16 largest = splat16(-INFINITY);
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        const Float16 v = load16(x + i);
        EACH(p) largest.v[p] = larger(v.v[p], largest.v[p]);
    }
    float y = max16(largest);
    for (; i < n; i++) y = x[i] > y ? x[i] : y;
    return y;
}

/* Each of 64 lanes keeps the first of its largest and where that was; then the lanes are compared. */
static int32_t NAMED(argmax)(const float *x, int32_t n) {
    enum { CHAINS = 4, WIDTH = 16 * CHAINS };
    float largest[WIDTH];
    int32_t at[WIDTH]; /* less the lane's number */
    Float16 y[CHAINS];
    Int16 first[CHAINS];
    int i = 0;
    for (int c = 0; c < CHAINS; c++) {
        y[c] = splat16(-INFINITY);
        EACH(p) first[c].v[p] = (IntV){0};
    }
    for (; i + WIDTH <= n; i += WIDTH) {
        UNROLL(4)
        for (int c = 0; c < CHAINS; c++) {
            const Float16 v = load16(x + i + 16 * c);
            EACH(p) {
                const IntV is_larger = v.v[p] > y[c].v[p];
                y[c].v[p] = choose(is_larger, v.v[p], y[c].v[p]);
                first[c].v[p] = (is_larger & i) | (~is_larger & first[c].v[p]);
            }
        }
    }
    for (int c = 0; c < CHAINS; c++) {
        store16(largest + 16 * c, y[c]);
        memcpy(at + 16 * c, &first[c], sizeof first[c]);
    }
    float best = -INFINITY;
    int32_t best_at = -1;
    for (int lane = 0; lane < WIDTH; lane++) {
        const int32_t here = at[lane] + lane;
        if (largest[lane] > best || (largest[lane] == best && here < best_at)) {
            best = largest[lane];
            best_at = here;
        }
    }
    for (; i < n; i++)
        if (x[i] > best) {
            best = x[i];
            best_at = i;
        }
    return best_at;
}

static double NAMED(exp_sum)(const float *x, int32_t n, float shift, float *y) {
    enum { CHUNK = 1024 };
    double total = 0.0;
    for (int begin = 0; begin < n; begin += CHUNK) {
        const int end = begin + CHUNK < n ? begin + CHUNK : n;
        Float16 sum = splat16(0.0f);
        for (int i = begin; i < end; i += 16) {
            const int count = end - i < 16 ? end - i : 16;
            Float16 part = count == 16 ? load16(x + i) : splat16(-INFINITY);
            if (count < 16) memcpy(&part, x + i, 4 * count);
            EACH(p) {
                part.v[p] = exponential(part.v[p] - shift);
                sum.v[p] = sum.v[p] + part.v[p];
            }
            if (count == 16)
                store16(y + i, part);
            else
                memcpy(y + i, &part, 4 * count);
        }
        total += sum16(sum);
    }
    return total;
}

INLINE uint64_t read_lines(const uint8_t *x, int64_t bytes, const int fetch, int64_t ahead) {
    enum { STREAMS = 4 };
    UintV sums[STREAMS * PARTS] = {{0}};
    for (int64_t i = 0; i + 64 * STREAMS <= bytes; i += 64 * STREAMS) {
        UNROLL(4)
        for (int c = 0; c < STREAMS; c++) {
            prefetch_ahead(x + i + 64 * c, fetch, ahead);
            EACH(p) {
                UintV v;
                memcpy(&v, x + i + 64 * c + p * sizeof v, sizeof v);
                sums[c * PARTS + p] ^= v;
            }
        }
    }
    uint64_t y = 0;
    for (int j = 0; j < STREAMS * PARTS; j++)
        for (int lane = 0; lane < LANES; lane++) y ^= sums[j][lane];
    return y;
}

static uint64_t NAMED(read)(const uint8_t *x, int64_t bytes, const Fetch *fetch) {
    switch (fetch->read) {
    case FETCH_NONE: return read_lines(x, bytes, FETCH_NONE, 0);
    case FETCH_L1: return read_lines(x, bytes, FETCH_L1, fetch->read_ahead);
    default: return read_lines(x, bytes, FETCH_L1_L2, fetch->read_ahead);
    }
}

#endif
