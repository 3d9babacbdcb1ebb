/* Forward and inverse passes of a row flow; see rows.h. */
#include "rows.h"
#include "backward.h"

/* ---- moments over all rows: tiles, then threads, by Chan's update in double ---- */

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

/* In eval mode backward reads the running statistics where training has the batch's. */
static void keep_running(const Flow *f, real *const *p, real *stats) {
    long H = f->hidden, hp = padded(H);
    memset(stats, 0, 4 * (size_t)hp * sizeof(real));
    for (long j = 0; f->norm && j < H; j++) {
        stats[j] = p[MEAN1][j], stats[hp + j] = (real)(1 / sqrt((double)p[VAR1][j] + f->eps));
        stats[2 * hp + j] = p[MEAN2][j];
        stats[3 * hp + j] = (real)(1 / sqrt((double)p[VAR2][j] + f->eps));
    }
}

/* ---- one step over a tile ---- */

typedef struct {
    real *x, *y, *half, *h, *u, *i, *h2, *raw;
} Tile;

static void take_tile(Tile *tile, const Flow *f, Arena *arena) {
    long np = padded(f->n), hp = padded(f->hidden);
    tile->x = take(arena, TILE * np), tile->y = take(arena, TILE * np);
    tile->half = take(arena, TILE * np), tile->raw = take(arena, TILE * 2 * np);
    tile->h = take(arena, TILE * hp), tile->u = take(arena, TILE * hp);
    tile->i = take(arena, TILE * hp), tile->h2 = take(arena, TILE * hp);
}

static void tile_enter(const Flow *f, const Ready *q, int rows, const real *y, real *half, real *h) {
    squash_half(rows, y, padded(f->n), q->a, q->given, q->gp, (int)f->squash, half);
    times(rows, half, q->gp, &q->enter_t, h, padded(f->hidden), q->enter_b, 0);
}

static void tile_middle(const Flow *f, const Ready *q, int rows, const real *h, real *u, real *i) {
    int hp = (int)padded(f->hidden);
    norm_gelu(rows, hp, h, q->scale1, q->offset1, u, NULL);
    times(rows, u, hp, &q->linear1_t, i, hp, q->linear1_b, 0);
}

static void tile_leave(const Flow *f, const Ready *q, int rows, const real *h, const real *i,
                       real *u, real *h2, real *raw) {
    int hp = (int)padded(f->hidden);
    norm_gelu(rows, hp, i, q->scale2, q->offset2, u, NULL);
    residual(rows, hp, h, q->linear2_b, u, &q->linear2_t, h2);
    times(rows, h2, hp, &q->leave_t, raw, 2 * q->cp, q->leave_b, 0);
    bound_scales(rows, q->cp, raw, f->bound);
}

/* z = (y_a, y_b exp(s) + t), log_det += sum s */
static void affine(const Flow *f, const Ready *q, int rows, const real *y, const real *raw, real *z,
                   real *log_det) {
    int np = (int)padded(f->n);
    for (int r = 0; r < rows; r++) {
        const real *from = y + (long)r * np, *s = raw + (long)r * 2 * q->cp, *t = s + q->cp;
        real *to = z + (long)r * np, sum = 0;
        memmove(to + q->a, from + q->a, (size_t)q->given * sizeof(real));
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < q->changed; j++) {
            to[q->b + j] = from[q->b + j] * exp_(s[j]) + t[j];
            sum += s[j];
        }
        log_det[r] += sum;
    }
}

static void invert_affine(const Flow *f, const Ready *q, int rows, real *z, const real *raw,
                          real *log_det) {
    int np = (int)padded(f->n);
    for (int r = 0; r < rows; r++) {
        const real *s = raw + (long)r * 2 * q->cp, *t = s + q->cp;
        real *at = z + (long)r * np + q->b, sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < q->changed; j++) {
            at[j] = (at[j] - t[j]) * exp_(-s[j]);
            sum += s[j];
        }
        log_det[r] -= sum;
    }
}

static void load_rows(int rows, int n, const real *from, real *to) {
    for (int r = 0; r < rows; r++) copy_padded(to + r * padded(n), from + (long)r * n, n, (int)padded(n));
}

/* The last ActNorm, and out of the padded rows. */
static void store_rows(const Flow *f, const Step *tail, int rows, const real *from, real *to) {
    int n = (int)f->n;
    const real *log_scale = tail->p[LOG_SCALE], *shift = tail->p[SHIFT];
    for (int r = 0; r < rows; r++)
#pragma omp simd
        for (int j = 0; j < n; j++) {
            real x = from[r * padded(n) + j];
            to[(long)r * n + j] = log_scale ? x * exp_(log_scale[j]) + shift[j] : x;
        }
}

static void clear_moments(Moments *own, int H) {
    own->count = 0;
    memset(own->mean, 0, 2 * (size_t)H * sizeof(double));
}

/* Training: statistics over all rows between the passes; everything that backward needs is kept. */
static void forward_batch(const Flow *f, const Step *steps, Ready *ready, const Kept *kept, real *last,
                          real *log_det, Tile *tile, Moments *all, double *scratch, real *sums,
                          int t, int threads) {
    int H = (int)f->hidden, hp = (int)padded(H), np = (int)padded(f->n);
    long first, end;
    share(f, t, threads, &first, &end);
    for (int k = 0; k < f->steps; k++) {
        Ready *q = ready + k;
        const Kept *z = kept + k;
        real *const *p = steps[k].p;
        real *next = k + 1 < f->steps ? kept[k + 1].x : last;
        if (!f->batch && t == 0) keep_running(f, p, z->stats);
        clear_moments(all + t, H);
        for (long r = first; r < end; r += TILE) {
            int rows = (int)smaller(TILE, end - r);
            times(rows, z->x + r * np, np, &q->map_t, z->y + r * np, np, q->offset, 0);
            tile_enter(f, q, rows, z->y + r * np, tile->half, z->h + r * hp);
            if (f->batch) add_tile(all + t, H, hp, rows, z->h + r * hp, sums, scratch);
        }
#pragma omp barrier
        if (f->batch && t == 0)
            finish_norm(f, all, threads, p[GAMMA1], p[BETA1], p[MEAN1], p[VAR1], q->scale1, q->offset1,
                        z->stats, z->stats + hp);
#pragma omp barrier
        clear_moments(all + t, H);
        for (long r = first; r < end; r += TILE) {
            int rows = (int)smaller(TILE, end - r);
            tile_middle(f, q, rows, z->h + r * hp, tile->u, z->i + r * hp);
            if (f->batch) add_tile(all + t, H, hp, rows, z->i + r * hp, sums, scratch);
        }
#pragma omp barrier
        if (f->batch && t == 0)
            finish_norm(f, all, threads, p[GAMMA2], p[BETA2], p[MEAN2], p[VAR2], q->scale2, q->offset2,
                        z->stats + 2 * hp, z->stats + 3 * hp);
#pragma omp barrier
        for (long r = first; r < end; r += TILE) {
            int rows = (int)smaller(TILE, end - r);
            tile_leave(f, q, rows, z->h + r * hp, z->i + r * hp, tile->u, z->h2 + r * hp, tile->raw);
            affine(f, q, rows, z->y + r * np, tile->raw, next + r * np, log_det + r);
            for (int j = 0; j < rows; j++)
                memcpy(z->s + (r + j) * q->cp, tile->raw + j * 2 * q->cp, (size_t)q->cp * sizeof(real));
        }
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

/* x (rows, n) to z (rows, n) and log_det (rows). `steps` has one entry more: the last ActNorm.
   `kept` NULL: no gradients wanted and no statistics over rows, so that each tile goes through
   all the steps at once. Returns 0, or 1 without memory. */
int rows_forward(const Flow *f, const Step *steps, const real *x, real *z, real *log_det,
                 const Kept *kept, real *last) {
    int np = (int)padded(f->n), n = (int)f->n;
    long each;
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
        long first, end;
        take_own(&own, f, &arena);
        Tile tile = own.tile;
        all[t].mean = own.moments, all[t].m2 = own.moments + f->hidden;
        prepare(ready, f, steps, 0, t, crew);
        share(f, t, crew, &first, &end);
        for (long r = first; r < end; r++) log_det[r] = (real)shared;
        if (kept) {
            for (long r = first; r < end; r += TILE)
                load_rows((int)smaller(TILE, end - r), n, x + r * n, kept->x + r * np);
            forward_batch(f, steps, ready, kept, last, log_det, &tile, all,
                          own.moments + 2 * f->hidden, own.sums, t, crew);
        }
        for (long r = first; r < end; r += TILE) {
            int rows = (int)smaller(TILE, end - r);
            real *at = kept ? last + r * np : tile.x;
            if (!kept) load_rows(rows, n, x + r * n, at);
            for (int k = 0; k < f->steps && !kept; k++) {
                Ready *q = ready + k;
                times(rows, at, np, &q->map_t, tile.y, np, q->offset, 0);
                tile_enter(f, q, rows, tile.y, tile.half, tile.h);
                tile_middle(f, q, rows, tile.h, tile.u, tile.i);
                tile_leave(f, q, rows, tile.h, tile.i, tile.u, tile.h2, tile.raw);
                affine(f, q, rows, tile.y, tile.raw, at, log_det + r);
            }
            store_rows(f, steps + f->steps, rows, at, z + r * n);
        }
    }
    return 0;
}

/* ---- the inverse ---- */

/* scaled <- inverse of diag-scaled L U, in double: columns [first, end) of U^-1 L^-1, row by row,
   or of the inverse given */
static void invert_map(Ready *q, const Flow *f, const Step *s, double *w, int t, int threads) {
    int n = (int)f->n, first = n * t / threads, end = n * (t + 1) / threads, m = end - first;
    const real *packed = s->p[PACKED], *log_scale = s->p[LOG_SCALE], *given = s->p[INVERSE];
    for (int i = 0; !given && i < n; i++) { /* L W = I */
        double *row = w + (long)i * m;
        for (int j = 0; j < m; j++) row[j] = i == first + j;
        for (int k = 0; packed && k < i; k++)
            for (int j = 0; j < m; j++) row[j] -= (double)packed[i * n + k] * w[(long)k * m + j];
    }
    for (int i = n - 1; !given && i >= 0; i--) { /* U W = W */
        double *row = w + (long)i * m;
        for (int k = i + 1; packed && k < n; k++)
            for (int j = 0; j < m; j++) row[j] -= (double)packed[i * n + k] * w[(long)k * m + j];
        double scale = packed ? exp(-(double)packed[i * n + i]) : 1;
        for (int j = 0; j < m; j++) row[j] *= scale;
    }
    for (int i = 0; i < n; i++) {
        int from = f->reverse && packed ? n - 1 - i : i;
        double scale = log_scale ? exp(-(double)log_scale[i]) : 1;
        for (int j = 0; j < m; j++) {
            double each = given ? given[(long)i * n + first + j] : w[(long)from * m + j];
            q->scaled[(long)i * n + first + j] = (real)(scale * each);
        }
    }
}

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
            tile_enter(f, q, rows, x + r * np, tile->half, h + r * hp);
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
            invert_affine(f, q, rows, x + r * np, tile->raw, log_det + r);
            unmap(f, q, rows, x + r * np, tile->y);
        }
    }
}

/* z (rows, n) to x (rows, n) and log_det (rows) of the inverse. */
int rows_inverse(const Flow *f, const Step *steps, const real *z, real *x, real *log_det) {
    int np = (int)padded(f->n), n = (int)f->n, hp = (int)padded(f->hidden);
    long each, wide = (long)n * (n + f->threads), kept = f->batch ? f->rows : 0;
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
        long first, end;
        take_own(&own, f, &arena);
        Tile tile = own.tile;
        all[t].mean = own.moments, all[t].m2 = own.moments + f->hidden;
        prepare(ready, f, steps, 0, t, crew);
        for (int k = 0; k < f->steps; k++)
            invert_map(ready + k, f, steps + k, solved + t * wide, t, crew);
#pragma omp barrier
        for (int k = 0; k < f->steps; k++) pack(&ready[k].back_t, ready[k].scaled, 1, n, t, crew);
#pragma omp barrier
        share(f, t, crew, &first, &end);
        for (long r = first; r < end; r++) log_det[r] = (real)-shared;
        if (kept) {
            real *h = room + kept * np, *i = h + kept * hp;
            for (long r = first; r < end; r += TILE)
                load_tail(f, steps + f->steps, (int)smaller(TILE, end - r), z + r * n, room + r * np);
            inverse_batch(f, steps, ready, room, h, i, log_det, &own, all, i + kept * hp, t, crew);
        }
        for (long r = first; r < end; r += TILE) {
            int rows = (int)smaller(TILE, end - r);
            real *at = kept ? room + r * np : tile.x;
            if (!kept) load_tail(f, steps + f->steps, rows, z + r * n, at);
            for (int k = (int)f->steps - 1; k >= 0 && !kept; k--) {
                Ready *q = ready + k;
                tile_enter(f, q, rows, at, tile.half, tile.h);
                tile_middle(f, q, rows, tile.h, tile.u, tile.i);
                tile_leave(f, q, rows, tile.h, tile.i, tile.u, tile.h2, tile.raw);
                invert_affine(f, q, rows, at, tile.raw, log_det + r);
                unmap(f, q, rows, at, tile.y);
            }
            for (int i = 0; i < rows; i++)
                memcpy(x + (r + i) * n, at + i * np, (size_t)n * sizeof(real));
        }
    }
    return 0;
}

/* Numbers in a vector: what rows are padded to. */
int lanes(void) { return VL; }
