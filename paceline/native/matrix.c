/* Products of bfloat16 matrices with few or many rows, summed in float32; `matrix.py` lays out the weights.

   Panels of WIDE outputs lie one after the other, `[outputs / WIDE, inputs / 2, WIDE, 2]`, the last one filled up with
   zeros. A thread reads its panels as one stream and fetches in front of itself: it is this that brings the memory's
   bandwidth, for a core that also computes asks for too little at a time on its own. A panel goes once by a block of
   rows, and what is fetched is AHEAD bytes further on; or by several blocks, from the cache, and during each a part of
   the next panel is fetched. */

#include "panels.h"

enum {
    MOST = 8,      /* rows a block that the registers hold */
    SINGLE = 5,    /* rows that are one block */
    BALANCED = 6,  /* rows a block up to which computing hides behind the memory */
    MANY = 32,     /* rows beyond which it cannot */
    AHEAD = 4096,
};

#ifdef __AVX512BF16__

#include <immintrin.h>

int matrix_available(void) { return 1; }

/* out[0:rows][0:WIDE] = the panel times rows <= MOST of x; a sum's steps are the same whatever the rows. Fetches
   `next` with what lies behind it, `step` bytes at a time, or AHEAD where `step` is 0. */
static inline __attribute__((always_inline)) void few(const uint16_t *panel, const uint16_t *x, int64_t inputs,
                                                      int rows, const char *next, int64_t step, float out[][WIDE])
{
    __m512 low[MOST], high[MOST];
    for (int r = 0; r < rows; r++) low[r] = high[r] = _mm512_setzero_ps();
    for (int64_t i = 0; i < inputs; i += 2, panel += 2 * WIDE) {
        __m512bh a = (__m512bh)_mm512_loadu_si512(panel), b = (__m512bh)_mm512_loadu_si512(panel + WIDE);
        if (step) {
            _mm_prefetch(next, _MM_HINT_T1);
            next += step;
        } else {
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

static void product(const uint16_t *panel, const uint16_t *x, int64_t inputs, int64_t rows, const char *next,
                    int64_t step, float out[][WIDE])
{
    switch (rows) {
    case 1: few(panel, x, inputs, 1, next, step, out); return;
    case 2: few(panel, x, inputs, 2, next, step, out); return;
    case 3: few(panel, x, inputs, 3, next, step, out); return;
    case 4: few(panel, x, inputs, 4, next, step, out); return;
    case 5: few(panel, x, inputs, 5, next, step, out); return;
    case 6: few(panel, x, inputs, 6, next, step, out); return;
    case 7: few(panel, x, inputs, 7, next, step, out); return;
    default: few(panel, x, inputs, 8, next, step, out); return;
    }
}

#else

int matrix_available(void) { return 0; }

static void product(const uint16_t *panel, const uint16_t *x, int64_t inputs, int64_t rows, const char *next,
                    int64_t step, float out[][WIDE])
{
    (void)panel, (void)x, (void)inputs, (void)rows, (void)next, (void)step, (void)out;
}

#endif

/* y [rows, outputs] = x [rows, inputs] times the matrix, with what `finish` does; all but the bias in bfloat16. */
void matrix_product(const uint16_t *x, const uint16_t *panels, const float *bias, int swish, const uint16_t *other,
                    int operation, uint16_t *y, int64_t rows, int64_t inputs, int64_t outputs, int threads)
{
    const tail after = {bias, other, y, outputs, swish, operation};
    int64_t most = rows <= SINGLE ? SINGLE : rows <= BALANCED ? BALANCED / 2 : rows <= MANY ? BALANCED : MOST;
    int64_t blocks = (rows + most - 1) / most;
    int64_t size = WIDE * inputs, step = blocks > 1 && rows <= MANY ? 4 * WIDE / blocks : 0;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < (outputs + WIDE - 1) / WIDE; p++) {
        const uint16_t *panel = panels + p * size;
        float out[MOST][WIDE];
        for (int64_t b = 0, r = 0; b < blocks; b++) {
            int64_t now = (rows - r + blocks - b - 1) / (blocks - b);
            product(panel, x + r * inputs, inputs, now, (const char *)(panel + size + b * (size / blocks)), step, out);
            for (int64_t i = 0; i < now; i++) finish(out[i], &after, r + i, p * WIDE);
            r += now;
        }
    }
}
