/* Reading the operations of a program: one step for each, and constants at once. */
#ifndef MIXERFLOW_READ_STEPS_H
#define MIXERFLOW_READ_STEPS_H

#include "read_couplings.h"

static void read_affine(Reader *r, Step *s) {
    Codec *c = r->codec;
    const double *factor = numbers(r, s->n), *log_scale = numbers(r, s->n),
                 *shift = numbers(r, s->n);
    for (int32_t i = 0; !r->error && i < s->n; i++) {
        double scale = factor[i] * exp_double(log_scale[i]);
        for (int64_t p = 0; p < s->rows; p++) {
            int32_t at = s->table[i * s->rows + p];
            c->units[at] *= scale;
            c->offsets[at] = c->offsets[at] * scale + shift[i];
        }
    }
}

static void read_triangles(Reader *r, Step *s) {
    Codec *c = r->codec;
    const int32_t n = s->n;
    s->packed = doubles(r, (int64_t)n * n);
    const double *bias = numbers(r, n);
    s->scales = room(r, n, sizeof *s->scales);
    place(r, s);
    if (r->error) return;
    for (int32_t i = 0; i < n; i++) s->scales[i] = exp_double(s->packed[(int64_t)i * n + i]);
    for (int64_t p = 0; p < s->rows; p++) { /* the offsets of a row, by the same two triangles */
        const int32_t *table = s->table + p;
        for (int32_t i = 0; i < n; i++) {
            const double *row = s->packed + (int64_t)i * n;
            double sum = s->scales[i] * c->offsets[table[i * s->rows]];
            for (int32_t j = i + 1; j < n; j++) sum += row[j] * c->offsets[table[j * s->rows]];
            c->offsets[table[i * s->rows]] = sum;
            c->units[table[i * s->rows]] *= s->scales[i];
        }
        for (int32_t i = n - 1; i >= 0; i--) {
            const double *row = s->packed + (int64_t)i * n;
            double sum = c->offsets[table[i * s->rows]];
            for (int32_t j = 0; j < i; j++) sum += row[j] * c->offsets[table[j * s->rows]];
            c->offsets[table[i * s->rows]] = sum + bias[i];
        }
    }
}

/* The bits to pop at a position, or to push if below 0, that bring its unit near the first one. */
static int32_t refinement_of(const Codec *c, int32_t position) {
    double unit = c->units[position] < 0.0 ? -c->units[position] : c->units[position];
    int32_t bits = 0;
    if (unit > c->unit * SLACK)
        for (; bits < MOST_BITS && unit > c->unit; bits++) unit *= 0.5;
    else if (unit * SLACK < c->unit)
        for (; bits > -MOST_BITS && unit < c->unit; bits--) unit *= 2.0;
    return bits;
}

/* Add steps that bring all units near the first one, while any is far. */
static void add_refinements(Reader *r) {
    Codec *c = r->codec;
    if (r->error) return;
    for (int32_t i = 0, first = c->unit == 0.0; first && i < c->size; i++) {
        double unit = c->units[i] < 0.0 ? -c->units[i] : c->units[i];
        if (c->unit == 0.0 || unit < c->unit) c->unit = unit;
    }
    for (int64_t count = 1; !r->error && count;) {
        count = 0;
        for (int32_t i = 0; i < c->size; i++) count += refinement_of(c, i) != 0;
        if (!count) return;
        Step *s = c->steps + c->n_steps++;
        *s = (Step){.kind = REFINE}; /* an affine map left its words there */
        s->positions = room(r, count, sizeof *s->positions);
        s->bits = room(r, count, sizeof *s->bits);
        for (int32_t i = 0; !r->error && i < c->size; i++) {
            int32_t bits = refinement_of(c, i);
            if (!bits) continue;
            s->positions[s->count] = i;
            s->bits[s->count++] = bits;
            double change = bits > 0 ? 1.0 / (1 << bits) : (double)(1 << -bits);
            c->offsets[i] += 0.5 * c->units[i] * (change - 1.0); /* the cells begin where they did */
            c->units[i] *= change;
        }
        if (c->n_steps > c->most_steps - 2) refuse(r);
    }
}

static void read_step(Reader *r) {
    Codec *c = r->codec;
    int32_t kind = word(r, AFFINE, SCORES);
    if (kind != AFFINE && kind != SCORES) add_refinements(r);
    if (r->error) return;
    Step *s = c->steps + c->n_steps;
    s->kind = kind;
    int32_t table = word(r, 0, c->n_tables - 1);
    s->rows = word(r, 1, MOST_POSITIONS);
    if (r->error || c->lengths[table] % s->rows) {
        refuse(r);
        return;
    }
    s->table = c->tables[table];
    s->n = (int32_t)(c->lengths[table] / s->rows);
    s->blocks = (s->rows + LANES - 1) / LANES;
    if ((int64_t)s->n * LANES > c->most_own) c->most_own = (int64_t)s->n * LANES;
    if (s->kind == AFFINE)
        read_affine(r, s);
    else if (s->kind == TRIANGLES)
        read_triangles(r, s);
    else if (kind == SCORES)
        read_scores(r, s);
    else if (s->n > 1 && kind == COUPLING)
        read_coupling(r, s);
    else if (s->n > 1)
        read_convolution(r, s);
    else
        refuse(r);
    c->n_steps += kind != AFFINE;
    for (int32_t i = 0; !r->error && i < c->size; i++) {
        double unit = c->units[i] < 0.0 ? -c->units[i] : c->units[i];
        double offset = c->offsets[i] < 0.0 ? -c->offsets[i] : c->offsets[i];
        if (!(unit > LEAST_UNIT && unit < MOST_UNIT && offset < MOST_UNIT)) refuse(r);
    }
}

static void read_program(Reader *r) {
    Codec *c = r->codec;
    word(r, FORMAT, FORMAT);
    c->levels = word(r, 2, 1 << 16);
    c->size = word(r, 1, MOST_POSITIONS);
    c->shape.channels = word(r, 1, MOST_POSITIONS);
    c->shape.height = word(r, 1, MOST_POSITIONS);
    c->shape.width = word(r, 1, MOST_POSITIONS);
    c->shape.levels = c->levels;
    c->classes = word(r, 0, 1 << 20);
    if ((__int128)c->shape.channels * c->shape.height * c->shape.width != c->size) refuse(r);
    read_base(r);
    c->units = room(r, c->size, sizeof *c->units);
    c->offsets = room(r, c->size, sizeof *c->offsets);
    for (int32_t i = 0; !r->error && i < c->size; i++) {
        c->units[i] = 1.0 / (double)((int64_t)1 << c->k);
        c->offsets[i] = 0.5 * c->units[i]; /* a number is the middle of its cell */
    }
    read_tables(r);
    int32_t operations = word(r, 0, most_of(r, 3));
    c->most_steps = 8 * operations + 8; /* a unit that is that far off is refused */
    c->steps = room(r, c->most_steps, sizeof *c->steps);
    for (int32_t i = 0; !r->error && i < operations; i++) read_step(r);
    add_refinements(r);
    if (r->words_left || r->numbers_left) refuse(r);
}

#endif
