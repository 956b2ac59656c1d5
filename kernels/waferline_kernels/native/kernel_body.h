/* The kernels of one instruction-set level, included by kernels_<level>.c, which provides
 *
 *   Line                 16 columns x 4 K of codes, made ready to multiply
 *   load_q8              a line of q8
 *   load_q4              the two lines, low and high halves, of a line of q4
 *   add_line             isum + line . activations[4], exact
 *   Q8_OFFSET, Q4_OFFSET what loading adds to a weight, or leaves on it
 *   add_signed_line      isum + 16 columns x 4 of signed codes . a[4], unsigned and at most 127
 *   ATTEND_ROWS          query vectors that attention computes together, and
 *   ATTEND_COLUMNS       vectors of sums for each of them: what the registers hold
 *   LEVEL_HAS_TILES      where it is defined, many rows go through tile registers
 *
 * and is compiled with that level's flags. Float operations are written out one by one and compiled without contraction
 * or fast-math: the bits do not depend on the level. */
#define PASTE(name, level) name##_##level
#define EXPAND(name, level) PASTE(name, level)
#define NAMED(name) EXPAND(name, LEVEL)

/* How far ahead of its reads a sweep prefetches. Measured on Zen 4 (with scales for groups of 64 and 32, before those of
 * 128), one core, 110 MB, K from 576 to 8192, as a share of a plain read's bandwidth: q8 92 to 100% with 512 bytes, 74 to
 * 85% with 4 KiB; q4 85 to 100% and 84 to 93%. Within L2 it makes no difference. */
enum { PREFETCH_BYTES = 512 };

#include "kernel_attention_int8.h"
#include "kernel_kv.h"
#include "kernel_matmul.h"
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
    .rms_norm = NAMED(rms_norm),
    .quantize = NAMED(quantize),
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
            [FORMAT_BF16] = NAMED(peak_float),
            [FORMAT_Q8] = NAMED(peak_int8),
            [FORMAT_Q4] = NAMED(peak_int8),
        },
    .pack = {[FORMAT_Q8] = NAMED(pack_q8), [FORMAT_Q4] = NAMED(pack_q4)},
};
