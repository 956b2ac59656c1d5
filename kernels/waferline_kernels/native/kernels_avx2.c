/* avx2 (x86-64-v3; Haswell 2013, Zen 2017).
 *
 * vpmaddubsw multiplies unsigned by signed bytes, adds pairs and saturates at 32,767. So in q8 the weight's sign is moved to
 * the activation (vpsignb): |w| <= 128 times |a| <= 127, two products stay within 32,512; vpmaddwd by ones widens. Four
 * instructions for 32 bytes of weights and a row; the load and vpabsb are shared by all rows.
 *
 * Codes of q4 are unsigned as they lie, and small: the 16 products of a subgroup that fall into one of 16 bits stay within
 * 30,480, zero points taken off or not, so that two instructions do for as many weights and vpmaddwd widens the sum over a
 * whole subgroup as it multiplies by subscales. */
#define LEVEL avx2
#define LEVEL_NAME "avx2"
#define LEVEL_MAX_ROWS 4
#define ATTEND_ROWS 4
#define ATTEND_COLUMNS(rows) (4 / (rows))
#define LANES 8
#include "kernel_subscales.h"

enum { LEVEL_CHAINS = 1, LINES_TOGETHER = 8, LINES_UNROLL = 1, SUBGROUPS_UNROLL = 1 };
enum { Q8_OFFSET = 0, HAS_Q4_OFFSETS = 1 };

/* Codes of 16 columns x 4 K, columns 0-7 and 8-15; signed in q8, unsigned in q4. */
typedef struct {
    __m256i codes[PARTS];
} Line;

INLINE Line load_q8(const uint8_t *codes) {
    Line line;
    EACH(p) line.codes[p] = _mm256_loadu_si256((const __m256i *)(codes + 32 * p));
    return line;
}

/* Keeps additions where they are written: the compiler would multiply first, add later, and run out of registers. */
#define HOLD(sum) __asm__("" : "+x"(sum))

INLINE Int16 add_line(Int16 isum, Line line, const int8_t *a) {
    const __m256i activations = (__m256i)broadcast_four(a);
    EACH(p) {
        const __m256i signed_activations = _mm256_sign_epi8(activations, line.codes[p]);
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(line.codes[p]), signed_activations);
        isum.v[p] = isum.v[p] + (IntV)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        HOLD(isum.v[p]);
    }
    return isum;
}

INLINE Int16 add_signed_line(Int16 isum, const uint8_t *line, const uint8_t *a) {
    const __m256i activations = (__m256i)broadcast_four(a);
    EACH(p) {
        const __m256i pairs = _mm256_maddubs_epi16(activations, _mm256_loadu_si256((const __m256i *)(line + 32 * p)));
        isum.v[p] = isum.v[p] + (IntV)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    }
    return isum;
}

INLINE Line load_q4_low(const uint8_t *codes) {
    Line line = load_q8(codes);
    EACH(p) line.codes[p] = _mm256_and_si256(line.codes[p], _mm256_set1_epi8(15));
    return line;
}

INLINE Line load_q4_high(const uint8_t *codes) {
    Line line = load_q8(codes);
    EACH(p) line.codes[p] = _mm256_and_si256(_mm256_srli_epi16(line.codes[p], 4), _mm256_set1_epi8(15));
    return line;
}

INLINE void load_q4(const uint8_t *codes, Line *high, Line *low) {
    *high = load_q4_high(codes);
    *low = load_q4_low(codes);
}

/* int16 [16 columns][2] in every Int16 of a subgroup's sums; half of the zero point's share in both. */
INLINE int32_t q4_offset(int32_t sum) {
    return (int32_t)((uint32_t)(-Q4_ZERO_POINT / 2 * sum & 0xFFFF) * 0x10001u);
}

/* In place, too: the compiler held to the order alone copies these about, a fifth of all instructions. */
#define ADD_SHORTS(sum, x) __asm__("vpaddw %1, %0, %0" : "+x"(sum) : "x"(x))

INLINE Int16 add_q4_line(Int16 sums, Line line, const int8_t *a) {
    const __m256i activations = (__m256i)broadcast_four(a);
    EACH(p) ADD_SHORTS(sums.v[p], _mm256_maddubs_epi16(line.codes[p], activations));
    return sums;
}

INLINE Int16 add_high(Int16 high, Int16 low) {
    EACH(p) high.v[p] = (IntV)_mm256_add_epi16((__m256i)high.v[p], (__m256i)low.v[p]);
    return high;
}

INLINE void load_subscales(const uint8_t *scale_line, Int16 *subscales) {
    spread_subscales(scale_line, subscales, 1);
}

INLINE Int16 add_scaled(Int16 isum, Int16 sums, Int16 subscales) {
    EACH(p) isum.v[p] = isum.v[p] + (IntV)_mm256_madd_epi16((__m256i)sums.v[p], (__m256i)subscales.v[p]);
    return isum;
}

#include "kernel_body.h"
