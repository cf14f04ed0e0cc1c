/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The low-rank part of a SHARED pool of rank 8 without a product per adapter: a group's
 * B_eff = s sum_n a_n B_n is made once per layer, so the cost does not grow with N.
 *
 * Forward: y += B_eff u on tensor cores, inside kernels that read y anyway (rotation, residual and
 * norm, SwiGLU). Backward: one pass over dy makes du = B_eff^T dy and dB_eff = u^T dy of each chunk
 * (rows of one group); for gate and up it is the pass that makes dy. Then dB_n = s sum_chunks a_n
 * dB_eff and da_n = s <dB_eff, B_n>.
 *
 * Layout: B_eff and dB_eff hold per group or chunk the linears of a layer one after the other, each
 * [8, n_out]; `total` numbers in all.
 *
 * This file has B_eff and the way there, thin_back.cu the way back.
 */
#include "thin.cuh"

/* ---- B_eff ---- */

enum { MIX_GROUPS = 8, MIX_AT_ONCE = 4, MIX_N = 64 }; /* MIX_N: adapters whose weights wait */

/* Four columns a thread, MIX_GROUPS groups. */
__global__ __launch_bounds__(THREADS) void mix_kernel(const __grid_constant__ struct cr_thin p,
                                                      bf16 *beff, const float *params,
                                                      const float *a, int groups)
{
    __shared__ __align__(16) float w[MIX_N][MIX_GROUPS];
    const int col = (blockIdx.x * THREADS + threadIdx.x) * 4, g0 = blockIdx.y * MIX_GROUPS;
    const int i = linear_of(p, min(col, p.total - 4));
    const float *b = params + p.from[i] + (min(col, p.total - 4) - p.at[i]);
    float sum[MIX_GROUPS][4] = {};
    for (int n0 = 0; n0 < p.n; n0 += MIX_N) {
        __syncthreads();
        for (int k = threadIdx.x; k < MIX_N * MIX_GROUPS; k += THREADS) {
            int n = n0 + k / MIX_GROUPS, g = g0 + k % MIX_GROUPS;
            w[k / MIX_GROUPS][k % MIX_GROUPS] =
                n < p.n && g < groups ? p.s * a[(size_t)g * p.n + n] : 0.0f;
        }
        __syncthreads();
        for (int n = n0; n < min(p.n, n0 + MIX_N); n += MIX_AT_ONCE) {
            float4 v[MIX_AT_ONCE];
#pragma unroll
            for (int k = 0; k < MIX_AT_ONCE; k++)
                v[k] = n + k < p.n ? *(const float4 *)(b + (size_t)(n + k) * p.size[i])
                                   : make_float4(0, 0, 0, 0);
#pragma unroll
            for (int k = 0; k < MIX_AT_ONCE; k++)
#pragma unroll
                for (int g = 0; g < MIX_GROUPS; g++) {
                    const float x = w[n - n0 + k][g];
                    sum[g][0] += x * v[k].x, sum[g][1] += x * v[k].y;
                    sum[g][2] += x * v[k].z, sum[g][3] += x * v[k].w;
                }
        }
    }
    if (col >= p.total)
        return;
#pragma unroll
    for (int g = 0; g < MIX_GROUPS; g++)
        if (g0 + g < groups)
            *(uint2 *)(beff + (size_t)(g0 + g) * p.total + col) =
                make_uint2(pack(sum[g][0], sum[g][1]), pack(sum[g][2], sum[g][3]));
}

void cr_k_thin_mix(cudaStream_t s, const struct cr_thin *p, uint16_t *beff, const float *params,
                   const float *a, int groups)
{
    dim3 grid(blocks(p->total, 4 * THREADS), blocks(groups, MIX_GROUPS));
    if (p->total)
        mix_kernel<<<grid, THREADS, 0, s>>>(*p, (bf16 *)beff, params, a, groups);
}

static int n_wide(const struct cr_thin_stage *st)
{
    int n = 0;
    for (int i = 0; i < st->n_lins; i++)
        n += (st->lin[i].width + WIDE - 1) / WIDE;
    return n;
}

/* ---- forward ---- */

/* Pairs of columns are turned. */
__device__ __forceinline__ void turn(float x[4][4], const struct cr_thin_rope &r, int row, int half,
                                     int col)
{
    const float4 *cs = (const float4 *)(r.table + (size_t)r.pos[row] * r.d + col % r.d);
#pragma unroll
    for (int k = 0; k < 2; k++) {
        float4 v = cs[k];
        float a = x[2 * k][2 * half], b = x[2 * k][2 * half + 1];
        x[2 * k][2 * half] = a * v.x - b * v.y;
        x[2 * k][2 * half + 1] = a * v.y + b * v.x;
        a = x[2 * k + 1][2 * half], b = x[2 * k + 1][2 * half + 1];
        x[2 * k + 1][2 * half] = a * v.z - b * v.w;
        x[2 * k + 1][2 * half + 1] = a * v.w + b * v.z;
    }
}

/* A warp takes 32 columns of a chunk, one piece after the other. */
template <bool ROPE>
__global__
__launch_bounds__(THREADS) void add_kernel(const __grid_constant__ struct cr_thin p,
                                           const __grid_constant__ struct cr_thin_stage st,
                                           const struct cr_chunk *chunks, const bf16 *beff, bf16 *y,
                                           int ld, const __grid_constant__ struct cr_thin_rope rope)
{
    const struct coords c = coords_of();
    const struct cr_chunk chunk = chunks[blockIdx.x];
    int lin, col0;
    if (!find(st, blockIdx.y * WARPS + c.warp, &lin, &col0))
        return;
    const struct cr_thin_lin &l = st.lin[lin];
    const bool low = l.beff >= 0;
    const int col = col0 + 8 * c.t;
    const bool in = col < l.width, turned = ROPE && in && l.out + col < rope.columns;
    bf16 *at = y + (size_t)chunk.row * ld + l.out;
    const bf16 *u_at = y + (size_t)chunk.row * ld + st.n_out + l.u;
    uint4 v[2], next[2];
    struct mixed b = {};
    struct hidden u = {0, 0}, next_u = {0, 0};
    load_rows(v, at, ld, chunk.n_rows, col, in, c);
    if (low) {
        b = load_b(beff + (size_t)chunk.group * p.total + l.beff, l.width, col0, c);
        u = load_u(u_at, ld, chunk.n_rows, c);
    }
    for (int r0 = 0; r0 < chunk.n_rows; r0 += PIECE) {
        const int n_rows = chunk.n_rows - r0;
        const size_t below = (size_t)(r0 + PIECE) * ld;
        load_rows(next, at + below, ld, n_rows - PIECE, col, in, c);
        if (low)
            next_u = load_u(u_at + below, ld, n_rows - PIECE, c);
        float x[4][4];
        unpack_rows(x, v);
        if (low)
            add_low(x, u, b, c);
        if (turned)
#pragma unroll
            for (int half = 0; half < 2; half++)
                if (c.g + 8 * half < n_rows)
                    turn(x, rope, chunk.row + r0 + c.g + 8 * half, half, l.out + col);
        pack_rows(v, x);
        store_rows(at + (size_t)r0 * ld, ld, n_rows, col, in, v, c);
        v[0] = next[0], v[1] = next[1];
        u = next_u;
    }
}

void cr_k_thin_add(cudaStream_t s, const struct cr_thin *p, const struct cr_thin_stage *st,
                   const struct cr_chunk *chunks, int n_chunks, const uint16_t *beff, uint16_t *y,
                   int ld, const struct cr_thin_rope *rope)
{
    const struct cr_thin_rope none = {NULL, NULL, 8, 0};
    dim3 grid((unsigned)n_chunks, blocks(n_wide(st), WARPS));
    if (!n_chunks)
        return;
    if (rope)
        add_kernel<true>
            <<<grid, THREADS, 0, s>>>(*p, *st, chunks, (const bf16 *)beff, (bf16 *)y, ld, *rope);
    else
        add_kernel<false>
            <<<grid, THREADS, 0, s>>>(*p, *st, chunks, (const bf16 *)beff, (bf16 *)y, ld, none);
}

/* A block takes all columns of a piece, a warp G times 32 of them. */
template <int G, int MOST, int BLOCKS>
__global__ __launch_bounds__(32 * MOST, BLOCKS) void add_norm_kernel(
    const __grid_constant__ struct cr_thin p, const __grid_constant__ struct cr_thin_stage st,
    const struct cr_chunk *chunks, const bf16 *beff, const bf16 *y, int ld, bf16 *keep, bf16 *out,
    bf16 *h, const bf16 *x, const int *index, const float *w, float eps)
{
    __shared__ float part[MOST][PIECE];
    const struct coords c = coords_of();
    const struct cr_chunk piece = piece_of(chunks[blockIdx.x], blockIdx.y);
    const int e = st.n_out, n_warps = blockDim.x / 32;
    if (piece.n_rows <= 0)
        return;
    const struct cr_thin_lin &l = st.lin[0];
    y += (size_t)piece.row * ld;
    out += (size_t)piece.row * e;
    const bf16 *from[2] = {x, x};
#pragma unroll
    for (int half = 0; half < 2; half++)
        if (c.g + 8 * half < piece.n_rows) {
            int row = piece.row + c.g + 8 * half;
            from[half] += (size_t)(index ? index[row] : row) * e;
        }
    uint4 v[G][2], old[G][2];
    struct mixed b[G];
    struct hidden u = {0, 0};
    if (l.beff >= 0) {
        u = load_u(y + e + l.u, ld, piece.n_rows, c);
        if (c.warp == 0) {
            bf16 *to = keep + (size_t)piece.row * st.n_u + l.u + 2 * c.t;
            if (c.g < piece.n_rows)
                *(uint32_t *)(to + (size_t)c.g * st.n_u) = u.lo;
            if (c.g + 8 < piece.n_rows)
                *(uint32_t *)(to + (size_t)(c.g + 8) * st.n_u) = u.hi;
        }
    }
#pragma unroll
    for (int k = 0; k < G; k++) {
        int col0 = (c.warp + k * n_warps) * WIDE, col = col0 + 8 * c.t;
        load_rows(v[k], y, ld, piece.n_rows, col, col < e, c);
        old[k][0] = load16(from[0] + col, col < e && c.g < piece.n_rows);
        old[k][1] = load16(from[1] + col, col < e && c.g + 8 < piece.n_rows);
        if (l.beff >= 0)
            b[k] = load_b(beff + (size_t)piece.group * p.total + l.beff, e, col0, c);
    }
    float sum[2] = {0, 0};
#pragma unroll
    for (int k = 0; k < G; k++) {
        int col = (c.warp + k * n_warps) * WIDE + 8 * c.t;
        float a[4][4], r[4][4];
        unpack_rows(a, v[k]);
        unpack_rows(r, old[k]);
        if (l.beff >= 0)
            add_low(a, u, b[k], c);
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                a[j][i] = rounded(a[j][i] + r[j][i]);
                sum[i / 2] += a[j][i] * a[j][i];
            }
        pack_rows(v[k], a);
        store_rows(out, e, piece.n_rows, col, col < e, v[k], c);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
        sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
        if (c.t == 0)
            part[c.warp][c.g + 8 * half] = sum[half];
    }
    __syncthreads();
    float scale[2] = {0, 0};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        for (int i = 0; i < n_warps; i++)
            scale[half] += part[i][c.g + 8 * half];
        scale[half] = rsqrtf(scale[half] / (float)e + eps);
    }
    h += (size_t)piece.row * e;
#pragma unroll
    for (int k = 0; k < G; k++) {
        int col = (c.warp + k * n_warps) * WIDE + 8 * c.t;
        if (col >= e)
            break;
        float a[4][4];
        unpack_rows(a, v[k]);
        const float4 lo = *(const float4 *)(w + col), hi = *(const float4 *)(w + col + 4);
        const float m[8] = {lo.x, lo.y, lo.z, lo.w, hi.x, hi.y, hi.z, hi.w};
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[j][i] *= scale[i / 2] * m[2 * j + i % 2];
        pack_rows(v[k], a);
        store_rows(h, e, piece.n_rows, col, true, v[k], c);
    }
}

void cr_k_thin_add_norm(cudaStream_t s, const struct cr_thin *p, const struct cr_thin_stage *st,
                        const struct cr_chunk *chunks, int n_chunks, const uint16_t *beff,
                        const uint16_t *y, int ld, uint16_t *keep, uint16_t *out, uint16_t *h,
                        const uint16_t *x, const int *row, const float *w, float eps)
{
    dim3 grid((unsigned)n_chunks, ROWS / PIECE);
#define ADD_NORM(G, MOST, BLOCKS)                                                                  \
    add_norm_kernel<G, MOST, BLOCKS><<<grid, 32 * blocks(n_wide(st), G), 0, s>>>(                  \
        *p, *st, chunks, (const bf16 *)beff, (const bf16 *)y, ld, (bf16 *)keep, (bf16 *)out,       \
        (bf16 *)h, (const bf16 *)x, row, w, eps)
    if (n_chunks && n_wide(st) <= 2 * 9)
        ADD_NORM(2, 9, 3);
    else if (n_chunks && n_wide(st) <= 4 * 16)
        ADD_NORM(4, 16, 1);
    else if (n_chunks)
        ADD_NORM(8, 16, 1);
}

/* A warp takes 32 columns of a chunk, one piece after the other. */
__global__ __launch_bounds__(THREADS,
                             5) void swiglu_kernel(const __grid_constant__ struct cr_thin p,
                                                   const __grid_constant__ struct cr_thin_stage st,
                                                   const struct cr_chunk *chunks, const bf16 *beff,
                                                   bf16 *h, const bf16 *y, int ld)
{
    const struct coords c = coords_of();
    const struct cr_chunk chunk = chunks[blockIdx.x];
    const struct cr_thin_lin &gate = st.lin[0], &up = st.lin[1];
    const int f = gate.width, col0 = (blockIdx.y * WARPS + c.warp) * WIDE, col = col0 + 8 * c.t;
    const bool in = col < f;
    if (col0 >= f)
        return;
    y += (size_t)chunk.row * ld;
    h += (size_t)chunk.row * f;
    beff += (size_t)chunk.group * p.total;
    struct mixed bg = {}, bu = {};
    struct gated x = load_gated(st, y, ld, chunk.n_rows, col, in, c);
    if (gate.beff >= 0)
        bg = load_b(beff + gate.beff, f, col0, c);
    if (up.beff >= 0)
        bu = load_b(beff + up.beff, f, col0, c);
#pragma unroll 1
    for (int r0 = 0; r0 < chunk.n_rows; r0 += PIECE) {
        const int n_rows = chunk.n_rows - r0;
        struct gated next =
            load_gated(st, y + (size_t)(r0 + PIECE) * ld, ld, n_rows - PIECE, col, in, c);
        float a[4][4], b[4][4];
        unpack_rows(a, x.g);
        unpack_rows(b, x.u);
        add_low(a, x.low_g, bg, c);
        add_low(b, x.low_u, bu, c);
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[j][i] = __fdividef(a[j][i], 1.0f + __expf(-a[j][i])) * b[j][i];
        pack_rows(x.g, a);
        store_rows(h + (size_t)r0 * f, f, n_rows, col, in, x.g, c);
        x = next;
    }
}

void cr_k_thin_swiglu(cudaStream_t s, const struct cr_thin *p, const struct cr_thin_stage *st,
                      const struct cr_chunk *chunks, int n_chunks, const uint16_t *beff,
                      uint16_t *h, const uint16_t *y, int ld)
{
    dim3 grid((unsigned)n_chunks, blocks(st->lin[0].width, WIDE * WARPS));
    if (n_chunks)
        swiglu_kernel<<<grid, THREADS, 0, s>>>(*p, *st, chunks, (const bf16 *)beff, (bf16 *)h,
                                               (const bf16 *)y, ld);
}
