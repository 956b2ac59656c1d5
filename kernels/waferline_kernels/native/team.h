/* A persistent team of threads. The caller of team_run is worker 0; the others sleep between jobs. */
#ifndef WAFERLINE_TEAM_H
#define WAFERLINE_TEAM_H

typedef struct Team Team;
typedef void (*Job)(void *context, int worker);

/* `cpus` holds a CPU for each worker, or is NULL to leave that to the system. NULL where threads cannot be had. */
Team *team_create(int num_workers, const int *cpus);
void team_destroy(Team *team);
/* Whether the process may use more CPUs than the team has workers. */
int team_leaves_cpu(const Team *team);
/* Pin the calling thread to worker 0's CPU, where the team has CPUs. */
void team_attach(Team *team);
/* Run `job` on every worker; returns when all are done. */
void team_run(Team *team, Job job, void *context);
/* The same; how many seconds it took. */
double team_seconds(Team *team, Job job, void *context);
/* Within a job: wait until every worker has come here. */
void team_barrier(Team *team);

#endif
