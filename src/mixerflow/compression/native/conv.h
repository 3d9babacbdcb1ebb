/* The nets of couplings of images: `mixerflow.nets.ResidualConvNet`.
 *
 * A map of features at all rows (pixels) lies as [block][feature][lane]. A convolution gathers what
 * its taps read at the rows of a block, and is then a product, as those of `net.h`.
 */
#ifndef MIXERFLOW_CONV_H
#define MIXERFLOW_CONV_H

#include "net.h"

typedef struct {
    int32_t taps, depth, given, hidden, squash;
    int64_t rows, blocks;      /* of LANES rows */
    const int32_t *neighbours; /* row that tap t reads at row p: neighbours[t * rows + p] */
    Dense enter, leave;        /* weights (out, taps, in) */
    float *by_class;           /* what classes add to the first layer, or NULL */
    Net *residual;             /* the blocks: linear1 is pointwise, linear2 has taps */
} Convolutions;

/* Floats that `convolutions_forward` works in. */
static int64_t convolutions_scratch(const Convolutions *c) {
    int64_t in = c->given > c->hidden ? c->given : c->hidden;
    return LANES * (2 * (c->blocks + 1) * c->hidden + in * c->taps);
}

/* What the taps read at a block's rows, [tap][feature][lane]; zeros outside of the image. */
static void gather_taps(const Convolutions *c, const float *map, int32_t n, int64_t block,
                        float *read) {
    for (int32_t t = 0; t < c->taps; t++)
        for (int l = 0; l < LANES; l++) {
            int64_t row = block * LANES + l;
            int64_t from = row < c->rows ? c->neighbours[t * c->rows + row] : c->rows;
            float *to = read + (int64_t)t * n * LANES + l;
            if (from == c->rows)
                for (int32_t i = 0; i < n; i++) to[(int64_t)i * LANES] = 0.0f;
            else {
                const float *at = map + from / LANES * n * LANES + from % LANES;
                for (int32_t i = 0; i < n; i++) to[(int64_t)i * LANES] = at[(int64_t)i * LANES];
            }
        }
}

/* Raw parameters [block][leave.out][LANES] of the image whose features are x [block][given][LANES],
 * which become what the net reads. */
static void convolutions_forward(const Convolutions *c, float *x, int32_t class, float *scratch,
                                 float *out) {
    const int64_t hidden = (int64_t)c->hidden * LANES, all = c->blocks * hidden;
    float *h = scratch, *inner = h + all, *a = inner + all, *b = a + hidden, *read = b + hidden;
    if (c->squash)
        for (int64_t i = 0; i < c->blocks * c->given * LANES; i++) x[i] = squash_float(x[i]);
    for (int64_t block = 0; block < c->blocks; block++) {
        float *y = h + block * hidden;
        gather_taps(c, x, c->given, block, read);
        begin(&c->enter, y);
        for (int32_t i = 0; c->by_class && i < c->hidden; i++)
            for (int l = 0; l < LANES; l++)
                y[i * LANES + l] += c->by_class[(int64_t)class * c->hidden + i];
        accumulate(&c->enter, read, y);
    }
    for (int32_t d = 0; d < c->depth; d++) {
        const Net *net = c->residual + d;
        for (int64_t block = 0; block < c->blocks; block++) {
            normalise(net, net->norm1, h + block * hidden, a);
            activate(hidden, a);
            begin(&net->linear1, b);
            accumulate(&net->linear1, a, b);
            normalise(net, net->norm2, b, inner + block * hidden);
            activate(hidden, inner + block * hidden);
        }
        for (int64_t block = 0; block < c->blocks; block++) {
            float *y = h + block * hidden;
            gather_taps(c, inner, c->hidden, block, read);
            for (int32_t i = 0; i < c->hidden; i++)
                for (int l = 0; l < LANES; l++) y[i * LANES + l] += net->linear2.bias[i];
            accumulate(&net->linear2, read, y);
        }
    }
    activate(all, h);
    for (int64_t block = 0; block < c->blocks; block++) {
        float *y = out + block * c->leave.out * LANES;
        gather_taps(c, h, c->hidden, block, read);
        begin(&c->leave, y);
        accumulate(&c->leave, read, y);
    }
}

#endif
