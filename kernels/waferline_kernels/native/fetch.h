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
    FETCH_NEXT_L2, /* the next two strips' lines, into L2 alone */
};
enum { NEAR_BYTES = 512, L2_BYTES = 3 << 10, FAR_L2_BYTES = 8 << 10 };

/* What serves a single row best whose worker sweeps `bytes`, of `total_bytes` that all workers sweep: one of the first four. */
int choose_fetch(int64_t bytes, int64_t total_bytes);

#endif
