/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The low-rank part of a SHARED pool of rank 8 without a product per adapter: a group's
 * B_eff = s sum_n a_n B_n is made once per layer, so the cost does not grow with N.
 *
 * Forward: y += B_eff u, inside kernels that read and write y anyway (rotation, SwiGLU). A thread
 * keeps its columns of B_eff in registers and walks the rows of a chunk (one group).
 * Backward: one pass over dy makes du = B_eff^T dy and dB_eff = u^T dy of each chunk on tensor
 * cores; then dB_n = s sum_chunks a_n dB_eff and da_n = s <dB_eff, B_n>.
 *
 * Layout: B_eff and dB_eff hold per group or chunk the linears of a layer one after the other, each
 * [8, n_out]; `total` numbers in all.
 */
#include "device.cuh"
#include "kernels.h"
#include "mma.cuh"

enum { R = 8, ROWS = CR_CHUNK_ROWS, THREADS = 128 };

static unsigned blocks(size_t n, size_t per)
{
    return (unsigned)((n + per - 1) / per);
}

/* The linear that column `col` of all belongs to. */
__device__ __forceinline__ int linear_of(const struct cr_thin &p, int col)
{
    int i = 0;
    while (i + 1 < p.n_lins && col >= p.at[i + 1])
        i++;
    return i;
}

/* ---- B_eff ---- */

enum { MIX_GROUPS = 8 };

/* Two columns a thread, MIX_GROUPS groups. */
__global__ void mix_kernel(const __grid_constant__ struct cr_thin p, bf16 *beff, const float *params, const float *a,
                           int groups)
{
    int col = (blockIdx.x * THREADS + threadIdx.x) * 2, g0 = blockIdx.y * MIX_GROUPS;
    if (col >= p.total)
        return;
    int i = linear_of(p, col);
    const float *b = params + p.from[i] + (col - p.at[i]);
    float2 sum[MIX_GROUPS];
#pragma unroll
    for (int g = 0; g < MIX_GROUPS; g++)
        sum[g] = make_float2(0, 0);
    for (int n = 0; n < p.n; n++) {
        float2 v = *(const float2 *)(b + (size_t)n * p.size[i]);
#pragma unroll
        for (int g = 0; g < MIX_GROUPS; g++) {
            float w = g0 + g < groups ? a[(size_t)(g0 + g) * p.n + n] : 0.0f;
            sum[g].x += w * v.x;
            sum[g].y += w * v.y;
        }
    }
#pragma unroll
    for (int g = 0; g < MIX_GROUPS; g++)
        if (g0 + g < groups)
            *(uint32_t *)(beff + (size_t)(g0 + g) * p.total + col) =
                pack(p.s * sum[g].x, p.s * sum[g].y);
}

void cr_k_thin_mix(cudaStream_t s, const struct cr_thin *p, uint16_t *beff, const float *params,
                   const float *a, int groups)
{
    dim3 grid(blocks(p->total, 2 * THREADS), blocks(groups, MIX_GROUPS));
    mix_kernel<<<grid, THREADS, 0, s>>>(*p, (bf16 *)beff, params, a, groups);
}

/* ---- forward ---- */

__device__ __forceinline__ void unpack4(uint2 raw, float v[4])
{
    const __nv_bfloat162 *h = (const __nv_bfloat162 *)&raw;
    float2 x = __bfloat1622float2(h[0]), y = __bfloat1622float2(h[1]);
    v[0] = x.x, v[1] = x.y, v[2] = y.x, v[3] = y.y;
}

__device__ __forceinline__ void load4(const bf16 *p, float v[4])
{
    unpack4(*(const uint2 *)p, v);
}

__device__ __forceinline__ void store4(bf16 *p, const float v[4])
{
    *(uint2 *)p = make_uint2(pack(v[0], v[1]), pack(v[2], v[3]));
}

/* A block takes PIECE rows of a chunk: enough blocks to hide the latency of memory. */
enum { PIECE = 16 };

__device__ __forceinline__ struct cr_chunk piece_of(struct cr_chunk c, int which)
{
    c.row += which * PIECE;
    c.n_rows = min(PIECE, c.n_rows - which * PIECE);
    return c;
}

/* u [rows, n_u] of a piece as float32 into shared memory; keep gets a copy. */
__device__ __forceinline__ void load_u(float *to, const bf16 *u, int ld, int n_u,
                                       struct cr_chunk c, bf16 *keep)
{
    for (int i = threadIdx.x; i < c.n_rows * n_u; i += blockDim.x) {
        int row = i / n_u, j = i % n_u;
        bf16 x = u[(size_t)(c.row + row) * ld + j];
        to[row * n_u + j] = __bfloat162float(x);
        if (keep)
            keep[(size_t)(c.row + row) * n_u + j] = x;
    }
    __syncthreads();
}

/* w [8, 4] = four columns of a linear's B_eff, 0 where it has none. */
__device__ __forceinline__ void load_w(float w[R][4], const bf16 *beff, const struct cr_thin &p,
                                       const struct cr_thin_lin &l, int group, int col)
{
#pragma unroll
    for (int j = 0; j < R; j++) {
        w[j][0] = w[j][1] = w[j][2] = w[j][3] = 0;
        if (l.beff >= 0)
            load4(beff + (size_t)group * p.total + l.beff + j * l.width + (col - l.out), w[j]);
    }
}

__device__ __forceinline__ void add_low(float y[4], const float *u, const float w[R][4])
{
    const float4 lo = *(const float4 *)u, hi = *(const float4 *)(u + 4);
    const float x[R] = {lo.x, lo.y, lo.z, lo.w, hi.x, hi.y, hi.z, hi.w};
#pragma unroll
    for (int j = 0; j < R; j++)
#pragma unroll
        for (int k = 0; k < 4; k++)
            y[k] += x[j] * w[j][k];
}

enum { AT_ONCE = 4, ADD_THREADS = 256 }; /* AT_ONCE: rows whose loads are in flight */

template <bool ROPE>
__global__ __launch_bounds__(ADD_THREADS) void add_kernel(const __grid_constant__ struct cr_thin p, const __grid_constant__ struct cr_thin_stage st,
                                                      const struct cr_chunk *chunks,
                                                      const bf16 *beff, bf16 *y, int ld, bf16 *keep,
                                                      struct cr_thin_rope rope)
{
    __shared__ __align__(16) float u[PIECE * 3 * R];
    struct cr_chunk c = piece_of(chunks[blockIdx.x], blockIdx.z);
    if (c.n_rows <= 0)
        return;
    load_u(u, y + st.n_out, ld, st.n_u, c, blockIdx.y == 0 ? keep : NULL);
    int col = (blockIdx.y * blockDim.x + threadIdx.x) * 4, i = 0;
    if (col >= st.n_out)
        return;
    while (i + 1 < st.n_lins && col >= st.lin[i + 1].out)
        i++;
    const struct cr_thin_lin l = st.lin[i];
    float w[R][4];
    load_w(w, beff, p, l, c.group, col);
    bool turn = ROPE && col < rope.columns;
    for (int r0 = 0; r0 < c.n_rows; r0 += AT_ONCE) {
        float v[AT_ONCE][4];
        float4 cs[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            if (r0 + k < c.n_rows) {
                load4(y + (size_t)(c.row + r0 + k) * ld + col, v[k]);
                if (turn)
                    cs[k] = *(const float4 *)(rope.table +
                                              (size_t)rope.pos[c.row + r0 + k] * rope.d +
                                              col % rope.d);
            }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            if (r0 + k < c.n_rows) {
                if (l.beff >= 0)
                    add_low(v[k], u + (r0 + k) * st.n_u + l.u, w);
                if (turn) {
                    float a = v[k][0], b = v[k][1], e = v[k][2], f = v[k][3];
                    v[k][0] = a * cs[k].x - b * cs[k].y;
                    v[k][1] = a * cs[k].y + b * cs[k].x;
                    v[k][2] = e * cs[k].z - f * cs[k].w;
                    v[k][3] = e * cs[k].w + f * cs[k].z;
                }
                store4(y + (size_t)(c.row + r0 + k) * ld + col, v[k]);
            }
    }
}

void cr_k_thin_add(cudaStream_t s, const struct cr_thin *p, const struct cr_thin_stage *st,
                   const struct cr_chunk *chunks, int n_chunks, const uint16_t *beff, uint16_t *y,
                   int ld, uint16_t *keep, const struct cr_thin_rope *rope)
{
    const struct cr_thin_rope none = {NULL, NULL, 8, 0};
    unsigned parts = blocks(st->n_out, 4 * ADD_THREADS);
    unsigned threads = blocks(blocks(st->n_out, 4 * parts), 32) * 32;
    dim3 grid((unsigned)n_chunks, parts, ROWS / PIECE);
    if (!n_chunks)
        return;
    if (rope)
        add_kernel<true><<<grid, threads, 0, s>>>(*p, *st, chunks, (const bf16 *)beff, (bf16 *)y,
                                                  ld, (bf16 *)keep, *rope);
    else
        add_kernel<false><<<grid, threads, 0, s>>>(*p, *st, chunks, (const bf16 *)beff, (bf16 *)y,
                                                   ld, (bf16 *)keep, none);
}

__global__ __launch_bounds__(THREADS, 4) void swiglu_kernel(const __grid_constant__ struct cr_thin p, const __grid_constant__ struct cr_thin_stage st,
                                                         const struct cr_chunk *chunks,
                                                         const bf16 *beff, bf16 *h, bf16 *y, int ld)
{
    __shared__ __align__(16) float u[PIECE * 3 * R];
    struct cr_chunk c = piece_of(chunks[blockIdx.x], blockIdx.z);
    if (c.n_rows <= 0)
        return;
    load_u(u, y + st.n_out, ld, st.n_u, c, NULL);
    const struct cr_thin_lin gate = st.lin[0], up = st.lin[1];
    int f = gate.width, col = (blockIdx.y * THREADS + threadIdx.x) * 4;
    if (col >= f)
        return;
    float wg[R][4], wu[R][4];
    load_w(wg, beff, p, gate, c.group, col);
    load_w(wu, beff, p, up, c.group, f + col);
    for (int r0 = 0; r0 < c.n_rows; r0 += AT_ONCE) {
        uint2 g_raw[AT_ONCE], x_raw[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            if (r0 + k < c.n_rows) {
                const bf16 *from = y + (size_t)(c.row + r0 + k) * ld + col;
                g_raw[k] = *(const uint2 *)from;
                x_raw[k] = *(const uint2 *)(from + f);
            }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            if (r0 + k < c.n_rows) {
                size_t row = (size_t)(c.row + r0 + k);
                float g[4], x[4];
                unpack4(g_raw[k], g);
                unpack4(x_raw[k], x);
                if (gate.beff >= 0)
                    add_low(g, u + (r0 + k) * st.n_u + gate.u, wg);
                if (up.beff >= 0)
                    add_low(x, u + (r0 + k) * st.n_u + up.u, wu);
                store4(y + row * ld + col, g);
                store4(y + row * ld + f + col, x);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float v = rounded(g[i]);
                    g[i] = v / (1.0f + __expf(-v)) * rounded(x[i]);
                }
                store4(h + row * f + col, g);
            }
    }
}

void cr_k_thin_swiglu(cudaStream_t s, const struct cr_thin *p, const struct cr_thin_stage *st,
                      const struct cr_chunk *chunks, int n_chunks, const uint16_t *beff,
                      uint16_t *h, uint16_t *y, int ld)
{
    if (n_chunks)
        swiglu_kernel<<<dim3((unsigned)n_chunks, blocks(st->lin[0].width, 4 * THREADS),
                             ROWS / PIECE),
                        THREADS, 0, s>>>(*p, *st, chunks, (const bf16 *)beff, (bf16 *)h, (bf16 *)y, ld);
}

/* ---- backward ---- */

enum { TILE = 64, LD = TILE + 8 };

/* A tile [64 rows, 64 columns] of dy, 0 beyond the chunk and the linear. Does not wait. */
__device__ __forceinline__ void fetch_tile(bf16 *to, const bf16 *dy, int ld, int n_rows, int col,
                                           int width)
{
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * (TILE / 8); i += THREADS) {
        int r = i / (TILE / 8), k = i % (TILE / 8) * 8;
        bool in = r < n_rows && col + k < width;
        uint32_t at = (uint32_t)__cvta_generic_to_shared(to + r * LD + k);
        const bf16 *from = in ? dy + (size_t)r * ld + col + k : dy;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from),
                     "r"(in ? 16 : 0));
    }
    asm volatile("cp.async.commit_group;");
}

/* One chunk and linear a block. */
__global__ __launch_bounds__(THREADS) void back_kernel(const __grid_constant__ struct cr_thin p, const __grid_constant__ struct cr_thin_stage st,
                                                       const struct cr_chunk *chunks,
                                                       const bf16 *beff, const bf16 *dy, int ldy,
                                                       const bf16 *u, int ldu, bf16 *du,
                                                       float *part)
{
    __shared__ __align__(16) bf16 tiles[2][ROWS * LD];
    const struct coords c = coords_of();
    struct cr_chunk chunk = chunks[blockIdx.x];
    const struct cr_thin_lin l = st.lin[blockIdx.y];
    if (l.beff < 0)
        return;
    const bf16 *from = dy + (size_t)chunk.row * ldy + l.out;
    const bf16 *b = beff + (size_t)chunk.group * p.total + l.beff + c.g * l.width;
    float *to = part + (size_t)blockIdx.x * p.total + l.beff + c.g * l.width;
    fetch_tile(tiles[0], from, ldy, chunk.n_rows, 0, l.width);

    uint32_t ut[4][4]; /* u^T of 16 rows: hidden number g, rows 2 t and 2 t + 1 */
#pragma unroll
    for (int k = 0; k < 4; k++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = k * 16 + half * 8 + 2 * c.t;
            const bf16 *x = u + (size_t)(chunk.row + row) * ldu + l.u + c.g;
            uint32_t lo = row < chunk.n_rows ? *(const uint16_t *)x : 0;
            uint32_t hi = row + 1 < chunk.n_rows ? *(const uint16_t *)(x + ldu) : 0;
            ut[k][2 * half] = lo | hi << 16;
            ut[k][2 * half + 1] = 0;
        }
    }
    float sum[4] = {0, 0, 0, 0};
    for (int col = 0, at = 0; col < l.width; col += TILE, at ^= 1) {
        uint32_t bw[4][2];
#pragma unroll
        for (int k = 0; k < 4; k++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int o = col + k * 16 + half * 8 + 2 * c.t;
                bw[k][half] = o < l.width ? *(const uint32_t *)(b + o) : 0;
            }
        __syncthreads(); /* the other tile has been read */
        if (col + TILE < l.width) {
            fetch_tile(tiles[at ^ 1], from, ldy, chunk.n_rows, col + TILE, l.width);
            asm volatile("cp.async.wait_group 1;");
        } else {
            asm volatile("cp.async.wait_group 0;");
        }
        __syncthreads();
        const bf16 *tile = tiles[at];
        float db[2][4] = {};
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t x[4];
            load_a<LD>(x, tile, c.warp * 16, k * 16, c);
            mma(sum, x, bw[k][0], bw[k][1]);
            load_b_transposed<LD>(x, tile, k * 16, c.warp * 16, c);
            mma(db[0], ut[k], x[0], x[1]);
            mma(db[1], ut[k], x[2], x[3]);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int o = col + c.warp * 16 + i * 8 + 2 * c.t;
            if (o < l.width)
                *(float2 *)(to + o) = make_float2(db[i][0], db[i][1]);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int row = c.warp * 16 + c.g + i * 8;
        if (row < chunk.n_rows)
            *(uint32_t *)(du + (size_t)(chunk.row + row) * ldy + l.u + 2 * c.t) =
                pack(sum[2 * i], sum[2 * i + 1]);
    }
}

void cr_k_thin_back(cudaStream_t s, const struct cr_thin *p, const struct cr_thin_stage *st,
                    const struct cr_chunk *chunks, int n_chunks, const uint16_t *beff, uint16_t *dy,
                    int ldy, const uint16_t *u, int ldu, float *part)
{
    if (n_chunks)
        back_kernel<<<dim3((unsigned)n_chunks, (unsigned)st->n_lins), THREADS, 0, s>>>(
            *p, *st, chunks, (const bf16 *)beff, (const bf16 *)dy, ldy, (const bf16 *)u, ldu,
            (bf16 *)dy + st->n_out, part);
}

/* dB_n of NB adapters for one column a thread. The weights of SUM_CHUNKS chunks at a time wait in
 * shared memory, so that only the loads of part are on the way. */
enum { SUM_CHUNKS = 64 };

template <int NB>
__global__ __launch_bounds__(THREADS) void sum_kernel(const __grid_constant__ struct cr_thin p, int first_col, int n_cols,
                                                      float *grads, const float *part,
                                                      const struct cr_chunk *chunks, int n_chunks,
                                                      const float *a, bool add)
{
    __shared__ __align__(16) float w[SUM_CHUNKS][NB];
    int col = blockIdx.x * THREADS + threadIdx.x, n0 = blockIdx.y * NB;
    bool in = col < n_cols;
    col = first_col + (in ? col : 0);
    float sum[NB] = {};
    for (int c0 = 0; c0 < n_chunks; c0 += SUM_CHUNKS) {
        int count = min(SUM_CHUNKS, n_chunks - c0);
        __syncthreads();
        for (int i = threadIdx.x; i < SUM_CHUNKS * NB; i += THREADS) {
            int c = i / NB, n = n0 + i % NB;
            w[c][i % NB] =
                c < count && n < p.n ? a[(size_t)chunks[c0 + c].group * p.n + n] : 0.0f;
        }
        __syncthreads();
        const float *from = part + (size_t)c0 * p.total + col;
        for (int c = 0; c < count; c += 8) {
            float x[8];
#pragma unroll
            for (int k = 0; k < 8; k++)
                x[k] = c + k < count ? from[(size_t)(c + k) * p.total] : 0.0f;
#pragma unroll
            for (int k = 0; k < 8; k++)
#pragma unroll
                for (int n = 0; n < NB; n++)
                    sum[n] += w[c + k][n] * x[k];
        }
    }
    if (!in)
        return;
    int i = linear_of(p, col);
    float *to = grads + p.from[i] + (col - p.at[i]);
#pragma unroll
    for (int n = 0; n < NB; n++)
        if (n0 + n < p.n) {
            float *g = to + (size_t)(n0 + n) * p.size[i];
            *g = (add ? *g : 0.0f) + p.s * sum[n];
        }
}

void cr_k_thin_sum(cudaStream_t s, const struct cr_thin *p, int first_col, int n_cols, float *grads,
                   const float *part, const struct cr_chunk *chunks, int n_chunks, const float *a,
                   bool add)
{
    if (n_cols && p->n <= 8)
        sum_kernel<8><<<dim3(blocks(n_cols, THREADS), 1), THREADS, 0, s>>>(
            *p, first_col, n_cols, grads, part, chunks, n_chunks, a, add);
    else if (n_cols)
        sum_kernel<32><<<dim3(blocks(n_cols, THREADS), blocks(p->n, 32)), THREADS, 0, s>>>(
            *p, first_col, n_cols, grads, part, chunks, n_chunks, a, add);
}

/* da of four chunks, from a share of the columns: da [CR_THIN_SPLITS, chunks, N] += */
enum { WEIGHT_CHUNKS = 4, WEIGHT_N = 8 };

__global__ __launch_bounds__(THREADS) void weight_kernel(const __grid_constant__ struct cr_thin p, int first_col,
                                                         int n_cols, float *da, size_t da_step,
                                                         const float *part, const bf16 *copy,
                                                         int n_chunks)
{
    __shared__ float sums[THREADS / 32][WEIGHT_CHUNKS * WEIGHT_N];
    int c0 = blockIdx.x * WEIGHT_CHUNKS, n0 = blockIdx.z * WEIGHT_N;
    int per = (n_cols / 2 + CR_THIN_SPLITS - 1) / CR_THIN_SPLITS;
    int begin = blockIdx.y * per, end = min(begin + per, n_cols / 2);
    float acc[WEIGHT_CHUNKS][WEIGHT_N] = {};
    for (int q = begin + threadIdx.x; q < end; q += THREADS) {
        int col = first_col + 2 * q, i = linear_of(p, col);
        const bf16 *b = copy + p.from[i] + (col - p.at[i]);
        float2 x[WEIGHT_CHUNKS];
#pragma unroll
        for (int c = 0; c < WEIGHT_CHUNKS; c++)
            x[c] = c0 + c < n_chunks ? *(const float2 *)(part + (size_t)(c0 + c) * p.total + col)
                                     : make_float2(0, 0);
#pragma unroll
        for (int n = 0; n < WEIGHT_N; n++) {
            if (n0 + n >= p.n)
                break;
            float2 w = __bfloat1622float2(
                *(const __nv_bfloat162 *)(b + (size_t)(n0 + n) * p.size[i]));
#pragma unroll
            for (int c = 0; c < WEIGHT_CHUNKS; c++)
                acc[c][n] += x[c].x * w.x + x[c].y * w.y;
        }
    }
#pragma unroll
    for (int c = 0; c < WEIGHT_CHUNKS; c++)
#pragma unroll
        for (int n = 0; n < WEIGHT_N; n++) {
            float v = warp_sum(acc[c][n]);
            if (threadIdx.x % 32 == 0)
                sums[threadIdx.x / 32][c * WEIGHT_N + n] = v;
        }
    __syncthreads();
    int c = c0 + threadIdx.x / WEIGHT_N, n = n0 + threadIdx.x % WEIGHT_N;
    if (threadIdx.x < WEIGHT_CHUNKS * WEIGHT_N && c < n_chunks && n < p.n) {
        float v = 0;
        for (int w = 0; w < THREADS / 32; w++)
            v += sums[w][threadIdx.x];
        da[blockIdx.y * da_step + (size_t)c * p.n + n] += p.s * v;
    }
}

void cr_k_thin_weights(cudaStream_t s, const struct cr_thin *p, int first_col, int n_cols, float *da,
                       size_t da_step, const float *part, const uint16_t *copy, int n_chunks)
{
    dim3 grid(blocks(n_chunks, WEIGHT_CHUNKS), CR_THIN_SPLITS, blocks(p->n, WEIGHT_N));
    if (n_cols && n_chunks)
        weight_kernel<<<grid, THREADS, 0, s>>>(*p, first_col, n_cols, da, da_step, part,
                                               (const bf16 *)copy, n_chunks);
}
