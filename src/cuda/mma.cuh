/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tensor cores by mma.m16n8k16 on bfloat16, from registers.
 *
 * Operands come straight from rows in global memory: a thread (g, t) of a warp reads 2 V columns of
 * row g at a time, as V words of two columns, so that four neighbours read 8 V columns in one
 * piece. A product over columns does not mind their order, so the same words serve as its A and B
 * operand; a product over rows takes them turned by movmatrix, and its results stand where the
 * words came from.
 */
#ifndef CR_CUDA_MMA_CUH
#define CR_CUDA_MMA_CUH

#include "device.cuh"

struct coords { /* of a thread in the fragments of an mma */
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

/* c [16, 8] += a [16, 8] b [8, 8] */
__device__ __forceinline__ void mma8(float c[4], uint32_t a0, uint32_t a1, uint32_t b)
{
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(b));
}

/* An 8 x 8 matrix, of which each thread holds columns 2 t and 2 t + 1 of row g, transposed. */
__device__ __forceinline__ uint32_t transposed(uint32_t x)
{
    uint32_t y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

__device__ __forceinline__ float2 unpack(uint32_t x)
{
    return __bfloat1622float2(*(const __nv_bfloat162 *)&x);
}

#endif
