/* avx2 (x86-64-v3; Haswell 2013, Zen 2017).
 *
 * The dot product: vpmaddubsw multiplies unsigned by signed bytes and saturates at 32,767, so the weight's sign is moved
 * to the activation (vpsignb): |w| <= 128 times |a| <= 127, two products stay within 32,512. vpmaddwd by ones widens.
 * Four instructions for 32 bytes of weights and a row; the load and vpabsb are shared by all rows. */
#include <immintrin.h>

#define LEVEL avx2
#define LEVEL_NAME "avx2"
#define LEVEL_MAX_ROWS 4
#define ATTEND_ROWS 2
#define ATTEND_COLUMNS 2
#define LANES 8
#include "kernel_subscales.h"

/* 16 columns x 4 K of codes: the signed weights and their magnitudes, columns 0-7 and 8-15. */
typedef struct {
    __m256i weights[PARTS], magnitudes[PARTS];
} Line;

enum { Q8_OFFSET = 0, Q4_OFFSET = 0, Q4_HIGH_SHIFT = 0 };

INLINE Line load_q8(const uint8_t *codes) {
    Line line;
    EACH(p) {
        line.weights[p] = _mm256_loadu_si256((const __m256i *)(codes + 32 * p));
        line.magnitudes[p] = _mm256_abs_epi8(line.weights[p]);
    }
    return line;
}

INLINE Line load_q4_half(const uint8_t *codes, const int shift) {
    const __m256i nibble = _mm256_set1_epi8(15), zero_point = _mm256_set1_epi8(Q4_ZERO_POINT);
    Line line;
    EACH(p) {
        const __m256i pairs = _mm256_loadu_si256((const __m256i *)(codes + 32 * p));
        line.weights[p] = _mm256_sub_epi8(_mm256_and_si256(_mm256_srli_epi16(pairs, shift), nibble), zero_point);
        line.magnitudes[p] = _mm256_abs_epi8(line.weights[p]);
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
    int32_t four;
    memcpy(&four, a, 4);
    const __m256i activations = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
    EACH(p) {
        __m256i signed_activations = _mm256_sign_epi8(activations, line.weights[p]);
        __m256i pairs = _mm256_maddubs_epi16(line.magnitudes[p], signed_activations);
        isum.v[p] = isum.v[p] + (IntV)_mm256_madd_epi16(pairs, ones);
    }
    return isum;
}

INLINE Int16 add_signed_line(Int16 isum, const uint8_t *line, const uint8_t *a) {
    int32_t four;
    memcpy(&four, a, 4);
    const __m256i activations = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
    EACH(p) {
        __m256i pairs = _mm256_maddubs_epi16(activations, _mm256_loadu_si256((const __m256i *)(line + 32 * p)));
        isum.v[p] = isum.v[p] + (IntV)_mm256_madd_epi16(pairs, ones);
    }
    return isum;
}

#include "kernel_body.h"
