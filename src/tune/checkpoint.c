/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checkpoints of training. Little-endian:
 *   "CRTRAIN1", u64 n_settings, settings text, u64 step, u64 n_steps, u64 n_params,
 *   losses [step], parameters, first moments, second moments (float32), u64 sum of all before.
 * The order of the data follows from the seed and the step, so there is no more state than this.
 */
#include "base/mem.h"
#include "tune/trainer.h"

#include <string.h>

static const char magic[8] = {'C', 'R', 'T', 'R', 'A', 'I', 'N', '1'};

/* FNV-1a over the words of 8 bytes of a stream that comes in pieces; the last is filled with 0. */
struct sum {
    uint64_t h;
    uint8_t word[8];
    size_t n;
};

static void sum_add(struct sum *s, const uint8_t *p, size_t n)
{
    uint64_t word;
    while (n > 0) {
        size_t take = sizeof s->word - s->n < n ? sizeof s->word - s->n : n;
        memcpy(s->word + s->n, p, take);
        s->n += take;
        p += take;
        n -= take;
        if (s->n < sizeof s->word)
            return;
        memcpy(&word, s->word, sizeof word);
        s->h = (s->h ^ word) * 0x100000001b3u;
        s->n = 0;
    }
}

static uint64_t sum_end(struct sum *s)
{
    static const uint8_t zero[8];
    sum_add(s, zero, (sizeof zero - s->n) % sizeof zero);
    return s->h;
}

static uint64_t sum_of(const uint8_t *p, size_t n)
{
    struct sum s = {0};
    sum_add(&s, p, n);
    return sum_end(&s);
}

struct out {
    struct cr_file_writer file;
    struct sum sum;
    enum cr_status status;
    struct cr_error *err;
};

static void put(struct out *o, const void *data, size_t n)
{
    if (o->status)
        return;
    sum_add(&o->sum, data, n);
    o->status = cr_file_add(&o->file, data, n, o->err);
}

static void put_u64(struct out *o, uint64_t v)
{
    uint8_t bytes[8];
    for (int i = 0; i < 8; i++)
        bytes[i] = (uint8_t)(v >> 8 * i);
    put(o, bytes, sizeof bytes);
}

enum cr_status cr_checkpoint_write(const cr_trainer *t, struct cr_error *err)
{
    struct out o = {.err = err};
    size_t n = t->low.n_params;
    o.status = cr_file_begin(&o.file, t->checkpoint, err);
    if (o.status)
        return o.status;
    put(&o, magic, sizeof magic);
    put_u64(&o, strlen(t->settings));
    put(&o, t->settings, strlen(t->settings));
    put_u64(&o, (uint64_t)t->step);
    put_u64(&o, (uint64_t)t->plan.n_steps);
    put_u64(&o, n);
    put(&o, t->losses, (size_t)t->step * sizeof *t->losses);
    put(&o, t->params, n * sizeof *t->params);
    put(&o, t->adam.m, n * sizeof *t->adam.m);
    put(&o, t->adam.v, n * sizeof *t->adam.v);
    put_u64(&o, sum_end(&o.sum));
    if (o.status) {
        cr_file_abort(&o.file);
        return o.status;
    }
    return cr_file_commit(&o.file, err);
}

/* The line of `key` (up to '=') in settings: its value, or NULL. */
static const char *value_of(const char *settings, const char *key, size_t len, size_t *value_len)
{
    for (const char *at = settings; *at; at += strcspn(at, "\n"), at += *at == '\n') {
        if (strncmp(at, key, len) == 0 && at[len] == '=') {
            *value_len = strcspn(at + len + 1, "\n");
            return at + len + 1;
        }
    }
    return NULL;
}

/* CR_INVALID with the first setting that differs. */
static enum cr_status compare(const cr_trainer *t, const char *old, struct cr_error *err)
{
    for (const char *at = t->settings; *at; at += strcspn(at, "\n"), at += *at == '\n') {
        size_t key = strcspn(at, "="), now = strcspn(at + key + 1, "\n"), then = 0;
        const char *value = value_of(old, at, key, &then);
        if (value && then == now && memcmp(value, at + key + 1, now) == 0)
            continue;
        return cr_error_set(err, CR_INVALID,
                            "%s: made with other settings: %.*s was %.*s, now it is %.*s",
                            t->checkpoint, (int)key, at, value ? (int)then : 7,
                            value ? value : "not set", (int)now, at + key + 1);
    }
    return CR_OK;
}

static enum cr_status broken(const cr_trainer *t, const char *what, struct cr_error *err)
{
    return cr_error_set(err, CR_FORMAT, "%s: %s", t->checkpoint, what);
}

static enum cr_status parse(cr_trainer *t, const struct cr_map *map, struct cr_error *err)
{
    struct cr_cursor c = cr_cursor_make(map->data, map->size);
    const void *start = cr_cursor_take(&c, sizeof magic);
    if (!start || memcmp(start, magic, sizeof magic) != 0)
        return broken(t, "not a checkpoint of this program", err);
    uint64_t len = cr_cursor_u64(&c);
    const char *text = cr_cursor_take(&c, len);
    char *old = text ? cr_strndup(text, len) : NULL;
    if (!text)
        return broken(t, "the file ends too early", err);
    if (!old)
        return cr_error_set(err, CR_NO_MEMORY, "checkpoint: out of memory");
    enum cr_status status = compare(t, old, err);
    cr_free(old);
    if (status)
        return status;
    uint64_t step = cr_cursor_u64(&c), n_steps = cr_cursor_u64(&c), n = cr_cursor_u64(&c);
    if (n != t->low.n_params || n_steps != (uint64_t)t->plan.n_steps || step > n_steps)
        return broken(t, "its numbers do not fit its settings", err);
    const void *losses = cr_cursor_take(&c, step * sizeof(float));
    const void *params = cr_cursor_take(&c, n * sizeof(float));
    const void *m = cr_cursor_take(&c, n * sizeof(float));
    const void *v = cr_cursor_take(&c, n * sizeof(float));
    size_t end = c.pos;
    uint64_t sum = cr_cursor_u64(&c);
    if (c.failed || c.pos != c.size)
        return broken(t, "the file has the wrong length", err);
    if (sum != sum_of(map->data, end))
        return broken(t, "its checksum does not match its content", err);
    memcpy(t->losses, losses, step * sizeof(float));
    memcpy(t->params, params, n * sizeof(float));
    memcpy(t->adam.m, m, n * sizeof(float));
    memcpy(t->adam.v, v, n * sizeof(float));
    t->step = (long)step;
    return CR_OK;
}

enum cr_status cr_checkpoint_read(cr_trainer *t, struct cr_error *err)
{
    struct cr_map map = {0};
    enum cr_status status = cr_map_open(&map, t->checkpoint, err);
    if (status)
        return status;
    status = parse(t, &map, err);
    cr_map_close(&map);
    return status;
}
