/* ROTARY and ATTEND: what is done head by head, shared out so that a head stays with the core that uses it. */
#include "instructions.h"

static uint8_t *kv_tile(const Executor *e, int32_t layer, int32_t block, int32_t head) {
    return e->kv + (((int64_t)layer * e->limits.num_kv_blocks + block) * e->dims.kv_heads + head) * e->kv_tile;
}

static int64_t ceil_div(int64_t a, int64_t b) {
    return a > 0 ? (a + b - 1) / b : 0;
}

/* Of the line of (head, row), heads outermost, the heads of row r that lie in `part`. */
static Range heads_of_row(const Executor *e, Range part, int32_t r) {
    return (Range){ceil_div(part.begin - r, e->num_rows), ceil_div(part.end - r, e->num_rows)};
}

/* Shared out by heads, as attention is: what a worker writes is mostly what it reads then. */
void rotate_and_store(const Executor *e, const Instruction *i, int worker) {
    const Dims *d = &e->dims;
    const Tensor *rope = &e->tensors[i->weight];
    const Range queries = share_of((int64_t)d->heads * e->num_rows, worker, e->num_workers);
    const Range keys = share_of((int64_t)d->kv_heads * e->num_rows, worker, e->num_workers);
    for (int32_t r = 0; r < e->num_rows; r++) {
        const Row *row = &e->rows[r];
        const Range q = heads_of_row(e, queries, r), k = heads_of_row(e, keys, r);
        const int64_t block_at = (int64_t)row->slot * e->limits.max_blocks_per_seq + row->position / KV_BLOCK_SIZE;
        const int32_t block = e->sequences.block_tables[block_at];
        const float *angles = rope->table + row->position * rope->table_stride;
        float *qkv = e->buffers[BUFFER_QKV] + r * e->strides[BUFFER_QKV]; /* [q heads, k heads, v heads][head_dim] */
        float *key = qkv + (d->heads + k.begin) * d->head_dim;
        e->kernels->rotate(qkv + q.begin * d->head_dim, q.end - q.begin, angles, d->head_dim);
        e->kernels->rotate(key, k.end - k.begin, angles, d->head_dim);
        for (int32_t head = k.begin; head < k.end; head++, key += d->head_dim)
            e->kernels->store_kv[e->kv_format](key, key + d->kv_heads * d->head_dim, d->head_dim,
                                               kv_tile(e, i->layer, block, head), row->position % KV_BLOCK_SIZE);
    }
}

/* Rows of one sequence that attention computes together. */
static int32_t rows_together(const Executor *e) {
    const int32_t rows = ATTEND_VECTORS * e->dims.kv_heads / e->dims.heads;
    return rows > 0 ? rows : 1;
}

/* What a query head of `rows` rows from `position` on costs, about: tokens, and some for the rows themselves. */
static int64_t attention_cost(int32_t position, int32_t rows) {
    return (int64_t)rows * (position + rows + KV_BLOCK_SIZE);
}

/* What a worker attends to, some of it at a time. */
typedef struct {
    int32_t count;
    Attention list[64];
} Attentions;

static void attend_to_all(const Executor *e, Attentions *pending) {
    e->kernels->attend[e->kv_format](pending->list, pending->count);
    pending->count = 0;
}

/* Query heads first .. last - 1 of those that share `kv_head`, of `rows` rows from row `r` on. */
static void add_heads(const Executor *e, const Instruction *i, int worker, int32_t r, int32_t rows, int32_t kv_head,
                      int32_t first, int32_t last, Attentions *pending) {
    const Dims *d = &e->dims;
    const Row *row = &e->rows[r];
    for (int32_t end; first < last; first = end) {
        const int32_t head = kv_head * (d->heads / d->kv_heads) + first;
        end = last < first + ATTEND_VECTORS ? last : first + ATTEND_VECTORS;
        if (pending->count == sizeof pending->list / sizeof *pending->list) attend_to_all(e, pending);
        pending->list[pending->count++] = (Attention){
            .kv = kv_tile(e, i->layer, 0, kv_head),
            .block_stride = d->kv_heads * e->kv_tile,
            .block_table = e->sequences.block_tables + (int64_t)row->slot * e->limits.max_blocks_per_seq,
            .query = e->buffers[BUFFER_QKV] + r * e->strides[BUFFER_QKV] + head * d->head_dim,
            .context = e->buffers[BUFFER_CTX] + r * e->strides[BUFFER_CTX] + head * d->head_dim,
            .query_stride = e->strides[BUFFER_QKV],
            .context_stride = e->strides[BUFFER_CTX],
            .position = row->position,
            .rows = rows,
            .heads = end - first,
            .head_dim = d->head_dim,
            .scratch = e->workers[worker].attention,
        };
    }
}

/* `at` along a line of steps as long as `cost` that begins at `begin`: the first step from there on, at most `steps`. */
static int32_t step_from(int64_t at, int64_t begin, int64_t cost, int32_t steps) {
    const int64_t step = ceil_div(at - begin, cost);
    return (int32_t)(step < steps ? step : steps);
}

/* The work is a line of query heads for each (KV head, block of rows), KV heads outermost, each as long as it costs. A worker
 * does what begins within its even part of the line: so a KV head's keys and values stay with the core that uses them, step
 * after step, those of one row at most are read by two, and long and short contexts spread evenly. */
void attend(const Executor *e, const Instruction *i, int worker) {
    const int32_t together = rows_together(e), sharing = e->dims.heads / e->dims.kv_heads;
    int64_t head_cost = 0, before = 0; /* of a query head: all rows, those before */
    for (int32_t s = 0; s < e->num_spans; s++)
        for (int32_t j = 0; j < e->spans[s].count; j += together) {
            const int32_t left = e->spans[s].count - j;
            head_cost += attention_cost(e->spans[s].start + j, left < together ? left : together);
        }
    const Range line = share_of(e->dims.heads * head_cost, worker, e->num_workers);
    Attentions pending;
    pending.count = 0;
    for (int32_t s = 0, r = 0; s < e->num_spans; s++)
        for (int32_t j = 0; j < e->spans[s].count; j += together) {
            const int32_t left = e->spans[s].count - j, rows = left < together ? left : together;
            const int64_t cost = attention_cost(e->spans[s].start + j, rows);
            for (int32_t kv_head = 0; kv_head < e->dims.kv_heads; kv_head++) {
                const int64_t begin = sharing * (kv_head * head_cost + before);
                const int32_t first = step_from(line.begin, begin, cost, sharing);
                const int32_t last = step_from(line.end, begin, cost, sharing);
                add_heads(e, i, worker, r, rows, kv_head, first, last, &pending);
            }
            before += cost;
            r += rows;
        }
    attend_to_all(e, &pending);
}
