/* What the machine reads: the limit that every figure is held against. */
#ifndef WAFERLINE_BANDWIDTH_H
#define WAFERLINE_BANDWIDTH_H

#include "executor.h"

/* Seconds that `num_workers` threads take to read `bytes` in all (each its own equal part), `sweeps` times over. Negative
 * where memory or threads cannot be had. `cpus` as in team_create; the calling thread stays pinned to the first. */
double measure_read(const KernelTable *kernels, int num_workers, const int *cpus, int64_t bytes, int sweeps);

/* The same of the weights that an executor's steps sweep, each worker its own; the calling thread is worker 0. */
double measure_weights_read(Executor *e, int sweeps);

#endif
