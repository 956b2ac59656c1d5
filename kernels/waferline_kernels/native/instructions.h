/* Instructions that have a file of their own. Each function does one worker's part; between two stands a barrier. */
#ifndef WAFERLINE_INSTRUCTIONS_H
#define WAFERLINE_INSTRUCTIONS_H

#include "executor.h"

typedef struct {
    int64_t begin, end;
} Range;

static inline Range share_of(int64_t count, int worker, int num_workers) {
    return (Range){count * worker / num_workers, count * (worker + 1) / num_workers};
}

/* EMBED: the rows' tokens become vectors. */
void embed(const Executor *e, const Instruction *i, int worker);

/* ROTARY: queries and keys are rotated, keys and values stored. */
void rotate_and_store(const Executor *e, const Instruction *i, int worker);

/* ATTEND: queries over what is stored. */
void attend(const Executor *e, const Instruction *i, int worker);

#endif
