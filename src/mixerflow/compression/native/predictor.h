/* Images without the flow: an adaptive predictor of pixels, for the first images of a block.
 *
 * A pixel's guess is a mean of simple guesses from its neighbours, and from what the neighbours say
 * of its difference to the channel before; each has a weight by its errors around. What the guess
 * misses is told by questions (`chances.h`). All numbers are integers, so that every machine guesses
 * the same. Whatever lies on the stack, all pixels that are popped are in [0, levels).
 *
 * Reference: Weinberger et al., The LOCO-I lossless image compression algorithm (2000).
 */
#ifndef MIXERFLOW_PREDICTOR_H
#define MIXERFLOW_PREDICTOR_H

#include "chances.h"

/* ---- Guesses. */

static inline int32_t median(int32_t a, int32_t b, int32_t c) {
    return a < b ? (c < a ? a : c > b ? b : c) : (c < b ? b : c > a ? a : c);
}

/* The guesses from neighbours to the west, north, north-west and north-east. */
static inline void predictor_simple(const int32_t n[4], int32_t guesses[5]) {
    guesses[0] = n[0];
    guesses[1] = n[1];
    guesses[2] = n[0] + n[1] - n[2];
    guesses[3] = median(n[0], n[1], guesses[2]);
    guesses[4] = (2 * (n[0] + n[1]) + n[3] - n[2]) >> 2;
}

/* The mean of guesses, each with the square of a weight by its errors at four neighbours. */
static inline int32_t predictor_mean(const Predictor *p, const int32_t *guesses,
                                     const int64_t *near) {
    uint32_t errors[GUESSES] = {0}, fewest = UINT32_MAX;
    for (int g = 0; g < GUESSES; g++) {
        for (int k = 0; k < 4; k++) errors[g] += p->errors[near[k] * GUESSES + g];
        if (errors[g] < fewest) fewest = errors[g];
    }
    int64_t sum = 0, weights = 0;
    for (int g = 0; g < GUESSES; g++) {
        uint32_t root = (fewest + 2) * 256 / (errors[g] + 2);
        int64_t weight = (int64_t)root * root;
        sum += weight * guesses[g], weights += weight;
    }
    int64_t mean = (sum + weights / 2) / weights;
    return (int32_t)(mean < 0 ? 0 : mean >= p->shape.levels ? p->shape.levels - 1 : mean);
}

/* Tell pixel i of channel c; `pixels` are the image's. */
static void predictor_pixel(Predictor *p, int c, int64_t i, uint16_t *pixels) {
    const int64_t width = p->shape.width, place = width * p->shape.height;
    const int64_t x = i % width, north = i >= width ? i - width : i - 1;
    const int64_t near[4] = {x ? i - 1 : north, north, x && i >= width ? north - 1 : north,
                             x + 1 < width && i >= width ? north + 1 : north};
    const uint16_t *channel = pixels + c * place, *before = c ? channel - place : NULL;
    const int32_t *missed = p->missed + c * place;
    int32_t own[4], delta[4], guesses[GUESSES], plain[5], miss[4];
    uint32_t moves = 0, widest = 0;
    int32_t guess = before ? before[i] : p->shape.levels / 2;
    for (int g = 0; g < GUESSES; g++) guesses[g] = guess;
    if (i) {
        for (int k = 0; k < 4; k++) {
            own[k] = channel[near[k]];
            delta[k] = before ? own[k] - before[near[k]] : own[k];
            miss[k] = missed[near[k]];
        }
        predictor_simple(delta, guesses);
        predictor_simple(own, plain);
        for (int g = 0; before && g < 5; g++) guesses[g] += before[i];
        guesses[5] = before ? plain[3] : (plain[0] + plain[1]) >> 1;
        guess = predictor_mean(p, guesses, near);
        moves = magnitude_of(delta[0] - delta[2]) + magnitude_of(delta[1] - delta[2]) +
                magnitude_of(delta[1] - delta[3]) + magnitude_of(miss[0]) + magnitude_of(miss[1]) +
                (magnitude_of(miss[2]) + magnitude_of(miss[3])) / 2;
        int32_t low = guesses[0], high = guesses[0];
        for (int g = 1; g < GUESSES; g++) {
            if (guesses[g] < low) low = guesses[g];
            if (guesses[g] > high) high = guesses[g];
        }
        widest = (uint32_t)(high - low);
    } else {
        memset(own, 0, sizeof own), memset(miss, 0, sizeof miss);
    }
    const int activity = smaller_of(half_octaves(moves), ACTIVITIES - 1), later = c > 0;
    const int spread = smaller_of(half_octaves(widest), ACTIVITIES - 1);
    const int shift = bit_length((uint32_t)p->shape.levels - 1) - 4;
    const int places[CONTEXTS] = {
        later * ACTIVITIES + activity,
        later ? 441 + (signed_octave(missed[i - place]) + 10) * 19 + activity / 2
              : (signed_octave(miss[0]) + 10) * 21 + signed_octave(miss[1]) + 10,
        ((later * ACTIVITIES + spread) * 3 + (miss[0] > 0) - (miss[0] < 0) + 1) * 3 +
            (miss[1] > 0) - (miss[1] < 0) + 1,
        (smaller_of(c, 3) * 16 + (shift > 0 ? own[0] >> shift : own[0])) * 16 +
            (shift > 0 ? own[1] >> shift : own[1]),
    };
    for (int k = 0; k < CONTEXTS; k++)
        p->at[k] = p->chances + (k * PLACES + places[k]) * QUESTIONS;
    int32_t told = predictor_tell(p, guess, p->stack ? 0 : channel[i] - guess);
    if (p->stack) pixels[c * place + i] = (uint16_t)(guess + told);
    p->missed[c * place + i] = told;
    for (int g = 0; g < GUESSES; g++) {
        uint32_t error = magnitude_of(guess + told - guesses[g]);
        p->errors[i * GUESSES + g] = (uint16_t)(error > 65535 ? 65535 : error);
    }
}

/* ---- All images, from the first to the last. */

static void predictor_close(Predictor *p) {
    if (p) free(p->symbols), free(p->missed), free(p->errors), free(p->chances);
    free(p);
}

static Predictor *predictor_open(const PictureShape *shape, Stack *stack) {
    const size_t places = (size_t)shape->height * (size_t)shape->width;
    Predictor *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->shape = *shape, p->stack = stack;
    p->missed = malloc(places * (size_t)shape->channels * sizeof *p->missed);
    p->errors = malloc(places * GUESSES * sizeof *p->errors);
    p->chances = calloc((size_t)CONTEXTS * PLACES * QUESTIONS, sizeof *p->chances);
    if (!p->missed || !p->errors || !p->chances) {
        predictor_close(p);
        return NULL;
    }
    predictor_start(p);
    return p;
}

/* Whether there is nothing more to pop, or nobody wants it. */
static int predictor_ends(const Predictor *p) {
    if (!p->stack) return 0;
    return p->stack->dry || (p->stack->stop && *(const volatile int64_t *)p->stack->stop);
}

static void predictor_images(Predictor *p, uint16_t *pixels, int64_t count) {
    const int64_t places = (int64_t)p->shape.height * p->shape.width;
    const int64_t size = p->shape.channels * places;
    for (int64_t n = 0; n < count && !p->failed; n++, pixels += size)
        for (int c = 0; c < p->shape.channels; c++)
            for (int64_t i = 0; i < places; i++) {
                if (i % p->shape.width == 0 && predictor_ends(p)) {
                    const int64_t done = c * places + i; /* what is not there is black */
                    memset(pixels + done, 0, (size_t)((count - n) * size - done) * sizeof *pixels);
                    return;
                }
                predictor_pixel(p, c, i, pixels);
            }
    predictor_flush(p);
}

/* Push images (count, channels, height, width), so that `predictor_pop` gives the first one first.
 * Returns 0, or 1 if there is no memory. */
static int predictor_push(Stack *s, const PictureShape *shape, const uint16_t *pixels,
                          int64_t count) {
    Predictor *p = predictor_open(shape, NULL);
    if (!p) return 1;
    predictor_images(p, (uint16_t *)pixels, count); /* which are not written without a stack */
    const int failed = p->failed;
    for (int64_t i = failed ? 0 : p->count; i-- > 0;) {
        const PredictorSymbol *symbol = p->symbols + i;
        if (symbol->range)
            push_uniform(s, symbol->range, symbol->start);
        else
            push_symbol(s, UNIT_BITS, symbol->start, symbol->frequency);
    }
    predictor_close(p);
    return failed;
}

static int predictor_pop(Stack *s, const PictureShape *shape, uint16_t *pixels, int64_t count) {
    Predictor *p = predictor_open(shape, s);
    if (!p) return 1;
    predictor_images(p, pixels, count);
    predictor_close(p);
    return 0;
}

#endif
