/* An optimiser's step on many tensors: the norm of all gradients, then Adam's step and the moving
   average of the parameters, in one pass over memory. Tensors are shared among threads whole, so
   that results do not depend on the number of threads. */
typedef struct {
    long count, threads;
    /* of each tensor, NULL where there is none: without gradient or moments only its average moves */
    real **p, **gradient, **first, **second, **average;
    float **step; /* steps that each tensor has taken */
    const long *numbers;
    const double *lr, *decay;
    double scale, beta1, beta2, eps, share; /* scale: of the gradients; share: of p in the average */
} Update;

void squares(const Update *u, double *sums) {
#pragma omp parallel for schedule(dynamic, 16) num_threads(u->threads) if (u->threads > 1)
    for (long i = 0; i < u->count; i++) {
        const real *g = u->gradient[i];
        double sum = 0;
        if (g) {
#pragma omp simd reduction(+ : sum)
            for (long j = 0; j < u->numbers[i]; j++) sum += (double)g[j] * g[j];
        }
        sums[i] = sum;
    }
}

/* a + share (b - a), exact at share 0 and 1. */
INLINE real between(real a, real b, real share) {
    return share < (real)0.5 ? a + share * (b - a) : b - (b - a) * (1 - share);
}

static void adam(const Update *u, long i, double taken) {
    real *restrict p = u->p[i], *restrict m = u->first[i], *restrict v = u->second[i];
    const real *restrict g = u->gradient[i];
    real *restrict e = u->average[i];
    const real scale = u->scale, b1 = 1 - u->beta1, b2 = u->beta2, b2_ = 1 - u->beta2;
    const real rate = u->lr[i] / (1 - pow(u->beta1, taken)), kept = 1 - u->lr[i] * u->decay[i];
    const real root = 1 / sqrt(1 - pow(u->beta2, taken)), eps = u->eps, share = u->share;
#pragma omp simd
    for (long j = 0; j < u->numbers[i]; j++) {
        const real gradient = g[j] * scale;
        m[j] += b1 * (gradient - m[j]);
        v[j] = b2 * v[j] + b2_ * gradient * gradient;
        p[j] = p[j] * kept - rate * m[j] / ((IS_FLOAT ? sqrtf(v[j]) : sqrt(v[j])) * root + eps);
    }
    if (!e) return;
#pragma omp simd
    for (long j = 0; j < u->numbers[i]; j++) e[j] = between(e[j], p[j], share);
}

void update(const Update *u) {
#pragma omp parallel for schedule(dynamic, 16) num_threads(u->threads) if (u->threads > 1)
    for (long i = 0; i < u->count; i++) {
        if (u->gradient[i] && u->first[i]) {
            adam(u, i, *u->step[i] += 1);
        } else if (u->average[i]) {
            const real *restrict p = u->p[i], share = u->share;
            real *restrict e = u->average[i];
#pragma omp simd
            for (long j = 0; j < u->numbers[i]; j++) e[j] = between(e[j], p[j], share);
        }
    }
}
