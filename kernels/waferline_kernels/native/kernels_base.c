/* base: plain C with GCC/Clang vector extensions, for any processor.
 *
 * The dot product: weights are split into 16-bit even and odd halves; a pair of
 * products of |w| <= 128 and |a| <= 127 stays within 32,512, so it is summed in 16 bits before it is widened. Some dozen
 * instructions for 16 bytes of weights and a row. */
#define LEVEL base
#define LEVEL_NAME "base"
#define LEVEL_MAX_ROWS 2
#define ATTEND_ROWS 2
#define ATTEND_COLUMNS(rows) (2 / (rows))
#define LANES 4
#include "kernel_types.h"

/* 16 columns x 4 K of codes, ready to multiply: w[k = 0, 2] and w[k = 1, 3] of each column. */
typedef struct {
    ShortV even[PARTS], odd[PARTS];
} Line;

enum { LEVEL_CHAINS = 4, LINES_TOGETHER = 1, LINES_UNROLL = 4, SUBGROUPS_UNROLL = 4 };
enum { Q8_OFFSET = 0, HAS_Q4_OFFSETS = 0 };

INLINE Line load_q8(const uint8_t *codes) {
    Line line;
    EACH(p) {
        ShortV pairs;
        memcpy(&pairs, codes + 4 * LANES * p, sizeof pairs);
        line.even[p] = (pairs << 8) >> 8;
        line.odd[p] = pairs >> 8;
    }
    return line;
}

INLINE Line load_q4_half(const uint8_t *codes, const int shift) {
    Line line;
    EACH(p) {
        ShortV pairs;
        memcpy(&pairs, codes + 4 * LANES * p, sizeof pairs);
        line.even[p] = (pairs >> shift & 15) - Q4_ZERO_POINT;
        line.odd[p] = (pairs >> (8 + shift) & 15) - Q4_ZERO_POINT;
    }
    return line;
}

INLINE Line load_q4_low(const uint8_t *codes) {
    return load_q4_half(codes, 0);
}

INLINE Line load_q4_high(const uint8_t *codes) {
    return load_q4_half(codes, 4);
}

INLINE void load_q4(const uint8_t *codes, Line *high, Line *low) {
    *high = load_q4_high(codes);
    *low = load_q4_low(codes);
}

INLINE Int16 add_line(Int16 isum, Line line, const int8_t *a) {
    const IntV zero = {0};
    const ShortV even = (ShortV)(zero + (int32_t)((uint32_t)a[2] << 16 | (uint16_t)a[0]));
    const ShortV odd = (ShortV)(zero + (int32_t)((uint32_t)a[3] << 16 | (uint16_t)a[1]));
    EACH(p) {
        IntV sums = (IntV)(line.even[p] * even + line.odd[p] * odd);
        isum.v[p] = isum.v[p] + ((sums << 16) >> 16) + (sums >> 16);
    }
    return isum;
}

INLINE Int16 add_signed_line(Int16 isum, const uint8_t *line, const uint8_t *a) {
    return add_line(isum, load_q8(line), (const int8_t *)a);
}

INLINE int32_t q4_offset(int32_t sum) {
    (void)sum; /* load_q4_low and load_q4_high take the zero point off */
    return 0;
}

INLINE Int16 add_q4_line(Int16 sums, Line line, const int8_t *a) {
    return add_line(sums, line, a);
}

INLINE Int16 add_high(Int16 high, Int16 low) {
    EACH(p) high.v[p] = high.v[p] + low.v[p];
    return high;
}

/* Of the subgroups of a group, 16 columns each: -8..-1, 1..8. */
INLINE void load_subscales(const uint8_t *scale_line, Int16 *subscales) {
    UNROLL(4)
    for (int s = 0; s < SUBGROUPS; s++) EACH(p) {
            ByteV nibbles;
            memcpy(&nibbles, scale_line + (2 + s / 2) * TILE_N + p * sizeof nibbles, sizeof nibbles);
            const IntV below = (__builtin_convertvector(nibbles, IntV) >> (s % 2 * 4) & 15) - MAX_SUBSCALE;
            subscales[s].v[p] = below - (below >= 0);
        }
}

INLINE Int16 add_scaled(Int16 isum, Int16 sums, Int16 subscales) {
    EACH(p) isum.v[p] = isum.v[p] + sums.v[p] * subscales.v[p];
    return isum;
}

#include "kernel_body.h"
