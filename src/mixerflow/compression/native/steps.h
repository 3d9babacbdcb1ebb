/* What all operations of the flow work with: steps, a thread's memory, rows of an image. */
#ifndef MIXERFLOW_STEPS_H
#define MIXERFLOW_STEPS_H

#include "codec.h"
#include "conv.h"
#include "net.h"
#include "scores.h"
#include "spline.h"
#include "stack.h"

#define BOUND 35184372088832.0 /* 2^45: integers stay below it */
#define MOST_BITS 16           /* of one refinement of a position */

enum { REFINE, AFFINE, TRIANGLES, COUPLING, CONVOLUTION, SCORES };
enum { EXPONENTIAL, BOUNDED, FLOORED, SPLINE };

/* Rows are worked on in blocks of LANES; arrays by block are [block][feature][lane]. */
typedef struct {
    int32_t kind, n, map;
    int32_t bins, params; /* of a spline; raw parameters of a changed feature */
    int64_t rows, blocks;
    const int32_t *table; /* position of feature i of row p: table[i * rows + p] */
    double *units;        /* by block, as the operation finds them; 1 in lanes without a row */
    double *offsets;      /* by block, of the changed features of a coupling */
    double *packed;       /* L below, and U / U_ii above the diagonal (n, n) */
    double *scales;       /* U_ii (n) */
    int64_t count;        /* of a refinement: positions, and bits popped there, or pushed if < 0 */
    int32_t *positions, *bits;
    float limit;
    Net net;
    const Scores *scores;
    const Convolutions *maps; /* the net of a coupling of images, of which `net` has `given` only */
} Step;

/* What one thread works with. */
typedef struct {
    double *n;        /* the image (size) */
    int64_t size;
    double *own, *v;  /* a block's integers and their values, features by lanes */
    double *ranges;   /* R of a block's changed features, features by lanes */
    float *x, *raw, *scratch;
    float *raws; /* raw parameters of all blocks of a coupling of images */
    double product, ideal; /* of R / 2^16, and of the scales before rounding */
    double bits, ideal_bits;
    int64_t clamped;
    int dry; /* whether the last image wanted more bits than there were */
    int bad; /* 1 once a number left its bounds */
} Work;

/* Whether each integer lies within its bounds; false for what is none. */
static int within(const double *own, int64_t count) {
    int outside = 0;
    for (int64_t i = 0; i < count; i++) {
        double size = own[i] < 0.0 ? -own[i] : own[i];
        outside |= !(size < BOUND);
    }
    return !outside;
}

static inline int lanes_of(const Step *s, int64_t block) {
    int64_t left = s->rows - block * LANES;
    return left < LANES ? (int)left : LANES;
}

static void gather(const Step *s, int64_t block, const double *image, double *own) {
    const int lanes = lanes_of(s, block);
    for (int32_t i = 0; i < s->n; i++) {
        const int32_t *table = s->table + i * s->rows + block * LANES;
        for (int l = 0; l < lanes; l++) own[i * LANES + l] = image[table[l]];
        for (int l = lanes; l < LANES; l++) own[i * LANES + l] = 0.0;
    }
}

static void scatter(const Step *s, int64_t block, const double *own, int32_t first, double *image) {
    const int lanes = lanes_of(s, block);
    for (int32_t i = first; i < s->n; i++) {
        const int32_t *table = s->table + i * s->rows + block * LANES;
        for (int l = 0; l < lanes; l++) image[table[l]] = own[i * LANES + l];
    }
}

#endif
