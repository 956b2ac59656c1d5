/* amx (Sapphire Rapids 2023): avx512, and for many rows of quantised weights the tile registers. */
#define LEVEL amx
#define LEVEL_NAME "amx"
#define LEVEL_MAX_ROWS 8
#define ATTEND_ROWS 4
#define ATTEND_COLUMNS 4
#define LEVEL_HAS_TILES
#define LANES 16
#include "kernel_vnni.h"

#include "kernel_body.h"
