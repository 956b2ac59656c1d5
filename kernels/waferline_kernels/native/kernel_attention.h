/* Attention of one query head of one row over its KV blocks. */
#ifndef WAFERLINE_KERNEL_ATTENTION_H
#define WAFERLINE_KERNEL_ATTENTION_H

#include "kernel_vectors.h"
#include "kernels.h"

enum { CHUNK_BLOCKS = 4, CHUNK_TOKENS = CHUNK_BLOCKS * KV_BLOCK_SIZE };

/* scores[blocks][16] = query . keys, a chain for each block. `blocks` is a constant where this is inlined. */
INLINE void score_blocks(const Attention *t, const float *const *keys, const int blocks, float *scores) {
    Float16 sums[CHUNK_BLOCKS];
#pragma GCC unroll 4
    for (int b = 0; b < blocks; b++) sums[b] = splat16(0.0f);
    for (int d = 0; d < t->head_dim; d++) {
        const float q = t->query[d];
#pragma GCC unroll 4
        for (int b = 0; b < blocks; b++) {
            const Float16 k = load16(keys[b] + d * KV_BLOCK_SIZE); /* keys [head_dim][16] */
            EACH(p) sums[b].v[p] = sums[b].v[p] + k.v[p] * q;
        }
    }
#pragma GCC unroll 4
    for (int b = 0; b < blocks; b++) {
        EACH(p) sums[b].v[p] = sums[b].v[p] * t->scale;
        store16(scores + b * KV_BLOCK_SIZE, sums[b]);
    }
}

/* context[16 * vectors] = context * decay + weights . values, tokens ascending, `vectors` chains side by side. */
INLINE void add_values(const Attention *t, const float *const *keys, int tokens, const float *weights, float decay, int d,
                       const int vectors, float *context) {
    Float16 sums[4];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        sums[v] = load16(context + d + 16 * v);
        EACH(p) sums[v].v[p] = sums[v].v[p] * decay;
    }
    for (int i = 0; i < tokens; i++) {
        const float *values = keys[i / KV_BLOCK_SIZE] + t->head_dim * KV_BLOCK_SIZE; /* values [16][value_stride] */
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            const Float16 value = load16(values + i % KV_BLOCK_SIZE * t->value_stride + d + 16 * v);
            EACH(p) sums[v].v[p] = sums[v].v[p] + value.v[p] * weights[i];
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) store16(context + d + 16 * v, sums[v]);
}

/* One query head of one row over its KV blocks, four at a time in ascending order, the softmax merged chunk by chunk
 * (Milakov and Gimelshein 2018). Chunks lie at absolute positions, so the order does not depend on the batch, the prefill
 * chunk or the threads. */
static void NAMED(attend)(const Attention *t) {
    float context[MAX_HEAD_DIM]; /* [value_stride] */
    memset(context, 0, t->value_stride * sizeof *context);
    Float16 denominator = splat16(0.0f);
    float largest = -INFINITY;
    for (int begin = 0; begin <= t->position; begin += CHUNK_TOKENS) {
        const int left = t->position + 1 - begin, tokens = left < CHUNK_TOKENS ? left : CHUNK_TOKENS;
        const int blocks = (tokens + KV_BLOCK_SIZE - 1) / KV_BLOCK_SIZE;
        const float *keys[CHUNK_BLOCKS];
        float weights[CHUNK_TOKENS]; /* first the scores */
        for (int b = 0; b < blocks; b++)
            keys[b] = t->kv + t->block_table[begin / KV_BLOCK_SIZE + b] * t->block_stride + t->head_offset;
        switch (blocks) {
        case 1: score_blocks(t, keys, 1, weights); break;
        case 2: score_blocks(t, keys, 2, weights); break;
        case 3: score_blocks(t, keys, 3, weights); break;
        case 4: score_blocks(t, keys, 4, weights); break;
        }
        for (int i = tokens; i < blocks * KV_BLOCK_SIZE; i++) weights[i] = -INFINITY; /* not yet written, or another's */
        Float16 most = load16(weights);
        for (int b = 1; b < blocks; b++) {
            const Float16 scores = load16(weights + b * KV_BLOCK_SIZE);
            EACH(p) most.v[p] = larger(scores.v[p], most.v[p]);
        }
        const float chunk_largest = max16(most);
        const float new_largest = chunk_largest > largest ? chunk_largest : largest;
        const float decay = exponential(splat(largest - new_largest))[0];
        largest = new_largest;
        EACH(p) denominator.v[p] = denominator.v[p] * decay;
        for (int b = 0; b < blocks; b++) {
            Float16 w = load16(weights + b * KV_BLOCK_SIZE);
            EACH(p) w.v[p] = exponential(w.v[p] - new_largest);
            EACH(p) denominator.v[p] = denominator.v[p] + w.v[p];
            store16(weights + b * KV_BLOCK_SIZE, w);
        }
        int d = 0;
        for (; d + 64 <= t->value_stride; d += 64) add_values(t, keys, tokens, weights, decay, d, 4, context);
        for (; d < t->value_stride; d += 16) add_values(t, keys, tokens, weights, decay, d, 1, context);
    }
    const float inverse = 1.0f / sum16(denominator);
    for (int d = 0; d < t->head_dim; d++) t->context[d] = context[d] * inverse;
}

#endif
