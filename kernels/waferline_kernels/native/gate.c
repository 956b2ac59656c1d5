#include "gate.h"

#include <sched.h>
#include <time.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

/* Waking a sleeper takes some 100 us on a virtual machine, a third of a small model's step, so a thread that has nothing to
 * do gives its CPU to whoever wants it, but sleeps only once the wait is long beside that. */
static const int64_t YIELD_NS = 2000000, SECOND_NS = 1000000000;
enum { NAP_SLACK_NS = 1000 }; /* by default a nap may last 50 us longer than asked for */

int64_t gate_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND_NS + t.tv_nsec;
}

static inline void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#ifdef __APPLE__ /* which has no condition variables on another clock than the time of day, but relative waits */
static void init_condition(pthread_cond_t *moved) {
    pthread_cond_init(moved, NULL);
}

static void wait_until(Gate *gate, int64_t end_ns) {
    const int64_t left = end_ns - gate_now_ns();
    const struct timespec relative = {.tv_sec = left / SECOND_NS, .tv_nsec = left % SECOND_NS};
    if (left > 0) pthread_cond_timedwait_relative_np(&gate->moved, &gate->mutex, &relative);
}
#else
static void init_condition(pthread_cond_t *moved) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(moved, &attributes);
    pthread_condattr_destroy(&attributes);
}

static void wait_until(Gate *gate, int64_t end_ns) {
    const struct timespec end = {.tv_sec = end_ns / SECOND_NS, .tv_nsec = end_ns % SECOND_NS};
    pthread_cond_timedwait(&gate->moved, &gate->mutex, &end);
}
#endif

void gate_init(Gate *gate) {
    atomic_init(&gate->generation, 0);
    atomic_init(&gate->sleepers, 0);
    pthread_mutex_init(&gate->mutex, NULL);
    init_condition(&gate->moved);
}

void gate_destroy(Gate *gate) {
    pthread_mutex_destroy(&gate->mutex);
    pthread_cond_destroy(&gate->moved);
}

/* No wake-up is lost: a sleeper counts itself before it looks at the generation, an opener moves the generation before it
 * looks at the count, and both are sequentially consistent. */
void gate_open(Gate *gate) {
    atomic_fetch_add(&gate->generation, 1);
    if (atomic_load(&gate->sleepers) > 0) {
        pthread_mutex_lock(&gate->mutex);
        pthread_cond_broadcast(&gate->moved);
        pthread_mutex_unlock(&gate->mutex);
    }
}

int gate_nap(Gate *gate, uint32_t seen, int64_t end_ns, int32_t nap_ns) {
#ifdef __linux__
    prctl(PR_SET_TIMERSLACK, NAP_SLACK_NS);
#endif
    const struct timespec nap = {.tv_nsec = nap_ns};
    for (; gate_now_ns() < end_ns; nanosleep(&nap, NULL))
        if (atomic_load_explicit(&gate->generation, memory_order_acquire) != seen) return 1;
    return atomic_load_explicit(&gate->generation, memory_order_acquire) != seen;
}

void gate_wait(Gate *gate, uint32_t seen, int spins) {
    for (int i = 0; i < spins; i++) {
        if (atomic_load_explicit(&gate->generation, memory_order_acquire) != seen) return;
        pause_cpu();
    }
    for (const int64_t end = gate_now_ns() + YIELD_NS; gate_now_ns() < end; sched_yield())
        if (atomic_load_explicit(&gate->generation, memory_order_acquire) != seen) return;
    pthread_mutex_lock(&gate->mutex);
    atomic_fetch_add(&gate->sleepers, 1);
    while (atomic_load(&gate->generation) == seen) pthread_cond_wait(&gate->moved, &gate->mutex);
    atomic_fetch_sub(&gate->sleepers, 1);
    pthread_mutex_unlock(&gate->mutex);
}

int gate_sleep(Gate *gate, uint32_t seen, int64_t nanoseconds) {
    const int64_t end = gate_now_ns() + nanoseconds;
    pthread_mutex_lock(&gate->mutex);
    atomic_fetch_add(&gate->sleepers, 1);
    while (atomic_load(&gate->generation) == seen && gate_now_ns() < end) wait_until(gate, end);
    atomic_fetch_sub(&gate->sleepers, 1);
    pthread_mutex_unlock(&gate->mutex);
    return atomic_load(&gate->generation) != seen;
}
