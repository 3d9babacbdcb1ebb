/* Rational-quadratic splines as maps of integers: `mixerflow.transforms.RationalQuadratic`.
 *
 * Each bin is cut into PIECES of equal width, which are mapped linearly: the density that is coded
 * is that of the linear pieces, and the difference to the spline's is of second order.
 */
#ifndef MIXERFLOW_SPLINE_H
#define MIXERFLOW_SPLINE_H

#include "maps.h"
#include "net.h"

#define PIECES 32
#define MOST_BINS_OF_SPLINE 64
#define LEAST_SHARE 1e-3
#define STEEPEST 1e4f

/* Knots of LANES splines, [knot][lane]. */
typedef struct {
    double x[(MOST_BINS_OF_SPLINE + 1) * LANES], y[(MOST_BINS_OF_SPLINE + 1) * LANES],
        slope[(MOST_BINS_OF_SPLINE + 1) * LANES];
    int32_t bins;
    double tail;
} Splines;

/* Inner knots on one axis, of raw widths or heights raw[i * stride + lane]. */
static void spline_places(const float *raw, int64_t stride, int32_t bins, double tail, double *to) {
    float top[LANES], sum[LANES] = {0}, part[LANES] = {0};
    memcpy(top, raw, sizeof top);
    for (int32_t i = 1; i < bins; i++)
        for (int l = 0; l < LANES; l++)
            top[l] = raw[i * stride + l] > top[l] ? raw[i * stride + l] : top[l];
    for (int32_t i = 0; i < bins; i++)
        for (int l = 0; l < LANES; l++) sum[l] += exp_float(raw[i * stride + l] - top[l]);
    for (int32_t i = 1; i < bins; i++)
        for (int l = 0; l < LANES; l++) {
            part[l] += exp_float(raw[(i - 1) * stride + l] - top[l]);
            double share = (double)(part[l] / sum[l]), least = (double)i * LEAST_SHARE - 0.5;
            to[i * LANES + l] = (least + (1.0 - bins * LEAST_SHARE) * share) * (2.0 * tail);
        }
    for (int l = 0; l < LANES; l++) {
        to[l] = -tail;
        to[bins * LANES + l] = tail;
    }
}

/* The knots of a feature's splines, whose raw parameters are `stride` floats apart; 1 if NaN. */
static int spline_knots(const float *raw, int64_t stride, Splines *s) {
    const int32_t bins = s->bins;
    spline_places(raw, stride, bins, s->tail, s->x);
    spline_places(raw + bins * stride, stride, bins, s->tail, s->y);
    for (int l = 0; l < LANES; l++) s->slope[l] = s->slope[bins * LANES + l] = 1.0;
    for (int32_t i = 1; i < bins; i++)
        for (int l = 0; l < LANES; l++) {
            float t = raw[(2 * bins + i - 1) * stride + l] * 0.693147182f, size = t < 0.0f ? -t : t;
            float value = (t > 0.0f ? t : 0.0f) + log_float(1.0f + exp_float(-size));
            value = 1e-3f + (1.0f - 1e-3f) * (value * 1.44269502f);
            value = value > STEEPEST ? STEEPEST : value;
            s->slope[i * LANES + l] = (double)value + (double)(t - t); /* NaN stays NaN */
        }
    int bad = 0;
    for (int32_t i = 1; i <= bins; i++)
        for (int l = 0; l < LANES; l++) {
            const int at = i * LANES + l;
            bad |= !(s->x[at] > s->x[at - LANES] && s->y[at] > s->y[at - LANES] && s->slope[at] > 0.0);
        }
    return bad;
}

/* A spline's x and y where piece j of bin b begins. */
static inline void spline_at(const Splines *s, int lane, int32_t b, int32_t j, double *x, double *y) {
    const int at = b * LANES + lane, next = at + LANES;
    if (j == 0) {
        *x = s->x[at];
        *y = s->y[at];
        return;
    }
    double width = s->x[next] - s->x[at], height = s->y[next] - s->y[at], slope = height / width;
    double t = (double)j * (1.0 / PIECES), q = 1.0 - t;
    double below = slope * (1.0 - 2.0 * t * q) + (s->slope[at] + s->slope[next]) * (t * q);
    double bend = t * q * ((s->slope[at] - slope) * q - (s->slope[next] - slope) * t) / below;
    *x = s->x[at] + width * t;
    *y = s->y[at] + height * (t + bend);
}

/* How a spline's cells lie: of width unit > 0, from left before the map and from 0 behind it. */
typedef struct {
    double unit, left;
    int64_t first, last, shift; /* the cells between the tails; what a tail's cells move by */
} Cells;

static inline Cells spline_cells(const Splines *s, double unit, double left) {
    return (Cells){unit, left, cell_from(-s->tail, unit, left), cell_from(s->tail, unit, left),
                   whole(left / unit)};
}

static inline int64_t clamped(int64_t n, int64_t least, int64_t most) {
    return n < least ? least : n > most ? most : n;
}

/* The cells at which a piece begins, before the map and behind it; pieces of all bins are in order,
 * and end where the next one begins. */
static inline void spline_edge(const Splines *s, int lane, const Cells *c, int32_t piece,
                               int64_t *from, int64_t *start) {
    const int32_t all = s->bins * PIECES;
    *from = piece ? c->last : c->first;
    if (piece > 0 && piece < all) {
        double x, y;
        spline_at(s, lane, piece / PIECES, piece % PIECES, &x, &y);
        *from = clamped(cell_from(x, c->unit, c->left), c->first, c->last);
        *start = clamped(whole(y / c->unit), c->first + c->shift, c->last + c->shift);
    } else
        *start = *from + c->shift;
}

/* The piece that holds cell n before the map, or behind it; 1 if n lies in a tail. */
static int spline_piece(const Splines *s, int lane, const Cells *c, int behind, int64_t n,
                        Piece *piece) {
    const int64_t place = behind ? n - c->shift : n;
    if (place < c->first || place >= c->last) return 1;
    int32_t low = 0, high = s->bins * PIECES;
    int64_t edge[2];
    while (high - low > 1) {
        int32_t middle = (low + high) / 2;
        spline_edge(s, lane, c, middle, edge, edge + 1);
        if (n >= edge[behind])
            low = middle;
        else
            high = middle;
    }
    spline_edge(s, lane, c, low, &piece->from, &piece->start);
    spline_edge(s, lane, c, low + 1, &piece->to, &piece->end);
    return 0;
}

/* Map a cell, one way or the other, and multiply `scale` by what that scales; 1 if it has no image
 * that leads back to it. */
static int spline_move(const Splines *s, int lane, const Cells *c, int inverse, Stack *stack,
                       int64_t *n, double *scale) {
    Piece piece, back;
    if (spline_piece(s, lane, c, inverse, *n, &piece)) {
        *n += inverse ? -c->shift : c->shift;
        return 0;
    }
    if (!holds(&piece)) return 1;
    *n = inverse ? piece_inverse(&piece, stack, *n) : piece_forward(&piece, stack, *n);
    *scale *= (double)(piece.end - piece.start) / (double)(piece.to - piece.from);
    return spline_piece(s, lane, c, !inverse, *n, &back) || memcmp(&piece, &back, sizeof piece);
}

#endif
