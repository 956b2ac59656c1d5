/* avxvnni (x86-64-v3 with AVX-VNNI; Alder Lake 2021, Zen 5 2024): avx2 with the dot product of VNNI, for the many processors
 * that have it in vectors of eight alone. */
#define LEVEL avxvnni
#define LEVEL_NAME "avxvnni"
#define LEVEL_MAX_ROWS 6
#define ATTEND_ROWS 4
#define ATTEND_COLUMNS(rows) (4 / (rows))
#define LANES 8
#include "kernel_vnni.h"

#include "kernel_body.h"
