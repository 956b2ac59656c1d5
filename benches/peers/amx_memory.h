/* Force-included when llama.cpp is built: GCC 12's AMX intrinsics do not tell the compiler which memory a tile instruction
 * reads, so it drops the stores before one as dead. llama.cpp's tile configuration is then garbage and its first AMX
 * matmul faults. A compiler barrier before each such instruction keeps the stores.
 *
 *   CMAKE_ARGS="-DGGML_NATIVE=ON -DCMAKE_CXX_FLAGS='-include $PWD/benches/peers/amx_memory.h'" pip install llama-cpp-python
 */
#pragma once
#ifdef __AMX_TILE__
#include <immintrin.h>

#define KEEP_STORES(base) __asm__ volatile("" ::"r"(base) : "memory")

static inline void load_tile_config(const void* config) {
    KEEP_STORES(config);
    _tile_loadconfig(config);
}
#define _tile_loadconfig(config) load_tile_config(config)

#undef _tile_loadd
#define _tile_loadd(tile, base, stride)             \
    do {                                            \
        KEEP_STORES(base);                          \
        _tile_loadd_internal(tile, base, stride);   \
    } while (0)
#endif
