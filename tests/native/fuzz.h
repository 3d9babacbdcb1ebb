/* Damaged blocks and programs that lie, in one process: no crash, no hang, pixels in their range. */
#ifndef MIXERFLOW_FUZZ_H
#define MIXERFLOW_FUZZ_H

#include <math.h>
#include <stdio.h>
#include <time.h>

typedef struct {
    const int32_t *words;
    const double *numbers;
    int64_t n_words, n_numbers;
    int k;
    int64_t size, images;
    const uint16_t *pixels;
    const int32_t *classes;
    int32_t levels;
} Given;

typedef struct {
    int64_t answers[8]; /* by the codec's code */
    double longest;     /* seconds of CPU of one round */
} Tally;

static uint64_t dice_state;

static uint64_t dice(void) {
    dice_state ^= dice_state << 13;
    dice_state ^= dice_state >> 7;
    dice_state ^= dice_state << 17;
    return dice_state;
}

static int64_t below(int64_t end) { return end > 0 ? (int64_t)(dice() % (uint64_t)end) : 0; }

/* Change some words: bits, whole words, runs; returns the new count, at most `room`. */
static int64_t damage_words(uint32_t *words, int64_t count, int64_t room) {
    for (int64_t times = 1 + below(4); times-- > 0;) {
        const int64_t at = below(count), length = below(count - at < 64 ? count - at : 64) + 1;
        switch (count ? below(7) : 5) {
        case 0: words[at] ^= 1u << below(32); break;
        case 1: words[at] = (uint32_t)dice(); break;
        case 2: words[at] = below(2) ? 0 : UINT32_MAX; break;
        case 3: count = below(4) ? count - below(3) : at; break;
        case 4:
            for (int64_t i = 0; i < length && at + i < count; i++)
                words[at + i] = words[below(count)];
            break;
        case 5:
            for (int64_t i = 0; i < length && count < room; i++) words[count++] = (uint32_t)dice();
            break;
        default: words[count - 1 - below(count < 3 ? count : 3)] = (uint32_t)dice();
        }
        if (count < 0) count = 0;
    }
    return count;
}

/* Change words, numbers or counts of a program. */
static void damage_program(const Given *g, int32_t *words, double *numbers, int64_t counts[2]) {
    static const int32_t lies[] = {0, 1, 2, 3, -1, 16, 255, 256, 65535, 65536, INT32_MAX, INT32_MIN};
    static const double values[] = {0.0, -0.0, 1.0, -1.0, 1e-300, 1e300, -1e300, 5e-324, 1e30, 700.0};
    const int64_t head = g->n_words < 24 ? g->n_words : 24;
    const int open = below(2) == 0; /* lies that it has to work with */
    for (int64_t times = 1 + below(3); times-- > 0;) {
        const int64_t at = below(2) ? below(head) : below(g->n_words);
        const int64_t number = below(4) ? below(g->n_numbers) : below(g->n_numbers < 3 ? 1 : 3);
        switch (open ? 4 + below(2) : below(9)) {
        case 0: words[at] = lies[below(12)]; break;
        case 1: words[at] += below(2) ? 1 : -1; break;
        case 2: words[at] = (int32_t)dice(); break;
        case 3: words[at] = words[below(g->n_words)]; break;
        case 4: numbers[number] = values[below(10)]; break;
        case 5: numbers[number] *= below(2) ? -1e6 : 1e-9; break;
        case 6: numbers[number] = below(2) ? (double)NAN : (double)INFINITY; break;
        case 7: counts[0] = below(3) ? counts[0] - below(2) : below(g->n_words); break;
        default: counts[1] = below(3) ? counts[1] - below(2) : below(g->n_numbers);
        }
    }
}

static double seconds(void) { return (double)clock() / CLOCKS_PER_SEC; }

static void count_answer(Tally *tally, int answer, double since) {
    tally->answers[answer < 0 || answer > 7 ? 7 : answer]++;
    if (seconds() - since > tally->longest) tally->longest = seconds() - since;
}

/* Decode a block, and look at all pixels; returns the codec's code, or 7 for a pixel out of range. */
static int decode_and_look(const Codec *codec, const uint32_t *words, int64_t count,
                           int64_t images, int64_t initial, const int32_t *classes) {
    CodecReport report = {0};
    const int64_t size = codec->size, room = images > 0 ? images * size : 0;
    uint16_t *pixels = malloc((size_t)room * 2 + 1);
    if (!pixels) exit(11);
    memset(pixels, 0, (size_t)room * 2 + 1);
    int answer = codec_decode(codec, words, count, images, initial, classes, pixels, &report);
    for (int64_t i = 0; i < room; i++)
        if (pixels[i] >= codec->levels) answer = 7;
    free(pixels);
    return answer;
}

static void fuzz_block(const Given *g, const Codec *codec, const uint32_t *block, int64_t count,
                       int64_t initial, Tally *tally) {
    const double since = seconds();
    int64_t images = g->images, room = count + 1024;
    uint32_t *words = malloc((size_t)room * 4);
    int32_t *classes = malloc((size_t)(images + 8) * 4);
    if (!words || !classes) exit(11);
    memcpy(words, block, (size_t)count * 4);
    for (int64_t i = 0; i < images + 8; i++) classes[i] = g->classes ? g->classes[i % images] : 0;
    if (below(5)) count = damage_words(words, count, room);
    if (!below(5)) initial = below(3) ? initial + below(5) - 2 : (int64_t)dice();
    if (!below(5)) images = images + below(9) - 4;
    if (!below(5)) classes[below(images + 1)] = below(2) ? (int32_t)dice() : (int32_t)below(12);
    uint32_t *exact = malloc((size_t)count * 4 + 1); /* so that a sanitiser sees its end */
    memcpy(exact, words, (size_t)count * 4);
    const int32_t *given = g->classes && below(20) ? classes : NULL;
    int answer = decode_and_look(codec, exact, count, images, initial, given);
    free(exact);
    free(words);
    free(classes);
    count_answer(tally, answer, since);
}

/* Open a program that lies, and, where that goes, code the images with it and decode them. */
static void fuzz_program(const Given *g, Tally *tally) {
    const double since = seconds();
    int64_t counts[2] = {g->n_words, g->n_numbers};
    int32_t *words = malloc((size_t)counts[0] * 4 + 4);
    double *numbers = malloc((size_t)counts[1] * 8 + 8);
    if (!words || !numbers) exit(11);
    memcpy(words, g->words, (size_t)counts[0] * 4);
    memcpy(numbers, g->numbers, (size_t)counts[1] * 8);
    damage_program(g, words, numbers, counts);
    if (counts[0] < 0) counts[0] = 0;
    if (counts[1] < 0) counts[1] = 0;
    int32_t *exact = malloc((size_t)counts[0] * 4 + 1);
    double *exact_numbers = malloc((size_t)counts[1] * 8 + 1);
    memcpy(exact, words, (size_t)counts[0] * 4);
    memcpy(exact_numbers, numbers, (size_t)counts[1] * 8);
    Codec *codec;
    int answer = codec_open(exact, counts[0], exact_numbers, counts[1],
                            below(8) ? g->k : (int)below(40) - 4, &codec);
    if (!answer && codec->size * 4 <= g->size * g->images) {
        const int64_t images = 4, capacity = images * codec->size * 3 + 8192;
        uint16_t *pixels = malloc((size_t)(images * codec->size) * 2);
        int32_t classes[4] = {0, 0, 0, 0};
        uint32_t *block = malloc((size_t)capacity * 4);
        if (!pixels || !block) exit(11);
        for (int64_t i = 0; i < images * codec->size; i++)
            pixels[i] = (uint16_t)(g->pixels[i] % (uint32_t)codec->levels);
        CodecReport report = {0};
        int64_t count;
        answer = codec_encode(codec, pixels, classes, images, block, capacity, &count, &report);
        uint16_t *back = calloc((size_t)(images * codec->size), 2);
        CodecReport again = {0};
        if (!answer)
            answer = codec_decode(codec, block, count, images, report.initial, classes, back, &again);
        if (!answer && memcmp(back, pixels, (size_t)(images * codec->size) * 2)) answer = 7;
        free(back);
        free(block);
        free(pixels);
    }
    if (codec) codec_close(codec);
    free(exact);
    free(exact_numbers);
    free(words);
    free(numbers);
    count_answer(tally, answer, since);
}

static void print_tally(const char *name, const Tally *tally) {
    printf("%s", name);
    for (int i = 0; i < 8; i++) printf(" %lld", (long long)tally->answers[i]);
    printf(" %.3f\n", tally->longest);
}

/* ROUNDS damaged blocks and as many programs; prints the answers by code, and the longest round. */
static int fuzz(const Given *g, const Codec *codec, int64_t rounds, uint64_t seed) {
    const int64_t capacity = g->images * g->size * 2 + 4096;
    uint32_t *block = malloc((size_t)capacity * 4);
    CodecReport report = {0};
    int64_t count;
    int error = codec_encode(codec, g->pixels, g->classes, g->images, block, capacity, &count, &report);
    if (error) return error;
    Tally blocks = {{0}, 0.0}, programs = {{0}, 0.0};
    dice_state = seed * 0x9e3779b97f4a7c15u + 1;
    for (int64_t i = 0; i < rounds; i++) {
        fuzz_block(g, codec, block, count, report.initial, &blocks);
        fuzz_program(g, &programs);
    }
    free(block);
    print_tally("blocks", &blocks);
    print_tally("programs", &programs);
    return blocks.answers[7] || programs.answers[7] ? 7 : 0;
}

#endif
