/* Attention over bf16 keys and values in tile registers, whatever the number of rows, where heads have 32 elements and more:
 * lines of a KV tile, [K / 2][16][2], are a register's as they lie.
 *
 * Queries and weights are split into two bfloat16, high + low, which keeps 16 of float32's 24 bits; products with keys and values
 * are then exact, and tdpbf16ps adds them up in float32, even and odd K apart. Sixteen vectors times four registers of
 * sums, each 16 x 16 x 32 multiply-adds in 16 cycles, so that four of them hide the 52 cycles that one takes.
 *
 * A vector is a row of its registers and shares no sum. The tokens after its own, which others of its group attend to, come
 * with weights of zero: keys and values are finite. */
#ifndef WAFERLINE_KERNEL_ATTENTION_TILES_H
#define WAFERLINE_KERNEL_ATTENTION_TILES_H

#include "kernel_attention.h"

enum { PAIR_BYTES = 4, HALVES_BYTES = 2 * LINE_BYTES, WEIGHTS_BYTES = CHUNK_TOKENS * 4 };

/* tmm0-3: sums float32 [vectors][16]; tmm4: queries [vectors][32 K], tmm5: weights [vectors][16 tokens], high or low; tmm6:
 * keys [32 K / 2][16 tokens][2]; tmm7: values [16 tokens / 2][16][2]. */
INLINE void configure_attention_tiles(int vectors) {
    TileConfig config = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        config.row_bytes[t] = t == 5 ? LINE_BYTES / 2 : LINE_BYTES;
        config.rows[t] = t < 6 ? smaller_of(vectors, TILE_ROWS) : t == 6 ? 16 : KV_BLOCK_SIZE / 2;
    }
    __asm__ volatile("" : : "m"(config)); /* see configure_tiles */
    _tile_loadconfig(&config);
}

/* The bfloat16 nearest x, and nearest to what is left. */
INLINE void store_halves(__m512 x, uint8_t *high, uint8_t *low) {
    const __m256i nearest = (__m256i)_mm512_cvtneps_pbh(x);
    const __m512 left = _mm512_sub_ps(x, (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(nearest), 16));
    _mm256_storeu_si256((__m256i *)high, nearest);
    _mm256_storeu_si256((__m256i *)low, (__m256i)_mm512_cvtneps_pbh(left));
}

/* Lines of queries: for each 32 K the high halves, then the low ones. */
INLINE int query_bytes(int head_dim) {
    return (int)round_up(head_dim, 32) * PAIR_BYTES;
}

/* queries[vectors][query_bytes], zeros after head_dim */
INLINE void split_queries(const Attention *t, const Scratch *s) {
    const int bytes = query_bytes(t->head_dim);
    for (int v = 0; v < s->vectors; v++) {
        const float *query = t->query + v / t->heads * t->query_stride + v % t->heads * t->head_dim;
        uint8_t *halves = (uint8_t *)s->queries + v * bytes;
        for (int d = 0; d < bytes / PAIR_BYTES; d += 16) {
            const int left = t->head_dim - d;
            const __mmask16 lanes = left >= 16 ? 0xFFFF : left > 0 ? (1 << left) - 1 : 0;
            uint8_t *high = halves + d / 32 * HALVES_BYTES + d % 32 * 2;
            store_halves(_mm512_maskz_loadu_ps(lanes, query + d), high, high + LINE_BYTES);
        }
        s->score_scales[v] = log2e_over_root(t->head_dim);
    }
}

/* Where a load's operand is in memory that plain stores wrote, or plain loads will read: gcc 12 does not know that tile
 * loads and stores touch memory. */
#define TILE_FENCE() __asm__ volatile("" : : : "memory")

/* Ask for half a tile's bytes of a block's values: their own loads, a row of values apart, come too late. */
INLINE void prefetch_values(const uint8_t *values) {
#pragma GCC unroll 8
    for (int line = 0; line < 8; line++) __builtin_prefetch(values + line * LINE_BYTES);
}

/* And, while the values of block b are multiplied, for its part of the next chunk's keys, be they the next sequence's:
 * one row of each of 32 sequences takes a tenth less time over keys and values from DRAM. Asking for the next values too,
 * into L2, brings no more; for chunks of many vectors it brings nothing. */
INLINE void prefetch_next_keys(const Scratch *s, int b) {
    const int64_t key_bytes = s->values[0] - s->keys[0];
    for (int n = b * s->next_blocks / s->blocks; n < (b + 1) * s->next_blocks / s->blocks; n++)
        for (int64_t i = 0; i < key_bytes; i += LINE_BYTES) __builtin_prefetch(s->next_keys[n] + i);
}

/* weights[v .. v + 15][block .. block + columns - 1][16 tokens] = queries . keys */
INLINE void score_tiles(const Attention *t, const Scratch *s, const int columns, int v, int block) {
    const int bytes = query_bytes(t->head_dim);
    const uint8_t *queries = (const uint8_t *)s->queries + v * bytes; /* [vectors][bytes] */
    float *scores = s->weights + v * CHUNK_TOKENS + block * KV_BLOCK_SIZE;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
#define ADD(c)                                                                                         \
    if (columns > c) {                                                                                 \
        _tile_loadd(6, s->keys[block + c] + at / HALVES_BYTES * TILE_BYTES, LINE_BYTES);               \
        _tile_dpbf16ps(c, 4, 6);                                                                       \
        if (v == s->first) prefetch_values(s->values[block + c] + at / LINE_BYTES * (TILE_BYTES / 2)); \
    }
    for (int at = 0; at < bytes; at += LINE_BYTES) {
        _tile_loadd(4, queries + at, bytes);
        ADD(0) ADD(1) ADD(2) ADD(3)
    }
#undef ADD
#define STORE(c) \
    if (columns > c) _tile_stored(c, scores + c * KV_BLOCK_SIZE, WEIGHTS_BYTES);
    STORE(0) STORE(1) STORE(2) STORE(3)
#undef STORE
}

/* context[v .. v + 15][d .. d + 16 * columns - 1] += weights . values, over the first `blocks` blocks of the chunk */
INLINE void weigh_tiles(const Scratch *s, const int columns, int v, int d, int blocks) {
    const uint8_t *weights = (const uint8_t *)s->weights + v * WEIGHTS_BYTES; /* [vectors][8][high, low][16 tokens] */
    const int64_t bytes = s->stride * PAIR_BYTES;
    float *context = s->context + v * s->stride + d;
#define LOAD(c) \
    if (columns > c) _tile_loadd(c, context + 16 * c, bytes);
    LOAD(0) LOAD(1) LOAD(2) LOAD(3)
#undef LOAD
#define ADD(c)                                                                         \
    if (columns > c) {                                                                 \
        _tile_loadd(7, s->values[at / LINE_BYTES] + (d + 16 * c) * PAIR_BYTES, bytes); \
        _tile_dpbf16ps(c, 5, 7);                                                       \
    }
    for (int at = 0; at < blocks * LINE_BYTES; at += LINE_BYTES / 2) {
        _tile_loadd(5, weights + at, WEIGHTS_BYTES);
        if (s->vectors <= TILE_ROWS && d == 0 && at % LINE_BYTES == 0) prefetch_next_keys(s, at / LINE_BYTES);
        ADD(0) ADD(1) ADD(2) ADD(3)
    }
#undef ADD
#define STORE(c) \
    if (columns > c) _tile_stored(c, context + 16 * c, bytes);
    STORE(0) STORE(1) STORE(2) STORE(3)
#undef STORE
}

#define COLUMNS(count, apply) \
    switch (count) { case 1: apply(1); break; case 2: apply(2); break; case 3: apply(3); break; default: apply(4); }

/* Blocks of the chunk that any of the vectors of v's registers attends to. */
INLINE int blocks_of_group(const Scratch *s, int v) {
    return blocks_of(tokens_of(s, smaller_of(v + TILE_ROWS, s->vectors) - 1));
}

static void NAMED(score_group)(const Attention *t, const Scratch *s, int v) {
    const int blocks = blocks_of_group(s, v);
    for (int b = 0; b < blocks; b += 4) {
#define APPLY(columns) score_tiles(t, s, columns, v, b)
        COLUMNS(blocks - b, APPLY)
#undef APPLY
    }
}

static void NAMED(weigh_group)(const Scratch *s, int v) {
    const int blocks = blocks_of_group(s, v);
    for (int d = 0; d < s->stride; d += 64) {
#define APPLY(columns) weigh_tiles(s, columns, v, d, blocks)
        COLUMNS((s->stride - d) / 16, APPLY)
#undef APPLY
    }
}

/* Scores become weights in place, sixteen tokens at a time, high halves before low ones. */
static void NAMED(soften_halves)(const Scratch *s) {
    for (int v = s->first; v < s->vectors; v++) {
        const int tokens = tokens_of(s, v);
        uint8_t *halves = (uint8_t *)(s->weights + v * CHUNK_TOKENS);
        Float16 denominators = decayed_denominators(s, v);
        int i = 0;
        for (; i < tokens; i += 16)
            store_halves((__m512)soften(s, v, i, &denominators).v[0], halves + i * 4, halves + i * 4 + LINE_BYTES / 2);
        memset(halves + i * 4, 0, WEIGHTS_BYTES - i * 4);
        store16(s->denominators + v * 16, denominators);
    }
}

/* Heads of fewer elements leave most of a register of queries empty, and are done before it is configured. */
enum { SMALLEST_TILED_HEAD = 32 };

static void NAMED(attend_bf16)(const Attention *t) {
    if (t->head_dim < SMALLEST_TILED_HEAD) {
        NAMED(attend_floats)(t, KV_BF16);
        return;
    }
    Scratch s = begin_attention(t);
    split_queries(t, &s);
    configure_attention_tiles(s.vectors);
    for (int begin = 0; enter_chunk(t, &s, begin, t->head_dim * KV_BLOCK_SIZE * 2); begin += CHUNK_TOKENS) {
        TILE_FENCE();
        for (int v = s.first; v < s.vectors; v += TILE_ROWS) NAMED(score_group)(t, &s, v);
        TILE_FENCE();
        find_largest(&s);
        NAMED(soften_halves)(&s);
        decay_context(&s);
        TILE_FENCE();
        for (int v = s.first; v < s.vectors; v += TILE_ROWS) NAMED(weigh_group)(&s, v);
        TILE_FENCE();
    }
    _tile_release();
    end_attention(t, &s);
}

#endif
