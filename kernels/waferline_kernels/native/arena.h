/* Arenas: large zeroed blocks of memory on huge pages where the system has them. */
#ifndef WAFERLINE_ARENA_H
#define WAFERLINE_ARENA_H

#include <stdint.h>

/* Zeroed, aligned to 2 MiB; pages come when they are first touched. NULL where memory cannot be had. */
void *arena_create(int64_t bytes);
void arena_destroy(void *arena, int64_t bytes);
/* Touch every page from the calling thread, so that they lie near it. */
void arena_touch(void *arena, int64_t bytes);

#endif
