/* Attention over int8 keys and values, in integers: the same products as a q8 matmul's, over the same lines.
 *
 * Queries and, chunk by chunk, weights become codes of fifteen bits, `128 * high + low` with one scale for each vector: what
 * is lost is small beside the keys' and values' own rounding, and the sums are exact, in whatever order. */
#ifndef WAFERLINE_KERNEL_ATTENTION_INT8_H
#define WAFERLINE_KERNEL_ATTENTION_INT8_H

#include "kernel_attention.h"

enum { MAX_CODE = 127 * 128, LINE_STEP = LINE_BYTES };
enum { INT8_ROWS = ATTEND_ROWS / 2, INT8_COLUMNS = ATTEND_COLUMNS(ATTEND_ROWS) };

/* high[n], low[n] and the sum of the codes of x[n], n to whole vectors; returns the scale. */
INLINE float to_query_codes(const float *x, int n, int8_t *high, int8_t *low, int32_t *sum) {
    Float16 largest = splat16(0.0f);
    for (int i = 0; i < n; i += 16) {
        const Float16 v = load16(x + i);
        EACH(p) largest.v[p] = larger((FloatV)((IntV)v.v[p] & 0x7FFFFFFF), largest.v[p]);
    }
    const float amax = max16(largest), inverse = amax < MIN_QUANTIZED ? 0.0f : MAX_CODE / amax;
    Int16 sums = {{{0}}};
    for (int i = 0; i < n; i += 16) {
        const Float16 v = load16(x + i);
        EACH(p) {
            const FloatV shifted = v.v[p] * inverse + NO_FRACTION; /* round_even, with the integer in the low bits */
            const IntV code = ((IntV)shifted & 0x7FFFFF) - 0x400000, upper = (code + 64) >> 7; /* of NaN 0 */
            store_codes(high + i + p * LANES, upper);
            store_codes(low + i + p * LANES, code - (upper << 7));
            sums.v[p] = sums.v[p] + code;
        }
    }
    *sum = sum16_int(sums);
    return amax < MIN_QUANTIZED ? 0.0f : amax / MAX_CODE;
}

/* sums[rows][high, low][columns] += codes . lines, four codes each; the highs lie `apart` bytes before the lows.
 * `rows` and `columns` are constants where this is inlined. */
INLINE void add_lines(const int rows, const int columns, const int8_t *codes, int64_t apart, const uint8_t *const *lines,
                      int64_t line_step, int count, Int16 *sums) {
    for (int i = 0; i < count; i++) {
        Line line[INT8_COLUMNS];
        UNROLL(4)
        for (int c = 0; c < columns; c++) line[c] = load_q8(lines[c] + i * line_step);
        UNROLL(4)
        for (int r = 0; r < 2 * rows; r++)
            UNROLL(4)
            for (int c = 0; c < columns; c++)
                sums[r * columns + c] = add_line(sums[r * columns + c], line[c], codes + r * apart + 4 * i);
    }
}

/* factors * (128 * high + low - offset) */
INLINE Float16 join(Int16 high, Int16 low, int32_t offset, Float16 factors) {
    Float16 y;
    EACH(p) y.v[p] = __builtin_convertvector((high.v[p] << 7) + low.v[p] - offset, FloatV) * factors.v[p];
    return y;
}

INLINE void score_codes_tile(const Attention *t, const Scratch *s, const int rows, const int columns, int v, int block) {
    const int64_t scales_at = kv_int8_scales(t->head_dim);
    const int64_t apart = round_up(t->head_dim, 4);
    Int16 sums[2 * INT8_ROWS * INT8_COLUMNS] = {{{{0}}}};
    add_lines(rows, columns, (const int8_t *)s->queries + v * 2 * apart, apart, s->keys + block, LINE_STEP, apart / 4, sums);
    UNROLL(4)
    for (int r = 0; r < rows; r++)
        UNROLL(4)
        for (int c = 0; c < columns; c++)
            store16(s->weights + (v + r) * CHUNK_TOKENS + (block + c) * KV_BLOCK_SIZE,
                    join(sums[2 * r * columns + c], sums[(2 * r + 1) * columns + c], Q8_OFFSET * s->query_sums[v + r],
                         load16((const float *)(s->keys[block + c] + scales_at))));
}

INLINE void weigh_codes_tile(const Scratch *s, const int rows, const int columns, int v, int d) {
    Int16 sums[2 * INT8_ROWS * INT8_COLUMNS] = {{{{0}}}};
    for (int quad = 0; quad < s->blocks * KV_BLOCK_SIZE / 4; quad++) { /* four tokens */
        const uint8_t *codes = (const uint8_t *)s->codes + v * 2 * CHUNK_TOKENS + quad * 4;
        const uint8_t *line = s->values[quad / 4] + (quad % 4 * s->stride + d) * 4;
        UNROLL(4)
        for (int r = 0; r < 2 * rows; r++)
            UNROLL(4)
            for (int c = 0; c < columns; c++)
                sums[r * columns + c] = add_signed_line(sums[r * columns + c], line + c * LINE_BYTES, codes + r * CHUNK_TOKENS);
    }
    UNROLL(4)
    for (int r = 0; r < rows; r++)
        UNROLL(4)
        for (int c = 0; c < columns; c++) {
            float *context = s->context + (v + r) * s->stride + d + 16 * c;
            Float16 y = load16(context);
            const Float16 sum = join(sums[2 * r * columns + c], sums[(2 * r + 1) * columns + c], 0,
                                     splat16(s->weight_scales[v + r]));
            EACH(p) y.v[p] = y.v[p] * s->decay[v + r] + sum.v[p];
            store16(context, y);
        }
}

#define CODE_TILE(r, c) \
    case r * 8 + c: if (r <= INT8_ROWS && c <= INT8_COLUMNS) APPLY(r, c); break;
#define CODE_TILES(r) CODE_TILE(r, 1) CODE_TILE(r, 2) CODE_TILE(r, 3) CODE_TILE(r, 4)

/* weights[first .. vectors - 1][CHUNK_TOKENS] = queries . keys, codes times codes */
static void NAMED(score_codes)(const Attention *t, const Scratch *s) {
    for (int v = s->first; v < s->vectors; v += INT8_ROWS) {
        const int rows = smaller_of(INT8_ROWS, s->vectors - v), blocks = blocks_of(tokens_of(s, v + rows - 1));
        for (int b = 0; b < blocks; b += INT8_COLUMNS) {
#define APPLY(r, c) score_codes_tile(t, s, r, c, v, b)
            switch (rows * 8 + smaller_of(INT8_COLUMNS, blocks - b)) { CODE_TILES(1) CODE_TILES(2) }
#undef APPLY
        }
    }
}

/* Scores become weights, and times their tokens' value scales codes: high and low, both of seven bits and unsigned. */
static void NAMED(soften_codes)(const Attention *t, const Scratch *s) {
    const int64_t scales_at = kv_int8_scales(t->head_dim) + KV_BLOCK_SIZE * sizeof(float);
    float scales[CHUNK_TOKENS], largest_scales[CHUNK_TOKENS + 1] = {0.0f}; /* of values; the largest of the first so many */
    for (int i = 0; i < s->blocks * KV_BLOCK_SIZE; i++) {
        scales[i] = ((const float *)(s->keys[i / KV_BLOCK_SIZE] + scales_at))[i % KV_BLOCK_SIZE];
        largest_scales[i + 1] = scales[i] > largest_scales[i] ? scales[i] : largest_scales[i];
    }
    for (int v = s->first; v < s->vectors; v++) {
        const int tokens = tokens_of(s, v);
        uint8_t *high = (uint8_t *)s->codes + v * 2 * CHUNK_TOKENS, *low = high + CHUNK_TOKENS;
        const float largest = s->peaks[v] * largest_scales[tokens];
        const float inverse = largest < MIN_QUANTIZED ? 0.0f : MAX_CODE / largest;
        s->weight_scales[v] = largest < MIN_QUANTIZED ? 0.0f : largest / MAX_CODE;
        memset(high, 0, 2 * CHUNK_TOKENS);
        Float16 denominators = decayed_denominators(s, v);
        for (int i = 0; i < tokens; i += 16) {
            const Float16 weights = soften(s, v, i, &denominators);
            Float16 x = load16(scales + i);
            EACH(p) x.v[p] = x.v[p] * inverse * weights.v[p];
            if (i + 16 > tokens) x = first_lanes(x, tokens - i, 0.0f); /* whatever those scales are */
            EACH(p) {
                const IntV code = (IntV)(x.v[p] + NO_FRACTION) & 0x3FFFFF; /* to the nearest, ties to even */
                store_codes(high + i + p * LANES, code >> 7);
                store_codes(low + i + p * LANES, code & 127);
            }
        }
        store16(s->denominators + v * 16, denominators);
    }
}

/* context = context * decay + weights . values */
static void NAMED(weigh_codes)(const Scratch *s) {
    for (int v = s->first; v < s->vectors; v += INT8_ROWS)
        for (int d = 0; d < s->stride; d += 16 * INT8_COLUMNS) {
#define APPLY(r, c) weigh_codes_tile(s, r, c, v, d)
            switch (smaller_of(INT8_ROWS, s->vectors - v) * 8 + smaller_of(INT8_COLUMNS, (s->stride - d) / 16)) {
                CODE_TILES(1) CODE_TILES(2)
            }
#undef APPLY
        }
}

static void NAMED(attend_codes)(const Attention *t) {
    Scratch s = begin_attention(t);
    const int64_t key_codes = round_up(t->head_dim, 4);
    for (int v = 0; v < s.vectors; v++) {
        const float *query = t->query + v / t->heads * t->query_stride + v % t->heads * t->head_dim;
        float padded[MAX_HEAD_DIM];
        int8_t high[MAX_HEAD_DIM], low[MAX_HEAD_DIM], *codes = (int8_t *)s.queries + v * 2 * key_codes;
        memset(padded + t->head_dim / 16 * 16, 0, 16 * sizeof *padded * (t->head_dim % 16 > 0));
        memcpy(padded, query, t->head_dim * sizeof *query);
        const float scale = to_query_codes(padded, t->head_dim, high, low, &s.query_sums[v]);
        s.score_scales[v] = scale > 0.0f ? scale * log2e_over_root(t->head_dim) : 1.0f; /* never 0: it meets infinities */
        memcpy(codes, high, key_codes);
        memcpy(codes + key_codes, low, key_codes);
    }
    for (int begin = 0; enter_chunk(t, &s, begin, kv_int8_values(t->head_dim)); begin += CHUNK_TOKENS) {
        NAMED(score_codes)(t, &s);
        find_largest(&s);
        NAMED(soften_codes)(t, &s);
        NAMED(weigh_codes)(&s);
    }
    end_attention(t, &s);
}

static void NAMED(attend_int8)(const Attention *list, int32_t count) {
    for (int n = 0; n < count; n++) NAMED(attend_codes)(&list[n]);
}

#endif
