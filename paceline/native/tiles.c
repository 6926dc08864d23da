/* Products of bfloat16 matrices on the CPU's matrix units (AMX), from the panels of `matrix.c` or those of `compact.h`.

   Panels lie as the units want them: the pairs of inputs of half of the outputs are the rows of a tile. A number's sum is
   made by blocks of INPUTS inputs in their order, with zeros behind the last one, whatever the rows.

   Where there are few rows, the memory is the limit: a thread reads its panels as one stream and fetches in front of
   itself. Many rows are copied, so that each of their tiles lies in one piece, and take SLICE blocks of a panel from the
   first cache (16 KB), a pair of tiles after the other; TEAM panels take the same inputs of all rows from the second. */

#include "compact.h"

#if defined(__AMX_BF16__) && defined(__AVX512VBMI2__)

#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    ROWS = 16,                        /* of a tile */
    FEW = 2 * ROWS,                   /* rows that are multiplied together */
    PLAIN = BLOCK * sizeof(uint16_t), /* bytes of a block of `matrix.c` */
    SLICE = 8,                        /* blocks */
    TEAM = 8,                         /* panels */
};

/* Whether this process may use the units: the system wants to be asked. */
int tiles_available(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
    return !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA);
}

typedef struct matrix matrix;

/* A block of a panel as `matrix.c` has it, where it lies or in `room`; fetches what comes later. */
typedef const uint16_t *reader(const matrix *m, const char *panel, int64_t block, uint16_t *room);

/* Panels of so many bytes, how they are read, and the blocks that are no part of them. */
struct matrix {
    const char *panels;
    int64_t bytes, inputs;
    reader *read;
    const uint16_t *spare;
};

static const uint16_t *read_plain(const matrix *m, const char *panel, int64_t block, uint16_t *room)
{
    const char *from = panel + block * PLAIN;
    int64_t inputs = least(INPUTS, m->inputs - block * INPUTS);
    for (int k = 0; k < PLAIN; k += 64) _mm_prefetch(from + AHEAD + k, _MM_HINT_T1);
    if (inputs == INPUTS) return (const uint16_t *)from;
    memset(room, 0, PLAIN);
    return memcpy(room, from, inputs * WIDE * sizeof *room);
}

static const uint16_t *read_compact(const matrix *m, const char *panel, int64_t block, uint16_t *room)
{
    const uint8_t *table = (const uint8_t *)panel + block * TABLE;
    const uint8_t *group = (const uint8_t *)panel + header(m->inputs) + block * GROUPS * GROUP;
    if (__builtin_expect(is_spare(table), 0)) return spare_block(table, m->spare);
    __m512i powers = exponents(table);
    for (uint16_t *to = room; to < room + BLOCK; group += GROUP) {
        for (int k = 0; k < GROUP; k += 64) {
            _mm_prefetch((const char *)group + AHEAD + k, _MM_HINT_T1);
            _mm_prefetch((const char *)group + NEAR + k, _MM_HINT_T0);
        }
        for (int j = 0; j < 2; j++, to += 2 * WIDE) {
            __m512i a, b;
            decode(group, powers, j, &a, &b);
            _mm512_storeu_si512(to, a);
            _mm512_storeu_si512(to + WIDE, b);
        }
    }
    return room;
}

/* Rows of x: `width` numbers each, one row after the other; or copied, the tiles one after the other, and of a tile
   INPUTS numbers of each row. The last of several tiles is full, and has rows of the one before it, too. */
typedef struct {
    const uint16_t *x;
    int64_t rows, width;
    int copied;
} operand;

static inline int64_t tile_rows(int64_t rows) { return least(rows, ROWS); }

static inline int64_t first_row(int64_t tile, int64_t rows) { return least(tile * ROWS, rows - tile_rows(rows)); }

static inline const uint16_t *tile_of(const operand *o, int64_t tile)
{
    return o->x + (o->copied ? tile * ROWS : first_row(tile, o->rows)) * o->width;
}

/* Rows [from, until) of all tiles of x [.., inputs], as an `operand` is copied, with zeros up to its width. */
static void copy(const uint16_t *x, int64_t inputs, const operand *o, int64_t from, int64_t until, uint16_t *to)
{
    int64_t high = tile_rows(o->rows);
    for (int64_t n = from; n < until; n++) {
        const uint16_t *row = x + (first_row(n / high, o->rows) + n % high) * inputs;
        uint16_t *at = to + n / high * high * o->width + n % high * INPUTS;
        for (int64_t i = 0; i < o->width; i += INPUTS, at += high * INPUTS) {
            int64_t count = least(INPUTS, inputs - i);
            if (count < INPUTS) memset(at, 0, INPUTS * sizeof *at);
            memcpy(at, row + i, count * sizeof *at);
        }
    }
}

/* Tiles of `rows` rows, but for those of weights, 6 and 7. */
static void configure(int64_t rows)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int t = 0; t < 8; t++) shape.bytes[t] = 64, shape.rows[t] = t < 6 ? rows : ROWS;
    _tile_loadconfig(&shape);
}

/* The compiler does not know what tiles are loaded from. */
static inline void written(void) { __asm__ volatile("" ::: "memory"); }

/* Some blocks of a panel, the last SLICE of them that were read, and room for these. */
typedef struct {
    const matrix *m;
    const char *panel;
    int64_t from, until;
    const uint16_t *blocks[SLICE];
    uint16_t room[SLICE * BLOCK] __attribute__((aligned(64)));
} slice;

static void read_block(slice *s, int64_t block)
{
    int64_t at = block % SLICE;
    s->blocks[at] = s->m->read(s->m, s->panel, block, s->room + at * BLOCK);
}

/* sums = a slice times a tile of rows and maybe the next; added to them, if it is not the panel's first. With the first
   rows its blocks are read, each while the one before it is multiplied. */
static void add(slice *s, const operand *o, int64_t tile, int two, float (*sums)[WIDE])
{
    enum { LINE = sizeof *sums };
    int64_t stride = (o->copied ? INPUTS : o->width) * sizeof *o->x;
    int64_t step = o->copied ? tile_rows(o->rows) * INPUTS : INPUTS;
    const uint16_t *x = tile_of(o, tile) + s->from * step, *next = tile_of(o, tile + 1) + s->from * step;
    if (!tile) read_block(s, s->from);
    written();
    if (s->from) {
        _tile_loadd(0, sums, LINE);
        _tile_loadd(1, *sums + LANES, LINE);
        if (two) {
            _tile_loadd(2, sums + ROWS, LINE);
            _tile_loadd(3, sums[ROWS] + LANES, LINE);
        }
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t b = s->from; b < s->until; b++, x += step, next += step) {
        const uint16_t *weights = s->blocks[b % SLICE];
        if (!tile && b + 1 < s->until) read_block(s, b + 1);
        written();
        _tile_loadd(4, x, stride);
        _tile_loadd(6, weights, 4 * WIDE);
        _tile_loadd(7, weights + WIDE, 4 * WIDE);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (two) {
            _tile_loadd(5, next, stride);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, LINE);
    _tile_stored(1, *sums + LANES, LINE);
    if (two) {
        _tile_stored(2, sums + ROWS, LINE);
        _tile_stored(3, sums[ROWS] + LANES, LINE);
    }
}

/* As `matrix_product`. */
static void product(const matrix *m, const uint16_t *x, const tail *after, int64_t rows, int threads)
{
    if (!rows) return;
    int64_t inputs = m->inputs, blocks = (inputs + INPUTS - 1) / INPUTS, panels = (after->outputs + WIDE - 1) / WIDE;
    int64_t tiles = (rows + ROWS - 1) / ROWS, places = tiles * ROWS, most = rows > FEW ? TEAM : 1;
    int copied = rows > FEW || inputs % INPUTS;
    uint16_t *room = copied ? aligned_alloc(64, places * blocks * INPUTS * sizeof *room) : 0;
    const operand o = {copied ? room : x, rows, copied ? blocks * INPUTS : inputs, copied};
#pragma omp parallel num_threads(threads)
    {
        int64_t self = omp_get_thread_num(), count = omp_get_num_threads(), own = tiles * tile_rows(rows);
        int64_t end = panels * (self + 1) / count;
        float(*sums)[WIDE] = aligned_alloc(64, most * places * sizeof *sums);
        slice s;
        s.m = m;
        if (copied) {
            copy(x, inputs, &o, own * self / count, own * (self + 1) / count, room);
#pragma omp barrier
        }
        configure(tile_rows(rows));
        for (int64_t p = panels * self / count, team; p < end; p += team) {
            team = least(most, end - p);
            for (s.from = 0; s.from < blocks; s.from = s.until) {
                s.until = rows > FEW ? least(s.from + SLICE, blocks) : blocks;
                for (int64_t k = 0; k < team; k++) {
                    s.panel = m->panels + (p + k) * m->bytes;
                    for (int64_t t = 0; t < tiles; t += 2) add(&s, &o, t, t + 1 < tiles, sums + k * places + t * ROWS);
                }
            }
            for (int64_t r = 0; r < rows; r++) {
                int64_t tile = r / ROWS, at = tile * ROWS + r - first_row(tile, rows);
                for (int64_t k = 0; k < team; k++) finish(sums[k * places + at], after, r, (p + k) * WIDE);
            }
        }
        _tile_release();
        free(sums);
    }
    free(room);
}

void tiles_product(const uint16_t *x, const uint16_t *panels, const float *bias, int swish, const uint16_t *other,
                   int operation, uint16_t *y, int64_t rows, int64_t inputs, int64_t outputs, int threads)
{
    const matrix m = {(const char *)panels, inputs * WIDE * sizeof *panels, inputs, read_plain, 0};
    product(&m, x, &(tail){bias, other, y, outputs, swish, operation}, rows, threads);
}

void tiles_compact_product(const uint16_t *x, const uint8_t *panels, const uint16_t *spare, const float *bias, int swish,
                           const uint16_t *other, int operation, uint16_t *y, int64_t rows, int64_t inputs,
                           int64_t outputs, int threads)
{
    const matrix m = {(const char *)panels, panel_bytes(inputs), inputs, read_compact, spare};
    product(&m, x, &(tail){bias, other, y, outputs, swish, operation}, rows, threads);
}

#else

int tiles_available(void) { return 0; }

#endif
