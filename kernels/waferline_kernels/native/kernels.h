/* The kernel table: what one instruction-set level provides. Dispatch, tests and microbenchmarks read it.
 *
 * Rows of float32 buffers are padded with zeros to whole vectors of 16, so a kernel may read and write them whole. Float
 * operations are the same, in the same order, whatever the number of rows. They are so on all levels with fused
 * multiply-add, which base has not, but that amx has orders of its own for weights, keys and values in bf16. */
#ifndef WAFERLINE_KERNELS_H
#define WAFERLINE_KERNELS_H

#include "fetch.h"
#include "waferline.h"

/* Quantised activations: see tiles.quantize_rows. */
typedef struct {
    int8_t *codes;  /* [rows][codes_stride], zeros after K up to a multiple of 64 */
    float *scales;  /* [rows][groups_stride] */
    int32_t *sums;  /* [rows][groups_stride][SUBGROUPS]: of each subgroup's codes, by which a zero point is taken off */
    int64_t codes_stride, groups_stride;
} QuantizedRows;

typedef struct {
    const uint8_t *strips; /* [count][strip_bytes] of the worker's */
    int32_t count;
    int64_t strip_bytes;
    int32_t k, rows;
    int32_t epilogue;
    Fetch fetch; /* how the sweep that the strips are part of asks for its lines */
    const float *x; /* [rows][x_stride], for float formats */
    int64_t x_stride;
    QuantizedRows act;
    const uint8_t *halves; /* [split_bytes(rows, k)] x as `split` makes it, for bf16 where the level has that */
    uint8_t *scratch;  /* [scratch_bytes(rows, k)], the worker's own */
    const float *bias; /* [count * 16], or NULL */
    float *dst;        /* [rows][dst_stride], from what the first strip becomes on */
    int64_t dst_stride;
} Matmul;

/* Tiles of 16 rows and strips whose sums a matmul of bf16 through tile registers keeps while it goes along K. */
enum { BF16_ROW_TILES = 16, BF16_STRIPS = 32, BF16_SUMS_BYTES = BF16_ROW_TILES * BF16_STRIPS * 16 * TILE_N * 4 };

static inline int64_t larger_of(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* Of a strip of q8. */
static inline int64_t q8_strip_bytes(int64_t k) {
    const int64_t lines = round_up(k, Q8_LINE_K) / Q8_LINE_K;
    return (lines + round_up(lines, Q8_BLOCK_LINES) / Q8_BLOCK_LINES) * LINE_BYTES;
}

/* Room for those; or for two strips unpacked to int8 [group][128 / 4][16][4] and the activations' scales by groups; or for
 * offsets, int32 [rows][groups][SUBGROUPS]; or for those of whole groups and two strips of q8 and a line. */
static inline int64_t scratch_bytes(int64_t rows, int64_t k) {
    const int64_t groups = round_up(k, GROUP) / GROUP, tile_rows = round_up(rows, 2 * 16) * sizeof(float);
    const int64_t unpacked = groups * (2 * GROUP * TILE_N + tile_rows), offsets = rows * groups * sizeof(int32_t);
    const int64_t as_q8 = round_up(offsets, LINE_BYTES) + 2 * q8_strip_bytes(k) + LINE_BYTES;
    return larger_of(larger_of(BF16_SUMS_BYTES, as_q8), larger_of(unpacked, SUBGROUPS * offsets));
}

/* Rows of `split`: two halves of two bytes each. */
static inline int64_t split_bytes(int64_t rows, int64_t k) {
    return round_up(rows, 16) * 2 * 2 * round_up(k, 32);
}

/* Some of the query heads that share a KV head, over consecutive rows of one sequence. */
typedef struct {
    const uint8_t *kv;          /* [blocks][block_stride] from the KV head's tile of block 0 on */
    int64_t block_stride;       /* bytes to its tile of the next block */
    const int32_t *block_table; /* [blocks of the sequence] */
    const float *query;         /* [rows][heads][head_dim], rotated; rows query_stride apart */
    float *context;             /* [rows][heads][head_dim]; rows context_stride apart */
    int64_t query_stride, context_stride;
    int32_t position;           /* of the first row */
    int32_t rows, heads;        /* rows * heads <= ATTEND_VECTORS */
    int32_t head_dim;
    float *scratch;             /* [attend_scratch_floats(head_dim)] aligned to 64 bytes */
} Attention;

/* Query vectors that attention takes together, and to spare: the last of its registers may reach so far. */
enum { ATTEND_VECTORS = 64, ATTEND_SPARE = 16 };
enum { CHUNK_BLOCKS = 16, CHUNK_TOKENS = CHUNK_BLOCKS * KV_BLOCK_SIZE };

/* ---- a KV tile's layout, kv_cache.py ---- */

static inline int32_t kv_value_stride(int32_t head_dim) {
    return (int32_t)round_up(head_dim, TILE_N);
}

/* Bytes of 16 elements of the values of a bf16 tile. */
enum { KV_COLUMN_BYTES = KV_BLOCK_SIZE * TILE_N * 2 };

/* Bytes before the values of an int8 tile, and before its scales. */
static inline int64_t kv_int8_values(int32_t head_dim) {
    return round_up(head_dim, 4) * KV_BLOCK_SIZE;
}

static inline int64_t kv_int8_scales(int32_t head_dim) {
    return kv_int8_values(head_dim) + KV_BLOCK_SIZE * kv_value_stride(head_dim);
}

/* What all query vectors pass over before they do over the next: so many blocks of keys, or so many floats of values and
 * less than a block more. Of heads of 64 either stays in L1. */
enum { MOST_BLOCKS_TOGETHER = 4, VALUES_TOGETHER = 4096 };

/* For each query vector: query and context, weights, their codes, the softmax's denominators, eight numbers; and such keys
 * or values as float32. */
static inline int64_t attend_scratch_floats(int32_t head_dim) {
    const int64_t stride = kv_value_stride(head_dim);
    return (ATTEND_VECTORS + ATTEND_SPARE) * (2 * round_up(head_dim, 32) + CHUNK_TOKENS + CHUNK_TOKENS / 2 + 16 + 8) +
           larger_of(MOST_BLOCKS_TOGETHER * KV_BLOCK_SIZE * stride, VALUES_TOGETHER + KV_BLOCK_SIZE * stride);
}

typedef struct {
    const char *level;
    void (*matmul[NUM_FORMATS])(const Matmul *); /* by the weights' format */
    /* rows begin .. end - 1 of m->x -> halves[split_bytes(rows, k)], which the matmul of bf16 reads; NULL where the level
     * takes the rows as they are */
    void (*split)(const Matmul *m, int32_t begin, int32_t end, uint8_t *halves);
    /* y[k] = x[k] / sqrt(mean(x^2) + eps) * gain[k] */
    void (*rms_norm)(const float *x, const float *gain, int32_t k, float eps, float *y);
    /* one row: x[k] -> codes[k], scales[groups], sums[groups][SUBGROUPS] */
    void (*quantize)(const float *x, int32_t k, int8_t *codes, float *scales, int32_t *sums);
    /* x[heads][head_dim] in place, halves convention; angles: the cosines [head_dim / 2], then the sines */
    void (*rotate)(float *x, int32_t heads, const float *angles, int32_t head_dim);
    /* one token's key[head_dim] and value[head_dim], rounded, into its tile; by the KV cache's format, as `attend` */
    void (*store_kv[NUM_KV_FORMATS])(const float *key, const float *value, int32_t head_dim, uint8_t *tile, int32_t token);
    /* each of list[count], whose heads are of one size */
    void (*attend[NUM_KV_FORMATS])(const Attention *list, int32_t count);
    /* the largest of x[n]; NaNs are passed over */
    float (*max)(const float *x, int32_t n);
    /* the first i of the largest x[n], -1 where none is above -infinity */
    int32_t (*argmax)(const float *x, int32_t n);
    /* y[i] = exp(x[i] - shift); returns the sum in double, over fixed chunks */
    double (*exp_sum)(const float *x, int32_t n, float shift, float *y);
    /* a plain prefetched read of `bytes`, in blocks of 256, what a bandwidth limit is measured with */
    uint64_t (*read)(const uint8_t *x, int64_t bytes, const Fetch *fetch);
    /* `macs` multiply-adds or a little more of the level's own dot product on operands in registers, by the weights'
     * format; returns those done. What a peak is measured with */
    int64_t (*peak[NUM_FORMATS])(int64_t macs);
    /* weights[rows][k], at most 16 rows -> a strip; whether all are finite. By the format; NULL where it is not quantised */
    int (*pack[NUM_FORMATS])(const float *weights, int32_t rows, int32_t k, uint8_t *strip);
} KernelTable;

extern const KernelTable kernels_base;
#ifdef __x86_64__
extern const KernelTable kernels_avx2;
extern const KernelTable kernels_avxvnni;
extern const KernelTable kernels_avx512;
extern const KernelTable kernels_amx;
#elif defined(__aarch64__)
extern const KernelTable kernels_dotprod;
#endif

#endif
