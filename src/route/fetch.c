/* SPDX-License-Identifier: Apache-2.0 */
/* Downloads with libcurl: one handle, one request, the rest is care with the file. */
#include "route/fetch.h"

#include "base/bytes.h"
#include "base/mem.h"
#include "base/sha256.h"
#include "route/curl_calls.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { MAX_REDIRECTS = 5, CONNECT_S = 10, STALL_S = 60, MAX_TAG = 256, DISK_SPARE = 16 << 20 };

struct download {
    const struct cr_fetch *f;
    CURL *easy;
    char *part, *tag_path;
    char tag[MAX_TAG]; /* ETag or Last-Modified of what is in the part */
    int fd;
    uint64_t have, total; /* bytes in the part; of the whole file, 0: unknown */
    struct cr_sha256 sha;
    bool checked, plain_ok, resumed;
    struct cr_error error; /* set by a callback */
};

/* ---- the part ---- */

static enum cr_status hash_part(struct download *d, struct cr_error *err)
{
    char buf[1 << 16];
    ssize_t n;
    cr_sha256_init(&d->sha);
    d->have = 0;
    if (lseek(d->fd, 0, SEEK_SET) < 0)
        return cr_error_errno(err, "cannot read", d->part);
    while ((n = read(d->fd, buf, sizeof buf)) > 0) {
        cr_sha256_add(&d->sha, buf, (size_t)n);
        d->have += (uint64_t)n;
    }
    return n < 0 ? cr_error_errno(err, "cannot read", d->part) : CR_OK;
}

static bool start_over(struct download *d)
{
    cr_sha256_init(&d->sha);
    d->have = 0;
    unlink(d->tag_path);
    return ftruncate(d->fd, 0) == 0 && lseek(d->fd, 0, SEEK_SET) == 0;
}

static enum cr_status open_part(struct download *d, struct cr_error *err)
{
    d->part = cr_asprintf("%s.part", d->f->path);
    d->tag_path = cr_asprintf("%s.part.tag", d->f->path);
    if (!d->part || !d->tag_path)
        return cr_error_set(err, CR_NO_MEMORY, "fetch: out of memory");
    d->fd = open(d->part, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0644);
    struct stat info;
    if (d->fd < 0 || fstat(d->fd, &info) != 0)
        return cr_error_errno(err, "cannot write", d->part);
    if (!S_ISREG(info.st_mode))
        return cr_error_set(err, CR_IO, "%s: is no regular file", d->part);
    if (flock(d->fd, LOCK_EX | LOCK_NB) != 0)
        return cr_error_set(err, CR_IO, "%s: another process is fetching it", d->part);
    char *tag;
    size_t n;
    if (cr_file_read(d->tag_path, MAX_TAG - 1, &tag, &n, NULL) == CR_OK) {
        snprintf(d->tag, sizeof d->tag, "%s", tag);
        d->tag[strcspn(d->tag, "\r\n")] = '\0';
        cr_free(tag);
    }
    if (!*d->tag && !start_over(d)) /* nobody knows what it is a part of */
        return cr_error_errno(err, "cannot write", d->part);
    return hash_part(d, err);
}

/* ---- the transfer ---- */

static bool header_value(const struct download *d, const char *name, char *out, size_t size)
{
    struct curl_header *h = NULL;
    if (curl_easy_header(d->easy, name, 0, CURLH_HEADER, -1, &h) != CURLHE_OK)
        return false;
    snprintf(out, size, "%s", h->value);
    return strlen(h->value) < size;
}

/* A strong ETag, else the date: what If-Range takes. */
static void keep_tag(struct download *d)
{
    char tag[MAX_TAG];
    if (!(header_value(d, "ETag", tag, sizeof tag) && tag[0] == '"') &&
        !header_value(d, "Last-Modified", tag, sizeof tag))
        return;
    cr_file_write(d->tag_path, tag, strlen(tag), NULL); /* without it there is no resuming */
}

static bool room_for(struct download *d, uint64_t more)
{
    struct statvfs v;
    if (d->f->max_bytes && d->have + more > d->f->max_bytes) {
        cr_error_set(&d->error, CR_LIMIT, "%s: is larger than %llu bytes", d->f->url,
                     (unsigned long long)d->f->max_bytes);
        return false;
    }
    if (fstatvfs(d->fd, &v) == 0 && (uint64_t)v.f_bavail * v.f_frsize < more + DISK_SPARE) {
        cr_error_set(&d->error, CR_LIMIT, "%s: needs %llu bytes, the disk has %llu left", d->part,
                     (unsigned long long)more, (unsigned long long)v.f_bavail * v.f_frsize);
        return false;
    }
    return true;
}

/* At the first byte of a body with status 200 or 206. */
static bool judge(struct download *d)
{
    long status = 0;
    curl_off_t length = -1;
    char value[128];
    d->checked = true;
    curl_easy_getinfo(d->easy, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(d->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
    if (header_value(d, "Content-Encoding", value, sizeof value) &&
        strcasecmp(value, "identity") != 0) {
        cr_error_set(&d->error, CR_NETWORK, "%s: is compressed (%.40s), which was not asked for",
                     d->f->url, value);
        return false;
    }
    if (status == 206) {
        unsigned long long from = 0;
        if (!header_value(d, "Content-Range", value, sizeof value) ||
            sscanf(value, "bytes %llu-", &from) != 1 || from != d->have) {
            cr_error_set(&d->error, CR_NETWORK, "%s: asked from byte %llu, got \"%.60s\"",
                         d->f->url, (unsigned long long)d->have, value);
            return false;
        }
        d->resumed = d->have > 0;
    } else if (!start_over(d)) {
        cr_error_errno(&d->error, "cannot write", d->part);
        return false;
    }
    d->total = length > 0 ? d->have + (uint64_t)length : 0;
    keep_tag(d);
    return room_for(d, length > 0 ? (uint64_t)length : 0);
}

static size_t take_bytes(char *data, size_t size, size_t n, void *ud)
{
    struct download *d = ud;
    size_t len = size * n, done = 0;
    long status = 0;
    curl_easy_getinfo(d->easy, CURLINFO_RESPONSE_CODE, &status);
    if (status != 200 && status != 206)
        return len; /* an error page, or a redirect's text */
    if (!d->checked && !judge(d))
        return CURL_WRITEFUNC_ERROR;
    if (!d->total && !room_for(d, len))
        return CURL_WRITEFUNC_ERROR;
    while (done < len) {
        ssize_t k = write(d->fd, data + done, len - done);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0) {
            cr_error_errno(&d->error, "cannot write", d->part);
            return CURL_WRITEFUNC_ERROR;
        }
        done += (size_t)k;
    }
    cr_sha256_add(&d->sha, data, len);
    d->have += len;
    return len;
}

static int on_progress(void *ud, curl_off_t total, curl_off_t now, curl_off_t up_total,
                       curl_off_t up)
{
    struct download *d = ud;
    (void)total, (void)now, (void)up_total, (void)up;
    if (!d->f->on_progress || d->f->on_progress(d->f->ud, d->have, d->total))
        return 0;
    cr_error_set(&d->error, CR_CANCELLED, "%s: interrupted; what came is kept", d->f->url);
    return 1;
}

/* Link-local addresses are where clouds keep secrets; http goes to this machine only, unless a
 * SHA-256 says what must come. */
static curl_socket_t open_socket(void *ud, curlsocktype purpose, struct curl_sockaddr *a)
{
    struct download *d = ud;
    bool local = false, bad = false;
    char *scheme = NULL;
    (void)purpose;
    if (a->family == AF_INET) {
        uint32_t v4 = ntohl(((const struct sockaddr_in *)(const void *)&a->addr)->sin_addr.s_addr);
        local = v4 >> 24 == 127;
        bad = v4 >> 16 == 0xa9fe || v4 == 0 || v4 >> 28 >= 0xe;
    } else if (a->family == AF_INET6) {
        struct in6_addr v6 = ((const struct sockaddr_in6 *)(const void *)&a->addr)->sin6_addr;
        local = IN6_IS_ADDR_LOOPBACK(&v6);
        bad = IN6_IS_ADDR_LINKLOCAL(&v6) || IN6_IS_ADDR_UNSPECIFIED(&v6) ||
              IN6_IS_ADDR_MULTICAST(&v6) || IN6_IS_ADDR_V4MAPPED(&v6);
    } else {
        bad = true;
    }
    curl_easy_getinfo(d->easy, CURLINFO_SCHEME, &scheme);
    bool plain = !scheme || strcasecmp(scheme, "https") != 0;
    if (bad || (plain && !local && !d->plain_ok)) {
        cr_error_set(&d->error, CR_POLICY, "%s: %s: refused", d->f->url,
                     bad ? "the address is link-local, unspecified or multicast"
                         : "plain http to another machine needs a SHA-256");
        return CURL_SOCKET_BAD;
    }
    return socket(a->family, a->socktype | SOCK_CLOEXEC, a->protocol);
}

static bool set_options(struct download *d, struct curl_slist *headers)
{
    CURL *e = d->easy;
    int bad = !cr_curl_guard(e, d->f->url, d->f->ca_file);
#define SET(option, value) bad |= curl_easy_setopt(e, option, value) != CURLE_OK
    SET(CURLOPT_REDIR_PROTOCOLS_STR,
        strncasecmp(d->f->url, "https:", 6) == 0 ? "https" : "http,https");
    SET(CURLOPT_FOLLOWLOCATION, 1L);
    SET(CURLOPT_MAXREDIRS, (long)MAX_REDIRECTS);
    SET(CURLOPT_CONNECTTIMEOUT, (long)CONNECT_S);
    SET(CURLOPT_LOW_SPEED_TIME, (long)STALL_S);
    SET(CURLOPT_LOW_SPEED_LIMIT, 1L);
    SET(CURLOPT_HTTPHEADER, headers);
    SET(CURLOPT_WRITEFUNCTION, take_bytes);
    SET(CURLOPT_WRITEDATA, d);
    SET(CURLOPT_NOPROGRESS, 0L);
    SET(CURLOPT_XFERINFOFUNCTION, on_progress);
    SET(CURLOPT_XFERINFODATA, d);
    SET(CURLOPT_OPENSOCKETFUNCTION, open_socket);
    SET(CURLOPT_OPENSOCKETDATA, d);
#undef SET
    return !bad;
}

static enum cr_status result(struct download *d, CURLcode rc, struct cr_error *err)
{
    long status = 0;
    curl_easy_getinfo(d->easy, CURLINFO_RESPONSE_CODE, &status);
    if (d->error.status != CR_OK) {
        if (err)
            *err = d->error;
        return d->error.status;
    }
    if (status == 416) /* the part is as long as the file, or longer: the SHA-256 tells */
        return CR_OK;
    if (rc != CURLE_OK)
        return cr_error_set(err, CR_NETWORK, "%s: %s%s", d->f->url, curl_easy_strerror(rc),
                            d->have ? "; what came is kept" : "");
    if (status != 200 && status != 206)
        return cr_error_set(err, status == 404 || status == 410 ? CR_NOT_FOUND : CR_NETWORK,
                            "%s: HTTP %ld", d->f->url, status);
    if (!d->checked && !start_over(d)) /* an empty file */
        return cr_error_errno(err, "cannot write", d->part);
    if (d->total && d->have != d->total)
        return cr_error_set(err, CR_NETWORK, "%s: got %llu of %llu bytes; what came is kept",
                            d->f->url, (unsigned long long)d->have, (unsigned long long)d->total);
    return CR_OK;
}

static enum cr_status transfer(struct download *d, struct cr_error *err)
{
    struct curl_slist *headers = NULL;
    char line[MAX_TAG + 32];
    enum cr_status st = CR_OK;
    d->easy = curl_easy_init();
    bool ok = d->easy != NULL;
    if (ok && d->have) {
        struct curl_slist *next;
        snprintf(line, sizeof line, "Range: bytes=%llu-", (unsigned long long)d->have);
        headers = curl_slist_append(NULL, line);
        snprintf(line, sizeof line, "If-Range: %s", d->tag);
        next = headers ? curl_slist_append(headers, line) : NULL;
        ok = next != NULL;
    }
    if (!ok || !set_options(d, headers))
        st = cr_error_set(err, CR_NO_MEMORY, "fetch: out of memory");
    else
        st = result(d, curl_easy_perform(d->easy), err);
    curl_slist_free_all(headers);
    curl_easy_cleanup(d->easy);
    return st;
}

/* Compares, syncs, renames. */
static enum cr_status finish(struct download *d, struct cr_fetched *out, struct cr_error *err)
{
    cr_sha256_hex(&d->sha, out->sha256);
    out->bytes = d->have;
    if (d->f->sha256 && strcasecmp(d->f->sha256, out->sha256) != 0) {
        unlink(d->part);
        unlink(d->tag_path);
        return cr_error_set(err, CR_FORMAT, "%s: SHA-256 is %s, want %s; deleted", d->f->url,
                            out->sha256, d->f->sha256);
    }
    if (fsync(d->fd) != 0 || rename(d->part, d->f->path) != 0)
        return cr_error_errno(err, "cannot finish", d->f->path);
    unlink(d->tag_path);
    char *dir = cr_strdup(d->f->path), *slash = dir ? strrchr(dir, '/') : NULL;
    if (slash)
        *slash = '\0';
    int fd = dir ? open(slash ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        fsync(fd); /* the name too */
        close(fd);
    }
    cr_free(dir);
    return CR_OK;
}

enum cr_status cr_fetch_file(const struct cr_fetch *f, struct cr_fetched *out, struct cr_error *err)
{
    struct download d = {.f = f, .fd = -1, .plain_ok = f->sha256 != NULL};
    enum cr_status st = CR_OK;
    *out = (struct cr_fetched){0};
    if (strncasecmp(f->url, "https://", 8) != 0 && strncasecmp(f->url, "http://", 7) != 0)
        return cr_error_set(err, CR_INVALID, "want http://... or https://..., found \"%s\"",
                            f->url);
    if (f->sha256 && (strlen(f->sha256) != 64 || strspn(f->sha256, "0123456789abcdefABCDEF") != 64))
        return cr_error_set(err, CR_INVALID, "want a SHA-256 of 64 hex digits, found \"%.80s\"",
                            f->sha256);
    st = cr_curl_load(err);
    if (st != CR_OK)
        return st;
    st = open_part(&d, err);
    uint64_t had = d.have;
    if (st == CR_OK)
        st = transfer(&d, err);
    if (st == CR_OK)
        st = finish(&d, out, err);
    out->resumed_from = d.resumed ? had : 0;
    if (d.fd >= 0) {
        if (st != CR_OK && d.have == 0) {
            unlink(d.part);
            unlink(d.tag_path);
        }
        close(d.fd);
    }
    cr_free(d.tag_path);
    cr_free(d.part);
    return st;
}
