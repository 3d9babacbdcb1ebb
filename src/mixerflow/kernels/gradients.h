/* One step back over a tile of rows, part by part, and the sums over tiles and threads. */

typedef struct {
    real *draw, *raw, *half, *dhalf, *u, *slope, *du; /* tiles */
    real *map, *offset, *enter, *enter_b, *linear1, *linear1_b, *linear2, *linear2_b, *leave,
        *leave_b, *context, *sums; /* gradients of this thread's rows, padded */
    real *contexts, *dcontexts; /* of a tile */
    real *carry; /* of the thread's first context, if rows of other threads before it have it too */
    double *norm[2]; /* of each norm, sums of dq and of dq * normalised over this thread's rows */
    long first_sum, count;
} Work;

static void take_work(Work *w, const Flow *f, Arena *arena) {
    long n = f->n, H = f->hidden, np = padded(n), hp = padded(H), kp = padded(f->context);
    w->draw = take(arena, TILE * widest(f));
    w->raw = take(arena, f->kept ? 0 : TILE * widest(f));
    w->half = take(arena, TILE * longest(f));
    w->dhalf = take(arena, TILE * longest(f)), w->u = take(arena, TILE * hp);
    w->slope = take(arena, TILE * hp), w->du = take(arena, TILE * hp);
    w->sums = take(arena, 2 * hp);
    w->first_sum = arena->used;
    w->map = take(arena, n * np), w->offset = take(arena, np);
    w->enter = take(arena, H * longest(f)), w->enter_b = take(arena, hp);
    w->linear1 = take(arena, H * hp), w->linear1_b = take(arena, hp);
    w->linear2 = take(arena, H * hp), w->linear2_b = take(arena, hp);
    w->leave = take(arena, widest(f) * hp), w->leave_b = take(arena, widest(f));
    w->context = take(arena, H * kp);
    w->count = arena->used - w->first_sum;
    w->contexts = take(arena, TILE * kp), w->dcontexts = take(arena, TILE * kp);
    w->carry = take(arena, kp);
    w->norm[0] = (double *)take(arena, 4 * hp * (long)(sizeof(double) / sizeof(real)) + 16);
    w->norm[1] = w->norm[0] + 2 * hp;
}

/* dq = du * slope; its sums, and those with the normalised values, are added to `norm`, if given */
static void gelu_backward(const Flow *f, int rows, const real *h, const real *mean_rstd,
                          const Work *w, double *norm, real *dq) {
    int hp = (int)padded(f->hidden);
    const real *mean = mean_rstd, *rstd = mean_rstd + hp;
    real *sums = w->sums;
    memset(sums, 0, 2 * (size_t)hp * sizeof(real));
    for (int r = 0; r < rows; r++) {
        const real *du = w->du + (long)r * hp, *slope = w->slope + (long)r * hp, *x = h + (long)r * hp;
        real *to = dq + (long)r * hp, row_mean = 0, row_rstd = 1;
        if (norm && by_row(f)) row_moments(f, x, &row_mean, &row_rstd);
        if (norm)
#pragma omp simd
            for (int j = 0; j < hp; j++) {
                real normal = ((x[j] - row_mean) * row_rstd - mean[j]) * rstd[j];
                real d = du[j] * slope[j];
                to[j] = d;
                sums[j] += d;
                sums[hp + j] += d * normal;
            }
        else
#pragma omp simd
            for (int j = 0; j < hp; j++) to[j] = du[j] * slope[j];
    }
    for (int j = 0; j < 2 * hp && norm; j++) norm[j] += (double)sums[j];
}

/* Through a norm of each row: with d = scale * dq, dh = [add +] rstd * (d - mean(d) - normalised *
   mean(d * normalised)), the first mean only where the norm takes one off. */
static void row_norm_backward(const Flow *f, int rows, const real *dq, const real *h,
                              const real *scale, const real *add, real *dh) {
    int H = (int)f->hidden, hp = (int)padded(H);
    for (int r = 0; r < rows; r++) {
        long o = (long)r * hp;
        real mean, rstd, plain = 0, along = 0;
        row_moments(f, h + o, &mean, &rstd);
#pragma omp simd reduction(+ : plain, along)
        for (int j = 0; j < H; j++) {
            real d = dq[o + j] * scale[j];
            plain += d;
            along += d * (h[o + j] - mean) * rstd;
        }
        plain = f->norm == LAYER_NORM ? plain / (real)H : 0;
        along /= (real)H;
#pragma omp simd
        for (int j = 0; j < H; j++) {
            real d = dq[o + j] * scale[j] - plain - (h[o + j] - mean) * rstd * along;
            dh[o + j] = rstd * d + (add ? add[o + j] : 0);
        }
        for (int j = H; j < hp; j++) dh[o + j] = 0;
    }
}

/* Through the norm, if any; through batch norm: dh = [add +] scale * (dq - sum0 / R - normalised * sum1 / R). */
static void norm_backward(const Flow *f, int rows, const real *dq, const real *h, const real *stats,
                          const real *scale, const real *means, const real *add, real *dh) {
    int hp = (int)padded(f->hidden);
    const real *mean = stats, *rstd = stats + hp, *m0 = means, *m1 = means + hp;
    if (by_row(f)) {
        row_norm_backward(f, rows, dq, h, scale, add, dh);
        return;
    }
    for (int r = 0; r < rows; r++) {
        long o = (long)r * hp;
#pragma omp simd
        for (int j = 0; j < hp; j++) {
            real d = dq[o + j];
            if (f->batch) d -= m0[j] + (h[o + j] - mean[j]) * rstd[j] * m1[j];
            d *= scale[j];
            dh[o + j] = add ? d + add[o + j] : d;
        }
    }
}

/* Threads' sums of a norm: gradients of gamma and beta, and means over all rows. Run by one thread. */
static void finish_sums(const Flow *f, const Work *all, int which, int threads, real *gamma,
                        real *beta, real *means) {
    int H = (int)f->hidden, hp = (int)padded(H);
    double numbers[1 + 2 * hp], *sums = numbers + 1;
    numbers[0] = (double)f->rows;
    for (int j = 0; j < 2 * hp; j++) {
        sums[j] = 0;
        for (int t = 0; t < threads; t++) sums[j] += all[t].norm[which][j];
    }
    for (int j = 0; j < H && gamma; j++) beta[j] = (real)sums[j], gamma[j] = (real)sums[hp + j];
    if (f->share && f->batch) f->share(numbers, 1 + 2 * hp, SUMS);
    for (int j = 0; j < 2 * hp; j++) means[j] = (real)(sums[j] / numbers[0]);
}

/* From `dhalf`, the gradients of what `read_half` made, `half`, to those of the given half */
static void half_backward(const Flow *f, const Ready *q, int rows, const real *y, const real *half,
                          real *dhalf, real *dy) {
    int np = (int)padded(f->n);
    for (int r = 0; r < rows; r++) {
        const real *from = y + (long)r * np + q->a, *read = half + (long)r * q->rp;
        real *d = dhalf + (long)r * q->rp;
        real *to = dy + (long)r * np + q->a, *of_squares = d + q->given;
        if (f->squares)
#pragma omp simd
            for (int j = 0; j < q->given; j++) d[j] += 2 * read[j] * of_squares[j];
#pragma omp simd
        for (int j = 0; j < q->given; j++) {
            real x = from[j];
            to[j] += f->squash ? d[j] / (1 + (x < 0 ? -x : x)) : d[j];
        }
    }
}

/* Gradients of all threads added, and out of their padding: rows [share of t) of a matrix. */
static void gather(const Work *all, long at, int rows, int columns, long ld, real *to, int t,
                   int threads) {
    if (!to) return;
    for (int i = rows * t / threads; i < rows * (t + 1) / threads; i++)
        for (int k = 0; k < threads; k++) {
            const real *from = all[k].draw + at + i * ld;
            real *row = to + (long)i * columns;
            if (k) for (int j = 0; j < columns; j++) row[j] += from[j];
            else memcpy(row, from, (size_t)columns * sizeof(real));
        }
}
