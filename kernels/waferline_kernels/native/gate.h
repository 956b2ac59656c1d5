/* A gate: threads wait until its generation moves on. They spin briefly, then yield, then sleep, so a wait is short where
 * the other side is running and costs no CPU where it is not. */
#ifndef WAFERLINE_GATE_H
#define WAFERLINE_GATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

typedef struct {
    _Alignas(64) _Atomic uint32_t generation;
    _Atomic int32_t sleepers;
    pthread_mutex_t mutex;
    pthread_cond_t moved;
} Gate;

void gate_init(Gate *gate);
void gate_destroy(Gate *gate);
/* Move on and wake whoever sleeps. */
void gate_open(Gate *gate);
/* Return once the generation differs from `seen`, after `spins` looks without giving the CPU away. */
void gate_wait(Gate *gate, uint32_t seen, int spins);
/* The same, in naps of `nap_ns` that whoever opens the gate does not have to end, until CLOCK_MONOTONIC says `end_ns`;
 * whether the generation moved. */
int gate_nap(Gate *gate, uint32_t seen, int64_t end_ns, int32_t nap_ns);
/* The same, sleeping at once, for `nanoseconds` at most; whether the generation moved. */
int gate_sleep(Gate *gate, uint32_t seen, int64_t nanoseconds);
/* CLOCK_MONOTONIC. */
int64_t gate_now_ns(void);

#endif
