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
} Ring;

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

#endif
