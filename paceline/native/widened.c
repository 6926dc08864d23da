/* The products of `matrix.c`, from the same panels, for CPUs that do not multiply bfloat16: numbers are widened to
   float32 in registers, a pair of inputs of an output being one word of its panel.

   CHUNK inputs of a panel go by all rows, MOST at a time, from the first cache. Meanwhile the next ones are fetched, a
   part during each block of rows, so that the memory works as long as the arithmetic does; where it is FEW rows that go
   by, what lies AHEAD. A number's sum is one chain of multiply-adds in the order of the inputs, whatever the rows. */

#include "panels.h"

enum {
    MOST = 5,     /* rows a block: their sums of at least half of a panel fit the registers beside what is added */
    FEW = 2,      /* rows whose arithmetic takes less time than the memory; no block of several has fewer */
    CHUNK = 128,  /* inputs: 8 KB of a panel */
    AHEAD = 4096, /* bytes that are fetched ahead */
    FETCHING = 4, /* blocks of rows during which the next inputs are fetched */
};

/* Vectors of outputs whose sums the registers hold for so many rows. */
#ifdef __AVX512F__
#define VECTORS(rows) 2
#else
#define VECTORS(rows) ((rows) <= FEW ? 4 : 2)
#endif

typedef uint32_t pairs __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

int widened_available(void)
{
#if defined(__FMA__) && !defined(__AMX_BF16__) /* with matrix units oneDNN is faster */
    return 1;
#else
    return 0;
#endif
}

/* Vectors k and k + 1 of each row += weights times every other number of x. */
static inline __attribute__((always_inline)) void add(lanes now[][WIDE / LANES], int k, lanes a, lanes b,
                                                      const float *x, int rows)
{
#pragma GCC unroll 5
    for (int r = 0; r < rows; r++) {
        now[r][k] += x[2 * r] * a;
        now[r][k + 1] += x[2 * r] * b;
    }
}

/* sums[0:rows] += some inputs of the panel times those of x, `[inputs / 2, rows, 2]`. Fetches `share` bytes from `next`
   on, or for FEW rows what lies AHEAD. */
static inline __attribute__((always_inline)) void few(const uint16_t *panel, const float *x, int64_t inputs, int rows,
                                                      const char *next, int64_t share, float sums[][WIDE])
{
    const int vectors = VECTORS(rows), parts = WIDE / (vectors * LANES);
    const int64_t step = share / (parts * (inputs / 2));
#pragma GCC unroll 1
    for (int from = 0; from < WIDE; from += vectors * LANES) {
        const uint16_t *at = panel + 2 * from;
        const float *numbers = x;
        lanes now[MOST][WIDE / LANES];
#pragma GCC unroll 5
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int k = 0; k < vectors; k++) now[r][k] = load(sums[r] + from + k * LANES);
        for (int64_t i = 0; i < inputs; i += 2, at += 2 * WIDE, numbers += 2 * rows) {
            if (rows <= FEW) {
                __builtin_prefetch((const char *)at + AHEAD);
                __builtin_prefetch((const char *)at + AHEAD + 64);
            } else {
                __builtin_prefetch(next);
                next += step;
            }
            /* Two vectors at a time: each number of x is then brought to a register once for both. */
#pragma GCC unroll 2
            for (int k = 0; k < vectors; k += 2) {
                pairs some = *(const pairs *)(at + 2 * k * LANES), more = *(const pairs *)(at + 2 * (k + 1) * LANES);
                add(now, k, (lanes)(some << 16), (lanes)(more << 16), numbers, rows);
                add(now, k, (lanes)(some & 0xffff0000u), (lanes)(more & 0xffff0000u), numbers + 1, rows);
            }
        }
#pragma GCC unroll 5
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int k = 0; k < vectors; k++) store(sums[r] + from + k * LANES, now[r][k]);
    }
}

static void product(const uint16_t *panel, const float *x, int64_t inputs, int64_t rows, const char *next, int64_t share,
                    float sums[][WIDE])
{
    switch (rows) {
    case 1: few(panel, x, inputs, 1, next, share, sums); return;
    case 2: few(panel, x, inputs, 2, next, share, sums); return;
    case 3: few(panel, x, inputs, 3, next, share, sums); return;
    case 4: few(panel, x, inputs, 4, next, share, sums); return;
    default: few(panel, x, inputs, 5, next, share, sums);
    }
}

/* x [rows, inputs] to float32, each block of rows as `few` reads it; by all threads of the team. */
static void spread(const uint16_t *x, int64_t rows, int64_t inputs, float *to)
{
#pragma omp for schedule(static)
    for (int64_t i = 0; i < inputs; i += 2)
        for (int64_t begin = 0, now; begin < rows; begin += now) {
            now = block_rows(rows, begin, MOST);
            for (int64_t r = 0; r < now; r++)
                widen(x, 1, (begin + r) * inputs + i, 2, to + begin * inputs + i * now + 2 * r);
        }
}

/* As `matrix_product`. */
void widened_product(const uint16_t *x, const uint16_t *panels, const float *bias, int swish, const uint16_t *other,
                     int operation, uint16_t *y, int64_t rows, int64_t inputs, int64_t outputs, int threads)
{
    const tail after = {bias, other, y, outputs, swish, operation};
    const int64_t fetching = least(FETCHING, (rows + MOST - 1) / MOST);
    float *numbers = aligned_alloc(64, (rows * inputs * sizeof(float) + 63) / 64 * 64);
#pragma omp parallel num_threads(threads)
    {
        float(*sums)[WIDE] = aligned_alloc(64, rows * sizeof *sums);
        spread(x, rows, inputs, numbers);
#pragma omp for schedule(static)
        for (int64_t p = 0; p < (outputs + WIDE - 1) / WIDE; p++) {
            const uint16_t *panel = panels + p * WIDE * inputs;
            memset(sums, 0, rows * sizeof *sums);
            for (int64_t i = 0; i < inputs; i += CHUNK) {
                int64_t some = least(CHUNK, inputs - i), share = some * WIDE * sizeof *panel / fetching;
                const char *next = (const char *)(panel + (i + some) * WIDE);
                for (int64_t r = 0, block = 0, now; r < rows; r += now, block++) {
                    now = block_rows(rows, r, MOST);
                    product(panel + i * WIDE, numbers + r * inputs + i * now, some, now, next,
                            block < fetching ? share : 0, sums + r);
                    if (block < fetching) next += share;
                }
            }
            for (int64_t r = 0; r < rows; r++) finish(sums[r], &after, r, p * WIDE);
        }
        free(sums);
    }
    free(numbers);
}
