/* Rows times the strips of one worker, for each format of the weights. */
#ifndef WAFERLINE_KERNEL_MATMUL_H
#define WAFERLINE_KERNEL_MATMUL_H

#include "kernel_vectors.h"
#include "kernels.h"

INLINE Int16 splat16_int(int32_t x) {
    Int16 y;
    EACH(p) y.v[p] = x - (IntV){0};
    return y;
}

/* The subscales of 16 columns: -8..-1, 1..8. */
INLINE Int16 load_subscales(const uint8_t *scale_line, int subgroup) {
    Int16 y;
    EACH(p) {
        ByteV nibbles;
        memcpy(&nibbles, scale_line + 2 * TILE_N + subgroup / 2 * TILE_N + p * sizeof nibbles, sizeof nibbles);
        const IntV below = (__builtin_convertvector(nibbles, IntV) >> (subgroup % 2 * 4) & 15) - MAX_SUBSCALE;
        y.v[p] = below - (below >= 0);
    }
    return y;
}

/* isum[rows] = the exact sums over one group of q8, `lines` lines. A single row keeps four of them, so that the dot
 * product's latency does not bound it. */
INLINE void q8_sums(const uint8_t *lines, int num_lines, const int8_t *a, int64_t stride, const int32_t *sums,
                    int64_t sums_stride, const int rows, Int16 *isum) {
    const int chains = rows == 1 ? SUBGROUPS : 1;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        const int32_t *of_row = sums + r * sums_stride; /* [SUBGROUPS] */
        if (rows > 1) isum[r] = splat16_int(-Q8_OFFSET * (of_row[0] + of_row[1] + of_row[2] + of_row[3]));
    }
#pragma GCC unroll 4
    for (int c = 0; rows == 1 && c < chains; c++) isum[c] = splat16_int(-Q8_OFFSET * sums[c]);
    int line = 0;
    for (; chains > 1 && line + chains <= num_lines; line += chains) {
#pragma GCC unroll 4
        for (int c = 0; c < chains; c++) {
            const uint8_t *codes = lines + (line + c) * LINE_BYTES;
            __builtin_prefetch(codes + PREFETCH_BYTES);
            isum[c] = add_line(isum[c], load_q8(codes), a + (line + c) * Q8_LINE_K);
        }
    }
    for (; line < num_lines; line++) {
        const Line weights = load_q8(lines + line * LINE_BYTES);
        __builtin_prefetch(lines + line * LINE_BYTES + PREFETCH_BYTES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) isum[r] = add_line(isum[r], weights, a + r * stride + line * Q8_LINE_K);
    }
    if (chains > 1) EACH(p) isum[0].v[p] += isum[1].v[p] + isum[2].v[p] + isum[3].v[p];
}

/* isum[rows] += subscales * the exact sums over one subgroup of q4, `num_lines` lines. */
INLINE void add_q4_subgroup(const uint8_t *lines, const int num_lines, Int16 subscales, const int8_t *a, int64_t stride,
                            const int32_t *sums, int64_t sums_stride, const int rows, Int16 *isum) {
    Int16 dot[LEVEL_MAX_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) dot[r] = splat16_int(-Q4_OFFSET * sums[r * sums_stride]);
#pragma GCC unroll 4
    for (int line = 0; line < num_lines; line++) {
        Line low, high;
        load_q4(lines + line * LINE_BYTES, &low, &high);
        __builtin_prefetch(lines + line * LINE_BYTES + PREFETCH_BYTES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const int8_t *codes = a + r * stride + line * Q4_LINE_K;
            dot[r] = add_line(add_line(dot[r], low, codes), high, codes + 4);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) EACH(p) isum[r].v[p] = isum[r].v[p] + dot[r].v[p] * subscales.v[p];
}

/* One strip, `rows` rows from `row`: y[rows] = act . weights. `rows` and `format` are constants where this is inlined. */
INLINE void quantized_strip(const Matmul *m, const uint8_t *strip, int row, const int rows, const int format, Float16 *y) {
    const QuantizedRows *act = &m->act;
    const int line_k = format == FORMAT_Q4 ? Q4_LINE_K : Q8_LINE_K, full = GROUP / line_k;
    const int64_t sums_stride = act->groups_stride * SUBGROUPS;
    const uint8_t *lines = strip, *scale_line = strip;
    const int8_t *a = act->codes + row * act->codes_stride;          /* [rows][codes_stride] */
    const float *a_scales = act->scales + row * act->groups_stride;  /* [rows][groups_stride] */
    const int32_t *sums = act->sums + row * sums_stride;             /* [rows][sums_stride] */
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) y[r] = splat16(0.0f);
    for (int left = m->k, g = 0; left > 0; left -= GROUP, g++) {
        const int num_lines = left < GROUP ? (left + line_k - 1) / line_k : full;
        if (format == FORMAT_Q4 || g % 2 == 0) {
            scale_line = lines;
            lines += LINE_BYTES;
        }
        Int16 isum[LEVEL_MAX_ROWS + SUBGROUPS];
        if (format == FORMAT_Q8) {
            q8_sums(lines, num_lines, a, act->codes_stride, sums, sums_stride, rows, isum);
        } else {
            enum { FULL = SUBGROUP / Q4_LINE_K };
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) isum[r] = splat16_int(0);
#pragma GCC unroll 4
            for (int s = 0; s < SUBGROUPS; s++) {
                const uint8_t *first = lines + s * FULL * LINE_BYTES;
                const int8_t *codes = a + s * SUBGROUP;
                const int rest = num_lines - s * FULL;
                if (rest <= 0) break;
                const Int16 subscales = load_subscales(scale_line, s);
                if (rest >= FULL)
                    add_q4_subgroup(first, FULL, subscales, codes, act->codes_stride, sums + s, sums_stride, rows, isum);
                else
                    add_q4_subgroup(first, rest, subscales, codes, act->codes_stride, sums + s, sums_stride, rows, isum);
            }
        }
        const Float16 scales = load_bfloat16(scale_line + (format == FORMAT_Q8 ? g % 2 * TILE_N * 2 : 0));
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const float a_scale = a_scales[r * act->groups_stride + g];
            EACH(p) y[r].v[p] = y[r].v[p] + __builtin_convertvector(isum[r].v[p], FloatV) * (scales.v[p] * a_scale);
        }
        lines += num_lines * LINE_BYTES;
        a += GROUP;
        sums += SUBGROUPS;
    }
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

/* What becomes of row `row` of strip s, y; for SILU_MUL `up` is the row of strip s + 1. */
INLINE void finish_row(const Matmul *m, int s, int row, Float16 y, Float16 up) {
    const int column = (m->first + s) * TILE_N, is_pair = m->epilogue == EPILOGUE_SILU_MUL;
    float *dst = m->dst + row * m->dst_stride + (is_pair ? column / 2 : column);
    if (m->bias) {
        const Float16 bias = load16(m->bias + column);
        EACH(p) y.v[p] = y.v[p] + bias.v[p];
    }
    if (is_pair) { /* silu(x) = x / (1 + exp(-x)) */
        EACH(p) y.v[p] = y.v[p] / (1.0f + exponential(-y.v[p])) * up.v[p];
    } else if (m->epilogue == EPILOGUE_ADD) {
        const Float16 before = load16(dst);
        EACH(p) y.v[p] = before.v[p] + y.v[p];
    }
    store16(dst, y);
}

/* A strip (or, for SILU_MUL, a pair of strips) of the output, `rows` rows from `row`. */
INLINE void finish_strip(const Matmul *m, int s, int row, const int rows, const int format) {
    Float16 y[LEVEL_MAX_ROWS], up[LEVEL_MAX_ROWS] = {0};
    const uint8_t *strip = m->strips + s * m->strip_bytes;
    multiply_strip(m, strip, row, rows, format, y);
    if (m->epilogue == EPILOGUE_SILU_MUL) multiply_strip(m, strip + m->strip_bytes, row, rows, format, up);
    for (int r = 0; r < rows; r++) finish_row(m, s, row + r, y[r], up[r]);
}

#ifdef LEVEL_HAS_TILES
#include "kernel_tiles.h"
#endif

/* Strips outermost: a strip stays in the nearest cache while all rows pass over it. */
INLINE void matmul(const Matmul *m, const int format) {
#ifdef LEVEL_HAS_TILES
    if ((format == FORMAT_Q8 || format == FORMAT_Q4) && m->rows >= MIN_TILE_ROWS) {
        tile_matmul(m, format);
        return;
    }
#endif
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
