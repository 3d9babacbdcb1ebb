/* The backward pass of a row flow, from what `rows_forward` kept. */

typedef struct {
    real *draw, *half, *dhalf, *u, *slope, *du; /* tiles */
    real *map, *offset, *enter, *enter_b, *linear1, *linear1_b, *linear2, *linear2_b, *leave,
        *leave_b, *sums; /* gradients of this thread's rows, padded */
    double *norm;        /* sums of dq and of dq * normalised, of this thread's rows */
    long first_sum, count;
} Work;

static void take_work(Work *w, const Flow *f, Arena *arena) {
    long n = f->n, H = f->hidden, np = padded(n), hp = padded(H);
    w->draw = take(arena, TILE * 2 * np), w->half = take(arena, TILE * np);
    w->dhalf = take(arena, TILE * np), w->u = take(arena, TILE * hp);
    w->slope = take(arena, TILE * hp), w->du = take(arena, TILE * hp);
    w->sums = take(arena, 2 * hp);
    w->first_sum = arena->used;
    w->map = take(arena, n * np), w->offset = take(arena, np);
    w->enter = take(arena, H * np), w->enter_b = take(arena, hp);
    w->linear1 = take(arena, H * hp), w->linear1_b = take(arena, hp);
    w->linear2 = take(arena, H * hp), w->linear2_b = take(arena, hp);
    w->leave = take(arena, 2 * np * hp), w->leave_b = take(arena, 2 * np);
    w->count = arena->used - w->first_sum;
    w->norm = (double *)take(arena, 2 * hp * (long)(sizeof(double) / sizeof(real)) + 16);
}

/* dq = du * slope; its sums, and those with the normalised values, where statistics matter */
static void gelu_backward(const Flow *f, int rows, const real *h, const real *mean_rstd,
                          const Work *w, real *dq) {
    int hp = (int)padded(f->hidden);
    const real *mean = mean_rstd, *rstd = mean_rstd + hp;
    real *sums = w->sums;
    memset(sums, 0, 2 * (size_t)hp * sizeof(real));
    for (int r = 0; r < rows; r++) {
        const real *du = w->du + (long)r * hp, *slope = w->slope + (long)r * hp, *x = h + (long)r * hp;
        real *to = dq + (long)r * hp;
#pragma omp simd
        for (int j = 0; j < hp; j++) {
            real d = du[j] * slope[j];
            to[j] = d;
            sums[j] += d;
            sums[hp + j] += d * (x[j] - mean[j]) * rstd[j];
        }
    }
    for (int j = 0; j < 2 * hp; j++) w->norm[j] += (double)sums[j];
}

/* Through batch norm: dh = [add +] scale * (dq - sum0 / R - normalised * sum1 / R). */
static void norm_backward(const Flow *f, int rows, const real *dq, const real *h, const real *stats,
                          const real *scale, const real *means, const real *add, real *dh) {
    int hp = (int)padded(f->hidden);
    const real *mean = stats, *rstd = stats + hp, *m0 = means, *m1 = means + hp;
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

/* Threads' sums: gradients of gamma and beta, and means over all rows. Run by one thread. */
static void finish_sums(const Flow *f, Work *all, int threads, real *gamma, real *beta, real *means) {
    int H = (int)f->hidden, hp = (int)padded(H);
    double numbers[1 + 2 * hp], *sums = numbers + 1;
    numbers[0] = (double)f->rows;
    for (int j = 0; j < 2 * hp; j++) {
        sums[j] = 0;
        for (int t = 0; t < threads; t++) sums[j] += all[t].norm[j];
    }
    for (int j = 0; j < H && f->norm; j++) beta[j] = (real)sums[j], gamma[j] = (real)sums[hp + j];
    if (f->share && f->batch) f->share(numbers, 1 + 2 * hp, SUMS);
    for (int j = 0; j < 2 * hp; j++) means[j] = (real)(sums[j] / numbers[0]);
}

/* Back through the affine law: draw from dz (which becomes dy), for a tile. */
static void affine_backward(const Flow *f, const Ready *q, int rows, real *dz, const real *y,
                            const real *s, const real *g, real *draw) {
    int np = (int)padded(f->n), c = q->changed, cp = q->cp;
    real bound = (real)f->bound;
    for (int r = 0; r < rows; r++) {
        real *d = dz + (long)r * np + q->b, *ds = draw + (long)r * 2 * cp, *dt = ds + cp;
        const real *from = y + (long)r * np + q->b, *scale = s + (long)r * cp;
        real each = g[r];
#pragma omp simd
        for (int j = 0; j < c; j++) {
            real e = exp_(scale[j]), slope = 1;
            if (bound > 0) slope = 1 - scale[j] * scale[j] / (bound * bound);
            ds[j] = (d[j] * from[j] * e + each) * slope;
            dt[j] = d[j];
            d[j] *= e;
        }
        for (int j = c; j < cp; j++) ds[j] = dt[j] = 0;
    }
}

static void half_backward(const Flow *f, const Ready *q, int rows, const real *y, const real *dhalf,
                          real *dy) {
    int np = (int)padded(f->n);
    for (int r = 0; r < rows; r++) {
        const real *from = y + (long)r * np + q->a, *d = dhalf + (long)r * q->gp;
        real *to = dy + (long)r * np + q->a;
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

typedef struct {
    const Flow *f;
    const Step *steps, *grads;
    const Kept *kept;
    Ready *ready;
    Work *all;
    real *dz, *dh2, *dq, *means, *plain;
    const real *g;
    double total;
} Pass;

/* Leave, second linear map, second gelu, of this thread's tiles. */
static void back_leave(const Pass *b, int k, Work *w, long first, long end) {
    const Flow *f = b->f;
    const Ready *q = b->ready + k;
    const Kept *z = b->kept + k;
    int H = (int)f->hidden, hp = (int)padded(H), np = (int)padded(f->n), cp = q->cp;
    for (long r = first; r < end; r += TILE) {
        int rows = (int)smaller(TILE, end - r);
        affine_backward(f, q, rows, b->dz + r * np, z->y + r * np, z->s + r * cp, b->g + r, w->draw);
        add_columns(rows, 2 * cp, w->draw, 2 * cp, w->leave_b);
        outer(rows, w->draw, 2 * cp, 2 * cp, z->h2 + r * hp, hp, hp, w->leave, hp);
        times(rows, w->draw, 2 * cp, &q->leave_p, b->dh2 + r * hp, hp, NULL, 0);
        norm_gelu(rows, hp, z->i + r * hp, q->scale2, q->offset2, w->u, w->slope);
        add_columns(rows, hp, b->dh2 + r * hp, hp, w->linear2_b);
        outer(rows, b->dh2 + r * hp, hp, H, w->u, hp, hp, w->linear2, hp);
        times(rows, b->dh2 + r * hp, hp, &q->linear2, w->du, hp, NULL, 0);
        gelu_backward(f, rows, z->i + r * hp, z->stats + 2 * hp, w, b->dq + r * hp);
    }
}

static void back_middle(const Pass *b, int k, Work *w, long first, long end) {
    const Flow *f = b->f;
    const Ready *q = b->ready + k;
    const Kept *z = b->kept + k;
    int H = (int)f->hidden, hp = (int)padded(H);
    for (long r = first; r < end; r += TILE) {
        int rows = (int)smaller(TILE, end - r);
        real *di = b->dq + r * hp;
        norm_backward(f, rows, di, z->i + r * hp, z->stats + 2 * hp, q->scale2, b->means, NULL, di);
        add_columns(rows, hp, di, hp, w->linear1_b);
        norm_gelu(rows, hp, z->h + r * hp, q->scale1, q->offset1, w->u, w->slope);
        outer(rows, di, hp, H, w->u, hp, hp, w->linear1, hp);
        times(rows, di, hp, &q->linear1, w->du, hp, NULL, 0);
        gelu_backward(f, rows, z->h + r * hp, z->stats, w, di);
    }
}

static void back_enter(const Pass *b, int k, Work *w, long first, long end) {
    const Flow *f = b->f;
    const Ready *q = b->ready + k;
    const Kept *z = b->kept + k;
    int H = (int)f->hidden, hp = (int)padded(H), n = (int)f->n, np = (int)padded(n), gp = q->gp;
    for (long r = first; r < end; r += TILE) {
        int rows = (int)smaller(TILE, end - r);
        real *dh = b->dq + r * hp, *dy = b->dz + r * np;
        norm_backward(f, rows, dh, z->h + r * hp, z->stats, q->scale1, b->means, b->dh2 + r * hp, dh);
        add_columns(rows, hp, dh, hp, w->enter_b);
        squash_half(rows, z->y + r * np, np, q->a, q->given, gp, (int)f->squash, w->half);
        outer(rows, dh, hp, H, w->half, gp, gp, w->enter, gp);
        times(rows, dh, hp, &q->enter, w->dhalf, gp, NULL, 0);
        half_backward(f, q, rows, z->y + r * np, w->dhalf, dy);
        add_columns(rows, np, dy, np, w->offset);
        outer(rows, dy, np, n, z->x + r * np, np, np, w->map, np);
        times(rows, dy, np, &q->map, w->half, np, NULL, 0);
        memcpy(dy, w->half, (size_t)rows * (size_t)np * sizeof(real));
    }
}

static void gather_step(const Pass *b, int k, int t, int threads) {
    const Ready *q = b->ready + k;
    real *const *p = b->grads[k].p;
    Work *all = b->all, *w = all;
    int n = (int)b->f->n, H = (int)b->f->hidden, hp = (int)padded(H), np = (int)padded(n), c = q->changed;
#define AT(part) (all[0].part - all[0].draw)
    gather(all, AT(enter), H, q->given, q->gp, p[ENTER], t, threads);
    gather(all, AT(enter_b), 1, H, hp, p[ENTER_B], t, threads);
    gather(all, AT(linear1), H, H, hp, p[LINEAR1], t, threads);
    gather(all, AT(linear1_b), 1, H, hp, p[LINEAR1_B], t, threads);
    gather(all, AT(linear2), H, H, hp, p[LINEAR2], t, threads);
    gather(all, AT(linear2_b), 1, H, hp, p[LINEAR2_B], t, threads);
    gather(all, AT(leave), c, H, hp, p[LEAVE], t, threads);
    gather(all, AT(leave) + (long)q->cp * hp, c, H, hp, p[LEAVE] + (long)c * H, t, threads);
    gather(all, AT(leave_b), 1, c, c, p[LEAVE_B], t, threads);
    gather(all, AT(leave_b) + q->cp, 1, c, c, p[LEAVE_B] + c, t, threads);
    /* the map's own gradient goes on: summed into thread 0's */
    for (int i = n * t / threads; i < n * (t + 1) / threads; i++)
        for (int o = 1; o < threads; o++)
            for (int j = 0; j < n; j++) w->map[i * np + j] += all[o].map[i * np + j];
    if (t == 0)
        for (int o = 1; o < threads; o++)
            for (int j = 0; j < n; j++) w->offset[j] += all[o].offset[j];
#undef AT
#pragma omp barrier
    map_backward(q, b->f, b->steps + k, b->grads + k, w->map, w->offset, b->total, b->plain, t, threads);
#pragma omp barrier
}

/* The last ActNorm: dz (rows, n) to padded rows, and its gradients. */
static void back_tail(const Pass *b, const real *dz, const real *last, Work *w, long first, long end) {
    int n = (int)b->f->n, np = (int)padded(n);
    const real *log_scale = b->steps[b->f->steps].p[LOG_SCALE];
    for (long r = first; r < end; r++) {
        real *to = b->dz + r * np;
        for (int j = n; j < np; j++) to[j] = 0;
#pragma omp simd
        for (int j = 0; j < n; j++) {
            real d = dz[r * n + j];
            to[j] = log_scale ? d * exp_(log_scale[j]) : d;
            w->offset[j] += d;
            w->map[j] += to[j] * last[r * np + j];
        }
    }
}

/* dz (rows, n) and g (rows), the gradients of z and log_det, to dx (rows, n) and those of the
   parameters in `grads`, which has the layout of `steps`. */
int rows_backward(const Flow *f, const Step *steps, const Kept *kept, const real *last,
                  const real *dz, const real *g, real *dx, const Step *grads) {
    long R = f->rows, n = f->n, H = f->hidden, np = padded(n), hp = padded(H);
    Arena arena = {NULL, 0};
    Work first_work;
    Pass b = {.f = f, .steps = steps, .grads = grads, .kept = kept, .g = g};
    take_work(&first_work, f, &arena);
    size_t heads = (size_t)f->threads * sizeof(Work) / 64 * 64 + 64;
    size_t each = (size_t)(arena.used + 15) / 16 * 16;
    char *crews = scratch(CREW, heads + (size_t)f->threads * each * sizeof(real));
    b.ready = make_ready(f, steps);
    b.dz = scratch(SHARED, (size_t)(R * (np + 2 * hp) + 2 * hp + n * np) * sizeof(real));
    if (!b.ready || !crews || !b.dz) return 1;
    b.dh2 = b.dz + R * np, b.dq = b.dh2 + R * hp, b.means = b.dq + R * hp;
    b.plain = b.means + 2 * hp, b.all = (Work *)crews;
    real *works = (real *)(crews + heads);
    for (long r = 0; r < R; r++) b.total += (double)g[r];
#pragma omp parallel num_threads(f->threads)
    {
        int t = omp_get_thread_num(), crew = omp_get_num_threads();
        Work *w = b.all + t;
        Arena own = {works + (size_t)t * each, 0};
        long first, end;
        take_work(w, f, &own);
        share(f, t, crew, &first, &end);
        memset(w->map, 0, (size_t)w->count * sizeof(real));
        prepare(b.ready, f, steps, 1, t, crew);
        back_tail(&b, dz, last, w, first, end);
#pragma omp barrier
        if (t == 0 && steps[f->steps].p[LOG_SCALE])
            for (int j = 0; j < n; j++) {
                double by_scale = b.total, by_shift = 0;
                for (int o = 0; o < crew; o++) by_scale += b.all[o].map[j], by_shift += b.all[o].offset[j];
                grads[f->steps].p[LOG_SCALE][j] = (real)by_scale;
                grads[f->steps].p[SHIFT][j] = (real)by_shift;
            }
#pragma omp barrier
        for (int k = (int)f->steps - 1; k >= 0; k--) {
            Ready *q = b.ready + k;
            memset(w->map, 0, (size_t)w->count * sizeof(real));
            memset(w->norm, 0, 2 * (size_t)hp * sizeof(double));
            if (f->norm && t == 0)
                for (int j = 0; j < H; j++) {
                    const real *s = kept[k].stats;
                    q->scale1[j] = steps[k].p[GAMMA1][j] * s[hp + j];
                    q->offset1[j] = steps[k].p[BETA1][j] - s[j] * q->scale1[j];
                    q->scale2[j] = steps[k].p[GAMMA2][j] * s[3 * hp + j];
                    q->offset2[j] = steps[k].p[BETA2][j] - s[2 * hp + j] * q->scale2[j];
                }
#pragma omp barrier
            back_leave(&b, k, w, first, end);
#pragma omp barrier
            if (t == 0) finish_sums(f, b.all, crew, grads[k].p[GAMMA2], grads[k].p[BETA2], b.means);
#pragma omp barrier
            memset(w->norm, 0, 2 * (size_t)hp * sizeof(double));
            back_middle(&b, k, w, first, end);
#pragma omp barrier
            if (t == 0) finish_sums(f, b.all, crew, grads[k].p[GAMMA1], grads[k].p[BETA1], b.means);
#pragma omp barrier
            back_enter(&b, k, w, first, end);
#pragma omp barrier
            gather_step(&b, k, t, crew);
        }
        for (long r = first; r < end; r++) memcpy(dx + r * n, b.dz + r * np, (size_t)n * sizeof(real));
    }
    return 0;
}
