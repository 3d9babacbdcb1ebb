/* Unit triangular maps of integers: n_i += rint(sum_j A_ij v_j / unit_i), v_j the numbers. */
#ifndef MIXERFLOW_TRIANGLES_H
#define MIXERFLOW_TRIANGLES_H

#include "steps.h"

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

#endif
