/* What the products of bfloat16 matrices have in common: panels of WIDE outputs, and what follows their sums. */

#ifndef PACELINE_PANELS_H
#define PACELINE_PANELS_H

#include "lanes.h"

enum { WIDE = 32 };

enum { SET, ADD, MULTIPLY };

/* What becomes of the sums, and where: y [rows, outputs], with a bias or none, an activation, and another operand. */
typedef struct {
    const float *bias;
    const uint16_t *other;
    uint16_t *y;
    int64_t outputs;
    int swish, operation;
} tail;

/* How many rows, at most `most`, are multiplied together when `done` of them are done: blocks are as even as can be. */
static inline int64_t block_rows(int64_t rows, int64_t done, int64_t most)
{
    int64_t left = rows - done, blocks = (left + most - 1) / most;
    return (left + blocks - 1) / blocks;
}

/* `finish` of `count` outputs; a constant one is vectors. */
static inline __attribute__((always_inline)) void finish_some(float *sums, const tail *after, int64_t at, int64_t from,
                                                              int64_t count)
{
    if (after->bias)
        for (int64_t o = 0; o < count; o++) sums[o] += after->bias[from + o];
    if (after->swish)
        for (int k = 0; k < WIDE; k += LANES) store(sums + k, silu(load(sums + k)));
    if (after->operation != SET) {
        float x[WIDE];
        widen(after->other, 1, at, count, x);
        if (after->operation == ADD)
            for (int64_t o = 0; o < count; o++) sums[o] += x[o];
        else
            for (int64_t o = 0; o < count; o++) sums[o] *= x[o];
    }
    narrow(sums, 1, after->y, at, count);
}

/* The sums of one row from output `from` on: bias, activation and the other operand in float32, then rounded once. */
static inline void finish(float *sums, const tail *after, int64_t row, int64_t from)
{
    int64_t at = row * after->outputs + from, count = after->outputs - from;
    if (count >= WIDE)
        finish_some(sums, after, at, from, WIDE);
    else
        finish_some(sums, after, at, from, count);
}

#endif
