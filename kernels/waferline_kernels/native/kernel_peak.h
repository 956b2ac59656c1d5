/* The level's own dot product on operands in registers, over and over: the peak that its matmuls are held against. What
 * they do beside it (loading and unpacking weights, scaling groups) is what keeps them from it. */
#ifndef WAFERLINE_KERNEL_PEAK_H
#define WAFERLINE_KERNEL_PEAK_H

#include "kernel_matmul.h"

/* Sums side by side: enough for the dot product's latency (5 cycles, two a cycle), as many as there are registers. */
enum { PEAK_CHAINS = LANES == 16 ? 12 : LEVEL_MAX_ROWS };

/* The compiler must take memory as changed: operands are not known to it, and activations are loaded anew each time, as a
 * matmul loads them. */
#define FORGET(memory) __asm__ volatile("" : : "r"(memory) : "memory")

#ifdef LEVEL_HAS_TILES
static void load_peak_operands(void) {
    int8_t operands[TILE_BYTES] = {0};
    FORGET(operands);
    configure_tiles(TILE_ROWS);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, operands, LINE_BYTES);
    _tile_loadd(5, operands, LINE_BYTES);
    _tile_loadd(6, operands, LINE_BYTES);
    _tile_loadd(7, operands, LINE_BYTES);
}

static int64_t NAMED(peak_q8)(int64_t macs) {
    int64_t done = 0;
    load_peak_operands();
    for (; done < macs; done += 4 * TILE_ROWS * TILE_N * TILE_K) {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_release();
    return done;
}

static int64_t NAMED(peak_q4)(int64_t macs) {
    return NAMED(peak_q8)(macs);
}

/* A multiply-add is of a weight and an activation's two halves. */
static int64_t NAMED(peak_bf16)(int64_t macs) {
    int64_t done = 0;
    load_peak_operands();
    for (; done < macs; done += 2 * TILE_ROWS * TILE_N * SPLIT_K) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return done;
}
#else
/* Rows by one line of weights, as a matmul's sums over a group or subgroup. */
INLINE int64_t peak_of_codes(int64_t macs, const int format) {
    uint8_t codes[LINE_BYTES] = {0};
    int8_t a[4 * PEAK_CHAINS] = {0};
    FORGET(codes);
    const Line line = load_q8(codes);
    Int16 isum[PEAK_CHAINS];
    UNROLL(12)
    for (int c = 0; c < PEAK_CHAINS; c++) EACH(p) isum[c].v[p] = (IntV){0};
    int64_t done = 0;
    for (; done < macs; done += PEAK_CHAINS * TILE_N * 4) {
        FORGET(a);
        UNROLL(12)
        for (int c = 0; c < PEAK_CHAINS; c++)
            isum[c] = format == FORMAT_Q8 ? add_line(isum[c], line, a + 4 * c) : add_q4_line(isum[c], line, a + 4 * c);
    }
    UNROLL(12)
    for (int c = 1; c < PEAK_CHAINS; c++) EACH(p) isum[0].v[p] += isum[c].v[p];
    const Int16 sink = isum[0];
    FORGET(&sink);
    return done;
}

static int64_t NAMED(peak_q8)(int64_t macs) {
    return peak_of_codes(macs, FORMAT_Q8);
}

static int64_t NAMED(peak_q4)(int64_t macs) {
    return peak_of_codes(macs, FORMAT_Q4);
}
#endif

INLINE int64_t peak_of_floats(int64_t macs, const int format) {
    float line[TILE_N] = {0}, x[PEAK_CHAINS] = {0};
    FORGET(line);
    const Float16 weights = load16(line);
    Float16 sums[PEAK_CHAINS];
    UNROLL(12)
    for (int c = 0; c < PEAK_CHAINS; c++) sums[c] = splat16(0.0f);
    int64_t done = 0;
    for (; done < macs; done += PEAK_CHAINS * TILE_N) {
        FORGET(x);
        UNROLL(12)
        for (int c = 0; c < PEAK_CHAINS; c++) EACH(p) sums[c].v[p] = multiply_add(weights.v[p], splat(x[c]), sums[c].v[p]);
    }
    UNROLL(12)
    for (int c = 1; c < PEAK_CHAINS; c++) EACH(p) sums[0].v[p] = sums[0].v[p] + sums[c].v[p];
    const Float16 sink = sums[0];
    FORGET(&sink);
    return done;
}

static int64_t NAMED(peak_float)(int64_t macs) {
    return peak_of_floats(macs, FORMAT_F32);
}

#ifndef LEVEL_HAS_TILES
static int64_t NAMED(peak_bf16)(int64_t macs) {
    return peak_of_floats(macs, FORMAT_BF16);
}
#endif

#endif
