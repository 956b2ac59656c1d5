/* Many rows through AMX's tile registers: a tile of a strip, int8 [64 / 4][16][4], is a register as it lies.
 *
 * Two tiles of rows times two strips, 64 K at a time: four loads feed four tdpbssd, each 16 x 16 x 64 multiply-adds in 16
 * cycles. After a group the four sums go through memory to become floats. The tile unit works meanwhile: a sum is stored
 * only just before its register begins the next group, when the last product has long arrived, and with each of the next
 * products half a tile of the group before is added. Rows are spread evenly over tiles, one or an even number of them, so
 * that one tile configuration serves a matmul. */
#ifndef WAFERLINE_KERNEL_TILES_H
#define WAFERLINE_KERNEL_TILES_H

#include "kernel_unpack.h"

enum { MIN_TILE_ROWS = 5, TILE_ROWS = 16, TILE_K = 64, TILE_BYTES = TILE_K * TILE_N };
enum { TILE_PREFETCH_BYTES = 4096, MOST_RESIDENT_CODES = 1 << 20 };

/* The operand of ldtilecfg, palette 1. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileConfig;

/* tmm0-3: sums int32 [rows][16] of (row tile, strip) 00, 01, 10, 11; tmm4-5: activations int8 [rows][64]; tmm6-7: weights. */
static void configure_tiles(int rows) {
    TileConfig config = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        config.row_bytes[t] = 64;
        config.rows[t] = t < 6 ? rows : TILE_K / 4;
    }
    __asm__ volatile("" : : "m"(config)); /* gcc 12 takes only 8 bytes of the operand as read */
    _tile_loadconfig(&config);
}

/* A matmul's rows in tiles. */
typedef struct {
    int tile_rows, tiles;
    const float *scales; /* of the activations: [groups][tiles * tile_rows], zeros after the last row */
} TileRows;

/* Two strips as the tile registers take them; the second is the first again where there is none. */
typedef struct {
    const uint8_t *strips[2];
    int8_t *unpacked[2]; /* of q4: [groups][GROUP_BYTES], or where all rows pass at once, [2][GROUP_BYTES] */
} TileStrips;

/* Where group g of strip j lies for the tile registers. */
INLINE const int8_t *group_weights(const TileStrips *w, int j, int g, const int format, const int passes_once) {
    if (format == FORMAT_Q4) return w->unpacked[j] + (passes_once ? g % 2 : g) * GROUP_BYTES;
    return (const int8_t *)w->strips[j] + group_offset(g, format) + LINE_BYTES + g % 2 * GROUP_BYTES;
}

INLINE __m512 group_scales(const TileStrips *w, int j, int g, const int format) {
    return (__m512)load_bfloat16(w->strips[j] + group_offset(g, format) + (format == FORMAT_Q8 ? g % 2 * TILE_N * 2 : 0)).v[0];
}

/* tmm[acc] to sums, int32 [16][16], and zeros to it; the registers are named by constants. */
INLINE void take_sums(const int acc, int32_t *sums) {
    if (acc == 0) {
        _tile_stored(0, sums, LINE_BYTES);
        _tile_zero(0);
    } else if (acc == 1) {
        _tile_stored(1, sums, LINE_BYTES);
        _tile_zero(1);
    } else if (acc == 2) {
        _tile_stored(2, sums, LINE_BYTES);
        _tile_zero(2);
    } else {
        _tile_stored(3, sums, LINE_BYTES);
        _tile_zero(3);
    }
}

/* tmm[acc] += activations of its tile of rows times weights of its strip. */
INLINE void multiply_tiles(const int acc) {
    if (acc == 0)
        _tile_dpbssd(0, 4, 6);
    else if (acc == 1)
        _tile_dpbssd(1, 4, 7);
    else if (acc == 2)
        _tile_dpbssd(2, 5, 6);
    else
        _tile_dpbssd(3, 5, 7);
}

/* y[16] += float(sums) * (weight scales * activation scale), for rows begin .. end - 1 of a tile times a strip.
 * sums: int32 [row][16]; a_scales: [row]; y: [row][16]. */
INLINE void add_sums(const int32_t *sums, __m512 scales, const float *a_scales, const int begin, const int end, float *y) {
    UNROLL(8)
    for (int r = begin; r < end; r++) {
        const __m512 isum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + r * TILE_N));
        const __m512 product = _mm512_mul_ps(isum, _mm512_mul_ps(scales, _mm512_set1_ps(a_scales[r])));
        _mm512_store_ps(y + r * TILE_N, _mm512_add_ps(_mm512_load_ps(y + r * TILE_N), product));
    }
}

/* Ask L1 for part `part` of 4 of a group of K of a tile's rows, which lie in L2, each in lines of its own. */
INLINE void prefetch_rows(const int8_t *rows, int64_t stride, const int tile_rows, const int part) {
    const int end = tile_rows * (part + 1) / 4;
    UNROLL(4)
    for (int r = tile_rows * part / 4; r < end; r++)
        for (int i = 0; i < GROUP; i += LINE_BYTES) __builtin_prefetch(rows + r * stride + i);
}

/* `tiles` tiles of rows from row, times the strips s and, where there is one, s + 1. It is one of `passes` over them, each
 * of which asks for its part of the two strips that follow; a single one asks for what is a little ahead. */
INLINE void multiply_rows(const Matmul *m, const TileRows *rows, const TileStrips *w, int s, int row, int pass,
                          const int passes, const int tile_rows, const int tiles, const int format) {
    enum { STEPS = GROUP / TILE_K };
    int32_t sums[4][TILE_ROWS * TILE_N] __attribute__((aligned(64))); /* [tile, strip][row][16] */
    float acc[4][TILE_ROWS * TILE_N] __attribute__((aligned(64)));    /* [tile, strip][row][16] */
    const int64_t stride = m->act.codes_stride, scales_stride = rows->tiles * tile_rows;
    const int8_t *a[2] = {m->act.codes + row * stride, m->act.codes + (row + tile_rows) * stride}; /* [tile_rows][stride] */
    const float *a_scales = rows->scales + row; /* [tiles * tile_rows], of the group before */
    const int k = m->k, groups = (k + GROUP - 1) / GROUP, half_rows = (tile_rows + 1) / 2;
    const int products = 2 * tiles, slots = STEPS * products, passes_once = passes == 1;
    const int group_lines = 1 + (format == FORMAT_Q8 ? Q8_BLOCK_LINES / 2 : Q4_BLOCK_LINES);
    __m512 scales[2] = {group_scales(w, 0, 0, format), group_scales(w, 1, 0, format)}; /* of the group before */
    memset(acc, 0, sizeof acc);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int g = 0; g < groups; g++) { /* before the first group comes one of zeros */
        const int8_t *const weights[2] = {group_weights(w, 0, g, format, passes_once),
                                          group_weights(w, 1, g, format, passes_once)};
        /* beyond the end of its strip each of the two goes on with the strip after next */
        const int is_near_end = (const uint8_t *)weights[0] + TILE_PREFETCH_BYTES >= w->strips[0] + m->strip_bytes;
        const int64_t distance = TILE_PREFETCH_BYTES + (is_near_end ? m->strip_bytes : 0);
        const uint8_t *next = w->strips[0] + group_offset(g, format) + (format == FORMAT_Q8 ? g % 2 * GROUP_BYTES : 0);
        for (int line = group_lines * pass / passes; !passes_once && line < group_lines * (pass + 1) / passes; line++)
            for (int j = 2; j < 4; j++) __builtin_prefetch(next + j * m->strip_bytes + line * LINE_BYTES, 0, 2);
        prefetch_outputs(m, s, row + tiles * tile_rows * g / groups, row + tiles * tile_rows * (g + 1) / groups);
        UNROLL(2)
        for (int step = 0; step < STEPS; step++) {
            const int is_inside = step == 0 || g * GROUP + TILE_K < k;
            UNROLL(4)
            for (int i = 0; i < products; i++) {
                const int slot = step * products + i;
                if (is_inside) {
                    if (i == 0) _tile_loadd(6, weights[0] + step * TILE_BYTES, LINE_BYTES);
                    if (i == 0) _tile_loadd(4, a[0] + step * TILE_K, stride);
                    if (i == 1) _tile_loadd(7, weights[1] + step * TILE_BYTES, LINE_BYTES);
                    if (i == 2) _tile_loadd(5, a[1] + step * TILE_K, stride);
                    if (step == 0) take_sums(i, sums[i]);
                    multiply_tiles(i);
                }
                if (!passes_once) prefetch_rows(a[slot % 2] + GROUP, stride, tile_rows, slot / 2);
                if (passes_once && format == FORMAT_Q8) {
                    const int lines = GROUP_BYTES / LINE_BYTES / slots;
                    UNROLL(32)
                    for (int line = slot * lines; line < (slot + 1) * lines; line++)
                        for (int j = 0; j < 2; j++)
                            __builtin_prefetch((const uint8_t *)weights[j] + distance + line * LINE_BYTES);
                }
                if (passes_once && format == FORMAT_Q4 && g + 1 < groups) {
                    const int subs = 2 * SUBGROUPS / slots;
                    UNROLL(4)
                    for (int sub = slot * subs; sub < (slot + 1) * subs; sub++)
                        unpack_group(w->strips[sub / SUBGROUPS], g + 1, sub % SUBGROUPS, k,
                                     w->unpacked[sub / SUBGROUPS] + (g + 1) % 2 * GROUP_BYTES);
                }
                for (int half = slot - 1; half >= 0 && half <= (slot + 1 == slots ? slot : slot - 1); half++)
                    add_sums(sums[half / 2], scales[half / 2 % 2], a_scales + half / 4 * tile_rows,
                             half % 2 ? half_rows : 0, half % 2 ? tile_rows : half_rows, acc[half / 2]);
            }
        }
        for (int j = 0; j < 2; j++) scales[j] = group_scales(w, j, g, format);
        for (int t = 0; t < 2; t++) a[t] += GROUP;
        if (g > 0) a_scales += scales_stride;
    }
    const int has_second = s + 1 < m->count && m->epilogue != EPILOGUE_SILU_MUL;
    UNROLL(4)
    for (int i = 0; i < products; i++) {
        take_sums(i, sums[i]);
        add_sums(sums[i], scales[i % 2], a_scales + i / 2 * tile_rows, 0, tile_rows, acc[i]);
    }
    for (int t = 0; t < tiles; t++)
        for (int r = 0; r < tile_rows && row + t * tile_rows + r < m->rows; r++) {
            const Float16 first = load16(acc[2 * t] + r * TILE_N), second = load16(acc[2 * t + 1] + r * TILE_N);
            finish_row(m, s, row + t * tile_rows + r, first, second);
            if (has_second) finish_row(m, s + 1, row + t * tile_rows + r, second, second);
        }
}

/* Tiles of rows first .. end - 1 times all strips. */
INLINE void multiply_tile_strips(const Matmul *m, const TileRows *rows, int first, int end, const int tile_rows,
                                 const int format) {
    const int groups = (m->k + GROUP - 1) / GROUP, passes = (end - first + 1) / 2;
    for (int s = 0; s < m->count; s += 2) {
        TileStrips w;
        for (int j = 0; j < 2; j++) {
            w.strips[j] = m->strips + (s + j < m->count ? s + j : s) * m->strip_bytes;
            w.unpacked[j] = (int8_t *)m->scratch + (int64_t)j * groups * GROUP_BYTES;
            for (int g = 0; format == FORMAT_Q4 && g < (passes == 1 ? 1 : groups); g++)
                for (int sub = 0; sub < SUBGROUPS; sub++)
                    unpack_group(w.strips[j], g, sub, m->k, w.unpacked[j] + g * GROUP_BYTES);
        }
        if (end - first == 1)
            multiply_rows(m, rows, &w, s, first * tile_rows, 0, 1, tile_rows, 1, format);
        else if (passes == 1)
            multiply_rows(m, rows, &w, s, first * tile_rows, 0, 1, tile_rows, 2, format);
        else
            for (int pass = 0; pass < passes; pass++)
                multiply_rows(m, rows, &w, s, (first + 2 * pass) * tile_rows, pass, passes, tile_rows, 2, format);
    }
}

/* Blocks of rows whose codes stay in L2 while all strips pass over them. */
INLINE void multiply_row_blocks(const Matmul *m, const TileRows *rows, const int tile_rows, const int format) {
    const int fitting = MOST_RESIDENT_CODES / (2 * tile_rows * m->k) * 2;
    const int block = fitting > 2 ? fitting : 2;
    configure_tiles(tile_rows);
    for (int first = 0; first < rows->tiles; first += block)
        multiply_tile_strips(m, rows, first, first + block < rows->tiles ? first + block : rows->tiles, tile_rows, format);
    _tile_release();
}

INLINE void tile_matmul(const Matmul *m, const int format) {
    const int groups = (m->k + GROUP - 1) / GROUP;
    float *scales = (float *)(m->scratch + 2 * (int64_t)groups * GROUP_BYTES);
    TileRows rows = {.scales = scales};
    rows.tiles = m->rows <= TILE_ROWS ? 1 : (m->rows + 2 * TILE_ROWS - 1) / (2 * TILE_ROWS) * 2;
    rows.tile_rows = (m->rows + rows.tiles - 1) / rows.tiles;
    for (int g = 0; g < groups; g++)
        for (int r = 0; r < rows.tiles * rows.tile_rows; r++)
            *scales++ = r < m->rows ? m->act.scales[r * m->act.groups_stride + g] : 0.0f;
    if (rows.tile_rows == TILE_ROWS)
        multiply_row_blocks(m, &rows, TILE_ROWS, format); /* loops of known length are faster */
    else
        multiply_row_blocks(m, &rows, rows.tile_rows, format);
}

#endif
