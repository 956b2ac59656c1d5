/* Rotary embedding, and writing one token's key and value into a tile of each KV format; see kv_cache.py for the tiles. */
#ifndef WAFERLINE_KERNEL_KV_H
#define WAFERLINE_KERNEL_KV_H

#include "kernel_vectors.h"
#include "kernels.h"

#if LANES >= 8
INLINE FloatV permute(FloatV x, IntV lanes) {
#if LANES == 16
    return (FloatV)_mm512_permutexvar_ps((__m512i)lanes, (__m512)x);
#else
    return (FloatV)_mm256_permutevar8x32_ps((__m256)x, (__m256i)lanes);
#endif
}

/* x[n] * cos + its other half * sin */
INLINE void rotate_vector(float *x, const int n, FloatV cos, FloatV sin, IntV other) {
    FloatV v = {0};
    memcpy(&v, x, n * sizeof *x);
    v = v * cos + permute(v, other) * sin;
    memcpy(x, &v, n * sizeof *x);
}

/* Heads whose size divides LANES, as many at once, the first half's sines negated. */
INLINE void rotate_narrow(float *x, int32_t heads, const float *angles, int32_t head_dim) {
    const int32_t half = head_dim / 2, n = heads * head_dim;
    const IntV lane = count_lanes(), angle = lane & (half - 1), other = lane ^ half;
    const FloatV both = load_first(angles, head_dim).v[0], cos = permute(both, angle);
    const FloatV sin = (FloatV)((IntV)permute(both, angle | half) ^ ((lane & half) == 0) << 31);
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES) rotate_vector(x + i, LANES, cos, sin, other);
    if (i < n) rotate_vector(x + i, n - i, cos, sin, other);
}
#endif

/* In place, each half with the other. */
static void NAMED(rotate)(float *x, int32_t heads, const float *angles, int32_t head_dim) {
#if LANES >= 8
    if (LANES % head_dim == 0) {
        rotate_narrow(x, heads, angles, head_dim);
        return;
    }
#endif
    const int32_t half = head_dim / 2;
    const float *cos = angles, *sin = angles + half;
    for (int32_t head = 0; head < heads; head++, x += head_dim) {
        float *first = x, *second = x + half;
        int32_t d = 0;
        for (; d + LANES <= half; d += LANES) {
            FloatV a, b, c, s, y;
            memcpy(&a, first + d, sizeof a);
            memcpy(&b, second + d, sizeof b);
            memcpy(&c, cos + d, sizeof c);
            memcpy(&s, sin + d, sizeof s);
            y = a * c - b * s;
            memcpy(first + d, &y, sizeof y);
            y = b * c + a * s;
            memcpy(second + d, &y, sizeof y);
        }
        for (; d < half; d++) {
            const float a = first[d], b = second[d];
            first[d] = a * cos[d] - b * sin[d];
            second[d] = b * cos[d] + a * sin[d];
        }
    }
}

static void NAMED(store_kv_f32)(const float *key, const float *value, int32_t head_dim, uint8_t *tile, int32_t token) {
    float *keys = (float *)tile, *values = keys + head_dim * KV_BLOCK_SIZE; /* [head_dim][16], [16][value_stride] */
    for (int d = 0; d < head_dim; d++) keys[d * KV_BLOCK_SIZE + token] = key[d];
    memcpy(values + token * kv_value_stride(head_dim), value, head_dim * sizeof *value);
}

/* x[n] from i on, to a whole vector with zeros. */
INLINE Float16 load_from(const float *x, int i, int n) {
    return n - i >= 16 ? load16(x + i) : load_first(x + i, n - i);
}

/* bits[n], to whole vectors, of the bfloat16 nearest to x[n], ties to even, and finite whatever x is: times a weight of zero
 * they must be zero. tiles.bfloat16_bits. */
INLINE void to_finite_bfloat16(const float *x, int32_t n, uint16_t *bits) {
    for (int i = 0; i < n; i += 16) {
        const Float16 v = load_from(x, i, n);
        EACH(p) {
            const UintV whole = (UintV)v.v[p], sign = whole >> 31 << 15;
            const UintV magnitude = ((whole & 0x7FFFFFFFu) + 0x7FFF + (whole >> 16 & 1)) >> 16;
            const UintV is_finite = (UintV)(magnitude < 0x7F80);
            const HalfV half = __builtin_convertvector(sign | (is_finite & magnitude) | (~is_finite & 0x7F7F), HalfV);
            memcpy(bits + i + p * LANES, &half, sizeof half);
        }
    }
}

static void NAMED(store_kv_bf16)(const float *key, const float *value, int32_t head_dim, uint8_t *tile, int32_t token) {
    uint16_t *keys = (uint16_t *)tile, *values = keys + head_dim * KV_BLOCK_SIZE; /* [K / 2][16][2 K], [stride / 16][16 / 2][16][2] */
    uint16_t bits[MAX_HEAD_DIM];
    to_finite_bfloat16(key, head_dim, bits);
    for (int d = 0; d < head_dim; d += 2) memcpy(keys + d * KV_BLOCK_SIZE + token * 2, bits + d, 2 * sizeof *bits);
    to_finite_bfloat16(value, head_dim, bits);
    /* No byte but its own: another worker may be writing the other token of the pairs. */
#if LANES == 16
    for (int d = 0; d < head_dim; d += 16) {
        const __m512i half = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(bits + d)));
        const __m512i pairs = token % 2 ? _mm512_slli_epi32(half, 16) : half;
        _mm512_mask_storeu_epi16(values + d * KV_BLOCK_SIZE + token / 2 * 32, token % 2 ? 0xAAAAAAAA : 0x55555555, pairs);
    }
#else
    values += token / 2 * 32 + token % 2;
    for (int d = 0; d < head_dim; d += 16)
        for (int j = 0; j < 16 && d + j < head_dim; j++) values[d * KV_BLOCK_SIZE + 2 * j] = bits[d + j];
#endif
}

/* codes[n], to whole vectors, = x[n] / scale, at most 127 either way; returns the scale. tiles.quantize_rows, bit for bit. */
INLINE float to_codes(const float *x, int32_t n, int8_t *codes) {
    Float16 largest = splat16(0.0f);
    for (int i = 0; i < n; i += 16) {
        const Float16 v = load_from(x, i, n);
        EACH(p) largest.v[p] = larger((FloatV)((IntV)v.v[p] & 0x7FFFFFFF), largest.v[p]);
    }
    const float amax = max16(largest), inverse = amax < MIN_QUANTIZED ? 0.0f : 127.0f / amax; /* below, it would overflow */
    for (int i = 0; i < n; i += 16) {
        const Float16 v = load_from(x, i, n);
        EACH(p) store_codes(codes + i + p * LANES, __builtin_convertvector(round_even(v.v[p] * inverse), IntV));
    }
    return amax < MIN_QUANTIZED ? 0.0f : amax / 127.0f;
}

static void NAMED(store_kv_int8)(const float *key, const float *value, int32_t head_dim, uint8_t *tile, int32_t token) {
    const int32_t stride = kv_value_stride(head_dim);
    int8_t codes[MAX_HEAD_DIM];
    uint8_t *values = tile + kv_int8_values(head_dim); /* keys [K / 4][16][4 K], values [16 / 4][stride][4 tokens] */
    float *scales = (float *)(tile + kv_int8_scales(head_dim)); /* [16] of the keys, [16] of the values */
    scales[token] = to_codes(key, head_dim, codes);
    for (int d = 0; d < head_dim; d += 4) {
        memcpy(tile + d * KV_BLOCK_SIZE + token * 4, codes + d, 4);
    }
    scales[KV_BLOCK_SIZE + token] = to_codes(value, head_dim, codes);
    for (int d = 0; d < head_dim; d++) values[(token / 4 * stride + d) * 4 + token % 4] = (uint8_t)codes[d];
}

#endif
