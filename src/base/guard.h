/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What happens when a mapped file is cut short in place by somebody else: the kernel sends SIGBUS
 * at the first touch of a lost page, which would end the process. After cr_guard_install the lost
 * part reads as zeros instead, and the mapping is marked as damaged; whoever computed with it looks
 * at the mark afterwards and reports an error.
 *
 * Installing is the program's business (a signal handler belongs to the whole process), so crayon's
 * main does it and the library does not. Without it a truncated file ends the process as it does
 * in any program that maps files. Replacing a file by rename, or removing it, is always harmless.
 * A file that is *overwritten* in place is not noticed: nothing that maps files can.
 */
#ifndef CR_GUARD_H
#define CR_GUARD_H

#include <stdbool.h>
#include <stddef.h>

/* Handles SIGBUS for guarded mappings; other SIGBUS go where they went before. Call early; again is
 * harmless. */
void cr_guard_install(void);
/* cr_map_open and cr_map_close call these; at most 64 mappings are guarded at a time. */
void cr_guard_add(const void *data, size_t size);
void cr_guard_remove(const void *data);
/* Has a part of the mapping that begins at data been lost? */
bool cr_guard_damaged(const void *data);

#endif
