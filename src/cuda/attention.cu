/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Causal attention over packed sequences, forward and backward, on tensor cores, in the manner of
 * FlashAttention-2 (Dao 2023, arXiv 2307.08691): the scores live in registers, 64 x 64 at a time.
 *
 * A tile is 64 consecutive rows of the packed batch, whatever sequences they belong to; masks say
 * what a row sees. So short sequences fill the tiles. q and k come rotated; their gradients are turned
 * back when they are stored.
 *
 * The way back runs twice over the scores instead of adding with atomics: one kernel for dq (which
 * also makes delta = sum of o * d_o), one for dk and dv, whose block takes all heads of its kv head.
 */
#include "device.cuh"
#include "kernels.h"
#include "mma.cuh"

#include <math.h>

enum { TILE = 64, THREADS = 128 };
#define LOG2E 1.4426950408889634f

/* Bit j: some row of the warp sees one of the columns [8 j, 8 j + 8) of a tile, which are the rows
 * [first, first + 64) of the batch; the warp sees [lo, hi). */
__device__ __forceinline__ uint32_t live_of(int first, int lo, int hi)
{
    int from = max(lo - first, 0) / 8, to = min((hi - first + 7) / 8, 8);
    return to > from ? (0xffu >> (8 - (to - from))) << from : 0;
}

/* out [16, 64] of this warp = rows [row, row + 16) of x times the rows of y, both tiles of D
 * columns; 0 where not live. */
template <int D, int LD>
__device__ __forceinline__ void scores(float out[8][4], const bf16 *x, int row, const bf16 *y,
                                       uint32_t live, struct coords c)
{
#pragma unroll
    for (int j = 0; j < 8; j++)
        out[j][0] = out[j][1] = out[j][2] = out[j][3] = 0;
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        uint32_t a[4];
        load_a<LD>(a, x, row, k, c);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            if (!(live >> j & 1))
                continue;
            const bf16 *p = y + (j * 8 + c.g) * LD + k + 2 * c.t;
            mma(out[j], a, word(p), word(p + 8));
        }
    }
}

/* to [16, D] += p [16, 64] times a tile [64, D], where p is live */
template <int D, int LD>
__device__ __forceinline__ void add_product(float to[D / 8][4], const float p[8][4],
                                            const bf16 *tile, uint32_t live, struct coords c)
{
#pragma unroll
    for (int k = 0; k < 4; k++) {
        if (!(live >> (2 * k) & 3))
            continue;
        uint32_t a[4] = {pack(p[2 * k][0], p[2 * k][1]), pack(p[2 * k][2], p[2 * k][3]),
                         pack(p[2 * k + 1][0], p[2 * k + 1][1]),
                         pack(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
        for (int j = 0; j < D / 8; j += 2) {
            uint32_t b[4];
            load_b_transposed<LD>(b, tile, k * 16, j * 8, c);
            mma(to[j], a, b[0], b[1]);
            mma(to[j + 1], a, b[2], b[3]);
        }
    }
}

template <int D, int LD>
__device__ __forceinline__ void load_tile(bf16 *to, const bf16 *from, int ld, int row0, int rows)
{
#pragma unroll
    for (int i = threadIdx.x; i < TILE * (D / 8); i += THREADS) {
        int r = i / (D / 8), col = i % (D / 8) * 8;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (row0 + r < rows)
            v = *(const uint4 *)(from + (size_t)(row0 + r) * ld + col);
        *(uint4 *)(to + r * LD + col) = v;
    }
}

/* Turns the gradient of a rotated row back and stores it: x holds columns 8 j + 2 t and + 1. */
template <int D>
__device__ void store_rotated_back(bf16 *to, const struct cr_flash &f, int row,
                                   const float (*x)[4], int half, struct coords c)
{
    const float2 *cs = (const float2 *)f.rope + (size_t)f.pos[row] * (D / 2);
    if (!f.neox) {
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            float2 r = cs[j * 4 + c.t];
            float a = x[j][half], b = x[j][half + 1];
            *(uint32_t *)(to + j * 8 + 2 * c.t) =
                pack(a * r.x + b * r.y, b * r.x - a * r.y);
        }
        return;
    }
#pragma unroll
    for (int j = 0; j < D / 16; j++) {
        float2 r0 = cs[j * 8 + 2 * c.t], r1 = cs[j * 8 + 2 * c.t + 1];
        float a0 = x[j][half], a1 = x[j][half + 1];
        float b0 = x[j + D / 16][half], b1 = x[j + D / 16][half + 1];
        *(uint32_t *)(to + j * 8 + 2 * c.t) = pack(a0 * r0.x + b0 * r0.y, a1 * r1.x + b1 * r1.y);
        *(uint32_t *)(to + D / 2 + j * 8 + 2 * c.t) =
            pack(b0 * r0.x - a0 * r0.y, b1 * r1.x - a1 * r1.y);
    }
}

struct limits { /* what the rows of a tile see */
    int seg[TILE], pre[TILE], pre_end[TILE];
};

/* Returns the first row that any row of the tile sees. */
__device__ int load_limits(struct limits *l, const struct cr_flash &f, int row0)
{
    __shared__ int least[2];
    if (threadIdx.x < TILE) {
        int row = row0 + threadIdx.x, lo = 0x7fffffff;
        bool in = row < f.rows;
        l->seg[threadIdx.x] = in ? lo = f.seg[row] : 0x7fffffff;
        bool pre = in && f.pre && f.pre_end[row] > f.pre[row];
        l->pre[threadIdx.x] = pre ? f.pre[row] : 0;
        l->pre_end[threadIdx.x] = pre ? f.pre_end[row] : 0;
        if (pre && f.pre[row] < lo)
            lo = f.pre[row];
        for (int i = 16; i > 0; i >>= 1)
            lo = min(lo, __shfl_xor_sync(0xffffffffu, lo, i));
        if (threadIdx.x % 32 == 0)
            least[threadIdx.x / 32] = lo;
    }
    __syncthreads();
    return min(least[0], least[1]);
}

struct view { /* of one row */
    int seg, row, pre, pre_end;
};

/* The first row that any of the 16 rows of this warp sees. */
__device__ __forceinline__ int warp_first(const struct limits *l, struct coords c)
{
    int r = c.warp * 16 + c.lane % 16, lo = l->seg[r];
    if (l->pre_end[r] > l->pre[r])
        lo = min(lo, l->pre[r]);
    for (int i = 8; i > 0; i >>= 1)
        lo = min(lo, __shfl_xor_sync(0xffffffffu, lo, i));
    return lo;
}

__device__ __forceinline__ struct view view_of(const struct limits *l, int row0, int r)
{
    struct view v = {l->seg[r], row0 + r, l->pre[r], l->pre_end[r]};
    return v;
}

template <bool PRE> __device__ __forceinline__ bool sees(struct view v, int key)
{
    return (key >= v.seg && key <= v.row) || (PRE && key >= v.pre && key < v.pre_end);
}

template <int D, bool PRE>
__global__ __launch_bounds__(THREADS) void forward_kernel(struct cr_flash f, bf16 *o)
{
    constexpr int LD = D + 8;
    extern __shared__ __align__(16) bf16 tiles[];
    bf16 *q = tiles, *k = q + TILE * LD, *v = k + TILE * LD;
    __shared__ struct limits l;
    const struct coords c = coords_of();
    int row0 = blockIdx.x * TILE, head = blockIdx.y, kv = head / (f.n_heads / f.n_kv_heads);
    int qd = f.n_heads * D, kd = f.n_kv_heads * D, own = c.warp * 16 + c.g;
    const bf16 *qkv = (const bf16 *)f.qkv;
    load_tile<D, LD>(q, qkv + head * D, f.ld, row0, f.rows);
    int k0 = load_limits(&l, f, row0), k_end = min(row0 + TILE, f.rows);
    const struct view see[2] = {view_of(&l, row0, own), view_of(&l, row0, own + 8)};

    const int lo = warp_first(&l, c), hi = row0 + c.warp * 16 + 16;
    float acc[D / 8][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
    const float scale = LOG2E / sqrtf((float)D);
    for (; k0 < k_end; k0 += TILE) {
        __syncthreads();
        load_tile<D, LD>(k, qkv + qd + kv * D, f.ld, k0, f.rows);
        load_tile<D, LD>(v, qkv + qd + kd + kv * D, f.ld, k0, f.rows);
        __syncthreads();
        float s[8][4], best[2] = {-INFINITY, -INFINITY}, fix[2];
        const uint32_t live = live_of(k0, lo, hi);
        scores<D, LD>(s, q, c.warp * 16, k, live, c);
#pragma unroll
        for (int j = 0; j < 8; j++)
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
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[j][i] = exp2f(s[j][i] - best[i / 2]);
                sum[i / 2] += s[j][i];
            }
#pragma unroll
        for (int j = 0; j < D / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                acc[j][i] *= fix[i / 2];
        add_product<D, LD>(acc, s, v, live, c);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 1);
        sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 2);
        int row = row0 + own + i * 8;
        if (row >= f.rows)
            continue;
        float inverse = 1.0f / sum[i];
        bf16 *to = o + (size_t)row * qd + head * D + 2 * c.t;
#pragma unroll
        for (int j = 0; j < D / 8; j++)
            *(uint32_t *)(to + j * 8) = pack(acc[j][2 * i] * inverse, acc[j][2 * i + 1] * inverse);
        if (f.lse && c.t == 0)
            f.lse[(size_t)row * f.n_heads + head] = max[i] + log2f(sum[i]);
    }
}

template <int D>
__global__ __launch_bounds__(THREADS) void dq_kernel(struct cr_flash f, const bf16 *o,
                                                     const bf16 *d_o, bf16 *dqkv)
{
    constexpr int LD = D + 8;
    extern __shared__ __align__(16) bf16 tiles[];
    bf16 *q = tiles, *k = q + TILE * LD, *v = k + TILE * LD, *out = v + TILE * LD;
    __shared__ struct limits l;
    __shared__ float lse[TILE], delta[TILE];
    const struct coords c = coords_of();
    int row0 = blockIdx.x * TILE, head = blockIdx.y, kv = head / (f.n_heads / f.n_kv_heads);
    int qd = f.n_heads * D, kd = f.n_kv_heads * D, own = c.warp * 16 + c.g;
    const bf16 *qkv = (const bf16 *)f.qkv;
    load_tile<D, LD>(q, qkv + head * D, f.ld, row0, f.rows);
    load_tile<D, LD>(out, d_o + head * D, qd, row0, f.rows);
    { /* two threads per row */
        int r = threadIdx.x / 2, row = row0 + r;
        float sum = 0;
        const size_t at = (size_t)row * qd + head * D + threadIdx.x % 2 * (D / 2);
#pragma unroll
        for (int i = 0; i < D / 2; i += 8) {
            float x[8], y[8];
            if (row >= f.rows)
                break;
            load8(o + at + i, x);
            load8(d_o + at + i, y);
#pragma unroll
            for (int n = 0; n < 8; n++)
                sum += x[n] * y[n];
        }
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        if (threadIdx.x % 2 == 0) {
            delta[r] = sum;
            lse[r] = row < f.rows ? f.lse[(size_t)row * f.n_heads + head] : 0;
            if (row < f.rows)
                f.delta[(size_t)row * f.n_heads + head] = sum;
        }
    }
    int k0 = load_limits(&l, f, row0), k_end = min(row0 + TILE, f.rows);
    const struct view see[2] = {view_of(&l, row0, own), view_of(&l, row0, own + 8)};
    const int lo = warp_first(&l, c), hi = row0 + c.warp * 16 + 16;
    const float own_lse[2] = {lse[own], lse[own + 8]}, own_delta[2] = {delta[own], delta[own + 8]};

    float acc[D / 8][4] = {};
    const float scale = 1.0f / sqrtf((float)D);
    for (; k0 < k_end; k0 += TILE) {
        __syncthreads();
        load_tile<D, LD>(k, qkv + qd + kv * D, f.ld, k0, f.rows);
        load_tile<D, LD>(v, qkv + qd + kd + kv * D, f.ld, k0, f.rows);
        __syncthreads();
        float s[8][4], dp[8][4];
        const uint32_t live = live_of(k0, lo, hi);
        scores<D, LD>(s, q, c.warp * 16, k, live, c);
        scores<D, LD>(dp, out, c.warp * 16, v, live, c);
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int key = k0 + j * 8 + 2 * c.t + i % 2;
                float p = sees<false>(see[i / 2], key)
                              ? exp2f(s[j][i] * scale * LOG2E - own_lse[i / 2])
                              : 0.0f;
                s[j][i] = p * (dp[j][i] - own_delta[i / 2]) * scale;
            }
        add_product<D, LD>(acc, s, k, live, c);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = row0 + own + i * 8;
        if (row < f.rows)
            store_rotated_back<D>(dqkv + (size_t)row * f.ld + head * D, f, row, acc, 2 * i, c);
    }
}

template <int D>
__global__ __launch_bounds__(THREADS) void dkv_kernel(struct cr_flash f, const bf16 *d_o,
                                                      bf16 *dqkv)
{
    constexpr int LD = D + 8;
    extern __shared__ __align__(16) bf16 tiles[];
    bf16 *q = tiles, *k = q + TILE * LD, *v = k + TILE * LD, *out = v + TILE * LD;
    __shared__ int seg[TILE], most[2];
    __shared__ float lse[TILE], delta[TILE];
    const struct coords c = coords_of();
    int k0 = blockIdx.x * TILE, kv = blockIdx.y, group = f.n_heads / f.n_kv_heads;
    int qd = f.n_heads * D, kd = f.n_kv_heads * D, own = c.warp * 16 + c.g;
    const bf16 *qkv = (const bf16 *)f.qkv;
    load_tile<D, LD>(k, qkv + qd + kv * D, f.ld, k0, f.rows);
    load_tile<D, LD>(v, qkv + qd + kd + kv * D, f.ld, k0, f.rows);
    int last = 0; /* end of what sees the keys of this warp */
    for (int i = 0; i < 16; i++) {
        int row = k0 + c.warp * 16 + i;
        last = row < f.rows ? max(last, f.end[row]) : last;
    }
    if (threadIdx.x < TILE) {
        int end = k0 + threadIdx.x < f.rows ? f.end[k0 + threadIdx.x] : 0;
        for (int i = 16; i > 0; i >>= 1)
            end = max(end, __shfl_xor_sync(0xffffffffu, end, i));
        if (threadIdx.x % 32 == 0)
            most[threadIdx.x / 32] = end;
    }
    __syncthreads();
    int q_end = max(most[0], most[1]);

    float dk[D / 8][4] = {}, dv[D / 8][4] = {};
    const float scale = 1.0f / sqrtf((float)D);
    for (int h = 0; h < group; h++) {
        int head = kv * group + h;
        for (int q0 = k0; q0 < q_end; q0 += TILE) {
            __syncthreads();
            load_tile<D, LD>(q, qkv + head * D, f.ld, q0, f.rows);
            load_tile<D, LD>(out, d_o + head * D, qd, q0, f.rows);
            if (threadIdx.x < TILE) {
                int row = q0 + threadIdx.x;
                bool in = row < f.rows;
                seg[threadIdx.x] = in ? f.seg[row] : 0x7fffffff;
                lse[threadIdx.x] = in ? f.lse[(size_t)row * f.n_heads + head] : 0;
                delta[threadIdx.x] = in ? f.delta[(size_t)row * f.n_heads + head] : 0;
            }
            __syncthreads();
            float s[8][4], dp[8][4];
            const uint32_t live = live_of(q0, k0 + c.warp * 16, last);
            scores<D, LD>(s, k, c.warp * 16, q, live, c);
            scores<D, LD>(dp, v, c.warp * 16, out, live, c);
#pragma unroll
            for (int j = 0; j < 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int key = k0 + own + (i / 2) * 8, r = j * 8 + 2 * c.t + i % 2;
                    bool seen = key >= seg[r] && key <= q0 + r;
                    s[j][i] = seen ? exp2f(s[j][i] * scale * LOG2E - lse[r]) : 0.0f;
                    dp[j][i] = s[j][i] * (dp[j][i] - delta[r]) * scale;
                }
            add_product<D, LD>(dv, s, out, live, c);
            add_product<D, LD>(dk, dp, q, live, c);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = k0 + own + i * 8;
        if (row >= f.rows)
            continue;
        bf16 *to = dqkv + (size_t)row * f.ld + qd + kv * D;
        store_rotated_back<D>(to, f, row, dk, 2 * i, c);
#pragma unroll
        for (int j = 0; j < D / 8; j++)
            *(uint32_t *)(to + kd + j * 8 + 2 * c.t) = pack(dv[j][2 * i], dv[j][2 * i + 1]);
    }
}

/* ---- launching, by head size ---- */

template <int D> static size_t bytes(int n_tiles)
{
    return (size_t)n_tiles * TILE * (D + 8) * sizeof(bf16);
}

template <int D> static void forward(cudaStream_t s, const struct cr_flash *f, bf16 *o)
{
    dim3 grid((unsigned)(f->rows + TILE - 1) / TILE, (unsigned)f->n_heads);
    cudaFuncSetAttribute(f->pre ? forward_kernel<D, true> : forward_kernel<D, false>,
                         cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes<D>(3));
    if (f->pre)
        forward_kernel<D, true><<<grid, THREADS, bytes<D>(3), s>>>(*f, o);
    else
        forward_kernel<D, false><<<grid, THREADS, bytes<D>(3), s>>>(*f, o);
}

template <int D>
static void back(cudaStream_t s, const struct cr_flash *f, const bf16 *o, const bf16 *d_o,
                 bf16 *dqkv)
{
    unsigned n = (unsigned)(f->rows + TILE - 1) / TILE;
    cudaFuncSetAttribute(dq_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         (int)bytes<D>(4));
    cudaFuncSetAttribute(dkv_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         (int)bytes<D>(4));
    dq_kernel<D><<<dim3(n, (unsigned)f->n_heads), THREADS, bytes<D>(4), s>>>(*f, o, d_o, dqkv);
    dkv_kernel<D><<<dim3(n, (unsigned)f->n_kv_heads), THREADS, bytes<D>(4), s>>>(*f, d_o, dqkv);
}

#define BY_SIZE(call)                                                                              \
    switch (f->head_dim) {                                                                         \
    case 16: call(16); break;                                                                      \
    case 32: call(32); break;                                                                      \
    case 48: call(48); break;                                                                      \
    case 64: call(64); break;                                                                      \
    case 80: call(80); break;                                                                      \
    case 96: call(96); break;                                                                      \
    case 128: call(128); break;                                                                    \
    }

bool cr_k_attention_can(int head_dim)
{
    return head_dim == 16 || head_dim == 32 || head_dim == 48 || head_dim == 64 ||
           head_dim == 80 || head_dim == 96 || head_dim == 128;
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
