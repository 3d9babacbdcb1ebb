/* The predictor's questions: how they are told, and how their chances learn.
 *
 * What a guess missed is told by yes and no: is it 0, its sign, whether it reaches 2, 4, 8, ..., two
 * bits below that, and the rest evenly. The chance of a yes is a logistic mixture of the chances in
 * four contexts. The chances and the mixture learn from all pixels before.
 *
 * Reference: Mahoney, Adaptive weighing of context models for lossless data compression (2005).
 */
#ifndef MIXERFLOW_CHANCES_H
#define MIXERFLOW_CHANCES_H

#include <stdint.h>
#include <stdlib.h>

#include "stack.h"

#define GUESSES 6
#define CONTEXTS 4
#define QUESTIONS 66  /* 0: is it 0; 1: its sign; from 2: reaches 2^e; from 18, 34: bits below */
#define ACTIVITIES 38 /* half octaves of how much the neighbourhood moves */
#define PLACES 1024   /* of a context */
#define LOGITS 2048   /* logits lie in (-LOGITS, LOGITS), in units of 1 / 192 nat */
#define HEAVIEST (1 << 18) /* a weight of 4: CONTEXTS * LOGITS * HEAVIEST < 2^31 */
#define UNIT_BITS 24  /* log2 of the interval that questions share until the next symbol */

typedef struct {
    int32_t channels, height, width, levels;
} PictureShape;

typedef struct {
    uint16_t yes, seen; /* the chance of a yes, in 1 / 65536; how often it was asked */
} Chance;

/* What goes to the stack: a symbol, or a uniform number `start` if `range` is not 0. */
typedef struct {
    uint32_t start, frequency, range;
} PredictorSymbol;

typedef struct {
    PictureShape shape;
    Stack *stack;               /* what is told comes from there, or is noted if it is NULL */
    PredictorSymbol *symbols;
    int64_t count, room;
    int failed;                 /* no memory for symbols */
    uint32_t start, size, slot; /* the interval that is left by the questions since a symbol */
    int32_t *missed;            /* by the guess: all pixels of the image */
    uint16_t *errors;           /* of all guesses, at each place of the channel */
    Chance *chances, *at[CONTEXTS];
    int32_t weights[QUESTIONS][CONTEXTS];
    int16_t logits[4096];
    uint16_t squash[2 * LOGITS];
    int32_t rates[256];
} Predictor;

/* 65536 / (1 + e^-x) at x = 0, 1/2, ..., 11. */
static const uint16_t SQUASH[23] = {32768, 40793, 47911, 53581, 57724, 60565, 62428, 63615,
                                    64357, 64816, 65097, 65269, 65374, 65438, 65476, 65500,
                                    65514, 65523, 65528, 65531, 65533, 65534, 65535};

static inline uint32_t magnitude_of(int32_t x) { return x < 0 ? -(uint32_t)x : (uint32_t)x; }
static inline int bit_length(uint32_t x) { return x ? 32 - __builtin_clz(x) : 0; }
static inline int smaller_of(int a, int b) { return a < b ? a : b; }
static inline int32_t bounded(int32_t x, int32_t end) { return x < -end ? -end : x > end ? end : x; }

/* 0 for 0, 1 for 1, then two for each octave. */
static inline int half_octaves(uint32_t x) {
    int bits = bit_length(x);
    return bits < 2 ? (int)x : 2 * bits - 2 + (int)(x >> (bits - 2) & 1);
}

/* -10 to 10, by sign and octave. */
static inline int signed_octave(int32_t x) {
    int octave = smaller_of(bit_length(magnitude_of(x)), 10);
    return x < 0 ? -octave : octave;
}

/* ---- Symbols: questions share an interval, as products of chances, while it is wide. */

static void predictor_note(Predictor *p, uint32_t start, uint32_t frequency, uint32_t range) {
    if (p->count == p->room) {
        int64_t room = p->room ? 2 * p->room : 4096;
        PredictorSymbol *symbols = realloc(p->symbols, (size_t)room * sizeof *symbols);
        if (!symbols) {
            p->failed = 1;
            return;
        }
        p->symbols = symbols, p->room = room;
    }
    p->symbols[p->count++] = (PredictorSymbol){start, frequency, range};
}

/* End the interval: what is left of it is a symbol. */
static void predictor_flush(Predictor *p) {
    if (p->size >> UNIT_BITS == 0) {
        if (p->stack)
            pop_symbol(p->stack, UNIT_BITS, p->start, p->size);
        else
            predictor_note(p, p->start, p->size, 0);
    }
    p->start = 0, p->size = 1u << UNIT_BITS;
    if (p->stack) p->slot = peek_slot(p->stack, UNIT_BITS);
}

static inline int predictor_split(Predictor *p, uint32_t chance, int yes) {
    if (p->size < 1u << 17) predictor_flush(p);
    uint32_t cut = (uint32_t)((uint64_t)p->size * chance >> 16);
    if (p->stack) yes = p->slot - p->start < cut;
    if (yes)
        p->size = cut;
    else
        p->start += cut, p->size -= cut;
    return yes;
}

static uint32_t predictor_even(Predictor *p, uint32_t range, uint32_t value) {
    predictor_flush(p);
    if (!p->stack) {
        predictor_note(p, value, 0, range);
        return value;
    }
    value = pop_uniform(p->stack, range);
    p->slot = peek_slot(p->stack, UNIT_BITS);
    return value;
}

/* ---- Chances. */

/* Tell the answer to a question, and learn from it. `yes` is not read where a stack tells it. */
static inline int predictor_ask(Predictor *p, int question, int yes) {
    int32_t logits[CONTEXTS], *weights = p->weights[question], sum = 1 << 15;
    Chance *asked[CONTEXTS];
    for (int c = 0; c < CONTEXTS; c++) {
        asked[c] = p->at[c] + question;
        if (!asked[c]->seen) *asked[c] = (Chance){asked[0]->yes, 2}; /* knows no better */
        logits[c] = p->logits[asked[c]->yes >> 4];
    }
    for (int c = 0; c < CONTEXTS; c++) sum += logits[c] * weights[c];
    sum = bounded(sum >> 16, LOGITS - 1);
    const int32_t mixed = p->squash[sum + LOGITS];
    yes = predictor_split(p, (uint32_t)mixed, yes);
    const int32_t truth = yes ? 65535 : 0;
    for (int c = 0; c < CONTEXTS; c++)
        weights[c] = bounded(weights[c] + ((logits[c] * (truth - mixed) + 32768) >> 16), HEAVIEST);
    for (int c = 0; c < CONTEXTS; c++) {
        const int32_t yes_c = asked[c]->yes;
        asked[c]->yes = (uint16_t)(yes_c + ((truth - yes_c) * p->rates[asked[c]->seen] >> 16));
        if (asked[c]->seen < (c ? 120 : 250)) asked[c]->seen++;
    }
    return yes;
}

/* Tell what the guess missed: all answers lead to a pixel in [0, levels). */
static int32_t predictor_tell(Predictor *p, int32_t guess, int32_t missed) {
    const int32_t above = p->shape.levels - 1 - guess;
    if (predictor_ask(p, 0, !missed)) return 0;
    const int negative = guess && (!above || predictor_ask(p, 1, missed < 0));
    const uint32_t most = (uint32_t)(negative ? guess : above), told = magnitude_of(missed);
    int e = 0;
    while (2u << e <= most && predictor_ask(p, 2 + e, told >= 2u << e)) e++;
    uint32_t value = 1u << e, bit = value >> 1;
    int first = 0;
    if (bit && value + bit <= most && (first = predictor_ask(p, 18 + e, (told & bit) != 0)))
        value += bit;
    bit >>= 1;
    if (bit && value + bit <= most && predictor_ask(p, 34 + 2 * e + first, (told & bit) != 0))
        value += bit;
    const uint32_t range = bit < most - value + 1 ? bit : most - value + 1;
    if (range > 1) value += predictor_even(p, range, told - value);
    return negative ? -(int32_t)value : (int32_t)value;
}

/* The chances of a two-sided geometric distribution, for each activity: what is known at first. */
static void predictor_expect(Predictor *p) {
    for (int a = 0; a < ACTIVITIES; a++) {
        uint64_t activity = a < 2 ? (uint64_t)a : (uint64_t)(2 + (a & 1)) << (a / 2 - 1);
        uint64_t decay = (activity * 2 + 1) * 65536 / (activity * 2 + 12), powers[17];
        powers[0] = decay;
        for (int e = 1; e < 17; e++) powers[e] = powers[e - 1] * powers[e - 1] >> 16;
        for (int question = 0; question < QUESTIONS; question++) {
            uint64_t yes = 32768;
            if (!question) yes = (65536 - decay) * 65536 / (65536 + decay);
            if (question >= 2) yes = powers[question < 18 ? question - 2 : 0];
            int back = question >= 34 ? (question - 34) / 2 - 2 : question - 18 - 1;
            if (question >= 18 && back >= 0) yes = (powers[back] << 16) / (65536 + powers[back]);
            Chance chance = {(uint16_t)(yes < 64 ? 64 : yes > 65472 ? 65472 : yes), 12};
            for (int later = 0; later < 2; later++)
                p->chances[(later * ACTIVITIES + a) * QUESTIONS + question] = chance;
        }
    }
}

/* Make the tables, and the first interval; the chances are all 0. */
static void predictor_start(Predictor *p) {
    for (int i = 0, x = 0; i < 2 * LOGITS; i++) {
        int away = i < LOGITS ? LOGITS - i : i - LOGITS, k = away / 96, rest = away % 96;
        int32_t y = SQUASH[k] + (SQUASH[k + 1] - SQUASH[k]) * rest / 96;
        p->squash[i] = (uint16_t)(i < LOGITS ? 65536 - y : y);
        for (; x < 4096 && x * 16 + 8 <= p->squash[i]; x++) p->logits[x] = (int16_t)(i - LOGITS);
        if (i == 2 * LOGITS - 1)
            while (x < 4096) p->logits[x++] = LOGITS - 1;
    }
    for (int n = 0; n < 256; n++) p->rates[n] = 131072 / (2 * n + 3);
    for (int q = 0; q < QUESTIONS; q++)
        for (int c = 0; c < CONTEXTS; c++) p->weights[q][c] = 65536 / CONTEXTS;
    predictor_expect(p);
    p->size = 1u << UNIT_BITS;
    predictor_flush(p);
}

#endif
