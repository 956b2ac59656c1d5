/* Rows times the strips of one worker, for each format of the weights: which rows and strips are taken together. */
#ifndef WAFERLINE_KERNEL_MATMUL_H
#define WAFERLINE_KERNEL_MATMUL_H

#include "kernel_strips.h"

#ifdef LEVEL_HAS_VNNI
#include "kernel_unpack.h"
#endif
#ifdef LEVEL_HAS_TILES
#include "kernel_tiles.h"
#endif

/* Whether these are rows for tile registers; then they have gone through them. */
INLINE int through_tiles(const Matmul *m, const int format) {
#ifdef LEVEL_HAS_TILES
    if ((format == FORMAT_Q8 || format == FORMAT_Q4) && m->rows >= MIN_TILE_ROWS) {
        tile_matmul(m, format);
        return 1;
    }
#endif
    return 0;
}

/* One row, strip by strip from `s` on. All strips go through the same instructions, gates and ups too: processors tell
 * streams apart by their loads' addresses, and two would each be a stream with a gap after every strip. */
INLINE void one_by_one(const Matmul *m, int s, const int format, const int fetch) {
    const int is_pair = m->epilogue == EPILOGUE_SILU_MUL;
    Float16 gate = splat16(0.0f);
    for (; s < m->count; s++) {
        Float16 y;
        multiply_strips(m, m->strips + s * m->strip_bytes, 0, 1, 1, format, fetch, m->fetch.one_ahead, &y);
        if (!is_pair)
            finish_row(m, s, 0, y, y);
        else if (s % 2 == 0)
            gate = y;
        else
            finish_row(m, s - 1, 0, gate, y);
    }
}

/* A single row's own loads run far ahead of its products; of q4, whose lines are twice the work, half as far. */
INLINE void one_row(const Matmul *m, const int format) {
    const int is_long = format != FORMAT_Q4 && m->strip_bytes >= m->fetch.long_strip;
    const int fetch = is_long ? FETCH_NONE : m->fetch.one_row;
    int s = 0;
    if (LANES >= 8 && format != FORMAT_Q4 && m->strip_bytes >= m->fetch.paired_strip)
        for (; s + 2 <= m->count; s += 2) finish_two_strips(m, s, 0, 1, format, FETCH_NONE, 0);
    if (fetch == FETCH_NONE)
        one_by_one(m, s, format, FETCH_NONE);
    else if (fetch == FETCH_L2)
        one_by_one(m, s, format, FETCH_L2);
    else if (fetch == FETCH_L1_L2)
        one_by_one(m, s, format, FETCH_L1_L2);
    else
        one_by_one(m, s, format, FETCH_L1);
}

/* All rows by strips s and s + 1, `most` at a time, as many as there are registers for. The first pass over them asks for
 * lines so many bytes from those of strip s, the second likewise; 0: for none. */
INLINE void rows_by_pair(const Matmul *m, int s, const int most, const int format, int64_t first_ahead, int64_t second_ahead) {
    int row = 0;
    for (; row + most <= m->rows; row += most) {
        const int64_t ahead = row == 0 ? first_ahead : row == most ? second_ahead : 0;
        if (ahead)
            finish_two_strips(m, s, row, most, format, FETCH_L2, ahead);
        else
            finish_two_strips(m, s, row, most, format, FETCH_NONE, 0);
    }
    for (; most > 4 && row + 4 <= m->rows; row += 4) finish_two_strips(m, s, row, 4, format, FETCH_NONE, 0);
    for (; row + 2 <= m->rows; row += 2) finish_two_strips(m, s, row, 2, format, FETCH_NONE, 0);
    for (; row < m->rows; row++) finish_two_strips(m, s, row, 1, format, FETCH_NONE, 0);
}

/* From how many rows on pairs of strips pay whose lines have to be asked for. */
INLINE int least_rows_of_pairs(const int format) {
    return format == FORMAT_Q4 ? 8 : format == FORMAT_F32 ? 64 : 16;
}

/* Several rows by strips in pairs, as many as pay; returns the strips done. The first pass over them asks for the first of
 * the next two strips, the second for the second: in one pass both would be more than memory gives in that time. Fewer rows
 * pay where nothing need be asked for. */
INLINE int pairs_of_strips(const Matmul *m, const int format) {
    int s = 0;
#if LEVEL_MAX_ROWS >= 8 && !defined(LEVEL_HAS_TILES)
    const int most = format == FORMAT_Q8 ? 8 : 4, asks = m->rows >= least_rows_of_pairs(format);
    if (!asks && m->fetch.rows != FETCH_NONE) return 0;
    for (; s + 2 <= m->count; s += 2)
        rows_by_pair(m, s, most, format, asks ? 2 * m->strip_bytes : 0, asks ? 3 * m->strip_bytes : 0);
#endif
    return s;
}

/* Several rows take longer over a line than one does, so that their loads do not run ahead. */
INLINE void some_rows(const Matmul *m, int s, int row, const int rows, const int format) {
    if (m->fetch.rows == FETCH_L1)
        finish_strip(m, s, row, rows, format, FETCH_L1, m->fetch.rows_ahead);
    else
        finish_strip(m, s, row, rows, format, FETCH_L2, m->fetch.rows_ahead);
}

/* How many rows pass over a strip at a time: as many as there are registers for. Sums of floats are two a row. */
INLINE int most_rows(const int format) {
    if (LANES == 4 && (format == FORMAT_F32 || format == FORMAT_BF16)) return 2;
    if (LANES == 8 && format == FORMAT_F32) return 3;
    if (LANES == 8 && format == FORMAT_BF16) return 2; /* and a pair unpacked */
    return LEVEL_MAX_ROWS;
}

/* From strip `s` on. Strips outermost: a strip stays in the nearest cache while all rows pass over it. */
INLINE void several_rows(const Matmul *m, int s, const int format) {
    const int step = m->epilogue == EPILOGUE_SILU_MUL ? 2 : 1, most = most_rows(format);
    for (; s < m->count; s += step) {
        int row = 0;
        for (; most >= 8 && row + 8 <= m->rows; row += 8) some_rows(m, s, row, 8, format);
        for (; most == 6 && row + 6 <= m->rows; row += 6) some_rows(m, s, row, 6, format);
        for (; most >= 4 && row + 4 <= m->rows; row += 4) some_rows(m, s, row, 4, format);
        for (; most == 3 && row + 3 <= m->rows; row += 3) some_rows(m, s, row, 3, format);
        for (; row + 2 <= m->rows; row += 2) some_rows(m, s, row, 2, format);
        for (; row < m->rows; row++) some_rows(m, s, row, 1, format);
    }
}

/* From so many rows on two strips of q4 are unpacked to q8 first: a product then has half as many instructions beside it,
 * which pays for those of unpacking. Whether these are so many; then they are done. Where strips go in pairs, the first pass
 * over one asks for the next, which is about as long as one strip unpacked. */
INLINE int many_rows_unpacked(const Matmul *m, const int format) {
#if defined(LEVEL_HAS_VNNI) && !defined(LEVEL_HAS_TILES)
    enum { MIN_UNPACKED_ROWS = 24 };
    if (format != FORMAT_Q4 || m->rows < MIN_UNPACKED_ROWS) return 0;
    const int64_t offsets_bytes = m->rows * ((m->k + GROUP - 1) / GROUP) * sizeof(int32_t);
    uint8_t *strips = m->scratch + round_up(offsets_bytes, LINE_BYTES); /* [2][q8.strip_bytes] */
    Matmul q8 = *m;
    q8.strips = strips;
    q8.strip_bytes = q8_strip_bytes(m->k);
    make_offsets(&q8, FORMAT_Q8);
    for (int s = 0; s < m->count; s += 2) {
        q8.count = s + 1 < m->count ? 2 : 1;
        for (int j = 0; j < q8.count; j++)
            unpack_strip(m->strips + (s + j) * m->strip_bytes, m->k, strips + j * q8.strip_bytes);
        q8.dst = output_of(m, s, 0);
        if (m->bias) q8.bias = m->bias + s * TILE_N;
        if (q8.count == 2 && LEVEL_MAX_ROWS >= 8)
            rows_by_pair(&q8, 0, LEVEL_MAX_ROWS, FORMAT_Q8, m->strips + (s + 2) * m->strip_bytes - strips, 0);
        else
            several_rows(&q8, 0, FORMAT_Q8);
    }
    return 1;
#else
    return 0;
#endif
}

/* One row, pairs of strips and many rows are functions of their own: in one with everything else the compiler kept pointers
 * in vector registers and counters in memory, and a row took 2 to 14% longer. */
#define NOINLINE static __attribute__((noinline))

#define DEFINE_MATMUL(name, format)                                                                                         \
    NOINLINE void one_row_##name(const Matmul *m) {                                                                         \
        one_row(m, format);                                                                                                 \
    }                                                                                                                       \
    NOINLINE int pairs_##name(const Matmul *m) {                                                                            \
        return pairs_of_strips(m, format);                                                                                  \
    }                                                                                                                       \
    NOINLINE int unpacked_##name(const Matmul *m) {                                                                         \
        return many_rows_unpacked(m, format);                                                                               \
    }                                                                                                                       \
    static void NAMED(matmul_##name##_64x16)(const Matmul *m) {                                                             \
        if (through_tiles(m, format) || unpacked_##name(m)) return;                                                         \
        if (has_offsets(format)) make_offsets(m, format);                                                                   \
        if (m->rows == 1)                                                                                                   \
            one_row_##name(m);                                                                                              \
        else                                                                                                                \
            several_rows(m, pairs_##name(m), format);                                                                       \
    }

DEFINE_MATMUL(f32, FORMAT_F32)
DEFINE_MATMUL(q8, FORMAT_Q8)
DEFINE_MATMUL(q4, FORMAT_Q4)
#ifdef LEVEL_HAS_TILES
#include "kernel_bf16.h"
#else
DEFINE_MATMUL(bf16, FORMAT_BF16)
#endif

#endif
