/* The ring in C: the same as ring.py's, with the step loop as its producer. */
#ifndef WAFERLINE_RING_H
#define WAFERLINE_RING_H

#include "gate.h"
#include "waferline.h"

typedef struct {
    Entry *entries; /* [capacity] */
    int64_t capacity;
    _Atomic int64_t head, tail; /* ever published, ever drained */
    Gate published;
    int64_t step_ns; /* that the consumer waited for a step, the last time it did */
    int has_own_cpu;  /* whether the consumer has: a CPU is left that no worker needs */
} Ring;

/* Where steps take no longer than NAPPING_NS a consumer looks for the next tokens between naps: ending a sleep would cost
 * the step loop some 10 us a token on a virtual machine. Without a CPU of its own it takes one from a worker, for which all
 * workers wait: so it naps longer, and takes the tokens of several steps. */
enum { NAPPING_NS = 250000, SHORT_NAP_NS = 10000, LONG_NAP_NS = 1000000 };

static inline int64_t ring_waiting(Ring *ring) {
    return atomic_load(&ring->head) - atomic_load(&ring->tail);
}

/* The entry that the i-th unpublished token goes to. */
static inline Entry *ring_slot(Ring *ring, int64_t i) {
    return &ring->entries[(atomic_load_explicit(&ring->head, memory_order_relaxed) + i) % ring->capacity];
}

static inline void ring_publish(Ring *ring, int64_t count) {
    if (count == 0) return;
    atomic_fetch_add(&ring->head, count);
    gate_open(&ring->published);
}

/* The consumer's: return once something waits, after `nanoseconds` at most. */
static inline void ring_wait(Ring *ring, int64_t nanoseconds) {
    const uint32_t seen = atomic_load(&ring->published.generation);
    if (ring_waiting(ring) > 0) return;
    const int64_t begin = gate_now_ns();
    const int32_t nap = ring->has_own_cpu ? SHORT_NAP_NS : LONG_NAP_NS;
    if (ring->step_ns > NAPPING_NS || !gate_nap(&ring->published, seen, begin + NAPPING_NS, nap))
        gate_sleep(&ring->published, seen, nanoseconds);
    const uint32_t steps = atomic_load(&ring->published.generation) - seen;
    ring->step_ns = (gate_now_ns() - begin) / (steps > 0 ? steps : 1);
}

#endif
