#include "limits.h"

#include <stdatomic.h>

#include "team.h"

typedef struct {
    int64_t (*peak)(int64_t);
    int64_t macs;
    _Atomic int64_t done; /* of all workers */
} Loop;

static void run_loop(void *context, int worker) {
    Loop *l = context;
    (void)worker;
    atomic_fetch_add(&l->done, l->peak(l->macs));
}

typedef struct {
    Team *team;
    int count;
} Barriers;

static void wait_at_barriers(void *context, int worker) {
    Barriers *b = context;
    (void)worker;
    for (int i = 0; i < b->count; i++) team_barrier(b->team);
}

double measure_peak(const KernelTable *kernels, int num_workers, const int *cpus, int format, int64_t macs) {
    Loop l = {.peak = kernels->peak[format], .macs = macs};
    Team *team = team_create(num_workers, cpus);
    if (!team) return -1.0;
    team_attach(team);
    team_run(team, run_loop, &l); /* once unmeasured: wide vectors take the clock a while to settle */
    l.done = 0;
    const double seconds = team_seconds(team, run_loop, &l);
    team_destroy(team);
    return (double)l.done / seconds;
}

double measure_barrier(int num_workers, const int *cpus, int count) {
    Barriers b = {.team = team_create(num_workers, cpus), .count = count};
    if (!b.team) return -1.0;
    team_attach(b.team);
    team_run(b.team, wait_at_barriers, &b); /* once unmeasured: the threads wake */
    const double seconds = team_seconds(b.team, wait_at_barriers, &b);
    team_destroy(b.team);
    return seconds / count;
}
