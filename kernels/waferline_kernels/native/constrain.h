/* Which tokens a sequence may take: allowed ids, bad words, min_tokens, logit bias. */
#ifndef WAFERLINE_CONSTRAIN_H
#define WAFERLINE_CONSTRAIN_H

#include "waferline.h"

/* A slot's rows of what says how its tokens are sampled. */
typedef struct {
    const Sampling *params;
    const Constraints *constraints;
    const uint32_t *allowed_ids; /* [vocab / 32, rounded up] */
} SamplingRules;

/* Mask and bias the logits z[vocab] for what follows `output`[num_output], the completion so far. */
void constrain(float *z, int32_t vocab, const SamplingRules *rules, const int32_t *output, int32_t num_output);
/* The lowest of the allowed ids, 0 where none were given. */
int32_t lowest_allowed(const SamplingRules *rules, int32_t vocab);

#endif
