#include "bandwidth.h"

#include <stdlib.h>

#include "arena.h"

typedef struct {
    const KernelTable *kernels;
    uint8_t **parts; /* [num_workers] of part_bytes each */
    int64_t part_bytes;
    int sweeps;
    Fetch fetch;
    volatile uint64_t sink; /* keeps the reads from being optimised away */
} Sweep;

typedef struct {
    const Executor *executor;
    int sweeps;
    volatile uint64_t sink;
} WeightsSweep;

static void touch_part(void *context, int worker) {
    Sweep *s = context;
    arena_touch(s->parts[worker], s->part_bytes);
}

static void read_part(void *context, int worker) {
    Sweep *s = context;
    uint64_t sum = 0;
    for (int i = 0; i < s->sweeps; i++) sum ^= s->kernels->read(s->parts[worker], s->part_bytes, &s->fetch);
    s->sink = sum;
}

static void read_swept(void *context, int worker) {
    WeightsSweep *s = context;
    const Worker *own = &s->executor->workers[worker];
    uint64_t sum = 0;
    for (int i = 0; i < s->sweeps; i++) sum ^= s->executor->kernels->read(own->arena, own->swept_bytes, &own->fetch);
    s->sink = sum;
}

double measure_weights_read(Executor *e, int sweeps) {
    WeightsSweep s = {.executor = e, .sweeps = sweeps};
    return team_seconds(e->team, read_swept, &s);
}

double measure_read(const KernelTable *kernels, int num_workers, const int *cpus, int64_t bytes, int sweeps) {
    Sweep s = {.kernels = kernels, .part_bytes = round_up(bytes / num_workers, 256), .sweeps = 1};
    s.fetch = choose_fetch(s.part_bytes, bytes);
    Team *team = team_create(num_workers, cpus);
    s.parts = calloc(num_workers, sizeof *s.parts);
    int has_memory = team && s.parts;
    for (int w = 0; has_memory && w < num_workers; w++) has_memory = (s.parts[w] = arena_create(s.part_bytes)) != NULL;
    double seconds = -1.0;
    if (has_memory) {
        team_attach(team);
        team_run(team, touch_part, &s);
        team_run(team, read_part, &s); /* once unmeasured, into the caches */
        s.sweeps = sweeps;
        seconds = team_seconds(team, read_part, &s);
    }
    for (int w = 0; s.parts && w < num_workers; w++) arena_destroy(s.parts[w], s.part_bytes);
    free(s.parts);
    if (team) team_destroy(team);
    return seconds;
}
