/* The instruction-set levels of this processor and operating system. */
#ifndef WAFERLINE_LEVELS_H
#define WAFERLINE_LEVELS_H

#include "kernels.h"

typedef const KernelTable *Kernels;

/* Lowest first; NULL after the highest. */
const Kernels *supported_kernels(void);
/* NULL where there is no such level. */
const KernelTable *kernels_of_level(const char *name);

#endif
