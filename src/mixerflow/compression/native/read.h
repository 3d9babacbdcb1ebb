/* Reading a program: what program.py writes, checked, with the constants that it stands for. */
#ifndef MIXERFLOW_READ_H
#define MIXERFLOW_READ_H

#include <stdlib.h>

#include "flow.h"
#include "latents.h"
#include "predictor.h"

#define FORMAT 1
#define MOST_POSITIONS (1 << 24)
#define MOST_HIDDEN (1 << 16)
#define MOST_DEPTH (1 << 10) /* blocks of a net of convolutions */
#define MOST_TAPS (1 << 14)
#define SLACK 4.0 /* how far a unit may lie from the first one, as a factor */
#define LEAST_UNIT 1e-60
#define MOST_UNIT 1e60

typedef struct Memory {
    struct Memory *next;
    void *block;
} Memory;

struct Codec {
    int32_t k, levels, size, classes, n_steps, most_steps, n_tables;
    PictureShape shape;
    Step *steps;
    Table table;
    double *units, *offsets; /* of the latents (D) */
    int32_t **tables;
    int64_t *lengths;
    double unit; /* the smallest behind the pixels' own scales; 0 until it is known */
    int64_t most_own, most_raw, most_raws, most_scratch; /* room that the steps need */
    uint64_t fingerprint;
    Memory *memory;
};

typedef struct {
    const int32_t *words;
    const double *numbers;
    int64_t words_left, numbers_left;
    Codec *codec;
    int error;
} Reader;

/* Zeros that are freed with the codec; NULL, and an error, if there is no memory. */
static void *room(Reader *r, int64_t count, size_t size) {
    Memory *memory = r->error ? NULL : malloc(sizeof *memory);
    size_t bytes = ((size_t)(count ? count : 1) * size + 63) / 64 * 64;
    void *block = memory ? aligned_alloc(64, bytes) : NULL;
    if (!block) {
        free(memory);
        r->error = r->error ? r->error : CODEC_MEMORY;
        return NULL;
    }
    memory->block = memset(block, 0, bytes);
    memory->next = r->codec->memory;
    r->codec->memory = memory;
    return block;
}

static void refuse(Reader *r) { r->error = r->error ? r->error : CODEC_PROGRAM; }

/* The next word, in [least, most]; `least` if it is not, or none is left. */
static int32_t word(Reader *r, int32_t least, int32_t most) {
    if (r->error || r->words_left < 1 || *r->words < least || *r->words > most) {
        refuse(r);
        return least;
    }
    r->words_left--;
    return *r->words++;
}

/* The most things of so many words each that the words which are left can hold. */
static int32_t most_of(const Reader *r, int32_t words) {
    int64_t most = r->words_left / words;
    return most < 1 << 20 ? (int32_t)most : 1 << 20;
}

/* The next numbers, which must be finite; NULL if they are not there. */
static const double *numbers(Reader *r, int64_t count) {
    if (r->error || count > r->numbers_left) {
        refuse(r);
        return NULL;
    }
    const double *found = r->numbers;
    for (int64_t i = 0; i < count; i++)
        if (!(found[i] >= -DBL_MAX && found[i] <= DBL_MAX)) {
            refuse(r);
            return NULL;
        }
    r->numbers += count;
    r->numbers_left -= count;
    return found;
}

static double *doubles(Reader *r, int64_t count) {
    const double *from = numbers(r, count);
    double *to = from ? room(r, count, sizeof *to) : NULL;
    if (to) memcpy(to, from, (size_t)count * sizeof *to);
    return to;
}

static float *floats(Reader *r, int64_t count) {
    const double *from = numbers(r, count);
    float *to = from ? room(r, count, sizeof *to) : NULL;
    for (int64_t i = 0; to && i < count; i++) to[i] = (float)from[i];
    return to;
}

static void read_base(Reader *r) {
    Table *t = &r->codec->table;
    t->kind = word(r, NORMAL, MIXTURE);
    t->components = word(r, 0, 1 << 16);
    if (t->kind != MIXTURE && t->components) refuse(r);
    if (t->kind == STUDENT) { /* offset + factor exp(log) */
        const double *n = numbers(r, 3);
        t->freedom = n ? n[0] + n[1] * exp_double(n[2]) : 1.0;
        if (!(t->freedom > 1e-3 && t->freedom < 1e9)) refuse(r);
    }
    if (t->kind == MIXTURE) {
        t->peaks = doubles(r, t->components);
        t->means = doubles(r, t->components);
        t->scales = doubles(r, t->components);
        double top = r->error || !t->components ? 0.0 : t->peaks[0];
        for (int32_t i = 0; !r->error && i < t->components; i++)
            if (t->peaks[i] > top) top = t->peaks[i];
        for (int32_t i = 0; !r->error && i < t->components; i++) {
            t->scales[i] = exp_double(t->scales[i]);
            t->peaks[i] = exp_double(t->peaks[i] - top) / t->scales[i];
        }
    }
    if (!r->error && table_fill(t)) refuse(r);
}

static void read_tables(Reader *r) {
    Codec *c = r->codec;
    c->n_tables = word(r, 0, most_of(r, 2));
    c->tables = room(r, c->n_tables, sizeof *c->tables);
    c->lengths = room(r, c->n_tables, sizeof *c->lengths);
    int32_t *seen = room(r, c->size, sizeof *seen);
    for (int32_t t = 0; !r->error && t < c->n_tables; t++) {
        int32_t length = word(r, 1, c->size);
        if (length > r->words_left) refuse(r);
        c->lengths[t] = length;
        c->tables[t] = room(r, length, sizeof **c->tables);
        for (int32_t i = 0; !r->error && i < length; i++) {
            int32_t position = word(r, 0, c->size - 1);
            if (seen[position] == t + 1) refuse(r); /* a position may be there once */
            seen[position] = t + 1;
            c->tables[t][i] = position;
        }
    }
}

/* Units of a step's block, and offsets if it wants them, from those of all positions. */
static void place(Reader *r, Step *s) {
    Codec *c = r->codec;
    int64_t count = s->blocks * s->n * LANES;
    s->units = room(r, count, sizeof *s->units);
    s->offsets = room(r, count, sizeof *s->offsets);
    if (r->error) return;
    for (int64_t b = 0; b < s->blocks; b++)
        for (int32_t i = 0; i < s->n; i++)
            for (int l = 0; l < LANES; l++) {
                int64_t row = b * LANES + l, at = (b * s->n + i) * LANES + l;
                int32_t position = row < s->rows ? s->table[i * s->rows + row] : -1;
                s->units[at] = position < 0 ? 1.0 : c->units[position];
                s->offsets[at] = position < 0 ? 0.0 : c->offsets[position];
            }
}

#endif
