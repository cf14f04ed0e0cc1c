/* SPDX-License-Identifier: Apache-2.0 */
/* The way back of the thin path: du, and the gradients of A, B and the weights (see thin.cu). */
#include "thin.cuh"

/* ---- du, and dB_eff of each chunk ---- */

/* du [16, 8] += dy B_eff^T over 32 columns. b: hidden number g, columns 8 t to 8 t + 7. */
__device__ __forceinline__ void add_du(float du[4], const uint4 dy[2], uint4 b)
{
    const uint32_t first[4] = {dy[0].x, dy[1].x, dy[0].y, dy[1].y};
    const uint32_t second[4] = {dy[0].z, dy[1].z, dy[0].w, dy[1].w};
    mma(du, first, b.x, b.y);
    mma(du, second, b.z, b.w);
}

/* db [8 hidden, 32] += u^T dy over 16 rows; ut: u transposed. Rows 8 to 15 of db stay 0. */
__device__ __forceinline__ void add_db(float db[4][4], struct hidden ut, const uint4 dy[2])
{
    const uint32_t a[4] = {ut.lo, 0, ut.hi, 0};
    mma(db[0], a, transposed(dy[0].x), transposed(dy[1].x));
    mma(db[1], a, transposed(dy[0].y), transposed(dy[1].y));
    mma(db[2], a, transposed(dy[0].z), transposed(dy[1].z));
    mma(db[3], a, transposed(dy[0].w), transposed(dy[1].w));
}

__device__ __forceinline__ struct hidden transposed_u(struct hidden u)
{
    struct hidden ut = {transposed(u.lo), transposed(u.hi)};
    return ut;
}

/* to [8, width] at column 8 t of hidden number g */
__device__ __forceinline__ void store_db(bf16 *to, int width, int col, const float db[4][4],
                                         struct coords c)
{
    if (col < width)
        *(uint4 *)(to + (size_t)c.g * width + col) =
            make_uint4(pack(db[0][0], db[0][1]), pack(db[1][0], db[1][1]), pack(db[2][0], db[2][1]),
                       pack(db[3][0], db[3][1]));
}

__device__ __forceinline__ void add4(float4 *sum, float4 x)
{
    sum->x += x.x, sum->y += x.y, sum->z += x.z, sum->w += x.w;
}

/* du of a chunk: `sum` is what lane i % 32 has of piece i / 32. */
__device__ __forceinline__ void store_du(bf16 *du, int ld, int n_rows, float4 sum, int i)
{
    int row = i / 32 * PIECE + i % 32 / 4;
    du += 2 * (i % 4);
    if (row < n_rows)
        *(uint32_t *)(du + (size_t)row * ld) = pack(sum.x, sum.y);
    if (row + 8 < n_rows)
        *(uint32_t *)(du + (size_t)(row + 8) * ld) = pack(sum.z, sum.w);
}

enum { BACK_WARPS = 6, PIECES = ROWS / PIECE };

/* One chunk and linear a block. */
__global__ __launch_bounds__(32 * BACK_WARPS) void back_kernel(
    const __grid_constant__ struct cr_thin p, const __grid_constant__ struct cr_thin_stage st,
    const struct cr_chunk *chunks, const bf16 *beff, const bf16 *dy, int ldy, const bf16 *u,
    int ldu, bf16 *du, bf16 *part)
{
    __shared__ float4 sums[BACK_WARPS][PIECES][32];
    const struct coords c = coords_of();
    const struct cr_chunk chunk = chunks[blockIdx.x];
    const struct cr_thin_lin &l = st.lin[blockIdx.y];
    if (l.beff < 0)
        return;
    dy += (size_t)chunk.row * ldy + l.out;
    u += (size_t)chunk.row * ldu + l.u;
    beff += (size_t)chunk.group * p.total + l.beff + c.g * l.width;
    part += (size_t)blockIdx.x * p.total + l.beff;
    float sum[PIECES][4] = {};
    struct hidden ut[PIECES];
#pragma unroll
    for (int k = 0; k < PIECES; k++)
        ut[k] = transposed_u(load_u(u + (size_t)k * PIECE * ldu, ldu, chunk.n_rows - k * PIECE, c));
    for (int col0 = c.warp * WIDE; col0 < l.width; col0 += BACK_WARPS * WIDE) {
        int col = col0 + 8 * c.t;
        uint4 b = load16(beff + col, col < l.width), v[PIECES][2];
#pragma unroll
        for (int k = 0; k < PIECES; k++)
            load_rows(v[k], dy + (size_t)k * PIECE * ldy, ldy, chunk.n_rows - k * PIECE, col,
                      col < l.width, c);
        float db[4][4] = {};
#pragma unroll
        for (int k = 0; k < PIECES; k++) {
            add_du(sum[k], v[k], b);
            add_db(db, ut[k], v[k]);
        }
        store_db(part, l.width, col, db, c);
    }
#pragma unroll
    for (int k = 0; k < PIECES; k++)
        sums[c.warp][k][c.lane] = make_float4(sum[k][0], sum[k][1], sum[k][2], sum[k][3]);
    __syncthreads(); /* u has been read, du may be there */
    if (threadIdx.x >= PIECES * 32)
        return;
    float4 all = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int w = 0; w < BACK_WARPS; w++)
        add4(&all, sums[w][c.warp][c.lane]);
    store_du(du + (size_t)chunk.row * ldy + l.u, ldy, chunk.n_rows, all, threadIdx.x);
}

void cr_k_thin_back(cudaStream_t s, const struct cr_thin *p, const struct cr_thin_stage *st,
                    const struct cr_chunk *chunks, int n_chunks, const uint16_t *beff, uint16_t *dy,
                    int ldy, const uint16_t *u, int ldu, uint16_t *part)
{
    if (n_chunks)
        back_kernel<<<dim3((unsigned)n_chunks, (unsigned)st->n_lins), 32 * BACK_WARPS, 0, s>>>(
            *p, *st, chunks, (const bf16 *)beff, (const bf16 *)dy, ldy, (const bf16 *)u, ldu,
            (bf16 *)dy + st->n_out, (bf16 *)part);
}

/* What blocks of a chunk leave for the last of them, which adds it up in a fixed order and clears
 * the count of those that are done. Returns whether this is the last one. */
__device__ __forceinline__ bool is_last(int *done, int n)
{
    __shared__ int before;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        before = atomicAdd(done, 1);
        if (before == n - 1)
            *done = 0;
    }
    __syncthreads();
    __threadfence();
    return before == n - 1;
}

enum { GATED_WARPS = 8, GATED_THREADS = 32 * GATED_WARPS, GATED_COLUMNS = GATED_WARPS * WIDE };

/* A warp takes 32 columns of a chunk: gate and up are made whole again and become their gradients.
 * du is the sum over the blocks of a chunk. */
__global__ __launch_bounds__(GATED_THREADS, 2) void swiglu_back_kernel(
    const __grid_constant__ struct cr_thin p, const __grid_constant__ struct cr_thin_stage st,
    const struct cr_chunk *chunks, const bf16 *beff, bf16 *y, int ld, bf16 *h, const bf16 *dh,
    bf16 *part, float4 *du_part, int *done)
{
    __shared__ float4 sums[2][GATED_WARPS][PIECES][32];
    const struct coords c = coords_of();
    const struct cr_chunk chunk = chunks[blockIdx.x];
    const struct cr_thin_lin &gate = st.lin[0], &up = st.lin[1];
    const bool low[2] = {gate.beff >= 0, up.beff >= 0};
    const int f = gate.width, col0 = (blockIdx.y * GATED_WARPS + c.warp) * WIDE;
    const int col = col0 + 8 * c.t;
    const bool in = col < f;
    y += (size_t)chunk.row * ld;
    h += (size_t)chunk.row * f;
    dh += (size_t)chunk.row * f;
    beff += (size_t)chunk.group * p.total;
    part += (size_t)blockIdx.x * p.total;

    uint4 bg = make_uint4(0, 0, 0, 0), bu = bg, d_now[2], d_next[2];
    struct mixed mg = {}, mu = {};
    struct gated x = load_gated(st, y, ld, chunk.n_rows, col, in, c);
    load_rows(d_now, dh, f, chunk.n_rows, col, in, c);
    if (low[0]) {
        mg = load_b(beff + gate.beff, f, col0, c);
        bg = load16(beff + gate.beff + c.g * f + col, in);
    }
    if (low[1]) {
        mu = load_b(beff + up.beff, f, col0, c);
        bu = load16(beff + up.beff + c.g * f + col, in);
    }
    float db[2][4][4] = {};
#pragma unroll 1
    for (int k = 0; k < PIECES; k++) {
        const int r0 = k * PIECE, n_rows = chunk.n_rows - r0;
        float du[2][4] = {};
        if (n_rows > 0) {
            bf16 *at = y + (size_t)r0 * ld;
            struct gated next =
                load_gated(st, at + (size_t)PIECE * ld, ld, n_rows - PIECE, col, in, c);
            load_rows(d_next, dh + (size_t)(r0 + PIECE) * f, f, n_rows - PIECE, col, in, c);
            float g[4][4], u[4][4], d[4][4];
            unpack_rows(g, x.g);
            unpack_rows(u, x.u);
            unpack_rows(d, d_now);
            add_low(g, x.low_g, mg, c);
            add_low(u, x.low_u, mu, c);
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float sig = __fdividef(1.0f, 1.0f + __expf(-g[j][i])), silu = g[j][i] * sig;
                    float up_of = u[j][i], back = d[j][i];
                    d[j][i] = silu * up_of;
                    g[j][i] = back * up_of * (sig + silu * (1.0f - sig));
                    u[j][i] = back * silu;
                }
            pack_rows(x.g, g);
            pack_rows(x.u, u);
            pack_rows(d_now, d);
            store_rows(at, ld, n_rows, col, in, x.g, c);
            store_rows(at + f, ld, n_rows, col, in, x.u, c);
            store_rows(h + (size_t)r0 * f, f, n_rows, col, in, d_now, c);
            add_du(du[0], x.g, bg);
            add_du(du[1], x.u, bu);
            add_db(db[0], transposed_u(x.low_g), x.g);
            add_db(db[1], transposed_u(x.low_u), x.u);
            x = next;
            d_now[0] = d_next[0], d_now[1] = d_next[1];
        }
#pragma unroll
        for (int i = 0; i < 2; i++)
            sums[i][c.warp][k][c.lane] = make_float4(du[i][0], du[i][1], du[i][2], du[i][3]);
    }
    if (low[0])
        store_db(part + gate.beff, f, col, db[0], c);
    if (low[1])
        store_db(part + up.beff, f, col, db[1], c);
    if (!low[0] && !low[1])
        return;

    __syncthreads();
    const int which = threadIdx.x / (PIECES * 32), i = threadIdx.x % (PIECES * 32);
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int w = 0; w < GATED_WARPS; w++)
        add4(&sum, sums[which][w][i / 32][i % 32]);
    du_part += (size_t)blockIdx.x * gridDim.y * GATED_THREADS + threadIdx.x;
    du_part[blockIdx.y * GATED_THREADS] = sum;
    if (!is_last(done + blockIdx.x, gridDim.y) || !low[which])
        return;
    sum = make_float4(0, 0, 0, 0);
    for (unsigned b = 0; b < gridDim.y; b++)
        add4(&sum, __ldcg(du_part + b * GATED_THREADS));
    store_du(y + st.n_out + st.lin[which].u, ld, chunk.n_rows, sum, i);
}

size_t cr_k_thin_du_bytes(const struct cr_thin_stage *st, size_t n_chunks)
{
    return n_chunks * blocks((size_t)st->lin[0].width, GATED_COLUMNS) * GATED_THREADS *
           sizeof(float4);
}

void cr_k_thin_swiglu_back(cudaStream_t s, const struct cr_thin *p, const struct cr_thin_stage *st,
                           const struct cr_chunk *chunks, int n_chunks, const uint16_t *beff,
                           uint16_t *y, int ld, uint16_t *h, const uint16_t *dh, uint16_t *part,
                           void *du_part, int *done)
{
    dim3 grid((unsigned)n_chunks, blocks(st->lin[0].width, GATED_COLUMNS));
    if (n_chunks)
        swiglu_back_kernel<<<grid, GATED_THREADS, 0, s>>>(
            *p, *st, chunks, (const bf16 *)beff, (bf16 *)y, ld, (bf16 *)h, (const bf16 *)dh,
            (bf16 *)part, (float4 *)du_part, done);
}

/* ---- gradients of A ---- */

enum { SLAB = 128 }; /* rows that a warp adds up */

/* A^T of U linears: to [slabs, step] = du^T x over the rows of each slab; a warp takes 32 columns.
 */
template <int U>
__global__ __launch_bounds__(THREADS, 4) void grad_a_kernel(float *to, size_t step, const bf16 *du,
                                                            int lddu, const bf16 *x, int n_in,
                                                            int rows)
{
    const struct coords c = coords_of();
    const int col0 = (blockIdx.y * WARPS + c.warp) * WIDE, col = col0 + 8 * c.t;
    const int row0 = blockIdx.x * SLAB, n_rows = min(SLAB, rows - row0);
    const bool in = col < n_in;
    if (col0 >= n_in)
        return;
    x += (size_t)row0 * n_in;
    du += (size_t)row0 * lddu;
    float sum[(U + 1) / 2][4][4] = {};
#pragma unroll 4
    for (int r0 = 0; r0 < n_rows; r0 += PIECE) {
        uint4 v[2];
        uint32_t a[2 * ((U + 1) / 2)][2] = {};
        load_rows(v, x + (size_t)r0 * n_in, n_in, n_rows - r0, col, in, c);
#pragma unroll
        for (int i = 0; i < U; i++) {
            struct hidden h =
                transposed_u(load_u(du + (size_t)r0 * lddu + 8 * i, lddu, n_rows - r0, c));
            a[i][0] = h.lo, a[i][1] = h.hi;
        }
        const uint32_t b[4][2] = {{transposed(v[0].x), transposed(v[1].x)},
                                  {transposed(v[0].y), transposed(v[1].y)},
                                  {transposed(v[0].z), transposed(v[1].z)},
                                  {transposed(v[0].w), transposed(v[1].w)}};
#pragma unroll
        for (int m = 0; m < (U + 1) / 2; m++) {
            const uint32_t two[4] = {a[2 * m][0], a[2 * m + 1][0], a[2 * m][1], a[2 * m + 1][1]};
#pragma unroll
            for (int j = 0; j < 4; j++)
                mma(sum[m][j], two, b[j][0], b[j][1]);
        }
    }
    to += blockIdx.x * step + (size_t)c.g * n_in + col;
#pragma unroll
    for (int i = 0; i < U; i++) {
        const float(*s)[4] = sum[i / 2];
        const int k = i % 2 * 2;
        float4 *p = (float4 *)(to + (size_t)i * 8 * n_in);
        if (in) {
            p[0] = make_float4(s[0][k], s[0][k + 1], s[1][k], s[1][k + 1]);
            p[1] = make_float4(s[2][k], s[2][k + 1], s[3][k], s[3][k + 1]);
        }
    }
}

int cr_k_thin_slabs(int rows)
{
    return (rows + SLAB - 1) / SLAB;
}

void cr_k_thin_grad_a(cudaStream_t s, float *to, size_t step, const uint16_t *du, int lddu, int n_u,
                      const uint16_t *x, int n_in, int rows)
{
    dim3 grid((unsigned)cr_k_thin_slabs(rows), blocks(n_in, WIDE * WARPS));
#define GRAD_A(U)                                                                                  \
    grad_a_kernel<U>                                                                               \
        <<<grid, THREADS, 0, s>>>(to, step, (const bf16 *)du, lddu, (const bf16 *)x, n_in, rows)
    if (rows && n_u == 8)
        GRAD_A(1);
    else if (rows && n_u == 16)
        GRAD_A(2);
    else if (rows && n_u == 24)
        GRAD_A(3);
}

__global__ void add_slabs_kernel(const __grid_constant__ struct cr_thin_sums p, float *to,
                                 const float *slabs, size_t step, int n_slabs, bool add)
{
    size_t i = ((size_t)blockIdx.x * THREADS + threadIdx.x) * 4;
    if (i >= p.size[blockIdx.y])
        return;
    float4 sum = make_float4(0, 0, 0, 0), *at = (float4 *)(to + p.to_at[blockIdx.y] + i);
    if (add)
        sum = *at;
    slabs += p.from[blockIdx.y] + i;
#pragma unroll 8
    for (int k = 0; k < n_slabs; k++)
        add4(&sum, *(const float4 *)(slabs + k * step));
    *at = sum;
}

void cr_k_thin_add_slabs(cudaStream_t s, const struct cr_thin_sums *p, float *to,
                         const float *slabs, size_t step, int n_slabs, bool add)
{
    size_t most = 0;
    for (int i = 0; i < p->n; i++)
        most = p->size[i] > most ? p->size[i] : most;
    if (most)
        add_slabs_kernel<<<dim3(blocks(most, 4 * THREADS), (unsigned)p->n), THREADS, 0, s>>>(
            *p, to, slabs, step, n_slabs, add);
}

/* ---- gradients of B and of the weights ---- */

/* A word of two weights in bfloat16, and what is left of them. */
__device__ __forceinline__ uint2 split(float x, float y)
{
    return make_uint2(pack(x, y), pack(x - rounded(x), y - rounded(y)));
}

/* The weights of 16 chunks as an operand a^T [8 adapters, 16 chunks], rows 8 to 15 being what
 * bfloat16 leaves of rows 0 to 7: a warp per 16 chunks and 8 adapters. */
__global__ void chunk_weights_kernel(uint4 *to, const float *a, int n,
                                     const struct cr_chunk *chunks, int n_chunks)
{
    const struct coords c = coords_of();
    int adapter = blockIdx.y * 8 + c.g;
    float w[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int chunk = blockIdx.x * 16 + i / 2 * 8 + 2 * c.t + i % 2;
        bool in = chunk < n_chunks && adapter < n;
        w[i] = in ? a[(size_t)chunks[chunk].group * n + adapter] : 0.0f;
    }
    uint2 lo = split(w[0], w[1]), hi = split(w[2], w[3]);
    to[((size_t)blockIdx.x * gridDim.y + blockIdx.y) * 32 + c.lane] =
        make_uint4(lo.x, lo.y, hi.x, hi.y);
}

size_t cr_k_thin_weights_bytes(int n, size_t n_chunks)
{
    return (n_chunks + 15) / 16 * (size_t)((n + 7) / 8) * 32 * sizeof(uint4);
}

void cr_k_thin_weights(cudaStream_t s, void *to, const float *a, int n,
                       const struct cr_chunk *chunks, int n_chunks)
{
    dim3 grid(blocks(n_chunks, 16), blocks(n, 8));
    if (n_chunks)
        chunk_weights_kernel<<<grid, 32, 0, s>>>((uint4 *)to, a, n, chunks, n_chunks);
}

enum { SUM_WARPS = 8, SUM_WIDE = 2, SUM_AT_ONCE = 4 };

/* A warp takes SUM_WIDE times 32 numbers of B_eff and 8 adapters, and goes over the chunks 16 at a
 * time: dB += a^T part, da = part B^T. */
__global__ __launch_bounds__(32 *
                             SUM_WARPS) void sum_kernel(const __grid_constant__ struct cr_thin p,
                                                        int first_col, int n_cols, float *grads,
                                                        const bf16 *part, const uint4 *weights,
                                                        int n_chunks, bool add, float *da,
                                                        size_t da_step, const bf16 *copy)
{
    __shared__ float4 sums[SUM_WARPS][SUM_AT_ONCE][32];
    const struct coords c = coords_of();
    const int n0 = blockIdx.y * 8;
    const int first = ((blockIdx.x * SUM_WARPS + c.warp) * SUM_WIDE) * WIDE;
    uint4 b[SUM_WIDE];
    float db[SUM_WIDE][4][4] = {};
    size_t at[SUM_WIDE]; /* of this thread's numbers of adapter n0 + g in the parameters */
    int size[SUM_WIDE];
    bool in[SUM_WIDE];
#pragma unroll
    for (int k = 0; k < SUM_WIDE; k++) {
        int col = first + k * WIDE + 8 * c.t;
        in[k] = col < n_cols;
        col += first_col;
        int i = linear_of(p, in[k] ? col : first_col);
        size[k] = p.size[i];
        at[k] = p.from[i] + (size_t)(n0 + c.g) * size[k] + (col - p.at[i]);
        b[k] = load16(copy + at[k], in[k] && n0 + c.g < p.n);
    }
    part += first_col + first + 8 * c.t;
    for (int c0 = 0; c0 < n_chunks; c0 += 16 * SUM_AT_ONCE) {
        uint4 v[SUM_AT_ONCE][SUM_WIDE][2], w[SUM_AT_ONCE];
#pragma unroll
        for (int m = 0; m < SUM_AT_ONCE; m++) {
            int row = c0 + 16 * m;
            w[m] = row < n_chunks
                       ? weights[((size_t)(row / 16) * gridDim.y + blockIdx.y) * 32 + c.lane]
                       : make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int k = 0; k < SUM_WIDE; k++)
                load_rows(v[m][k], part + (size_t)row * p.total, p.total, n_chunks - row, k * WIDE,
                          in[k], c);
        }
#pragma unroll
        for (int m = 0; m < SUM_AT_ONCE; m++) {
            const uint32_t a[4] = {w[m].x, w[m].y, w[m].z, w[m].w};
            float sum[4] = {0, 0, 0, 0};
#pragma unroll
            for (int k = 0; k < SUM_WIDE; k++) {
                const uint4 *x = v[m][k];
                mma(db[k][0], a, transposed(x[0].x), transposed(x[1].x));
                mma(db[k][1], a, transposed(x[0].y), transposed(x[1].y));
                mma(db[k][2], a, transposed(x[0].z), transposed(x[1].z));
                mma(db[k][3], a, transposed(x[0].w), transposed(x[1].w));
                add_du(sum, x, b[k]);
            }
            sums[c.warp][m][c.lane] = make_float4(sum[0], sum[1], sum[2], sum[3]);
        }
        if (!da)
            continue;
        __syncthreads();
        if (threadIdx.x < 32 * SUM_AT_ONCE) { /* chunks g and g + 8, adapters 2 t and 2 t + 1 */
            float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
            for (int i = 0; i < SUM_WARPS; i++)
                add4(&sum, sums[i][c.warp][c.lane]);
            const float x[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int chunk = c0 + c.warp * 16 + c.g + i / 2 * 8, n = n0 + 2 * c.t + i % 2;
                if (chunk < n_chunks && n < p.n)
                    da[blockIdx.x * da_step + (size_t)chunk * p.n + n] += p.s * x[i];
            }
        }
        __syncthreads();
    }
    if (n0 + c.g >= p.n)
        return;
#pragma unroll
    for (int k = 0; k < SUM_WIDE; k++) {
        if (!in[k])
            break;
        float4 *to = (float4 *)(grads + at[k]);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float *x = db[k][2 * i], *y = db[k][2 * i + 1];
            float4 old = add ? to[i] : make_float4(0, 0, 0, 0);
            to[i] = make_float4(old.x + p.s * (x[0] + x[2]), old.y + p.s * (x[1] + x[3]),
                                old.z + p.s * (y[0] + y[2]), old.w + p.s * (y[1] + y[3]));
        }
    }
}

int cr_k_thin_splits(const struct cr_thin *p)
{
    return (int)blocks((size_t)p->total, SUM_WARPS * SUM_WIDE * WIDE);
}

void cr_k_thin_sum(cudaStream_t s, const struct cr_thin *p, int first_col, int n_cols, float *grads,
                   const uint16_t *part, const void *weights, int n_chunks, bool add, float *da,
                   size_t da_step, const uint16_t *copy)
{
    dim3 grid(blocks(n_cols, SUM_WARPS * SUM_WIDE * WIDE), blocks(p->n, 8));
    if (n_cols)
        sum_kernel<<<grid, 32 * SUM_WARPS, 0, s>>>(*p, first_col, n_cols, grads, (const bf16 *)part,
                                                   (const uint4 *)weights, n_chunks, add, da,
                                                   da_step, (const bf16 *)copy);
}
