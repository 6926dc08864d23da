/* From panels as in `matrix.c` to those of `compact.h`, and back. */

#include "compact.h"

int64_t compact_bytes(int64_t inputs, int64_t outputs) { return (outputs + WIDE - 1) / WIDE * panel_bytes(inputs); }

/* A block's exponents in order into `table`, with their places; returns how many there are. */
static int64_t tabulate(const uint16_t *weights, uint8_t *table, uint8_t *places)
{
    uint8_t used[256] = {0};
    for (int i = 0; i < BLOCK; i++) used[weights[i] >> 7 & 255] = 1;
    int64_t count = 0;
    for (int e = 0; e < 256; e++)
        if (used[e]) {
            if (count < TABLE) table[count] = e;
            places[e] = count++;
        }
    for (int64_t i = count; i < TABLE; i++) table[i] = table[count - 1];
    return count;
}

static void encode(const uint16_t *weights, const uint8_t *places, uint8_t *to)
{
    for (int g = 0; g < GROUPS; g++, weights += 4 * 32, to += GROUP) {
        uint16_t words[3][32];
        for (int k = 0; k < 32; k++) {
            const uint16_t w[4] = {weights[k], weights[32 + k], weights[64 + k], weights[96 + k]};
            words[0][k] = 0;
            for (int v = 0; v < 4; v++) words[0][k] |= places[w[v] >> 7 & 255] << 4 * v;
            for (int v = 0; v < 4; v += 2)
                words[1 + v / 2][k] = (w[v] & 0x807f) | (w[v + 1] & 0x8000) >> 8 | (w[v + 1] & 0x7f) << 8;
        }
        memcpy(to, words, sizeof words);
    }
}

/* From panels as in `matrix.c` to compact ones, and how many blocks of each belong into `spare`. */
void compact_pack(const uint16_t *panels, int64_t count, int64_t inputs, uint8_t *to, int64_t *spared, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < count; p++) {
        uint8_t *table = to + p * panel_bytes(inputs), *body = table + header(inputs);
        spared[p] = 0;
        for (int64_t i = 0; i < inputs; i += INPUTS, table += TABLE, body += GROUPS * GROUP) {
            const uint16_t *weights = panels + (p * inputs + i) * WIDE;
            uint8_t places[256];
            if (tabulate(weights, table, places) <= TABLE) {
                encode(weights, places, body);
            } else {
                table[0] = 1, table[1] = 0;
                spared[p]++;
            }
        }
    }
}

/* Copies the blocks that belong there into `spare`, and says in their tables where. */
void compact_spare(const uint16_t *panels, int64_t count, int64_t inputs, uint8_t *to, uint16_t *spare)
{
    for (int64_t p = 0, at = 0; p < count; p++) {
        uint8_t *table = to + p * panel_bytes(inputs);
        for (int64_t i = 0; i < inputs; i += INPUTS, table += TABLE)
            if (is_spare(table)) {
                memcpy(spare + at * BLOCK, panels + (p * inputs + i) * WIDE, BLOCK * sizeof *spare);
                memcpy(table + 8, &at, sizeof at);
                at++;
            }
    }
}

static void decode_block(const uint8_t *table, const uint8_t *from, uint16_t *weights)
{
    for (int g = 0; g < GROUPS; g++, weights += 4 * 32, from += GROUP) {
        uint16_t words[3][32];
        memcpy(words, from, sizeof words);
        for (int k = 0; k < 32; k++)
            for (int v = 0; v < 4; v++) {
                uint16_t pair = words[1 + v / 2][k], rest = v % 2 ? pair << 8 | pair >> 8 : pair;
                weights[v * 32 + k] = (rest & 0x807f) | table[words[0][k] >> 4 * v & 15] << 7;
            }
    }
}

/* Back to panels as in `matrix.c`. */
void compact_unpack(const uint8_t *panels, const uint16_t *spare, int64_t count, int64_t inputs, uint16_t *to,
                    int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t p = 0; p < count; p++) {
        const uint8_t *table = panels + p * panel_bytes(inputs), *body = table + header(inputs);
        for (int64_t i = 0; i < inputs; i += INPUTS, table += TABLE, body += GROUPS * GROUP) {
            uint16_t *weights = to + (p * inputs + i) * WIDE;
            if (is_spare(table))
                memcpy(weights, spare_block(table, spare), BLOCK * sizeof *weights);
            else
                decode_block(table, body, weights);
        }
    }
}
