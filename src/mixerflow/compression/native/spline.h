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
    if (j == 0 || j == PIECES) {
        *x = s->x[j ? next : at];
        *y = s->y[j ? next : at];
        return;
    }
    double width = s->x[next] - s->x[at], height = s->y[next] - s->y[at], slope = height / width;
    double t = (double)j * (1.0 / PIECES), q = 1.0 - t;
    double below = slope * (1.0 - 2.0 * t * q) + (s->slope[at] + s->slope[next]) * (t * q);
    double bend = t * q * ((s->slope[at] - slope) * q - (s->slope[next] - slope) * t) / below;
    *x = s->x[at] + width * t;
    *y = s->y[at] + height * (t + bend);
}

/* The piece that holds integer n before the map, or behind it (`behind`); 1 for none, and in
 * `*moved` what n becomes, where it lies in a tail. Cells are of width unit > 0; before the map they
 * begin at left, behind it at 0. */
static int spline_piece(const Splines *s, int lane, double unit, double left, int behind, int64_t n,
                        Piece *piece, int64_t *moved) {
    const int32_t bins = s->bins;
    const int64_t shift = whole(left / unit);
    const int64_t first = cell_from(-s->tail, unit, left), last = cell_from(s->tail, unit, left);
    const int64_t place = behind ? n - shift : n;
    *moved = behind ? n - shift : n + shift;
    if (place < first || place >= last) return 1;
    const double value = behind ? unit * (double)n : unit * (double)n + left;
    const double *knots = behind ? s->y : s->x;
    int32_t low = 0, high = bins * PIECES, index; /* pieces of all bins, in order */
    for (index = 0; index + 1 < bins && knots[(index + 1) * LANES + lane] <= value; index++) {}
    low = index ? (index - 1) * PIECES : 0; /* rounding may have moved n into the next bin */
    high = index + 2 < bins ? (index + 2) * PIECES : bins * PIECES;
    while (high - low > 1) {
        int32_t middle = (low + high) / 2;
        double x, y;
        spline_at(s, lane, middle / PIECES, middle % PIECES, &x, &y);
        if (n >= (behind ? whole(y / unit) : cell_from(x, unit, left)))
            low = middle;
        else
            high = middle;
    }
    double x, y;
    spline_at(s, lane, low / PIECES, low % PIECES, &x, &y);
    piece->from = low ? cell_from(x, unit, left) : first;
    piece->start = low ? whole(y / unit) : first + shift;
    low++;
    spline_at(s, lane, (low - 1) / PIECES, (low - 1) % PIECES + 1, &x, &y);
    piece->to = low < bins * PIECES ? cell_from(x, unit, left) : last;
    piece->end = low < bins * PIECES ? whole(y / unit) : last + shift;
    return 0;
}

#endif
