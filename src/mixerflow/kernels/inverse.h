/* The inverse pass. */

/* Out of the last ActNorm, into padded rows. */
static void load_tail(const Flow *f, const Step *tail, int rows, const real *from, real *to) {
    int n = (int)f->n, np = (int)padded(n);
    const real *log_scale = tail->p[LOG_SCALE], *shift = tail->p[SHIFT];
    load_rows(rows, n, from, to);
    for (int i = 0; i < rows && log_scale; i++)
#pragma omp simd
        for (int j = 0; j < n; j++)
            to[i * np + j] = (to[i * np + j] - shift[j]) * exp_(-log_scale[j]);
}

/* The linear map backwards, of a tile of rows in place. */
static void unmap(const Flow *f, const Ready *q, int rows, real *x, real *spare) {
    int np = (int)padded(f->n);
    for (int i = 0; i < rows; i++)
#pragma omp simd
        for (int j = 0; j < np; j++) x[i * np + j] -= q->offset[j];
    times(rows, x, np, &q->back_t, spare, np, NULL, 0);
    memcpy(x, spare, (size_t)rows * (size_t)np * sizeof(real));
}

/* The inverse in training mode: the half that a coupling passes is the same in both directions, so
   that its net sees the rows, and the statistics over them, that it saw on the way there. */
static void inverse_batch(const Flow *f, const Step *steps, Ready *ready, real *x, real *h, real *i,
                          real *log_det, const Own *own, Moments *all, real *stats, int t,
                          int threads) {
    int H = (int)f->hidden, hp = (int)padded(H), np = (int)padded(f->n);
    const Tile *tile = &own->tile;
    double *scratch = own->moments + 2 * H;
    long first, end;
    share(f, t, threads, &first, &end);
    for (int k = (int)f->steps - 1; k >= 0; k--) {
        Ready *q = ready + k;
        real *const *p = steps[k].p;
        clear_moments(all + t, H);
        for (long r = first; r < end; r += TILE) {
            int rows = (int)smaller(TILE, end - r);
            tile_enter(f, q, r, rows, x + r * np, tile, h + r * hp);
            add_tile(all + t, H, hp, rows, h + r * hp, own->sums, scratch);
        }
#pragma omp barrier
        if (t == 0)
            finish_norm(f, all, threads, p[GAMMA1], p[BETA1], p[MEAN1], p[VAR1], q->scale1,
                        q->offset1, stats, stats + hp);
#pragma omp barrier
        clear_moments(all + t, H);
        for (long r = first; r < end; r += TILE) {
            int rows = (int)smaller(TILE, end - r);
            tile_middle(f, q, rows, h + r * hp, tile->u, i + r * hp);
            add_tile(all + t, H, hp, rows, i + r * hp, own->sums, scratch);
        }
#pragma omp barrier
        if (t == 0)
            finish_norm(f, all, threads, p[GAMMA2], p[BETA2], p[MEAN2], p[VAR2], q->scale2,
                        q->offset2, stats, stats + hp);
#pragma omp barrier
        for (long r = first; r < end; r += TILE) {
            int rows = (int)smaller(TILE, end - r);
            tile_leave(f, q, rows, h + r * hp, i + r * hp, tile->u, tile->h2, tile->raw);
            uncouple(f, q, rows, x + r * np, tile->raw, log_det + r);
            unmap(f, q, rows, x + r * np, tile->y);
        }
    }
}

/* Rows of z to where they begin their way back, and the log-det that all share. */
static void begin_back(const Flow *f, const Step *steps, int rows, const real *z, real *to,
                       real *log_det, double shared) {
    load_tail(f, steps + f->steps, rows, z, to);
    for (int j = 0; j < rows; j++) log_det[j] = (real)-shared;
}

/* z (rows, n) to x (rows, n) and log_det (rows) of the inverse. */
int rows_inverse(const Flow *f, const Step *steps, const real *z, real *x, real *log_det) {
    int np = (int)padded(f->n), n = (int)f->n, hp = (int)padded(f->hidden);
    long each, next = 0, wide = (long)n * COLUMNS, kept = f->batch ? f->rows : 0;
    double shared = shared_log_det(f, steps);
    Moments *all;
    Ready *ready = make_ready(f, steps);
    real *memory = make_crew(f, &all, &each);
    real *room = scratch(KEPT, (size_t)(kept * (np + 2 * hp) + 2 * hp) * sizeof(real));
    double *solved = scratch(SHARED, (size_t)(wide * f->threads) * sizeof(double));
    if (!ready || !memory || !solved || !room) return 1;
#pragma omp parallel num_threads(f->threads)
    {
        int t = omp_get_thread_num(), crew = omp_get_num_threads();
        Own own;
        Arena arena = {memory + t * each, 0};
        long first, end, r;
        int rows;
        take_own(&own, f, &arena);
        Tile tile = own.tile;
        all[t].mean = own.moments, all[t].m2 = own.moments + f->hidden;
        prepare(ready, f, steps, 0, t, crew);
        for (int k = 0; k < f->steps; k++)
            invert_map(ready + k, f, steps + k, solved + t * wide, t, crew);
#pragma omp barrier
        for (int k = 0; k < f->steps; k++) pack(&ready[k].back_t, ready[k].scaled, 1, np, t, crew);
#pragma omp barrier
        if (f->batch) {
            real *h = room + f->rows * np, *i = h + f->rows * hp;
            share(f, t, crew, &first, &end);
            for (r = first; r < end; r += TILE) {
                rows = (int)smaller(TILE, end - r);
                begin_back(f, steps, rows, z + r * n, room + r * np, log_det + r, shared);
            }
            inverse_batch(f, steps, ready, room, h, i, log_det, &own, all, i + f->rows * hp, t, crew);
            for (r = first; r < end; r++)
                memcpy(x + r * n, room + r * np, (size_t)n * sizeof(real));
        } else while ((rows = take_rows(f, &next, &r))) {
            begin_back(f, steps, rows, z + r * n, tile.x, log_det + r, shared);
            for (int k = (int)f->steps - 1; k >= 0; k--) {
                const Ready *q = ready + k;
                tile_enter(f, q, r, rows, tile.x, &tile, tile.h);
                tile_middle(f, q, rows, tile.h, tile.u, tile.i);
                tile_leave(f, q, rows, tile.h, tile.i, tile.u, tile.h2, tile.raw);
                uncouple(f, q, rows, tile.x, tile.raw, log_det + r);
                unmap(f, q, rows, tile.x, tile.y);
            }
            for (int i = 0; i < rows; i++)
                memcpy(x + (r + i) * n, tile.x + i * np, (size_t)n * sizeof(real));
        }
    }
    return 0;
}
