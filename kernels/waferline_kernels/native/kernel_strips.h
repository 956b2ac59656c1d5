/* Some rows by a strip or two, for each format of the weights: the sums, and what becomes of them. */
#ifndef WAFERLINE_KERNEL_STRIPS_H
#define WAFERLINE_KERNEL_STRIPS_H

#include "kernel_vectors.h"
#include "kernels.h"

/* Of a strip or two by some rows. */
enum { MOST_SUMS = 2 * LEVEL_MAX_ROWS };
enum { Q4_SUBGROUP_LINES = SUBGROUP / Q4_LINE_K };

INLINE Int16 splat16_int(int32_t x) {
    Int16 y;
    EACH(p) y.v[p] = x - (IntV){0};
    return y;
}

INLINE void prefetch_ahead(const uint8_t *line, const int fetch, int64_t ahead) {
    if (fetch == FETCH_L1 || fetch == FETCH_L1_L2) __builtin_prefetch(line + ahead);
    if (fetch == FETCH_L1_L2) __builtin_prefetch(line + L2_BYTES, 0, 2);
    if (fetch == FETCH_L2) __builtin_prefetch(line + ahead, 0, 2);
}

/* Some rows' activations over one group of K. */
typedef struct {
    const int8_t *codes;    /* [rows][stride] */
    const int32_t *offsets; /* [rows][offsets_stride] */
    int64_t stride, offsets_stride;
} GroupRows;

/* Whether sums begin with offsets, which take the zero point of weights off. */
INLINE int has_offsets(const int format) {
    return format == FORMAT_Q8 ? Q8_OFFSET != 0 : format == FORMAT_Q4 && HAS_Q4_OFFSETS;
}

/* Of the sums over a group or, of q4, a subgroup. */
INLINE int offsets_per_group(const int format) {
    return format == FORMAT_Q4 ? SUBGROUPS : 1;
}

/* m's scratch = int32 [rows][groups][offsets_per_group]: once for all strips, each of which would make them anew. */
INLINE void make_offsets(const Matmul *m, const int format) {
    const int groups = (m->k + GROUP - 1) / GROUP;
    int32_t *offset = (int32_t *)m->scratch;
    for (int r = 0; r < m->rows; r++) {
        const int32_t *sums = m->act.sums + r * m->act.groups_stride * SUBGROUPS; /* [groups][SUBGROUPS] */
        for (int n = 0; n < groups * SUBGROUPS && format == FORMAT_Q4; n++) *offset++ = q4_offset(sums[n]);
        for (int n = 0; n < groups * SUBGROUPS && format == FORMAT_Q8; n += SUBGROUPS)
            *offset++ = -Q8_OFFSET * (sums[n] + sums[n + 1] + sums[n + 2] + sums[n + 3]);
    }
}

/* isum[strips][rows] = the exact sums over one group of q8, `num_lines` lines. LEVEL_CHAINS chains at least, so that the
 * dot product's latency does not bound it; LINES_TOGETHER lines, where counting each would. */
INLINE void q8_sums(const uint8_t *lines, int64_t strip_bytes, int num_lines, const GroupRows *a, const int rows,
                    const int strips, const int fetch, int64_t ahead, Int16 *isum) {
    const int width = strips * rows, chains = width < LEVEL_CHAINS ? LEVEL_CHAINS / width : 1;
    const int together = chains > LINES_TOGETHER ? chains : LINES_TOGETHER;
    Int16 dot[MOST_SUMS + LEVEL_CHAINS]; /* [chains][strips][rows] */
    UNROLL(16)
    for (int n = 0; n < chains * width; n++)
        dot[n] = splat16_int(n < width && has_offsets(FORMAT_Q8) ? a->offsets[n % rows * a->offsets_stride] : 0);
    int line = 0;
    UNROLL_BY(LINES_UNROLL)
    for (; line + together <= num_lines; line += together)
        UNROLL(16)
        for (int n = 0; n < together * strips; n++) {
            const int at = line + n / strips;
            const uint8_t *codes = lines + n % strips * strip_bytes + at * LINE_BYTES;
            const Line weights = load_q8(codes);
            if (n % strips == 0) prefetch_ahead(codes, fetch, ahead);
            UNROLL(16)
            for (int r = 0; r < rows; r++) {
                Int16 *sum = &dot[n % (chains * strips) * rows + r];
                *sum = add_line(*sum, weights, a->codes + r * a->stride + at * Q8_LINE_K);
            }
        }
    for (; together > 1 && line < num_lines; line++)
        UNROLL(2)
        for (int n = 0; n < width; n++) {
            const Line weights = load_q8(lines + n / rows * strip_bytes + line * LINE_BYTES);
            dot[n] = add_line(dot[n], weights, a->codes + n % rows * a->stride + line * Q8_LINE_K);
        }
    UNROLL(16)
    for (int n = 0; n < width; n++) {
        isum[n] = dot[n];
        UNROLL(4)
        for (int c = 1; c < chains; c++) EACH(p) isum[n].v[p] += dot[c * width + n].v[p];
    }
}

/* sums[strips][rows] += lines . activations, over the high or the low codes of a subgroup of q4. */
INLINE void add_q4_half(const uint8_t *lines, int64_t strip_bytes, const int num_lines, const int subgroup,
                        const GroupRows *a, const int rows, const int strips, const int is_high, const int fetch,
                        int64_t ahead, Int16 *sums) {
    UNROLL(4)
    for (int line = 0; line < Q4_SUBGROUP_LINES; line++)
        UNROLL(2)
        for (int j = 0; j < strips; j++) {
            const int at = subgroup * Q4_SUBGROUP_LINES + line;
            if (at >= num_lines) break;
            const uint8_t *codes = lines + j * strip_bytes + at * LINE_BYTES;
            const Line weights = is_high ? load_q4_high(codes) : load_q4_low(codes);
            if (is_high && j == 0) prefetch_ahead(codes, fetch, ahead);
            UNROLL(16)
            for (int r = 0; r < rows; r++) {
                const int8_t *four = a->codes + r * a->stride + at * Q4_LINE_K + 4 * is_high;
                sums[j * rows + r] = add_q4_line(sums[j * rows + r], weights, four);
            }
        }
}

/* *high += and *low += the high and the low codes of a subgroup of one strip . a single row. */
INLINE void add_q4_lines(const uint8_t *lines, const int num_lines, const int subgroup, const int8_t *a, const int fetch,
                         int64_t ahead, Int16 *high, Int16 *low) {
    UNROLL(4)
    for (int line = 0; line < Q4_SUBGROUP_LINES; line++) {
        const int at = subgroup * Q4_SUBGROUP_LINES + line;
        if (at >= num_lines) break;
        Line high_codes, low_codes;
        prefetch_ahead(lines + at * LINE_BYTES, fetch, ahead);
        load_q4(lines + at * LINE_BYTES, &high_codes, &low_codes);
        *high = add_q4_line(*high, high_codes, a + at * Q4_LINE_K + 4);
        *low = add_q4_line(*low, low_codes, a + at * Q4_LINE_K);
    }
}

/* isum[strips][rows] = the exact sums over one group of q4, `num_lines` lines, codes times subscales. Many sums leave no
 * registers for lines, which are loaded again for their low codes; a single row would be bound by those loads. */
INLINE void q4_sums(const uint8_t *scale_line, int64_t strip_bytes, const int num_lines, const GroupRows *a, const int rows,
                    const int strips, const int fetch, int64_t ahead, Int16 *isum) {
    const int width = strips * rows;
    const uint8_t *lines = scale_line + LINE_BYTES;
    Int16 subscales[2][SUBGROUPS], sums[MOST_SUMS]; /* [strips][rows] */
    UNROLL(2)
    for (int j = 0; j < strips; j++) load_subscales(scale_line + j * strip_bytes, subscales[j]);
    UNROLL(16)
    for (int n = 0; n < width; n++) isum[n] = splat16_int(0);
    UNROLL_BY(SUBGROUPS_UNROLL)
    for (int s = 0; s < SUBGROUPS; s++) {
        Int16 low = splat16_int(0);
        UNROLL(16)
        for (int n = 0; n < width; n++)
            sums[n] = splat16_int(has_offsets(FORMAT_Q4) ? a->offsets[n % rows * a->offsets_stride + s] : 0);
        if (width == 1)
            add_q4_lines(lines, num_lines, s, a->codes, fetch, ahead, sums, &low);
        else
            add_q4_half(lines, strip_bytes, num_lines, s, a, rows, strips, 1, fetch, ahead, sums);
        UNROLL(16)
        for (int n = 0; n < width; n++) sums[n] = add_high(sums[n], low);
        if (width > 1) add_q4_half(lines, strip_bytes, num_lines, s, a, rows, strips, 0, fetch, ahead, sums);
        UNROLL(16)
        for (int n = 0; n < width; n++) isum[n] = add_scaled(isum[n], sums[n], subscales[n / rows][s]);
    }
}

/* Of either format. */
INLINE void group_sums(const Matmul *m, const uint8_t *lines, const uint8_t *scale_line, const int num_lines,
                       const GroupRows *a, const int rows, const int strips, const int format, const int fetch,
                       int64_t ahead, Int16 *isum) {
    if (format == FORMAT_Q8)
        q8_sums(lines, m->strip_bytes, num_lines, a, rows, strips, fetch, ahead, isum);
    else
        q4_sums(scale_line, m->strip_bytes, num_lines, a, rows, strips, fetch, ahead, isum);
}

/* `strips` strips from `strip`, `rows` rows from `row`: y[strips][rows] = act . weights. What is const is constant where
 * this is inlined. */
INLINE void quantized_strips(const Matmul *m, const uint8_t *strip, int row, const int rows, const int strips,
                             const int format, const int fetch, int64_t ahead, Float16 *y) {
    const QuantizedRows *act = &m->act;
    const int line_k = format == FORMAT_Q4 ? Q4_LINE_K : Q8_LINE_K, full = GROUP / line_k;
    const int64_t offsets_stride = (m->k + GROUP - 1) / GROUP * offsets_per_group(format);
    const uint8_t *lines = strip, *scale_line = strip;
    GroupRows a = {
        .codes = act->codes + row * act->codes_stride,
        .offsets = (const int32_t *)m->scratch + row * offsets_stride,
        .stride = act->codes_stride,
        .offsets_stride = offsets_stride,
    };
    const float *a_scales = act->scales + row * act->groups_stride; /* [rows][groups_stride] */
    UNROLL(16)
    for (int n = 0; n < strips * rows; n++) y[n] = splat16(0.0f);
    for (int left = m->k, g = 0; left > 0; left -= GROUP, g++) {
        const int num_lines = left < GROUP ? (left + line_k - 1) / line_k : full;
        if (format == FORMAT_Q4 || g % 2 == 0) {
            scale_line = lines;
            prefetch_ahead(scale_line, fetch, ahead);
            lines += LINE_BYTES;
        }
        Int16 isum[MOST_SUMS]; /* [strips][rows] */
        if (num_lines == full)
            group_sums(m, lines, scale_line, full, &a, rows, strips, format, fetch, ahead, isum);
        else
            group_sums(m, lines, scale_line, num_lines, &a, rows, strips, format, fetch, ahead, isum);
        UNROLL(2)
        for (int j = 0; j < strips; j++) {
            const int64_t at = j * m->strip_bytes + (format == FORMAT_Q8 ? g % 2 * TILE_N * 2 : 0);
            const Float16 scales = load_bfloat16(scale_line + at);
            UNROLL(16)
            for (int r = 0; r < rows; r++) {
                const float a_scale = a_scales[r * act->groups_stride + g];
                const int n = j * rows + r;
                EACH(p) y[n].v[p] = y[n].v[p] + __builtin_convertvector(isum[n].v[p], FloatV) * (scales.v[p] * a_scale);
            }
        }
        lines += num_lines * LINE_BYTES;
        a.codes += GROUP;
        a.offsets += offsets_per_group(format);
    }
}

/* `strips` strips of float weights from `strip`, `rows` rows from `row`: y[strips][rows]. Even and odd K are summed in one
 * chain each. Where K is odd its last odd weight lies beyond the strip or is padding, and is left out. */
INLINE void float_strips(const Matmul *m, const uint8_t *strip, int row, const int rows, const int strips, const int format,
                         const int fetch, int64_t ahead, Float16 *y) {
    const int bytes = format == FORMAT_F32 ? 64 : 32;   /* of 16 weights */
    const float *x = m->x + (int64_t)row * m->x_stride; /* [rows][x_stride] */
    Float16 evens[MOST_SUMS], odds[MOST_SUMS];          /* [strips][rows] */
    UNROLL(16)
    for (int n = 0; n < strips * rows; n++) evens[n] = odds[n] = splat16(0.0f);
    for (int k = 0; k < m->k; k += 2, strip += 2 * bytes) {
        Float16 even[2], odd[2]; /* [strips] */
        UNROLL(2)
        for (int j = 0; j < strips; j++)
            load_pair(format == FORMAT_BF16, strip + j * m->strip_bytes, 0, LINE_BYTES, &even[j], &odd[j]);
        prefetch_ahead(strip, fetch, ahead);
        if (format == FORMAT_F32) prefetch_ahead(strip + bytes, fetch, ahead);
        UNROLL(16)
        for (int n = 0; n < strips * rows; n++) {
            const FloatV a = splat(x[n % rows * m->x_stride + k]);
            EACH(p) evens[n].v[p] = multiply_add(even[n / rows].v[p], a, evens[n].v[p]);
        }
        if (k + 1 == m->k) break;
        UNROLL(16)
        for (int n = 0; n < strips * rows; n++) {
            const FloatV a = splat(x[n % rows * m->x_stride + k + 1]);
            EACH(p) odds[n].v[p] = multiply_add(odd[n / rows].v[p], a, odds[n].v[p]);
        }
    }
    UNROLL(16)
    for (int n = 0; n < strips * rows; n++) EACH(p) y[n].v[p] = evens[n].v[p] + odds[n].v[p];
}

/* Of any format. */
INLINE void multiply_strips(const Matmul *m, const uint8_t *strip, int row, const int rows, const int strips,
                            const int format, const int fetch, int64_t ahead, Float16 *y) {
    if (format == FORMAT_Q8 || format == FORMAT_Q4)
        quantized_strips(m, strip, row, rows, strips, format, fetch, ahead, y);
    else
        float_strips(m, strip, row, rows, strips, format, fetch, ahead, y);
}

/* Where row `row` of strip s is stored to; for SILU_MUL that of strips s and s + 1. */
INLINE float *output_of(const Matmul *m, int s, int row) {
    return m->dst + row * m->dst_stride + s * TILE_N / (m->epilogue == EPILOGUE_SILU_MUL ? 2 : 1);
}

/* Ask L2 for the lines that rows begin .. end - 1 of two strips are stored to: those of many rows lie in L3 or beyond, and
 * storing to them took a third of a matmul of 512 rows. */
INLINE void prefetch_outputs(const Matmul *m, int s, int begin, int end) {
    for (int row = begin; row < end && row < m->rows; row++) {
        const float *dst = output_of(m, s, row);
        __builtin_prefetch(dst, 0, 2);
        if (m->epilogue != EPILOGUE_SILU_MUL) __builtin_prefetch(dst + TILE_N, 0, 2);
    }
}

/* What becomes of row `row` of strip s, y; for SILU_MUL `up` is the row of strip s + 1. */
INLINE void finish_row(const Matmul *m, int s, int row, Float16 y, Float16 up) {
    float *dst = output_of(m, s, row);
    if (m->bias) {
        const Float16 bias = load16(m->bias + s * TILE_N);
        EACH(p) y.v[p] = y.v[p] + bias.v[p];
    }
    if (m->epilogue == EPILOGUE_SILU_MUL) { /* silu(x) = x / (1 + exp(-x)) */
        EACH(p) y.v[p] = y.v[p] / (1.0f + exponential(-y.v[p])) * up.v[p];
    } else if (m->epilogue == EPILOGUE_ADD) {
        const Float16 before = load16(dst);
        EACH(p) y.v[p] = before.v[p] + y.v[p];
    }
    store16(dst, y);
}

/* A strip (or, for SILU_MUL, a pair of strips) of the output, `rows` rows from `row`. */
INLINE void finish_strip(const Matmul *m, int s, int row, const int rows, const int format, const int fetch,
                         int64_t ahead) {
    Float16 y[LEVEL_MAX_ROWS], up[LEVEL_MAX_ROWS] = {0};
    const uint8_t *strip = m->strips + s * m->strip_bytes;
    multiply_strips(m, strip, row, rows, 1, format, fetch, ahead, y);
    if (m->epilogue == EPILOGUE_SILU_MUL)
        multiply_strips(m, strip + m->strip_bytes, row, rows, 1, format, fetch, ahead, up);
    for (int r = 0; r < rows; r++) finish_row(m, s, row + r, y[r], up[r]);
}

/* Two strips: they share the loads of activations. Where they ask for lines, each of the first strip's asks for one. */
INLINE void finish_two_strips(const Matmul *m, int s, int row, const int rows, const int format, const int fetch,
                              int64_t ahead) {
    Float16 y[MOST_SUMS]; /* [2][rows] */
    if (rows > 1) prefetch_outputs(m, s, row, row + rows);
    multiply_strips(m, m->strips + s * m->strip_bytes, row, rows, 2, format, fetch, ahead, y);
    for (int r = 0; r < rows; r++) {
        finish_row(m, s, row + r, y[r], y[rows + r]);
        if (m->epilogue != EPILOGUE_SILU_MUL) finish_row(m, s + 1, row + r, y[rows + r], y[rows + r]);
    }
}

#endif
