/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Causal attention over packed sequences, forward and backward, on tensor cores, in the manner of
 * FlashAttention-2 (Dao 2023, arXiv 2307.08691): the scores live in registers, 16 x 16 at a time.
 *
 * Most sequences are short, so the work is cut into 16 rows of one head for each warp, which goes
 * over just the rows that they see, from global memory to registers (mma.cuh): nothing is shared
 * and nobody waits for another warp. Neighbouring warps take heads of the same rows and find k and
 * v in the first-level cache. q and k come rotated; their gradients are turned back when they are
 * stored.
 *
 * The way back runs twice over the scores instead of adding with atomics: one kernel for dq (which
 * also makes delta = sum of o * d_o), one for dk and dv, where the four warps of a block share the
 * heads and rows that see 16 keys of a kv head and add up in a fixed order.
 */
#include "device.cuh"
#include "kernels.h"
#include "mma.cuh"

#include <math.h>

enum { WARPS = 4, THREADS = 32 * WARPS, NOBODY = 0x7fffffff };
#define LOG2E 1.4426950408889634f

/* ---- a row of a head in the words of mma.cuh ---- */

template <int D> struct head {
    /* words read at once, such that a column and the one D / 2 after it are the same thread's */
    static constexpr int V = D % 64 == 0 ? 4 : D % 32 == 0 ? 2 : 1;
    static constexpr int N = D / 8; /* words of a thread */
};

/* The first column of word i of thread t. */
template <int D> __device__ __forceinline__ int column_of(int i, int t)
{
    constexpr int V = head<D>::V;
    return i / V * 8 * V + t * 2 * V + i % V * 2;
}

template <int D>
__device__ __forceinline__ void load_words(uint32_t w[head<D>::N], const bf16 *row, int t)
{
    constexpr int V = head<D>::V;
#pragma unroll
    for (int i = 0; i < head<D>::N; i += V) {
        const bf16 *p = row + column_of<D>(i, t);
        if constexpr (V == 4) {
            uint4 x = *(const uint4 *)p;
            w[i] = x.x, w[i + 1] = x.y, w[i + 2] = x.z, w[i + 3] = x.w;
        } else if constexpr (V == 2) {
            uint2 x = *(const uint2 *)p;
            w[i] = x.x, w[i + 1] = x.y;
        } else {
            w[i] = *(const uint32_t *)p;
        }
    }
}

/* Rows first + g and first + g + 8 of a matrix of `rows` rows; the last one beyond its end. */
template <int D>
__device__ __forceinline__ void load_rows(uint32_t w[2][head<D>::N], const bf16 *x, int ld,
                                          int first, int rows, struct coords c)
{
#pragma unroll
    for (int i = 0; i < 2; i++)
        load_words<D>(w[i], x + (size_t)min(first + c.g + 8 * i, rows - 1) * ld, c.t);
}

/* The numbers of row g (half 0) or g + 8 (half 1) of an accumulator. */
template <int D>
__device__ __forceinline__ void store_row(bf16 *row, const float (*x)[4], int half, float scale,
                                          int t)
{
    constexpr int V = head<D>::V;
#pragma unroll
    for (int i = 0; i < head<D>::N; i += V) {
        bf16 *p = row + column_of<D>(i, t);
        uint32_t w[V];
#pragma unroll
        for (int j = 0; j < V; j++)
            w[j] = pack(x[i + j][2 * half] * scale, x[i + j][2 * half + 1] * scale);
        if constexpr (V == 4)
            *(uint4 *)p = make_uint4(w[0], w[1], w[2], w[3]);
        else if constexpr (V == 2)
            *(uint2 *)p = make_uint2(w[0], w[1]);
        else
            *(uint32_t *)p = w[0];
    }
}

/* Turns the gradient of a rotated row back. */
template <int D>
__device__ __forceinline__ void rotate_back(float (*x)[4], int half, const struct cr_flash &f,
                                            int row, int t)
{
    constexpr int N = head<D>::N;
    const float2 *cs = (const float2 *)f.rope + (size_t)f.pos[row] * (D / 2);
    if (!f.neox) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            float2 r = cs[column_of<D>(i, t) / 2];
            float a = x[i][2 * half], b = x[i][2 * half + 1];
            x[i][2 * half] = a * r.x + b * r.y;
            x[i][2 * half + 1] = b * r.x - a * r.y;
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < N / 2; i++)
#pragma unroll
        for (int k = 0; k < 2; k++) {
            float2 r = cs[column_of<D>(i, t) + k];
            float a = x[i][2 * half + k], b = x[i + N / 2][2 * half + k];
            x[i][2 * half + k] = a * r.x + b * r.y;
            x[i + N / 2][2 * half + k] = b * r.x - a * r.y;
        }
}

/* ---- products of 16 rows ---- */

/* out [16, 16] = x y^T over the columns of 16 rows each */
template <int D>
__device__ __forceinline__ void scores(float out[2][4], const uint32_t x[2][head<D>::N],
                                       const uint32_t y[2][head<D>::N])
{
#pragma unroll
    for (int j = 0; j < 2; j++)
        out[j][0] = out[j][1] = out[j][2] = out[j][3] = 0;
#pragma unroll
    for (int i = 0; i < head<D>::N; i += 2) {
        uint32_t a[4] = {x[0][i], x[1][i], x[0][i + 1], x[1][i + 1]};
        mma(out[0], a, y[0][i], y[0][i + 1]);
        mma(out[1], a, y[1][i], y[1][i + 1]);
    }
}

/* to [16, D] += p [16, 16] times 16 rows */
template <int D>
__device__ __forceinline__ void add_product(float to[head<D>::N][4], const float p[2][4],
                                            const uint32_t y[2][head<D>::N])
{
    uint32_t a[4] = {pack(p[0][0], p[0][1]), pack(p[0][2], p[0][3]), pack(p[1][0], p[1][1]),
                     pack(p[1][2], p[1][3])};
#pragma unroll
    for (int i = 0; i < head<D>::N; i++)
        mma(to[i], a, transposed(y[0][i]), transposed(y[1][i]));
}

/* ---- what a row sees ---- */

struct view {
    int seg, row, pre, pre_end;
};

template <bool PRE>
__device__ __forceinline__ struct view view_of(const struct cr_flash &f, int row)
{
    struct view v = {NOBODY, row, NOBODY, 0};
    if (row >= f.rows)
        return v;
    v.seg = f.seg[row];
    if (PRE && f.pre_end[row] > f.pre[row])
        v.pre = f.pre[row], v.pre_end = f.pre_end[row];
    return v;
}

template <bool PRE> __device__ __forceinline__ bool sees(struct view v, int key)
{
    return (key >= v.seg && key <= v.row) || (PRE && key >= v.pre && key < v.pre_end);
}

__device__ __forceinline__ int warp_min(int x)
{
    for (int i = 16; i > 0; i >>= 1)
        x = min(x, __shfl_xor_sync(0xffffffffu, x, i));
    return x;
}

/* The keys that any of 16 rows sees: [first, end), or with a gap [pre_end, seg) that nobody does.
 */
struct range {
    int first, end, pre_end, seg;
};

template <bool PRE>
__device__ __forceinline__ struct range range_of(const struct view v[2], int end)
{
    struct range r;
    r.seg = r.first = warp_min(min(v[0].seg, v[1].seg));
    r.end = end;
    r.pre_end = NOBODY;
    if (PRE) {
        r.first = min(r.seg, warp_min(min(v[0].pre, v[1].pre)));
        r.pre_end = -warp_min(min(-v[0].pre_end, -v[1].pre_end));
    }
    return r;
}

template <bool PRE> __device__ __forceinline__ int next_key(struct range r, int key)
{
    key += 16;
    return PRE && key >= r.pre_end && key < r.seg ? r.seg : key;
}

/* ---- forward ---- */

struct job { /* of a warp: 16 rows of a head */
    int row, head, kv;
};

/* Heads of the same rows are neighbours. Long jobs come first, so that none is left over. */
__device__ __forceinline__ struct job job_of(const struct cr_flash &f, int warp)
{
    int at = blockIdx.x * WARPS + warp;
    struct job j = {at / f.n_heads, at % f.n_heads, 0};
    if (f.see_most && j.row * 16 < f.rows)
        j.row = f.see_most[j.row];
    j.row *= 16;
    j.kv = j.head / (f.n_heads / f.n_kv_heads);
    return j;
}

template <int D, bool PRE>
__global__ __launch_bounds__(THREADS, D <= 64 ? 4 : 2) void forward_kernel(
    const __grid_constant__ struct cr_flash f, bf16 *o)
{
    constexpr int N = head<D>::N;
    const struct coords c = coords_of();
    const struct job job = job_of(f, c.warp);
    if (job.row >= f.rows)
        return;
    const int qd = f.n_heads * D, kd = f.n_kv_heads * D;
    const bf16 *qkv = (const bf16 *)f.qkv, *k = qkv + qd + job.kv * D, *v = k + kd;
    uint32_t q[2][N], kw[2][N], vw[2][N], next[2][N];
    load_rows<D>(q, qkv + job.head * D, f.ld, job.row, f.rows, c);
    const struct view see[2] = {view_of<PRE>(f, job.row + c.g), view_of<PRE>(f, job.row + c.g + 8)};
    const struct range r = range_of<PRE>(see, min(job.row + 16, f.rows));

    float acc[N][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
    const float scale = LOG2E * f.scale;
    load_rows<D>(kw, k, f.ld, r.first, f.rows, c);
    for (int k0 = r.first, k1; k0 < r.end; k0 = k1) {
        k1 = next_key<PRE>(r, k0);
        load_rows<D>(vw, v, f.ld, k0, f.rows, c);
        if (k1 < r.end)
            load_rows<D>(next, k, f.ld, k1, f.rows, c);
        float s[2][4], best[2] = {-INFINITY, -INFINITY}, fix[2];
        scores<D>(s, q, kw);
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int key = k0 + j * 8 + 2 * c.t + i % 2;
                s[j][i] = sees<PRE>(see[i / 2], key) ? s[j][i] * scale : -INFINITY;
                best[i / 2] = fmaxf(best[i / 2], s[j][i]);
            }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            best[i] = fmaxf(best[i], __shfl_xor_sync(0xffffffffu, best[i], 1));
            best[i] = fmaxf(best[i], __shfl_xor_sync(0xffffffffu, best[i], 2));
            best[i] = fmaxf(best[i], max[i]);
            float base = best[i] == -INFINITY ? 0.0f : best[i];
            fix[i] = exp2f(max[i] - base);
            max[i] = best[i];
            best[i] = base;
            sum[i] *= fix[i];
        }
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[j][i] = exp2f(s[j][i] - best[i / 2]);
                sum[i / 2] += s[j][i];
            }
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                acc[j][i] *= fix[i / 2];
        add_product<D>(acc, s, vw);
#pragma unroll
        for (int j = 0; j < N; j++)
            kw[0][j] = next[0][j], kw[1][j] = next[1][j];
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 1);
        sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 2);
        int row = job.row + c.g + i * 8;
        if (row >= f.rows)
            continue;
        store_row<D>(o + (size_t)row * qd + job.head * D, acc, i, 1.0f / sum[i], c.t);
        if (f.lse && c.t == 0)
            f.lse[(size_t)row * f.n_heads + job.head] = max[i] + log2f(sum[i]);
    }
}

/* ---- backward ---- */

template <int D>
__global__ __launch_bounds__(THREADS, D <= 64 ? 3 : 2) void dq_kernel(
    const __grid_constant__ struct cr_flash f, const bf16 *o, const bf16 *d_o, bf16 *dqkv)
{
    constexpr int N = head<D>::N;
    const struct coords c = coords_of();
    const struct job job = job_of(f, c.warp);
    if (job.row >= f.rows)
        return;
    const int qd = f.n_heads * D, kd = f.n_kv_heads * D;
    const bf16 *qkv = (const bf16 *)f.qkv, *k = qkv + qd + job.kv * D, *v = k + kd;
    uint32_t q[2][N], out[2][N], kw[2][N], vw[2][N], next_k[2][N], next_v[2][N];
    load_rows<D>(q, qkv + job.head * D, f.ld, job.row, f.rows, c);
    load_rows<D>(out, d_o + job.head * D, qd, job.row, f.rows, c);
    load_rows<D>(kw, o + job.head * D, qd, job.row, f.rows, c);
    const struct view see[2] = {view_of<false>(f, job.row + c.g),
                                view_of<false>(f, job.row + c.g + 8)};
    float lse[2], delta[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = min(job.row + c.g + 8 * i, f.rows - 1);
        lse[i] = f.lse[(size_t)row * f.n_heads + job.head];
        delta[i] = 0;
#pragma unroll
        for (int j = 0; j < N; j++) {
            float2 a = unpack(kw[i][j]), b = unpack(out[i][j]);
            delta[i] += a.x * b.x + a.y * b.y;
        }
        delta[i] += __shfl_xor_sync(0xffffffffu, delta[i], 1);
        delta[i] += __shfl_xor_sync(0xffffffffu, delta[i], 2);
        if (c.t == 0 && job.row + c.g + 8 * i < f.rows)
            f.delta[(size_t)row * f.n_heads + job.head] = delta[i];
    }

    const struct range r = range_of<false>(see, min(job.row + 16, f.rows));
    float acc[N][4] = {};
    const float scale = f.scale;
    load_rows<D>(kw, k, f.ld, r.first, f.rows, c);
    load_rows<D>(vw, v, f.ld, r.first, f.rows, c);
    for (int k0 = r.first; k0 < r.end; k0 += 16) {
        if (k0 + 16 < r.end) {
            load_rows<D>(next_k, k, f.ld, k0 + 16, f.rows, c);
            load_rows<D>(next_v, v, f.ld, k0 + 16, f.rows, c);
        }
        float s[2][4], dp[2][4];
        scores<D>(s, q, kw);
        scores<D>(dp, out, vw);
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int key = k0 + j * 8 + 2 * c.t + i % 2;
                float p = sees<false>(see[i / 2], key) ? exp2f(s[j][i] * scale * LOG2E - lse[i / 2])
                                                       : 0.0f;
                s[j][i] = p * (dp[j][i] - delta[i / 2]) * scale;
            }
        add_product<D>(acc, s, kw);
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < N; j++)
                kw[i][j] = next_k[i][j], vw[i][j] = next_v[i][j];
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = job.row + c.g + i * 8;
        if (row >= f.rows)
            continue;
        rotate_back<D>(acc, i, f, row, c.t);
        store_row<D>(dqkv + (size_t)row * f.ld + job.head * D, acc, i, 1, c.t);
    }
}

/* x += the accumulators that three other warps have left */
template <int N>
__device__ __forceinline__ void add_others(float x[N][4], const float (*part)[N][4][32], int lane)
{
#pragma unroll
    for (int w = 0; w < WARPS - 1; w++)
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                x[j][i] += part[w][j][i][lane];
}

template <int N>
__device__ __forceinline__ void leave(float (*part)[4][32], const float x[N][4], int lane)
{
#pragma unroll
    for (int j = 0; j < N; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            part[j][i][lane] = x[j][i];
}

/* A block takes 16 keys of a kv head. */
template <int D>
__global__ __launch_bounds__(THREADS, D <= 64 ? 3 : 2) void dkv_kernel(
    const __grid_constant__ struct cr_flash f, const bf16 *d_o, bf16 *dqkv)
{
    constexpr int N = head<D>::N;
    constexpr bool HOLD = D <= 64; /* k and v stay in registers */
    __shared__ float part[2][WARPS - 1][N][4][32];
    const struct coords c = coords_of();
    const int at0 = blockIdx.x / f.n_kv_heads, kv = blockIdx.x % f.n_kv_heads;
    const int k0 = (f.seen_most ? f.seen_most[at0] : at0) * 16;
    const int group = f.n_heads / f.n_kv_heads, qd = f.n_heads * D, kd = f.n_kv_heads * D;
    const bf16 *qkv = (const bf16 *)f.qkv, *k = qkv + qd + kv * D, *v = k + kd;
    uint32_t kw[2][N], vw[2][N];
    if (HOLD) {
        load_rows<D>(kw, k, f.ld, k0, f.rows, c);
        load_rows<D>(vw, v, f.ld, k0, f.rows, c);
    }
    int own = k0 + c.lane % 16; /* ends of what sees the keys */
    const int last = -warp_min(own < f.rows ? -f.end[own] : 0), tiles = (last - k0 + 15) / 16;

    float dk[N][4] = {}, dv[N][4] = {};
    const float scale = f.scale;
    for (int at = c.warp; at < tiles * group; at += WARPS) {
        const int head_at = kv * group + at / tiles, q0 = k0 + at % tiles * 16;
        uint32_t q[2][N], out[2][N];
        load_rows<D>(q, qkv + head_at * D, f.ld, q0, f.rows, c);
        load_rows<D>(out, d_o + head_at * D, qd, q0, f.rows, c);
        float s[2][4], dp[2][4];
        if (!HOLD)
            load_rows<D>(kw, k, f.ld, k0, f.rows, c);
        scores<D>(s, kw, q);
        if (!HOLD)
            load_rows<D>(vw, v, f.ld, k0, f.rows, c);
        scores<D>(dp, vw, out);
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int n = 0; n < 2; n++) {
                int row = q0 + j * 8 + 2 * c.t + n, seg = NOBODY;
                float lse = 0, delta = 0;
                if (row < f.rows) {
                    seg = f.seg[row];
                    lse = f.lse[(size_t)row * f.n_heads + head_at];
                    delta = f.delta[(size_t)row * f.n_heads + head_at];
                }
#pragma unroll
                for (int i = n; i < 4; i += 2) {
                    int key = k0 + c.g + i / 2 * 8;
                    bool seen = key >= seg && key <= row;
                    s[j][i] = seen ? exp2f(s[j][i] * scale * LOG2E - lse) : 0.0f;
                    dp[j][i] = s[j][i] * (dp[j][i] - delta) * scale;
                }
            }
        add_product<D>(dv, s, out);
        add_product<D>(dk, dp, q);
    }
    /* warp 0 finishes dk, warp 1 dv */
    if (c.warp != 0)
        leave<N>(part[0][c.warp - 1], dk, c.lane);
    if (c.warp != 1)
        leave<N>(part[1][max(c.warp - 1, 0)], dv, c.lane);
    __syncthreads();
    if (c.warp > 1)
        return;
    if (c.warp == 0)
        add_others<N>(dk, part[0], c.lane);
    else
        add_others<N>(dv, part[1], c.lane);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = k0 + c.g + i * 8;
        if (row >= f.rows)
            continue;
        bf16 *to = dqkv + (size_t)row * f.ld + qd + kv * D;
        if (c.warp == 0) {
            rotate_back<D>(dk, i, f, row, c.t);
            store_row<D>(to, dk, i, 1, c.t);
        } else {
            store_row<D>(to + kd, dv, i, 1, c.t);
        }
    }
}

/* ---- launching, by head size ---- */

static unsigned tiles_of(const struct cr_flash *f)
{
    return (unsigned)(f->rows + 15) / 16;
}

template <int D> static void forward(cudaStream_t s, const struct cr_flash *f, bf16 *o)
{
    unsigned grid = (tiles_of(f) * (unsigned)f->n_heads + WARPS - 1) / WARPS;
    if (f->pre)
        forward_kernel<D, true><<<grid, THREADS, 0, s>>>(*f, o);
    else
        forward_kernel<D, false><<<grid, THREADS, 0, s>>>(*f, o);
}

template <int D>
static void back(cudaStream_t s, const struct cr_flash *f, const bf16 *o, const bf16 *d_o,
                 bf16 *dqkv)
{
    unsigned n = tiles_of(f), grid = (n * (unsigned)f->n_heads + WARPS - 1) / WARPS;
    dq_kernel<D><<<grid, THREADS, 0, s>>>(*f, o, d_o, dqkv);
    dkv_kernel<D><<<n *(unsigned)f->n_kv_heads, THREADS, 0, s>>>(*f, d_o, dqkv);
}

#define BY_SIZE(call)                                                                              \
    switch (f->head_dim) {                                                                         \
    case 16:                                                                                       \
        call(16);                                                                                  \
        break;                                                                                     \
    case 32:                                                                                       \
        call(32);                                                                                  \
        break;                                                                                     \
    case 48:                                                                                       \
        call(48);                                                                                  \
        break;                                                                                     \
    case 64:                                                                                       \
        call(64);                                                                                  \
        break;                                                                                     \
    case 80:                                                                                       \
        call(80);                                                                                  \
        break;                                                                                     \
    case 96:                                                                                       \
        call(96);                                                                                  \
        break;                                                                                     \
    case 128:                                                                                      \
        call(128);                                                                                 \
        break;                                                                                     \
    }

bool cr_k_attention_can(int head_dim)
{
    return head_dim == 16 || head_dim == 32 || head_dim == 48 || head_dim == 64 || head_dim == 80 ||
           head_dim == 96 || head_dim == 128;
}

void cr_k_attention(cudaStream_t s, const struct cr_flash *f, uint16_t *o)
{
#define FORWARD(D) forward<D>(s, f, (bf16 *)o)
    BY_SIZE(FORWARD)
}

void cr_k_attention_back(cudaStream_t s, const struct cr_flash *f, const uint16_t *o,
                         const uint16_t *d_o, uint16_t *dqkv)
{
#define BACK(D) back<D>(s, f, (const bf16 *)o, (const bf16 *)d_o, (bf16 *)dqkv)
    BY_SIZE(BACK)
}
