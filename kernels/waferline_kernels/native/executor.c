#include "executor.h"

#include "instructions.h"

/* Up to here every worker prepares all rows for itself: cheaper than a barrier. */
enum { PRIVATE_ROWS = 4 };

static const Activations *activations(const Executor *e, int worker, int32_t rows) {
    return rows <= PRIVATE_ROWS ? &e->workers[worker].act : &e->act;
}

/* ---- instructions: each does one worker's part; others are in instructions.h ---- */

/* NORM and QUANTIZE over rows begin .. end - 1 of what the instruction reads. */
static void prepare_rows(const Executor *e, const Instruction *i, int worker, const Activations *act, Range range) {
    for (int64_t r = range.begin; r < range.end; r++) {
        const int64_t row = i->wanted_rows ? e->wanted[r] : r;
        const float *x = e->buffers[i->src] + row * e->strides[i->src];
        float *normed = i->group ? e->workers[worker].act.x : act->x + r * e->strides[BUFFER_ACT]; /* nobody reads it again */
        if (i->op == OP_NORM) {
            e->kernels->rms_norm(x, e->tensors[i->weight].table, i->k, i->eps, normed);
            x = normed;
        }
        const QuantizedRows *q = &act->quantized;
        if (i->group)
            e->kernels->quantize(x, i->k, q->codes + r * q->codes_stride, q->scales + r * q->groups_stride,
                                 q->sums + r * q->groups_stride * SUBGROUPS);
    }
}

/* Whether the rows were shared out, so that a barrier must follow. */
static int prepare(const Executor *e, const Instruction *i, int worker) {
    const int32_t rows = i->wanted_rows ? e->num_wanted : e->num_rows;
    const int is_shared = rows > PRIVATE_ROWS;
    prepare_rows(e, i, worker, activations(e, worker, rows), is_shared ? share_of(rows, worker, e->num_workers) : (Range){0, rows});
    return is_shared;
}

/* Bring m's rows into the form that the level multiplies bf16 by; few of them every worker for itself. */
static void split_rows(const Executor *e, Matmul *m, const Activations *act, int worker) {
    const int is_shared = m->rows > PRIVATE_ROWS;
    const Range range = is_shared ? share_of(m->rows, worker, e->num_workers) : (Range){0, m->rows};
    e->kernels->split(m, range.begin, range.end, act->halves);
    m->halves = act->halves;
    if (is_shared) team_barrier(e->team);
}

static int row_takes_largest(const Executor *e, int32_t wanted) {
    const Row *row = &e->rows[e->wanted[wanted]];
    return takes_largest(&e->sequences.sampling[row->slot], row->position + 1);
}

/* Search logits [num_wanted][logits' stride] of columns begin .. end - 1 for larger ones than the worker has found so far. */
static void find_largest(const Executor *e, int worker, const float *logits, int32_t begin, int32_t end) {
    Largest *largest = e->workers[worker].largest;
    for (int32_t w = 0; w < e->num_wanted && begin < end; w++, logits += e->strides[BUFFER_LOGITS]) {
        if (!row_takes_largest(e, w)) continue;
        const int32_t i = e->kernels->argmax(logits, end - begin);
        if (i >= 0 && (largest[w].column < 0 || logits[i] > largest[w].logit)) largest[w] = (Largest){begin + i, logits[i]};
    }
}

/* Some strips at a time, whose logits are searched while they are in the core's L2: fetching them again, or what another
 * worker has stored, costs more than all of the search. `first`: the first strip's number. */
static void multiply_logits(const Executor *e, Matmul *m, void (*kernel)(const Matmul *), int32_t first, int worker) {
    enum { CACHED_LOGITS = 1 << 16, LEAST_STRIPS = 32 };
    const int32_t fitting = CACHED_LOGITS / TILE_N / (m->rows > 0 ? m->rows : 1) / 2 * 2, last = first + m->count;
    const int32_t strips = fitting > LEAST_STRIPS ? fitting : LEAST_STRIPS;
    for (int32_t w = 0; w < e->num_wanted; w++) e->workers[worker].largest[w].column = -1;
    for (; first < last; first += strips) {
        m->count = last - first < strips ? last - first : strips;
        const int32_t begin = first * TILE_N, end = begin + m->count * TILE_N;
        kernel(m);
        find_largest(e, worker, m->dst, begin, end < e->dims.vocab ? end : e->dims.vocab);
        m->strips += strips * m->strip_bytes;
        m->dst += strips * TILE_N;
        if (m->bias) m->bias += strips * TILE_N;
    }
}

static void multiply(const Executor *e, const Instruction *i, int worker) {
    const Tensor *tensor = &e->tensors[i->weight];
    const Share *share = &e->shares[i->weight * e->num_workers + worker];
    const int32_t rows = i->wanted_rows ? e->num_wanted : e->num_rows, column = share->first * TILE_N;
    const Activations *act = activations(e, worker, rows);
    Matmul m = { /* every field, or the compiler clears them all first */
        .strips = e->workers[worker].arena + share->offset,
        .count = share->count,
        .strip_bytes = tensor->strip_bytes,
        .k = tensor->k,
        .rows = rows,
        .epilogue = i->epilogue,
        .fetch = e->workers[worker].fetch,
        .x = i->src == BUFFER_ACT ? act->x : e->buffers[i->src],
        .x_stride = e->strides[i->src],
        .act = act->quantized,
        .halves = NULL,
        .scratch = e->workers[worker].scratch,
        .bias = i->bias < 0 ? NULL : e->tensors[i->bias].table + column,
        .dst = e->buffers[i->dst] + i->dst_column + (i->epilogue == EPILOGUE_SILU_MUL ? column / 2 : column),
        .dst_stride = e->strides[i->dst],
    };
    if (tensor->format == FORMAT_BF16 && e->kernels->split) split_rows(e, &m, act, worker);
    if (i->op == OP_LOGITS)
        multiply_logits(e, &m, e->kernels->matmul[tensor->format], share->first, worker);
    else
        e->kernels->matmul[tensor->format](&m);
}

/* Of the workers' columns, which ascend with the workers: ties go to the lowest. */
static int32_t largest_of_all(const Executor *e, int32_t wanted) {
    Largest best = {-1};
    for (int w = 0; w < e->num_workers; w++) {
        const Largest other = e->workers[w].largest[wanted];
        if (other.column >= 0 && (best.column < 0 || other.logit > best.logit)) best = other;
    }
    return best.column < 0 ? 0 : best.column; /* any token will do */
}

static void sample_row(Executor *e, int32_t wanted, SampleScratch *scratch) {
    const Row *row = &e->rows[e->wanted[wanted]];
    Sequences *s = &e->sequences;
    const Sampling *params = &s->sampling[row->slot];
    const float *logits = e->buffers[BUFFER_LOGITS] + wanted * e->strides[BUFFER_LOGITS];
    const int32_t *tokens = s->tokens + (int64_t)row->slot * e->limits.max_model_len;
    const int32_t position = row->position + 1;
    Entry *entry = ring_slot(&e->ring, wanted);
    *entry = (Entry){.slot = row->slot, .position = position, .is_prompt = position < s->num_tokens[row->slot]};
    entry->num_top = entry->is_prompt ? params->num_prompt_logprobs : params->num_logprobs;
    if (entry->is_prompt) {
        entry->token = tokens[position];
    } else { /* not yet written where a draft may lie that other rows are sampled after */
        const SamplingRules rules = {params, &s->constraints[row->slot], s->allowed_ids + row->slot * s->mask_words};
        entry->token = row_takes_largest(e, wanted)
                           ? largest_of_all(e, wanted)
                           : sample_token(e->kernels, logits, e->dims.vocab, &rules, tokens, position, scratch);
        const int32_t num_output = position + 1 - params->num_prompt_tokens;
        if (num_output >= params->max_tokens || position + 1 >= e->limits.max_model_len) entry->finish = FINISH_LENGTH;
        /* a stop id is drawn before that where no other token may be */
        for (int i = 0; i < params->num_stop_ids && num_output >= params->min_tokens; i++)
            if (entry->token == params->stop_ids[i]) entry->finish = FINISH_STOP;
    }
    if (entry->num_top >= 0) score_token(e->kernels, logits, e->dims.vocab, entry->num_top, entry, scratch);
}

/* Ask for the first of the worker's strips that instruction n or one soon after it multiplies by: they come while the team
 * meets, and while rows are prepared. */
static void prefetch_strips(const Executor *e, int32_t n, int worker) {
    enum { BYTES = 4096 };
    while (n < e->num_instructions && e->instructions[n].op != OP_MATMUL && e->instructions[n].op != OP_LOGITS) n++;
    if (n == e->num_instructions) return;
    const int32_t weight = e->instructions[n].weight;
    const Share *share = &e->shares[weight * e->num_workers + worker];
    const uint8_t *strips = e->workers[worker].arena + share->offset;
    const int64_t bytes = share->count * e->tensors[weight].strip_bytes;
    for (int64_t i = 0; i < bytes && i < BYTES; i += LINE_BYTES) __builtin_prefetch(strips + i);
}

static void run_step(void *context, int worker) {
    Executor *e = context;
    int64_t *profile = worker == 0 ? e->profile : NULL;
    for (int32_t n = 0; n < e->num_instructions; n++) {
        const Instruction *i = &e->instructions[n];
        const int64_t begin = profile ? gate_now_ns() : 0;
        int must_meet = 1;
        switch (i->op) {
        case OP_EMBED: embed(e, i, worker); break;
        case OP_NORM:
        case OP_QUANTIZE: must_meet = prepare(e, i, worker); break;
        case OP_MATMUL:
        case OP_LOGITS: multiply(e, i, worker); break;
        case OP_ROTARY: rotate_and_store(e, i, worker); break;
        case OP_ATTEND: attend(e, i, worker); break;
        case OP_SAMPLE:
            for (int32_t w = worker; w < e->num_wanted; w += e->num_workers) sample_row(e, w, &e->workers[worker].sample);
            must_meet = 0; /* the end of the job is a meeting */
            break;
        }
        const int64_t done = profile ? gate_now_ns() : 0;
        if (must_meet) {
            if (i->op != OP_NORM && i->op != OP_QUANTIZE) prefetch_strips(e, n + 1, worker);
            team_barrier(e->team);
        }
        if (profile) {
            profile[2 * n] += done - begin;
            profile[2 * n + 1] += gate_now_ns() - done;
        }
    }
}

/* ---- steps ---- */

/* Lay out the spans' rows; the slot of a token id outside the vocabulary, or -1. */
static int32_t lay_out_rows(Executor *e) {
    e->num_rows = e->num_wanted = 0;
    for (int32_t s = 0; s < e->num_spans; s++) {
        const Span *span = &e->spans[s];
        for (int32_t j = 0; j < span->count; j++) {
            const int32_t position = span->start + j;
            const int32_t token = e->sequences.tokens[(int64_t)span->slot * e->limits.max_model_len + position];
            if (token < 0 || token >= e->dims.vocab) return span->slot;
            if (j >= span->count - span->num_logits) e->wanted[e->num_wanted++] = e->num_rows;
            e->rows[e->num_rows++] = (Row){span->slot, position, token};
        }
    }
    return -1;
}

/* Append a sampled token; whether the next row's counts too: this one is its draft, and does not end the sequence. */
static int append(Executor *e, const Entry *entry) {
    int32_t *token = e->sequences.tokens + (int64_t)entry->slot * e->limits.max_model_len + entry->position;
    const int is_right = *token == entry->token && entry->finish == FINISH_NONE;
    *token = entry->token;
    e->sequences.num_tokens[entry->slot] = entry->position + 1;
    return is_right;
}

/* Append and publish the step's tokens, but for those that follow a wrong draft; whether a sequence finished. */
static int publish(Executor *e) {
    const int64_t now = gate_now_ns();
    int finished = 0;
    int32_t num_published = 0;
    for (int32_t s = 0, w = 0; s < e->num_spans; s++) {
        const int32_t end = w + e->spans[s].num_logits;
        for (int goes_on = 1; w < end && goes_on; w++) {
            Entry *entry = ring_slot(&e->ring, num_published++);
            if (num_published <= w) *entry = *ring_slot(&e->ring, w);
            entry->time_ns = now;
            if (!entry->is_prompt) goes_on = append(e, entry);
            finished |= entry->finish != FINISH_NONE;
        }
        w = end;
    }
    ring_publish(&e->ring, num_published);
    return finished;
}

/* Why the run must end after the step at hand, or -1; advances the spans to the tokens just sampled. */
static int32_t advance(Executor *e) {
    Sequences *s = &e->sequences;
    int32_t reason = -1;
    for (int32_t n = 0; n < e->num_spans; n++) {
        Span *span = &e->spans[n];
        const int32_t next = span->start + span->count;
        if (__atomic_load_n(&s->stop_flags[span->slot], __ATOMIC_RELAXED)) return STOP_STOPPED;
        if (s->num_tokens[span->slot] != next + 1) reason = STOP_STEPS;
        else if (next >= s->num_blocks[span->slot] * KV_BLOCK_SIZE && reason < 0) reason = STOP_OUT_OF_BLOCKS;
        *span = (Span){span->slot, next, 1, 1};
    }
    if (__atomic_load_n(s->wake, __ATOMIC_RELAXED)) return STOP_WAKE;
    if (reason < 0 && e->ring.capacity - ring_waiting(&e->ring) < e->num_spans) return STOP_RING_FULL;
    return reason;
}

Outcome executor_run(Executor *e, int32_t max_steps) {
    Outcome outcome = {.reason = STOP_STEPS, .bad_slot = lay_out_rows(e)};
    if (outcome.bad_slot >= 0) return outcome;
    if (e->ring.capacity - ring_waiting(&e->ring) < e->num_wanted) {
        outcome.reason = STOP_RING_FULL;
        return outcome;
    }
    const int64_t begin = gate_now_ns();
    for (;;) {
        team_run(e->team, run_step, e);
        outcome.num_steps++;
        const int finished = publish(e);
        const int32_t reason = finished ? STOP_FINISHED : advance(e);
        if (reason >= 0 || outcome.num_steps == max_steps) {
            outcome.reason = reason >= 0 ? reason : STOP_STEPS;
            break;
        }
        lay_out_rows(e); /* sampled tokens are within the vocabulary */
    }
    outcome.nanoseconds = gate_now_ns() - begin;
    return outcome;
}
