/* The small operations of a decoder layer on a CPU, in float32; `__init__.py` says what each computes.

   A token's numbers are made by the same steps in the same order whatever else is in the batch: sums over a hidden
   state or a head run in lanes by index, sums over the past run in lanes by place on the token's path. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 16 };

typedef float lanes __attribute__((vector_size(64), aligned(4), may_alias));
typedef float eight __attribute__((vector_size(32)));
typedef float four __attribute__((vector_size(16)));
typedef int32_t whole __attribute__((vector_size(64)));

/* Below this many numbers, waking the other threads costs more than they save. */
static const int64_t WORTH_THREADS = 1 << 16;

static inline lanes load(const float *p) { return *(const lanes *)p; }

static inline void store(float *p, lanes x) { *(lanes *)p = x; }

/* The first n < LANES numbers, and zeros. */
static inline lanes load_part(const float *p, int64_t n)
{
    float x[LANES] = {0};
    memcpy(x, p, n * sizeof(float));
    return load(x);
}

static inline lanes pick(whole which, lanes yes, lanes no)
{
    return (lanes)(((whole)yes & which) | ((whole)no & ~which));
}

static inline float sum(lanes x)
{
    eight y = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
              __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    four z = __builtin_shufflevector(y, y, 0, 1, 2, 3) + __builtin_shufflevector(y, y, 4, 5, 6, 7);
    return (z[0] + z[2]) + (z[1] + z[3]);
}

static inline float dot(const float *a, const float *b, int64_t n)
{
    lanes even = {0}, odd = {0};
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        even += load(a + i) * load(b + i);
        odd += load(a + i + LANES) * load(b + i + LANES);
    }
    if (i + LANES <= n) {
        even += load(a + i) * load(b + i);
        i += LANES;
    }
    if (i < n) odd += load_part(a + i, n - i) * load_part(b + i, n - i);
    return sum(even + odd);
}

/* exp(x) for x <= 0, to two units in the last place (the polynomial is Cephes'); 0 below -87. */
static inline lanes exponential(lanes x)
{
    const lanes low = (lanes){0} - 87.0f;
    whole tiny = x < low;
    x = pick(tiny, low, x);
    whole n = __builtin_convertvector(x * 1.44269504f - 0.5f, whole);
    lanes k = __builtin_convertvector(n, lanes);
    lanes r = x - k * 0.693359375f + k * 2.12194440e-4f;
    lanes y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    lanes power = (lanes)((n + 127) << 23);
    return pick(tiny, (lanes){0}, y * power);
}

/* -- bfloat16 ------------------------------------------------------------------------------------------------ */

static inline void widen(const void *from, int half, int64_t at, int64_t n, float *to)
{
    if (!half) {
        memcpy(to, (const float *)from + at, n * sizeof(float));
        return;
    }
    const uint16_t *p = (const uint16_t *)from + at;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)p[i] << 16;
        memcpy(to + i, &bits, 4);
    }
}

/* Ties to even. */
static inline void narrow(const float *from, int half, void *to, int64_t at, int64_t n)
{
    if (!half) {
        memcpy((float *)to + at, from, n * sizeof(float));
        return;
    }
    uint16_t *p = (uint16_t *)to + at;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, from + i, 4);
        int nan = (bits & 0x7fffffff) > 0x7f800000;
        p[i] = nan ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    }
}

/* -- norms and rotation -------------------------------------------------------------------------------------- */

static inline void normalise(float *x, const float *weight, float epsilon, int64_t n)
{
    float scale = 1.0f / sqrtf(dot(x, x, n) / n + epsilon);
    for (int64_t i = 0; i < n; i++) x[i] = x[i] * scale * weight[i];
}

void rms_norm(const void *from, int from_half, void *to, int to_half, const float *weight, float epsilon,
              int64_t rows, int64_t n, int threads)
{
#pragma omp parallel for num_threads(threads) if (rows * n > WORTH_THREADS)
    for (int64_t r = 0; r < rows; r++) {
        float x[n];
        widen(from, from_half, r * n, n, x);
        normalise(x, weight, epsilon, n);
        narrow(x, to_half, to, r * n, n);
    }
}

void rotate(const void *from, int half, float *to, const float *rope, const float *norms, float epsilon,
            int64_t rows, int64_t heads, int64_t turned, int64_t dim, int threads)
{
#pragma omp parallel for num_threads(threads) if (rows * heads * dim > WORTH_THREADS)
    for (int64_t r = 0; r < rows; r++) {
        const float *cosines = rope + 2 * r * dim, *sines = cosines + dim;
        widen(from, half, (r * heads + turned) * dim, (heads - turned) * dim, to + (r * heads + turned) * dim);
        for (int64_t h = 0; h < turned; h++) {
            float x[dim], *y = to + (r * heads + h) * dim;
            widen(from, half, (r * heads + h) * dim, dim, x);
            if (norms) normalise(x, norms + h * dim, epsilon, dim);
            for (int64_t i = 0, j = dim / 2; j < dim; i++, j++) {
                y[i] = x[i] * cosines[i] + x[j] * sines[i];
                y[j] = x[j] * cosines[j] + x[i] * sines[j];
            }
        }
    }
}

/* -- attention ----------------------------------------------------------------------------------------------- */

/* Strides count numbers: keys, values: (batch, head, slot); query, out: (batch, head, query); mask: (batch, query). */
typedef struct {
    int64_t batch, heads, groups, queries, dim, width, longest;
    int64_t query[3], key[3], value[3], mask[2], out[3];
} layout;

/* Scores to the softmax's numerators, in place, with zeros up to a multiple of LANES; returns their sum. */
static inline float soften(float *scores, int64_t n)
{
    int64_t end = (n + LANES - 1) / LANES * LANES;
    for (int64_t j = n; j < end; j++) scores[j] = -INFINITY;
    lanes peaks = load(scores);
    for (int64_t j = LANES; j < end; j += LANES) {
        lanes x = load(scores + j);
        peaks = pick(x > peaks, x, peaks);
    }
    float highest = peaks[0];
    for (int i = 1; i < LANES; i++) highest = peaks[i] > highest ? peaks[i] : highest;
    lanes total = {0};
    for (int64_t j = 0; j < end; j += LANES) {
        lanes y = exponential(load(scores + j) - highest);
        store(scores + j, y);
        total += y;
    }
    return sum(total);
}

/* The values at `slots`, weighed: one chain of multiply-adds for each of 4 * LANES numbers. */
static inline void mix_block(const float *values, int64_t stride, const int32_t *slots, const float *weights, int64_t n,
                             float *out)
{
    lanes a = {0}, b = {0}, c = {0}, d = {0};
    for (int64_t j = 0; j < n; j++) {
        const float *v = values + slots[j] * stride;
        a += weights[j] * load(v);
        b += weights[j] * load(v + LANES);
        c += weights[j] * load(v + 2 * LANES);
        d += weights[j] * load(v + 3 * LANES);
    }
    store(out, a);
    store(out + LANES, b);
    store(out + 2 * LANES, c);
    store(out + 3 * LANES, d);
}

static inline void mix(const float *values, int64_t stride, const int32_t *slots, const float *weights, int64_t n,
                       float *out, int64_t width)
{
    int64_t at = 0;
    for (; at + 4 * LANES <= width; at += 4 * LANES) mix_block(values + at, stride, slots, weights, n, out + at);
    for (; at < width; at += LANES) {
        int64_t part = width - at < LANES ? width - at : LANES;
        lanes total = {0};
        for (int64_t j = 0; j < n; j++) {
            const float *v = values + slots[j] * stride + at;
            total += weights[j] * (part == LANES ? load(v) : load_part(v, part));
        }
        memcpy(out + at, &total, part * sizeof(float));
    }
}

void attend(const float *query, const float *keys, const float *values, const float *mask, const int32_t *slots,
            const int64_t *first, void *out, int half, const layout *s, float scale, float softcap, int threads)
{
#pragma omp parallel num_threads(threads)
    {
        float *scores = aligned_alloc(64, (s->longest + 2 * LANES) / LANES * LANES * sizeof(float));
        float mixed[s->width];
#pragma omp for collapse(3) schedule(static)
        for (int64_t b = 0; b < s->batch; b++)
            for (int64_t h = 0; h < s->heads; h++)
                for (int64_t t = 0; t < s->queries; t++) {
                    const float *q = query + b * s->query[0] + h * s->query[1] + t * s->query[2];
                    const float *k = keys + b * s->key[0] + h / s->groups * s->key[1];
                    const float *v = values + b * s->value[0] + h / s->groups * s->value[1];
                    const float *extra = mask + b * s->mask[0] + t * s->mask[1];
                    const int32_t *seen = slots + first[b * s->queries + t];
                    int64_t n = first[b * s->queries + t + 1] - first[b * s->queries + t];
                    for (int64_t j = 0; j < n; j++) scores[j] = dot(q, k + seen[j] * s->key[2], s->dim) * scale;
                    if (softcap > 0)
                        for (int64_t j = 0; j < n; j++) scores[j] = softcap * tanhf(scores[j] / softcap);
                    for (int64_t j = 0; j < n; j++) scores[j] += extra[seen[j]];
                    float share = n ? 1.0f / soften(scores, n) : 0.0f;
                    mix(v, s->value[2], seen, scores, n, mixed, s->width);
                    for (int64_t i = 0; i < s->width; i++) mixed[i] *= share;
                    narrow(mixed, half, out, b * s->out[0] + h * s->out[1] + t * s->out[2], s->width);
                }
        free(scores);
    }
}
