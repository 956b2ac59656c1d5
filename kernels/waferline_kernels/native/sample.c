#include "sample.h"

#include <math.h>
#include <string.h>

#include "philox.h"

static void penalize(float *z, int32_t vocab, const SamplingRules *rules, const int32_t *tokens, int32_t num_tokens, int32_t *counts) {
    const Sampling *params = rules->params;
    const int32_t num_prompt = params->num_prompt_tokens;
    constrain(z, vocab, rules, tokens + num_prompt, num_tokens - num_prompt);
    if (params->repetition_penalty != 1.0f) {
        for (int i = 0; i < num_tokens; i++) {
            const int32_t t = tokens[i];
            if (counts[t]++ == 0) z[t] = z[t] > 0 ? z[t] / params->repetition_penalty : z[t] * params->repetition_penalty;
        }
        for (int i = 0; i < num_tokens; i++) counts[tokens[i]] = 0;
    }
    if (params->frequency_penalty != 0.0f || params->presence_penalty != 0.0f) {
        for (int i = num_prompt; i < num_tokens; i++) counts[tokens[i]]++;
        for (int i = num_prompt; i < num_tokens; i++) {
            const int32_t t = tokens[i];
            if (counts[t] > 0) z[t] = z[t] - ((float)counts[t] * params->frequency_penalty + params->presence_penalty);
            counts[t] = 0;
        }
    }
}

int takes_largest(const Sampling *params, int32_t num_tokens) {
    return params->temperature == 0.0f && params->repetition_penalty == 1.0f && params->frequency_penalty == 0.0f &&
           params->presence_penalty == 0.0f && num_tokens - params->num_prompt_tokens >= params->min_tokens &&
           !params->has_allowed_ids && !params->num_bad_words && !params->num_logit_bias;
}

/* A heap of token ids, the best on top: the larger value, then the lower id. */
static int is_better(const float *z, int32_t a, int32_t b) {
    return z[a] > z[b] || (z[a] == z[b] && a < b);
}

static void sift_down(int32_t *heap, int32_t size, int32_t at, const float *z) {
    for (;;) {
        int32_t best = at, left = 2 * at + 1;
        if (left < size && is_better(z, heap[left], heap[best])) best = left;
        if (left + 1 < size && is_better(z, heap[left + 1], heap[best])) best = left + 1;
        if (best == at) return;
        const int32_t swap = heap[at];
        heap[at] = heap[best];
        heap[best] = swap;
        at = best;
    }
}

static void heapify(int32_t *heap, int32_t size, const float *z) {
    for (int32_t at = size / 2 - 1; at >= 0; at--) sift_down(heap, size, at, z);
}

/* Take the best id; it moves to heap[size - 1], so that those taken lie behind the heap, the best last. */
static int32_t pop(int32_t *heap, int32_t size, const float *z) {
    const int32_t best = heap[0];
    heap[0] = heap[size - 1];
    heap[size - 1] = best;
    sift_down(heap, size - 1, 0, z);
    return best;
}

enum { DRAW_BLOCK = 64 };

/* Of a block; in chains, for one after the other they would wait for each other longer than exp_sum takes to make them. */
static double sum_of_block(const float *weights) {
    enum { CHAINS = 8 };
    double sums[CHAINS] = {0.0};
    for (int i = 0; i < DRAW_BLOCK; i += CHAINS)
        for (int c = 0; c < CHAINS; c++) sums[c] += weights[i + c];
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

/* Draw in proportion to the weights, in the order of the ids: first the block, then in it. */
static int32_t draw_any(const float *weights, int32_t vocab, double total, double u) {
    const double target = u * total;
    double cumulative = 0.0;
    int32_t i = 0;
    for (; i + DRAW_BLOCK <= vocab; i += DRAW_BLOCK) {
        const double after = cumulative + sum_of_block(weights + i);
        if (after > target) break;
        cumulative = after;
    }
    for (; i < vocab; i++) {
        cumulative += weights[i];
        if (cumulative > target && weights[i] > 0.0f) return i;
    }
    /* Beyond the end: `total` was rounded otherwise than the sum is here. */
    if (cumulative < total) return draw_any(weights, vocab, cumulative, u);
    for (i = vocab - 1; i > 0 && weights[i] == 0.0f;) i--;
    return i;
}

/* Draw among the best: at most top_k, and no more than reach top_p of their sum. */
static int32_t draw_best(const float *z, const float *weights, int32_t vocab, double total, const Sampling *params, double u,
                         int32_t *heap) {
    int32_t size = 0;
    for (int32_t i = 0; i < vocab; i++)
        if (weights[i] > 0.0f) heap[size++] = i;
    if (size == 0) return 0;
    heapify(heap, size, z);
    const int32_t limit = params->top_k > 0 && params->top_k < size ? params->top_k : size;
    int32_t kept = 0;
    double sum = 0.0;
    if (limit < size) { /* top_p is a share of the top_k's sum */
        total = 0.0;
        for (; kept < limit; kept++) total += weights[pop(heap, size - kept, z)];
        kept = 0;
        while (kept < limit && (kept == 0 || sum < params->top_p * total)) sum += weights[heap[size - 1 - kept++]];
    } else {
        while (kept < limit && (kept == 0 || sum < params->top_p * total)) sum += weights[pop(heap, size - kept++, z)];
    }
    const double target = u * sum;
    double cumulative = 0.0;
    for (int32_t i = 0; i < kept; i++) {
        cumulative += weights[heap[size - 1 - i]];
        if (cumulative > target) return heap[size - 1 - i];
    }
    return heap[size - kept];
}

int32_t sample_token(const KernelTable *kernels, const float *logits, int32_t vocab, const SamplingRules *rules,
                     const int32_t *tokens, int32_t num_tokens, SampleScratch *scratch) {
    const Sampling *params = rules->params;
    float *z = scratch->logits, *weights = scratch->weights;
    memcpy(z, logits, (size_t)vocab * sizeof *z);
    penalize(z, vocab, rules, tokens, num_tokens, scratch->counts);
    if (params->temperature == 0.0f) {
        const int32_t best = kernels->argmax(z, vocab);
        return best < 0 ? lowest_allowed(rules, vocab) : best;
    }
    const float largest = kernels->max(z, vocab);
    if (largest == -INFINITY) return lowest_allowed(rules, vocab);
    for (int32_t i = 0; i < vocab && params->temperature != 1.0f; i++) z[i] = z[i] / params->temperature;
    double total = kernels->exp_sum(z, vocab, largest / params->temperature, weights);
    if (!isfinite(total)) { /* a logit is NaN, which is never drawn, or the largest is infinite */
        for (int32_t i = 0; i < vocab; i++)
            if (isnan(z[i])) z[i] = -INFINITY;
        if (isinf(largest / params->temperature)) {
            const int32_t best = kernels->argmax(z, vocab);
            return best < 0 ? lowest_allowed(rules, vocab) : best;
        }
        total = kernels->exp_sum(z, vocab, largest / params->temperature, weights);
    }
    if (params->min_p > 0.0f) {
        total = 0.0;
        for (int32_t i = 0; i < vocab; i++) {
            if (weights[i] < params->min_p) weights[i] = 0.0f;
            total += weights[i];
        }
    }
    const double u = philox_uniform(params->seed, (uint32_t)params->completion_index, (uint32_t)num_tokens);
    if (params->top_k <= 0 && params->top_p >= 1.0f) return draw_any(weights, vocab, total, u);
    return draw_best(z, weights, vocab, total, params, u, scratch->ids);
}

void score_token(const KernelTable *kernels, const float *logits, int32_t vocab, int32_t num_top, Entry *entry,
                 SampleScratch *scratch) {
    const float largest = kernels->max(logits, vocab);
    const float log_sum = (float)log(kernels->exp_sum(logits, vocab, largest, scratch->weights));
    const float chosen = logits[entry->token];
    entry->num_top = num_top < vocab ? num_top : vocab;
    entry->rank = 1;
    for (int32_t i = 0; i < vocab; i++) {
        entry->rank += logits[i] > chosen;
        scratch->ids[i] = i;
    }
    entry->logprob = chosen - largest - log_sum;
    if (entry->num_top == 0) return;
    heapify(scratch->ids, vocab, logits);
    for (int32_t i = 0; i < entry->num_top; i++) {
        const int32_t id = pop(scratch->ids, vocab - i, logits);
        entry->top_ids[i] = id;
        entry->top_logprobs[i] = logits[id] - largest - log_sum;
    }
}
