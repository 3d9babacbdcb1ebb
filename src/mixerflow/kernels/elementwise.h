/* The elementwise maps of a coupling. Each has three functions of a row's changed numbers, padded with
   zeros to `cp`, so that they compute whole vectors:

   NAME_forward   x to z and the log-derivatives `slope`; the first `kept` blocks of raw become what
                  the backward pass reads. Where many raw parameters make `kept` 0, it reads raw
                  itself, which a product makes again faster than memory could give it
   NAME_inverse   z to x; `slope` is that of the forward map
   NAME_backward  from what was kept and x: d, the gradients of z, becomes that of x; the gradients of
                  raw; g is the gradient of each log-derivative

   Raw parameters lie in `params` blocks of `cp` numbers. Padded parameters are 0, and padded numbers'
   log-derivatives do not count. The equations are those of transforms/elementwise.py, spline.py and
   logistic.py. */

/* In the order of MAPS in plan.py. */
enum { AFFINE, FLOORED, LOGISTIC, SPLINE };

/* tanh(v) = 1 - 2 / (exp(2 v) + 1) */
INLINE real tanh_(real v) { return 1 - 2 / (exp_(2 * v) + 1); }

/* ---- affine: z = x exp(s) + t; s = limit tanh(raw / limit) where there is a limit ---- */

static void affine_bound(const Flow *f, int cp, real *s) {
    real bound = (real)f->limit;
    if (!(bound > 0)) return;
#pragma omp simd
    for (int j = 0; j < cp; j++) s[j] = bound * tanh_(s[j] / bound);
}

static void affine_forward(const Flow *f, int cp, real *raw, const real *x, real *z, real *slope) {
    const real *t = raw + cp;
    affine_bound(f, cp, raw);
#pragma omp simd
    for (int j = 0; j < cp; j++) {
        slope[j] = raw[j];
        z[j] = x[j] * exp_(raw[j]) + t[j];
    }
}

static void affine_inverse(const Flow *f, int cp, real *raw, const real *z, real *x, real *slope) {
    const real *t = raw + cp;
    affine_bound(f, cp, raw);
#pragma omp simd
    for (int j = 0; j < cp; j++) {
        slope[j] = raw[j];
        x[j] = (z[j] - t[j]) * exp_(-raw[j]);
    }
}

static void affine_backward(const Flow *f, int cp, const real *s, const real *x, real *d, real g,
                            real *draw) {
    real *ds = draw, *dt = draw + cp, over = f->limit > 0 ? (real)(1 / (f->limit * f->limit)) : 0;
#pragma omp simd
    for (int j = 0; j < cp; j++) {
        real e = exp_(s[j]);
        ds[j] = (d[j] * x[j] * e + g) * (1 - s[j] * s[j] * over);
        dt[j] = d[j];
        d[j] *= e;
    }
}

/* ---- floored: z = x (1 + u) + t, u = (1 - limit) tanh(s / 2) ---- */

static void floored_forward(const Flow *f, int cp, real *raw, const real *x, real *z, real *slope) {
    const real *t = raw + cp;
    real most = (real)(1 - f->limit);
#pragma omp simd
    for (int j = 0; j < cp; j++) {
        real u = most * tanh_(raw[j] / 2);
        raw[j] = u;
        slope[j] = log1p_(u);
        z[j] = x[j] * (1 + u) + t[j];
    }
}

static void floored_inverse(const Flow *f, int cp, real *raw, const real *z, real *x, real *slope) {
    const real *t = raw + cp;
    real most = (real)(1 - f->limit);
#pragma omp simd
    for (int j = 0; j < cp; j++) {
        real u = most * tanh_(raw[j] / 2);
        slope[j] = log1p_(u);
        x[j] = (z[j] - t[j]) / (1 + u);
    }
}

static void floored_backward(const Flow *f, int cp, const real *u, const real *x, real *d, real g,
                             real *draw) {
    real *ds = draw, *dt = draw + cp, most = (real)(1 - f->limit), over = 1 / (2 * most);
#pragma omp simd
    for (int j = 0; j < cp; j++) { /* du/ds = (most - u^2 / most) / 2 */
        real scale = 1 + u[j];
        ds[j] = (d[j] * x[j] + g / scale) * (most - u[j]) * (most + u[j]) * over;
        dt[j] = d[j];
        d[j] *= scale;
    }
}

/* ---- whichever it is ---- */

#include "mixture.h"
#include "spline.h"

#define EACH_MAP(direction, ...) \
    switch (f->map) { \
        case AFFINE: affine_##direction(__VA_ARGS__); break; \
        case FLOORED: floored_##direction(__VA_ARGS__); break; \
        case LOGISTIC: logistic_##direction(__VA_ARGS__); break; \
        case SPLINE: spline_##direction(__VA_ARGS__); break; \
    }

static real counted(int c, const real *slope) {
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < c; j++) sum += slope[j];
    return sum;
}

/* z = (y_a, map(y_b; raw)), log_det += the log-derivatives; raw becomes what is kept */
static void couple(const Flow *f, const Ready *q, int rows, const real *y, real *raw, real *z,
                   real *log_det) {
    int np = (int)padded(f->n), cp = q->cp;
    real x[cp], out[cp], slope[cp];
    for (int r = 0; r < rows; r++) {
        const real *from = y + (long)r * np;
        real *to = z + (long)r * np;
        copy_padded(x, from + q->b, q->changed, cp);
        EACH_MAP(forward, f, cp, raw + (long)r * q->wide, x, out, slope)
        for (int j = 0; j < q->given; j++) to[q->a + j] = from[q->a + j];
        for (int j = 0; j < q->changed; j++) to[q->b + j] = out[j];
        log_det[r] += counted(q->changed, slope);
    }
}

/* The inverse of `couple`, in place; raw is used up. */
static void uncouple(const Flow *f, const Ready *q, int rows, real *z, real *raw, real *log_det) {
    int np = (int)padded(f->n), cp = q->cp;
    real in[cp], out[cp], slope[cp];
    for (int r = 0; r < rows; r++) {
        real *at = z + (long)r * np + q->b;
        copy_padded(in, at, q->changed, cp);
        EACH_MAP(inverse, f, cp, raw + (long)r * q->wide, in, out, slope)
        for (int j = 0; j < q->changed; j++) at[j] = out[j];
        log_det[r] -= counted(q->changed, slope);
    }
}

/* Back through the map: draw from dz (which becomes dy), for a tile. */
static void couple_backward(const Flow *f, const Ready *q, int rows, real *dz, const real *y,
                            const real *kept, const real *g, real *draw) {
    int np = (int)padded(f->n), c = q->changed, cp = q->cp;
    long stride = f->kept ? f->kept * cp : q->wide;
    real x[cp], d[cp];
    for (int r = 0; r < rows; r++) {
        real *at = dz + (long)r * np + q->b, *to = draw + (long)r * q->wide;
        copy_padded(x, y + (long)r * np + q->b, c, cp);
        copy_padded(d, at, c, cp);
        EACH_MAP(backward, f, cp, kept + (long)r * stride, x, d, g[r], to)
        for (int j = 0; j < c; j++) at[j] = d[j];
        for (int k = 0; k < f->params; k++)
            for (int j = c; j < cp; j++) to[k * cp + j] = 0;
    }
}
