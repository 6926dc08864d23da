/* Products of bfloat16 matrices that are kept as `compact.h` says: the same bits as those of `matrix.c`. */

#include <omp.h>

#include "compact.h"

enum {
    MOST = 12,   /* rows that the registers hold; `MOST` in compact.py */
    CHUNK = 256, /* inputs of a panel that several blocks of rows share: 16 KB decoded, of the first cache's 32 */
};

#if defined(__AVX512BF16__) && defined(__AVX512VBMI2__)

int compact_available(void) { return 1; }

typedef struct {
    __m512 low[MOST], high[MOST];
} accumulators;

/* sums += a pair of inputs of a panel times those of x. */
static inline __attribute__((always_inline)) void add_pair(accumulators *sums, __m512i a, __m512i b, const uint16_t *x,
                                                           int rows)
{
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        int32_t pair;
        memcpy(&pair, x + r * INPUTS, sizeof pair);
        __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
        sums->low[r] = _mm512_dpbf16_ps(sums->low[r], (__m512bh)a, both);
        sums->high[r] = _mm512_dpbf16_ps(sums->high[r], (__m512bh)b, both);
    }
}

/* sums += a block as `matrix.c` has it, times x. Fetches `lines` lines a group from `ahead` on. */
static inline __attribute__((always_inline)) void add_plain(accumulators *sums, const uint16_t *block,
                                                            const uint16_t *x, int rows, const char *ahead, int lines)
{
#pragma GCC unroll 1
    for (int g = 0; g < GROUPS; g++, x += 4) {
        for (int k = 0; k < lines; k++, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++, block += 2 * WIDE)
            add_pair(sums, _mm512_loadu_si512(block), _mm512_loadu_si512(block + WIDE), x + 2 * j, rows);
    }
}

/* sums += a compact block times x. Fetches its next groups too, and writes it `to` as `matrix.c` has it, if anywhere. */
static inline __attribute__((always_inline)) void add_compact(accumulators *sums, const uint8_t *table,
                                                              const uint8_t *group, const uint16_t *x, int rows,
                                                              const char *ahead, int lines, uint16_t *to)
{
    __m512i powers = exponents(table);
#pragma GCC unroll 1
    for (int g = 0; g < GROUPS; g++, group += GROUP, x += 4) {
        for (int k = 0; k < GROUP; k += 64) _mm_prefetch((const char *)group + NEAR + k, _MM_HINT_T0);
        for (int k = 0; k < lines; k++, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            __m512i a, b;
            decode(group, powers, j, &a, &b);
            if (to) {
                _mm512_storeu_si512(to, a);
                _mm512_storeu_si512(to + WIDE, b);
                to += 2 * WIDE;
            }
            add_pair(sums, a, b, x + 2 * j, rows);
        }
    }
}

/* A panel, room for some of its inputs as `matrix.c` has them or none, whether they are there, and what to fetch. */
typedef struct {
    const uint8_t *panel;
    const uint16_t *spare;
    uint16_t *room;
    int there, lines;
    const char *ahead;
} source;

/* sums[0:rows] += inputs [from, until) of a panel times rows <= MOST of x, interlaced, by the steps of `matrix.c`. */
static inline __attribute__((always_inline)) void few(source s, const uint16_t *x, int64_t inputs, int64_t from,
                                                      int64_t until, int rows, float sums[][WIDE])
{
    accumulators now;
    const uint8_t *tables = s.panel, *groups = s.panel + header(inputs);
    for (int r = 0; r < rows; r++) now.low[r] = _mm512_loadu_ps(sums[r]), now.high[r] = _mm512_loadu_ps(sums[r] + LANES);
    for (int64_t i = from; i < until; i += INPUTS, s.ahead += GROUPS * 64 * s.lines) {
        const uint8_t *table = tables + i / INPUTS * TABLE, *group = groups + i / INPUTS * GROUPS * GROUP;
        const uint16_t *here = x + i * rows;
        uint16_t *room = s.room ? s.room + (i - from) * WIDE : 0;
        if (s.there) {
            add_plain(&now, room, here, rows, s.ahead, s.lines);
        } else if (__builtin_expect(is_spare(table), 0)) {
            add_plain(&now, spare_block(table, s.spare), here, rows, s.ahead, s.lines);
            if (room) memcpy(room, spare_block(table, s.spare), BLOCK * sizeof *room);
        } else {
            add_compact(&now, table, group, here, rows, s.ahead, s.lines, room);
        }
    }
    for (int r = 0; r < rows; r++) _mm512_storeu_ps(sums[r], now.low[r]), _mm512_storeu_ps(sums[r] + LANES, now.high[r]);
}

static void product(source s, const uint16_t *x, int64_t inputs, int64_t from, int64_t until, int64_t rows,
                    float sums[][WIDE])
{
    switch (rows) {
    case 1: few(s, x, inputs, from, until, 1, sums); return;
    case 2: few(s, x, inputs, from, until, 2, sums); return;
    case 3: few(s, x, inputs, from, until, 3, sums); return;
    case 4: few(s, x, inputs, from, until, 4, sums); return;
    case 5: few(s, x, inputs, from, until, 5, sums); return;
    case 6: few(s, x, inputs, from, until, 6, sums); return;
    case 7: few(s, x, inputs, from, until, 7, sums); return;
    case 8: few(s, x, inputs, from, until, 8, sums); return;
    case 9: few(s, x, inputs, from, until, 9, sums); return;
    case 10: few(s, x, inputs, from, until, 10, sums); return;
    case 11: few(s, x, inputs, from, until, 11, sums); return;
    default: few(s, x, inputs, from, until, 12, sums);
    }
}

/* sums[0:rows] += inputs [from, until) of a panel times x, by blocks of rows as even as can be. */
static void blocks(source s, const uint16_t *x, int64_t inputs, int64_t from, int64_t until, int64_t rows,
                   float sums[][WIDE])
{
    int64_t count = (rows + MOST - 1) / MOST, shares = least(count, GROUP / 64);
    const char *next = s.ahead;
    for (int64_t b = 0, r = 0, now; b < count; b++, r += now) {
        now = block_rows(rows, r, MOST);
        s.ahead = next + b * ((until - from) / INPUTS * GROUPS * GROUP / shares);
        s.lines = b < shares ? (GROUP / 64 + shares - 1) / shares : 0;
        product(s, x + r * inputs, inputs, from, until, now, sums + r);
        s.there = s.room != 0;
    }
}

/* One panel times all rows of x. Several blocks of rows take the same CHUNK inputs from the cache, one after the other,
   and fetch the next meanwhile. */
static void panel_product(const uint8_t *panel, const uint16_t *spare, const uint16_t *x, int64_t inputs, int64_t rows,
                          float sums[][WIDE])
{
    int64_t chunk = rows <= MOST ? inputs : CHUNK;
    uint16_t room[CHUNK * WIDE] __attribute__((aligned(64)));
    const char *groups = (const char *)panel + header(inputs);
    memset(sums, 0, rows * sizeof *sums);
    for (int64_t from = 0; from < inputs; from += chunk) {
        int64_t until = least(from + chunk, inputs);
        const char *ahead = groups + (rows <= MOST ? AHEAD : until / INPUTS * GROUPS * GROUP);
        blocks((source){panel, spare, rows > MOST ? room : 0, 0, 0, ahead}, x, inputs, from, until, rows, sums);
    }
}

#else

int compact_available(void) { return 0; }

static void panel_product(const uint8_t *panel, const uint16_t *spare, const uint16_t *x, int64_t inputs, int64_t rows,
                          float sums[][WIDE])
{
    (void)panel, (void)spare, (void)x, (void)inputs, (void)rows, (void)sums;
}

#endif

/* Rows [from, until) of x [rows, inputs]: of each block of rows INPUTS numbers of one row after those of the other, so that
   they are read in one stream. One row lies so already. */
static void interlace(const uint16_t *x, int64_t rows, int64_t inputs, int64_t from, int64_t until, uint16_t *to)
{
    for (int64_t begin = 0, now; begin < until; begin += now) {
        now = block_rows(rows, begin, MOST);
        for (int64_t i = 0; i < inputs; i += INPUTS)
            for (int64_t r = from > begin ? from - begin : 0; r < least(now, until - begin); r++)
                memcpy(to + begin * inputs + i * now + r * INPUTS, x + (begin + r) * inputs + i, INPUTS * sizeof *to);
    }
}

/* As `matrix_product`; `room` is for rows x inputs numbers, for each thread where there are few rows: to read what
   another core has just written takes longer than to copy it. */
void compact_product(const uint16_t *x, const uint8_t *panels, const uint16_t *spare, uint16_t *room, const float *bias,
                     int swish, const uint16_t *other, int operation, uint16_t *y, int64_t rows, int64_t inputs,
                     int64_t outputs, int threads)
{
    const tail after = {bias, other, y, outputs, swish, operation};
#pragma omp parallel num_threads(threads)
    {
        int64_t self = omp_get_thread_num(), count = omp_get_num_threads();
        float(*sums)[WIDE] = aligned_alloc(64, rows * sizeof *sums);
        uint16_t *own = rows > MOST ? room : room + self * rows * inputs;
        if (rows > MOST) {
            interlace(x, rows, inputs, rows * self / count, rows * (self + 1) / count, own);
#pragma omp barrier
        } else if (rows > 1) {
            interlace(x, rows, inputs, 0, rows, own);
        }
#pragma omp for schedule(static)
        for (int64_t p = 0; p < (outputs + WIDE - 1) / WIDE; p++) {
            panel_product(panels + p * panel_bytes(inputs), spare, rows > 1 ? own : x, inputs, rows, sums);
            for (int64_t r = 0; r < rows; r++) finish(sums[r], &after, r, p * WIDE);
        }
        free(sums);
    }
}
