#include "constrain.h"

#include <math.h>
#include <string.h>

enum { MASK_BITS = 32 };

static int is_allowed(const uint32_t *mask, int32_t token) {
    return mask[token / MASK_BITS] >> token % MASK_BITS & 1;
}

static void ban_bad_words(float *z, const SamplingRules *rules, const int32_t *output, int32_t num_output) {
    const int32_t *word = rules->constraints->bad_words;
    for (int32_t i = 0; i < rules->params->num_bad_words; i++) {
        const int32_t prefix = word[0] - 1; /* tokens before the last one */
        if (prefix <= num_output && memcmp(word + 1, output + num_output - prefix, prefix * sizeof *word) == 0)
            z[word[1 + prefix]] = -INFINITY;
        word += 1 + word[0];
    }
}

void constrain(float *z, int32_t vocab, const SamplingRules *rules, const int32_t *output, int32_t num_output) {
    const Sampling *params = rules->params;
    if (params->has_allowed_ids)
        for (int32_t i = 0; i < vocab; i++)
            if (!is_allowed(rules->allowed_ids, i)) z[i] = -INFINITY;
    ban_bad_words(z, rules, output, num_output);
    if (num_output < params->min_tokens)
        for (int32_t i = 0; i < params->num_stop_ids; i++) z[params->stop_ids[i]] = -INFINITY;
    for (int32_t i = 0; i < params->num_logit_bias; i++)
        z[rules->constraints->bias_ids[i]] += rules->constraints->bias_values[i];
}

int32_t lowest_allowed(const SamplingRules *rules, int32_t vocab) {
    if (rules->params->has_allowed_ids)
        for (int32_t i = 0; i < vocab; i++)
            if (is_allowed(rules->allowed_ids, i)) return i;
    return 0;
}
