/* The linear maps of a row flow as dense matrices: forward, inverse and backward; and all else that
   needs no rows. */

/* L and U, and U's diagonal from its logarithm: a share of rows */
static void triangles(Ready *q, const Flow *f, const Step *s, int t, int threads) {
    int n = (int)f->n, np = (int)padded(n);
    const real *packed = s->p[PACKED];
    for (int i = n * t / threads; packed && i < n * (t + 1) / threads; i++) {
        real *lower = q->lower + (long)i * np, *upper = q->upper + (long)i * np;
        for (int j = 0; j < np; j++) {
            lower[j] = j < i ? packed[(long)i * n + j] : 0;
            upper[j] = j > i && j < n ? packed[(long)i * n + j] : 0;
        }
        lower[i] = 1, upper[i] = exp_(packed[(long)i * n + i]);
    }
}

/* matrix = L U (columns reversed for RLU), scaled = matrix diag(exp(log_scale)): a share of rows */
static void dense_map(Ready *q, const Flow *f, const Step *s, int t, int threads) {
    int n = (int)f->n, np = (int)padded(n), end = n * (t + 1) / threads;
    const real *packed = s->p[PACKED], *shift = s->p[SHIFT], *log_scale = s->p[LOG_SCALE];
    real scale[n];
    for (int j = 0; j < n; j++) scale[j] = log_scale ? exp_(log_scale[j]) : 1;
    for (int i = n * t / threads; packed && i < end; i += MR) {
        int rows = (int)smaller(MR, end - i);
        product(rows, n, i + rows, q->lower + (long)i * np, np, 1, q->upper, np, 2 * VL,
                q->scaled + (long)i * np, np, NULL, 0);
    }
    for (int i = n * t / threads; i < end; i++) {
        real *row = q->matrix + (long)i * np, *scaled = q->scaled + (long)i * np;
        if (s->p[WEIGHT]) memcpy(scaled, s->p[WEIGHT] + (long)i * n, (size_t)n * sizeof(real));
        else if (!packed)
            for (int j = 0; j < n; j++) scaled[j] = i == j;
        for (int j = 0; j < n; j++) row[j] = scaled[f->reverse && packed ? n - 1 - j : j];
        real moved = s->p[OFFSET] ? s->p[OFFSET][i] : 0;
        for (int j = 0; j < n; j++) {
            if (shift) moved += row[j] * shift[j];
            scaled[j] = row[j] * scale[j];
        }
        q->offset[i] = moved;
    }
}

/* gamma (h - mean) / sqrt(var + eps) + beta as scale * h + offset; without statistics
   gamma h + beta, without gamma h */
static void fold_norm(int H, double eps, const real *gamma, const real *beta, const real *mean,
                      const real *var, real *scale, real *offset) {
    for (int j = 0; j < H; j++) {
        double each = (gamma ? (double)gamma[j] : 1) / (var ? sqrt((double)var[j] + eps) : 1);
        scale[j] = (real)each;
        offset[j] = (real)((gamma ? (double)beta[j] : 0) - (mean ? each * (double)mean[j] : 0));
    }
    for (int j = H; j < padded(H); j++) scale[j] = offset[j] = 0;
}

/* All that needs no rows: shares of the packing, the maps first. Barriers are the caller's. */
static void pack_step(Ready *q, const Flow *f, const Step *s, int backward, int t, int threads) {
    int n = (int)f->n, H = (int)f->hidden, hp = (int)padded(H), c = q->changed, g = q->read;
    long context = f->context;
    if (t == 0) {
        for (int j = n; j < padded(n); j++) q->offset[j] = 0;
        copy_padded(q->enter_b, s->p[ENTER_B], H, hp);
        copy_padded(q->linear1_b, s->p[LINEAR1_B], H, hp);
        copy_padded(q->linear2_b, s->p[LINEAR2_B], H, hp);
        for (int k = 0; k < f->params; k++)
            copy_padded(q->leave_b + k * q->cp, s->p[LEAVE_B] + k * c, c, q->cp);
        if (!f->batch) {
            fold_norm(H, f->eps, s->p[GAMMA1], s->p[BETA1], s->p[MEAN1], s->p[VAR1], q->scale1,
                      q->offset1);
            fold_norm(H, f->eps, s->p[GAMMA2], s->p[BETA2], s->p[MEAN2], s->p[VAR2], q->scale2,
                      q->offset2);
        }
    }
    pack(&q->map_t, q->scaled, 1, padded(n), t, threads);
    pack(&q->enter_t, s->p[ENTER], 1, g, t, threads);
    pack(&q->linear1_t, s->p[LINEAR1], 1, H, t, threads);
    pack(&q->linear2_t, s->p[LINEAR2], 1, H, t, threads);
    pack(&q->leave_t, q->leave, 1, H, t, threads);
    if (context) pack(&q->context_t, s->p[CONTEXT], 1, context, t, threads);
    if (!backward) return;
    if (context) pack(&q->context, s->p[CONTEXT], context, 1, t, threads);
    pack(&q->map, q->scaled, padded(n), 1, t, threads);
    if (s->p[PACKED]) pack(&q->upper_t, q->upper, 1, padded(n), t, threads);
    pack(&q->enter, s->p[ENTER], g, 1, t, threads);
    pack(&q->linear1, s->p[LINEAR1], H, 1, t, threads);
    pack(&q->linear2, s->p[LINEAR2], H, 1, t, threads);
    pack(&q->leave_p, q->leave, H, 1, t, threads);
}

/* The last linear map with the raw parameters in blocks of whole vectors. */
static void pad_leave(Ready *q, const Flow *f, const Step *s, int t, int threads) {
    int H = (int)f->hidden, c = q->changed;
    for (int k = q->wide * t / threads; k < q->wide * (t + 1) / threads; k++) {
        int part = k / q->cp, j = k % q->cp;
        real *row = q->leave + (long)k * H;
        if (j < c) memcpy(row, s->p[LEAVE] + (long)(part * c + j) * H, (size_t)H * sizeof(real));
        else memset(row, 0, (size_t)H * sizeof(real));
    }
}

static void prepare(Ready *ready, const Flow *f, const Step *steps, int backward, int t, int threads) {
    for (int k = 0; k < f->steps; k++) triangles(ready + k, f, steps + k, t, threads);
#pragma omp barrier
    for (int k = 0; k < f->steps; k++) {
        dense_map(ready + k, f, steps + k, t, threads);
        pad_leave(ready + k, f, steps + k, t, threads);
    }
#pragma omp barrier
    for (int k = 0; k < f->steps; k++)
        pack_step(ready + k, f, steps + k, backward, t, threads);
#pragma omp barrier
}

/* scaled <- inverse of diag-scaled L U, in double: columns of U^-1 L^-1 a few at a time, which stay
   in cache; or of the inverse given. `w` holds n x COLUMNS numbers. */
enum { COLUMNS = 32 };

static void invert_columns(Ready *q, const Flow *f, const Step *s, double *w, int first, int m) {
    int n = (int)f->n, np = (int)padded(n);
    const real *packed = s->p[PACKED], *log_scale = s->p[LOG_SCALE], *given = s->p[INVERSE];
    for (int i = 0; !given && i < n; i++) { /* L W = I */
        double *row = w + (long)i * COLUMNS;
        for (int j = 0; j < m; j++) row[j] = i == first + j;
        for (int k = first; packed && k < i; k++) /* rows before the first are 0 */
            for (int j = 0; j < m; j++)
                row[j] -= (double)packed[(long)i * n + k] * w[(long)k * COLUMNS + j];
    }
    for (int i = n - 1; !given && i >= 0; i--) { /* U W = W */
        double *row = w + (long)i * COLUMNS;
        for (int k = i + 1; packed && k < n; k++)
            for (int j = 0; j < m; j++)
                row[j] -= (double)packed[(long)i * n + k] * w[(long)k * COLUMNS + j];
        double scale = packed ? exp(-(double)packed[(long)i * n + i]) : 1;
        for (int j = 0; j < m; j++) row[j] *= scale;
    }
    for (int i = 0; i < n; i++) {
        int from = f->reverse && packed ? n - 1 - i : i;
        double scale = log_scale ? exp(-(double)log_scale[i]) : 1;
        for (int j = 0; j < m; j++) {
            double each = given ? given[(long)i * n + first + j] : w[(long)from * COLUMNS + j];
            q->scaled[(long)i * np + first + j] = (real)(scale * each);
        }
    }
}

static void invert_map(Ready *q, const Flow *f, const Step *s, double *w, int t, int threads) {
    int n = (int)f->n, end = n * (t + 1) / threads;
    for (int j = n * t / threads; j < end; j += COLUMNS)
        invert_columns(q, f, s, w, j, (int)smaller(COLUMNS, end - j));
}

/* dM of the scaled map, padded in `map`, to the gradients of L U, its bias and the ActNorm before it:
   shares of columns, then of rows. */
static void map_backward(const Ready *q, const Flow *f, const Step *s, const Step *grads,
                         const real *map, const real *offset, double g, real *plain, int t,
                         int threads) {
    int n = (int)f->n, np = (int)padded(n), first = n * t / threads, end = n * (t + 1) / threads;
    const real *log_scale = s->p[LOG_SCALE], *shift = s->p[SHIFT], *packed = s->p[PACKED];
    real by_scale[n], by_shift[n], scale[n];
    for (int j = first; j < end; j++) {
        by_scale[j] = by_shift[j] = 0;
        scale[j] = log_scale ? exp_(log_scale[j]) : 1;
    }
    for (int i = 0; i < n; i++) {
        const real *row = map + (long)i * np, *scaled = q->scaled + (long)i * np;
        const real *matrix = q->matrix + (long)i * np;
        real *to = plain + (long)i * np;
#pragma omp simd
        for (int j = first; j < end; j++) {
            by_scale[j] += row[j] * scaled[j];
            by_shift[j] += offset[i] * matrix[j];
        }
        for (int j = first; j < end; j++)
            to[f->reverse && packed ? n - 1 - j : j] =
                row[j] * scale[j] + (shift ? offset[i] * shift[j] : 0);
    }
    for (int j = first; j < end; j++) {
        if (log_scale) {
            grads->p[LOG_SCALE][j] = (real)(by_scale[j] + g);
            grads->p[SHIFT][j] = by_shift[j];
        }
        if (s->p[OFFSET]) grads->p[OFFSET][j] = offset[j];
    }
#pragma omp barrier
    if (!packed) return;
    real lower[MR * np], upper[MR * np];
    for (int i = first; i < end; i += MR) {
        int rows = (int)smaller(MR, end - i);
        const real *dm = plain + (long)i * np, *l = q->lower + (long)i * np + i;
        product(rows, i + rows, n, dm, np, 1, q->upper_t.data, 2 * VL, (long)n * 2 * VL, lower, np,
                NULL, 0); /* dL = dM U^T */
        product(rows, n, n - i, l, 1, np, dm, np, 2 * VL, upper, np, NULL, 0); /* dU = L^T dM */
        for (int r = 0; r < rows; r++) {
            real *to = grads->p[PACKED] + (long)(i + r) * n;
            memcpy(to, lower + r * np, (size_t)(i + r) * sizeof(real));
            memcpy(to + i + r, upper + r * np + i + r, (size_t)(n - i - r) * sizeof(real));
            to[i + r] = (real)(to[i + r] * q->upper[(long)(i + r) * np + i + r] + g);
        }
    }
}
