/* The one sampler: what waferline_kernels/sampling.py states in numpy. */
#ifndef WAFERLINE_SAMPLE_H
#define WAFERLINE_SAMPLE_H

#include "constrain.h"
#include "kernels.h"

/* A worker's scratch: for each token of the vocabulary. */
typedef struct {
    float *logits;   /* [vocab, padded to 16] after penalties */
    float *weights;  /* [vocab, padded to 16] */
    int32_t *ids;    /* [vocab] a heap of candidates */
    int32_t *counts; /* [vocab] zero between calls */
} SampleScratch;

/* Whether the token that follows `num_tokens` others is that of the largest logit: greedy, with nothing to change them. */
int takes_largest(const Sampling *params, int32_t num_tokens);
/* The token that follows `tokens`[num_tokens], from `logits`[vocab]. */
int32_t sample_token(const KernelTable *kernels, const float *logits, int32_t vocab, const SamplingRules *rules,
                     const int32_t *tokens, int32_t num_tokens, SampleScratch *scratch);
/* Fill the entry with the logprob and rank of its token and the `num_top` most likely ones. */
void score_token(const KernelTable *kernels, const float *logits, int32_t vocab, int32_t num_top, Entry *entry,
                 SampleScratch *scratch);

#endif
