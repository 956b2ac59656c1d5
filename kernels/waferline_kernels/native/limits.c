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
} Meetings;

static void meet(void *context, int worker) {
    Meetings *m = context;
    (void)worker;
    for (int i = 0; i < m->count; i++) team_barrier(m->team);
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
    Meetings m = {.team = team_create(num_workers, cpus), .count = count};
    if (!m.team) return -1.0;
    team_attach(m.team);
    team_run(m.team, meet, &m); /* once unmeasured: the threads wake */
    const double seconds = team_seconds(m.team, meet, &m);
    team_destroy(m.team);
    return seconds / count;
}
