/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products in bfloat16 with float32 sums.
 *
 * VDPBF16PS multiplies pairs: a vector of 16 pairs of w (one pair of columns of 16 rows, as panels
 * hold them) by one pair of x, broadcast. 12 rows of x by 2 panels make 24 sums in registers.
 *
 * AMX multiplies tiles: 16 rows of 32 columns of x by one panel's 16 pairs of columns, giving 16 x
 * 16 sums. 2 x 2 such tiles share their operands. A block that juts out over the result's edge is
 * computed whole and copied in part; rows of x beyond the last are read from a cleared copy.
 */
#include "kernels/train_body.h"
#include "kernels/train_levels.h"

#include <immintrin.h>

static void bf16_rows(uint16_t *a, const float *x, size_t ldx, size_t rows, size_t k)
{
    size_t depth = cr_bf16_depth(k);
    for (size_t t = 0; t < rows; t++, a += depth, x += ldx) {
        for (size_t i = 0; i < depth; i += TV) {
            size_t left = i < k ? k - i : 0;
            __mmask16 mask = left >= TV ? 0xffff : (__mmask16)((1u << left) - 1);
            __m256bh v = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x + i));
            _mm256_storeu_si256((__m256i *)(void *)(a + i), (__m256i)v);
        }
    }
}

/* ---- VDPBF16PS ---- */

enum {
    SIDE = 12,
    IN_L2 = 128 * 1024 /* numbers */
};

/* R rows by 2 panels; the second may be beyond the end (p1 NULL). mask: columns to store of each.
 */
INLINE void dot_block(int R, float *y, size_t ldy, const uint16_t *a, size_t depth,
                      const uint16_t *p0, const uint16_t *p1, __mmask16 mask0, __mmask16 mask1)
{
    __m512 sum[SIDE][2];
    UNROLL for (int t = 0; t < R; t++)
    {
        sum[t][0] = sum[t][1] = _mm512_setzero_ps();
    }
    for (size_t i = 0; i < depth; i += 2) {
        __m512bh w0 = (__m512bh)_mm512_loadu_si512(p0 + i * TV);
        __m512bh w1 = (__m512bh)_mm512_loadu_si512(p1 + i * TV);
        UNROLL for (int t = 0; t < R; t++)
        {
            int32_t pair;
            memcpy(&pair, a + (size_t)t * depth + i, sizeof pair);
            __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
            sum[t][0] = _mm512_dpbf16_ps(sum[t][0], x, w0);
            sum[t][1] = _mm512_dpbf16_ps(sum[t][1], x, w1);
        }
    }
    UNROLL for (int t = 0; t < R; t++)
    {
        _mm512_mask_storeu_ps(y + (size_t)t * ldy, mask0, sum[t][0]);
        _mm512_mask_storeu_ps(y + (size_t)t * ldy + TV, mask1, sum[t][1]);
    }
}

static __mmask16 columns(size_t n, size_t at)
{
    return at >= n ? 0 : n - at >= TV ? 0xffff : (__mmask16)((1u << (n - at)) - 1);
}

static void matmul_dot(float *y, size_t ldy, const uint16_t *a, const uint16_t *panels, size_t rows,
                       size_t n, size_t k)
{
    size_t depth = cr_bf16_depth(k), panel = TV * depth;
    size_t high = IN_L2 / depth / SIDE * SIDE + SIDE; /* rows of a that stay there */
    for (size_t top = 0; top < rows; top += high) {
        size_t end = rows - top < high ? rows : top + high;
        for (size_t o = 0; o < n; o += 2 * TV) {
            const uint16_t *p0 = panels + o / TV * panel, *p1 = o + TV < n ? p0 + panel : p0;
            __mmask16 mask0 = columns(n, o), mask1 = columns(n, o + TV);
            size_t t = top;
            for (; t + SIDE <= end; t += SIDE)
                dot_block(SIDE, y + t * ldy + o, ldy, a + t * depth, depth, p0, p1, mask0, mask1);
            for (; t + 4 <= end; t += 4)
                dot_block(4, y + t * ldy + o, ldy, a + t * depth, depth, p0, p1, mask0, mask1);
            for (; t < end; t++)
                dot_block(1, y + t * ldy + o, ldy, a + t * depth, depth, p0, p1, mask0, mask1);
        }
    }
}

/* ---- AMX ---- */

enum { BLOCK = 32 };

static void configure_tiles(void)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.bytes[i] = 64;
        config.rows[i] = 16;
    }
    _tile_loadconfig(&config);
}

/* y [32, 32] = a [32, depth] by two panels. */
INLINE void tile_block(float *y, size_t ldy, const uint16_t *a, size_t depth, const uint16_t *p0,
                       const uint16_t *p1)
{
    size_t stride = depth * sizeof *a;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t i = 0; i < depth; i += 32) {
        _tile_loadd(4, a + i, stride);
        _tile_loadd(6, p0 + i * TV, 64);
        _tile_loadd(7, p1 + i * TV, 64);
        _tile_loadd(5, a + 16 * depth + i, stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, y, ldy * sizeof *y);
    _tile_stored(1, y + 16, ldy * sizeof *y);
    _tile_stored(2, y + 16 * ldy, ldy * sizeof *y);
    _tile_stored(3, y + 16 * ldy + 16, ldy * sizeof *y);
}

static void matmul_amx(float *y, size_t ldy, const uint16_t *a, const uint16_t *panels, size_t rows,
                       size_t n, size_t k)
{
    size_t depth = cr_bf16_depth(k), panel = TV * depth;
    float edge[BLOCK * BLOCK];
    configure_tiles();
    for (size_t o = 0; o < n; o += BLOCK) {
        const uint16_t *p0 = panels + o / TV * panel, *p1 = o + TV < n ? p0 + panel : p0;
        size_t cols = n - o < BLOCK ? n - o : BLOCK;
        for (size_t t = 0; t < rows; t += BLOCK) {
            size_t high = rows - t < BLOCK ? rows - t : BLOCK;
            float *to = y + t * ldy + o;
            if (high == BLOCK && cols == BLOCK) {
                tile_block(to, ldy, a + t * depth, depth, p0, p1);
                continue;
            }
            tile_block(edge, BLOCK, a + t * depth, depth, p0, p1);
            for (size_t i = 0; i < high; i++)
                memcpy(to + i * ldy, edge + i * BLOCK, cols * sizeof *to);
        }
    }
    _tile_release();
}

const struct cr_train_kernels cr_train_bf16 = {TRAIN_KERNELS("avx512 bf16"), .bf16_rows = bf16_rows,
                                               .bf16_matmul = matmul_dot};
const struct cr_train_kernels cr_train_amx = {TRAIN_KERNELS("amx"), .bf16_rows = bf16_rows,
                                              .bf16_matmul = matmul_amx};
