/* The kernels of one instruction-set level, included by kernels_<level>.c, which provides
 *
 *   LEVEL, LEVEL_NAME,   the level's name, the rows that pass over a strip at a time, and a vector's lanes
 *   LEVEL_MAX_ROWS,
 *   LANES
 *   Line                 16 columns x 4 K of codes, made ready to multiply
 *   load_q8              a line of q8
 *   add_line             isum + line . activations[4], exact
 *   Q8_OFFSET            what load_q8 adds to a weight
 *   add_signed_line      isum + 16 columns x 4 of signed codes . a[4], unsigned and at most 127
 *   load_q4_low,         the line of the low, or of the high halves, of a line of q4,
 *   load_q4_high,        and
 *   load_q4              both, of a line loaded once
 *   add_q4_line          sums over a subgroup + such a line . activations[4], in a form of the level's own, into which
 *   add_high             turns sums over high halves, adding sums over low ones
 *   HAS_Q4_OFFSETS,      whether those sums must begin with
 *   q4_offset            this, made of the sum of the subgroup's activations: lines are unsigned
 *   load_subscales       those of the four subgroups of a group, and
 *   add_scaled           isum + a subgroup's sums times its subscales
 *   LEVEL_CHAINS,        of q8's sums, LINES_TOGETHER lines at a time, LINES_UNROLL times written out, and of q4
 *   SUBGROUPS_UNROLL     subgroups: what latency, branches and registers make best
 *   ATTEND_ROWS          query vectors that attention computes together, and
 *   ATTEND_COLUMNS       columns of 16 sums for each of so many rows: what the registers hold
 *   LEVEL_HAS_VNNI       where it is defined, products of q4 cost what those of q8 do, so that many rows of it are unpacked
 *                        to q8 first, a Line's parts being its bytes as load_line loads them
 *   LEVEL_HAS_NEON       where it is defined, vectors of four are NEON's
 *   LEVEL_HAS_TILES      where it is defined, many rows, and all of bf16, go through tile registers
 *
 * and is compiled with that level's flags. Float operations are written out one by one, fused multiply-adds as such, and
 * compiled without contraction or fast-math: what the bits are does not depend on the compiler. */
#define PASTE(name, level) name##_##level
#define EXPAND(name, level) PASTE(name, level)
#define NAMED(name) EXPAND(name, LEVEL)

#include "kernel_attention_int8.h"
#include "kernel_kv.h"
#include "kernel_matmul.h"
#ifdef LEVEL_HAS_TILES
#include "kernel_attention_tiles.h"
#endif
#include "kernel_peak.h"
#include "kernel_pack.h"
#include "kernel_rows.h"

const KernelTable NAMED(kernels) = {
    .level = LEVEL_NAME,
    .matmul =
        {
            [FORMAT_F32] = NAMED(matmul_f32_64x16),
            [FORMAT_BF16] = NAMED(matmul_bf16_64x16),
            [FORMAT_Q8] = NAMED(matmul_q8_64x16),
            [FORMAT_Q4] = NAMED(matmul_q4_64x16),
        },
#ifdef LEVEL_HAS_TILES
    .split = NAMED(split_rows),
#endif
    .rms_norm = NAMED(rms_norm),
    .quantize = NAMED(quantize),
    .rotate = NAMED(rotate),
    .store_kv =
        {
            [KV_F32] = NAMED(store_kv_f32),
            [KV_BF16] = NAMED(store_kv_bf16),
            [KV_INT8] = NAMED(store_kv_int8),
        },
    .attend =
        {
            [KV_F32] = NAMED(attend_f32),
            [KV_BF16] = NAMED(attend_bf16),
            [KV_INT8] = NAMED(attend_int8),
        },
    .max = NAMED(max),
    .argmax = NAMED(argmax),
    .exp_sum = NAMED(exp_sum),
    .read = NAMED(read),
    .peak =
        {
            [FORMAT_F32] = NAMED(peak_float),
            [FORMAT_BF16] = NAMED(peak_bf16),
            [FORMAT_Q8] = NAMED(peak_q8),
            [FORMAT_Q4] = NAMED(peak_q4),
        },
    .pack = {[FORMAT_Q8] = NAMED(pack_q8), [FORMAT_Q4] = NAMED(pack_q4)},
};
