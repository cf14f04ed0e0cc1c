/* SPDX-License-Identifier: Apache-2.0 */
/* Rules, frames and steps: see grammar.h. */
#include "serve/grammar.h"

#include "base/mem.h"

#include <stdatomic.h>
#include <string.h>

enum { END, BYTE, SET, RULE, REPEAT };
enum {
    MAX_RULES = 1 << 18,
    MAX_SETS = 4096,
    MAX_REPEATS = 1 << 16,
    MAX_FRAMES = 1 << 19,
    MAX_DEPTH = 1024, /* of rules that begin with rules */
    MAX_ROUNDS = 64,
    MAX_MASKS = 512
};

struct set {
    uint32_t bits[8];
};

struct repeat {
    uint32_t rule, min, max;
};

struct alternative {
    uint32_t at;   /* its first symbol */
    uint32_t next; /* of the rule; 0: the last */
};

struct rule {
    uint32_t first, last; /* alternatives; 0: none */
    bool ends;            /* some text matches it */
};

struct frame {
    uint32_t at;                 /* of the symbol that comes next */
    uint32_t min_left, max_left; /* of a repetition that is going on */
    uint32_t parent;
    uint32_t canonical; /* CR_NO_FRAME: not known yet */
    uint32_t stamp;     /* of the step that has met it last */
    uint32_t chain;     /* the next of its hash */
    uint32_t mask;      /* 0: none */
};

struct cr_grammar {
    atomic_int refs;
    bool failed;
    struct cr_symbol *symbols;
    struct alternative *alternatives; /* [0] is not used */
    struct rule *rules;
    struct set *sets;
    struct repeat *repeats;
    struct frame *frames;
    uint32_t *heads; /* [n_heads] of hash chains, a power of two */
    uint32_t *masks[MAX_MASKS];
    size_t n_symbols, cap_symbols, n_alternatives, cap_alternatives, n_rules, cap_rules;
    size_t n_sets, cap_sets, n_repeats, cap_repeats, n_frames, cap_frames, n_heads, n_masks;
    uint32_t root, stamp;
};

/* ---- making ------------------------------------------------------------------------------- */

/* Room for one more item; false (and failed) past the limit. */
static bool grow(cr_grammar *g, void **v, size_t n, size_t *cap, size_t size, size_t limit)
{
    if (g->failed || n >= limit) {
        g->failed = true;
        return false;
    }
    if (n < *cap)
        return true;
    size_t want = *cap ? *cap * 2 : 64;
    void *grown = cr_realloc(*v, want, size);
    if (!grown) {
        g->failed = true;
        return false;
    }
    *v = grown;
    *cap = want;
    return true;
}

#define GROW(g, name, limit)                                                                       \
    grow(g, (void **)&(g)->name, (g)->n_##name, &(g)->cap_##name, sizeof *(g)->name, limit)

enum cr_status cr_grammar_new(cr_grammar **out, struct cr_error *err)
{
    cr_grammar *g = cr_alloc0(1, sizeof *g);
    *out = NULL;
    if (!g)
        return cr_error_set(err, CR_NO_MEMORY, "out of memory");
    atomic_store(&g->refs, 1);
    g->n_masks = 1;
    if (GROW(g, alternatives, MAX_RULES))
        g->alternatives[g->n_alternatives++] = (struct alternative){0};
    *out = g;
    return CR_OK;
}

cr_grammar *cr_grammar_ref(cr_grammar *g)
{
    if (g)
        atomic_fetch_add(&g->refs, 1);
    return g;
}

void cr_grammar_unref(cr_grammar *g)
{
    if (!g || atomic_fetch_sub(&g->refs, 1) > 1)
        return;
    for (size_t i = 1; i < g->n_masks; i++)
        cr_free(g->masks[i]);
    cr_free(g->symbols);
    cr_free(g->alternatives);
    cr_free(g->rules);
    cr_free(g->sets);
    cr_free(g->repeats);
    cr_free(g->frames);
    cr_free(g->heads);
    cr_free(g);
}

bool cr_grammar_failed(const cr_grammar *g)
{
    return g->failed;
}

size_t cr_grammar_frames(const cr_grammar *g)
{
    return g->n_frames;
}

uint32_t cr_rule_new(cr_grammar *g)
{
    if (!GROW(g, rules, MAX_RULES))
        return 0;
    g->rules[g->n_rules] = (struct rule){0};
    return (uint32_t)g->n_rules++;
}

void cr_row_init(struct cr_row *r, cr_grammar *g)
{
    *r = (struct cr_row){.g = g};
}

void cr_row_deinit(struct cr_row *r)
{
    cr_free(r->v);
    r->v = NULL;
    r->n = r->cap = 0;
}

static void push(struct cr_row *r, uint8_t type, uint8_t byte, uint32_t i)
{
    if (grow(r->g, (void **)&r->v, r->n, &r->cap, sizeof *r->v, CR_GRAMMAR_MAX_SYMBOLS))
        r->v[r->n++] = (struct cr_symbol){.type = type, .byte = byte, .i = i};
}

void cr_row_byte(struct cr_row *r, char byte)
{
    push(r, BYTE, (uint8_t)byte, 0);
}

void cr_row_text(struct cr_row *r, const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++)
        cr_row_byte(r, text[i]);
}

void cr_row_set(struct cr_row *r, const uint32_t bits[8])
{
    cr_grammar *g = r->g;
    size_t i = 0;
    while (i < g->n_sets && memcmp(g->sets[i].bits, bits, sizeof g->sets[i].bits) != 0)
        i++;
    if (i == g->n_sets) {
        if (!GROW(g, sets, MAX_SETS))
            return;
        memcpy(g->sets[g->n_sets++].bits, bits, sizeof g->sets[i].bits);
    }
    push(r, SET, 0, (uint32_t)i);
}

void cr_row_range(struct cr_row *r, unsigned first, unsigned last)
{
    uint32_t bits[8] = {0};
    for (unsigned b = first; b <= last && b < 256; b++)
        bits[b / 32] |= (uint32_t)1 << b % 32;
    if (first == last)
        cr_row_byte(r, (char)first);
    else
        cr_row_set(r, bits);
}

void cr_row_rule(struct cr_row *r, uint32_t rule)
{
    push(r, RULE, 0, rule);
}

void cr_row_repeat(struct cr_row *r, uint32_t rule, uint32_t min, uint32_t max)
{
    cr_grammar *g = r->g;
    if (max == 0)
        return;
    if (min == 1 && max == 1) {
        cr_row_rule(r, rule);
        return;
    }
    if (!GROW(g, repeats, MAX_REPEATS))
        return;
    g->repeats[g->n_repeats] = (struct repeat){rule, min, max};
    push(r, REPEAT, 0, (uint32_t)g->n_repeats++);
}

void cr_rule_add(struct cr_row *r, uint32_t rule)
{
    cr_grammar *g = r->g;
    if (!GROW(g, alternatives, CR_GRAMMAR_MAX_SYMBOLS) || rule >= g->n_rules) {
        cr_row_deinit(r);
        return;
    }
    uint32_t a = (uint32_t)g->n_alternatives++;
    g->alternatives[a] = (struct alternative){.at = (uint32_t)g->n_symbols};
    push(r, END, 0, 0);
    for (size_t i = 0; i < r->n; i++)
        if (GROW(g, symbols, CR_GRAMMAR_MAX_SYMBOLS))
            g->symbols[g->n_symbols++] = r->v[i];
    struct rule *of = &g->rules[rule];
    if (of->last)
        g->alternatives[of->last].next = a;
    else
        of->first = a;
    of->last = a;
    cr_row_deinit(r);
}

/* ---- closing ------------------------------------------------------------------------------ */

static bool can_end(const cr_grammar *g, uint32_t at)
{
    for (const struct cr_symbol *s = g->symbols + at; s->type != END; s++) {
        if (s->type == RULE && !g->rules[s->i].ends)
            return false;
        if (s->type == REPEAT && g->repeats[s->i].min && !g->rules[g->repeats[s->i].rule].ends)
            return false;
    }
    return true;
}

bool cr_grammar_close(cr_grammar *g, uint32_t root)
{
    g->root = root;
    if (g->failed)
        return false;
    /* Rules are made before or after those that they use: going both ways by turns is quick. */
    int rounds = 0;
    for (bool changed = true; changed; rounds++) {
        changed = false;
        if (rounds == MAX_ROUNDS) {
            g->failed = true;
            return false;
        }
        for (size_t k = 0; k < g->n_rules; k++) {
            size_t r = rounds % 2 ? k : g->n_rules - 1 - k;
            uint32_t a = g->rules[r].ends ? 0 : g->rules[r].first;
            while (a && !can_end(g, g->alternatives[a].at))
                a = g->alternatives[a].next;
            if (a)
                changed = g->rules[r].ends = true;
        }
    }
    /* What is left is text that can always be finished. */
    for (size_t r = 0; r < g->n_rules; r++) {
        uint32_t *link = &g->rules[r].first, last = 0;
        while (*link) {
            struct alternative *a = &g->alternatives[*link];
            if (can_end(g, a->at)) {
                last = *link;
                link = &a->next;
            } else {
                *link = a->next;
            }
        }
        g->rules[r].last = last;
    }
    for (size_t i = 0; i < g->n_repeats; i++)
        if (!g->rules[g->repeats[i].rule].ends)
            g->repeats[i].max = 0;
    return g->rules[root].ends;
}

/* ---- frames ------------------------------------------------------------------------------- */

static uint32_t hash(uint32_t at, uint32_t min_left, uint32_t max_left, uint32_t parent)
{
    uint64_t h = at * 0x9E3779B97F4A7C15u ^ (uint64_t)parent * 0xC2B2AE3D27D4EB4Fu ^
                 ((uint64_t)min_left << 32 | max_left) * 0x165667B19E3779F9u;
    h ^= h >> 29;
    h *= 0xBF58476D1CE4E5B9u;
    return (uint32_t)(h >> 32);
}

static bool rehash(cr_grammar *g)
{
    size_t n = g->n_heads ? g->n_heads * 2 : 256;
    uint32_t *heads = cr_alloc(n, sizeof *heads);
    if (!heads) {
        g->failed = true;
        return false;
    }
    memset(heads, 0xFF, n * sizeof *heads);
    for (size_t i = 0; i < g->n_frames; i++) {
        struct frame *f = &g->frames[i];
        uint32_t h = hash(f->at, f->min_left, f->max_left, f->parent) & (uint32_t)(n - 1);
        f->chain = heads[h];
        heads[h] = (uint32_t)i;
    }
    cr_free(g->heads);
    g->heads = heads;
    g->n_heads = n;
    return true;
}

/* The frame with these values; CR_NO_FRAME (and failed) when there is no room. */
static uint32_t frame_of(cr_grammar *g, uint32_t at, uint32_t min_left, uint32_t max_left,
                         uint32_t parent)
{
    if (g->n_frames >= g->n_heads && !rehash(g))
        return CR_NO_FRAME;
    uint32_t h = hash(at, min_left, max_left, parent) & (uint32_t)(g->n_heads - 1);
    for (uint32_t i = g->heads[h]; i != CR_NO_FRAME; i = g->frames[i].chain) {
        const struct frame *f = &g->frames[i];
        if (f->at == at && f->parent == parent && f->min_left == min_left &&
            f->max_left == max_left)
            return i;
    }
    if (!GROW(g, frames, MAX_FRAMES))
        return CR_NO_FRAME;
    uint32_t i = (uint32_t)g->n_frames++;
    g->frames[i] = (struct frame){.at = at,
                                  .min_left = min_left,
                                  .max_left = max_left,
                                  .parent = parent,
                                  .canonical = CR_NO_FRAME,
                                  .chain = g->heads[h]};
    g->heads[h] = i;
    return i;
}

static uint32_t less(uint32_t left)
{
    return left == CR_GRAMMAR_MANY || left == 0 ? left : left - 1;
}

static bool expand(cr_grammar *g, uint32_t f, struct cr_frames *out, int depth);

/* All alternatives of a rule, which return to `parent`. */
static bool enter(cr_grammar *g, uint32_t rule, uint32_t parent, struct cr_frames *out, int depth)
{
    for (uint32_t a = g->rules[rule].first; a; a = g->alternatives[a].next) {
        uint32_t f = frame_of(g, g->alternatives[a].at, 0, 0, parent);
        if (f == CR_NO_FRAME || !expand(g, f, out, depth + 1))
            return false;
    }
    return true;
}

/* The frame for the symbol at `at`: a repetition begins with its full counts. */
static uint32_t arrive(cr_grammar *g, uint32_t at, uint32_t parent)
{
    const struct cr_symbol *s = &g->symbols[at];
    if (s->type == REPEAT)
        return frame_of(g, at, g->repeats[s->i].min, g->repeats[s->i].max, parent);
    return frame_of(g, at, 0, 0, parent);
}

static bool go_on(cr_grammar *g, uint32_t at, uint32_t parent, struct cr_frames *out, int depth)
{
    uint32_t f = arrive(g, at, parent);
    return f != CR_NO_FRAME && expand(g, f, out, depth + 1);
}

/* Adds the frames that take a byte next from where f stands. */
static bool expand(cr_grammar *g, uint32_t i, struct cr_frames *out, int depth)
{
    struct frame f = g->frames[i]; /* a copy: frames move when they grow */
    if (depth > MAX_DEPTH)
        return false;
    if (f.stamp == g->stamp)
        return true;
    g->frames[i].stamp = g->stamp;
    const struct cr_symbol s = g->symbols[f.at];
    switch (s.type) {
    case END:
        if (f.parent != CR_NO_FRAME)
            return expand(g, f.parent, out, depth + 1);
        out->whole = true;
        return true;
    case RULE: {
        /* A rule at the end of a row returns to where the row returns to. */
        uint32_t parent = f.parent;
        if (g->symbols[f.at + 1].type != END &&
            (parent = arrive(g, f.at + 1, f.parent)) == CR_NO_FRAME)
            return false;
        return enter(g, s.i, parent, out, depth);
    }
    case REPEAT: {
        const struct repeat r = g->repeats[s.i];
        /* An alternative's first symbol is entered with empty counts. */
        bool fresh = f.min_left == 0 && f.max_left == 0;
        if (fresh && r.max)
            return go_on(g, f.at, f.parent, out, depth);
        if (f.min_left == 0 && !go_on(g, f.at + 1, f.parent, out, depth))
            return false;
        if (f.max_left == 0)
            return true;
        uint32_t left = less(f.max_left), back;
        back = left == 0 ? arrive(g, f.at + 1, f.parent)
                         : frame_of(g, f.at, less(f.min_left), left, f.parent);
        return back != CR_NO_FRAME && enter(g, r.rule, back, out, depth);
    }
    default:
        if (out->n == CR_GRAMMAR_MAX_SET)
            return false;
        out->v[out->n++] = i;
        return true;
    }
}

static void begin_step(cr_grammar *g, struct cr_frames *out)
{
    out->n = 0;
    out->whole = false;
    if (++g->stamp == 0) {
        for (size_t i = 0; i < g->n_frames; i++)
            g->frames[i].stamp = 0;
        g->stamp = 1;
    }
}

bool cr_grammar_start(cr_grammar *g, struct cr_frames *out)
{
    begin_step(g, out);
    return enter(g, g->root, CR_NO_FRAME, out, 0);
}

static bool takes(const cr_grammar *g, const struct cr_symbol *s, uint8_t byte)
{
    return s->type == BYTE ? s->byte == byte
                           : (g->sets[s->i].bits[byte / 32] >> byte % 32 & 1) != 0;
}

static bool add_step(cr_grammar *g, uint32_t frame, uint8_t byte, struct cr_frames *out)
{
    uint32_t at = g->frames[frame].at, parent = g->frames[frame].parent;
    return !takes(g, &g->symbols[at], byte) || go_on(g, at + 1, parent, out, 0);
}

bool cr_frame_step(cr_grammar *g, uint32_t frame, uint8_t byte, struct cr_frames *out)
{
    begin_step(g, out);
    return add_step(g, frame, byte, out);
}

bool cr_grammar_step(cr_grammar *g, const struct cr_frames *in, uint8_t byte, struct cr_frames *out)
{
    begin_step(g, out);
    for (uint32_t i = 0; i < in->n; i++)
        if (!add_step(g, in->v[i], byte, out))
            return false;
    return true;
}

/* ---- what is known of a frame --------------------------------------------------------------- */

static uint32_t at_most(uint32_t left, uint32_t longest)
{
    return left < longest ? left : longest;
}

uint32_t cr_frame_canonical(cr_grammar *g, uint32_t frame, uint32_t longest)
{
    struct frame f = g->frames[frame];
    if (f.canonical != CR_NO_FRAME)
        return f.canonical;
    uint32_t parent = f.parent;
    /* Parents are older than their children; deep ones are done first, without recursion. */
    uint32_t stack[64], n = 0, at = f.parent;
    while (at != CR_NO_FRAME && g->frames[at].canonical == CR_NO_FRAME && n < 64) {
        stack[n++] = at;
        at = g->frames[at].parent;
    }
    while (n > 0)
        cr_frame_canonical(g, stack[--n], longest);
    if (parent != CR_NO_FRAME) {
        parent = g->frames[parent].canonical;
        if (parent == CR_NO_FRAME) /* deeper than what is looked at: it stands for itself */
            parent = f.parent;
    }
    uint32_t c =
        frame_of(g, f.at, at_most(f.min_left, longest), at_most(f.max_left, longest), parent);
    if (c == CR_NO_FRAME)
        return frame;
    g->frames[frame].canonical = c;
    g->frames[c].canonical = c;
    return c;
}

const uint32_t *cr_frame_mask(const cr_grammar *g, uint32_t frame)
{
    uint32_t m = g->frames[frame].mask;
    return m ? g->masks[m] : NULL;
}

uint32_t *cr_frame_new_mask(cr_grammar *g, uint32_t frame, size_t n)
{
    if (g->n_masks == MAX_MASKS) { /* all are forgotten: simple, and rare */
        for (size_t i = 0; i < g->n_frames; i++)
            g->frames[i].mask = 0;
        while (g->n_masks > 1)
            cr_free(g->masks[--g->n_masks]);
    }
    uint32_t *mask = cr_alloc0(n, sizeof *mask);
    if (!mask)
        return NULL;
    g->masks[g->n_masks] = mask;
    g->frames[frame].mask = (uint32_t)g->n_masks++;
    return mask;
}
