/* The native executor: runs programs over batches with a team of workers, many steps without Python between them. */
#ifndef WAFERLINE_EXECUTOR_H
#define WAFERLINE_EXECUTOR_H

#include "kernels.h"
#include "ring.h"
#include "sample.h"
#include "team.h"

typedef struct {
    int32_t max_num_seqs, max_model_len, max_num_batched_tokens, max_num_logits, num_kv_blocks, max_blocks_per_seq;
} Limits;

/* sequences.SequenceTable */
typedef struct {
    int32_t *tokens;       /* [max_num_seqs][max_model_len] */
    int32_t *num_tokens;   /* [max_num_seqs] */
    int32_t *block_tables; /* [max_num_seqs][max_blocks_per_seq] */
    int32_t *num_blocks;   /* [max_num_seqs] */
    Sampling *sampling;    /* [max_num_seqs] */
    Constraints *constraints; /* [max_num_seqs] */
    uint32_t *allowed_ids; /* [max_num_seqs][mask_words] */
    int64_t mask_words;
    int32_t *stop_flags;   /* [max_num_seqs] raised by other threads */
    int32_t *wake;         /* [1] raised by other threads */
} Sequences;

typedef struct {
    float *x;           /* [max_num_batched_tokens][act_stride] */
    QuantizedRows quantized;
    uint8_t *halves;    /* [split_bytes(max_num_batched_tokens, the largest K)], NULL where the level does not split rows */
} Activations;

typedef struct {
    int32_t column; /* -1: none is above -infinity */
    float logit;
} Largest;

/* What one worker alone reads or writes. */
typedef struct {
    uint8_t *arena; /* its strips: [swept_bytes] in execution order, then those that rows are only gathered from */
    int64_t swept_bytes;
    Fetch fetch;
    Activations act; /* for the few rows that every worker prepares for itself */
    SampleScratch sample;
    uint8_t *scratch; /* [scratch_bytes(most rows, the largest K)] of matmuls */
    Largest *largest; /* [max_num_logits] each row's of its columns */
    float *attention; /* [attend_scratch_floats] */
} Worker;

typedef struct {
    int32_t slot, position, token;
} Row;

typedef struct {
    const KernelTable *kernels;
    Team *team;
    Dims dims;
    Limits limits;
    int num_workers;
    Tensor *tensors;      /* [num_tensors] */
    const Share *shares;  /* [num_tensors][num_workers] */
    Worker *workers;      /* [num_workers] */
    Activations act;      /* shared by all workers */
    float *buffers[NUM_BUFFERS]; /* [rows][strides[buffer]]; the logits' rows are the wanted ones */
    int64_t strides[NUM_BUFFERS];
    uint8_t *kv;          /* [layers][num_kv_blocks][kv_heads][kv_tile] */
    int32_t kv_format;
    int64_t kv_tile;      /* bytes */
    Sequences sequences;
    Ring ring;

    /* the step at hand */
    const Instruction *instructions;
    int32_t num_instructions;
    int64_t *profile;     /* [num_instructions][2] where not NULL: nanoseconds that worker 0 worked and waited, added up */
    Row *rows;            /* [max_num_batched_tokens] */
    int32_t *wanted;      /* [max_num_logits] rows whose logits are wanted */
    Span *spans;          /* [max_num_seqs] */
    int32_t num_rows, num_wanted, num_spans;
} Executor;

typedef struct {
    int32_t num_steps, reason, bad_slot;
    int64_t nanoseconds;
} Outcome;

/* Run the program over the executor's spans, `max_steps` steps at most. Where a row's token id lies outside the vocabulary
 * its slot is reported as `bad_slot` (else -1) and nothing runs. */
Outcome executor_run(Executor *e, int32_t max_steps);

#endif
