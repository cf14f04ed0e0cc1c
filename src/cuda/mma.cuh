/* SPDX-License-Identifier: Apache-2.0 */
/* Tensor cores by mma.m16n8k16 on bfloat16 tiles in shared memory. */
#ifndef CR_CUDA_MMA_CUH
#define CR_CUDA_MMA_CUH

#include "device.cuh"

struct coords { /* of a thread in the fragments of mma.m16n8k16 */
    int warp, lane, g, t;
};

__device__ __forceinline__ struct coords coords_of(void)
{
    int lane = threadIdx.x % 32;
    struct coords c = {(int)threadIdx.x / 32, lane, lane / 4, lane % 4};
    return c;
}

/* c [16, 8] += a [16, 16] b [16, 8] */
__device__ __forceinline__ void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t word(const bf16 *p)
{
    return *(const uint32_t *)p;
}

/* A fragment of rows [row, row + 16) and columns [col, col + 16) of a tile. */
template <int LD>
__device__ __forceinline__ void load_a(uint32_t a[4], const bf16 *tile, int row, int col,
                                       struct coords c)
{
    const bf16 *p = tile + (row + c.g) * LD + col + 2 * c.t;
    a[0] = word(p);
    a[1] = word(p + 8 * LD);
    a[2] = word(p + 8);
    a[3] = word(p + 8 * LD + 8);
}

/* Two B fragments: k = rows [row, row + 16), n = columns [col, col + 16) of a row-major tile. */
template <int LD>
__device__ __forceinline__ void load_b_transposed(uint32_t b[4], const bf16 *tile, int row, int col,
                                                  struct coords c)
{
    const bf16 *p = tile + (row + c.lane % 16) * LD + col + c.lane / 16 * 8;
    uint32_t at = (uint32_t)__cvta_generic_to_shared(p);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(at));
}

#endif
