/* SPDX-License-Identifier: Apache-2.0 */
/*
 * crayon: fit a language model to its owner's task on the owner's device.
 *
 * This is the one public header. It covers the engine (model, session, sampler), adapters
 * (LoRA files, pools, blends, palettes) and errors. Training, routing and the HTTP server are
 * reached through the `crayon` program.
 *
 * Rules that hold everywhere
 *   - Names: a typedef is an opaque handle; a `struct` is plain data that you may read.
 *     Pairs: open/close touches a file, new/free is heap, init/deinit is your own storage.
 *   - Errors: a fallible function returns enum cr_status (CR_OK is 0) and, if `err` is not NULL,
 *     fills your struct cr_error. Results go through out-parameters, NULL or 0 on failure.
 *   - Ownership: a returned `const T *` is borrowed until its parent is freed; a returned `T *`
 *     is yours, its comment names the function that frees it. Freeing NULL is fine.
 *   - Threads: a cr_model, cr_adapter, cr_pool and cr_delta never change after they are made and
 *     may be shared by threads; a cr_session and a cr_sampler belong to one thread at a time.
 *   - The library never prints, exits or aborts. It logs through cr_log_set only.
 *   - Text is UTF-8; token ids are int32_t; tensors are row-major float32 unless said otherwise.
 *
 *     cr_model *model; cr_session *s; struct cr_error err;
 *     if (cr_model_open(&model, "m.gguf", NULL, &err)) { puts(err.msg); return 1; }
 *     if (cr_session_new(&s, model, 0, &err)) { ... }
 *     cr_session_free(s); cr_model_close(model);
 */
#ifndef CRAYON_H
#define CRAYON_H

#include <stdbool.h>
#include <stddef.h> /* size_t */
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define CR_API __attribute__((visibility("default")))
#define CR_MUST_CHECK __attribute__((warn_unused_result))
#define CR_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define CR_API
#define CR_MUST_CHECK
#define CR_PRINTF(f, a)
#endif

#define CR_VERSION "0.1.0"

/* ---- errors ---------------------------------------------------------------------------- */

/* X(name, text, process exit code, HTTP status). Codes are never renumbered. */
#define CR_STATUS_LIST(X)                                                                          \
    X(CR_OK, "ok", 0, 200)                                                                         \
    X(CR_INVALID, "invalid argument", 2, 400)                                                      \
    X(CR_NOT_FOUND, "not found", 4, 404)                                                           \
    X(CR_IO, "input/output error", 1, 500)                                                         \
    X(CR_FORMAT, "bad format", 3, 400)                                                             \
    X(CR_UNSUPPORTED, "unsupported", 3, 400)                                                       \
    X(CR_NO_MEMORY, "out of memory", 7, 503)                                                       \
    X(CR_LIMIT, "limit exceeded", 7, 413)                                                          \
    X(CR_CANCELLED, "cancelled", 130, 499)                                                         \
    X(CR_NETWORK, "network error", 5, 502)                                                         \
    X(CR_POLICY, "refused by policy", 6, 403)                                                      \
    X(CR_INTERNAL, "internal error", 1, 500)

enum cr_status {
#define CR_X(name, text, exit_code, http) name,
    CR_STATUS_LIST(CR_X)
#undef CR_X
};

struct cr_error {
    enum cr_status status;
    uint64_t pos;  /* byte offset or line number where that means something, else 0 */
    char msg[480]; /* names the thing and both values; always NUL-terminated */
};

/* One sentence for a status; never NULL. */
CR_API const char *cr_status_text(enum cr_status status);
/* The process exit code for a status. */
CR_API int cr_status_exit_code(enum cr_status status);
/* The HTTP status for a status. */
CR_API int cr_status_http(enum cr_status status);

/* ---- log and memory -------------------------------------------------------------------- */

enum cr_log_level { CR_LOG_DEBUG, CR_LOG_INFO, CR_LOG_WARN };
typedef void cr_log_fn(void *ud, enum cr_log_level level, const char *msg);
/* Sends the library's messages to fn (NULL: nowhere, the default). Not thread-safe: call first. */
CR_API void cr_log_set(cr_log_fn *fn, void *ud);

/* Bytes that the library holds now and held at most, the mapped model files not counted. */
CR_API size_t cr_mem_now(void);
CR_API size_t cr_mem_peak(void);

/* ---- model ----------------------------------------------------------------------------- */

typedef struct cr_model cr_model;
typedef struct cr_delta cr_delta; /* a low-rank change of the linear layers, ready to run */

/* Where weights lie. MAP: in the mapped file. HUGE: in a private copy in huge pages, in the order
 * in which this machine reads them: faster, and as large as the weights. AUTO: the copy, if it
 * takes at most half of the memory that is free. */
enum cr_pages { CR_PAGES_AUTO, CR_PAGES_MAP, CR_PAGES_HUGE };

/* What the sessions of a model keep keys and values in: float16, or 8 bits with a float16 scale for
 * each 32 values: half of the memory, and less to read where the context is long. */
enum cr_kv { CR_KV_F16, CR_KV_Q8_0 };

struct cr_model_options {
    int n_threads; /* 0: one per online core, at most 64 */
    /* "ref", "avx2", "avxvnni", "avx512", "amx", "neon", "dotprod", "i8mm", "auto"; NULL: $CR_CPU,
     * else "auto" */
    const char *cpu;
    const char *template_name; /* chat template to use instead of the file's; NULL: the file's */
    bool vocab_only;           /* read the tokenizer only; sessions are refused */
    enum cr_pages pages;
    enum cr_kv kv; /* Q8_0 needs heads of a multiple of 32 values */
};

struct cr_model_info {
    const char *path, *name; /* general.name or "" */
    const char *arch;        /* "llama", "qwen2", "qwen3" */
    const char *type_name;   /* the type of most weight bytes, such as "Q8_0" */
    const char *cpu;         /* kernel level in use */
    const char *chat;        /* chat template by name, "" when there is none */
    int n_layers, n_embd, n_heads, n_kv_heads, head_dim, n_ff, n_vocab, n_ctx_train, n_threads;
    uint64_t n_params, file_bytes, weight_bytes;
    uint64_t copy_bytes; /* of the private copy; 0: mapped, or no session was made yet */
};

/* Maps a GGUF file and checks every key and tensor that the architecture needs. opt may be NULL.
 * Free with cr_model_close, after all that was made from it. */
CR_API CR_MUST_CHECK enum cr_status cr_model_open(cr_model **out, const char *path,
                                                  const struct cr_model_options *opt,
                                                  struct cr_error *err);
CR_API void cr_model_close(cr_model *m);
CR_API const struct cr_model_info *cr_model_info(const cr_model *m);
/* 64 lower-case hex digits that identify the weights: SHA-256 over the header and samples of every
 * tensor. Computed at the first call; thread-safe. Borrowed until the model closes. */
CR_API const char *cr_model_hash(cr_model *m);

/* ---- text ------------------------------------------------------------------------------ */

enum cr_tokenize_flags {
    CR_TOKENIZE_SPECIAL = 1, /* text such as "<|im_start|>" becomes control tokens */
    CR_TOKENIZE_BOS = 2      /* begin with BOS where the model asks for it */
};

/* Text of any bytes to ids. *ids is an array of *n ids; free with cr_free. */
CR_API CR_MUST_CHECK enum cr_status cr_tokenize(const cr_model *m, const char *text, size_t len,
                                                unsigned flags, int32_t **ids, size_t *n,
                                                struct cr_error *err);
/* The bytes of one token, not NUL-terminated, may be part of a UTF-8 character. Control tokens give
 * their name when special is set, else nothing. Returns the length; *bytes is borrowed. */
CR_API size_t cr_token_bytes(const cr_model *m, int32_t id, bool special, const char **bytes);
/* End of text or of turn: generation stops there. */
CR_API bool cr_token_is_end(const cr_model *m, int32_t id);
CR_API bool cr_token_is_control(const cr_model *m, int32_t id);

struct cr_message {
    const char *role;    /* "system", "user", "assistant" */
    const char *content; /* never becomes control tokens */
};
/* Messages to ids by the model's chat template, ending with the opening of an assistant turn if
 * open_turn. CR_UNSUPPORTED when the model has no known template. Free *ids with cr_free. */
CR_API CR_MUST_CHECK enum cr_status cr_chat_tokenize(const cr_model *m,
                                                     const struct cr_message *messages, size_t n,
                                                     bool open_turn, int32_t **ids, size_t *n_ids,
                                                     struct cr_error *err);
/* Frees arrays that the library gave to you. */
CR_API void cr_free(void *p);

/* ---- session --------------------------------------------------------------------------- */

typedef struct cr_session cr_session; /* one timeline: KV cache and activations */

/* Bytes that a session of n_ctx tokens will hold (0: the model's own context length). */
CR_API size_t cr_session_bytes(const cr_model *m, int n_ctx);
/* Those of them that the KV cache takes. */
CR_API size_t cr_session_kv_bytes(const cr_model *m, int n_ctx);
/* Free with cr_session_free. */
CR_API CR_MUST_CHECK enum cr_status cr_session_new(cr_session **out, cr_model *m, int n_ctx,
                                                   struct cr_error *err);
CR_API void cr_session_free(cr_session *s);
/* Runs with delta from the next token on (NULL: the base model). Borrowed until replaced or the
 * session is freed. Clears the KV cache when the delta differs. */
CR_API void cr_session_set_delta(cr_session *s, const cr_delta *delta);
/* Makes the cache hold exactly ids[0..n): keeps the common prefix, drops the rest, runs what is
 * missing; the last id is always run. *n_run (may be NULL) is the number of tokens run. The logits
 * equal those of a cold run bit for bit. */
CR_API CR_MUST_CHECK enum cr_status cr_session_sync(cr_session *s, const int32_t *ids, size_t n,
                                                    size_t *n_run, struct cr_error *err);
/* Appends one id and runs it. */
CR_API CR_MUST_CHECK enum cr_status cr_session_step(cr_session *s, int32_t id,
                                                    struct cr_error *err);
/* Logits [n_vocab] of the last token, borrowed until the next call. NULL before the first. */
CR_API const float *cr_session_logits(const cr_session *s);
CR_API int cr_session_length(const cr_session *s); /* tokens in the cache */
CR_API int cr_session_ctx(const cr_session *s);    /* capacity */

/* ---- sampling -------------------------------------------------------------------------- */

typedef struct cr_sampler cr_sampler;

struct cr_sampling {
    float temperature;    /* 0: greedy */
    int top_k;            /* 0: off */
    float top_p;          /* 1: off */
    float min_p;          /* 0: off */
    float repeat_penalty; /* 1: off */
    int repeat_last_n;    /* window of the penalty, at most 1024 */
    uint64_t seed;
};
/* temperature 0.8, top_k 40, top_p 0.95, min_p 0.05, no penalty, window 64, seed 1. */
CR_API struct cr_sampling cr_sampling_default(void);
/* CR_INVALID when a value is out of range. Free with cr_sampler_free. */
CR_API CR_MUST_CHECK enum cr_status cr_sampler_new(cr_sampler **out, const cr_model *m,
                                                   const struct cr_sampling *params,
                                                   struct cr_error *err);
CR_API void cr_sampler_free(cr_sampler *s);
/* Chooses the next id from logits [n_vocab]. Ties go to the lower id. *logprob (may be NULL) is the
 * natural log-probability of the id under the unmodified distribution. */
CR_API int32_t cr_sampler_next(cr_sampler *s, const float *logits, float *logprob);
/* Tells the repetition window about an id (prompt tokens; chosen ids are added by _next). */
CR_API void cr_sampler_accept(cr_sampler *s, int32_t id);

struct cr_generate {
    const int32_t *prompt; /* [n_prompt] */
    size_t n_prompt;
    int max_tokens;
    struct cr_sampling sampling;
    const char *const *stop; /* [n_stop] strings; the text ends before the first that appears */
    size_t n_stop;
    bool ignore_end; /* go on past end tokens */
    /* Called with text that is whole UTF-8 and can no longer be part of a stop string. Return false
     * to cancel. May be NULL. */
    bool (*on_text)(void *ud, const char *text, size_t len);
    /* Called for each chosen id with its log-probability. Return false to cancel. May be NULL. */
    bool (*on_token)(void *ud, int32_t id, float logprob);
    void *ud;
    /* Speculation, which changes speed only: guess the next tokens by what followed in the text so
     * far, or by a session of a smaller model with the same vocabulary (NULL: none). */
    bool lookup;
    cr_session *draft;
};
enum cr_finish { CR_FINISH_STOP, CR_FINISH_LENGTH, CR_FINISH_CANCELLED };
struct cr_generated {
    enum cr_finish finish;
    size_t n_prefill, n_cached, n_decode; /* tokens run, reused, chosen */
    size_t n_guessed, n_accepted;         /* by lookup and draft */
    double prefill_ms, decode_ms, first_token_ms;
};
/* Runs the prompt and generates. A prompt of n tokens with max_tokens that pass the session's
 * capacity stops with CR_FINISH_LENGTH there; a prompt that does not fit at all is CR_LIMIT. */
CR_API CR_MUST_CHECK enum cr_status cr_generate(cr_session *s, const struct cr_generate *g,
                                                struct cr_generated *out, struct cr_error *err);

/* ---- adapters -------------------------------------------------------------------------- */

typedef struct cr_adapter cr_adapter; /* one LoRA, bound to a model */

/* Opens a GGUF LoRA file or a PEFT directory and binds it. Every tensor must find its place or the
 * load is refused, naming all offenders. Free with cr_adapter_close. */
CR_API CR_MUST_CHECK enum cr_status cr_adapter_open(cr_adapter **out, const cr_model *m,
                                                    const char *path, struct cr_error *err);
CR_API void cr_adapter_close(cr_adapter *a);
/* The exact sum of n adapters times their scales: concatenated ranks. Free with cr_delta_free. */
CR_API CR_MUST_CHECK enum cr_status cr_adapters_combine(cr_delta **out, const cr_model *m,
                                                        const cr_adapter *const *adapters,
                                                        const float *scales, size_t n,
                                                        struct cr_error *err);
CR_API void cr_delta_free(cr_delta *d);
CR_API int cr_delta_rank(const cr_delta *d); /* the largest rank of any layer */

/* ---- pools, blends, palettes ------------------------------------------------------------- */

typedef struct cr_pool cr_pool;       /* N base adapters and an index of what each is about */
typedef struct cr_palette cr_palette; /* a saved blend, about a kilobyte */

/* Opens a pool file; CR_INVALID when it was made for another base model. Free with cr_pool_close.
 */
CR_API CR_MUST_CHECK enum cr_status cr_pool_open(cr_pool **out, cr_model *m, const char *path,
                                                 struct cr_error *err);
CR_API void cr_pool_close(cr_pool *p);
CR_API int cr_pool_size(const cr_pool *p); /* N */
/* The sum over n of weights[n] times base adapter n. Free with cr_delta_free. */
CR_API CR_MUST_CHECK enum cr_status cr_pool_blend(cr_delta **out, const cr_pool *p,
                                                  const float *weights, struct cr_error *err);
/* Reads a palette and checks it against the model. Free with cr_palette_close. */
CR_API CR_MUST_CHECK enum cr_status cr_palette_open(cr_palette **out, cr_model *m, const char *path,
                                                    struct cr_error *err);
CR_API void cr_palette_close(cr_palette *p);
/* The palette's blend of this pool; CR_INVALID when the palette belongs to another pool.
 * Free with cr_delta_free. */
CR_API CR_MUST_CHECK enum cr_status cr_palette_delta(cr_delta **out, const cr_palette *p,
                                                     const cr_pool *pool, struct cr_error *err);
/* Path of the pool that the palette names; "" for a palette that keeps the base model. */
CR_API const char *cr_palette_pool_path(const cr_palette *p);

#ifdef __cplusplus
}
#endif
#endif /* CRAYON_H */
