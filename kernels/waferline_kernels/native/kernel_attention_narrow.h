/* Attention of a single row whose heads are one vector wide: what decoding a small model does, a thousand cycles at a time.
 *
 * The operations are those of kernel_attention.h, in their order, so the bits are too. But a chunk's scores lie on the stack
 * and its sums in registers, sixteen tokens of a block are written out, and nothing is asked at each step of it. Two heads of
 * 8 over 250 tokens take 57% of the time so (medians on a machine of varying speed; of the least times 70%). */
#ifndef WAFERLINE_KERNEL_ATTENTION_NARROW_H
#define WAFERLINE_KERNEL_ATTENTION_NARROW_H

#include "kernel_attention.h"

/* A KV head's query heads over one chunk, of which the row attends to `tokens`. All arrays: [heads]. */
typedef struct {
    Float16 context[ATTEND_ROWS], denominators[ATTEND_ROWS], scores[ATTEND_ROWS][CHUNK_BLOCKS];
    float largest[ATTEND_ROWS];
    const uint8_t *tiles[CHUNK_BLOCKS];
    int tokens, blocks;
} NarrowChunk;

#define EACH_HEAD(h) UNROLL(4) for (int h = 0; h < heads; h++)
#define EACH_VALUE(p) UNROLL(4) for (int p = 0; p < parts; p++) /* what follows is padding */

/* scores = queries . keys, and the largest of each head; most: [heads] */
INLINE void score_narrow(const Attention *t, NarrowChunk *c, const int format, const int heads, const int head_dim,
                         Float16 *most) {
    EACH_HEAD(h) most[h] = splat16(-INFINITY);
    for (int b = 0; b < c->blocks; b++) {
        Float16 sums[ATTEND_ROWS];
        EACH_HEAD(h) sums[h] = splat16(0.0f);
        UNROLL(8)
        for (int d = 0; d < head_dim; d++) {
            const Float16 key = load_kv(format, c->tiles[b], d, LINE_BYTES);
            EACH_HEAD(h) EACH(p) sums[h].v[p] = multiply_add(key.v[p], splat(t->query[h * head_dim + d]), sums[h].v[p]);
        }
        const int left = c->tokens - b * KV_BLOCK_SIZE;
        EACH_HEAD(h) {
            if (left < KV_BLOCK_SIZE) sums[h] = first_lanes(sums[h], left, -FLT_MAX);
            EACH(p) most[h].v[p] = larger(sums[h].v[p], most[h].v[p]);
            c->scores[h][b] = sums[h];
        }
    }
}

/* Scores become weights; what came before decays as the largest score grows. */
INLINE void soften_narrow(NarrowChunk *c, const int heads, const Float16 *most, float scale) {
    EACH_HEAD(h) {
        const float peak = max16(most[h]) * scale, largest = peak > c->largest[h] ? peak : c->largest[h];
        const FloatV decay = power_of_two(splat(c->largest[h]) - splat(largest));
        c->largest[h] = largest;
        EACH(p) c->context[h].v[p] = c->context[h].v[p] * decay;
        EACH(p) c->denominators[h].v[p] = c->denominators[h].v[p] * decay;
    }
    for (int b = 0; b < c->blocks; b++)
        EACH_HEAD(h) EACH(p) {
            FloatV *x = &c->scores[h][b].v[p];
            *x = power_of_two(multiply_add(*x, splat(scale), splat(-c->largest[h])));
            c->denominators[h].v[p] = c->denominators[h].v[p] + *x;
        }
}

/* context += weights . values of block b, `count` tokens of it, in add_values_tile's four chains. */
INLINE void add_narrow_block(NarrowChunk *c, const int format, const int heads, const int parts, const uint8_t *values,
                             int b, const int count) {
    enum { CHAINS = 4 };
    Float16 sums[CHAINS][ATTEND_ROWS]; /* [chains][heads] */
    EACH_HEAD(h) {
        sums[0][h] = c->context[h];
        sums[1][h] = sums[2][h] = sums[3][h] = splat16(0.0f);
    }
    UNROLL(16)
    for (int token = 0; token < count; token++) {
        const Float16 value = load_kv(format, values, token, 16 * sizeof(float));
        EACH_HEAD(h) {
            Float16 *sum = &sums[token % CHAINS][h];
            EACH_VALUE(p) sum->v[p] = multiply_add(value.v[p], splat(((const float *)&c->scores[h][b])[token]), sum->v[p]);
        }
    }
    EACH_HEAD(h)
        EACH_VALUE(p) c->context[h].v[p] = (sums[0][h].v[p] + sums[1][h].v[p]) + (sums[2][h].v[p] + sums[3][h].v[p]);
}

INLINE void attend_narrow(const Attention *t, const int format, const int heads, const int head_dim, const int parts) {
    const int key_bytes = head_dim * KV_BLOCK_SIZE * (format == KV_BF16 ? 2 : 4), end = t->position + 1;
    const float scale = log2e_over_root(head_dim);
    NarrowChunk c;
    EACH_HEAD(h) {
        c.context[h] = c.denominators[h] = splat16(0.0f);
        c.largest[h] = -INFINITY;
    }
    for (int begin = 0; begin < end; begin += CHUNK_TOKENS) {
        Float16 most[ATTEND_ROWS];
        c.tokens = smaller_of(end - begin, CHUNK_TOKENS);
        c.blocks = find_tiles(t, begin, c.tiles);
        score_narrow(t, &c, format, heads, head_dim, most);
        soften_narrow(&c, heads, most, scale);
        int b = 0;
        for (; b < c.tokens / KV_BLOCK_SIZE; b++)
            add_narrow_block(&c, format, heads, parts, c.tiles[b] + key_bytes, b, KV_BLOCK_SIZE);
        if (b < c.blocks) add_narrow_block(&c, format, heads, parts, c.tiles[b] + key_bytes, b, c.tokens % KV_BLOCK_SIZE);
    }
    EACH_HEAD(h) {
        float context[16];
        const float inverse = 1.0f / sum16(c.denominators[h]);
        EACH(p) c.context[h].v[p] = c.context[h].v[p] * inverse;
        store16(context, c.context[h]);
        memcpy(t->context + h * head_dim, context, head_dim * sizeof *context);
    }
}

/* Whether it was for narrow heads of a single row, and is done. */
INLINE int attend_if_narrow(const Attention *t, const int format) {
    if (t->rows != 1 || t->head_dim > 16) return 0;
#define NARROW(n)                                                          \
    case n:                                                                \
        if (t->head_dim == 8)                                              \
            attend_narrow(t, format, n, 8, (8 + LANES - 1) / LANES);       \
        else                                                               \
            attend_narrow(t, format, n, t->head_dim, PARTS);               \
        return 1;
    switch (t->heads) { NARROW(1) NARROW(2) NARROW(3) NARROW(4) }
#undef NARROW
    return 0;
}
#undef EACH_HEAD
#undef EACH_VALUE

#endif
