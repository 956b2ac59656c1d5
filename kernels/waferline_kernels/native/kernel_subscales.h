/* Subscales of q4 in vectors of eight. */
#ifndef WAFERLINE_KERNEL_SUBSCALES_H
#define WAFERLINE_KERNEL_SUBSCALES_H

#include <immintrin.h>

#include "kernel_types.h"

/* Those of a group: as int16 with 0 above, or as pairs of equal int16. */
INLINE void spread_subscales(const uint8_t *scale_line, Int16 *subscales, const int are_pairs) {
    const __m128i values = _mm_setr_epi8(-8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8), nibble = _mm_set1_epi8(15);
    UNROLL(4)
    for (int s = 0; s < SUBGROUPS; s++) {
        const __m128i pairs = _mm_loadu_si128((const __m128i *)(scale_line + (2 + s / 2) * TILE_N));
        const __m128i bytes = _mm_shuffle_epi8(values, _mm_and_si128(_mm_srli_epi16(pairs, s % 2 * 4), nibble));
        EACH(p) { /* to the upper bytes, then down with their signs */
            const __m256i columns = _mm256_set1_epi64x(p * 0x0808080808080808);
            const __m256i first = _mm256_setr_epi32(0x00800080, 0x01800180, 0x02800280, 0x03800380, 0x04800480, 0x05800580,
                                                    0x06800680, 0x07800780);
            const __m256i above = _mm256_set1_epi32(are_pairs ? 0 : (int)0x80800000); /* where shuffling gives 0 */
            const __m256i from = _mm256_or_si256(_mm256_add_epi8(first, columns), above);
            subscales[s].v[p] = (IntV)_mm256_srai_epi16(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), from), 8);
        }
    }
}

#endif
