/* Rows times the strips of one worker, for each format of the weights. */
#ifndef WAFERLINE_KERNEL_MATMUL_H
#define WAFERLINE_KERNEL_MATMUL_H

#include "kernel_vectors.h"
#include "kernels.h"

/* 64 bytes of codes: one line, or with four bits two. */
typedef struct {
    Line low, high;
} Codes;

INLINE Codes load_codes(const uint8_t *codes, const int format) {
    Codes y;
    if (format == FORMAT_Q4)
        load_q4(codes, &y.low, &y.high);
    else
        y.low = y.high = load_q8(codes);
    return y;
}

INLINE Int16 add_codes(Int16 isum, Codes codes, const int8_t *a, const int format) {
    isum = add_line(isum, codes.low, a);
    return format == FORMAT_Q4 ? add_line(isum, codes.high, a + 4) : isum;
}

/* One strip, `rows` rows from `row`: y[rows] = act . weights. `rows` and `format` are constants where this is inlined.
 * A single row keeps four exact sums a group, so that the dot product's latency does not bound it. */
INLINE void quantized_strip(const Matmul *m, const uint8_t *strip, int row, const int rows, const int format, Float16 *y) {
    const int chains = rows == 1 ? 4 : 1;
    const int line_k = format == FORMAT_Q4 ? Q4_LINE_K : Q8_LINE_K;
    const int zero_point = format == FORMAT_Q4 ? Q4_ZERO_POINT : Q8_ZERO_POINT;
    const uint8_t *codes = strip, *scale_line = strip;                      /* a line of scales before every two groups */
    const int8_t *a = m->act.codes + row * m->act.codes_stride;             /* [rows][codes_stride] */
    const float *a_scales = m->act.scales + row * m->act.groups_stride;     /* [rows][groups_stride] */
    const int32_t *a_sums = m->act.sums + row * m->act.groups_stride;       /* [rows][groups_stride] */
    Float16 acc[LEVEL_MAX_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) acc[r] = splat16(0.0f);
    for (int g = 0; g * m->group < m->k; g++) {
        const int left = m->k - g * m->group, lines = ((left < m->group ? left : m->group) + line_k - 1) / line_k;
        if (g % 2 == 0) {
            scale_line = codes;
            codes += LINE_BYTES;
        }
        Int16 isum[LEVEL_MAX_ROWS + 4];
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const int32_t offset = CODES_ARE_SIGNED ? 0 : -zero_point * a_sums[r * m->act.groups_stride + g];
            EACH(p) isum[r].v[p] = offset - (IntV){0};
        }
#pragma GCC unroll 4
        for (int c = 1; c < chains; c++) EACH(p) isum[c].v[p] = (IntV){0};
        int line = 0;
        for (; chains > 1 && line + chains <= lines; line += chains) {
#pragma GCC unroll 4
            for (int c = 0; c < chains; c++) {
                __builtin_prefetch(codes + PREFETCH_BYTES + LINE_BYTES * c);
                isum[c] = add_codes(isum[c], load_codes(codes + LINE_BYTES * c, format), a + line_k * c, format);
            }
            codes += LINE_BYTES * chains;
            a += line_k * chains;
        }
        for (; line < lines; line++) {
            const Codes weights = load_codes(codes, format);
            __builtin_prefetch(codes + PREFETCH_BYTES);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
                isum[r] = add_codes(isum[r], weights, a + r * m->act.codes_stride, format);
            codes += LINE_BYTES;
            a += line_k;
        }
        if (chains > 1) EACH(p) isum[0].v[p] += isum[1].v[p] + isum[2].v[p] + isum[3].v[p];
        const Float16 scales = load_bfloat16(scale_line + g % 2 * TILE_N * 2);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const float a_scale = a_scales[r * m->act.groups_stride + g];
            EACH(p) acc[r].v[p] = acc[r].v[p] + __builtin_convertvector(isum[r].v[p], FloatV) * (scales.v[p] * a_scale);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) y[r] = acc[r];
}

/* The weights of K = k and k + 1 of 16 columns, from float32 [K][16] or bfloat16 [K / 2][16][2]. */
INLINE void load_pair(const uint8_t *lines, int k, const int format, Float16 *even, Float16 *odd) {
    if (format == FORMAT_F32) {
        *even = load16((const float *)lines + k * TILE_N);
        *odd = load16((const float *)lines + (k + 1) * TILE_N);
        return;
    }
    EACH(p) {
        UintV pairs;
        memcpy(&pairs, lines + k / 2 * LINE_BYTES + p * sizeof pairs, sizeof pairs);
        even->v[p] = (FloatV)(pairs << 16);
        odd->v[p] = (FloatV)(pairs & 0xFFFF0000u);
    }
}

/* The same for float weights: even and odd K in one chain each, added at the end. Where K is odd its last odd weight lies
 * beyond the strip or is padding, and is left out. */
INLINE void float_strip(const Matmul *m, const uint8_t *strip, int row, const int rows, const int format, Float16 *y) {
    const int bytes = format == FORMAT_F32 ? 64 : 32;   /* of 16 weights */
    const float *x = m->x + (int64_t)row * m->x_stride; /* [rows][x_stride] */
    Float16 evens[LEVEL_MAX_ROWS], odds[LEVEL_MAX_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) evens[r] = odds[r] = splat16(0.0f);
    for (int k = 0; k < m->k; k += 2) {
        Float16 even, odd;
        load_pair(strip, k, format, &even, &odd);
        __builtin_prefetch(strip + k * bytes + PREFETCH_BYTES);
        if (format == FORMAT_F32) __builtin_prefetch(strip + (k + 1) * bytes + PREFETCH_BYTES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) EACH(p) evens[r].v[p] = evens[r].v[p] + even.v[p] * x[r * m->x_stride + k];
        if (k + 1 == m->k) break;
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) EACH(p) odds[r].v[p] = odds[r].v[p] + odd.v[p] * x[r * m->x_stride + k + 1];
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) EACH(p) y[r].v[p] = evens[r].v[p] + odds[r].v[p];
}

INLINE void multiply_strip(const Matmul *m, const uint8_t *strip, int row, const int rows, const int format, Float16 *y) {
    if (format == FORMAT_Q8 || format == FORMAT_Q4)
        quantized_strip(m, strip, row, rows, format, y);
    else
        float_strip(m, strip, row, rows, format, y);
}

/* A strip (or, for SILU_MUL, a pair of strips) of the output, `rows` rows from `row`. */
INLINE void finish_strip(const Matmul *m, int s, int row, const int rows, const int format) {
    Float16 y[LEVEL_MAX_ROWS], up[LEVEL_MAX_ROWS];
    const uint8_t *strip = m->strips + s * m->strip_bytes;
    const int column = (m->first + s) * TILE_N;
    const int is_pair = m->epilogue == EPILOGUE_SILU_MUL;
    multiply_strip(m, strip, row, rows, format, y);
    if (m->bias) {
        const Float16 bias = load16(m->bias + column);
        for (int r = 0; r < rows; r++) EACH(p) y[r].v[p] = y[r].v[p] + bias.v[p];
    }
    if (is_pair) {
        multiply_strip(m, strip + m->strip_bytes, row, rows, format, up);
        for (int r = 0; r < rows; r++) /* silu(x) = x / (1 + exp(-x)) */
            EACH(p) y[r].v[p] = y[r].v[p] / (1.0f + exponential(-y[r].v[p])) * up[r].v[p];
    }
    for (int r = 0; r < rows; r++) {
        float *dst = m->dst + (row + r) * m->dst_stride + (is_pair ? column / 2 : column);
        if (m->epilogue == EPILOGUE_ADD) {
            const Float16 before = load16(dst);
            EACH(p) y[r].v[p] = before.v[p] + y[r].v[p];
        }
        store16(dst, y[r]);
    }
}

/* Strips outermost: a strip stays in the nearest cache while all rows pass over it. */
INLINE void matmul(const Matmul *m, const int format) {
    const int step = m->epilogue == EPILOGUE_SILU_MUL ? 2 : 1;
    for (int s = 0; s < m->count; s += step) {
        int row = 0;
#if LEVEL_MAX_ROWS >= 8
        for (; row + 8 <= m->rows; row += 8) finish_strip(m, s, row, 8, format);
#endif
#if LEVEL_MAX_ROWS >= 4
        for (; row + 4 <= m->rows; row += 4) finish_strip(m, s, row, 4, format);
#endif
        for (; row + 2 <= m->rows; row += 2) finish_strip(m, s, row, 2, format);
        for (; row < m->rows; row++) finish_strip(m, s, row, 1, format);
    }
}

static void NAMED(matmul_f32_64x16)(const Matmul *m) {
    matmul(m, FORMAT_F32);
}

static void NAMED(matmul_bf16_64x16)(const Matmul *m) {
    matmul(m, FORMAT_BF16);
}

static void NAMED(matmul_q8_64x16)(const Matmul *m) {
    matmul(m, FORMAT_Q8);
}

static void NAMED(matmul_q4_64x16)(const Matmul *m) {
    matmul(m, FORMAT_Q4);
}

#endif
