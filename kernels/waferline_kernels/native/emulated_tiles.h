/* AMX's tile registers in C, for testing the amx level on processors without them (WAFERLINE_EMULATE_AMX, see setup.py);
 * included before all else in place of the compiler's intrinsics, whose names these are. What raises #UD on a processor
 * aborts. Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2: LDTILECFG, TILELOADD, TDPBSSD,
 * TDPBF16PS. */
#ifndef WAFERLINE_EMULATED_TILES_H
#define WAFERLINE_EMULATED_TILES_H

#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EMULATED_TILES = 8, EMULATED_ROWS = 16, EMULATED_ROW_BYTES = 64 };

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} EmulatedConfig;

typedef uint8_t EmulatedTile[EMULATED_ROWS][EMULATED_ROW_BYTES];

static __thread EmulatedConfig emulated_config; /* palette 0: none is loaded */
static __thread EmulatedTile emulated_tiles[EMULATED_TILES];

#define MUST_HOLD(condition)                                         \
    do {                                                             \
        if (!(condition)) {                                          \
            fprintf(stderr, "emulated tiles: not " #condition "\n"); \
            abort();                                                 \
        }                                                            \
    } while (0)

static inline void emulated_loadconfig(const void *from) {
    EmulatedConfig c;
    memcpy(&c, from, sizeof c);
    MUST_HOLD(c.palette == 1 && c.start_row == 0);
    for (int i = 0; i < 14; i++) MUST_HOLD(c.reserved[i] == 0);
    for (int t = 0; t < 16; t++) {
        MUST_HOLD(c.rows[t] <= EMULATED_ROWS && c.row_bytes[t] <= EMULATED_ROW_BYTES);
        MUST_HOLD((c.rows[t] == 0) == (c.row_bytes[t] == 0) && (t < EMULATED_TILES || c.rows[t] == 0));
    }
    emulated_config = c;
    memset(emulated_tiles, 0, sizeof emulated_tiles);
}

static inline void emulated_release(void) {
    emulated_config.palette = 0;
}

static inline int is_configured(int tile) {
    return emulated_config.palette == 1 && emulated_config.rows[tile] > 0;
}

static inline void emulated_zero(int tile) {
    MUST_HOLD(is_configured(tile));
    memset(emulated_tiles[tile], 0, sizeof emulated_tiles[tile]);
}

static inline void emulated_loadd(int tile, const void *from, int64_t stride) {
    emulated_zero(tile);
    for (int r = 0; r < emulated_config.rows[tile]; r++)
        memcpy(emulated_tiles[tile][r], (const uint8_t *)from + r * stride, emulated_config.row_bytes[tile]);
}

static inline void emulated_stored(int tile, void *to, int64_t stride) {
    MUST_HOLD(is_configured(tile));
    for (int r = 0; r < emulated_config.rows[tile]; r++)
        memcpy((uint8_t *)to + r * stride, emulated_tiles[tile][r], emulated_config.row_bytes[tile]);
}

/* sums[M][N] += a[M][K] * b[K][N], K in fours of bytes. */
static inline void check_shapes(int sums, int a, int b) {
    const EmulatedConfig *c = &emulated_config;
    MUST_HOLD(is_configured(sums) && is_configured(a) && is_configured(b) && sums != a && sums != b && a != b);
    MUST_HOLD(c->rows[a] == c->rows[sums] && c->row_bytes[b] == c->row_bytes[sums] && c->row_bytes[a] == 4 * c->rows[b]);
}

static inline void emulated_dpbssd(int sums, int a, int b) {
    check_shapes(sums, a, b);
    for (int m = 0; m < emulated_config.rows[sums]; m++) {
        int32_t row[16];
        memcpy(row, emulated_tiles[sums][m], sizeof row);
        for (int k = 0; k < emulated_config.rows[b]; k++)
            for (int n = 0; n < emulated_config.row_bytes[sums] / 4; n++)
                for (int i = 4 * n; i < 4 * n + 4; i++)
                    row[n] += (int8_t)emulated_tiles[a][m][4 * k + i % 4] * (int8_t)emulated_tiles[b][k][i];
        memcpy(emulated_tiles[sums][m], row, sizeof row);
    }
}

static inline float without_denormal(float x) {
    return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x;
}

static inline float bfloat16_at(const uint8_t *at) {
    uint16_t half;
    memcpy(&half, at, sizeof half);
    const uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return without_denormal(x);
}

static inline void emulated_dpbf16ps(int sums, int a, int b) {
    check_shapes(sums, a, b);
    for (int m = 0; m < emulated_config.rows[sums]; m++) {
        float row[16], chains[2][16] = {{0}}; /* even K, odd K */
        memcpy(row, emulated_tiles[sums][m], sizeof row);
        for (int k = 0; k < emulated_config.rows[b]; k++)
            for (int odd = 0; odd < 2; odd++) {
                const float x = bfloat16_at(&emulated_tiles[a][m][4 * k + 2 * odd]);
                for (int n = 0; n < emulated_config.row_bytes[sums] / 4; n++) {
                    const float weight = bfloat16_at(&emulated_tiles[b][k][4 * n + 2 * odd]);
                    chains[odd][n] = without_denormal(__builtin_fmaf(x, weight, chains[odd][n]));
                }
            }
        for (int n = 0; n < 16; n++) row[n] = without_denormal(row[n] + without_denormal(chains[0][n] + chains[1][n]));
        memcpy(emulated_tiles[sums][m], row, sizeof row);
    }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbf16ps
#define _tile_loadconfig(from) emulated_loadconfig(from)
#define _tile_release() emulated_release()
#define _tile_zero(tile) emulated_zero(tile)
#define _tile_loadd(tile, from, stride) emulated_loadd(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated_stored(tile, to, stride)
#define _tile_dpbssd(sums, a, b) emulated_dpbssd(sums, a, b)
#define _tile_dpbf16ps(sums, a, b) emulated_dpbf16ps(sums, a, b)

#endif
