/* Products of matrices in 8 bits with few rows, summed in whole numbers; `paceline.models.quantised` makes them.

   Panels of WIDE outputs lie one after the other, `[outputs / WIDE, inputs / 4, WIDE, 4]`, filled up with zeros. Each
   row of x is rounded to 8 bits by a step of its own and moved up by 128, since the instruction takes one operand
   without a sign; `sums`, of each output's weights, takes that back. */

#include "lanes.h"

enum { WIDE = 32, MOST = 8, AHEAD = 8192, NEAR = 512, MIDDLE = 128 };

#ifdef __AVX512VNNI__

#include <immintrin.h>

int bytes_available(void) { return 1; }

/* out[0:rows][0:WIDE] = the panel times rows <= MOST of rounded x. */
static inline __attribute__((always_inline)) void few(const int8_t *panel, const uint8_t *x, int64_t inputs, int rows,
                                                      int32_t out[][WIDE])
{
    __m512i low[MOST], high[MOST];
    for (int r = 0; r < rows; r++) low[r] = high[r] = _mm512_setzero_si512();
    for (int64_t i = 0; i < inputs; i += 4, panel += 4 * WIDE) {
        __m512i a = _mm512_loadu_si512(panel), b = _mm512_loadu_si512(panel + 2 * WIDE);
        /* From memory to the second cache, and from there to the first. */
        for (int line = 0; line < 4 * WIDE; line += 64) {
            _mm_prefetch((const char *)panel + AHEAD + line, _MM_HINT_T1);
            _mm_prefetch((const char *)panel + NEAR + line, _MM_HINT_T0);
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            int32_t some;
            memcpy(&some, x + r * inputs + i, sizeof some);
            low[r] = _mm512_dpbusd_epi32(low[r], _mm512_set1_epi32(some), a);
            high[r] = _mm512_dpbusd_epi32(high[r], _mm512_set1_epi32(some), b);
        }
    }
    for (int r = 0; r < rows; r++) {
        _mm512_storeu_si512(out[r], low[r]);
        _mm512_storeu_si512(out[r] + LANES, high[r]);
    }
}

static void product(const int8_t *panel, const uint8_t *x, int64_t inputs, int64_t rows, int32_t out[][WIDE])
{
    switch (rows) {
    case 1: few(panel, x, inputs, 1, out); return;
    case 2: few(panel, x, inputs, 2, out); return;
    case 3: few(panel, x, inputs, 3, out); return;
    case 4: few(panel, x, inputs, 4, out); return;
    case 5: few(panel, x, inputs, 5, out); return;
    case 6: few(panel, x, inputs, 6, out); return;
    case 7: few(panel, x, inputs, 7, out); return;
    default: few(panel, x, inputs, 8, out); return;
    }
}

#else

int bytes_available(void) { return 0; }

static void product(const int8_t *panel, const uint8_t *x, int64_t inputs, int64_t rows, int32_t out[][WIDE])
{
    (void)panel, (void)x, (void)inputs;
    memset(out, 0, rows * sizeof *out);
}

#endif

/* One row in 8 bits; returns the step. */
static float round_row(const float *x, int64_t size, uint8_t *to)
{
    float largest = 0;
    for (int64_t i = 0; i < size; i++) largest = fmaxf(largest, fabsf(x[i]));
    float step = largest > 0 ? largest / 127 : 1;
    for (int64_t i = 0; i < size; i++) to[i] = (uint8_t)(int32_t)(x[i] / step + (MIDDLE + 0.5f));
    return step;
}

/* y [rows, outputs] = x [rows, size] times the matrix, plus the bias (or none). `inputs` is `size` filled up to a
   multiple of 4; `room` [rows, inputs] holds zeros behind each row. */
void bytes_product(const float *x, int64_t size, uint8_t *room, const int8_t *panels, const int32_t *sums,
                   const float *scales, const float *bias, float *y, int64_t rows, int64_t inputs, int64_t outputs,
                   int threads)
{
    float steps[rows];
    for (int64_t r = 0; r < rows; r++) steps[r] = round_row(x + r * size, size, room + r * inputs);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < (outputs + WIDE - 1) / WIDE; p++) {
        int64_t from = p * WIDE, count = least(WIDE, outputs - from);
        int32_t out[MOST][WIDE];
        for (int64_t r = 0; r < rows; r += MOST) {
            int64_t now = least(MOST, rows - r);
            product(panels + from * inputs, room + r * inputs, inputs, now, out);
            for (int64_t i = 0; i < now; i++)
                for (int64_t o = 0; o < count; o++) {
                    float exact = (float)(out[i][o] - MIDDLE * sums[from + o]) * (steps[r + i] * scales[from + o]);
                    y[(r + i) * outputs + from + o] = bias ? exact + bias[from + o] : exact;
                }
        }
    }
}
