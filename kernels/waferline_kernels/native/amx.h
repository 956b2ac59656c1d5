/* Whether this process may use AMX's tile registers, for int8 and for bf16. */
#ifndef WAFERLINE_AMX_H
#define WAFERLINE_AMX_H

/* 1 where the processor has them, the operating system saves them, and this process has been granted their use, which
 * this asks for. */
int amx_permit(void);

#endif
