/* Reading operations that are not linear: couplings with their nets, and the scores of pixels. */
#ifndef MIXERFLOW_READ_COUPLINGS_H
#define MIXERFLOW_READ_COUPLINGS_H

#include "read.h"

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

#endif
