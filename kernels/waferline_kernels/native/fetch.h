/* How a sweep of weights asks for the lines ahead of its reads. Only its speed depends on it. */
#ifndef WAFERLINE_FETCH_H
#define WAFERLINE_FETCH_H

#include <stdint.h>

/* FETCH_NONE leaves it to the processor. */
enum { FETCH_NONE, FETCH_L1, FETCH_L1_L2, FETCH_L2, FETCH_FAR_L2, FETCH_NEXT_L2 };
/* How far ahead: into L1, or into L2 alone; into L2 as well; far. FETCH_NEXT_L2 asks for the next two strips. */
enum { NEAR_BYTES = 512, L2_BYTES = 3 << 10, FAR_L2_BYTES = 8 << 10 };

/* What serves a worker best that sweeps `bytes`, of `total_bytes` that all workers sweep: none of the last two. */
int choose_fetch(int64_t bytes, int64_t total_bytes);

#endif
