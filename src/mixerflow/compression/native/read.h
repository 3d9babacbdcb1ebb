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

static void read_dense(Reader *r, Dense *d, int32_t out, int32_t in) {
    d->out = out;
    d->in = in;
    d->weight = floats(r, (int64_t)out * in);
    d->bias = floats(r, out);
}

/* The limits of a coupling, which must suit its map. */
static void read_limits(Reader *r, Step *s, float *epsilon) {
    const double *settings = numbers(r, 2);
    if (r->error) return;
    s->limit = (float)settings[0];
    *epsilon = (float)settings[1];
    if ((s->map == BOUNDED && !(s->limit > 0.0f && s->limit <= 80.0f)) ||
        (s->map == SPLINE && !(s->limit > 0.0f && s->limit <= 1024.0f)) ||
        (s->map == FLOORED && !(s->limit > 0.0f && s->limit < 1.0f)) || !(*epsilon >= 0.0f))
        refuse(r);
}

/* The two norms and maps of a residual block, the second of `taps` inputs for each. */
static void read_block(Reader *r, Net *net, int32_t taps) {
    const int32_t hidden = net->hidden;
    const int norms = net->norm == SCALE ? 1 : net->norm == LAYER ? 2 : 0;
    if (norms > 0) net->norm1 = floats(r, 2 * (int64_t)hidden);
    read_dense(r, &net->linear1, hidden, hidden);
    if (norms > 1) net->norm2 = floats(r, 2 * (int64_t)hidden);
    read_dense(r, &net->linear2, hidden, taps * hidden);
}

/* Units and room of a coupling; the cells of what it changes begin at 0 behind it. */
static void place_coupling(Reader *r, Step *s, int64_t scratch) {
    Codec *c = r->codec;
    int64_t raw = s->params * (int64_t)(s->n - s->net.given) * LANES;
    place(r, s);
    for (int32_t i = s->net.given; !r->error && i < s->n; i++)
        for (int64_t p = 0; p < s->rows; p++) {
            int32_t at = s->table[i * s->rows + p];
            c->offsets[at] = 0.5 * c->units[at];
        }
    if (scratch > c->most_scratch) c->most_scratch = scratch;
    if (raw > c->most_raw) c->most_raw = raw;
    if (s->maps && raw * s->blocks > c->most_raws) c->most_raws = raw * s->blocks;
}

/* The map of a coupling, and how many raw parameters a changed feature has. */
static void read_map(Reader *r, Step *s) {
    s->map = word(r, EXPONENTIAL, SPLINE);
    if (s->map == SPLINE) s->bins = word(r, 2, MOST_BINS_OF_SPLINE);
    s->params = s->map == SPLINE ? 3 * s->bins - 1 : 2;
}

static void read_coupling(Reader *r, Step *s) {
    Codec *c = r->codec;
    Net *net = &s->net;
    net->given = word(r, 1, s->n - 1);
    read_map(r, s);
    const int32_t hidden = net->hidden = word(r, 1, MOST_HIDDEN);
    net->squash = word(r, 0, 1);
    net->squares = word(r, 0, 1);
    net->norm = word(r, NO_NORM, RMS);
    int by_class = word(r, 0, c->classes ? 1 : 0), by_row = word(r, 0, 1);
    read_limits(r, s, &net->epsilon);
    const int32_t reads = net->given * (net->squares ? 2 : 1), changed = s->n - net->given;
    read_dense(r, &net->enter, hidden, reads);
    if (by_class) net->by_class = floats(r, (int64_t)c->classes * hidden);
    if (by_row) net->by_row = floats(r, s->rows * hidden);
    read_block(r, net, 1);
    read_dense(r, &net->leave, s->params * changed, hidden);
    place_coupling(r, s, ((int64_t)reads + 3 * (int64_t)hidden) * LANES);
}

static void read_convolution(Reader *r, Step *s) {
    Codec *c = r->codec;
    Convolutions *maps = room(r, 1, sizeof *maps);
    if (!maps) return;
    s->maps = maps;
    maps->given = s->net.given = word(r, 1, s->n - 1);
    read_map(r, s);
    const int32_t hidden = maps->hidden = word(r, 1, MOST_HIDDEN);
    maps->squash = word(r, 0, 1);
    const int32_t norm = word(r, NO_NORM, RMS), by_class = word(r, 0, c->classes ? 1 : 0);
    maps->depth = word(r, 1, MOST_DEPTH);
    const int32_t taps = maps->taps = word(r, 1, MOST_TAPS);
    maps->rows = s->rows;
    maps->blocks = s->blocks;
    if (taps * s->rows > r->words_left || (int64_t)taps * maps->given > INT32_MAX) {
        refuse(r);
        return;
    }
    int32_t *neighbours = room(r, taps * s->rows, sizeof *neighbours);
    for (int64_t i = 0; !r->error && i < taps * s->rows; i++)
        neighbours[i] = word(r, 0, (int32_t)s->rows);
    maps->neighbours = neighbours;
    float epsilon = 0.0f;
    read_limits(r, s, &epsilon);
    read_dense(r, &maps->enter, hidden, taps * maps->given);
    if (by_class) maps->by_class = floats(r, (int64_t)c->classes * hidden);
    maps->residual = room(r, maps->depth, sizeof *maps->residual);
    for (int32_t d = 0; !r->error && d < maps->depth; d++) {
        Net *net = maps->residual + d;
        net->hidden = hidden;
        net->norm = norm;
        net->epsilon = epsilon;
        read_block(r, net, taps);
    }
    read_dense(r, &maps->leave, s->params * (s->n - maps->given), taps * hidden);
    place_coupling(r, s, s->blocks * maps->given * LANES + convolutions_scratch(maps));
}

/* Tables of the scores of one channel. */
static void fill_scores(Scores *t, int32_t channel) {
    const int64_t at = (int64_t)channel * t->levels;
    double sum = 0.0;
    for (int32_t i = 0; i < t->levels; i++) {
        t->below[at + i] = sum;
        sum += t->shares[at + i];
    }
    sum = 0.0;
    for (int32_t i = t->levels; i-- > 0;) {
        t->above[at + i] = sum;
        sum += t->shares[at + i];
    }
    int64_t *edges = t->edges + (int64_t)channel * (t->levels + 1);
    for (int32_t i = 0; i < t->levels; i++) edges[i] = score_at(t, channel, i, 0);
    edges[t->levels] = score_at(t, channel, t->levels - 1, (int64_t)1 << t->k);
}

/* Whether the pieces of a channel follow each other, as the search for one takes for granted. */
static int scores_ordered(const Scores *t, int32_t channel) {
    const int64_t *edges = t->edges + (int64_t)channel * (t->levels + 1);
    const int32_t pieces = pieces_of(t);
    int64_t last = edges[0];
    for (int32_t level = 0; level < t->levels; level++)
        for (int32_t i = 1; i <= pieces; i++) {
            int64_t at = i < pieces ? score_at(t, channel, level, piece_from(t, i)) : edges[level + 1];
            if (at < last) return 0;
            last = at;
        }
    return 1;
}

static void read_scores(Reader *r, Step *s) {
    Codec *c = r->codec;
    const int64_t count = (int64_t)s->n * c->levels;
    Scores *t = room(r, 1, sizeof *t);
    if (c->n_steps || c->unit != 0.0 || s->n * s->rows != c->size || !t) refuse(r);
    if (r->error) return;
    s->scores = t;
    s->blocks = 0;
    t->channels = s->n;
    t->levels = c->levels;
    t->k = c->k;
    t->shares = doubles(r, count);
    t->below = room(r, count, sizeof *t->below);
    t->above = room(r, count, sizeof *t->above);
    t->edges = room(r, count + s->n, sizeof *t->edges);
    double least = 1.0;
    for (int64_t i = 0; !r->error && i < count; i++) {
        if (!(t->shares[i] > 1e-9 && t->shares[i] <= 1.0)) refuse(r);
        if (t->shares[i] < least) least = t->shares[i];
    }
    for (int32_t i = 0; i < c->size; i++)
        if (c->units[i] != 1.0 / (double)((int64_t)1 << c->k)) refuse(r);
    c->unit = 1.0 / (double)((int64_t)1 << (c->k + SCORE_BITS));
    t->fine = c->unit;
    /* a quarter of the least slope, least / 0.4, times a pixel's cell */
    const double wanted = 0.6 * least / (double)((int64_t)1 << c->k);
    for (; t->spare < MOST_BITS && t->fine > wanted; t->spare++) t->fine *= 0.5;
    for (int32_t i = 0; !r->error && i < s->n; i++) {
        fill_scores(t, i);
        if (!scores_ordered(t, i)) refuse(r);
    }
    for (int32_t i = 0; !r->error && i < c->size; i++) {
        c->units[i] = c->unit;
        c->offsets[i] = 0.5 * c->unit;
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
