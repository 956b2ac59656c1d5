/* amx (Sapphire Rapids 2023): avx512, and the tile registers for many rows of quantised weights, and for weights in bf16. */
#define LEVEL amx
#define LEVEL_NAME "amx"
#define LEVEL_MAX_ROWS 8
#define ATTEND_ROWS 4
#define ATTEND_COLUMNS(rows) ((rows) == 1 ? 8 : 4)
#define LEVEL_HAS_TILES
#define LANES 16
#include "kernel_vnni.h"

#include "kernel_body.h"
