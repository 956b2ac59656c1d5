/* How a sweep of weights asks for the lines ahead of its reads. Only its speed depends on it. */
#ifndef WAFERLINE_FETCH_H
#define WAFERLINE_FETCH_H

#include <stdint.h>

enum {
    FETCH_NONE,    /* left to the processor */
    FETCH_L1,      /* lines NEAR_BYTES ahead */
    FETCH_L1_L2,   /* those, and lines L2_BYTES ahead into L2 */
    FETCH_L2,      /* lines NEAR_BYTES ahead, into L2 alone */
    FETCH_FAR_L2,  /* lines FAR_L2_BYTES ahead, into L2 alone */
    FETCH_NEXT_L2, /* two strips further on, into L2 alone */
};
enum { NEAR_BYTES = 512, L2_BYTES = 3 << 10, FAR_L2_BYTES = 8 << 10 };

typedef struct {
    int32_t one_row; /* what serves a single row best: one of the first four */
    int32_t rows;    /* and several: FETCH_NONE, FETCH_L1 or FETCH_FAR_L2 */
} Fetch;

/* For a worker that sweeps `bytes`, of `total_bytes` that all workers sweep. */
Fetch choose_fetch(int64_t bytes, int64_t total_bytes);

#endif
