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
    int64_t teams, heads, groups, queries, dim, width, longest;
    int64_t query[3], key[3], value[3], mask[2], out[3];
} layout;

/* Queries that are worked on side by side, so that what they see in common is loaded once for all of them. */
enum { TEAM = 4 };

/* Whose keys a team looks at, the number of its first query, counted through the batch, and how many it has. */
typedef struct {
    int64_t text, place, size;
} team;

/* `dot` of each of the team's queries with one key, by the same steps. */
static inline __attribute__((always_inline)) four dots(const float *const *query, const float *key, int64_t n)
{
    lanes even[TEAM] = {{0}}, odd[TEAM] = {{0}};
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        lanes a = load(key + i), b = load(key + i + LANES);
        for (int t = 0; t < TEAM; t++) {
            even[t] += load(query[t] + i) * a;
            odd[t] += load(query[t] + i + LANES) * b;
        }
    }
    if (i + LANES <= n) {
        lanes a = load(key + i);
        for (int t = 0; t < TEAM; t++) even[t] += load(query[t] + i) * a;
        i += LANES;
    }
    if (i < n) {
        lanes b = load_part(key + i, n - i);
        for (int t = 0; t < TEAM; t++) odd[t] += load_part(query[t] + i, n - i) * b;
    }
    return sums(even[0] + odd[0], even[1] + odd[1], even[2] + odd[2], even[3] + odd[3]);
}

/* Scores of the team's queries with the keys at `slots`. */
static inline __attribute__((always_inline)) void score(const float *const *query, const float *keys, int64_t stride,
                                                        int64_t dim, const int32_t *slots, int64_t n, float scale,
                                                        float *const *scores)
{
    for (int64_t j = 0; j < n; j++) {
        four together = dots(query, keys + slots[j] * stride, dim);
        for (int t = 0; t < TEAM; t++) scores[t][j] = together[t] * scale;
    }
}

/* The same; the queries stay in registers where the compiler knows how long they are. */
static void score_team(const float *const *query, const float *keys, int64_t stride, int64_t dim, const int32_t *slots,
                       int64_t n, float scale, float *const *scores)
{
    switch (dim) {
    case 64: score(query, keys, stride, 64, slots, n, scale, scores); return;
    case 128: score(query, keys, stride, 128, slots, n, scale, scores); return;
    default: score(query, keys, stride, dim, slots, n, scale, scores);
    }
}

/* out [TILE * LANES] of each of the team += the values at `slots`, by the steps of `mix_block`. */
static inline void mix_team(const float *values, int64_t stride, const int32_t *slots, float *const *weights, int64_t n,
                            float *const *out)
{
    lanes totals[TEAM][TILE];
    for (int t = 0; t < TEAM; t++)
        for (int k = 0; k < TILE; k++) totals[t][k] = load(out[t] + k * LANES);
    for (int64_t j = 0; j < n; j++) {
        lanes v[TILE];
        for (int k = 0; k < TILE; k++) v[k] = load(values + slots[j] * stride + k * LANES);
        for (int t = 0; t < TEAM; t++)
            for (int k = 0; k < TILE; k++) totals[t][k] += weights[t][j] * v[k];
    }
    for (int t = 0; t < TEAM; t++)
        for (int k = 0; k < TILE; k++) store(out[t] + k * LANES, totals[t][k]);
}

/* One head for a team of queries; `first` and `mask` are those of its first query, of `size` queries in all. The first
   `common` slots are the same for all. Where the team is not whole, its last query fills the empty places. */
static void attend_team(const float *query, const float *k, const float *v, const float *mask, const int32_t *slots,
                        const int64_t *first, const layout *s, int64_t size, int64_t common, float scale,
                        float softcap, int64_t room, float *scores, float *mixed)
{
    const float *queries[TEAM];
    float *own[TEAM], *out[TEAM], shares[TEAM];
    for (int64_t t = 0; t < TEAM; t++) {
        queries[t] = query + least(t, size - 1) * s->query[2];
        own[t] = scores + t * room;
        out[t] = mixed + t * s->width;
    }
    score_team(queries, k, s->key[2], s->dim, slots + first[0], common, scale, own);
    for (int64_t t = 0; t < size; t++) {
        const int32_t *seen = slots + first[t];
        int64_t n = first[t + 1] - first[t];
        for (int64_t j = common; j < n; j++) own[t][j] = dot(queries[t], k + seen[j] * s->key[2], s->dim) * scale;
        if (softcap > 0)
            for (int64_t j = 0; j < n; j++) own[t][j] = softcap * tanhf(own[t][j] / softcap);
        if (mask)
            for (int64_t j = 0; j < n; j++) own[t][j] += mask[t * s->mask[1] + seen[j]];
        shares[t] = n ? 1.0f / soften(own[t], n) : 0.0f;
    }
    memset(mixed, 0, TEAM * s->width * sizeof(float));
    int64_t blocks = common ? s->width / SPAN * SPAN : 0;
    for (int64_t at = 0; at < blocks; at += TILE * LANES) {
        float *there[TEAM] = {out[0] + at, out[1] + at, out[2] + at, out[3] + at};
        mix_team(v + at, s->value[2], slots + first[0], own, common, there);
    }
    for (int64_t t = 0; t < size; t++) {
        const int32_t *seen = slots + first[t];
        int64_t n = first[t + 1] - first[t];
        mix(v, s->value[2], seen + common, own[t] + common, n - common, out[t], blocks);
        mix(v + blocks, s->value[2], seen, own[t], n, out[t] + blocks, s->width - blocks);
        for (int64_t i = 0; i < s->width; i++) out[t][i] *= shares[t];
    }
}

/* How many of the first slots are the same for `size` queries; none are looked for where there is but one. */
static int64_t in_common(const int32_t *slots, const int64_t *first, int64_t size)
{
    int64_t common = size > 1 ? first[1] - first[0] : 0;
    for (int64_t t = 1; t < size; t++) {
        int64_t j = 0, end = least(common, first[t + 1] - first[t]);
        while (j < end && slots[first[t] + j] == slots[first[0] + j]) j++;
        common = j;
    }
    return common;
}

void attend(const float *query, const float *keys, const float *values, const float *mask, const int32_t *slots,
            const int64_t *first, const team *teams, void *out, int half, const layout *s, float scale, float softcap,
            int threads)
{
    int64_t room = (s->longest + 2 * LANES) / LANES * LANES;
#pragma omp parallel num_threads(threads)
    {
        float *scores = aligned_alloc(64, TEAM * room * sizeof(float));
        float mixed[TEAM * s->width];
#pragma omp for collapse(2) schedule(static)
        for (int64_t h = 0; h < s->heads; h++)
            for (int64_t g = 0; g < s->teams; g++) {
                int64_t text = teams[g].text, size = teams[g].size;
                int64_t b = teams[g].place / s->queries, t = teams[g].place % s->queries;
                const int64_t *own = first + teams[g].place;
                const float *k = keys + text * s->key[0] + h / s->groups * s->key[1];
                const float *v = values + text * s->value[0] + h / s->groups * s->value[1];
                attend_team(query + b * s->query[0] + h * s->query[1] + t * s->query[2], k, v,
                            mask ? mask + b * s->mask[0] + t * s->mask[1] : 0, slots, own, s, size,
                            in_common(slots, own, size), scale, softcap, room, scores, mixed);
                int64_t place = b * s->out[0] + h * s->out[1] + t * s->out[2];
                for (int64_t i = 0; i < size; i++)
                    narrow(mixed + i * s->width, half, out, place + i * s->out[2], s->width);
            }
        free(scores);
    }
}
