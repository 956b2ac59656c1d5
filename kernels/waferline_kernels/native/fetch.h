/* How a sweep of weights asks for the lines ahead of its reads. Only its speed depends on it. */
#ifndef WAFERLINE_FETCH_H
#define WAFERLINE_FETCH_H

#include <stdint.h>

enum {
    FETCH_NONE,  /* left to the processor */
    FETCH_L1,    /* lines some bytes ahead */
    FETCH_L1_L2, /* those, and lines L2_BYTES ahead into L2 */
    FETCH_L2,    /* lines some bytes ahead, into L2 alone */
};
enum { NEAR_BYTES = 512, L2_BYTES = 3 << 10 };

/* What serves a sweep best. */
typedef struct {
    int32_t one_row, rows, read; /* of a single row, of several (FETCH_L1, FETCH_L2, or NONE for pairs of strips on levels
                                  * that have them and FETCH_L2 on others), of a plain read: a limit is the most to be had */
    int32_t one_ahead, rows_ahead, read_ahead; /* bytes */
    int32_t long_strip; /* a single row leaves strips of so many bytes and more to the processor, but for q4's */
    int32_t paired_strip; /* strips of so many bytes and more it takes two at a time, asking for none, but for q4's */
} Fetch;

/* For a worker that sweeps `bytes`, of `total_bytes` that all workers sweep. */
Fetch choose_fetch(int64_t bytes, int64_t total_bytes);

#endif
