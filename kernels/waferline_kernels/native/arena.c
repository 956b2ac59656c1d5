#include "arena.h"

#include <stddef.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 2 << 20, PAGE = 4096, GUARD = 64 << 10 };

/* Kernels prefetch and load a little past the end of what they use: the guard keeps that inside the mapping. */
static int64_t mapped_bytes(int64_t bytes) {
    return (bytes + GUARD + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
}

void *arena_create(int64_t bytes) {
    const int64_t size = mapped_bytes(bytes);
    char *mapping = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return NULL;
    char *aligned = (char *)(((uintptr_t)mapping + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
    if (aligned > mapping) munmap(mapping, aligned - mapping);
    if (aligned < mapping + HUGE_PAGE) munmap(aligned + size, mapping + HUGE_PAGE - aligned);
#ifdef MADV_HUGEPAGE
    madvise(aligned, size, MADV_HUGEPAGE); /* a hint: without huge pages only speed is lost */
#endif
    return aligned;
}

void arena_destroy(void *arena, int64_t bytes) {
    if (arena) munmap(arena, mapped_bytes(bytes));
}

void arena_touch(void *arena, int64_t bytes) {
    volatile char *page = arena;
    for (int64_t i = 0; i < bytes; i += PAGE) page[i] = 0;
}
