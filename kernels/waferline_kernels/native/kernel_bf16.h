/* Weights in bf16 through AMX's tile registers, for any number of rows: tdpbf16ps, 16 x 16 x 32 multiply-adds in 16
 * cycles.
 *
 * It takes activations in bf16 too, so each is split in two, the nearest bf16 and that of what is left, which go one
 * after the other into the same sum: what is lost is at most 2^-16 of an activation. An instruction takes its 16 cycles
 * however few rows there are, and 1 KiB of weights in 32 cycles is more than L3 gives, so that one row goes the same way
 * as many.
 *
 * A sum's order: of 32 K times the upper halves, those of even and those of odd K in a chain each, fused and without
 * denormals; both added, and that to the sum so far; then the same of the lower halves; then the next 32 K. It depends
 * neither on a tile's other rows nor on when sums rest in memory. */
#ifndef WAFERLINE_KERNEL_BF16_H
#define WAFERLINE_KERNEL_BF16_H

#include "kernel_tiles.h"

/* Tiles of K that many rows pass over at a time: so many of two strips are 16 KiB, and stay in L1. Twice as many are some
 * 20% slower; fewer are slower too, for in between the sums go through memory. */
enum { SPLIT_K = 32, BLOCK_TILES = 8, BF16_PREFETCH_BYTES = 2048, TILE_SUMS = TILE_ROWS * TILE_N };

/* A matmul, and the part of it at hand. */
typedef struct {
    const Matmul *m;
    int tile_rows;           /* 16, or all rows where they are fewer */
    int row_tiles, k_tiles;
    int64_t half;            /* bytes of a tile of activations' upper or lower halves */
    int first, end;          /* tiles of K */
    const uint8_t *tails[2]; /* of both strips the last tile of K where it is short, zeros after K */
    const uint8_t *ahead[2]; /* the lines of weights to ask for next, */
    int lines_ahead;         /* so many of each with every tile of K */
} Bf16Matmul;

static Bf16Matmul plan_bf16(const Matmul *m) {
    const int tile_rows = m->rows < TILE_ROWS ? m->rows : TILE_ROWS;
    return (Bf16Matmul){
        .m = m,
        .tile_rows = tile_rows,
        .row_tiles = (m->rows + TILE_ROWS - 1) / TILE_ROWS,
        .k_tiles = (m->k + SPLIT_K - 1) / SPLIT_K,
        .half = tile_rows * LINE_BYTES,
    };
}

INLINE __m512 widen_bf16(__m256i x) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16);
}

/* m->x[begin .. end - 1][K] -> halves, bf16 [K / 32][tile of rows][upper, lower][tile_rows][32], zeros after K. */
static void NAMED(split_rows)(const Matmul *m, int32_t begin, int32_t end, uint8_t *halves) {
    const Bf16Matmul p = plan_bf16(m);
    for (int r = begin; r < end; r++) {
        const float *x = m->x + r * m->x_stride; /* [round_up(K, 16)] */
        uint8_t *line = halves + r / TILE_ROWS * 2 * p.half + r % TILE_ROWS * LINE_BYTES;
        for (int k = 0; k < m->k; k += SPLIT_K, line += p.row_tiles * 2 * p.half) {
            const __m512 x0 = _mm512_loadu_ps(x + k);
            const __m512 x1 = k + TILE_N < m->k ? _mm512_loadu_ps(x + k + TILE_N) : _mm512_setzero_ps();
            const __m256i upper0 = (__m256i)_mm512_cvtneps_pbh(x0), upper1 = (__m256i)_mm512_cvtneps_pbh(x1);
            const __m512 rest0 = _mm512_sub_ps(x0, widen_bf16(upper0)), rest1 = _mm512_sub_ps(x1, widen_bf16(upper1));
            _mm256_store_si256((__m256i *)line, upper0);
            _mm256_store_si256((__m256i *)line + 1, upper1);
            _mm512_store_si512(line + p.half, (__m512i)_mm512_cvtne2ps_pbh(rest1, rest0));
        }
    }
}

/* tmm0-3 += activations . weights over `count` tiles of K. a: of one or two tiles of rows the first K's, step bytes before
 * the next; b: of one or two strips. */
INLINE void add_bf16_tiles(Bf16Matmul *p, const uint8_t *const *a, const uint8_t *const *b, int count, const int tiles,
                           const int strips) {
    const int64_t step = p->row_tiles * 2 * p->half;
    for (int64_t i = 0; i < count; i++) {
        const uint8_t *first = a[0] + i * step, *second = a[1] + i * step;
        _tile_loadd(4, first, LINE_BYTES);
        _tile_loadd(6, b[0] + i * TILE_BYTES, LINE_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        if (strips == 2) {
            _tile_loadd(7, b[1] + i * TILE_BYTES, LINE_BYTES);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (tiles == 2) {
            _tile_loadd(5, second, LINE_BYTES);
            _tile_dpbf16ps(2, 5, 6);
            if (strips == 2) _tile_dpbf16ps(3, 5, 7);
        }
        for (int j = 0; j < strips; j++) {
            for (int line = 0; line < p->lines_ahead; line++) __builtin_prefetch(p->ahead[j] + line * LINE_BYTES);
            p->ahead[j] += p->lines_ahead * LINE_BYTES;
        }
        _tile_loadd(4, first + p->half, LINE_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        if (strips == 2) _tile_dpbf16ps(1, 4, 7);
        if (tiles == 2) {
            _tile_loadd(5, second + p->half, LINE_BYTES);
            _tile_dpbf16ps(2, 5, 6);
            if (strips == 2) _tile_dpbf16ps(3, 5, 7);
        }
    }
}

/* `tiles` tiles of rows from `tile`, times `strips` strips from s. sums: [tile][strip][16 rows][16]. */
INLINE void multiply_bf16_tiles(Bf16Matmul *p, int s, int tile, const int tiles, const int strips, float *sums) {
    const Matmul *m = p->m;
    const int is_short = p->end * SPLIT_K > m->k, whole = p->end - p->first - is_short;
    const uint8_t *a[2], *b[2];
    for (int t = 0; t < 2; t++) a[t] = m->halves + ((int64_t)p->first * p->row_tiles + tile + t) * 2 * p->half;
    for (int j = 0; j < 2; j++) b[j] = m->strips + (s + j) * m->strip_bytes + p->first * TILE_BYTES;
    if (p->first == 0) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, LINE_BYTES);
        _tile_loadd(1, sums + TILE_SUMS, LINE_BYTES);
        _tile_loadd(2, sums + 2 * TILE_SUMS, LINE_BYTES);
        _tile_loadd(3, sums + 3 * TILE_SUMS, LINE_BYTES);
    }
    add_bf16_tiles(p, a, b, whole, tiles, strips);
    if (is_short) {
        for (int t = 0; t < 2; t++) a[t] += whole * p->row_tiles * 2 * p->half;
        add_bf16_tiles(p, a, p->tails, 1, tiles, strips);
    }
    _tile_stored(0, sums, LINE_BYTES);
    if (strips == 2) _tile_stored(1, sums + TILE_SUMS, LINE_BYTES);
    if (tiles == 2) _tile_stored(2, sums + 2 * TILE_SUMS, LINE_BYTES);
    if (tiles == 2 && strips == 2) _tile_stored(3, sums + 3 * TILE_SUMS, LINE_BYTES);
    if (p->end < p->k_tiles) return;
    const int is_pair = m->epilogue == EPILOGUE_SILU_MUL;
    for (int t = 0; t < tiles; t++)
        for (int r = 0, row = (tile + t) * TILE_ROWS; r < p->tile_rows && row < m->rows; r++, row++) {
            const float *y = sums + 2 * t * TILE_SUMS + r * TILE_N;
            const Float16 first = load16(y), second = load16(y + (strips - 1) * TILE_SUMS);
            finish_row(m, s, row, first, second);
            if (strips == 2 && !is_pair) finish_row(m, s + 1, row, second, second);
        }
}

/* Tiles of rows `tile` .. last - 1 times `strips` strips from s. */
INLINE void multiply_bf16_strips(Bf16Matmul *p, int s, int tile, int last, const int strips, float *sums) {
    uint8_t tails[2 * TILE_BYTES] __attribute__((aligned(64)));
    const Matmul *m = p->m;
    if (p->end * SPLIT_K > m->k) { /* what follows the strip may not be a number */
        const int k = m->k / SPLIT_K * SPLIT_K;
        memset(tails, 0, sizeof tails);
        for (int j = 0; j < strips; j++) {
            const uint8_t *tail = m->strips + (s + j) * m->strip_bytes + k / BF16_LINE_K * LINE_BYTES;
            memcpy(tails + j * TILE_BYTES, tail, (m->k - k + 1) / BF16_LINE_K * LINE_BYTES);
            p->tails[j] = tails + j * TILE_BYTES;
        }
        __asm__ volatile("" : : "r"(tails) : "memory"); /* gcc 12 does not know that tileloadd reads memory */
    }
    for (; tile + 2 <= last; tile += 2, sums += 4 * TILE_SUMS) multiply_bf16_tiles(p, s, tile, 2, strips, sums);
    if (tile < last) multiply_bf16_tiles(p, s, tile, 1, strips, sums);
}

/* Blocks of rows and of strips, so that sums and activations stay in L2; then blocks of K, and two strips at a time. Up to
 * two tiles of rows take all of K at once and ask for weights a little ahead of themselves; of more, each pair asks for its
 * part of the next two strips'. */
static void NAMED(matmul_bf16_64x16)(const Matmul *m) {
    Bf16Matmul p = plan_bf16(m);
    const int is_sweep = p.row_tiles <= 2, blocks = is_sweep ? 1 : (p.k_tiles + BLOCK_TILES - 1) / BLOCK_TILES;
    const int block_tiles = (p.k_tiles + blocks - 1) / blocks;
    if (m->rows == 0) return; /* no logits are wanted; tiles cannot be configured without rows */
    configure_tiles(p.tile_rows);
    for (int t = 0; t < p.row_tiles; t += BF16_ROW_TILES) {
        const int last = t + BF16_ROW_TILES < p.row_tiles ? t + BF16_ROW_TILES : p.row_tiles, pairs = (last - t + 1) / 2;
        p.lines_ahead = (TILE_BYTES / LINE_BYTES + pairs - 1) / pairs;
        for (int begin = 0; begin < m->count; begin += BF16_STRIPS) {
            const int end = begin + BF16_STRIPS < m->count ? begin + BF16_STRIPS : m->count;
            for (p.first = 0; p.first < p.k_tiles; p.first = p.end) {
                float *sums = (float *)m->scratch; /* [strip pair][row tile pair][tile][strip][16][16] */
                p.end = p.first + block_tiles < p.k_tiles ? p.first + block_tiles : p.k_tiles;
                for (int s = begin; s < end; s += 2, sums += pairs * 4 * TILE_SUMS) {
                    const uint8_t *next = m->strips + (s + 2) * m->strip_bytes + p.first * TILE_BYTES;
                    if (s + 2 >= end) next = m->strips + begin * m->strip_bytes + p.end * TILE_BYTES;
                    if (is_sweep) next = m->strips + s * m->strip_bytes + BF16_PREFETCH_BYTES;
                    for (int j = 0; j < 2; j++) p.ahead[j] = next + j * m->strip_bytes;
                    if (s + 2 <= end)
                        multiply_bf16_strips(&p, s, t, last, 2, sums);
                    else
                        multiply_bf16_strips(&p, s, t, last, 1, sums);
                }
            }
        }
    }
    _tile_release();
}

#endif
