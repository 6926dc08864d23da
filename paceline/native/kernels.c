/* The small operations of a decoder layer on a CPU, in float32; `__init__.py` says what each computes. */

#include "lanes.h"

/* Below this many numbers, waking the other threads costs more than they save. */
static const int64_t WORTH_THREADS = 1 << 16;

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

/* Strides count numbers: keys, values: (batch, head, slot); query, out: (batch, head, query); mask: (batch, query). */
typedef struct {
    int64_t batch, heads, groups, queries, dim, width, longest;
    int64_t query[3], key[3], value[3], mask[2], out[3];
} layout;

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
