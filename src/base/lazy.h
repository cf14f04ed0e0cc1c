/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared libraries that are opened when they are first needed: the libraries of HTTP, TLS and SQL
 * bring some thirty others, which a local answer never uses but would load and relocate.
 *
 * A library has a header of ours (route/curl_calls.h, route/sqlite_calls.h, serve/http_calls.h)
 * with the list of its functions that we call. The list makes a table of pointers; macros lead
 * calls of those names through it, so that code reads as if the library were linked:
 *
 *     #define CR_FOO_CALLS(X) X(foo_open); X(foo_close)
 *     struct cr_foo { CR_FOO_CALLS(CR_LAZY_FIELD); };
 *     extern struct cr_foo cr_foo;
 *     #define foo_open cr_foo.foo_open
 *     #define foo_close cr_foo.foo_close
 *
 * A name that is missing in either list does not compile or link. Built without CRAYON_LAZY all
 * are linked as usual; with CR_LAZY_LISTS defined a header gives its list and table alone. A
 * library stays open until the process ends.
 */
#ifndef CR_LAZY_H
#define CR_LAZY_H

#include "base/error.h"

#define CR_LAZY_FIELD(name) __typeof__(name) *name
#define CR_LAZY_FIND(name) cr_lazy_find(lib, #name, &name)

/* A note in the program that tells packaging tools which library it may open, and what for, in the
 * form of https://uapi-group.org/specifications/specs/elf_dlopen_metadata/ */
#define CR_LAZY_NOTE(library, feature, what)                                                       \
    static const struct {                                                                          \
        uint32_t name_bytes, bytes, type;                                                          \
        char name[4];                                                                              \
        char json[sizeof CR_LAZY_JSON(library, feature, what)];                                    \
    } note __attribute__((used, aligned(4), section(".note.dlopen"))) = {                          \
        4, sizeof CR_LAZY_JSON(library, feature, what), 0x407c0c0a, "FDO",                         \
        CR_LAZY_JSON(library, feature, what)}
#define CR_LAZY_JSON(library, feature, what)                                                       \
    "[{\"feature\":\"" feature "\",\"description\":\"" what                                        \
    "\",\"priority\":\"recommended\",\"soname\":[\"" library "\"]}]"

struct cr_lazy {
    const char *file;                  /* as the loader knows it: "libcurl.so.4" */
    void (*find)(struct cr_lazy *lib); /* CR_FOO_CALLS(CR_LAZY_FIND); */
    void *handle;                      /* from here on private, zero at first */
    char fault[160];                   /* the loader's words */
    bool ready;
};

/* Opens the library, unless it is open, and fills its table. CR_NOT_FOUND with the loader's words:
 * no such library, or one without a function of the list. Thread-safe. */
enum cr_status cr_lazy_open(struct cr_lazy *lib, struct cr_error *err);

/* Looks one function up and writes its address to *call; a fault is kept for cr_lazy_open. */
void cr_lazy_find(struct cr_lazy *lib, const char *name, void *call);

#endif
