/* Attention over bf16 keys and values in tile registers, whatever the number of rows, where heads have 32 elements and more:
 * lines of a KV tile, keys [K / 2][16][2] and values [16 tokens / 2][16][2], are a register's as they lie.
 *
 * Queries are split into two bfloat16, high + low, which keeps 16 of float32's 24 bits: scores are exponents, where errors
 * grow. Weights are rounded to one, as values are, and come to no larger error than those. Products are exact then, and
 * tdpbf16ps adds them up in float32, even and odd K apart.
 *
 * A product takes as long over one row as over sixteen, and over 16 K as over 32. So a register's rows are eight vectors
 * twice. Of queries: the high halves, and the low ones, whose scores are added up. Of weights of a block: before zeros, and
 * behind zeros, so that one product adds to two columns of the context at once what the block's 16 tokens, 16 K, bring to
 * them: values of two columns lie behind one another.
 *
 * A vector is two rows of its registers and shares no sum. The tokens after its own, which others of its group attend to,
 * come with weights of zero: keys and values are finite. */
#ifndef WAFERLINE_KERNEL_ATTENTION_TILES_H
#define WAFERLINE_KERNEL_ATTENTION_TILES_H

#include "kernel_attention.h"
#include "kernel_tiles.h"

enum { TILE_VECTORS = TILE_ROWS / 2, SMALLEST_TILED_HEAD = 32 };

/* Vectors v .. v + vectors - 1 of the chunk at hand, in one register or two. Rows: [high or low, or column][size] */
typedef struct {
    int v, vectors, registers;
    int blocks;       /* that any of them attends to */
    int size;         /* of vectors in a register, the last's being fewer perhaps: its rows / 2 */
    int bytes;        /* of a register's rows */
    uint8_t *queries; /* bf16 [registers][head_dim / 32][rows][32 K] */
    uint8_t *weights; /* bf16 [registers][CHUNK_BLOCKS][rows][32 tokens], of which 16 are zeros; first the scores, float32
                         [...][rows][16 tokens] */
    uint8_t *context; /* float32 [registers][pairs of columns][rows][16] */
} TileGroup;

INLINE int query_parts(int head_dim) {
    return (head_dim + 31) / 32;
}

INLINE int column_pairs(int stride) {
    return (stride / 16 + 1) / 2;
}

/* The first column of a pair; the last of an odd number of columns goes with the one before it once more. */
INLINE int column_of_pair(int stride, int pair) {
    return smaller_of(2 * pair, stride / 16 - 2);
}

/* The group that begins with vector v, a multiple of 2 * TILE_VECTORS. */
INLINE TileGroup group_at(const Attention *t, const Scratch *s, int v) {
    TileGroup g = {.v = v, .size = smaller_of(s->vectors, TILE_VECTORS), .weights = (uint8_t *)s->weights};
    g.vectors = smaller_of(s->vectors - v, 2 * TILE_VECTORS);
    g.registers = g.vectors > TILE_VECTORS ? 2 : 1;
    g.blocks = blocks_of(tokens_of(s, v + g.vectors - 1));
    g.bytes = 2 * g.size * LINE_BYTES;
    g.queries = (uint8_t *)s->queries + v / TILE_VECTORS * query_parts(t->head_dim) * g.bytes;
    g.context = (uint8_t *)s->context + v / TILE_VECTORS * column_pairs(s->stride) * g.bytes;
    return g;
}

/* Bytes to vector j's first row in the first of the `each` registers' contents that there are for every register. */
INLINE int row_of(const TileGroup *g, int each, int j) {
    return j / TILE_VECTORS * each * g->bytes + j % TILE_VECTORS * LINE_BYTES;
}

/* tmm0-3: sums float32 [rows][16]; tmm4: queries [rows][32 K] or weights [rows][32 tokens]; tmm7: keys [32 K / 2][16
 * tokens][2] or values [2 columns][16 tokens / 2][16][2]. */
INLINE void configure_attention_tiles(int rows) {
    TileConfig config = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        config.row_bytes[t] = LINE_BYTES;
        config.rows[t] = t < 6 ? rows : 16;
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

/* The group's queries, with zeros after head_dim. */
INLINE void split_queries(const Attention *t, const TileGroup *g) {
    const int parts = query_parts(t->head_dim);
    for (int j = 0; j < g->vectors; j++) {
        const int v = g->v + j;
        const float *query = t->query + v / t->heads * t->query_stride + v % t->heads * t->head_dim;
        uint8_t *high = g->queries + row_of(g, parts, j);
        for (int d = 0; d < parts * 32; d += 16) {
            const int left = t->head_dim - d, at = d / 32 * g->bytes + d % 32 * 2;
            const __mmask16 lanes = left >= 16 ? 0xFFFF : left > 0 ? (1 << left) - 1 : 0;
            store_halves(_mm512_maskz_loadu_ps(lanes, query + d), high + at, high + g->size * LINE_BYTES + at);
        }
    }
}

/* Where a load's operand is in memory that plain stores wrote, or plain loads will read: gcc 12 does not know that tile
 * loads and stores touch memory. */
#define TILE_FENCE() __asm__ volatile("" : : : "memory")

/* Part `part` of so many. */
INLINE void prefetch_part(const NextTiles *next, int part, int parts) {
    for (int b = part * next->blocks / parts; b < (part + 1) * next->blocks / parts; b++)
        for (int i = 0; i < next->bytes; i += LINE_BYTES) __builtin_prefetch(next->tiles[b] + i);
}

/* Register r of the sums is the vectors' register r % registers times block, or pair of columns, r / registers. What uses
 * these has `registers` and `columns` as constants, and what is done to each register as DO(r). */
#define IF_SUM(r) \
    if (r < registers * columns) { DO(r); }
#define EACH_SUM IF_SUM(0) IF_SUM(1) IF_SUM(2) IF_SUM(3)

/* The column's tile, loaded with its first register. */
#define ADD_PRODUCT(r, tile)              \
    if (r % registers == 0) {             \
        _tile_loadd(7, tile, LINE_BYTES); \
        _tile_dpbf16ps(r, 4, 7);          \
    } else {                              \
        _tile_dpbf16ps(r, 5, 7);          \
    }

INLINE void zero_sums(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

/* weights[registers][block .. block + columns - 1] = queries . keys; registers * columns <= 4 */
INLINE void score_tiles(const Attention *t, const Scratch *s, const TileGroup *g, const int registers, const int columns,
                        int block) {
    const int parts = query_parts(t->head_dim);
    zero_sums();
    for (int part = 0; part < parts; part++) {
        const uint8_t *queries = g->queries + part * g->bytes;
        _tile_loadd(4, queries, LINE_BYTES);
        if (registers == 2) _tile_loadd(5, queries + parts * g->bytes, LINE_BYTES);
#define DO(r) ADD_PRODUCT(r, s->keys[block + r / registers] + part * TILE_BYTES)
        EACH_SUM
#undef DO
    }
#define DO(r) _tile_stored(r, g->weights + (r % registers * CHUNK_BLOCKS + block + r / registers) * g->bytes, LINE_BYTES)
    EACH_SUM
#undef DO
}

/* context[registers][pair .. pair + columns - 1] += weights . values, over the group's blocks; registers * columns <= 4 */
INLINE void weigh_tiles(const Scratch *s, const TileGroup *g, const NextTiles *next, const int registers, const int columns,
                        int pair) {
    int values_at[4], sums_at[4]; /* bytes to the pair's columns in a block's values, and to the sums */
    for (int r = 0; r < registers * columns; r++) {
        values_at[r] = column_of_pair(s->stride, pair + r / registers) * KV_COLUMN_BYTES;
        sums_at[r] = (r % registers * column_pairs(s->stride) + pair + r / registers) * g->bytes;
    }
    if (s->begin == 0) {
        zero_sums();
    } else {
#define DO(r) _tile_loadd(r, g->context + sums_at[r], LINE_BYTES)
        EACH_SUM
#undef DO
    }
    for (int b = 0; b < g->blocks; b++) {
        if (pair == 0) prefetch_part(next, b, g->blocks);
        _tile_loadd(4, g->weights + b * g->bytes, LINE_BYTES);
        if (registers == 2) _tile_loadd(5, g->weights + (CHUNK_BLOCKS + b) * g->bytes, LINE_BYTES);
#define DO(r) ADD_PRODUCT(r, s->values[b] + values_at[r])
        EACH_SUM
#undef DO
    }
#define DO(r) _tile_stored(r, g->context + sums_at[r], LINE_BYTES)
    EACH_SUM
#undef DO
}
#undef EACH_SUM
#undef IF_SUM
#undef ADD_PRODUCT

/* APPLY(registers, columns) for up to `count` columns from `at` on, as many at a time as there are registers of sums for */
#define EACH_COLUMN(g, at, count)                       \
    if (g->registers == 2)                              \
        for (int at = 0; at < count; at += 2)           \
            if (count - at == 1) APPLY(2, 1);           \
            else APPLY(2, 2);                           \
    else                                                \
        for (int at = 0; at < count; at += 4)           \
            switch (count - at) {                       \
                case 1: APPLY(1, 1); break;             \
                case 2: APPLY(1, 2); break;             \
                case 3: APPLY(1, 3); break;             \
                default: APPLY(1, 4);                   \
            }

static void NAMED(score_group)(const Attention *t, const Scratch *s, const TileGroup *g) {
#define APPLY(registers, columns) score_tiles(t, s, g, registers, columns, block)
    EACH_COLUMN(g, block, g->blocks)
#undef APPLY
}

static void NAMED(weigh_group)(const Scratch *s, const TileGroup *g, const NextTiles *next) {
    const int pairs = column_pairs(s->stride);
#define APPLY(registers, columns) weigh_tiles(s, g, next, registers, columns, pair)
    EACH_COLUMN(g, pair, pairs)
#undef APPLY
}
#undef EACH_COLUMN

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

/* Scores of high and low halves are added up, those of tokens after a vector's own vanish; the largest so far of each
 * vector, in powers of two, and what becomes of earlier weights by it. */
static void NAMED(join_scores)(const Scratch *s, const TileGroup *g, float scale) {
    for (int j = 0; j < g->vectors; j++) {
        const int tokens = tokens_of(s, g->v + j), low_at = g->size * LINE_BYTES;
        uint8_t *high = g->weights + row_of(g, CHUNK_BLOCKS, j);
        __m512 most = _mm512_set1_ps(-INFINITY);
        for (int i = 0; i < tokens; i += KV_BLOCK_SIZE, high += g->bytes) {
            const __mmask16 own = tokens - i < KV_BLOCK_SIZE ? (1 << (tokens - i)) - 1 : 0xFFFF;
            const __m512 x = _mm512_load_ps(high), y = _mm512_load_ps(high + low_at);
            const __m512 score = _mm512_mask_add_ps(_mm512_set1_ps(-FLT_MAX), own, x, y);
            most = _mm512_max_ps(score, most);
            _mm512_store_ps(high, score);
        }
        const float largest = s->largest[g->v + j], peak = _mm512_reduce_max_ps(most) * scale;
        s->next_largest[j] = peak > largest ? peak : largest;
    }
    const __m512 before = _mm512_loadu_ps(s->largest + g->v), now = _mm512_loadu_ps(s->next_largest); /* [16] */
    _mm512_storeu_ps(s->decay, (__m512)power_of_two((FloatV)_mm512_sub_ps(before, now)));
    _mm512_storeu_ps(s->largest + g->v, now);
}

/* Scores become weights, rounded. */
static void NAMED(soften_rounded)(const Scratch *s, const TileGroup *g, float scale) {
    for (int j = 0; j < g->vectors; j++) {
        const int v = g->v + j, blocks = blocks_of(tokens_of(s, v)), second_at = g->size * LINE_BYTES;
        uint8_t *first = g->weights + row_of(g, CHUNK_BLOCKS, j);
        const __m512 shift = _mm512_set1_ps(-s->largest[v]);
        __m512 sum = _mm512_mul_ps(_mm512_load_ps(s->denominators + v * 16), _mm512_set1_ps(s->decay[j]));
        for (int b = 0; b < g->blocks; b++, first += g->bytes) {
            __m512i weights = _mm512_setzero_si512();
            if (b < blocks) {
                const __m512 score = _mm512_load_ps(first);
                const __m512 x = nearly_power_of_two(_mm512_fmadd_ps(score, _mm512_set1_ps(scale), shift));
                sum = _mm512_add_ps(sum, x);
                weights = _mm512_zextsi256_si512((__m256i)_mm512_cvtneps_pbh(x));
            }
            _mm512_store_si512(first, weights);
            _mm512_store_si512(first + second_at, _mm512_shuffle_i64x2(weights, weights, 0x4E));
        }
        _mm512_store_ps(s->denominators + v * 16, sum);
    }
}

/* context *= decay, which is 1 where the chunk has no larger score. */
INLINE void decay_group(const Scratch *s, const TileGroup *g) {
    const int pairs = column_pairs(s->stride), column_at = g->size * LINE_BYTES;
    for (int j = 0; j < g->vectors; j++) {
        if (s->decay[j] == 1.0f) continue;
        uint8_t *context = g->context + row_of(g, pairs, j);
        for (int column = 0; column < 2 * pairs; column++, context += column_at)
            _mm512_store_ps(context, _mm512_mul_ps(_mm512_load_ps(context), _mm512_set1_ps(s->decay[j])));
    }
}

INLINE void finish_group(const Attention *t, const Scratch *s, const TileGroup *g) {
    for (int j = 0; j < g->vectors; j++) {
        const int v = g->v + j;
        const __m512 inverse = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(_mm512_load_ps(s->denominators + v * 16)));
        const uint8_t *context = g->context + row_of(g, column_pairs(s->stride), j);
        float *y = t->context + v / t->heads * t->context_stride + v % t->heads * t->head_dim;
        for (int d = 0; d < t->head_dim; d += 16) {
            const int pair = d / 32, column = d / 16 - column_of_pair(s->stride, pair), left = t->head_dim - d;
            const __m512 x = _mm512_load_ps(context + (2 * pair + column) * g->size * LINE_BYTES);
            _mm512_mask_storeu_ps(y + d, left < 16 ? (1 << left) - 1 : 0xFFFF, _mm512_mul_ps(x, inverse));
        }
    }
}

/* The registers have rows for as many vectors as t has. */
INLINE void attend_in_tiles(const Attention *t, const Attention *next) {
    enum { STEP = 2 * TILE_VECTORS };
    Scratch s = carve_scratch(t);
    const float scale = log2e_over_root(t->head_dim);
    for (int v = 0; v < s.vectors; v++) {
        s.ends[v] = t->position + v / t->heads + 1;
        s.largest[v] = -INFINITY;
        _mm512_store_ps(s.denominators + v * 16, _mm512_setzero_ps());
    }
    for (int v = 0; v < s.vectors; v += STEP) {
        const TileGroup g = group_at(t, &s, v);
        split_queries(t, &g);
    }
    for (int begin = 0; enter_chunk(t, &s, begin, t->head_dim * KV_BLOCK_SIZE * 2); begin += CHUNK_TOKENS) {
        /* keys alone: to ask for values too costs what it brings */
        const NextTiles next_keys = find_next_tiles(t, next, &s, TILE_VECTORS, (int)(s.values[0] - s.keys[0]));
        for (int v = s.first / STEP * STEP; v < s.vectors; v += STEP) {
            const TileGroup g = group_at(t, &s, v);
            TILE_FENCE();
            NAMED(score_group)(t, &s, &g);
            TILE_FENCE();
            NAMED(join_scores)(&s, &g, scale);
            NAMED(soften_rounded)(&s, &g, scale);
            if (begin > 0) decay_group(&s, &g);
            TILE_FENCE();
            NAMED(weigh_group)(&s, &g, &next_keys);
        }
    }
    TILE_FENCE();
    for (int v = 0; v < s.vectors; v += STEP) {
        const TileGroup g = group_at(t, &s, v);
        finish_group(t, &s, &g);
    }
}

/* Heads of few elements leave most of a register of queries empty. Configuring registers is a tenth of what a row of four
 * heads takes over 130 tokens. */
static void NAMED(attend_bf16)(const Attention *list, int32_t count) {
    int rows = 0;
    for (int n = 0; n < count; n++) {
        const Attention *t = &list[n];
        if (t->head_dim < SMALLEST_TILED_HEAD) {
            NAMED(attend_floats)(t, NULL, KV_BF16);
            continue;
        }
        const int needed = 2 * smaller_of(t->rows * t->heads, TILE_VECTORS);
        if (needed != rows) configure_attention_tiles(rows = needed);
        attend_in_tiles(t, n + 1 < count ? t + 1 : NULL);
    }
    if (rows) _tile_release();
}

#endif
