/* dotprod (Armv8.2 with the dot product; Cortex-A76 and Neoverse N1 2018): sdot takes four signed products of each column into
 * its int32, 16 bytes of weights an instruction (two a cycle on those, four on larger cores; latency 3 to 4). Thirty-two
 * registers hold the sums of four rows, a line and their activations. */
#include <arm_neon.h>

#define LEVEL dotprod
#define LEVEL_NAME "dotprod"
#define LEVEL_MAX_ROWS 4
#define ATTEND_ROWS 4
#define ATTEND_COLUMNS(rows) (4 / (rows))
#define LANES 4
#define LEVEL_HAS_NEON
#include "kernel_types.h"

enum { LEVEL_CHAINS = 4, LINES_TOGETHER = 1, LINES_UNROLL = 1, SUBGROUPS_UNROLL = 1 };
enum { Q8_OFFSET = 0, HAS_Q4_OFFSETS = 1 };

typedef struct {
    int8x16_t codes[PARTS]; /* [16 columns][4 K]; of q4 without their zero point taken off */
} Line;

INLINE Line load_q8(const uint8_t *codes) {
    Line line;
    EACH(p) line.codes[p] = vld1q_s8((const int8_t *)codes + 16 * p);
    return line;
}

INLINE Line load_q4_high(const uint8_t *codes) {
    Line line;
    EACH(p) line.codes[p] = vreinterpretq_s8_u8(vshrq_n_u8(vld1q_u8(codes + 16 * p), 4));
    return line;
}

INLINE Line load_q4_low(const uint8_t *codes) {
    Line line;
    EACH(p) line.codes[p] = vandq_s8(vld1q_s8((const int8_t *)codes + 16 * p), vdupq_n_s8(15));
    return line;
}

INLINE void load_q4(const uint8_t *codes, Line *high, Line *low) {
    *high = load_q4_high(codes);
    *low = load_q4_low(codes);
}

INLINE Int16 add_line(Int16 isum, Line line, const int8_t *a) {
    const int8x16_t activations = (int8x16_t)broadcast_four(a);
    EACH(p) isum.v[p] = (IntV)vdotq_s32((int32x4_t)isum.v[p], line.codes[p], activations);
    return isum;
}

INLINE Int16 add_signed_line(Int16 isum, const uint8_t *line, const uint8_t *a) {
    return add_line(isum, load_q8(line), (const int8_t *)a);
}

INLINE int32_t q4_offset(int32_t sum) {
    return -Q4_ZERO_POINT * sum;
}

INLINE Int16 add_q4_line(Int16 sums, Line line, const int8_t *a) {
    return add_line(sums, line, a);
}

INLINE Int16 add_high(Int16 high, Int16 low) {
    EACH(p) high.v[p] = high.v[p] + low.v[p];
    return high;
}

INLINE void load_subscales(const uint8_t *scale_line, Int16 *subscales) {
    static const int8_t values[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8};
    UNROLL(4)
    for (int s = 0; s < SUBGROUPS; s++) {
        const uint8x16_t pairs = vld1q_u8(scale_line + (2 + s / 2) * TILE_N);
        const int8x16_t columns = vqtbl1q_s8(vld1q_s8(values), s % 2 ? vshrq_n_u8(pairs, 4) : vandq_u8(pairs, vdupq_n_u8(15)));
        const int16x8_t first = vmovl_s8(vget_low_s8(columns)), second = vmovl_high_s8(columns);
        subscales[s].v[0] = (IntV)vmovl_s16(vget_low_s16(first));
        subscales[s].v[1] = (IntV)vmovl_high_s16(first);
        subscales[s].v[2] = (IntV)vmovl_s16(vget_low_s16(second));
        subscales[s].v[3] = (IntV)vmovl_high_s16(second);
    }
}

INLINE Int16 add_scaled(Int16 isum, Int16 sums, Int16 subscales) {
    EACH(p) isum.v[p] = isum.v[p] + sums.v[p] * subscales.v[p];
    return isum;
}

#include "kernel_body.h"
