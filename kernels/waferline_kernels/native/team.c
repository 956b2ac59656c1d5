#define _GNU_SOURCE
#include "team.h"

#include <sched.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "gate.h"

enum { SPINS = 1000 }; /* some ten microseconds: the usual imbalance within a step */

typedef struct {
    Team *team;
    int worker;
    pthread_t thread;
} Member;

struct Team {
    int num_workers;
    int spins;
    int *cpus;
    Member *members; /* [num_workers]; member 0 is the caller */
    Job job;
    void *context;
    _Atomic int stopping;
    Gate start;   /* opened for each job */
    Gate barrier; /* opened by the last to arrive */
    _Alignas(64) _Atomic int arrived;
};

static void pin(int cpu) {
#ifdef __linux__
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set); /* a refusal costs speed, never correctness */
#else
    (void)cpu;
#endif
}

static int available_cpus(void) {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
}

static void *member_main(void *argument) {
    Member *self = argument;
    Team *team = self->team;
    if (team->cpus) pin(team->cpus[self->worker]);
    for (uint32_t seen = 0;; seen++) {
        gate_wait(&team->start, seen, team->spins);
        if (atomic_load(&team->stopping)) return NULL;
        team->job(team->context, self->worker);
        team_barrier(team);
    }
}

Team *team_create(int num_workers, const int *cpus) {
    Team *team = aligned_alloc(64, (sizeof *team + 63) / 64 * 64);
    if (!team) return NULL;
    *team = (Team){.num_workers = num_workers, .spins = num_workers <= available_cpus() ? SPINS : 0};
    gate_init(&team->start);
    gate_init(&team->barrier);
    team->members = calloc(num_workers, sizeof *team->members);
    team->cpus = cpus ? malloc(num_workers * sizeof *cpus) : NULL;
    for (int w = 0; cpus && w < num_workers; w++) team->cpus[w] = cpus[w];
    for (int w = 1; w < num_workers; w++) {
        team->members[w] = (Member){.team = team, .worker = w};
        if (pthread_create(&team->members[w].thread, NULL, member_main, &team->members[w]) != 0) {
            team->num_workers = w;
            team_destroy(team);
            return NULL;
        }
    }
    return team;
}

void team_destroy(Team *team) {
    atomic_store(&team->stopping, 1);
    gate_open(&team->start);
    for (int w = 1; w < team->num_workers; w++) pthread_join(team->members[w].thread, NULL);
    gate_destroy(&team->start);
    gate_destroy(&team->barrier);
    free(team->members);
    free(team->cpus);
    free(team);
}

int team_leaves_cpu(const Team *team) {
    return team->num_workers < available_cpus();
}

void team_attach(Team *team) {
    if (team->cpus) pin(team->cpus[0]);
}

void team_run(Team *team, Job job, void *context) {
    team->job = job;
    team->context = context;
    if (team->num_workers > 1) gate_open(&team->start);
    job(context, 0);
    team_barrier(team);
}

/* The generation is the barrier's sense: it is read before arriving, and the last to arrive moves it on. */
void team_barrier(Team *team) {
    if (team->num_workers == 1) return;
    uint32_t seen = atomic_load_explicit(&team->barrier.generation, memory_order_relaxed);
    if (atomic_fetch_add(&team->arrived, 1) + 1 == team->num_workers) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        gate_open(&team->barrier);
    } else {
        gate_wait(&team->barrier, seen, team->spins);
    }
}

double team_seconds(Team *team, Job job, void *context) {
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    team_run(team, job, context);
    clock_gettime(CLOCK_MONOTONIC, &end);
    return (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
}
