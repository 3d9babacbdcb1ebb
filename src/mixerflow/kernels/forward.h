/* The forward pass. */

/* One step over a tile of rows from row r on, in three parts; everything that backward needs is kept. */
static void keep_enter(const Flow *f, const Ready *q, const Kept *z, const Tile *tile, long r,
                       int rows) {
    long hp = padded(f->hidden), np = padded(f->n);
    times(rows, z->x + r * np, np, &q->map_t, z->y + r * np, np, q->offset, 0);
    tile_enter(f, q, r, rows, z->y + r * np, tile, z->h + r * hp);
}

static void keep_middle(const Flow *f, const Ready *q, const Kept *z, const Tile *tile, long r,
                        int rows) {
    long hp = padded(f->hidden);
    tile_middle(f, q, rows, z->h + r * hp, tile->u, z->i + r * hp);
}

static void keep_leave(const Flow *f, const Ready *q, const Kept *z, const Tile *tile, long r,
                       int rows, real *next, real *log_det) {
    long hp = padded(f->hidden), np = padded(f->n);
    long kept = f->kept * q->cp;
    tile_leave(f, q, rows, z->h + r * hp, z->i + r * hp, tile->u, z->h2 + r * hp, tile->raw);
    couple(f, q, rows, z->y + r * np, tile->raw, next + r * np, log_det + r);
    for (int j = 0; kept && j < rows; j++)
        memcpy(z->s + (r + j) * kept, tile->raw + j * q->wide, (size_t)kept * sizeof(real));
}

/* Where no row sees another, a tile stays in cache through all the steps; here everything is kept. */
static void forward_tile(const Flow *f, const Ready *ready, const Kept *kept, real *last, real *log_det,
                         const Tile *tile, long r, int rows) {
    for (int k = 0; k < f->steps; k++) {
        keep_enter(f, ready + k, kept + k, tile, r, rows);
        keep_middle(f, ready + k, kept + k, tile, r, rows);
        keep_leave(f, ready + k, kept + k, tile, r, rows, k + 1 < f->steps ? kept[k + 1].x : last,
                   log_det);
    }
}

/* Here nothing is. */
static void plain_tile(const Flow *f, const Ready *ready, real *at, real *log_det, const Tile *tile,
                       long r, int rows) {
    for (int k = 0; k < f->steps; k++) {
        const Ready *q = ready + k;
        times(rows, at, padded(f->n), &q->map_t, tile->y, padded(f->n), q->offset, 0);
        tile_enter(f, q, r, rows, tile->y, tile, tile->h);
        tile_middle(f, q, rows, tile->h, tile->u, tile->i);
        tile_leave(f, q, rows, tile->h, tile->i, tile->u, tile->h2, tile->raw);
        couple(f, q, rows, tile->y, tile->raw, at, log_det);
    }
}

/* Batch norm in training: statistics over all rows between the parts. */
static void forward_batch(const Flow *f, const Step *steps, Ready *ready, const Kept *kept, real *last,
                          real *log_det, const Tile *tile, Moments *all, double *scratch, real *sums,
                          int t, int threads, long first, long end) {
    int H = (int)f->hidden, hp = (int)padded(H);
    for (int k = 0; k < f->steps; k++) {
        Ready *q = ready + k;
        const Kept *z = kept + k;
        real *const *p = steps[k].p;
        real *next = k + 1 < f->steps ? kept[k + 1].x : last;
        clear_moments(all + t, H);
        for (long r = first; r < end; r += TILE) {
            int rows = (int)smaller(TILE, end - r);
            keep_enter(f, q, z, tile, r, rows);
            add_tile(all + t, H, hp, rows, z->h + r * hp, sums, scratch);
        }
#pragma omp barrier
        if (t == 0)
            finish_norm(f, all, threads, p[GAMMA1], p[BETA1], p[MEAN1], p[VAR1], q->scale1, q->offset1,
                        z->stats, z->stats + hp);
#pragma omp barrier
        clear_moments(all + t, H);
        for (long r = first; r < end; r += TILE) {
            int rows = (int)smaller(TILE, end - r);
            keep_middle(f, q, z, tile, r, rows);
            add_tile(all + t, H, hp, rows, z->i + r * hp, sums, scratch);
        }
#pragma omp barrier
        if (t == 0)
            finish_norm(f, all, threads, p[GAMMA2], p[BETA2], p[MEAN2], p[VAR2], q->scale2, q->offset2,
                        z->stats + 2 * hp, z->stats + 3 * hp);
#pragma omp barrier
        for (long r = first; r < end; r += TILE)
            keep_leave(f, q, z, tile, r, (int)smaller(TILE, end - r), next, log_det);
    }
}

/* The log-det that all rows share: diagonals of U or given, and the ActNorms' log-scales. */
static double shared_log_det(const Flow *f, const Step *steps) {
    double sum = 0;
    int n = (int)f->n;
    for (int k = 0; k <= f->steps; k++) {
        if (steps[k].p[LOG_DET]) sum += *steps[k].p[LOG_DET];
        for (int j = 0; j < n; j++) {
            if (k < f->steps && steps[k].p[PACKED]) sum += steps[k].p[PACKED][(long)j * n + j];
            if (steps[k].p[LOG_SCALE]) sum += steps[k].p[LOG_SCALE][j];
        }
    }
    return sum;
}

/* What a thread needs: a tile, and moments with their scratch. */
typedef struct {
    Tile tile;
    real *sums;
    double *moments;
} Own;

static void take_own(Own *own, const Flow *f, Arena *arena) {
    take_tile(&own->tile, f, arena);
    own->sums = take(arena, 2 * padded(f->hidden));
    own->moments = (double *)take(arena, 4 * f->hidden * (long)(sizeof(double) / sizeof(real)));
}

/* One `Own` a thread, in memory that starts with their moments' heads. */
static real *make_crew(const Flow *f, Moments **all, long *each) {
    Arena arena = {NULL, 0};
    Own own;
    take_own(&own, f, &arena);
    *each = arena.used;
    size_t heads = (size_t)f->threads * sizeof(Moments) / 64 * 64 + 64;
    char *memory = scratch(CREW, heads + (size_t)(f->threads * arena.used) * sizeof(real));
    *all = (Moments *)memory;
    return memory ? (real *)(memory + heads) : NULL;
}

/* Rows of x to where they begin their way, and the log-det that all share. */
static void begin_rows(int rows, int n, const real *x, real *to, real *log_det, double shared) {
    load_rows(rows, n, x, to);
    for (int j = 0; j < rows; j++) log_det[j] = (real)shared;
}

/* x (rows, n) to z (rows, n) and log_det (rows). `steps` has one entry more: the last ActNorm.
   `kept` NULL: no gradients wanted and no statistics over rows, so that each tile goes through
   all the steps at once. Returns 0, or 1 without memory. */
int rows_forward(const Flow *f, const Step *steps, const real *x, real *z, real *log_det,
                 const Kept *kept, real *last) {
    int np = (int)padded(f->n), n = (int)f->n;
    long each, next = 0;
    double shared = shared_log_det(f, steps);
    Moments *all;
    Ready *ready = make_ready(f, steps);
    real *memory = make_crew(f, &all, &each);
    if (!ready || !memory) return 1;
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
        for (int k = 0; kept && !f->batch && t == 0 && k < f->steps; k++)
            keep_running(f, steps[k].p, kept[k].stats);
        if (f->batch) {
            share(f, t, crew, &first, &end);
            for (r = first; r < end; r += TILE) {
                rows = (int)smaller(TILE, end - r);
                begin_rows(rows, n, x + r * n, kept->x + r * np, log_det + r, shared);
            }
            forward_batch(f, steps, ready, kept, last, log_det, &tile, all,
                          own.moments + 2 * f->hidden, own.sums, t, crew, first, end);
            for (r = first; r < end; r += TILE)
                store_rows(f, steps + f->steps, (int)smaller(TILE, end - r), last + r * np, z + r * n);
        } else while ((rows = take_rows(f, &next, &r))) {
            real *at = kept ? last + r * np : tile.x;
            begin_rows(rows, n, x + r * n, kept ? kept->x + r * np : at, log_det + r, shared);
            if (kept) forward_tile(f, ready, kept, last, log_det, &tile, r, rows);
            else plain_tile(f, ready, at, log_det + r, &tile, r, rows);
            store_rows(f, steps + f->steps, rows, at, z + r * n);
        }
    }
    return 0;
}
