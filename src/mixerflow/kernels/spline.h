/* The rational-quadratic spline as an elementwise map, see elementwise.h. One vector of numbers goes
   through at a time. In a bin of width w and height h, with s = h / w, t = (x - x0) / w, q = 1 - t:

   z = y0 + h N / D,  N = s t^2 + d0 t q,  D = s + (d0 + d1 - 2 s) t q
   log z' = 2 log s + log T - 2 log D,  T = d1 t^2 + 2 s t q + d0 q^2 */

enum { MOST_BINS = 64 };

#define LEAST_SHARE 1e-3
#define STEEPEST 1e4
#define LN2 0.69314718055994530942

typedef struct {
    Lane width[MOST_BINS], height[MOST_BINS]; /* shares of the interval, in which all bins have a least one */
    Lane x[MOST_BINS + 1], y[MOST_BINS + 1], d[MOST_BINS + 1]; /* knots */
    Lane x0, y0, w, h, d0, d1;                                 /* of each number's bin */
} Spline;

/* Shares of K bins, and from them the knots' places. */
static void read_places(int K, int cp, real tail, const real *raw, Lane *share, Lane *place) {
    Lane largest, sum;
    for (int k = 0; k < K; k++)
#pragma omp simd
        for (int j = 0; j < VL; j++) largest[j] = k ? most(largest[j], raw[k * cp + j]) : raw[j];
    for (int j = 0; j < VL; j++) sum[j] = 0;
    for (int k = 0; k < K; k++)
#pragma omp simd
        for (int j = 0; j < VL; j++) {
            real e = falling_(raw[k * cp + j] - largest[j]);
            share[k][j] = e;
            sum[j] += e;
        }
    for (int j = 0; j < VL; j++) sum[j] = 1 / sum[j], place[0][j] = -tail, place[K][j] = tail;
    Lane so_far;
    for (int j = 0; j < VL; j++) so_far[j] = 0;
    for (int k = 0; k < K; k++) {
        real start = (real)((k + 1) * LEAST_SHARE - 0.5), left = (real)(1 - K * LEAST_SHARE);
        for (int j = 0; j < VL; j++) share[k][j] *= sum[j], so_far[j] += share[k][j];
        for (int j = 0; k + 1 < K && j < VL; j++)
            place[k + 1][j] = (start + left * so_far[j]) * (2 * tail);
    }
}

/* log2(1 + 2^v) */
INLINE real softplus_(real v) {
    real scaled = (real)LN2 * v, small = log1p_(falling_(scaled < 0 ? scaled : -scaled));
    return (most(scaled, 0) + small) * (real)(1 / LN2);
}

static void read_spline(const Flow *f, int cp, const real *raw, Spline *s) {
    int K = (int)f->count;
    real tail = (real)f->limit;
    read_places(K, cp, tail, raw, s->width, s->x);
    read_places(K, cp, tail, raw + K * cp, s->height, s->y);
    for (int j = 0; j < VL; j++) s->d[0][j] = s->d[K][j] = 1;
    for (int k = 1; k < K; k++)
#pragma omp simd
        for (int j = 0; j < VL; j++) {
            real slope = (real)LEAST_SHARE + (real)(1 - LEAST_SHARE) * softplus_(raw[(2 * K + k - 1) * cp + j]);
            s->d[k][j] = slope > (real)STEEPEST ? (real)STEEPEST : slope;
        }
}

/* The bin of each number, found by the knots' places x or y. */
static void find_bins(int K, const Lane *place, const real *number, Spline *s) {
    Lane x1, y1;
    for (int k = 0; k < K; k++)
#pragma omp simd
        for (int j = 0; j < VL; j++) {
            int here = k == 0 || number[j] >= place[k][j];
            s->x0[j] = here ? s->x[k][j] : s->x0[j], x1[j] = here ? s->x[k + 1][j] : x1[j];
            s->y0[j] = here ? s->y[k][j] : s->y0[j], y1[j] = here ? s->y[k + 1][j] : y1[j];
            s->d0[j] = here ? s->d[k][j] : s->d0[j], s->d1[j] = here ? s->d[k + 1][j] : s->d1[j];
        }
    for (int j = 0; j < VL; j++) s->w[j] = x1[j] - s->x0[j], s->h[j] = y1[j] - s->y0[j];
}

INLINE int inside(real x, real tail) { return (x < 0 ? -x : x) < tail; }

INLINE real clipped(real x, real low, real high) { x = x < low ? low : x; return x > high ? high : x; }

/* log z'; NaN of NaN */
INLINE real log_steep(real t, real q, real s, real d0, real d1) {
    real tq = t * q, D = s + (d0 + d1 - 2 * s) * tq, T = (d1 * t + s * q) * t + (s * t + d0 * q) * q;
    real ratio = s / D;
    return log_(ratio * ratio * T);
}

static void spline_forward(const Flow *f, int cp, real *raw, const real *x, real *z, real *slope) {
    real tail = (real)f->limit;
    Spline p;
    Lane at;
    for (int i = 0; i < cp; i += VL) {
        read_spline(f, cp, raw + i, &p);
        for (int j = 0; j < VL; j++) at[j] = clipped(x[i + j], -tail, tail);
        find_bins((int)f->count, p.x, at, &p);
#pragma omp simd
        for (int j = 0; j < VL; j++) {
            real w = p.w[j], h = p.h[j], s = h / w, d0 = p.d0[j], d1 = p.d1[j];
            real t = clipped((at[j] - p.x0[j]) / w, 0, 1), q = 1 - t, D = s + (d0 + d1 - 2 * s) * t * q;
            real bend = t * q * ((d0 - s) * q - (d1 - s) * t) / D;
            real added = (p.y0[j] - p.x0[j]) + (h - w) * t + h * bend, steep = log_steep(t, q, s, d0, d1);
            int in = inside(x[i + j], tail);
            z[i + j] = x[i + j] + (in ? added : 0);
            slope[i + j] = in ? steep : 0;
        }
    }
}

/* As `inverse` in transforms/spline.py: sums of positive terms only. */
static void spline_inverse(const Flow *f, int cp, real *raw, const real *z, real *x, real *slope) {
    real tail = (real)f->limit;
    Spline p;
    Lane at;
    for (int i = 0; i < cp; i += VL) {
        read_spline(f, cp, raw + i, &p);
        for (int j = 0; j < VL; j++) at[j] = clipped(z[i + j], -tail, tail);
        find_bins((int)f->count, p.y, at, &p);
#pragma omp simd
        for (int j = 0; j < VL; j++) {
            real w = p.w[j], h = p.h[j], s = h / w, d0 = p.d0[j], d1 = p.d1[j];
            real v = clipped((at[j] - p.y0[j]) / h, 0, 1), u = 1 - v;
            real a = 2 * s * v, b = 2 * s * u, g = d0 * u - d1 * v;
            real large = __builtin_sqrt(g * g + a * b) + (g < 0 ? -g : g), small = a * b / large;
            real plus = g < 0 ? small : large, minus = g < 0 ? large : small, t = a / (a + plus);
            real bend = 2 * a * u * ((s - d0) * u - (s - d1) * v) / ((a + plus) * (b + minus));
            real added = (p.x0[j] - p.y0[j]) + (w - h) * v + w * bend;
            real steep = log_steep(t, 1 - t, s, d0, d1);
            int in = inside(z[i + j], tail);
            x[i + j] = z[i + j] + (in ? added : 0);
            slope[i + j] = in ? steep : 0;
        }
    }
}

typedef struct { Lane x0, x1, y0, y1, d0, d1; } BinGradients;

/* From d and g to dx, and to the gradients of the bins' knots. */
static void bin_backward(const Spline *p, real tail, const real *x, const real *at, real *d, real g,
                         BinGradients *to) {
#pragma omp simd
    for (int j = 0; j < VL; j++) {
        real w = p->w[j], h = p->h[j], s = h / w, d0 = p->d0[j], d1 = p->d1[j], over = 1 / w;
        real t = clipped((at[j] - p->x0[j]) * over, 0, 1), q = 1 - t, tq = t * q, flat = 1 - 2 * tq;
        real D = s + (d0 + d1 - 2 * s) * tq, T = (d1 * t + s * q) * t + (s * t + d0 * q) * q;
        real by = 1 / D, per = 1 / T, R = (s * t * t + d0 * tq) * by, dz = d[j] * h;
        real T_t = 2 * (d1 * t + s * (1 - 2 * t) - d0 * q), D_t = (d0 + d1 - 2 * s) * (1 - 2 * t);
        real dt = dz * s * T * by * by + g * (T_t * per - 2 * D_t * by);
        real ds = dz * (t * t - R * flat) * by + g * (2 / s + 2 * tq * per - 2 * flat * by);
        real dd0 = dz * tq * (1 - R) * by + g * (q * q * per - 2 * tq * by);
        real dd1 = -dz * R * tq * by + g * (t * t * per - 2 * tq * by);
        real dh = d[j] * R + ds * over, dw = -(ds * s + dt * t) * over;
        int in = inside(x[j], tail);
        to->x1[j] = in ? dw : 0, to->x0[j] = in ? -dw - dt * over : 0;
        to->y1[j] = in ? dh : 0, to->y0[j] = in ? d[j] - dh : 0;
        to->d0[j] = in ? dd0 : 0, to->d1[j] = in ? dd1 : 0;
        d[j] = in ? dt * over : d[j];
    }
}

/* Gradients of the knots' places to those of the shares' raw numbers. A place is a sum of shares. */
static void places_backward(int K, int cp, real tail, const Lane *share, Lane *dplace, real *draw) {
    real by = (real)(2 * tail * (1 - K * LEAST_SHARE));
    Lane mean;
    for (int j = 0; j < VL; j++) dplace[K][j] = mean[j] = 0; /* the last knot stays at the tail */
    for (int k = K - 1; k > 0; k--)
        for (int j = 0; j < VL; j++) dplace[k][j] = by * dplace[k][j] + dplace[k + 1][j];
    for (int k = 0; k < K; k++) /* dplace[k + 1] is now the gradient of share k */
        for (int j = 0; j < VL; j++) mean[j] += share[k][j] * dplace[k + 1][j];
    for (int k = 0; k < K; k++)
        for (int j = 0; j < VL; j++) draw[k * cp + j] = share[k][j] * (dplace[k + 1][j] - mean[j]);
}

static void spline_backward(const Flow *f, int cp, const real *raw, const real *x, real *d, real g,
                            real *draw) {
    int K = (int)f->count;
    real tail = (real)f->limit;
    Spline p;
    BinGradients own;
    Lane at, dx[MOST_BINS + 1], dy[MOST_BINS + 1];
    for (int i = 0; i < cp; i += VL) {
        read_spline(f, cp, raw + i, &p);
        for (int j = 0; j < VL; j++) at[j] = clipped(x[i + j], -tail, tail);
        find_bins(K, p.x, at, &p);
        bin_backward(&p, tail, x + i, at, d + i, g, &own);
        for (int k = 1; k < K; k++) {
            const real *v = raw + (2 * K + k - 1) * cp + i;
            real *dv = draw + (2 * K + k - 1) * cp + i;
#pragma omp simd
            for (int j = 0; j < VL; j++) { /* knot k begins bin k and ends bin k - 1 */
                int after = at[j] >= p.x[k][j] && (k + 1 == K || at[j] < p.x[k + 1][j]);
                int before = at[j] < p.x[k][j] && (k == 1 || at[j] >= p.x[k - 1][j]);
                dx[k][j] = (after ? own.x0[j] : 0) + (before ? own.x1[j] : 0);
                dy[k][j] = (after ? own.y0[j] : 0) + (before ? own.y1[j] : 0);
                real dd = (after ? own.d0[j] : 0) + (before ? own.d1[j] : 0), e = exp_(-(real)LN2 * v[j]);
                dv[j] = p.d[k][j] < (real)STEEPEST ? dd * (real)(1 - LEAST_SHARE) / (1 + e) : 0;
            }
        }
        places_backward(K, cp, tail, p.width, dx, draw + i);
        places_backward(K, cp, tail, p.height, dy, draw + K * cp + i);
    }
}
