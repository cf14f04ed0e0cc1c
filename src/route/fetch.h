/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One file from a URL onto the disk, whole and checked, or not at all.
 *
 * The bytes go to PATH.part, which stays when a transfer is cut and is resumed by the next try, if
 * the server says that it is still the same file (If-Range with its ETag or date). In the end the
 * SHA-256 is compared, the file synced and renamed. No key is ever sent. Redirects are followed, at
 * most five, never from https to http, never to link-local addresses. Proxies, .netrc and
 * credentials of the environment are not used.
 */
#ifndef CR_FETCH_H
#define CR_FETCH_H

#include "base/error.h"

struct cr_fetch {
    const char *url;     /* https, or http: from this machine, or where sha256 is given */
    const char *path;    /* what the file is called in the end */
    const char *sha256;  /* 64 hex digits; NULL: not checked, reported */
    const char *ca_file; /* PEM: trust these certificates alone; NULL: the system's */
    uint64_t max_bytes;  /* refuse a larger file; 0: no limit but the disk */
    /* Told now and then; total 0: unknown. False stops, keeping what is there. May be NULL. */
    bool (*on_progress)(void *ud, uint64_t done, uint64_t total);
    void *ud;
};

struct cr_fetched {
    uint64_t bytes, resumed_from;
    char sha256[65];
};

/* CR_NETWORK, CR_NOT_FOUND (404, 410), CR_FORMAT (wrong SHA-256; the part is deleted), CR_LIMIT
 * (max_bytes, or the disk is too small), CR_POLICY (an address or a redirect that is not allowed),
 * CR_CANCELLED, CR_IO (also: another process is at it). */
enum cr_status cr_fetch_file(const struct cr_fetch *f, struct cr_fetched *out,
                             struct cr_error *err);

#endif
