/* Couplings of integers: one half is scaled and shifted, or mapped by splines, as a net says of the
 * other half. */
#ifndef MIXERFLOW_COUPLING_H
#define MIXERFLOW_COUPLING_H

#include "steps.h"

#define SCALE_BITS 16
#define MOST_SCALE 1073741824.0 /* 2^30 */

/* Scales of raw parameters, in place. */
static void scales_of(const Step *s, int64_t count, float *raw) {
    const float limit = s->limit;
    if (s->map == EXPONENTIAL)
        for (int64_t i = 0; i < count; i++) raw[i] = exp_float(raw[i]);
    else if (s->map == BOUNDED)
        for (int64_t i = 0; i < count; i++) raw[i] = exp_float(limit * tanh_float(raw[i] / limit));
    else
        for (int64_t i = 0; i < count; i++)
            raw[i] = 1.0f + (1.0f - limit) * tanh_float(0.5f * raw[i]);
}

/* What the net of a coupling of images says of all blocks, into w->raws. */
static void convolution_read(const Step *s, int32_t class, Work *w) {
    const int64_t given = (int64_t)s->net.given * LANES, all = (int64_t)s->n * LANES;
    float *x = w->scratch;
    for (int64_t block = 0; block < s->blocks; block++, x += given) {
        const double *units = s->units + block * all, *offsets = s->offsets + block * all;
        gather(s, block, w->n, w->own);
        for (int64_t i = 0; i < given; i++) x[i] = (float)(units[i] * w->own[i] + offsets[i]);
    }
    convolutions_forward(s->maps, w->scratch, class, x, w->raws);
}

/* What the net says of a block, whose integers are w->own: raw parameters. */
static void coupling_raw(const Step *s, int64_t block, int32_t class, Work *w) {
    const int64_t given = (int64_t)s->net.given * LANES, all = (int64_t)s->n * LANES;
    const double *units = s->units + block * all, *offsets = s->offsets + block * all;
    const int64_t count = s->params * (all - given);
    if (s->maps)
        memcpy(w->raw, w->raws + block * count, (size_t)count * sizeof *w->raw);
    else {
        for (int64_t i = 0; i < given; i++) w->x[i] = (float)(units[i] * w->own[i] + offsets[i]);
        net_forward(&s->net, w->x, class, block * LANES, s->rows, w->scratch, w->raw);
    }
}

/* Ranges R of a block, and raw shifts. */
static void coupling_read(const Step *s, int64_t block, int32_t class, Work *w) {
    const int64_t changed = (int64_t)(s->n - s->net.given) * LANES;
    coupling_raw(s, block, class, w);
    scales_of(s, changed, w->raw);
    int bad = 0, clamped = 0;
    for (int64_t i = 0; i < changed; i++) {
        double range = nearest((double)w->raw[i] * (1 << SCALE_BITS));
        bad |= !(range >= 0.0);
        clamped += range < 1.0 || range > MOST_SCALE;
        range = range < 1.0 ? 1.0 : range;
        w->ranges[i] = range > MOST_SCALE ? MOST_SCALE : range;
    }
    w->bad |= bad;
    w->clamped += clamped;
}

/* own += sign rint(shift / unit), and whether all integers are within their bounds. */
static void coupling_shift(const Step *s, int64_t block, double sign, Work *w) {
    const int64_t given = (int64_t)s->net.given * LANES, all = (int64_t)s->n * LANES;
    const double *units = s->units + block * all + given, *offsets = s->offsets + block * all + given;
    const float *shifts = w->raw + (all - given);
    double *own = w->own + given;
    for (int64_t i = 0; i < all - given; i++) {
        double left = offsets[i] - 0.5 * units[i]; /* where the cell 0 begins */
        double shift = left * (w->ranges[i] * (1.0 / (1 << SCALE_BITS))) + (double)shifts[i];
        own[i] += sign * nearest(shift / units[i]);
    }
    w->bad |= !within(own, all - given);
}

/* Count a product of scales, as they are and as they should be. */
static void count_scales(double product, double ideal, Work *w) {
    w->product *= product;
    w->ideal *= ideal;
    if (w->product > 1e-150 && w->product < 1e150 && w->ideal > 1e-150 && w->ideal < 1e150) return;
    w->bits -= log_double(w->product + 1e-300) * BITS_IN_NAT;
    w->ideal_bits -= log_double(w->ideal + 1e-300) * BITS_IN_NAT;
    w->product = w->ideal = 1.0;
}

/* Count what the scales of a block should cost, and do. */
static void coupling_count(const Step *s, int64_t block, Work *w) {
    const int lanes = lanes_of(s, block);
    for (int32_t i = 0; i < s->n - s->net.given; i++) {
        double product = 1.0, ideal = 1.0;
        for (int l = 0; l < lanes; l++) {
            product *= w->ranges[i * LANES + l] * (1.0 / (1 << SCALE_BITS));
            ideal *= (double)w->raw[i * LANES + l];
        }
        count_scales(product, ideal, w);
    }
}

/* A block's splines, one way or the other; a negative unit counts cells from the other side. */
static void spline_block(const Step *s, int64_t block, int32_t class, int inverse, Stack *stack,
                         Work *w) {
    const int lanes = lanes_of(s, block);
    const int32_t given = s->net.given, changed = s->n - given;
    const double *units = s->units + (block * s->n + given) * LANES;
    const double *offsets = s->offsets + (block * s->n + given) * LANES;
    Splines splines = {.bins = s->bins, .tail = s->limit};
    gather(s, block, w->n, w->own);
    coupling_raw(s, block, class, w);
    for (int32_t f = 0; f < changed; f++) {
        const int32_t i = inverse ? changed - 1 - f : f;
        double product = 1.0;
        w->bad |= spline_knots(w->raw + i * LANES, (int64_t)changed * LANES, &splines);
        for (int e = 0; e < lanes && !w->bad; e++) {
            const int l = inverse ? lanes - 1 - e : e, at = i * LANES + l;
            const int turned = units[at] < 0.0;
            const double unit = turned ? -units[at] : units[at];
            const double left = offsets[at] - 0.5 * units[at];
            const Cells cells = spline_cells(&splines, unit, left);
            double *own = w->own + given * LANES + at;
            int64_t n = (int64_t)*own;
            if (turned) n = -1 - n;
            w->bad |= spline_move(&splines, l, &cells, inverse, stack, &n, &product);
            *own = (double)(turned ? -1 - n : n);
        }
        if (!inverse) count_scales(product, product, w);
    }
    w->bad |= !within(w->own + (int64_t)given * LANES, (int64_t)changed * LANES);
    scatter(s, block, w->own, given, w->n);
}

static void coupling_forward(const Step *s, int64_t block, int32_t class, Stack *stack, Work *w) {
    const int lanes = lanes_of(s, block);
    const int64_t given = (int64_t)s->net.given * LANES;
    gather(s, block, w->n, w->own);
    coupling_read(s, block, class, w);
    if (w->bad) return;
    coupling_count(s, block, w);
    Stack local = *stack; /* in registers */
    for (int32_t i = 0; i < s->n - s->net.given; i++)
        for (int l = 0; l < lanes; l++) {
            double *own = w->own + given + i * LANES + l;
            uint32_t range = (uint32_t)w->ranges[i * LANES + l];
            uint32_t r = pop_uniform(&local, range);
            __int128 m = (__int128)(int64_t)*own * range + r;
            push_bits(&local, SCALE_BITS, (uint32_t)m & ((1u << SCALE_BITS) - 1));
            *own = (double)(int64_t)(m >> SCALE_BITS);
        }
    *stack = local;
    w->bad |= !within(w->own + given, (int64_t)s->n * LANES - given);
    coupling_shift(s, block, 1.0, w);
    scatter(s, block, w->own, s->net.given, w->n);
}

static void coupling_inverse(const Step *s, int64_t block, int32_t class, Stack *stack, Work *w) {
    const int lanes = lanes_of(s, block);
    const int64_t given = (int64_t)s->net.given * LANES;
    gather(s, block, w->n, w->own);
    coupling_read(s, block, class, w);
    if (w->bad) return;
    coupling_shift(s, block, -1.0, w);
    if (w->bad) return;
    Stack local = *stack;
    for (int32_t i = s->n - s->net.given; i-- > 0;)
        for (int l = lanes; l-- > 0;) {
            double *own = w->own + given + i * LANES + l;
            uint32_t range = (uint32_t)w->ranges[i * LANES + l];
            uint32_t low = pop_bits(&local, SCALE_BITS);
            int64_t m = (int64_t)*own * (1 << SCALE_BITS) + low;
            int64_t quotient = m / range, r = m % range; /* which truncate */
            if (r < 0) r += range, quotient--;
            push_uniform(&local, range, (uint32_t)r);
            *own = (double)quotient;
        }
    *stack = local;
    w->bad |= !within(w->own + given, (int64_t)s->n * LANES - given);
    scatter(s, block, w->own, s->net.given, w->n);
}

#endif
