/* How a matrix of bfloat16 numbers is kept in 12 bits a weight; `compact.py` says why.

   A block is 32 inputs of a panel's WIDE outputs. The weights of a block have few exponents, so each is kept as its
   sign and mantissa (8 bits) and the place of its exponent (4 bits) in the block's table of 16. Panels lie one after
   the other: first the tables of its blocks, then the blocks, each of GROUPS groups of

       32 words: the places of 4 vectors' exponents, 4 bits each, the lowest the first vector's;
       32 words: signs and mantissas of two vectors, the second's with its bytes exchanged;
       32 words: the same of the other two.

   A vector is one pair of inputs of half of the outputs, as in `matrix.c`. A block with more exponents lies in `spare` as
   it was; its table begins with a higher exponent than it goes on with, and then says where. */

#ifndef PACELINE_COMPACT_H
#define PACELINE_COMPACT_H

#include "panels.h"

enum {
    INPUTS = 32,           /* of a block */
    BLOCK = INPUTS * WIDE, /* weights of it */
    GROUPS = 8,
    GROUP = 192,           /* bytes */
    TABLE = 16,
};

/* Bytes of the tables of a panel; the blocks begin where a line of the cache does. */
static inline int64_t header(int64_t inputs) { return (inputs / INPUTS * TABLE + 63) / 64 * 64; }

static inline int64_t panel_bytes(int64_t inputs) { return header(inputs) + inputs / INPUTS * GROUPS * GROUP; }

static inline int is_spare(const uint8_t *table) { return table[0] > table[1]; }

static inline const uint16_t *spare_block(const uint8_t *table, const uint16_t *spare)
{
    int64_t at;
    memcpy(&at, table + 8, sizeof at);
    return spare + at * BLOCK;
}

#endif
