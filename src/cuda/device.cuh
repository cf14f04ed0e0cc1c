/* SPDX-License-Identifier: Apache-2.0 */
/* Small device functions that the kernel files share. */
#ifndef CR_CUDA_DEVICE_CUH
#define CR_CUDA_DEVICE_CUH

#include <cuda_bf16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

__device__ __forceinline__ void unpack8(uint4 raw, float v[8])
{
    const __nv_bfloat162 *h = (const __nv_bfloat162 *)&raw;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 f = __bfloat1622float2(h[i]);
        v[2 * i] = f.x;
        v[2 * i + 1] = f.y;
    }
}

__device__ __forceinline__ void load8(const bf16 *p, float v[8])
{
    unpack8(*(const uint4 *)p, v);
}

__device__ __forceinline__ void store8(bf16 *p, const float v[8])
{
    uint4 raw;
    __nv_bfloat162 *h = (__nv_bfloat162 *)&raw;
#pragma unroll
    for (int i = 0; i < 4; i++)
        h[i] = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
    *(uint4 *)p = raw;
}

/* As it will be read again. */
__device__ __forceinline__ float rounded(float x)
{
    return __bfloat162float(__float2bfloat16(x));
}

__device__ __forceinline__ float warp_sum(float v)
{
#pragma unroll
    for (int i = 16; i > 0; i >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, i);
    return v;
}

__device__ __forceinline__ uint32_t pack(float lo, float hi)
{
    __nv_bfloat162 h = __floats2bfloat162_rn(lo, hi);
    return *(uint32_t *)&h;
}

#endif
