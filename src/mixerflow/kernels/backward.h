/* The backward pass of a row flow, from what `rows_forward` kept. */

typedef struct {
    const Flow *f;
    const Step *steps, *grads;
    const Kept *kept;
    Ready *ready;
    Work *all;
    real *dz, *dh2, *dq, *means, *plain;
    real *dcontexts; /* NULL: not wanted */
    const real *g;
    double total;
} Pass;

/* A step back over a tile of rows from row r on, in three parts. What the net's gradients pass through
   between them, dh2 and dq, is the caller's: where the tile lies among all rows, or one tile's room. */

/* Leave, second linear map, second gelu. */
static void back_leave(const Pass *b, int k, Work *w, long r, int rows, real *dh2, real *dq) {
    const Flow *f = b->f;
    const Ready *q = b->ready + k;
    const Kept *z = b->kept + k;
    int H = (int)f->hidden, hp = (int)padded(H), np = (int)padded(f->n), wide = q->wide;
    if (!f->kept) times(rows, z->h2 + r * hp, hp, &q->leave_t, w->raw, wide, q->leave_b, 0);
    const real *kept = f->kept ? z->s + r * f->kept * q->cp : w->raw;
    couple_backward(f, q, rows, b->dz + r * np, z->y + r * np, kept, b->g + r, w->draw);
    add_columns(rows, wide, w->draw, wide, w->leave_b);
    outer(rows, w->draw, wide, wide, z->h2 + r * hp, hp, hp, w->leave, hp);
    times(rows, w->draw, wide, &q->leave_p, dh2, hp, NULL, 0);
    norm_gelu(f, rows, z->i + r * hp, q->scale2, q->offset2, w->u, w->slope);
    add_columns(rows, hp, dh2, hp, w->linear2_b);
    outer(rows, dh2, hp, H, w->u, hp, hp, w->linear2, hp);
    times(rows, dh2, hp, &q->linear2, w->du, hp, NULL, 0);
    gelu_backward(f, rows, z->i + r * hp, z->stats + 2 * hp, w,
                  b->grads[k].p[GAMMA2] ? w->norm[1] : NULL, dq);
}

/* Second norm, first linear map, first gelu. */
static void back_middle(const Pass *b, int k, Work *w, long r, int rows, real *dq) {
    const Flow *f = b->f;
    const Ready *q = b->ready + k;
    const Kept *z = b->kept + k;
    int H = (int)f->hidden, hp = (int)padded(H);
    norm_backward(f, rows, dq, z->i + r * hp, z->stats + 2 * hp, q->scale2, b->means, NULL, dq);
    add_columns(rows, hp, dq, hp, w->linear1_b);
    norm_gelu(f, rows, z->h + r * hp, q->scale1, q->offset1, w->u, w->slope);
    outer(rows, dq, hp, H, w->u, hp, hp, w->linear1, hp);
    times(rows, dq, hp, &q->linear1, w->du, hp, NULL, 0);
    gelu_backward(f, rows, z->h + r * hp, z->stats, w,
                  b->grads[k].p[GAMMA1] ? w->norm[0] : NULL, dq);
}

/* From dh of rows from r on, of a thread whose first row is `first`: gradients of contexts and of
   their map. */
static void back_contexts(const Pass *b, const Ready *q, Work *w, long first, long r, int rows,
                          const real *dh) {
    const Flow *f = b->f;
    long H = f->hidden, hp = padded(H), K = f->context, kp = padded(K), from = r / f->within;
    int count = (int)((r + rows - 1) / f->within - from + 1);
    real *sums = w->u;
    memset(sums, 0, (size_t)(count * hp) * sizeof(real));
    for (int i = 0; i < rows; i++)
        add_columns(1, (int)hp, dh + i * hp, hp, sums + ((r + i) / f->within - from) * hp);
    for (int i = 0; i < count; i++)
        copy_padded(w->contexts + i * kp, f->contexts + (from + i) * K, (int)K, (int)kp);
    outer(count, sums, hp, (int)H, w->contexts, kp, (int)kp, w->context, kp);
    if (!b->dcontexts) return;
    times(count, sums, hp, &q->context, w->dcontexts, kp, NULL, 0);
    for (int i = 0; i < count; i++) {
        real *to = (from + i) * f->within < first ? w->carry : b->dcontexts + (from + i) * K;
        add_columns(1, (int)K, w->dcontexts + i * kp, kp, to);
    }
}

/* A thread's contexts begin at 0: those that begin among its rows. */
static void begin_contexts(const Pass *b, Work *w, long first, long end) {
    const Flow *f = b->f;
    if (!b->dcontexts) return;
    memset(w->carry, 0, (size_t)padded(f->context) * sizeof(real));
    for (long g = (first + f->within - 1) / f->within; g * f->within < end; g++)
        memset(b->dcontexts + g * f->context, 0, (size_t)f->context * sizeof(real));
}

/* Contexts that rows of several threads have, in the threads' order. Run by one thread. */
static void finish_contexts(const Pass *b, int threads) {
    const Flow *f = b->f;
    for (int t = 1; b->dcontexts && t < threads; t++) {
        long first, end;
        share(f, t, threads, &first, &end);
        if (first < end && first % f->within)
            add_columns(1, (int)f->context, b->all[t].carry, 0,
                        b->dcontexts + first / f->within * f->context);
    }
}

/* First norm, what the net reads, the linear map; of a thread whose first row is `first`. */
static void back_enter(const Pass *b, int k, Work *w, long first, long r, int rows, const real *dh2,
                       real *dq) {
    const Flow *f = b->f;
    const Ready *q = b->ready + k;
    const Kept *z = b->kept + k;
    int H = (int)f->hidden, hp = (int)padded(H), n = (int)f->n, np = (int)padded(n), rp = q->rp;
    real *dy = b->dz + r * np;
    norm_backward(f, rows, dq, z->h + r * hp, z->stats, q->scale1, b->means, dh2, dq);
    add_columns(rows, hp, dq, hp, w->enter_b);
    if (f->context) back_contexts(b, q, w, first, r, rows, dq);
    read_half(f, q, rows, z->y + r * np, w->half);
    outer(rows, dq, hp, H, w->half, rp, rp, w->enter, rp);
    times(rows, dq, hp, &q->enter, w->dhalf, rp, NULL, 0);
    half_backward(f, q, rows, z->y + r * np, w->half, w->dhalf, dy);
    add_columns(rows, np, dy, np, w->offset);
    outer(rows, dy, np, n, z->x + r * np, np, np, w->map, np);
    times(rows, dy, np, &q->map, w->half, np, NULL, 0);
    memcpy(dy, w->half, (size_t)rows * (size_t)np * sizeof(real));
}

/* The gradients of the scale and shift of norm 0 or 1. */
static void back_norm(const Pass *b, int k, int which, int threads) {
    real *const *p = b->grads[k].p;
    finish_sums(b->f, b->all, which, threads, p[which ? GAMMA2 : GAMMA1], p[which ? BETA2 : BETA1],
                b->means);
}

/* Where no row sees another, a tile stays in cache through the step; else the three parts wait for the
   sums over all rows. */
static void back_step(const Pass *b, int k, Work *w, long first, long end, int t, int threads) {
    long hp = padded(b->f->hidden);
    if (!b->f->batch) {
        real *dh2 = b->dh2 + t * TILE * hp, *dq = b->dq + t * TILE * hp;
        for (long r = first; r < end; r += TILE) {
            int rows = (int)smaller(TILE, end - r);
            back_leave(b, k, w, r, rows, dh2, dq);
            back_middle(b, k, w, r, rows, dq);
            back_enter(b, k, w, first, r, rows, dh2, dq);
        }
#pragma omp barrier
        if (t == 0) back_norm(b, k, 0, threads), back_norm(b, k, 1, threads);
#pragma omp barrier
        return;
    }
    for (long r = first; r < end; r += TILE)
        back_leave(b, k, w, r, (int)smaller(TILE, end - r), b->dh2 + r * hp, b->dq + r * hp);
#pragma omp barrier
    if (t == 0) back_norm(b, k, 1, threads);
#pragma omp barrier
    for (long r = first; r < end; r += TILE)
        back_middle(b, k, w, r, (int)smaller(TILE, end - r), b->dq + r * hp);
#pragma omp barrier
    if (t == 0) back_norm(b, k, 0, threads);
#pragma omp barrier
    for (long r = first; r < end; r += TILE)
        back_enter(b, k, w, first, r, (int)smaller(TILE, end - r), b->dh2 + r * hp, b->dq + r * hp);
#pragma omp barrier
}

static void gather_step(const Pass *b, int k, int t, int threads) {
    const Ready *q = b->ready + k;
    real *const *p = b->grads[k].p;
    Work *all = b->all, *w = all;
    int n = (int)b->f->n, H = (int)b->f->hidden, hp = (int)padded(H), np = (int)padded(n), c = q->changed;
#define AT(part) (all[0].part - all[0].draw)
    gather(all, AT(enter), H, q->read, q->rp, p[ENTER], t, threads);
    gather(all, AT(enter_b), 1, H, hp, p[ENTER_B], t, threads);
    gather(all, AT(context), H, (int)b->f->context, (int)padded(b->f->context), p[CONTEXT], t, threads);
    gather(all, AT(linear1), H, H, hp, p[LINEAR1], t, threads);
    gather(all, AT(linear1_b), 1, H, hp, p[LINEAR1_B], t, threads);
    gather(all, AT(linear2), H, H, hp, p[LINEAR2], t, threads);
    gather(all, AT(linear2_b), 1, H, hp, p[LINEAR2_B], t, threads);
    for (int j = 0; j < b->f->params; j++) {
        gather(all, AT(leave) + (long)j * q->cp * hp, c, H, hp, p[LEAVE] + (long)j * c * H, t, threads);
        gather(all, AT(leave_b) + j * q->cp, 1, c, c, p[LEAVE_B] + j * c, t, threads);
    }
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

/* dz (rows, n) and g (rows), the gradients of z and log_det, to dx (rows, n), dcontexts, NULL if not
   wanted, and those of the parameters in `grads`, which has the layout of `steps`. */
int rows_backward(const Flow *f, const Step *steps, const Kept *kept, const real *last,
                  const real *dz, const real *g, real *dx, real *dcontexts, const Step *grads) {
    long R = f->rows, n = f->n, H = f->hidden, np = padded(n), hp = padded(H);
    Arena arena = {NULL, 0};
    Work first_work;
    Pass b = {.f = f, .steps = steps, .grads = grads, .kept = kept, .g = g, .dcontexts = dcontexts};
    take_work(&first_work, f, &arena);
    size_t heads = (size_t)f->threads * sizeof(Work) / 64 * 64 + 64;
    size_t each = (size_t)(arena.used + 15) / 16 * 16;
    char *crews = scratch(CREW, heads + (size_t)f->threads * each * sizeof(real));
    b.ready = make_ready(f, steps);
    long between = f->batch ? R : f->threads * TILE; /* rows of dh2 and dq: all, or a tile a thread */
    b.dz = scratch(SHARED, (size_t)(R * np + (2 * between + 2) * hp + n * np) * sizeof(real));
    if (!b.ready || !crews || !b.dz) return 1;
    b.dh2 = b.dz + R * np, b.dq = b.dh2 + between * hp, b.means = b.dq + between * hp;
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
        begin_contexts(&b, w, first, end);
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
            memset(w->norm[0], 0, 4 * (size_t)hp * sizeof(double));
            if (f->norm == BATCH_NORM && t == 0)
                for (int j = 0; j < H; j++) {
                    const real *s = kept[k].stats;
                    q->scale1[j] = steps[k].p[GAMMA1][j] * s[hp + j];
                    q->offset1[j] = steps[k].p[BETA1][j] - s[j] * q->scale1[j];
                    q->scale2[j] = steps[k].p[GAMMA2][j] * s[3 * hp + j];
                    q->offset2[j] = steps[k].p[BETA2][j] - s[2 * hp + j] * q->scale2[j];
                }
#pragma omp barrier
            back_step(&b, k, w, first, end, t, crew);
            gather_step(&b, k, t, crew);
        }
        if (t == 0) finish_contexts(&b, crew);
        for (long r = first; r < end; r++) memcpy(dx + r * n, b.dz + r * np, (size_t)n * sizeof(real));
    }
    return 0;
}
