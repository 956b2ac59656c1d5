/* What attention's scores and weighted values are made of: some rows times some columns of keys or values, the columns of
 * 16 kept in registers, in shapes that the compiler knows. */
#ifndef WAFERLINE_KERNEL_ATTENTION_PRODUCTS_H
#define WAFERLINE_KERNEL_ATTENTION_PRODUCTS_H

#include "kernel_vectors.h"
#include "kernels.h"

enum { MOST_COLUMNS = ATTEND_COLUMNS(1) };

/* a[rows][i] and b[columns][i][16], i = 0 .. count - 1 */
typedef struct {
    const float *a;
    const uint8_t *b[MOST_COLUMNS]; /* each column's vector 0 */
    const uint8_t *ahead[2];        /* with bf16 each i asks L2 for line i of both */
    int64_t a_stride, b_step;       /* floats, bytes from a vector of float32 to the next */
    int32_t count;
} Products;

/* Vector i of f32 [n][16], `step` bytes apart, or of bf16 [n / 2][16][2]. */
INLINE Float16 load_kv(const int format, const uint8_t *x, int i, int64_t step) {
    if (format == KV_F32) return load16((const float *)(x + i * step));
    Float16 y;
    EACH(p) {
        UintV pairs;
        memcpy(&pairs, x + i / 2 * LINE_BYTES + p * sizeof pairs, sizeof pairs);
        y.v[p] = (FloatV)(i % 2 ? pairs & 0xFFFF0000u : pairs << 16);
    }
    return y;
}

/* sums[rows][columns][chains] += a * b: the chains take turns over i. All but `t` and `sums` are constants where this is
 * inlined. */
INLINE void add_products(const Products *t, const int format, const int rows, const int columns, const int chains,
                         Float16 *sums) {
    const int unroll = chains > 2 ? chains : 2;
    for (int64_t i = 0; i < t->count; i += unroll)
        UNROLL(2)
        for (int n = 0; n < unroll; n += 2) {
            if (n > 0 && i + n >= t->count) break;
            Float16 b[2][MOST_COLUMNS]; /* where there is no second of a pair there is room */
            UNROLL(8)
            for (int c = 0; c < columns; c++) load_pair(format == KV_BF16, t->b[c], i + n, t->b_step, &b[0][c], &b[1][c]);
            UNROLL(2)
            for (int k = 0; k < 2; k++) {
                if (k > 0 && i + n + k == t->count) break;
                for (int j = 0; j < 2 && format == KV_BF16; j++)
                    __builtin_prefetch(t->ahead[j] + (i + n + k) * LINE_BYTES, 0, 2);
                UNROLL(4)
                for (int r = 0; r < rows; r++) {
                    const FloatV a = splat(t->a[r * t->a_stride + i + n + k]);
                    UNROLL(8)
                    for (int c = 0; c < columns; c++) {
                        Float16 *sum = &sums[(r * columns + c) * chains + (n + k) % chains];
                        EACH(p) sum->v[p] = multiply_add(b[k][c].v[p], a, sum->v[p]);
                    }
                }
            }
        }
}

/* `call` with constants R and C for `rows` and `columns`. */
#define WITH_SHAPE(rows, columns, call)                                                                                \
    switch ((rows) * 16 + (columns)) {                                                                                 \
        SHAPES_OF_ROW(1, call)                                                                                         \
        SHAPE(1, 5, call) SHAPE(1, 6, call) SHAPE(1, 7, call) SHAPE(1, 8, call)                                        \
        SHAPES_OF_ROW(2, call) SHAPES_OF_ROW(3, call) SHAPES_OF_ROW(4, call)                                           \
    }
#define SHAPES_OF_ROW(r, call) SHAPE(r, 1, call) SHAPE(r, 2, call) SHAPE(r, 3, call) SHAPE(r, 4, call)
#define SHAPE(r, c, call)                                                                                              \
    case r * 16 + c:                                                                                                   \
        if (r <= ATTEND_ROWS && c <= ATTEND_COLUMNS(r)) {                                                              \
            enum { R = r, C = c };                                                                                     \
            call;                                                                                                      \
        }                                                                                                              \
        break;

/* Of `columns` columns how many to take together now, so that all that `rows` rows take differ by one at most. */
INLINE int columns_together(int rows, int columns) {
    const int most = ATTEND_COLUMNS(rows), times = (columns + most - 1) / most;
    return (columns + times - 1) / times;
}

#endif
