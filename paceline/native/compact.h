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
    AHEAD = 8192,          /* bytes that are fetched ahead into the second cache */
    NEAR = 768,            /* and from there into the first */
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

#if defined(__AVX512BF16__) && defined(__AVX512VBMI2__)

#include <immintrin.h>

/* The exponents of a block, where bfloat16 has them, twice: an index of 4 bits may have any fifth. */
static inline __m512i exponents(const uint8_t *table)
{
    __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)table));
    return _mm512_broadcast_i64x4(_mm256_slli_epi16(wide, 7));
}

/* Vectors 2j and 2j + 1 of a group. */
static inline __attribute__((always_inline)) void decode(const uint8_t *group, __m512i table, int j, __m512i *a,
                                                         __m512i *b)
{
    const __m512i kept = _mm512_set1_epi16((short)0x807f);
    __m512i places = _mm512_loadu_si512(group), rest = _mm512_loadu_si512(group + 64 + 64 * j);
    __m512i first = _mm512_permutexvar_epi16(j ? _mm512_srli_epi16(places, 8) : places, table);
    __m512i second = _mm512_permutexvar_epi16(_mm512_srli_epi16(places, 8 * j + 4), table);
    *a = _mm512_ternarylogic_epi32(rest, kept, first, 0xea); /* (rest & kept) | first */
    *b = _mm512_ternarylogic_epi32(_mm512_shldi_epi16(rest, rest, 8), kept, second, 0xea);
}

#endif

#endif
