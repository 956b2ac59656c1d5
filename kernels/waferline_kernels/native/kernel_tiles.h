/* Many rows through AMX's tile registers: a tile of a strip, int8 [64 / 4][16][4], is a register as it lies.
 *
 * Two tiles of rows times two strips, 64 K at a time: four loads feed four tdpbssd, each 16 x 16 x 64 multiply-adds in 16
 * cycles. After a group the four sums go through memory to become floats; that is done for one group while the tile unit
 * works on the next. Rows are spread evenly over tiles, so that one tile configuration serves a matmul. */
#ifndef WAFERLINE_KERNEL_TILES_H
#define WAFERLINE_KERNEL_TILES_H

enum { MIN_TILE_ROWS = 5, TILE_ROWS = 16, TILE_K = 64, TILE_BYTES = TILE_K * TILE_N, GROUP_BYTES = GROUP * TILE_N };
enum { TILE_PREFETCH_BYTES = 4096 };

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

/* Two strips, or one, as the tile registers take them. */
typedef struct {
    const uint8_t *strips[2];
    int8_t *unpacked[2];    /* of q4: [groups][GROUP_BYTES], or where rows fit two tiles and pass once, [2][GROUP_BYTES] */
    const float *scales[2]; /* [groups][16] */
} TileStrips;

/* Up to SUBGROUP K of q4, lines of codes [16][4] in halves, times their subscales: int8 [K / 4][16][4]. A code times a
 * magnitude stays below 128, so 16-bit products of byte pairs do not carry; -x is ~x + 1, and the 1 is in the zero point
 * that is taken off. */
INLINE void unpack_subgroup(const uint8_t *lines, const int num_lines, __m512i subscales, int8_t *tiles) {
    const __m512i both = _mm512_or_si512(subscales, _mm512_slli_epi32(subscales, 16)); /* int16 [16][2] */
    const __m512i factor = _mm512_abs_epi16(both), sign = _mm512_srai_epi16(both, 15);
    const __m512i zero_points = _mm512_slli_epi32(_mm512_or_si512(factor, _mm512_slli_epi16(factor, 8)), 3);
    const __m512i zero = _mm512_xor_si512(zero_points, sign); /* int8 [16][4] */
#pragma GCC unroll 4
    for (int line = 0; line < num_lines; line++) {
        const __m512i pairs = _mm512_loadu_si512(lines + line * LINE_BYTES), nibble = _mm512_set1_epi8(15);
        Line low = _mm512_and_si512(pairs, nibble);
        Line high = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), nibble);
        prefetch_ahead(lines + line * LINE_BYTES, 0);
        low = _mm512_sub_epi8(_mm512_xor_si512(_mm512_mullo_epi16(low, factor), sign), zero);
        high = _mm512_sub_epi8(_mm512_xor_si512(_mm512_mullo_epi16(high, factor), sign), zero);
        _mm512_storeu_si512(tiles + 2 * line * LINE_BYTES, low);
        _mm512_storeu_si512(tiles + (2 * line + 1) * LINE_BYTES, high);
    }
}

/* Group g of a q4 strip, its codes times subscales: int8 [GROUP_BYTES]. */
INLINE void unpack_group(const uint8_t *strip, int g, int k, int8_t *tiles) {
    enum { FULL = SUBGROUP / Q4_LINE_K };
    const uint8_t *scale_line = strip + g * (Q4_BLOCK_LINES + 1) * LINE_BYTES;
    const int left = k - g * GROUP, num_lines = left < GROUP ? (left + Q4_LINE_K - 1) / Q4_LINE_K : Q4_BLOCK_LINES;
    Int16 all_subscales[SUBGROUPS];
    load_subscales(scale_line, all_subscales);
    for (int s = 0; s < SUBGROUPS && s * FULL < num_lines; s++) {
        const __m512i subscales = (__m512i)all_subscales[s].v[0];
        const uint8_t *lines = scale_line + (1 + s * FULL) * LINE_BYTES;
        if (num_lines - s * FULL >= FULL)
            unpack_subgroup(lines, FULL, subscales, tiles + s * SUBGROUP * TILE_N);
        else
            unpack_subgroup(lines, num_lines - s * FULL, subscales, tiles + s * SUBGROUP * TILE_N);
    }
    __asm__ volatile("" : : : "memory"); /* gcc 12 does not know that tileloadd reads memory */
}

/* Where group g of strip j lies for the tile registers. */
INLINE const int8_t *group_weights(const TileStrips *w, int j, int g, const int format, const int passes_once) {
    if (format == FORMAT_Q4) return w->unpacked[j] + (passes_once ? g % 2 : g) * GROUP_BYTES;
    return (const int8_t *)w->strips[j] + g / 2 * (Q8_BLOCK_LINES + 1) * LINE_BYTES + LINE_BYTES + g % 2 * GROUP_BYTES;
}

/* Strip s and, where strips is 2, s + 1, with their scales in the worker's scratch, and what is unpacked beforehand. */
INLINE TileStrips prepare_strips(const Matmul *m, int s, const int strips, const int format, const int passes_once) {
    const int groups = (m->k + GROUP - 1) / GROUP;
    TileStrips y;
    for (int j = 0; j < strips; j++) {
        const uint8_t *strip = y.strips[j] = m->strips + (s + j) * m->strip_bytes;
        float *scales = (float *)(m->scratch + 2 * (int64_t)groups * GROUP_BYTES) + j * groups * TILE_N;
        for (int g = 0; g < groups; g++) {
            const uint8_t *line = format == FORMAT_Q4 ? strip + g * (Q4_BLOCK_LINES + 1) * LINE_BYTES
                                                      : strip + g / 2 * (Q8_BLOCK_LINES + 1) * LINE_BYTES + g % 2 * TILE_N * 2;
            store16(scales + g * TILE_N, load_bfloat16(line));
        }
        y.scales[j] = scales;
        y.unpacked[j] = (int8_t *)m->scratch + (int64_t)j * groups * GROUP_BYTES;
        for (int g = 0; format == FORMAT_Q4 && g < (passes_once ? 1 : groups); g++)
            unpack_group(strip, g, m->k, y.unpacked[j] + g * GROUP_BYTES);
    }
    return y;
}

/* acc[tile_rows][strips] += float(sums) * (weight scales * activation scales) of group g, for one tile of rows.
 * sums: int32 [strip][row][16]; a_scales: [tile_rows][stride]; acc: [row][strip][16].
 *
 * With every row a few lines of each strip, from ahead[strip], are asked for: all at once they would fill the buffers
 * that a core has for lines under way, and it would wait. */
INLINE void add_group(const int32_t *sums, const float *a_scales, int64_t stride, const TileStrips *w, int g,
                      const int tile_rows, const int strips, float *acc, const uint8_t *const *ahead,
                      const int lines_a_row) {
    __m512 scales[2];
#pragma GCC unroll 2
    for (int j = 0; j < strips; j++) scales[j] = _mm512_loadu_ps(w->scales[j] + g * TILE_N);
#pragma GCC unroll 16
    for (int r = 0; r < tile_rows; r++) {
        const __m512 a_scale = _mm512_set1_ps(a_scales[r * stride + g]);
        for (int line = r * lines_a_row; line < (r + 1) * lines_a_row; line++)
            for (int j = 0; j < strips; j++) __builtin_prefetch(ahead[j] + line * LINE_BYTES);
#pragma GCC unroll 2
        for (int j = 0; j < strips; j++) {
            const __m512 isum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + (j * TILE_ROWS + r) * TILE_N));
            float *y = acc + (r * 2 + j) * TILE_N;
            _mm512_store_ps(y, _mm512_add_ps(_mm512_load_ps(y), _mm512_mul_ps(isum, _mm512_mul_ps(scales[j], a_scale))));
        }
    }
}

/* `tiles` tiles of `tile_rows` rows from `row`, times `strips` strips from s. */
INLINE void multiply_tiles(const Matmul *m, const TileStrips *w, int s, int row, const int tile_rows, const int tiles,
                           const int strips, const int format, const int passes_once) {
    int32_t sums[2][4 * TILE_ROWS * TILE_N] __attribute__((aligned(64))); /* [turn][tile, strip][row][16] */
    float acc[2 * TILE_ROWS * 2 * TILE_N] __attribute__((aligned(64)));   /* [tile][row][strip][16] */
    const int64_t stride = m->act.codes_stride;
    const int8_t *a = m->act.codes + row * stride;                        /* [tiles * tile_rows][stride] */
    const float *a_scales = m->act.scales + row * m->act.groups_stride;   /* [tiles * tile_rows][groups_stride] */
    const int groups = (m->k + GROUP - 1) / GROUP;
    const int rows = tiles * tile_rows;
    const int lines_a_row = passes_once && format == FORMAT_Q8 ? (GROUP_BYTES / LINE_BYTES + rows - 1) / rows : 0;
    memset(acc, 0, sizeof acc);
    for (int g = 0; g <= groups; g++) {
        const int32_t *before = sums[(g + 1) % 2];
        int32_t *turn = sums[g % 2];
        int done = g > 0 ? 0 : tiles; /* tiles of rows to which the group before has been added */
        if (g < groups) {
            const int8_t *first = group_weights(w, 0, g, format, passes_once);
            const int8_t *second = strips == 2 ? group_weights(w, 1, g, format, passes_once) : first;
            /* beyond the end of its strip each of the two goes on with the strip after next */
            const int is_near_end = (const uint8_t *)first + TILE_PREFETCH_BYTES >= w->strips[0] + m->strip_bytes;
            const int64_t distance = TILE_PREFETCH_BYTES + (is_near_end ? m->strip_bytes : 0);
            const uint8_t *ahead[2] = {(const uint8_t *)first + distance, (const uint8_t *)second + distance};
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (int k = g * GROUP; k < m->k && k < (g + 1) * GROUP; k += TILE_K) {
                _tile_loadd(6, first, LINE_BYTES);
                _tile_loadd(4, a + k, stride);
                _tile_dpbssd(0, 4, 6);
                if (strips == 2) {
                    _tile_loadd(7, second, LINE_BYTES);
                    _tile_dpbssd(1, 4, 7);
                }
                if (tiles == 2) {
                    _tile_loadd(5, a + tile_rows * stride + k, stride);
                    _tile_dpbssd(2, 5, 6);
                    if (strips == 2) _tile_dpbssd(3, 5, 7);
                }
                first += TILE_BYTES;
                second += TILE_BYTES;
                if (done < tiles) {
                    add_group(before + done * 2 * TILE_ROWS * TILE_N, a_scales + done * tile_rows * m->act.groups_stride,
                              m->act.groups_stride, w, g - 1, tile_rows, strips, acc + done * TILE_ROWS * 2 * TILE_N,
                              ahead, lines_a_row);
                    for (int j = 0; j < 2; j++) ahead[j] += tile_rows * lines_a_row * LINE_BYTES;
                    done++;
                }
            }
            for (int j = 0; format == FORMAT_Q4 && passes_once && g + 1 < groups && j < strips; j++)
                unpack_group(w->strips[j], g + 1, m->k, w->unpacked[j] + (g + 1) % 2 * GROUP_BYTES);
            _tile_stored(0, turn, LINE_BYTES);
            if (strips == 2) _tile_stored(1, turn + TILE_ROWS * TILE_N, LINE_BYTES);
            if (tiles == 2) _tile_stored(2, turn + 2 * TILE_ROWS * TILE_N, LINE_BYTES);
            if (tiles == 2 && strips == 2) _tile_stored(3, turn + 3 * TILE_ROWS * TILE_N, LINE_BYTES);
        }
        for (; done < tiles; done++)
            add_group(before + done * 2 * TILE_ROWS * TILE_N, a_scales + done * tile_rows * m->act.groups_stride,
                      m->act.groups_stride, w, g - 1, tile_rows, strips, acc + done * TILE_ROWS * 2 * TILE_N, NULL, 0);
    }
    const int is_pair = m->epilogue == EPILOGUE_SILU_MUL;
    for (int t = 0; t < tiles; t++)
        for (int r = 0; r < tile_rows && row + t * tile_rows + r < m->rows; r++) {
            const float *y = acc + (t * TILE_ROWS + r) * 2 * TILE_N;
            const Float16 first = load16(y), second = load16(y + TILE_N);
            finish_row(m, s, row + t * tile_rows + r, first, second);
            if (strips == 2 && !is_pair) finish_row(m, s + 1, row + t * tile_rows + r, second, second);
        }
}

/* All rows times `strips` strips from s. */
INLINE void multiply_tile_strips(const Matmul *m, int s, int num_tiles, const int tile_rows, const int strips,
                                 const int format) {
    if (num_tiles <= 2) {
        const TileStrips w = prepare_strips(m, s, strips, format, 1);
        if (num_tiles == 2)
            multiply_tiles(m, &w, s, 0, tile_rows, 2, strips, format, 1);
        else
            multiply_tiles(m, &w, s, 0, tile_rows, 1, strips, format, 1);
        return;
    }
    const TileStrips w = prepare_strips(m, s, strips, format, 0);
    int t = 0;
    for (; t + 2 <= num_tiles; t += 2) multiply_tiles(m, &w, s, t * tile_rows, tile_rows, 2, strips, format, 0);
    if (t < num_tiles) multiply_tiles(m, &w, s, t * tile_rows, tile_rows, 1, strips, format, 0);
}

INLINE void multiply_all_strips(const Matmul *m, int num_tiles, const int tile_rows, const int format) {
    configure_tiles(tile_rows);
    int s = 0;
    for (; s + 2 <= m->count; s += 2) multiply_tile_strips(m, s, num_tiles, tile_rows, 2, format);
    if (s < m->count) multiply_tile_strips(m, s, num_tiles, tile_rows, 1, format);
    _tile_release();
}

INLINE void tile_matmul(const Matmul *m, const int format) {
    const int num_tiles = (m->rows + TILE_ROWS - 1) / TILE_ROWS, tile_rows = (m->rows + num_tiles - 1) / num_tiles;
    if (tile_rows == TILE_ROWS)
        multiply_all_strips(m, num_tiles, TILE_ROWS, format); /* loops of known length: some 8% faster */
    else
        multiply_all_strips(m, num_tiles, tile_rows, format);
}

#endif
