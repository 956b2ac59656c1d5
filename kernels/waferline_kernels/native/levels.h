/* The instruction-set levels of this processor and operating system. */
#ifndef WAFERLINE_LEVELS_H
#define WAFERLINE_LEVELS_H

#include "kernels.h"

/* The number-th of them, lowest first; NULL beyond the highest. */
const KernelTable *level_by_number(int number);
/* NULL where it is not among them. */
const KernelTable *level_by_name(const char *name);

#endif
