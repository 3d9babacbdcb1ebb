/* Batch norm in training: moments over all rows, from tiles to threads to processes, by Chan's update
   in double precision. */

typedef struct { double count, *mean, *m2; } Moments;

static void add_moments(Moments *to, int H, double count, const double *mean, const double *m2) {
    double all = to->count + count;
    if (count == 0) return;
    for (int j = 0; j < H; j++) {
        double delta = mean[j] - to->mean[j];
        to->mean[j] += delta * count / all;
        to->m2[j] += m2[j] + delta * delta * to->count * count / all;
    }
    to->count = all;
}

static void add_tile(Moments *to, int H, int hp, int rows, const real *h, real *sum, double *tile) {
    memset(sum, 0, (size_t)hp * sizeof(real));
    add_columns(rows, hp, h, hp, sum);
    for (int j = 0; j < hp; j++) sum[j] /= (real)rows;
    real *squares = sum + hp;
    memset(squares, 0, (size_t)hp * sizeof(real));
    for (int r = 0; r < rows; r++)
#pragma omp simd
        for (int j = 0; j < hp; j++) {
            real d = h[(long)r * hp + j] - sum[j];
            squares[j] += d * d;
        }
    for (int j = 0; j < H; j++) tile[j] = sum[j], tile[H + j] = squares[j];
    add_moments(to, H, rows, tile, tile + H);
}

/* Batch norm from the threads' moments: its affine map, what backward needs, running statistics. */
static void finish_norm(const Flow *f, Moments *all, int threads, const real *gamma,
                        const real *beta, real *running_mean, real *running_var, real *scale,
                        real *offset, real *mean, real *rstd) {
    int H = (int)f->hidden;
    for (int t = 1; t < threads; t++) add_moments(all, H, all[t].count, all[t].mean, all[t].m2);
    if (f->share) {
        double numbers[1 + 2 * H];
        numbers[0] = all->count;
        memcpy(numbers + 1, all->mean, 2 * (size_t)H * sizeof(double)); /* m2 lies behind mean */
        f->share(numbers, 1 + 2 * H, MOMENTS);
        all->count = numbers[0];
        memcpy(all->mean, numbers + 1, 2 * (size_t)H * sizeof(double));
    }
    double n = all->count;
    for (int j = H; j < padded(H); j++) scale[j] = offset[j] = mean[j] = rstd[j] = 0;
    for (int j = 0; j < H; j++) {
        double r = 1 / sqrt(all->m2[j] / n + f->eps);
        mean[j] = (real)all->mean[j], rstd[j] = (real)r;
        scale[j] = (real)(gamma[j] * r);
        offset[j] = (real)(beta[j] - all->mean[j] * gamma[j] * r);
    }
    for (int j = 0; f->update && j < H; j++) {
        double unbiased = n > 1 ? all->m2[j] / (n - 1) : all->m2[j] / n;
        running_mean[j] += (real)(f->momentum * (all->mean[j] - running_mean[j]));
        running_var[j] += (real)(f->momentum * (unbiased - running_var[j]));
    }
}

/* In eval mode backward reads the running statistics where training has the batch's; without batch
   norm, mean 0 and scale 1. */
static void keep_running(const Flow *f, real *const *p, real *stats) {
    long H = f->hidden, hp = padded(H);
    memset(stats, 0, 4 * (size_t)hp * sizeof(real));
    for (long j = 0; j < H; j++) {
        stats[hp + j] = stats[3 * hp + j] = 1;
        if (f->norm != BATCH_NORM) continue;
        stats[j] = p[MEAN1][j], stats[hp + j] = (real)(1 / sqrt((double)p[VAR1][j] + f->eps));
        stats[2 * hp + j] = p[MEAN2][j];
        stats[3 * hp + j] = (real)(1 / sqrt((double)p[VAR2][j] + f->eps));
    }
}

static void clear_moments(Moments *own, int H) {
    own->count = 0;
    memset(own->mean, 0, 2 * (size_t)H * sizeof(double));
}
