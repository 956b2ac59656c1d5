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

/* `is_streamed`: the weights come from beyond L2. */
INLINE void prefetch_ahead(const uint8_t *line, const int is_streamed) {
    __builtin_prefetch(line + PREFETCH_BYTES);
    if (is_streamed) __builtin_prefetch(line + STREAM_PREFETCH_BYTES, 0, 2);
}

/* isum[rows] = the exact sums over one group of q8, `lines` lines. A single row keeps four of them, so that the dot
 * product's latency does not bound it. */
INLINE void q8_sums(const uint8_t *lines, int num_lines, const int8_t *a, int64_t stride, const int32_t *sums,
                    int64_t sums_stride, const int rows, const int is_streamed, Int16 *isum) {
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
            prefetch_ahead(codes, is_streamed);
            isum[c] = add_line(isum[c], load_q8(codes), a + (line + c) * Q8_LINE_K);
        }
    }
    for (; line < num_lines; line++) {
        const Line weights = load_q8(lines + line * LINE_BYTES);
        prefetch_ahead(lines + line * LINE_BYTES, is_streamed);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) isum[r] = add_line(isum[r], weights, a + r * stride + line * Q8_LINE_K);
    }
    if (chains > 1) EACH(p) isum[0].v[p] += isum[1].v[p] + isum[2].v[p] + isum[3].v[p];
}

/* isum[rows] += subscales * the exact sums over one subgroup of q4, `num_lines` lines. High codes first, as they lie in their
 * bytes: shifting their sum once costs less than shifting every line. */
INLINE void add_q4_subgroup(const uint8_t *lines, const int num_lines, Int16 subscales, const int8_t *a, int64_t stride,
                            const int32_t *sums, int64_t sums_stride, const int rows, const int is_streamed, Int16 *isum) {
    Int16 dot[LEVEL_MAX_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) dot[r] = splat16_int(-Q4_OFFSET * (1 << Q4_HIGH_SHIFT) * sums[r * sums_stride]);
#pragma GCC unroll 4
    for (int line = 0; line < num_lines; line++) {
        const Line high = load_q4_high(lines + line * LINE_BYTES);
        prefetch_ahead(lines + line * LINE_BYTES, is_streamed);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) dot[r] = add_line(dot[r], high, a + r * stride + line * Q4_LINE_K + 4);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) EACH(p) dot[r].v[p] = dot[r].v[p] >> Q4_HIGH_SHIFT;
#pragma GCC unroll 4
    for (int line = 0; line < num_lines; line++) {
        const Line low = load_q4_low(lines + line * LINE_BYTES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) dot[r] = add_line(dot[r], low, a + r * stride + line * Q4_LINE_K);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) isum[r] = add_scaled(isum[r], dot[r], subscales);
}

/* One strip, `rows` rows from `row`: y[rows] = act . weights. What is const is constant where this is inlined. */
INLINE void quantized_strip(const Matmul *m, const uint8_t *strip, int row, const int rows, const int format,
                            const int is_streamed, Float16 *y) {
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
            prefetch_ahead(scale_line, is_streamed);
            lines += LINE_BYTES;
        }
        Int16 isum[LEVEL_MAX_ROWS + SUBGROUPS];
        if (format == FORMAT_Q8) {
            q8_sums(lines, num_lines, a, act->codes_stride, sums, sums_stride, rows, is_streamed, isum);
        } else {
            enum { FULL = SUBGROUP / Q4_LINE_K };
            Int16 subscales[SUBGROUPS];
            load_subscales(scale_line, subscales);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) isum[r] = splat16_int(0);
#pragma GCC unroll 4
            for (int s = 0; s < SUBGROUPS; s++) {
                const uint8_t *first = lines + s * FULL * LINE_BYTES;
                const int8_t *codes = a + s * SUBGROUP;
                const int rest = num_lines - s * FULL;
                if (rest <= 0) break;
                if (rest >= FULL)
                    add_q4_subgroup(first, FULL, subscales[s], codes, act->codes_stride, sums + s, sums_stride, rows,
                                    is_streamed, isum);
                else
                    add_q4_subgroup(first, rest, subscales[s], codes, act->codes_stride, sums + s, sums_stride, rows,
                                    is_streamed, isum);
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
        for (int r = 0; r < rows; r++)
            EACH(p) evens[r].v[p] = multiply_add(even.v[p], splat(x[r * m->x_stride + k]), evens[r].v[p]);
        if (k + 1 == m->k) break;
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            EACH(p) odds[r].v[p] = multiply_add(odd.v[p], splat(x[r * m->x_stride + k + 1]), odds[r].v[p]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) EACH(p) y[r].v[p] = evens[r].v[p] + odds[r].v[p];
}

INLINE void multiply_strip(const Matmul *m, const uint8_t *strip, int row, const int rows, const int format,
                           const int is_streamed, Float16 *y) {
    if (format == FORMAT_Q8 || format == FORMAT_Q4)
        quantized_strip(m, strip, row, rows, format, is_streamed, y);
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
INLINE void finish_strip(const Matmul *m, int s, int row, const int rows, const int format, const int is_streamed) {
    Float16 y[LEVEL_MAX_ROWS], up[LEVEL_MAX_ROWS] = {0};
    const uint8_t *strip = m->strips + s * m->strip_bytes;
    multiply_strip(m, strip, row, rows, format, is_streamed, y);
    if (m->epilogue == EPILOGUE_SILU_MUL) multiply_strip(m, strip + m->strip_bytes, row, rows, format, is_streamed, up);
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
        for (; row + 8 <= m->rows; row += 8) finish_strip(m, s, row, 8, format, 0);
#endif
#if LEVEL_MAX_ROWS >= 4
        for (; row + 4 <= m->rows; row += 4) finish_strip(m, s, row, 4, format, 0);
#endif
        for (; row + 2 <= m->rows; row += 2) finish_strip(m, s, row, 2, format, 0);
        for (; row < m->rows; row++) {
            if (m->is_streamed)
                finish_strip(m, s, row, 1, format, 1);
            else
                finish_strip(m, s, row, 1, format, 0);
        }
    }
}

static void NAMED(matmul_f32_64x16)(const Matmul *m) {
    matmul(m, FORMAT_F32);
}

#ifdef LEVEL_HAS_TILES
#include "kernel_bf16.h"
#else
static void NAMED(matmul_bf16_64x16)(const Matmul *m) {
    matmul(m, FORMAT_BF16);
}
#endif

static void NAMED(matmul_q8_64x16)(const Matmul *m) {
    matmul(m, FORMAT_Q8);
}

static void NAMED(matmul_q4_64x16)(const Matmul *m) {
    matmul(m, FORMAT_Q4);
}

#endif
