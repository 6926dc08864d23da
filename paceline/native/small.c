/* A whole pass of a very small Llama, in float32; `small.py` lays out its arguments.

   Matrices lie in panels of PANEL outputs, `[outputs / PANEL, inputs, PANEL]`, the last one filled up with zeros: the
   sums of a panel, or of a part of it, are all in registers while its inputs go by. */

#include "lanes.h"

enum { PANEL = 64, TOGETHER = 6 };

typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));

typedef struct {
    const void *qkv, *o, *gate, *up, *down;
    const float *before, *between;
    float *keys, *values;
} layer;

typedef struct {
    int64_t layers, rows, hidden, queries, keys, dim, inner, vocabulary, half, wanted, longest, threads;
    int64_t cache_row, cache_head;
    float epsilon, scale;
} shape;

/* What a pass is about: each token's row and slot of the cache, and the slots that it sees. */
typedef struct {
    const float *rope;
    const int64_t *cache_rows, *places;
    const int32_t *slots;
    const int64_t *first, *wanted;
} pass;

static inline lanes load_weights(const void *weights, int64_t half, int64_t at)
{
    if (!half) return load((const float *)weights + at);
    words bits = __builtin_convertvector(*(const halves *)((const uint16_t *)weights + at), words);
    return (lanes)(bits << 16);
}

/* Vectors of outputs whose sums the registers hold for so many rows. */
#ifdef __AVX512F__
#define VECTORS(rows) 4
#else
#define VECTORS(rows) ((rows) == 1 ? 8 : (rows) <= 3 ? 4 : 2)
#endif

/* out[0:rows][0:PANEL] = the panel times rows <= TOGETHER of x. */
static inline __attribute__((always_inline)) void few(const void *weights, int64_t half, int64_t panel, const float *x,
                                                      int64_t inputs, int rows, float out[][PANEL])
{
    const int vectors = VECTORS(rows);
    for (int from = 0; from < PANEL; from += vectors * LANES) {
        lanes sums[TOGETHER][PANEL / LANES] = {{{0}}};
        int64_t at = panel * inputs * PANEL + from;
        for (int64_t i = 0; i < inputs; i++, at += PANEL) {
#pragma GCC unroll 8
            for (int k = 0; k < vectors; k++) {
                lanes weight = load_weights(weights, half, at + k * LANES);
#pragma GCC unroll 6
                for (int r = 0; r < rows; r++) sums[r][k] += x[r * inputs + i] * weight;
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int k = 0; k < vectors; k++) store(out[r] + from + k * LANES, sums[r][k]);
    }
}

static void product(const void *weights, int64_t half, int64_t panel, const float *x, int64_t inputs, int64_t rows,
                    float out[][PANEL])
{
    if (half)
        switch (rows) {
        case 1: few(weights, 1, panel, x, inputs, 1, out); return;
        case 2: few(weights, 1, panel, x, inputs, 2, out); return;
        case 3: few(weights, 1, panel, x, inputs, 3, out); return;
        case 4: few(weights, 1, panel, x, inputs, 4, out); return;
        case 5: few(weights, 1, panel, x, inputs, 5, out); return;
        default: few(weights, 1, panel, x, inputs, 6, out); return;
        }
    switch (rows) {
    case 1: few(weights, 0, panel, x, inputs, 1, out); return;
    case 2: few(weights, 0, panel, x, inputs, 2, out); return;
    case 3: few(weights, 0, panel, x, inputs, 3, out); return;
    case 4: few(weights, 0, panel, x, inputs, 4, out); return;
    case 5: few(weights, 0, panel, x, inputs, 5, out); return;
    default: few(weights, 0, panel, x, inputs, 6, out); return;
    }
}

/* y = (or, where `add`, +=) the matrix times all rows of x, by all threads of the team. */
static void multiply(const void *weights, int64_t half, const float *x, int64_t rows, int64_t inputs, float *y,
                     int64_t outputs, int add)
{
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < (outputs + PANEL - 1) / PANEL; panel++) {
        int64_t from = panel * PANEL, count = least(PANEL, outputs - from);
        float out[TOGETHER][PANEL];
        for (int64_t r = 0; r < rows; r += TOGETHER) {
            int64_t now = least(TOGETHER, rows - r);
            product(weights, half, panel, x + r * inputs, inputs, now, out);
            for (int64_t i = 0; i < now; i++) {
                float *to = y + (r + i) * outputs + from;
                for (int64_t o = 0; o < count; o++) to[o] = add ? to[o] + out[i][o] : out[i][o];
            }
        }
    }
}

/* silu(gate x) * (up x) of some rows of x */
static void gated(const layer *l, const shape *s, const float *x, int64_t rows, float *y)
{
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < (s->inner + PANEL - 1) / PANEL; panel++) {
        int64_t from = panel * PANEL, count = least(PANEL, s->inner - from);
        float gate[TOGETHER][PANEL], up[TOGETHER][PANEL];
        for (int64_t r = 0; r < rows; r += TOGETHER) {
            int64_t now = least(TOGETHER, rows - r);
            product(l->gate, s->half, panel, x + r * s->hidden, s->hidden, now, gate);
            product(l->up, s->half, panel, x + r * s->hidden, s->hidden, now, up);
            for (int64_t i = 0; i < now; i++) {
                for (int k = 0; k < PANEL; k += LANES) store(gate[i] + k, silu(load(gate[i] + k)) * load(up[i] + k));
                memcpy(y + (r + i) * s->inner + from, gate[i], count * sizeof(float));
            }
        }
    }
}

static void normalise_rows(const float *x, const float *weight, const shape *s, int64_t rows, float *to)
{
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        memcpy(to + r * s->hidden, x + r * s->hidden, s->hidden * sizeof(float));
        normalise(to + r * s->hidden, weight, s->epsilon, s->hidden);
    }
}

/* Rotate queries and keys in place, and put keys and values where they belong in the cache. */
static void place(const layer *l, const shape *s, const pass *p, float *qkv)
{
    int64_t heads = s->queries + 2 * s->keys;
#pragma omp for collapse(2) schedule(static)
    for (int64_t r = 0; r < s->rows; r++)
        for (int64_t h = 0; h < heads; h++) {
            float *x = qkv + (r * heads + h) * s->dim;
            const float *cosines = p->rope + 2 * r * s->dim, *sines = cosines + s->dim;
            if (h < s->queries + s->keys)
                for (int64_t i = 0, j = s->dim / 2; j < s->dim; i++, j++) {
                    float a = x[i], b = x[j];
                    x[i] = a * cosines[i] + b * sines[i];
                    x[j] = b * cosines[j] + a * sines[j];
                }
            if (h < s->queries) continue;
            int64_t kept = (h - s->queries) % s->keys;
            float *store_at = h < s->queries + s->keys ? l->keys : l->values;
            store_at += p->cache_rows[r] * s->cache_row + kept * s->cache_head + p->places[r] * s->dim;
            memcpy(store_at, x, s->dim * sizeof(float));
        }
}

/* Attention of the tokens `some` (all of them where it is NULL), one row of `out` each. */
static void look_back(const layer *l, const shape *s, const pass *p, const float *qkv, const int64_t *some,
                      int64_t rows, float *out, float *scores)
{
    int64_t heads = s->queries + 2 * s->keys;
#pragma omp for collapse(2) schedule(static)
    for (int64_t i = 0; i < rows; i++)
        for (int64_t h = 0; h < s->queries; h++) {
            int64_t r = some ? some[i] : i;
            int64_t at = p->cache_rows[r] * s->cache_row + h / (s->queries / s->keys) * s->cache_head;
            const float *q = qkv + (r * heads + h) * s->dim;
            const int32_t *seen = p->slots + p->first[r];
            int64_t n = p->first[r + 1] - p->first[r];
            float *to = out + (i * s->queries + h) * s->dim;
            for (int64_t j = 0; j < n; j++) scores[j] = dot(q, l->keys + at + seen[j] * s->dim, s->dim) * s->scale;
            float share = 1.0f / soften(scores, n);
            memset(to, 0, s->dim * sizeof(float));
            mix(l->values + at, s->dim, seen, scores, n, to, s->dim);
            for (int64_t d = 0; d < s->dim; d++) to[d] *= share;
        }
}

/* Rows `some` of x, in that order. */
static void gather(const float *x, const int64_t *some, int64_t rows, int64_t width, float *to)
{
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * width, x + some[i] * width, width * sizeof(float));
}

/* What a layer adds to x [rows, hidden] behind its keys and values. */
static void go_on(const layer *l, const shape *s, const float *mixed, int64_t rows, float *x, float *normed,
                  float *inner)
{
    multiply(l->o, s->half, mixed, rows, s->queries * s->dim, x, s->hidden, 1);
    normalise_rows(x, l->between, s, rows, normed);
    gated(l, s, normed, rows, inner);
    multiply(l->down, s->half, inner, rows, s->inner, x, s->hidden, 1);
}

/* x [rows, hidden] of embeddings is overwritten; `room` holds rows * (2 * hidden + qkv + mixed + inner) numbers. */
void small_llama(const layer *layers, const shape *s, const pass *p, const float *norm, const void *head, float *x,
                 float *room, float *logits)
{
    int64_t joined = (s->queries + 2 * s->keys) * s->dim;
    float *normed = room, *kept = normed + s->rows * s->hidden, *qkv = kept + s->rows * s->hidden;
    float *mixed = qkv + s->rows * joined, *inner = mixed + s->rows * s->queries * s->dim;
#pragma omp parallel num_threads(s->threads)
    {
        float *scores = aligned_alloc(64, (s->longest + 2 * LANES) / LANES * LANES * sizeof(float));
        for (const layer *l = layers, *last = layers + s->layers - 1; l <= last; l++) {
            normalise_rows(x, l->before, s, s->rows, normed);
            multiply(l->qkv, s->half, normed, s->rows, s->hidden, qkv, joined, 0);
            place(l, s, p, qkv);
            look_back(l, s, p, qkv, l == last ? p->wanted : NULL, l == last ? s->wanted : s->rows, mixed, scores);
            if (l < last) go_on(l, s, mixed, s->rows, x, normed, inner);
        }
        free(scores);
        /* Behind its keys and values, the last layer is computed for the wanted tokens alone. */
        gather(x, p->wanted, s->wanted, s->hidden, kept);
        go_on(layers + s->layers - 1, s, mixed, s->wanted, kept, normed, inner);
        normalise_rows(kept, norm, s, s->wanted, normed);
        multiply(head, s->half, normed, s->wanted, s->hidden, logits, s->vocabulary, 0);
    }
}
