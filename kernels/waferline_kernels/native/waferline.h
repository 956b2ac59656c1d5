/* The structures that Python and C share. Each mirrors a numpy dtype of waferline_kernels (program.py, placement.py,
 * sequences.py, constraints.py, ring.py); the bindings compare their sizes when they are imported. */
#ifndef WAFERLINE_H
#define WAFERLINE_H

#include <stdint.h>

enum { TILE_N = 16, KV_BLOCK_SIZE = 16, MAX_HEAD_DIM = 512 };
enum { MAX_STOP_IDS = 64, MAX_LOGIT_BIAS = 300, MAX_BAD_WORD_TOKENS = 1024, MAX_LOGPROBS = 20 };
enum { FORMAT_F32, FORMAT_Q8, FORMAT_BF16, FORMAT_Q4, NUM_FORMATS };
enum { KV_F32, KV_BF16, KV_INT8, NUM_KV_FORMATS };
enum { GROUP = 128, SUBGROUP = 32, SUBGROUPS = GROUP / SUBGROUP, Q4_ZERO_POINT = 8, MAX_SUBSCALE = 8 };
enum { LINE_BYTES = 64, BF16_LINE_K = 2, Q8_LINE_K = 4, Q4_LINE_K = 8 };
enum { OP_EMBED, OP_NORM, OP_QUANTIZE, OP_MATMUL, OP_ROTARY, OP_ATTEND, OP_LOGITS, OP_SAMPLE };
enum { EPILOGUE_STORE, EPILOGUE_ADD, EPILOGUE_SILU_MUL };
enum { BUFFER_X, BUFFER_ACT, BUFFER_QKV, BUFFER_CTX, BUFFER_FFN, BUFFER_LOGITS, NUM_BUFFERS };
enum { FINISH_NONE, FINISH_STOP, FINISH_LENGTH };
enum { STOP_STEPS, STOP_FINISHED, STOP_STOPPED, STOP_OUT_OF_BLOCKS, STOP_WAKE, STOP_RING_FULL };

#define MIN_QUANTIZED 1e-30f /* tiles.MIN_ACTIVATION_MAX: what is all below has the scale 0 */

typedef struct {
    int32_t op, epilogue, src, dst, weight, bias, layer, k, n, group, wanted_rows, dst_column;
    float eps;
} Instruction;

typedef struct {
    int32_t first, count; /* strips */
    int64_t offset;       /* bytes into the worker's arena */
} Share;

typedef struct {
    int32_t slot, start, count, num_logits;
} Span;

typedef struct {
    float temperature, top_p, min_p, presence_penalty, frequency_penalty, repetition_penalty;
    int32_t top_k, num_logprobs, num_prompt_logprobs, num_prompt_tokens, min_tokens, max_tokens;
    int32_t completion_index, num_stop_ids, has_allowed_ids, num_bad_words, num_logit_bias;
    uint64_t seed;
    int32_t stop_ids[MAX_STOP_IDS];
} Sampling;

/* Read where Sampling says how much of it is in use. */
typedef struct {
    int32_t bias_ids[MAX_LOGIT_BIAS];
    float bias_values[MAX_LOGIT_BIAS];
    int32_t bad_words[MAX_BAD_WORD_TOKENS]; /* of each word how many tokens it has, then those tokens */
} Constraints;

typedef struct {
    int32_t slot, position, token, is_prompt, finish, num_top, rank;
    float logprob;
    int64_t time_ns;
    int32_t top_ids[MAX_LOGPROBS];
    float top_logprobs[MAX_LOGPROBS];
} Entry;

typedef struct {
    int32_t hidden, layers, heads, kv_heads, head_dim, ffn, vocab;
} Dims;

typedef struct {
    int32_t n, k, format, is_table;
    int64_t strip_bytes;
    const float *table; /* [n][table_stride] where is_table: the rows padded with zeros to whole vectors */
    int64_t table_stride;
} Tensor;

/* Lines of a quantised strip that are led by one line of scales; see tiles.py. */
enum { Q8_BLOCK_LINES = 2 * GROUP / Q8_LINE_K, Q4_BLOCK_LINES = GROUP / Q4_LINE_K };

static inline int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

#endif
