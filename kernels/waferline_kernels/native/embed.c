/* EMBED: rows of the embedding, gathered from strips of any format. */
#include <string.h>

#include "instructions.h"

static const uint8_t *find_strip(const Executor *e, int32_t tensor, int32_t strip) {
    for (int w = 0; w < e->num_workers; w++) {
        const Share *share = &e->shares[tensor * e->num_workers + w];
        if (strip >= share->first && strip < share->first + share->count)
            return e->workers[w].arena + share->offset + (strip - share->first) * e->tensors[tensor].strip_bytes;
    }
    return NULL; /* not reached: a placement covers every strip */
}

static float bfloat16_to_float(uint16_t half) {
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* One weight of a strip; see tiles.py. */
static inline float weight_at(const int format, const uint8_t *strip, int64_t k, int column) {
    if (format == FORMAT_F32) return ((const float *)strip)[k * TILE_N + column];
    if (format == FORMAT_BF16) return bfloat16_to_float(((const uint16_t *)strip)[k / 2 * 32 + column * 2 + k % 2]);
    const int is_q8 = format == FORMAT_Q8, block = is_q8 ? Q8_BLOCK_LINES : Q4_BLOCK_LINES;
    const int64_t line = k / (is_q8 ? Q8_LINE_K : Q4_LINE_K);
    const uint8_t *scale_line = strip + line / block * (block + 1) * LINE_BYTES;
    const uint8_t code = strip[(line + line / block + 1) * LINE_BYTES + column * 4 + k % 4];
    const float scale = bfloat16_to_float(((const uint16_t *)scale_line)[(is_q8 ? k / GROUP % 2 : 0) * TILE_N + column]);
    if (is_q8) return (float)(int8_t)code * scale;
    const int64_t subgroup = k % GROUP / SUBGROUP;
    const int below = (scale_line[(2 + subgroup / 2) * TILE_N + column] >> (subgroup % 2 * 4) & 15) - MAX_SUBSCALE;
    const int weight = (k % 8 < 4 ? code & 15 : code >> 4) - Q4_ZERO_POINT;
    return (float)(weight * (below + (below >= 0))) * scale;
}

/* A row of the embedding is a column of its strip: one weight in 64 bytes, so the workers share out K. What pads the row is
 * cleared: sums that overflowed in the step before may have made it NaN. */
void embed(const Executor *e, const Instruction *i, int worker) {
    const Tensor *tensor = &e->tensors[i->weight];
    const Range range = share_of(tensor->k, worker, e->num_workers);
    for (int32_t r = 0; r < e->num_rows; r++) {
        const uint8_t *strip = find_strip(e, i->weight, e->rows[r].token / TILE_N);
        const int column = e->rows[r].token % TILE_N;
        float *x = e->buffers[BUFFER_X] + r * e->strides[BUFFER_X];
        switch (tensor->format) { /* constants where weight_at is inlined: its divisions become shifts */
#define GATHER(format) \
    case format: for (int64_t k = range.begin; k < range.end; k++) x[k] = weight_at(format, strip, k, column); break;
            GATHER(FORMAT_F32)
            GATHER(FORMAT_BF16)
            GATHER(FORMAT_Q8)
            GATHER(FORMAT_Q4)
#undef GATHER
        }
        for (int64_t k = tensor->k; worker == 0 && k < e->strides[BUFFER_X]; k++) x[k] = 0.0f;
    }
}
