/* Vectors of float32 numbers, as many as a register of the machine holds, and what the native operations make of them.

   A token's numbers are made by the same steps in the same order whatever else is in the batch: sums over a hidden
   state or a head run in lanes by index, sums over the past run in lanes by place on the token's path. */

#ifndef PACELINE_LANES_H
#define PACELINE_LANES_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* TILE: vectors of a block of which the registers hold several; SPAN: numbers of a block of which they hold one. */
#ifdef __AVX512F__
enum { LANES = 16, TILE = 4, SPAN = 64 };
#else
enum { LANES = 8, TILE = 2, SPAN = 64 };
#endif

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float four __attribute__((vector_size(16)));
typedef int32_t whole __attribute__((vector_size(4 * LANES)));

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

#ifdef __AVX512F__

typedef float eight __attribute__((vector_size(32)));

static inline float sum(lanes x)
{
    eight y = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
              __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    four z = __builtin_shufflevector(y, y, 0, 1, 2, 3) + __builtin_shufflevector(y, y, 4, 5, 6, 7);
    return (z[0] + z[2]) + (z[1] + z[3]);
}

/* `sum` of each of four, by the same steps. */
static inline four sums(lanes a, lanes b, lanes c, lanes d)
{
    lanes ab = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    lanes cd = __builtin_shufflevector(c, d, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               __builtin_shufflevector(c, d, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    lanes all = __builtin_shufflevector(ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                __builtin_shufflevector(ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    all += __builtin_shufflevector(all, all, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    all += __builtin_shufflevector(all, all, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return __builtin_shufflevector(all, all, 0, 4, 8, 12);
}

#else

static inline float sum(lanes x)
{
    four z = __builtin_shufflevector(x, x, 0, 1, 2, 3) + __builtin_shufflevector(x, x, 4, 5, 6, 7);
    return (z[0] + z[2]) + (z[1] + z[3]);
}

/* `sum` of each of four, by the same steps. */
static inline four sums(lanes a, lanes b, lanes c, lanes d)
{
    lanes ab = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11) +
               __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    lanes cd = __builtin_shufflevector(c, d, 0, 1, 2, 3, 8, 9, 10, 11) +
               __builtin_shufflevector(c, d, 4, 5, 6, 7, 12, 13, 14, 15);
    lanes all = __builtin_shufflevector(ab, cd, 0, 1, 4, 5, 8, 9, 12, 13) +
                __builtin_shufflevector(ab, cd, 2, 3, 6, 7, 10, 11, 14, 15);
    return __builtin_shufflevector(all, all, 0, 2, 4, 6) + __builtin_shufflevector(all, all, 1, 3, 5, 7);
}

#endif

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

static inline lanes silu(lanes x)
{
    whole negative = x < 0;
    lanes e = exponential(pick(negative, x, -x));
    return x * pick(negative, e, (lanes){0} + 1.0f) / (e + 1.0f);
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

/* -- parts of a layer ---------------------------------------------------------------------------------------- */

static inline void normalise(float *x, const float *weight, float epsilon, int64_t n)
{
    float scale = 1.0f / sqrtf(dot(x, x, n) / n + epsilon);
    for (int64_t i = 0; i < n; i++) x[i] = x[i] * scale * weight[i];
}

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

/* out [SPAN] += the values at `slots`, weighed: one chain of multiply-adds a number. */
static inline void mix_block(const float *values, int64_t stride, const int32_t *slots, const float *weights, int64_t n,
                             float *out)
{
    lanes totals[SPAN / LANES];
    for (int k = 0; k < SPAN / LANES; k++) totals[k] = load(out + k * LANES);
    for (int64_t j = 0; j < n; j++) {
        const float *v = values + slots[j] * stride;
        for (int k = 0; k < SPAN / LANES; k++) totals[k] += weights[j] * load(v + k * LANES);
    }
    for (int k = 0; k < SPAN / LANES; k++) store(out + k * LANES, totals[k]);
}

/* out [width] += the values at `slots`, weighed. */
static inline void mix(const float *values, int64_t stride, const int32_t *slots, const float *weights, int64_t n,
                       float *out, int64_t width)
{
    int64_t at = 0;
    for (; at + SPAN <= width; at += SPAN) mix_block(values + at, stride, slots, weights, n, out + at);
    for (; at < width; at += LANES) {
        int64_t part = width - at < LANES ? width - at : LANES;
        lanes total = load_part(out + at, part);
        for (int64_t j = 0; j < n; j++) {
            const float *v = values + slots[j] * stride + at;
            total += weights[j] * (part == LANES ? load(v) : load_part(v, part));
        }
        memcpy(out + at, &total, part * sizeof(float));
    }
}

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

#endif
