/* The logit of a mixture of K logistic distributions as an elementwise map, see elementwise.h:

   z = L(x) exp(a) + b,  L = log F - log(1 - F),  F(x) = sum_k w_k sigmoid(u_k),  u_k = (x - m_k) / s_k

   One vector of numbers goes through at a time. Sums over components are of exponentials whose largest
   has the exponent 0, so that far tails and components far apart stay finite. */

enum { MOST_COMPONENTS = 64, MOST_STEPS = 200 };

typedef real Lane[VL];

typedef struct {
    Lane logit[MOST_COMPONENTS], mean[MOST_COMPONENTS], log_scale[MOST_COMPONENTS],
        shrink[MOST_COMPONENTS]; /* what raw parameters say; shrink is 1 / s_k */
    Lane u[MOST_COMPONENTS], sigmoid[MOST_COMPONENTS], rest[MOST_COMPONENTS]; /* and 1 - sigmoid */
    /* parts of F, 1 - F and the density, up to one factor for each of the three */
    Lane below[MOST_COMPONENTS], above[MOST_COMPONENTS], dense[MOST_COMPONENTS];
    Lane all_below, all_above, all_dense; /* their sums */
} Mixture;

INLINE real falling_(real v) { return IS_FLOAT ? (real)exp_falling((float)v) : (real)exp((double)v); }
INLINE real over_(real v) { return IS_FLOAT ? (real)reciprocal((float)v) : 1 / v; }
INLINE real least(real a, real b) { return a < b ? a : b; }
INLINE real most(real a, real b) { return a < b ? b : a; }

/* log(v) of positive normal v, and NaN of NaN */
INLINE real log_(real v) { return IS_FLOAT ? (real)log_normal((float)v) + (v - v) : (real)log((double)v); }

/* Gain of mean k; that of log-scale k is the gain of mean K - 1 - k. */
static inline real gain(int k, int K) { return (real)(0.5 + (K > 1 ? (double)k / (K - 1) : 0)); }

static void read_mixture(const Flow *f, int cp, const real *raw, Mixture *m) {
    int K = (int)f->count;
    real floor = (real)f->limit;
    for (int k = 0; k < K; k++) {
        const real *l = raw + (2 + k) * cp, *mean = l + K * cp, *scale = mean + K * cp;
        real by = gain(k, K), other = gain(K - 1 - k, K);
#pragma omp simd
        for (int j = 0; j < VL; j++) {
            real s = other * scale[j];
            s = s < floor ? floor : s;
            s = s > 16 ? 16 : s;
            m->logit[k][j] = l[j];
            m->mean[k][j] = by * mean[j];
            m->log_scale[k][j] = s;
            m->shrink[k][j] = exp_(-s);
        }
    }
}

/* L(x), and log L'(x) = log(f / G) + log(1 + exp(-|L|)), G the smaller one of F and 1 - F. */
static void mixture_logit(int K, Mixture *m, const real *x, real *value, real *slope) {
    Lane low, high, top;
    for (int k = 0; k < K; k++)
#pragma omp simd
        for (int j = 0; j < VL; j++) {
            real u = (x[j] - m->mean[k][j]) * m->shrink[k][j];
            real e = falling_(u < 0 ? u : -u), over = over_(1 + e), small = e * over;
            m->u[k][j] = u;
            m->sigmoid[k][j] = u < 0 ? small : over;
            m->rest[k][j] = u < 0 ? over : small;
            real b = m->logit[k][j] + least(u, 0), a = m->logit[k][j] - most(u, 0);
            low[j] = k ? most(low[j], b) : b;
            high[j] = k ? most(high[j], a) : a;
        }
    for (int j = 0; j < VL; j++) m->all_below[j] = m->all_above[j] = m->all_dense[j] = 0;
    for (int k = 0; k < K; k++)
#pragma omp simd
        for (int j = 0; j < VL; j++) {
            real u = m->u[k][j], over = most(m->sigmoid[k][j], m->rest[k][j]);
            real b = falling_(m->logit[k][j] + least(u, 0) - low[j]) * over;
            real a = falling_(m->logit[k][j] - most(u, 0) - high[j]) * over;
            m->below[k][j] = b, m->above[k][j] = a;
            m->all_below[j] += b, m->all_above[j] += a;
        }
#pragma omp simd
    for (int j = 0; j < VL; j++)
        value[j] = (low[j] - high[j]) + (log_(m->all_below[j]) - log_(m->all_above[j]));
    for (int k = 0; k < K; k++)
#pragma omp simd
        for (int j = 0; j < VL; j++) {
            real u = m->u[k][j], l = m->logit[k][j];
            real b = (l + least(u, 0) - low[j]) - most(u, 0), a = (l - most(u, 0) - high[j]) + least(u, 0);
            real c = (value[j] < 0 ? b : a) - m->log_scale[k][j];
            m->dense[k][j] = c;
            top[j] = k ? most(top[j], c) : c;
        }
    for (int k = 0; k < K; k++)
#pragma omp simd
        for (int j = 0; j < VL; j++) {
            real over = most(m->sigmoid[k][j], m->rest[k][j]);
            real d = falling_(m->dense[k][j] - top[j]) * over * over;
            m->dense[k][j] = d;
            m->all_dense[j] += d;
        }
#pragma omp simd
    for (int j = 0; j < VL; j++) {
        real v = value[j], smaller_one = v < 0 ? m->all_below[j] : m->all_above[j];
        slope[j] = top[j] + log_(m->all_dense[j]) - log_(smaller_one) + log1p_(falling_(v < 0 ? v : -v));
    }
}

static void logistic_forward(const Flow *f, int cp, real *raw, const real *x, real *z, real *slope) {
    Mixture m;
    Lane value, steep;
    for (int at = 0; at < cp; at += VL) {
        read_mixture(f, cp, raw + at, &m);
        mixture_logit((int)f->count, &m, x + at, value, steep);
#pragma omp simd
        for (int j = 0; j < VL; j++) {
            real a = tanh_(raw[at + j]);
            z[at + j] = value[j] * exp_(a) + raw[cp + at + j];
            slope[at + j] = steep[j] + a;
        }
    }
}

/* L(x) = target by Newton's steps inside a bracket, the components' own inverses; a step that leaves it
   becomes a halving. As `monotone_root` in core/solve.py. Returns how many have not converged. */
static int mixture_quantile(int K, Mixture *m, const real *target, real *x, real *slope) {
    Lane low, high, value, moved;
    real tolerance = IS_FLOAT ? (real)1e-6 : (real)1e-12;
    int moving = VL;
    for (int k = 0; k < K; k++)
#pragma omp simd
        for (int j = 0; j < VL; j++) {
            real each = m->mean[k][j] + exp_(m->log_scale[k][j]) * target[j];
            low[j] = k ? least(low[j], each) : each;
            high[j] = k ? most(high[j], each) : each;
        }
#pragma omp simd
    for (int j = 0; j < VL; j++) x[j] = (low[j] + high[j]) / 2, moved[j] = 1;
    for (int step = 0; step < MOST_STEPS && moving; step++) {
        mixture_logit(K, m, x, value, slope);
        moving = 0;
#pragma omp simd reduction(+ : moving)
        for (int j = 0; j < VL; j++) {
            int above = value[j] > target[j], still = !(moved[j] <= tolerance);
            real below = above ? low[j] : x[j], over = above ? x[j] : high[j];
            real newton = x[j] - (value[j] - target[j]) * exp_(-slope[j]), half = (below + over) / 2;
            real inside = newton > below && newton < over ? newton : half;
            real next = value[j] == target[j] ? x[j] : inside;
            real size = next < 0 ? -next : next, by = next < x[j] ? x[j] - next : next - x[j];
            real move = still ? by / (1 + size) : moved[j];
            low[j] = below, high[j] = over;
            x[j] = still ? next : x[j];
            moved[j] = move;
            moving += !(move <= tolerance);
        }
    }
    mixture_logit(K, m, x, value, slope);
    return moving;
}

static void logistic_inverse(const Flow *f, int cp, real *raw, const real *z, real *x, real *slope) {
    Mixture m;
    Lane target, steep;
    for (int at = 0; at < cp; at += VL) {
        read_mixture(f, cp, raw + at, &m);
#pragma omp simd
        for (int j = 0; j < VL; j++)
            target[j] = (z[at + j] - raw[cp + at + j]) * exp_(-tanh_(raw[at + j]));
        int unsolved = mixture_quantile((int)f->count, &m, target, x + at, steep);
        if (unsolved)
#pragma omp atomic
            *f->unsolved += unsolved;
#pragma omp simd
        for (int j = 0; j < VL; j++) slope[at + j] = steep[j] + tanh_(raw[at + j]);
    }
}

/* With P_k, Q_k and R_k the parts of F, 1 - F and f that component k has, and w_k = F P_k + (1 - F) Q_k:
   dL/dlogit_k = P_k - Q_k,  dL/du_k = P_k (1 - sigmoid) + Q_k sigmoid;  of log L' = log f - log F -
   log(1 - F), f having 1 / s_k:  R_k + w_k - P_k - Q_k,  and  R_k (1 - 2 sigmoid) - P_k (1 - sigmoid) +
   Q_k sigmoid. */
static void logistic_backward(const Flow *f, int cp, const real *raw, const real *x, real *d, real g,
                              real *draw) {
    int K = (int)f->count;
    real floor = (real)f->limit;
    Mixture m;
    Lane value, slope, by, share, dx;
    for (int at = 0; at < cp; at += VL) {
        read_mixture(f, cp, raw + at, &m);
        mixture_logit(K, &m, x + at, value, slope);
#pragma omp simd
        for (int j = 0; j < VL; j++) {
            real a = tanh_(raw[at + j]), v = value[j], e = falling_(v < 0 ? v : -v), over = over_(1 + e);
            by[j] = d[at + j] * exp_(a);
            share[j] = v < 0 ? e * over : over; /* F */
            draw[at + j] = (by[j] * v + g) * (1 - a * a);
            draw[cp + at + j] = d[at + j];
            dx[j] = 0;
            m.all_below[j] = 1 / m.all_below[j];
            m.all_above[j] = 1 / m.all_above[j];
            m.all_dense[j] = 1 / m.all_dense[j];
        }
        for (int k = 0; k < K; k++) {
            const real *scale = raw + (2 + 2 * K + k) * cp + at;
            real *dl = draw + (2 + k) * cp + at, *dmean = dl + K * cp, *dscale = dmean + K * cp;
            real gain_mean = gain(k, K), gain_scale = gain(K - 1 - k, K);
#pragma omp simd
            for (int j = 0; j < VL; j++) {
                real p = m.below[k][j] * m.all_below[j], q = m.above[k][j] * m.all_above[j];
                real r = m.dense[k][j] * m.all_dense[j], w = share[j] * p + (1 - share[j]) * q;
                real s = m.sigmoid[k][j], t = m.rest[k][j], own = gain_scale * scale[j];
                dl[j] = by[j] * (p - q) + g * (r + w - p - q);
                real du = by[j] * (p * t + q * s) + g * (r * (t - s) - p * t + q * s);
                real shrunk = du * m.shrink[k][j];
                dx[j] += shrunk;
                dmean[j] = -gain_mean * shrunk;
                real ds = -gain_scale * (m.u[k][j] * du + g * r);
                dscale[j] = own >= floor && own <= 16 ? ds : 0;
            }
        }
        for (int j = 0; j < VL; j++) d[at + j] = dx[j];
    }
}
