/* Sixteen columns, as wide as a strip, in as many vectors of LANES as the level's registers need.
 *
 * A vector has C's operators; EACH(p) writes an operation out for the parts of a Float16 or Int16. The lanes of all levels
 * do the same operations in the same order. */
#ifndef WAFERLINE_KERNEL_TYPES_H
#define WAFERLINE_KERNEL_TYPES_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "waferline.h"

enum { PARTS = 16 / LANES };

typedef float FloatV __attribute__((vector_size(4 * LANES)));
typedef int32_t IntV __attribute__((vector_size(4 * LANES)));
typedef uint32_t UintV __attribute__((vector_size(4 * LANES)));
typedef int16_t ShortV __attribute__((vector_size(4 * LANES)));
typedef int8_t CodeV __attribute__((vector_size(LANES)));
typedef uint16_t HalfV __attribute__((vector_size(2 * LANES)));
typedef uint8_t ByteV __attribute__((vector_size(LANES)));

typedef struct {
    FloatV v[PARTS];
} Float16;
typedef struct {
    IntV v[PARTS];
} Int16;

#define INLINE static inline __attribute__((always_inline))

/* Loops written out, so that arrays become registers: those of at most so many turns wholly, or so many turns at a time. */
#define PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define UNROLL(most) PRAGMA(clang loop unroll(full))
#define UNROLL_BY(turns) PRAGMA(clang loop unroll_count(turns))
#else
#define UNROLL(most) PRAGMA(GCC unroll most)
#define UNROLL_BY(turns) PRAGMA(GCC unroll turns)
#endif
#define EACH(p) UNROLL(4) for (int p = 0; p < PARTS; p++)

/* Four activations in every lane. */
INLINE IntV broadcast_four(const void *a) {
    int32_t four;
    memcpy(&four, a, 4);
    return four - (IntV){0};
}

#endif
