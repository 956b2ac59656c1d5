/* Attention over bf16 keys and values in tile registers, whatever the number of rows, where heads have 32 elements and more:
 * lines of a KV tile, [K / 2][16][2], are a register's as they lie.
 *
 * Queries are split into two bfloat16, high + low, which keeps 16 of float32's 24 bits: scores are exponents, where errors
 * grow. Weights are rounded to one, as values are, and come to no larger error than those. Products are exact then, and
 * tdpbf16ps adds them up in float32, even and odd K apart. Sixteen vectors times four registers of sums, each 16 x 16 x 32
 * multiply-adds in 16 cycles, so that four of them hide the 52 cycles that one takes. They take as long over 16 K, which is
 * what a block has of tokens, so the values of two blocks are copied behind one another.
 *
 * A vector is a row of its registers and shares no sum. The tokens after its own, which others of its group attend to, come
 * with weights of zero: keys and values are finite. */
#ifndef WAFERLINE_KERNEL_ATTENTION_TILES_H
#define WAFERLINE_KERNEL_ATTENTION_TILES_H

#include "kernel_attention.h"

enum { PAIR_BYTES = 4, HALVES_BYTES = 2 * LINE_BYTES, WEIGHTS_BYTES = CHUNK_TOKENS * 4 };

/* tmm0-3: sums float32 [vectors][16]; tmm4 and 5: high and low halves of queries [vectors][32 K], or tmm4: weights
 * [vectors][32 tokens]; tmm7: keys [32 K / 2][16 tokens][2] or values [32 tokens / 2][16][2]. */
INLINE void configure_attention_tiles(int vectors) {
    TileConfig config = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        config.row_bytes[t] = LINE_BYTES;
        config.rows[t] = t < 6 ? smaller_of(vectors, TILE_ROWS) : 16;
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

/* Ask for a tile's bytes of a block's values: copying them comes too late. */
INLINE void prefetch_values(const uint8_t *values) {
#pragma GCC unroll 16
    for (int line = 0; line < 16; line++) __builtin_prefetch(values + line * LINE_BYTES);
}

/* And, while the values of block b are copied, for its part of the next chunk's keys, be they the next sequence's:
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
#define ADD(c)                                                                                     \
    if (columns > c) {                                                                             \
        _tile_loadd(7, s->keys[block + c] + at / HALVES_BYTES * TILE_BYTES, LINE_BYTES);           \
        _tile_dpbf16ps(c, 4, 7);                                                                   \
        _tile_dpbf16ps(c, 5, 7);                                                                   \
        if (v == s->first) prefetch_values(s->values[block + c] + at / HALVES_BYTES * TILE_BYTES); \
    }
    for (int at = 0; at < bytes; at += HALVES_BYTES) {
        _tile_loadd(4, queries + at, bytes);
        _tile_loadd(5, queries + at + LINE_BYTES, bytes);
        ADD(0) ADD(1) ADD(2) ADD(3)
    }
#undef ADD
#define STORE(c) \
    if (columns > c) _tile_stored(c, scores + c * KV_BLOCK_SIZE, WEIGHTS_BYTES);
    STORE(0) STORE(1) STORE(2) STORE(3)
#undef STORE
}

/* The values of the chunk behind one another, [128 tokens / 2][stride][2], with zeros for those of half a pair of blocks. */
INLINE void gather_values(const Scratch *s) {
    const int bytes = KV_BLOCK_SIZE * s->stride * 2;
    uint8_t *values = (uint8_t *)s->chunk;
    for (int b = 0; b < s->blocks; b++) {
        if (s->vectors <= TILE_ROWS) prefetch_next_keys(s, b);
        for (int i = 0; i < bytes; i += LINE_BYTES)
            _mm512_store_si512(values + b * bytes + i, _mm512_loadu_si512(s->values[b] + i));
    }
    if (s->blocks % 2) memset(values + s->blocks * bytes, 0, bytes);
}

/* context[v .. v + 15][d .. d + 16 * columns - 1] += weights . values, over the first `pairs` pairs of blocks of the chunk */
INLINE void weigh_tiles(const Scratch *s, const int columns, int v, int d, int pairs) {
    const uint8_t *weights = (const uint8_t *)s->weights + v * WEIGHTS_BYTES;
    const uint8_t *values = (const uint8_t *)s->chunk + d * PAIR_BYTES;
    const int64_t bytes = s->stride * PAIR_BYTES;
    float *context = s->context + v * s->stride + d;
#define LOAD(c) \
    if (columns > c) _tile_loadd(c, context + 16 * c, bytes);
    LOAD(0) LOAD(1) LOAD(2) LOAD(3)
#undef LOAD
#define ADD(c)                                                         \
    if (columns > c) {                                                 \
        _tile_loadd(7, values + (at * bytes + c * LINE_BYTES), bytes); \
        _tile_dpbf16ps(c, 4, 7);                                       \
    }
    for (int at = 0; at < pairs * KV_BLOCK_SIZE; at += KV_BLOCK_SIZE) { /* pairs of tokens */
        _tile_loadd(4, weights + at * PAIR_BYTES, WEIGHTS_BYTES);
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
    const int pairs = (blocks_of_group(s, v) + 1) / 2;
    for (int d = 0; d < s->stride; d += 64) {
#define APPLY(columns) weigh_tiles(s, columns, v, d, pairs)
        COLUMNS((s->stride - d) / 16, APPLY)
#undef APPLY
    }
}

/* 2^x for x <= 0, to 2^-18: r in [-1/2, 1/2] and the polynomial of its degree with the least largest error and 1 at 0. */
INLINE __m512 nearly_power_of_two(__m512 x) {
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(9.582852945e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.590642616e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.402409911e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.931241751e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* Scores become weights, rounded and in place: bf16 [vectors][128 tokens], WEIGHTS_BYTES apart. */
static void NAMED(soften_rounded)(const Scratch *s) {
    for (int v = s->first; v < s->vectors; v++) {
        const int tokens = tokens_of(s, v);
        const float *scores = s->weights + v * CHUNK_TOKENS;
        const __m512 scale = _mm512_set1_ps(s->score_scales[v]), shift = _mm512_set1_ps(-s->largest[v]);
        __m256i *weights = (__m256i *)scores;
        __m512 sum = (__m512)decayed_denominators(s, v).v[0];
        int b = 0;
        for (; b < blocks_of(tokens); b++) {
            const __m512 score = _mm512_load_ps(scores + b * KV_BLOCK_SIZE);
            const __m512 weight = nearly_power_of_two(_mm512_fmadd_ps(score, scale, shift));
            sum = _mm512_add_ps(sum, weight);
            _mm256_store_si256(weights + b, (__m256i)_mm512_cvtneps_pbh(weight));
        }
        for (; b < CHUNK_BLOCKS; b++) _mm256_store_si256(weights + b, _mm256_setzero_si256());
        _mm512_store_ps(s->denominators + v * 16, sum);
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
        NAMED(soften_rounded)(&s);
        decay_context(&s);
        gather_values(&s);
        TILE_FENCE();
        for (int v = s.first; v < s.vectors; v += TILE_ROWS) NAMED(weigh_group)(&s, v);
        TILE_FENCE();
    }
    _tile_release();
    end_attention(t, &s);
}

#endif
