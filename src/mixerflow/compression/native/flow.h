/* The flow on integers.
 *
 * The number at a position is ``unit * n + offset``, the middle of a cell of width unit: n is an
 * integer, held by a double, and unit and offset are the same for all images. Affine maps with
 * constants change units and offsets only. Where a unit has become too coarse, m bits are popped, and
 * ``n' = 2^m n + bits``; where it is needlessly fine, the lowest bits of n are pushed: what couplings
 * shrink and constants enlarge again would otherwise end in units as large as the numbers themselves.
 * Unit triangular maps add a rounded sum to n, in an order in which the inverse finds the same
 * numbers to sum. A coupling scales n by R / 2^16 for an integer R near 2^16 exp(s):
 *
 *     pop r of R;  m = R n + r;  n' = floor(m / 2^16);  push m mod 2^16;  n' += rint(shift / unit)
 *
 * which is a bijection of integers and stacks, and costs -log2(R / 2^16) bits.
 *
 * References: Zhang et al., iVPF (2021), arXiv:2103.16211, and iFlow (2021), arXiv:2111.00965; Ho et
 *     al., Compression with flows via local bits-back coding (2019), arXiv:1905.08500.
 */
#ifndef MIXERFLOW_FLOW_H
#define MIXERFLOW_FLOW_H

#include "codec.h"
#include "conv.h"
#include "net.h"
#include "scores.h"
#include "spline.h"
#include "stack.h"

#define SCALE_BITS 16
#define MOST_SCALE 1073741824.0 /* 2^30 */
#define BOUND 35184372088832.0  /* 2^45: integers stay below it */
#define MOST_BITS 16            /* of one refinement of a position */

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

static void refine_forward(const Step *s, Stack *stack, Work *w) {
    for (int64_t i = 0; i < s->count; i++) {
        double *own = w->n + s->positions[i];
        int64_t n = (int64_t)*own, bits = s->bits[i];
        if (bits > 0)
            n = n * ((int64_t)1 << bits) + pop_bits(stack, (int)bits);
        else {
            push_bits(stack, (int)-bits, (uint32_t)n & (((uint32_t)1 << -bits) - 1));
            n >>= -bits;
        }
        *own = (double)n;
    }
    w->bad |= !within(w->n, w->size);
}

static void refine_inverse(const Step *s, Stack *stack, Work *w) {
    for (int64_t i = s->count; i-- > 0;) {
        double *own = w->n + s->positions[i];
        int64_t n = (int64_t)*own, bits = s->bits[i];
        if (bits > 0) {
            push_bits(stack, (int)bits, (uint32_t)n & (((uint32_t)1 << bits) - 1));
            n >>= bits;
        } else
            n = n * ((int64_t)1 << -bits) + pop_bits(stack, (int)-bits);
        *own = (double)n;
    }
    w->bad |= !within(w->n, w->size);
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

/* Rows that are sheared together, so that sums do not wait for each other. */
#define SHEARED (8 / DOUBLES)

enum { FORWARD = 1, INVERSE = -1 };

/* own_i += way rint(sum_j A_ij v_j / (unit_i scale_i)) for `count` rows i from `first`: of L, whose
 * sums go from the first j to the last, or of U, from the last j to the first. Integers that have
 * changed are weighed anew, where later sums want them. */
static inline __attribute__((always_inline)) void shear(const Step *s, const double *units,
                                                        int32_t first, int count, int lower,
                                                        int way, Work *w) {
    const int32_t n = s->n, begin = lower ? 0 : n - 1, end = lower ? first : first + count - 1;
    const int32_t step = lower ? 1 : -1;
    const double *rows = s->packed + (int64_t)first * n;
    DoubleVector sum[SHEARED][DOUBLES] = {0};
    for (int32_t j = begin; j != end; j += step)
        for (int r = 0; r < count; r++)
            for (int k = 0; k < DOUBLES; k++)
                sum[r][k] += rows[r * n + j] * ((const DoubleVector *)(w->v + j * LANES))[k];
    for (int q = 0; q < count; q++) {
        const int r = lower || way == FORWARD ? q : count - 1 - q;
        const int32_t i = first + r;
        const double *unit = units + i * LANES, scale = s->scales[i];
        for (int32_t j = end; j != i; j += step)
            for (int k = 0; k < DOUBLES; k++)
                sum[r][k] += rows[r * n + j] * ((const DoubleVector *)(w->v + j * LANES))[k];
        const double weight = !lower && way == INVERSE ? 1.0 : scale;
        for (int k = 0; k < DOUBLES; k++) {
            const DoubleVector each = ((const DoubleVector *)unit)[k];
            DoubleVector *own = (DoubleVector *)(w->own + i * LANES) + k;
            DoubleVector moved = (sum[r][k] / (each * scale) + MAGIC) - MAGIC;
            *own = way == FORWARD ? *own + moved : *own - moved;
            if (!lower || way == INVERSE)
                ((DoubleVector *)(w->v + i * LANES))[k] = each * weight * *own;
        }
    }
}

/* All rows of a triangle, from the first to the last, or back. */
static inline __attribute__((always_inline)) void shear_all(const Step *s, const double *units,
                                                            int lower, int way, Work *w) {
    const int32_t whole = s->n - s->n % SHEARED;
    const int up = lower || way == FORWARD;
    for (int32_t i = s->n; !up && i-- > whole;) shear(s, units, i, 1, lower, way, w);
    for (int32_t t = 0; t < whole; t += SHEARED)
        shear(s, units, up ? t : whole - SHEARED - t, SHEARED, lower, way, w);
    for (int32_t i = whole; up && i < s->n; i++) shear(s, units, i, 1, lower, way, w);
    w->bad |= !within(w->own, (int64_t)s->n * LANES); /* or what is lost might come back */
}

static void triangles_forward(const Step *s, int64_t block, Work *w) {
    const double *units = s->units + block * s->n * LANES;
    gather(s, block, w->n, w->own);
    for (int64_t i = 0; i < (int64_t)s->n * LANES; i++) w->v[i] = units[i] * w->own[i];
    shear_all(s, units, 0, FORWARD, w);
    shear_all(s, units, 1, FORWARD, w);
    scatter(s, block, w->own, 0, w->n);
}

static void triangles_inverse(const Step *s, int64_t block, Work *w) {
    const double *units = s->units + block * s->n * LANES;
    gather(s, block, w->n, w->own);
    shear_all(s, units, 1, INVERSE, w);
    shear_all(s, units, 0, INVERSE, w);
    scatter(s, block, w->own, 0, w->n);
}

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
    w->bits -= log_double(w->product + 1e-300) * 1.4426950408889634;
    w->ideal_bits -= log_double(w->ideal + 1e-300) * 1.4426950408889634;
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
            double *own = w->own + given * LANES + at;
            int64_t n = (int64_t)*own, in_tail;
            Piece piece;
            if (turned) n = -1 - n;
            if (spline_piece(&splines, l, unit, left, inverse, n, &piece, &in_tail))
                n = in_tail;
            else {
                w->bad |= !holds(&piece);
                if (w->bad) break;
                n = inverse ? piece_inverse(&piece, stack, n) : piece_forward(&piece, stack, n);
                product *= (double)(piece.end - piece.start) / (double)(piece.to - piece.from);
            }
            *own = (double)(turned ? -1 - n : n);
        }
        if (!inverse) count_scales(product, product, w);
    }
    w->bad |= !within(w->own + (int64_t)given * LANES, (int64_t)changed * LANES);
    scatter(s, block, w->own, given, w->n);
}

/* Pixels to scores, or back. */
static void scores_forward(const Step *s, Stack *stack, Work *w) {
    for (int64_t i = 0; i < s->n * s->rows; i++) {
        double *own = w->n + s->table[i];
        int64_t n = (int64_t)*own;
        w->bad |= score_forward(s->scores, stack, (int32_t)(i / s->rows), &n);
        *own = (double)n;
    }
}

static void scores_inverse(const Step *s, Stack *stack, Work *w) {
    for (int64_t i = s->n * s->rows; i-- > 0 && !w->bad;) {
        double *own = w->n + s->table[i];
        int64_t n = (int64_t)*own;
        w->bad |= score_inverse(s->scores, stack, (int32_t)(i / s->rows), &n);
        *own = (double)n;
    }
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
