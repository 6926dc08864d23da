/* Products of bfloat16 matrices with few or many rows, summed in float32; `matrix.py` lays out the weights.

   Panels of WIDE outputs lie one after the other, `[outputs / WIDE, inputs / 2, WIDE, 2]`, the last one filled up with
   zeros. A thread reads its panels as one stream and fetches AHEAD bytes in front of itself: it is this that brings
   the memory's bandwidth, for a core that also computes asks for too little at a time on its own. */

#include "lanes.h"

enum { WIDE = 2 * LANES, TOGETHER = 8, AHEAD = 4096 };

#ifdef __AVX512BF16__

#include <immintrin.h>

int matrix_available(void)
{
#ifdef __AMX_BF16__
    return 0; /* oneDNN has matrix units to compute with. */
#else
    return 1;
#endif
}

/* out[0:rows][0:WIDE] = the panel times rows <= TOGETHER of x; a sum's steps are the same whatever the rows. */
static inline __attribute__((always_inline)) void few(const uint16_t *panel, const uint16_t *x, int64_t inputs,
                                                      int rows, int fetch, float out[][WIDE])
{
    __m512 low[TOGETHER], high[TOGETHER];
    for (int r = 0; r < rows; r++) low[r] = high[r] = _mm512_setzero_ps();
    for (int64_t i = 0; i < inputs; i += 2, panel += 2 * WIDE) {
        __m512bh a = (__m512bh)_mm512_loadu_si512(panel), b = (__m512bh)_mm512_loadu_si512(panel + WIDE);
        if (fetch) {
            _mm_prefetch((const char *)panel + AHEAD, _MM_HINT_T0);
            _mm_prefetch((const char *)panel + AHEAD + 64, _MM_HINT_T0);
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            int32_t pair;
            memcpy(&pair, x + r * inputs + i, sizeof pair);
            __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
            low[r] = _mm512_dpbf16_ps(low[r], a, both);
            high[r] = _mm512_dpbf16_ps(high[r], b, both);
        }
    }
    for (int r = 0; r < rows; r++) {
        _mm512_storeu_ps(out[r], low[r]);
        _mm512_storeu_ps(out[r] + LANES, high[r]);
    }
}

static void product(const uint16_t *panel, const uint16_t *x, int64_t inputs, int64_t rows, int fetch,
                    float out[][WIDE])
{
    switch (rows) {
    case 1: few(panel, x, inputs, 1, fetch, out); return;
    case 2: few(panel, x, inputs, 2, fetch, out); return;
    case 3: few(panel, x, inputs, 3, fetch, out); return;
    case 4: few(panel, x, inputs, 4, fetch, out); return;
    case 5: few(panel, x, inputs, 5, fetch, out); return;
    case 6: few(panel, x, inputs, 6, fetch, out); return;
    case 7: few(panel, x, inputs, 7, fetch, out); return;
    default: few(panel, x, inputs, 8, fetch, out); return;
    }
}

#else

int matrix_available(void) { return 0; }

static void product(const uint16_t *panel, const uint16_t *x, int64_t inputs, int64_t rows, int fetch,
                    float out[][WIDE])
{
    (void)panel, (void)x, (void)inputs, (void)rows, (void)fetch, (void)out;
}

#endif

enum { SET, ADD, MULTIPLY };

/* One row of a panel: bias, activation and the other operand in float32, then rounded once. */
static inline void finish(float *sums, const float *bias, int swish, const uint16_t *other, int operation, uint16_t *to,
                          int64_t count)
{
    if (bias)
        for (int64_t o = 0; o < count; o++) sums[o] += bias[o];
    if (swish)
        for (int k = 0; k < WIDE; k += LANES) store(sums + k, silu(load(sums + k)));
    if (operation != SET) {
        float x[WIDE];
        widen(other, 1, 0, count, x);
        if (operation == ADD)
            for (int64_t o = 0; o < count; o++) sums[o] += x[o];
        else
            for (int64_t o = 0; o < count; o++) sums[o] *= x[o];
    }
    narrow(sums, 1, to, 0, count);
}

/* y [rows, outputs] = x [rows, inputs] times the matrix, with what `finish` does; all but the bias in bfloat16. */
void matrix_product(const uint16_t *x, const uint16_t *panels, const float *bias, int swish, const uint16_t *other,
                    int operation, uint16_t *y, int64_t rows, int64_t inputs, int64_t outputs, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < (outputs + WIDE - 1) / WIDE; p++) {
        int64_t from = p * WIDE, count = outputs - from < WIDE ? outputs - from : WIDE;
        float out[TOGETHER][WIDE];
        for (int64_t r = 0; r < rows; r += TOGETHER) {
            int64_t now = rows - r < TOGETHER ? rows - r : TOGETHER;
            product(panels + from * inputs, x + r * inputs, inputs, now, r == 0, out);
            for (int64_t i = 0; i < now; i++) {
                int64_t at = (r + i) * outputs + from;
                finish(out[i], bias ? bias + from : 0, swish, other ? other + at : 0, operation, y + at, count);
            }
        }
    }
}
