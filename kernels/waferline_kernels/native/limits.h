/* What the machine computes, and what meeting costs its threads: the limits beside its bandwidth. */
#ifndef WAFERLINE_LIMITS_H
#define WAFERLINE_LIMITS_H

#include "kernels.h"

/* Multiply-adds a second of `num_workers` threads, each doing `macs` of them with the level's own dot product for weights
 * of `format`. Negative where threads cannot be had. `cpus` as in team_create; the calling thread stays pinned to the first. */
double measure_peak(const KernelTable *kernels, int num_workers, const int *cpus, int format, int64_t macs);
/* Seconds of a barrier of `num_workers` threads that meet `count` times with nothing to do between; negative as above. */
double measure_barrier(int num_workers, const int *cpus, int count);

#endif
