/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernels of the thin path share (thin.cu, thin_back.cu): the rows and columns that a warp
 * takes, and their products with a linear's B_eff [8, width].
 */
#ifndef CR_CUDA_THIN_CUH
#define CR_CUDA_THIN_CUH

#include "device.cuh"
#include "kernels.h"
#include "mma.cuh"

enum { ROWS = CR_CHUNK_ROWS, THREADS = 128, WARPS = THREADS / 32 };

static inline unsigned blocks(size_t n, size_t per)
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

/* A warp takes 16 rows of a chunk, and 32 columns of a linear at a time: a thread (g, t) columns
 * 8 t to 8 t + 7 of rows g and g + 8, as words of mma.cuh. */
enum { PIECE = 16, WIDE = 32 };

__device__ __forceinline__ struct cr_chunk piece_of(struct cr_chunk c, int which)
{
    c.row += which * PIECE;
    c.n_rows = min(PIECE, c.n_rows - which * PIECE);
    return c;
}

__device__ __forceinline__ uint4 load16(const bf16 *p, bool in)
{
    return in ? *(const uint4 *)p : make_uint4(0, 0, 0, 0);
}

/* Rows g and g + 8 at column col of x, whose first row is that of the piece; 0 beyond it. */
__device__ __forceinline__ void load_rows(uint4 v[2], const bf16 *x, int ld, int n_rows, int col,
                                          bool in, struct coords c)
{
    v[0] = load16(x + (size_t)c.g * ld + col, in && c.g < n_rows);
    v[1] = load16(x + (size_t)(c.g + 8) * ld + col, in && c.g + 8 < n_rows);
}

__device__ __forceinline__ void store_rows(bf16 *x, int ld, int n_rows, int col, bool in,
                                           const uint4 v[2], struct coords c)
{
    if (in && c.g < n_rows)
        *(uint4 *)(x + (size_t)c.g * ld + col) = v[0];
    if (in && c.g + 8 < n_rows)
        *(uint4 *)(x + (size_t)(c.g + 8) * ld + col) = v[1];
}

/* Word j of rows g (half 0) and g + 8 (half 1) is x[j][2 half] and x[j][2 half + 1], as an mma
 * leaves them. */
__device__ __forceinline__ void unpack_rows(float x[4][4], const uint4 v[2])
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t w[4] = {v[half].x, v[half].y, v[half].z, v[half].w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float2 f = unpack(w[j]);
            x[j][2 * half] = f.x, x[j][2 * half + 1] = f.y;
        }
    }
}

__device__ __forceinline__ void pack_rows(uint4 v[2], const float x[4][4])
{
#pragma unroll
    for (int half = 0; half < 2; half++)
        v[half] = make_uint4(
            pack(x[0][2 * half], x[0][2 * half + 1]), pack(x[1][2 * half], x[1][2 * half + 1]),
            pack(x[2][2 * half], x[2][2 * half + 1]), pack(x[3][2 * half], x[3][2 * half + 1]));
}

struct hidden { /* u of rows g and g + 8, hidden numbers 2 t and 2 t + 1 */
    uint32_t lo, hi;
};

__device__ __forceinline__ struct hidden load_u(const bf16 *u, int ld, int n_rows, struct coords c)
{
    struct hidden h = {0, 0};
    if (c.g < n_rows)
        h.lo = *(const uint32_t *)(u + (size_t)c.g * ld + 2 * c.t);
    if (c.g + 8 < n_rows)
        h.hi = *(const uint32_t *)(u + (size_t)(c.g + 8) * ld + 2 * c.t);
    return h;
}

struct mixed { /* 32 columns of B_eff, hidden numbers 2 t and 2 t + 1, columns from 8 (g / 2) on */
    uint4 lo, hi;
};

/* b [8, width] */
__device__ __forceinline__ struct mixed load_b(const bf16 *b, int width, int col0, struct coords c)
{
    int col = col0 + c.g / 2 * 8;
    const bf16 *p = b + 2 * c.t * width + col;
    struct mixed m = {load16(p, col < width), load16(p + width, col < width)};
    return m;
}

/* x += u B_eff */
__device__ __forceinline__ void add_low(float x[4][4], struct hidden u, const struct mixed &b,
                                        struct coords c)
{
    const uint32_t pick = c.g % 2 ? 0x7632 : 0x5410;
    mma8(x[0], u.lo, u.hi, __byte_perm(b.lo.x, b.hi.x, pick));
    mma8(x[1], u.lo, u.hi, __byte_perm(b.lo.y, b.hi.y, pick));
    mma8(x[2], u.lo, u.hi, __byte_perm(b.lo.z, b.hi.z, pick));
    mma8(x[3], u.lo, u.hi, __byte_perm(b.lo.w, b.hi.w, pick));
}

/* The 32 columns number `at` of a stage, where each linear begins anew: false beyond the last. */
__device__ __forceinline__ bool find(const struct cr_thin_stage &st, int at, int *lin, int *col0)
{
    for (int i = 0; i < st.n_lins; i++) {
        int n = (st.lin[i].width + WIDE - 1) / WIDE;
        if (at < n) {
            *lin = i;
            *col0 = at * WIDE;
            return true;
        }
        at -= n;
    }
    return false;
}

struct gated { /* 32 columns of gate and up of a piece */
    uint4 g[2], u[2];
    struct hidden low_g, low_u;
};

__device__ __forceinline__ struct gated load_gated(const struct cr_thin_stage &st, const bf16 *y,
                                                   int ld, int n_rows, int col, bool in,
                                                   struct coords c)
{
    const struct cr_thin_lin &gate = st.lin[0], &up = st.lin[1];
    struct gated x;
    load_rows(x.g, y, ld, n_rows, col, in, c);
    load_rows(x.u, y + gate.width, ld, n_rows, col, in, c);
    x.low_g = x.low_u = {0, 0};
    if (gate.beff >= 0)
        x.low_g = load_u(y + st.n_out + gate.u, ld, n_rows, c);
    if (up.beff >= 0)
        x.low_u = load_u(y + st.n_out + up.u, ld, n_rows, c);
    return x;
}

#endif
