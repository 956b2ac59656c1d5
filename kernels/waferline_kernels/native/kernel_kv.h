/* Rotary embedding, and writing one token's key and value into a tile of each KV format; see kv_cache.py for the tiles. */
#ifndef WAFERLINE_KERNEL_KV_H
#define WAFERLINE_KERNEL_KV_H

#include "kernel_vectors.h"
#include "kernels.h"

#if LANES == 16
/* Heads whose size divides 16, as many at once: x * cos + its other half * sin, the first half's sines negated. */
INLINE void rotate_narrow(float *x, int32_t heads, const float *angles, int32_t head_dim) {
    const int32_t half = head_dim / 2, n = heads * head_dim;
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i angle = _mm512_and_si512(lane, _mm512_set1_epi32(half - 1));
    const __m512i other = _mm512_xor_si512(lane, _mm512_set1_epi32(half));
    const __m512 both = (__m512)load_first(angles, head_dim).v[0];
    const __m512 cos = _mm512_permutexvar_ps(angle, both);
    __m512 sin = _mm512_permutexvar_ps(_mm512_or_si512(angle, _mm512_set1_epi32(half)), both);
    sin = _mm512_mask_sub_ps(sin, _mm512_testn_epi32_mask(lane, _mm512_set1_epi32(half)), _mm512_set1_ps(-0.0f), sin);
    for (int32_t i = 0; i < n; i += 16) {
        const __mmask16 lanes = n - i < 16 ? (1u << (n - i)) - 1 : 0xFFFF;
        const __m512 v = _mm512_maskz_loadu_ps(lanes, x + i), crossed = _mm512_mul_ps(_mm512_permutexvar_ps(other, v), sin);
        _mm512_mask_storeu_ps(x + i, lanes, _mm512_add_ps(_mm512_mul_ps(v, cos), crossed));
    }
}
#endif

/* In place, each half with the other. */
static void NAMED(rotate)(float *x, int32_t heads, const float *angles, int32_t head_dim) {
#if LANES == 16
    if (16 % head_dim == 0) {
        rotate_narrow(x, heads, angles, head_dim);
        return;
    }
#endif
    const int32_t half = head_dim / 2;
    const float *cos = angles, *sin = angles + half;
    for (int32_t head = 0; head < heads; head++, x += head_dim) {
        float *first = x, *second = x + half;
        int32_t d = 0;
        for (; d + 16 <= half; d += 16) {
            const Float16 a = load16(first + d), b = load16(second + d), c = load16(cos + d), s = load16(sin + d);
            Float16 y, z;
            EACH(p) {
                y.v[p] = a.v[p] * c.v[p] - b.v[p] * s.v[p];
                z.v[p] = b.v[p] * c.v[p] + a.v[p] * s.v[p];
            }
            store16(first + d, y);
            store16(second + d, z);
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
    for (int d = 0; d < head_dim; d++) values[d / 16 * 16 * KV_BLOCK_SIZE + token / 2 * 32 + d % 16 * 2 + token % 2] = bits[d];
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
