/* Packing: a strip of quantised weights from sixteen rows of a checkpoint's matrix. tiles.py defines every operation
 * (quantize_q8, quantize_q4) and their order; the lanes here are a strip's columns. */
#ifndef WAFERLINE_KERNEL_PACK_H
#define WAFERLINE_KERNEL_PACK_H

#include "kernel_vectors.h"
#include "kernels.h"

enum { INFINITE = 0x7F800000 };

static const float Q4_TRIALS[] = {6.9f, 7.4f, 7.9f, 8.4f, 8.9f};
static const float Q4_TRIAL_STEPS[] = {6.9 * 8, 7.4 * 8, 7.9 * 8, 8.4 * 8, 8.9 * 8};

INLINE FloatV magnitude(FloatV x) {
    return (FloatV)((IntV)x & 0x7FFFFFFF);
}

INLINE FloatV clip(FloatV x, float low, float high) {
    x = choose(x < low, splat(low), x);
    return choose(x > high, splat(high), x);
}

#define MIN_STEP 1e-30f /* tiles.MIN_STEP */

/* 1 / step; steps too small to invert count as 0, and their weights become zeros. */
INLINE FloatV invert(FloatV step) {
    return choose(magnitude(step) < MIN_STEP, splat(0.0f), 1.0f / step);
}

INLINE IntV to_bfloat16(FloatV x) {
    const UintV bits = (UintV)x;
    return (IntV)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

INLINE void store_bfloat16(uint8_t *line, int part, IntV bits) {
    const HalfV narrow = __builtin_convertvector((UintV)bits, HalfV);
    memcpy(line + part * sizeof narrow, &narrow, sizeof narrow);
}

/* K begin .. begin + GROUP of rows [rows][k] as columns x[GROUP][16], zeros outside. Whether all are finite. */
static int NAMED(gather_group)(const float *weights, int32_t rows, int32_t k, int32_t begin, float *x) {
    const int count = k - begin < GROUP ? k - begin : GROUP;
    if (rows < TILE_N || count < GROUP) memset(x, 0, GROUP * TILE_N * sizeof *x);
    for (int c = 0; c < rows; c++) {
        const float *row = weights + (int64_t)c * k + begin;
        for (int i = 0; i < count; i++) x[i * TILE_N + c] = row[i];
    }
    IntV largest = {0};
    for (int i = 0; i < GROUP * TILE_N; i += LANES) {
        IntV bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7FFFFFFF;
        largest = (IntV)choose(bits > largest, (FloatV)bits, (FloatV)largest);
    }
    for (int lane = 0; lane < LANES; lane++)
        if (largest[lane] >= INFINITE) return 0;
    return 1;
}

/* weights[rows][k] -> one strip. Whether all are finite. */
static int NAMED(pack_q8)(const float *weights, int32_t rows, int32_t k, uint8_t *strip) {
    float x[GROUP * TILE_N]; /* [GROUP][16] */
    uint8_t *line = strip, *scales = strip;
    for (int begin = 0; begin < k; begin += GROUP) {
        if (!NAMED(gather_group)(weights, rows, k, begin, x)) return 0;
        const int is_second = begin / GROUP % 2;
        if (!is_second) {
            scales = line;
            memset(scales, 0, LINE_BYTES);
            line += LINE_BYTES;
        }
        const int lines = ((k - begin < GROUP ? k - begin : GROUP) + Q8_LINE_K - 1) / Q8_LINE_K;
        EACH(p) {
            const float *column = x + p * LANES;
            FloatV largest = splat(0.0f), v;
            for (int i = 0; i < GROUP; i++) {
                memcpy(&v, column + i * TILE_N, sizeof v);
                largest = larger(magnitude(v), largest);
            }
            const IntV bits = to_bfloat16(largest / 127.0f);
            const FloatV scale = (FloatV)(bits << 16);
            const FloatV divisor = choose(scale == 0.0f, splat(INFINITY), scale);
            store_bfloat16(scales + is_second * 2 * TILE_N, p, bits);
            for (int l = 0; l < lines; l++) {
                IntV word = {0};
                for (int j = 0; j < Q8_LINE_K; j++) {
                    memcpy(&v, column + (l * Q8_LINE_K + j) * TILE_N, sizeof v);
                    const FloatV code = clip(round_even(v / divisor), -127.0f, 127.0f);
                    word |= (__builtin_convertvector(code, IntV) & 255) << (8 * j);
                }
                memcpy(line + l * LINE_BYTES + p * sizeof word, &word, sizeof word);
            }
        }
        line += lines * LINE_BYTES;
    }
    return 1;
}

INLINE FloatV q4_codes(FloatV x, FloatV inverse) {
    return clip(round_even(clip(x * inverse, -16.0f, 16.0f)), -8.0f, 7.0f);
}

/* The squared error of a subgroup's column, x[SUBGROUP][16], in steps of `step`. */
INLINE FloatV squared_error(const float *x, FloatV step) {
    const FloatV inverse = invert(step);
    FloatV sum = splat(0.0f), v;
    for (int i = 0; i < SUBGROUP; i++) {
        memcpy(&v, x + i * TILE_N, sizeof v);
        const FloatV error = v - q4_codes(v, inverse) * step;
        sum = sum + error * error;
    }
    return sum;
}

/* The subscales of a group's columns x[GROUP][16], and the scale that fits them best: bfloat16 bits. */
INLINE IntV search_q4(const float *x, FloatV *subscales) {
    FloatV extreme[SUBGROUPS], largest = splat(0.0f), v;
    for (int s = 0; s < SUBGROUPS; s++) {
        FloatV most = splat(-1.0f);
        for (int i = 0; i < SUBGROUP; i++) {
            memcpy(&v, x + (s * SUBGROUP + i) * TILE_N, sizeof v);
            const IntV is_more = magnitude(v) > most;
            most = choose(is_more, magnitude(v), most);
            extreme[s] = choose(is_more, v, extreme[s]);
        }
        largest = larger(most, largest);
    }
    FloatV best = splat(0.0f), least = splat(INFINITY);
    for (int s = 0; s < SUBGROUPS; s++) subscales[s] = splat(1.0f);
    for (int t = 0; t < (int)(sizeof Q4_TRIALS / sizeof *Q4_TRIALS); t++) {
        const FloatV scale = largest / Q4_TRIAL_STEPS[t], divisor = choose(scale > 0.0f, scale, splat(INFINITY));
        FloatV errors = splat(0.0f), chosen[SUBGROUPS];
        for (int s = 0; s < SUBGROUPS; s++) {
            const FloatV nearest = round_even(magnitude(extreme[s]) / divisor / Q4_TRIALS[t]);
            const FloatV sign = choose(extreme[s] > 0.0f, splat(-1.0f), splat(1.0f));
            FloatV lowest = splat(INFINITY);
            chosen[s] = splat(1.0f);
            for (int offset = -1; offset <= 1; offset++) {
                const FloatV tried = clip(nearest + (float)offset, 1.0f, MAX_SUBSCALE) * sign;
                const FloatV error = squared_error(x + s * SUBGROUP * TILE_N, scale * tried);
                const IntV is_less = error < lowest;
                lowest = choose(is_less, error, lowest);
                chosen[s] = choose(is_less, tried, chosen[s]);
            }
            errors = errors + lowest;
        }
        const IntV is_better = errors < least;
        least = choose(is_better, errors, least);
        best = choose(is_better, scale, best);
        for (int s = 0; s < SUBGROUPS; s++) subscales[s] = choose(is_better, chosen[s], subscales[s]);
    }
    FloatV squares = splat(0.0f), products = splat(0.0f);
    for (int i = 0; i < GROUP; i++) {
        memcpy(&v, x + i * TILE_N, sizeof v);
        const FloatV subscale = subscales[i / SUBGROUP];
        const FloatV integer = q4_codes(v, invert(best * subscale)) * subscale;
        squares = squares + integer * integer;
        products = products + integer * v;
    }
    return to_bfloat16(products / choose(squares > 0.0f, squares, splat(1.0f)));
}

/* weights[rows][k] -> one strip. Whether all are finite. */
static int NAMED(pack_q4)(const float *weights, int32_t rows, int32_t k, uint8_t *strip) {
    float x[GROUP * TILE_N]; /* [GROUP][16] */
    uint8_t *line = strip;
    for (int begin = 0; begin < k; begin += GROUP) {
        if (!NAMED(gather_group)(weights, rows, k, begin, x)) return 0;
        const int lines = ((k - begin < GROUP ? k - begin : GROUP) + Q4_LINE_K - 1) / Q4_LINE_K;
        EACH(p) {
            const float *column = x + p * LANES;
            FloatV subscales[SUBGROUPS], inverses[SUBGROUPS], v;
            const IntV bits = search_q4(column, subscales);
            store_bfloat16(line, p, bits);
            for (int s = 0; s < SUBGROUPS; s++) {
                const IntV nibble = __builtin_convertvector(subscales[s], IntV) + MAX_SUBSCALE + (subscales[s] > 0.0f);
                uint8_t *packed = line + 2 * TILE_N + s / 2 * TILE_N + p * LANES;
                for (int lane = 0; lane < LANES; lane++)
                    packed[lane] = s % 2 ? packed[lane] | nibble[lane] << 4 : nibble[lane];
                inverses[s] = invert((FloatV)(bits << 16) * subscales[s]);
            }
            for (int l = 0; l < lines; l++) {
                IntV word = {0};
                for (int j = 0; j < Q4_LINE_K; j++) {
                    memcpy(&v, column + (l * Q4_LINE_K + j) * TILE_N, sizeof v);
                    const FloatV code = q4_codes(v, inverses[l * Q4_LINE_K / SUBGROUP]) + (float)Q4_ZERO_POINT;
                    word |= __builtin_convertvector(code, IntV) << (8 * (j % 4) + j / 4 * 4);
                }
                memcpy(line + (1 + l) * LINE_BYTES + p * sizeof word, &word, sizeof word);
            }
        }
        line += (1 + lines) * LINE_BYTES;
    }
    return 1;
}

#endif
