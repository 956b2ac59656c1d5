/* Attention over chunks of 256 tokens at absolute positions: scores, softmax, weighted values, chunk by chunk (Milakov and
 * Gimelshein 2018).
 *
 * All query vectors (row, head) that share a KV head go together, ATTEND_ROWS at a time in registers, so that each vector
 * of keys and values is loaded and converted once for all of them. Every sum of every vector is a chain of its own, or four
 * in each block, in ascending order, and ends where its row does: who shares its registers changes no bit of it. */
#ifndef WAFERLINE_KERNEL_ATTENTION_H
#define WAFERLINE_KERNEL_ATTENTION_H

#include "kernel_attention_products.h"

/* Of the chunk that is multiplied next, be it the next sequence's. Rows that decode, each of a sequence of its own, take
 * less time over keys and values from DRAM if the next are asked for meanwhile; for chunks of many vectors nothing is
 * gained. */
typedef struct {
    int blocks; /* none: not to be asked for */
    int bytes;  /* of a block's tile, from its first on */
    int line;   /* so many lines of them are asked for */
    const uint8_t *tiles[CHUNK_BLOCKS];
} NextTiles;

/* A worker's scratch, and the chunk at hand. Vector v is head v % heads of row v / heads; V = ATTEND_VECTORS, W = V +
 * ATTEND_SPARE. */
typedef struct {
    int32_t stride;      /* value_stride */
    float *queries;      /* [W][stride]; or codes or halves, see kernel_attention_int8.h and kernel_attention_tiles.h */
    float *context;      /* [W][stride]; laid out by registers in kernel_attention_tiles.h, as `weights` are */
    float *weights;      /* [W][CHUNK_TOKENS]; first the scores */
    float *codes;        /* int8 [V][2][CHUNK_TOKENS]: the weights' codes */
    float *denominators; /* [V][16] */
    float *largest;      /* [V] scores so far */
    float *next_largest; /* [V] with this chunk's */
    float *decay;        /* [V] 2^(largest - next_largest) */
    float *peaks;        /* [V] the chunk's own largest score, then 2^(that - next_largest) */
    float *score_scales; /* [V] from products to scores, whose powers of two are the weights */
    float *weight_scales; /* [V] of codes */
    int32_t *query_sums; /* [V] of codes */
    int32_t *ends;       /* [V] the position after the vector's own */
    float *converted;    /* keys [MOST_BLOCKS_TOGETHER][head_dim][16], or values [tokens_together][stride] */
    int32_t vectors, first, begin; /* vectors before `first` end before the chunk, which begins at token `begin` */
    int32_t blocks;                /* of the chunk that any vector needs */
    int is_converted;              /* bfloat16 becomes float32 once for all vectors, and not for each group of them */
    const uint8_t *keys[CHUNK_BLOCKS], *values[CHUNK_BLOCKS];
    NextTiles *next; /* of float formats; only bf16 asks for any */
} Scratch;

/* The first `count` floats of what is left. */
INLINE float *take(float **rest, int64_t count) {
    float *taken = *rest;
    *rest += count;
    return taken;
}

INLINE Scratch carve_scratch(const Attention *t) {
    Scratch s = {.stride = kv_value_stride(t->head_dim), .vectors = t->rows * t->heads};
    float *rest = t->scratch;
    enum { V = ATTEND_VECTORS, W = V + ATTEND_SPARE };
    s.queries = take(&rest, W * round_up(t->head_dim, 32));
    s.context = take(&rest, W * round_up(s.stride, 32));
    s.weights = take(&rest, W * CHUNK_TOKENS);
    s.codes = take(&rest, V * CHUNK_TOKENS / 2);
    s.denominators = take(&rest, V * 16);
    s.largest = take(&rest, V);
    s.next_largest = take(&rest, V);
    s.decay = take(&rest, V);
    s.peaks = take(&rest, V);
    s.score_scales = take(&rest, V);
    s.weight_scales = take(&rest, V);
    s.query_sums = (int32_t *)take(&rest, V);
    s.ends = (int32_t *)take(&rest, V);
    s.converted = rest;
    return s;
}

INLINE int smaller_of(int a, int b) {
    return a < b ? a : b;
}

/* How many tokens of the chunk the vector attends to. */
INLINE int tokens_of(const Scratch *s, int v) {
    return smaller_of(s->ends[v] - s->begin, CHUNK_TOKENS);
}

INLINE int blocks_of(int tokens) {
    return (tokens + KV_BLOCK_SIZE - 1) / KV_BLOCK_SIZE;
}

/* ---- the tiles of a chunk, and of the next ---- */

/* The tiles of the chunk that begins at token `begin`; how many there are. */
INLINE int find_tiles(const Attention *t, int begin, const uint8_t **tiles) {
    const int blocks = blocks_of(smaller_of(t->position + t->rows - begin, CHUNK_TOKENS));
    for (int b = 0; b < blocks; b++) tiles[b] = t->kv + t->block_table[begin / KV_BLOCK_SIZE + b] * t->block_stride;
    return blocks;
}

INLINE NextTiles find_next_tiles(const Attention *t, const Attention *next, const Scratch *s, int most_vectors, int bytes) {
    const int begin = s->begin + CHUNK_TOKENS, is_last = begin >= t->position + t->rows;
    NextTiles tiles = {.bytes = bytes};
    if (s->vectors > most_vectors || (is_last && !next)) return tiles;
    tiles.blocks = is_last ? find_tiles(next, 0, tiles.tiles) : find_tiles(t, begin, tiles.tiles);
    return tiles;
}

/* The next of their lines are the products' to ask for, or, when all are, what lies near anyhow. A burst of requests would
 * hold up the loads behind it: asked for all at once, they cost what they bring. */
INLINE void ask_for_next(NextTiles *next, Products *products) {
    const int lines = next->bytes / LINE_BYTES;
    for (int j = 0; j < 2; j++) {
        products->ahead[j] = products->b[0];
        if (next->line >= next->blocks * lines) continue;
        products->ahead[j] = next->tiles[next->line / lines] + next->line % lines * LINE_BYTES;
        next->line += products->count;
    }
}

/* ---- the steps of a chunk ---- */

/* y[rows][16 * columns] = sums of products; rows CHUNK_TOKENS floats apart. */
INLINE void score_tile(const Products *t, const int format, const int rows, const int columns, float *y) {
    Float16 sums[ATTEND_ROWS * MOST_COLUMNS]; /* [rows][columns] */
    UNROLL(16)
    for (int n = 0; n < rows * columns; n++) sums[n] = splat16(0.0f);
    add_products(t, format, rows, columns, 1, sums);
    UNROLL(16)
    for (int n = 0; n < rows * columns; n++) store16(y + n / columns * CHUNK_TOKENS + n % columns * 16, sums[n]);
}

typedef void (*ScoreTile)(const Products *, int rows, int columns, float *y);

static void NAMED(score_tile_f32)(const Products *t, int rows, int columns, float *y) {
    WITH_SHAPE(rows, columns, score_tile(t, KV_F32, R, C, y))
}

static void NAMED(score_tile_bf16)(const Products *t, int rows, int columns, float *y) {
    WITH_SHAPE(rows, columns, score_tile(t, KV_BF16, R, C, y))
}

INLINE void convert_keys(const Attention *t, Scratch *s, int first_block, int blocks) {
    float *keys = s->converted; /* [blocks][head_dim][16] */
    for (int b = first_block; b < first_block + blocks; b++, keys += t->head_dim * KV_BLOCK_SIZE) {
        for (int d = 0; d < t->head_dim; d++) store16(keys + d * 16, load_kv(KV_BF16, s->keys[b], d, LINE_BYTES));
        s->keys[b] = (const uint8_t *)keys;
    }
}

/* weights[first .. vectors - 1][CHUNK_TOKENS] = queries . keys; some blocks by all vectors, so that keys stay in L1. */
static void NAMED(score)(const Attention *t, Scratch *s, ScoreTile score_tile) {
    _Static_assert(ATTEND_COLUMNS(ATTEND_ROWS) <= MOST_BLOCKS_TOGETHER, "room for converted keys");
    for (int b = 0, columns; b < s->blocks; b += columns) {
        columns = columns_together(smaller_of(ATTEND_ROWS, s->vectors - s->first), s->blocks - b);
        if (s->is_converted) convert_keys(t, s, b, columns);
        for (int v = s->first; v < s->vectors; v += ATTEND_ROWS) {
            const int rows = smaller_of(ATTEND_ROWS, s->vectors - v), blocks = blocks_of(tokens_of(s, v + rows - 1)) - b;
            if (blocks <= 0) continue;
            Products products = {
                .a = s->queries + v * s->stride,
                .a_stride = s->stride,
                .b_step = LINE_BYTES,
                .count = t->head_dim,
            };
            for (int c = 0; c < columns; c++) products.b[c] = s->keys[b + c];
            ask_for_next(s->next, &products);
            score_tile(&products, rows, smaller_of(columns, blocks), s->weights + v * CHUNK_TOKENS + b * KV_BLOCK_SIZE);
        }
    }
}

/* context[v .. v + rows - 1] += weights . values, over tokens begin .. end - 1 of the chunk, begin being a block's */
typedef void (*AddValues)(const Scratch *s, int v, int rows, int begin, int end);

/* Of the `columns` vectors of the head from element d on. Of `chains` the others are added to the first, pair by pair, at
 * the end of every block. */
INLINE void add_values_tile(const Scratch *s, const int format, const int rows, const int columns, const int chains, int v,
                            int d, int begin, int end) {
    const int64_t column_bytes = format == KV_F32 ? 16 * sizeof(float) : KV_COLUMN_BYTES;
    float *context = s->context + v * s->stride + d;
    Products products = {
        .a_stride = CHUNK_TOKENS,
        .b_step = s->stride * (int64_t)sizeof(float),
    };
    Float16 sums[4 * ATTEND_ROWS * MOST_COLUMNS]; /* [rows][columns][chains] */
    UNROLL(16)
    for (int n = 0; n < rows * columns * chains; n++) {
        const int row = n / chains / columns, column = n / chains % columns;
        sums[n] = n % chains == 0 ? load16(context + row * s->stride + column * 16) : splat16(0.0f);
    }
    for (int token = begin; token < end; token += KV_BLOCK_SIZE) {
        products.a = s->weights + v * CHUNK_TOKENS + token;
        products.count = smaller_of(KV_BLOCK_SIZE, end - token);
        UNROLL(8)
        for (int c = 0; c < columns; c++) products.b[c] = s->values[token / KV_BLOCK_SIZE] + (d / 16 + c) * column_bytes;
        ask_for_next(s->next, &products);
        add_products(&products, format, rows, columns, chains, sums);
        UNROLL(4)
        for (int width = 1; width < chains; width *= 2)
            UNROLL(16)
            for (int n = 0; n < rows * columns * chains; n += 2 * width) {
                EACH(p) sums[n].v[p] = sums[n].v[p] + sums[n + width].v[p];
                sums[n + width] = splat16(0.0f);
            }
    }
    UNROLL(16)
    for (int n = 0; n < rows * columns; n++) store16(context + n / columns * s->stride + n % columns * 16, sums[n * chains]);
}

INLINE void add_values(const Scratch *s, const int format, int v, int rows, int begin, int end) {
    if (s->stride == 16) { /* too few sums to hide that each waits four cycles for itself */
        WITH_SHAPE(rows, 1, if (C == 1) add_values_tile(s, format, R, 1, 4, v, 0, begin, end))
        return;
    }
    for (int d = 0, columns; d < s->stride; d += 16 * columns) {
        columns = columns_together(rows, (s->stride - d) / 16);
        WITH_SHAPE(rows, columns, add_values_tile(s, format, R, C, 1, v, d, begin, end))
    }
}

static void NAMED(add_values_f32)(const Scratch *s, int v, int rows, int begin, int end) {
    add_values(s, KV_F32, v, rows, begin, end);
}

static void NAMED(add_values_bf16)(const Scratch *s, int v, int rows, int begin, int end) {
    add_values(s, KV_BF16, v, rows, begin, end);
}

/* context *= decay, which is 1 where the chunk has no larger score. */
INLINE void decay_context(const Scratch *s) {
    for (int v = s->first; v < s->vectors; v++)
        for (int d = 0; d < s->stride && s->decay[v] != 1.0f; d += 16) {
            Float16 x = load16(s->context + v * s->stride + d);
            EACH(p) x.v[p] = x.v[p] * s->decay[v];
            store16(s->context + v * s->stride + d, x);
        }
}

/* How many of the chunk's tokens all rows of the group that begins with vector v attend to, in whole blocks. */
INLINE int common_tokens(const Scratch *s, int v) {
    const int least = tokens_of(s, v), most = tokens_of(s, smaller_of(v + ATTEND_ROWS, s->vectors) - 1);
    return least == most ? most : least / KV_BLOCK_SIZE * KV_BLOCK_SIZE;
}

/* Tokens whose values all vectors pass over before the next; a single group passes over each but once. */
INLINE int tokens_together(const Scratch *s) {
    if (s->vectors - s->first <= ATTEND_ROWS) return CHUNK_TOKENS;
    return (int)round_up(VALUES_TOGETHER / s->stride, KV_BLOCK_SIZE);
}

INLINE void convert_values(Scratch *s, int begin, int end) {
    float *values = s->converted; /* [end - begin][stride] */
    for (int b = begin / KV_BLOCK_SIZE; b < s->blocks && b * KV_BLOCK_SIZE < end; b++) {
        const uint8_t *columns = s->values[b]; /* bf16 [stride / 16][16 / 2][16][2] */
        s->values[b] = (const uint8_t *)values;
        for (int i = 0; i < KV_BLOCK_SIZE; i++, values += s->stride)
            for (int d = 0; d < s->stride; d += 16)
                store16(values + d, load_kv(KV_BF16, columns + d / 16 * KV_COLUMN_BYTES, i, LINE_BYTES));
    }
}

/* Some tokens at a time; of them the blocks that all rows of a group attend to go together, then come each row's own last
 * ones, a block never in parts. */
static void NAMED(weigh)(Scratch *s, AddValues add) {
    const int together = tokens_together(s), tokens = s->blocks * KV_BLOCK_SIZE;
    decay_context(s);
    for (int begin = 0; begin < tokens; begin += together) {
        const int end = begin + together;
        if (s->is_converted) convert_values(s, begin, end);
        for (int v = s->first; v < s->vectors; v += ATTEND_ROWS) {
            const int rows = smaller_of(ATTEND_ROWS, s->vectors - v), common = common_tokens(s, v);
            if (begin < common) add(s, v, rows, begin, smaller_of(end, common));
            for (int r = 0; r < rows; r++) {
                const int own = common > begin ? common : begin, own_end = smaller_of(end, tokens_of(s, v + r));
                if (own < own_end) add(s, v + r, 1, own, own_end);
            }
        }
    }
}

/* The largest score so far of each vector, in powers of two; what becomes of earlier weights by it, and (`peaks`) what the
 * chunk's own largest weight is. */
INLINE void find_largest(const Scratch *s) {
    for (int v = s->first; v < s->vectors; v++) {
        float *scores = s->weights + v * CHUNK_TOKENS;
        const int tokens = tokens_of(s, v), whole = tokens / 16 * 16;
        Float16 most = splat16(-INFINITY);
        for (int i = 0; i < whole; i += 16) {
            const Float16 x = load16(scores + i);
            EACH(p) most.v[p] = larger(x.v[p], most.v[p]);
        }
        if (whole < tokens) { /* what comes after is not yet written, or another's */
            const Float16 x = first_lanes(load16(scores + whole), tokens - whole, -FLT_MAX);
            EACH(p) most.v[p] = larger(x.v[p], most.v[p]);
            store16(scores + whole, x);
        }
        s->peaks[v] = max16(most) * s->score_scales[v];
        s->next_largest[v] = s->peaks[v] > s->largest[v] ? s->peaks[v] : s->largest[v];
    }
    for (int v = s->first / 16 * 16; v < s->vectors; v += 16) {
        Float16 decay = load16(s->largest + v), peak = load16(s->peaks + v);
        const Float16 next = load16(s->next_largest + v);
        EACH(p) {
            decay.v[p] = power_of_two(decay.v[p] - next.v[p]);
            peak.v[p] = power_of_two(peak.v[p] - next.v[p]);
        }
        store16(s->decay + v, decay);
        store16(s->peaks + v, peak);
        store16(s->largest + v, next);
    }
}

/* Sixteen scores from token i on become weights, which are added to the denominators. */
INLINE Float16 soften(const Scratch *s, int v, int i, Float16 *denominators) {
    Float16 x = load16(s->weights + v * CHUNK_TOKENS + i);
    EACH(p) {
        x.v[p] = power_of_two(multiply_add(x.v[p], splat(s->score_scales[v]), splat(-s->largest[v])));
        denominators->v[p] = denominators->v[p] + x.v[p];
    }
    return x;
}

INLINE Float16 decayed_denominators(const Scratch *s, int v) {
    Float16 x = load16(s->denominators + v * 16);
    EACH(p) x.v[p] = x.v[p] * s->decay[v];
    return x;
}

static void NAMED(soften_all)(const Scratch *s) {
    for (int v = s->first; v < s->vectors; v++) {
        const int tokens = tokens_of(s, v);
        Float16 denominators = decayed_denominators(s, v);
        for (int i = 0; i < tokens; i += 16) store16(s->weights + v * CHUNK_TOKENS + i, soften(s, v, i, &denominators));
        store16(s->denominators + v * 16, denominators);
    }
}

/* ---- the loop over the chunks ---- */

INLINE Scratch begin_attention(const Attention *t) {
    Scratch s = carve_scratch(t);
    memset(s.context, 0, s.vectors * s.stride * sizeof *s.context);
    memset(s.denominators, 0, s.vectors * 16 * sizeof *s.denominators);
    for (int v = 0; v < ATTEND_VECTORS; v++) s.largest[v] = s.next_largest[v] = -INFINITY;
    for (int v = 0; v < s.vectors; v++) s.ends[v] = t->position + v / t->heads + 1;
    return s;
}

/* Move to the chunk that begins at token `begin`; whether there is one. */
INLINE int enter_chunk(const Attention *t, Scratch *s, int begin, int64_t value_bytes) {
    if (begin >= t->position + t->rows) return 0;
    s->begin = begin;
    s->blocks = find_tiles(t, begin, s->keys);
    s->first = (begin > t->position ? begin - t->position : 0) * t->heads;
    for (int b = 0; b < s->blocks; b++) s->values[b] = s->keys[b] + value_bytes;
    return 1;
}

/* exp(x / sqrt(head_dim)) = 2^(x * this) */
INLINE float log2e_over_root(int32_t head_dim) {
    return (float)(1.4426950408889634 / sqrt(head_dim));
}

INLINE void end_attention(const Attention *t, const Scratch *s) {
    for (int v = 0; v < s->vectors; v++) {
        const float inverse = 1.0f / sum16(load16(s->denominators + v * 16)), *context = s->context + v * s->stride;
        float *y = t->context + v / t->heads * t->context_stride + v % t->heads * t->head_dim;
        for (int d = 0; d < t->head_dim; d++) y[d] = context[d] * inverse;
    }
}

/* More vectors than these have bfloat16 converted once for all of them. */
enum { CONVERT_VECTORS = 2 * ATTEND_ROWS };

#if ATTEND_ROWS == 4 /* its cases are of up to four heads */
#include "kernel_attention_narrow.h"
#endif

static void NAMED(attend_floats)(const Attention *t, const Attention *next, const int format) {
#if ATTEND_ROWS == 4
    if (format == KV_BF16 ? attend_if_narrow(t, KV_BF16) : attend_if_narrow(t, KV_F32)) return;
#endif
    Scratch s = begin_attention(t);
    const int element = format == KV_BF16 ? 2 : 4;
    for (int v = 0; v < s.vectors; v++) {
        const float *query = t->query + v / t->heads * t->query_stride + v % t->heads * t->head_dim;
        memcpy(s.queries + v * s.stride, query, t->head_dim * sizeof *query);
        s.score_scales[v] = log2e_over_root(t->head_dim);
    }
    for (int begin = 0; enter_chunk(t, &s, begin, t->head_dim * KV_BLOCK_SIZE * element); begin += CHUNK_TOKENS) {
        s.is_converted = format == KV_BF16 && s.vectors - s.first > CONVERT_VECTORS;
        const int is_bf16 = format == KV_BF16 && !s.is_converted;
        const int tile_bytes = (t->head_dim + s.stride) * KV_BLOCK_SIZE * element;
        NextTiles next_tiles = {0};
        if (is_bf16) next_tiles = find_next_tiles(t, next, &s, ATTEND_ROWS, tile_bytes);
        s.next = &next_tiles;
        NAMED(score)(t, &s, is_bf16 ? NAMED(score_tile_bf16) : NAMED(score_tile_f32));
        find_largest(&s);
        NAMED(soften_all)(&s);
        NAMED(weigh)(&s, is_bf16 ? NAMED(add_values_bf16) : NAMED(add_values_f32));
    }
    end_attention(t, &s);
}

static void NAMED(attend_f32)(const Attention *list, int32_t count) {
    for (int n = 0; n < count; n++) NAMED(attend_floats)(&list[n], NULL, KV_F32);
}

#ifndef LEVEL_HAS_TILES
static void NAMED(attend_bf16)(const Attention *list, int32_t count) {
    for (int n = 0; n < count; n++) NAMED(attend_floats)(&list[n], n + 1 < count ? &list[n + 1] : NULL, KV_BF16);
}
#endif

#endif
