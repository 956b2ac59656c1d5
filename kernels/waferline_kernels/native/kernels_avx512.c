/* avx512 (x86-64-v4 with VNNI; Ice Lake 2019, Zen 4 2022). From DRAM one row is bound by bandwidth; eight rows share every
 * load of weights. */
#define LEVEL avx512
#define LEVEL_NAME "avx512"
#define LEVEL_MAX_ROWS 8
#define ATTEND_ROWS 4
#define ATTEND_COLUMNS(rows) ((rows) == 1 ? 8 : 4)
#define LANES 16
#include "kernel_vnni.h"

#include "kernel_body.h"
