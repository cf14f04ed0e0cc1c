/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels over rows: norms, SwiGLU, gathers, the low-rank weights, the loss, AdamW. */
#include "device.cuh"
#include "kernels.h"

#include <math.h>

enum { WARPS = 8, THREADS = 32 * WARPS };

static unsigned blocks(size_t n, size_t per)
{
    return (unsigned)((n + per - 1) / per);
}

/* ---- one warp per row, eight numbers per lane at a time ---- */

__device__ __forceinline__ void load8f(const float *p, float v[8])
{
    const float4 lo = *(const float4 *)p, hi = *(const float4 *)(p + 4);
    v[0] = lo.x, v[1] = lo.y, v[2] = lo.z, v[3] = lo.w;
    v[4] = hi.x, v[5] = hi.y, v[6] = hi.z, v[7] = hi.w;
}

__global__ void embed_kernel(bf16 *x, const bf16 *table, const int *ids, int rows, int e)
{
    int row = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows)
        return;
    const bf16 *from = table + (size_t)ids[row] * e;
    for (int i = lane * 8; i < e; i += 256)
        *(uint4 *)(x + (size_t)row * e + i) = *(const uint4 *)(from + i);
}

void cr_k_embed(cudaStream_t s, uint16_t *x, const uint16_t *table, const int *ids, int rows, int e)
{
    embed_kernel<<<blocks(rows, WARPS), THREADS, 0, s>>>((bf16 *)x, (const bf16 *)table, ids, rows,
                                                         e);
}

template <bool ADD>
__global__ void norm_kernel(bf16 *out, bf16 *h, const bf16 *x, const int *index, const bf16 *y,
                            int ldy, const float *w, int rows, int e, float eps)
{
    int row = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows)
        return;
    const bf16 *from = x + (size_t)(index ? index[row] : row) * e;
    float sum = 0, v[8], u[8], m[8];
    for (int i = lane * 8; i < e; i += 256) {
        load8(from + i, v);
        if (ADD) {
            load8(y + (size_t)row * ldy + i, u);
#pragma unroll
            for (int k = 0; k < 8; k++)
                v[k] = rounded(v[k] + u[k]);
            store8(out + (size_t)row * e + i, v);
        }
#pragma unroll
        for (int k = 0; k < 8; k++)
            sum += v[k] * v[k];
    }
    if (!h)
        return;
    float r = rsqrtf(warp_sum(sum) / (float)e + eps);
    for (int i = lane * 8; i < e; i += 256) {
        load8((ADD ? out + (size_t)row * e : from) + i, v);
        load8f(w + i, m);
#pragma unroll
        for (int k = 0; k < 8; k++)
            v[k] *= r * m[k];
        store8(h + (size_t)row * e + i, v);
    }
}

void cr_k_norm(cudaStream_t s, uint16_t *h, const uint16_t *x, const float *w, int rows, int e,
               float eps)
{
    norm_kernel<false><<<blocks(rows, WARPS), THREADS, 0, s>>>(NULL, (bf16 *)h, (const bf16 *)x,
                                                               NULL, NULL, 0, w, rows, e, eps);
}

void cr_k_add_norm(cudaStream_t s, uint16_t *out, uint16_t *h, const uint16_t *x, const int *row,
                   const uint16_t *y, int ldy, const float *w, int rows, int e, float eps)
{
    norm_kernel<true><<<blocks(rows, WARPS), THREADS, 0, s>>>(
        (bf16 *)out, (bf16 *)h, (const bf16 *)x, row, (const bf16 *)y, ldy, w, rows, e, eps);
}

/* A lane takes eight numbers out of 256, up to N times, and keeps them. */
template <int N>
__global__ void norm_back_kernel(bf16 *dx, int lddx, bool add, bf16 *h, const bf16 *dh,
                                 const bf16 *x, const float *w, int rows, int e, float eps)
{
    int row = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows)
        return;
    const bf16 *xr = x + (size_t)row * e, *gr = dh + (size_t)row * e;
    bf16 *to = dx + (size_t)row * lddx;
    uint4 kept[N][3];
#pragma unroll
    for (int n = 0; n < N; n++) {
        int i = n * 256 + lane * 8;
        if (i >= e)
            break;
        kept[n][0] = *(const uint4 *)(xr + i);
        kept[n][1] = *(const uint4 *)(gr + i);
        if (add)
            kept[n][2] = *(const uint4 *)(to + i);
    }
    float squares = 0, dot = 0, v[8], g[8], d[8], m[8], out[8];
#pragma unroll
    for (int n = 0; n < N; n++) {
        int i = n * 256 + lane * 8;
        if (i >= e)
            break;
        unpack8(kept[n][0], v);
        unpack8(kept[n][1], g);
        load8f(w + i, m);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            squares += v[k] * v[k];
            dot += v[k] * g[k] * m[k];
        }
    }
    float r = rsqrtf(warp_sum(squares) / (float)e + eps);
    float c = r * r * r * warp_sum(dot) / (float)e;
#pragma unroll
    for (int n = 0; n < N; n++) {
        int i = n * 256 + lane * 8;
        if (i >= e)
            break;
        unpack8(kept[n][0], v);
        unpack8(kept[n][1], g);
        unpack8(kept[n][2], d);
        load8f(w + i, m);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            out[k] = v[k] * r * m[k];
            g[k] = (add ? d[k] : 0.0f) + r * m[k] * g[k] - c * v[k];
        }
        store8(to + i, g);
        if (h)
            store8(h + (size_t)row * e + i, out);
    }
}

void cr_k_norm_back(cudaStream_t s, uint16_t *dx, int lddx, bool add, uint16_t *h,
                    const uint16_t *dh, const uint16_t *x, const float *w, int rows, int e,
                    float eps)
{
#define NORM_BACK(N)                                                                               \
    norm_back_kernel<N><<<blocks(rows, WARPS), THREADS, 0, s>>>(                                   \
        (bf16 *)dx, lddx, add, (bf16 *)h, (const bf16 *)dh, (const bf16 *)x, w, rows, e, eps)
    if (e <= 3 * 256)
        NORM_BACK(3);
    else if (e <= 8 * 256)
        NORM_BACK(8);
    else
        NORM_BACK(CR_NORM_WIDEST / 256);
}

/* ---- eight numbers per thread ---- */

__global__ void swiglu_kernel(bf16 *h, const bf16 *gu, int ld, int rows, int f8)
{
    size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= (size_t)rows * f8)
        return;
    int row = (int)(at / f8), i = (int)(at % f8) * 8, f = f8 * 8;
    float g[8], u[8];
    load8(gu + (size_t)row * ld + i, g);
    load8(gu + (size_t)row * ld + f + i, u);
#pragma unroll
    for (int k = 0; k < 8; k++)
        g[k] = g[k] / (1.0f + __expf(-g[k])) * u[k];
    store8(h + (size_t)row * f + i, g);
}

void cr_k_swiglu(cudaStream_t s, uint16_t *h, const uint16_t *gu, int ld, int rows, int f)
{
    swiglu_kernel<<<blocks((size_t)rows * (f / 8), THREADS), THREADS, 0, s>>>(
        (bf16 *)h, (const bf16 *)gu, ld, rows, f / 8);
}

__global__ void swiglu_back_kernel(bf16 *gu, int ld, bf16 *h, const bf16 *dh, int rows, int f8)
{
    size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= (size_t)rows * f8)
        return;
    int row = (int)(at / f8), i = (int)(at % f8) * 8, f = f8 * 8;
    bf16 *gate = gu + (size_t)row * ld + i, *up = gate + f;
    float g[8], u[8], d[8], o[8];
    load8(gate, g);
    load8(up, u);
    load8(dh + (size_t)row * f + i, d);
#pragma unroll
    for (int k = 0; k < 8; k++) {
        float sig = 1.0f / (1.0f + __expf(-g[k])), silu = g[k] * sig;
        o[k] = silu * u[k];
        g[k] = d[k] * u[k] * (sig + silu * (1.0f - sig));
        u[k] = d[k] * silu;
    }
    store8(gate, g);
    store8(up, u);
    store8(h + (size_t)row * f + i, o);
}

void cr_k_swiglu_back(cudaStream_t s, uint16_t *gu, int ld, uint16_t *h, const uint16_t *dh,
                      int rows, int f)
{
    swiglu_back_kernel<<<blocks((size_t)rows * (f / 8), THREADS), THREADS, 0, s>>>(
        (bf16 *)gu, ld, (bf16 *)h, (const bf16 *)dh, rows, f / 8);
}

__global__ void bias_kernel(bf16 *y, int ld, const float *bias, int rows, int n)
{
    size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= (size_t)rows * n)
        return;
    bf16 *to = y + at / n * ld + at % n;
    *to = __float2bfloat16(__bfloat162float(*to) + bias[at % n]);
}

void cr_k_bias(cudaStream_t s, uint16_t *y, int ld, const float *bias, int rows, int n)
{
    bias_kernel<<<blocks((size_t)rows * n, THREADS), THREADS, 0, s>>>((bf16 *)y, ld, bias, rows, n);
}

/* Pairs (2 i, 2 i + 1), or (i, i + d / 2) where neox; four pairs a thread. */
__global__ void rope_kernel(bf16 *y, int ld, const float *rope, const int *pos, bool neox, int rows,
                            int n_heads, int d)
{
    int per = n_heads * (d / 8), half = d / 2;
    size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= (size_t)rows * per)
        return;
    int row = (int)(at / per), head = (int)(at % per) / (d / 8), i = (int)(at % per) % (d / 8) * 4;
    const float4 *cs = (const float4 *)(rope + ((size_t)pos[row] * half + i) * 2);
    float4 c0 = cs[0], c1 = cs[1];
    float c[4] = {c0.x, c0.z, c1.x, c1.z}, s[4] = {c0.y, c0.w, c1.y, c1.w}, v[8];
    bf16 *p = y + (size_t)row * ld + head * d + (neox ? i : 2 * i);
    if (!neox) {
        load8(p, v);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float a = v[2 * k], b = v[2 * k + 1];
            v[2 * k] = a * c[k] - b * s[k];
            v[2 * k + 1] = a * s[k] + b * c[k];
        }
        store8(p, v);
        return;
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
        float a = __bfloat162float(p[k]), b = __bfloat162float(p[k + half]);
        p[k] = __float2bfloat16(a * c[k] - b * s[k]);
        p[k + half] = __float2bfloat16(a * s[k] + b * c[k]);
    }
}

void cr_k_rope(cudaStream_t s, uint16_t *y, int ld, const float *rope, const int *pos, bool neox,
               int rows, int n_heads, int d)
{
    rope_kernel<<<blocks((size_t)rows * n_heads * (d / 8), THREADS), THREADS, 0, s>>>(
        (bf16 *)y, ld, rope, pos, neox, rows, n_heads, d);
}

template <bool SCATTER>
__global__ void move_kernel(bf16 *to, int ldto, const bf16 *from, int ldfrom, const int *index,
                            int rows, int n8)
{
    size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= (size_t)rows * n8)
        return;
    int row = (int)(at / n8), i = (int)(at % n8) * 8, other = index[row];
    *(uint4 *)(to + (size_t)(SCATTER ? other : row) * ldto + i) =
        *(const uint4 *)(from + (size_t)(SCATTER ? row : other) * ldfrom + i);
}

void cr_k_gather(cudaStream_t s, uint16_t *to, int ldto, const uint16_t *from, int ldfrom,
                 const int *row, int rows, int n)
{
    move_kernel<false><<<blocks((size_t)rows * (n / 8), THREADS), THREADS, 0, s>>>(
        (bf16 *)to, ldto, (const bf16 *)from, ldfrom, row, rows, n / 8);
}

void cr_k_scatter(cudaStream_t s, uint16_t *to, int ldto, const uint16_t *from, int ldfrom,
                  const int *row, int rows, int n)
{
    move_kernel<true><<<blocks((size_t)rows * (n / 8), THREADS), THREADS, 0, s>>>(
        (bf16 *)to, ldto, (const bf16 *)from, ldfrom, row, rows, n / 8);
}

__global__ void gather_float_kernel(float *to, const bf16 *from, int ldfrom, const int *index,
                                    int rows, int n)
{
    size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (at < (size_t)rows * n)
        to[at] = __bfloat162float(from[(size_t)index[at / n] * ldfrom + at % n]);
}

void cr_k_gather_float(cudaStream_t s, float *to, const uint16_t *from, int ldfrom, const int *row,
                       int rows, int n)
{
    gather_float_kernel<<<blocks((size_t)rows * n, THREADS), THREADS, 0, s>>>(
        to, (const bf16 *)from, ldfrom, row, rows, n);
}

__global__ void to_float_kernel(float *to, const bf16 *from, size_t n)
{
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n;
         i += (size_t)gridDim.x * THREADS)
        to[i] = __bfloat162float(from[i]);
}

void cr_k_to_float(cudaStream_t s, float *to, const uint16_t *from, size_t n)
{
    unsigned grid = blocks(n, THREADS);
    to_float_kernel<<<(grid < 2048 ? grid : 2048), THREADS, 0, s>>>(to, (const bf16 *)from, n);
}

__global__ void to_bf16_kernel(bf16 *to, const float *from, size_t n)
{
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n;
         i += (size_t)gridDim.x * THREADS)
        to[i] = __float2bfloat16(from[i]);
}

void cr_k_to_bf16(cudaStream_t s, uint16_t *to, const float *from, size_t n)
{
    unsigned grid = blocks(n, THREADS);
    to_bf16_kernel<<<(grid < 2048 ? grid : 2048), THREADS, 0, s>>>((bf16 *)to, from, n);
}

__global__ void spread_kernel(const uint64_t *to, const uint64_t *at, const uint64_t *n,
                              const bf16 *from)
{
    bf16 *dst = (bf16 *)to[blockIdx.x];
    const bf16 *src = from + at[blockIdx.x];
    uint64_t count = n[blockIdx.x];
    for (uint64_t i = threadIdx.x + (uint64_t)blockIdx.y * THREADS; i < count;
         i += (uint64_t)gridDim.y * THREADS)
        dst[i] = src[i];
}

void cr_k_spread(cudaStream_t s, const uint64_t *to, const uint64_t *at, const uint64_t *n,
                 int pieces, const uint16_t *from)
{
    if (pieces)
        spread_kernel<<<dim3((unsigned)pieces, 8), THREADS, 0, s>>>(to, at, n, (const bf16 *)from);
}

/* ---- low rank ---- */

__global__ void scale_kernel(struct cr_scale p, const int *group, bf16 *v, const bf16 *u, int ldu,
                             bf16 *keep, int ldkeep, int rows)
{
    int k = p.n * p.rank, all = k * p.n_lins;
    size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= (size_t)rows * all)
        return;
    int row = (int)(at / all), rest = (int)(at % all), lin = rest / k, c = rest % k;
    int n = c / p.rank, j = p.shared ? c % p.rank : c;
    bf16 x = u[(size_t)row * ldu + lin * p.u_step + j];
    float a = p.s * p.a[(size_t)group[row] * p.n + n];
    v[lin * p.v_step + (size_t)row * p.ldv + c] = __float2bfloat16(a * __bfloat162float(x));
    if (keep && c < p.u_step) {
        int from = lin * p.u_step + c;
        keep[(size_t)row * ldkeep + from] = u[(size_t)row * ldu + from];
    }
}

/* The same with eight hidden numbers a thread, n fastest where u is shared by the adapters: for
 * ranks that are multiples of 8. */
__device__ __forceinline__ int column_of(const struct cr_scale &p, int at, int *n, int *j)
{
    if (p.shared) {
        *n = at % p.n;
        *j = at / p.n * 8;
        return *n * p.rank + *j;
    }
    *n = at * 8 / p.rank;
    *j = at * 8;
    return *j;
}

__global__ void scale8_kernel(struct cr_scale p, const int *group, bf16 *v, const bf16 *u, int ldu,
                              bf16 *keep, int ldkeep, int rows)
{
    int k8 = p.n * p.rank / 8, all = k8 * p.n_lins, n, j;
    size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= (size_t)rows * all)
        return;
    int row = (int)(at / all), rest = (int)(at % all), lin = rest / k8;
    int col = column_of(p, rest % k8, &n, &j);
    const bf16 *from = u + (size_t)row * ldu + lin * p.u_step + j;
    float a = p.s * p.a[(size_t)group[row] * p.n + n], x[8];
    if (keep && (n == 0 || !p.shared))
        *(uint4 *)(keep + (size_t)row * ldkeep + lin * p.u_step + j) = *(const uint4 *)from;
    load8(from, x);
#pragma unroll
    for (int i = 0; i < 8; i++)
        x[i] *= a;
    store8(v + lin * p.v_step + (size_t)row * p.ldv + col, x);
}

void cr_k_scale(cudaStream_t s, const struct cr_scale *p, const int *group, uint16_t *v,
                const uint16_t *u, int ldu, uint16_t *keep, int ldkeep, int rows)
{
    size_t n = (size_t)rows * (size_t)(p->n * p->rank * p->n_lins);
    if (n && p->rank % 8 == 0)
        scale8_kernel<<<blocks(n / 8, THREADS), THREADS, 0, s>>>(
            *p, group, (bf16 *)v, (const bf16 *)u, ldu, (bf16 *)keep, ldkeep, rows);
    else if (n)
        scale_kernel<<<blocks(n, THREADS), THREADS, 0, s>>>(*p, group, (bf16 *)v, (const bf16 *)u,
                                                            ldu, (bf16 *)keep, ldkeep, rows);
}

/* One block per chunk. First v and the sums for a, a thread staying with one hidden number; then
 * du, a thread per number of u. */
__global__ void scale_back_kernel(struct cr_scale p, const struct cr_chunk *chunks, bf16 *v,
                                  const bf16 *dv, const bf16 *u, int ldu, bf16 *du, int lddu,
                                  float *da)
{
    __shared__ float part[THREADS];
    struct cr_chunk c = chunks[blockIdx.x];
    const float *a = p.a + (size_t)c.group * p.n;
    int k = p.n * p.rank, step = k < THREADS ? k : THREADS, lanes = THREADS / step;
    int lane = threadIdx.x / step, first = threadIdx.x % step;
    for (int base = 0; base < k; base += step) {
        int col = base + first;
        float sum = 0;
        if (lane < lanes && col < k) {
            int j = p.shared ? col % p.rank : col;
            float scale = p.s * a[col / p.rank];
            for (int i = lane; i < c.n_rows * p.n_lins; i += lanes) {
                int row = c.row + i / p.n_lins, lin = i % p.n_lins;
                size_t to = lin * p.v_step + (size_t)row * p.ldv + col;
                float x = __bfloat162float(u[(size_t)row * ldu + lin * p.u_step + j]);
                v[to] = __float2bfloat16(scale * x);
                sum += __bfloat162float(dv[to]) * x;
            }
        }
        if (!da)
            continue;
        part[threadIdx.x] = sum;
        __syncthreads();
        /* thread t sums adapter t of this range of columns; step is a multiple of rank or all of
         * k unless rank does not divide THREADS, so a column's adapter is looked up */
        for (int n = base / p.rank + threadIdx.x; n <= (base + step - 1) / p.rank && n < p.n;
             n += THREADS) {
            float total = 0;
            for (int l = 0; l < lanes; l++)
                for (int j = 0; j < p.rank; j++) {
                    int at = n * p.rank + j - base;
                    if (at >= 0 && at < step)
                        total += part[l * step + at];
                }
            da[(size_t)blockIdx.x * p.n + n] += p.s * total;
        }
        __syncthreads();
    }
    __syncthreads(); /* du may be u */
    int wide = p.u_step * p.n_lins;
    for (int i = threadIdx.x; i < c.n_rows * wide; i += THREADS) {
        int row = c.row + i / wide, rest = i % wide, lin = rest / p.u_step, j = rest % p.u_step;
        const bf16 *from = dv + lin * p.v_step + (size_t)row * p.ldv;
        float sum = 0;
        if (p.shared)
            for (int n = 0; n < p.n; n++)
                sum += a[n] * __bfloat162float(from[n * p.rank + j]);
        else
            sum = a[j / p.rank] * __bfloat162float(from[j]);
        du[(size_t)row * lddu + rest] = __float2bfloat16(p.s * sum);
    }
}

/* Eight hidden numbers a thread. A thread stays with one adapter, and where u is shared the N
 * threads of a piece of du are neighbours in a warp. */
template <int N>
__global__ void scale8_back_kernel(struct cr_scale p, const struct cr_chunk *chunks, bf16 *v,
                                   const bf16 *dv, const bf16 *u, int ldu, bf16 *du, int lddu,
                                   float *da)
{
    __shared__ float part[THREADS];
    struct cr_chunk c = chunks[blockIdx.x];
    int k8 = p.n * p.rank / 8, all = k8 * p.n_lins, n = 0, j;
    float sum = 0, scale = 0;
    column_of(p, threadIdx.x % k8, &n, &j);
    scale = p.s * p.a[(size_t)c.group * p.n + n];
    /* all lanes of a warp go round equally often, for the shuffles */
    int rounds = (c.n_rows * all + THREADS - 1) / THREADS;
    for (int round = 0; round < rounds; round++) {
        int at = round * THREADS + threadIdx.x, same;
        bool in = at < c.n_rows * all;
        int row = c.row + (in ? at / all : 0), rest = in ? at % all : 0, lin = rest / k8;
        int col = column_of(p, rest % k8, &same, &j);
        size_t to = lin * p.v_step + (size_t)row * p.ldv + col;
        float x[8], g[8], y[8];
        load8(u + (size_t)row * ldu + lin * p.u_step + j, x);
        load8(dv + to, g);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            y[i] = scale * x[i];
            sum += in ? g[i] * x[i] : 0.0f;
            g[i] *= scale;
        }
        if (in)
            store8(v + to, y);
#pragma unroll
        for (int step = 1; step < N; step *= 2)
#pragma unroll
            for (int i = 0; i < 8; i++)
                g[i] += __shfl_xor_sync(0xffffffffu, g[i], step);
        __syncwarp(); /* du may be u: all have read it */
        if (in && (N == 1 || same == 0))
            store8(du + (size_t)row * lddu + lin * p.u_step + j, g);
    }
    if (!da)
        return;
    part[threadIdx.x] = sum;
    __syncthreads();
    for (int adapter = threadIdx.x; adapter < p.n; adapter += THREADS) {
        float total = 0;
        for (int t = 0; t < THREADS; t++) {
            int of, unused;
            column_of(p, t % k8, &of, &unused);
            total += of == adapter ? part[t] : 0.0f;
        }
        da[(size_t)blockIdx.x * p.n + adapter] += p.s * total;
    }
}

/* Which of them fits: N for the shuffles, 0: none. */
static int scale8_fits(const struct cr_scale *p)
{
    int k8 = p->n * p->rank / 8;
    if (p->rank % 8 || k8 > THREADS || THREADS % k8 || p->n > 32 || (p->n & (p->n - 1)))
        return 0;
    return p->shared ? p->n : 1;
}

void cr_k_scale_back(cudaStream_t s, const struct cr_scale *p, const struct cr_chunk *chunks,
                     int n_chunks, uint16_t *v, const uint16_t *dv, const uint16_t *u, int ldu,
                     uint16_t *du, int lddu, float *da)
{
#define BACK8(N)                                                                                   \
    case N:                                                                                        \
        scale8_back_kernel<N><<<(unsigned)n_chunks, THREADS, 0, s>>>(                              \
            *p, chunks, (bf16 *)v, (const bf16 *)dv, (const bf16 *)u, ldu, (bf16 *)du, lddu, da);  \
        return;
    if (n_chunks && p->n_lins)
        switch (scale8_fits(p)) {
            BACK8(1)
            BACK8(2)
            BACK8(4)
            BACK8(8)
            BACK8(16)
            BACK8(32)
        }
    if (n_chunks && p->n_lins)
        scale_back_kernel<<<(unsigned)n_chunks, THREADS, 0, s>>>(
            *p, chunks, (bf16 *)v, (const bf16 *)dv, (const bf16 *)u, ldu, (bf16 *)du, lddu, da);
}

__global__ void weights_kernel(float *a, const float *table, const int *key, int groups, int n)
{
    int at = blockIdx.x * THREADS + threadIdx.x;
    if (at < groups * n)
        a[at] = table[(size_t)key[at / n] * n + at % n];
}

void cr_k_weights(cudaStream_t s, float *a, const float *table, const int *key, int groups, int n)
{
    weights_kernel<<<blocks((size_t)groups * n, THREADS), THREADS, 0, s>>>(a, table, key, groups,
                                                                           n);
}

__global__ void weights_back_kernel(float *grads, const int *key, int groups, int n,
                                    const float *da, const int *begin, const float *da2,
                                    const int *begin2, int splits, size_t step)
{
    int at = blockIdx.x * THREADS + threadIdx.x, g = at / n, i = at % n;
    if (g >= groups)
        return;
    float sum = 0;
    for (int c = begin[g]; c < begin[g + 1]; c++)
        for (int k = 0; k < splits; k++)
            sum += da[k * step + (size_t)c * n + i];
    for (int c = begin2[g]; c < begin2[g + 1]; c++)
        for (int k = 0; k < splits; k++)
            sum += da2[k * step + (size_t)c * n + i];
    grads[(size_t)key[g] * n + i] += sum;
}

void cr_k_weights_back(cudaStream_t s, float *grads, const int *key, int groups, int n,
                       const float *da, const int *begin, const float *da2, const int *begin2,
                       int splits, size_t step)
{
    weights_back_kernel<<<blocks((size_t)groups * n, THREADS), THREADS, 0, s>>>(
        grads, key, groups, n, da, begin, da2, begin2, splits, step);
}

/* ---- loss ---- */

enum { LOSS_THREADS = 512 };

/* The maximum of a row and the sum of exp(x - max), on all threads; best: index of the maximum, the
 * lower of equal ones. */
struct row_sum {
    float max, sum;
    int best;
};

__device__ static struct row_sum join(struct row_sum a, struct row_sum b)
{
    bool first = a.max > b.max || (a.max == b.max && a.best <= b.best);
    struct row_sum hi = first ? a : b, lo = first ? b : a;
    if (lo.max > -INFINITY)
        hi.sum += lo.sum * __expf(lo.max - hi.max);
    return hi;
}

__device__ static struct row_sum sum_row(const float *x, int n)
{
    __shared__ struct row_sum part[LOSS_THREADS / 32];
    struct row_sum r = {-INFINITY, 0, 0x7fffffff};
    for (int i = threadIdx.x; i < n; i += LOSS_THREADS) {
        float v = x[i];
        if (v > r.max) {
            r.sum = r.sum * __expf(r.max - v) + 1.0f;
            r.max = v;
            r.best = i;
        } else {
            r.sum += __expf(v - r.max);
        }
    }
    for (int i = 16; i > 0; i >>= 1) {
        struct row_sum o = {__shfl_xor_sync(0xffffffffu, r.max, i),
                            __shfl_xor_sync(0xffffffffu, r.sum, i),
                            __shfl_xor_sync(0xffffffffu, r.best, i)};
        r = join(r, o);
    }
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = r;
    __syncthreads();
    r = part[0];
    for (int i = 1; i < LOSS_THREADS / 32; i++)
        r = join(r, part[i]);
    return r;
}

/* The gradient takes the place of the logits: number i lies where number i / 2 was, which has been
 * read by the time that number i has. */
__global__ void cross_entropy_kernel(float *loss, float *logits, int ld, int n, const int *id,
                                     const float *weight)
{
    enum { AT_ONCE = 8 };
    const float *x = logits + (size_t)blockIdx.x * ld;
    bf16 *d = (bf16 *)x;
    struct row_sum r = sum_row(x, n);
    int target = id[blockIdx.x];
    float w = weight[blockIdx.x], inverse = 1.0f / r.sum;
    if (threadIdx.x == 0)
        loss[blockIdx.x] = w * (r.max - x[target] + logf(r.sum));
    for (int i0 = 0; i0 < ld; i0 += AT_ONCE * LOSS_THREADS) {
        float p[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            int i = i0 + k * LOSS_THREADS + threadIdx.x;
            p[k] = i < n ? __expf(x[i] - r.max) * inverse : 0.0f;
            p[k] = w * (i == target ? p[k] - 1.0f : p[k]);
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            int i = i0 + k * LOSS_THREADS + threadIdx.x;
            if (i < ld)
                d[i] = __float2bfloat16(p[k]);
        }
    }
}

void cr_k_cross_entropy(cudaStream_t s, float *loss, float *logits, int ld, int n, const int *id,
                        const float *weight, int rows)
{
    cross_entropy_kernel<<<(unsigned)rows, LOSS_THREADS, 0, s>>>(loss, logits, ld, n, id, weight);
}

__global__ void log_softmax_kernel(float *logprob, unsigned char *best, const float *logits, int ld,
                                   int n, const int *first, const int *id)
{
    const float *x = logits + (size_t)blockIdx.x * ld;
    struct row_sum r = sum_row(x, n);
    float log_sum = r.max + logf(r.sum);
    for (int i = first[blockIdx.x] + threadIdx.x; i < first[blockIdx.x + 1]; i += LOSS_THREADS) {
        logprob[i] = x[id[i]] - log_sum;
        best[i] = id[i] == r.best;
    }
}

void cr_k_log_softmax(cudaStream_t s, float *logprob, unsigned char *best, const float *logits,
                      int ld, int n, const int *first, const int *id, int rows)
{
    log_softmax_kernel<<<(unsigned)rows, LOSS_THREADS, 0, s>>>(logprob, best, logits, ld, n, first,
                                                               id);
}

/* The sum of a block's values, in a fixed order, on thread 0. */
__device__ static double block_sum(double v)
{
    __shared__ double part[THREADS];
    part[threadIdx.x] = v;
    __syncthreads();
    for (int step = THREADS / 2; step > 0; step /= 2) {
        if (threadIdx.x < step)
            part[threadIdx.x] += part[threadIdx.x + step];
        __syncthreads();
    }
    return part[0];
}

__global__ void sum_kernel(double *sum, const float *v, int n)
{
    double mine = 0;
    for (int i = threadIdx.x; i < n; i += THREADS)
        mine += (double)v[i];
    mine = block_sum(mine);
    if (threadIdx.x == 0)
        *sum += mine;
}

void cr_k_sum(cudaStream_t s, double *sum, const float *v, int n)
{
    sum_kernel<<<1, THREADS, 0, s>>>(sum, v, n);
}

/* ---- AdamW ---- */

__global__ void squares_kernel(double *partial, const float *g, size_t n)
{
    double mine = 0;
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n;
         i += (size_t)CR_ADAM_BLOCKS * THREADS)
        mine += (double)g[i] * (double)g[i];
    mine = block_sum(mine);
    if (threadIdx.x == 0)
        partial[blockIdx.x] = mine;
}

__global__ void norm_finish_kernel(struct cr_adam_state *state, const double *partial, float clip)
{
    double mine = 0;
    for (int i = threadIdx.x; i < CR_ADAM_BLOCKS; i += THREADS)
        mine += partial[i];
    mine = block_sum(mine);
    if (threadIdx.x == 0) {
        double norm = sqrt(mine);
        state->norm = norm;
        state->bad = !isfinite(norm);
        state->gain =
            clip > 0 && norm > (double)clip ? (float)((double)clip / (norm + 1e-6)) : 1.0f;
    }
}

__global__ void adamw_kernel(struct cr_adam_args a, const struct cr_adam_state *state,
                             float *params, const float *grads, float *m, float *v, bf16 *copy)
{
    if (state->bad)
        return;
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < a.n;
         i += (size_t)gridDim.x * THREADS) {
        bool tail = i >= a.tail;
        float g = grads[i] * state->gain, p = params[i];
        float mi = a.beta1 * m[i] + (1.0f - a.beta1) * g;
        float vi = a.beta2 * v[i] + (1.0f - a.beta2) * g * g;
        m[i] = mi;
        v[i] = vi;
        p -= (tail ? a.lr_tail : a.lr) *
             (mi * a.fix_m / (sqrtf(vi * a.fix_v) + 1e-8f) + (tail ? 0.0f : a.decay) * p);
        params[i] = p;
        copy[i] = __float2bfloat16(p);
    }
}

void cr_k_adamw(cudaStream_t s, const struct cr_adam_args *a, struct cr_adam_state *state,
                double *partial, float *params, const float *grads, float *m, float *v,
                uint16_t *copy)
{
    squares_kernel<<<CR_ADAM_BLOCKS, THREADS, 0, s>>>(partial, grads, a->n);
    norm_finish_kernel<<<1, THREADS, 0, s>>>(state, partial, a->clip);
    adamw_kernel<<<1024, THREADS, 0, s>>>(*a, state, params, grads, m, v, (bf16 *)copy);
}
