/* A row flow: (ActNorm, linear map, affine coupling with a residual MLP) several times, then ActNorm.
   Rows are cut into tiles that stay in cache; a thread owns a contiguous run of tiles. */
#include "numeric.h"

#define TILE 64

/* Parameters of a step, and in the same places their gradients; then what has none: statistics, and
   of a flow for inference the linear map, its inverse and log-det in place of PACKED. */
enum { LOG_SCALE, SHIFT, PACKED, OFFSET, ENTER, ENTER_B, GAMMA1, BETA1, LINEAR1, LINEAR1_B,
       GAMMA2, BETA2, LINEAR2, LINEAR2_B, LEAVE, LEAVE_B, PARAMETERS,
       MEAN1 = PARAMETERS, VAR1, MEAN2, VAR2, WEIGHT, INVERSE, LOG_DET, POINTERS };

typedef struct {
    real *p[POINTERS]; /* NULL where a step has no such part */
    long flip;
} Step;

typedef struct {
    long rows, n, hidden, steps, norm, batch, update, squash, reverse, threads, tail;
    double eps, momentum, bound; /* bound 0: none */
    /* where other processes hold more rows: makes count, means and sums of squared deviations (kind
       MOMENTS), or count and sums (kind SUMS), those of all; NULL where there are none */
    void (*share)(double *numbers, long count, long kind);
} Flow;

enum { MOMENTS, SUMS };

/* What a step keeps for its backward pass, `stride` numbers a row each. */
typedef struct {
    real *x, *y, *h, *i, *h2, *s, *stats;
} Kept;

/* A step made ready: one dense map, packed matrices, padded biases. */
typedef struct {
    int given, changed, gp, cp, a, b; /* sizes, padded sizes, first columns of both halves */
    real *matrix, *scaled, *offset, *enter_b, *linear1_b, *linear2_b, *leave_b, *leave;
    real *scale1, *offset1, *scale2, *offset2; /* batch norm as one affine map */
    Packed map_t, enter_t, linear1_t, linear2_t, leave_t; /* forward */
    Packed map, enter, linear1, linear2, leave_p;         /* backward */
    Packed back_t;                                        /* the inverse map */
} Ready;

typedef struct { real *base; long used; } Arena;

static real *take(Arena *arena, long count) {
    real *at = arena->base ? arena->base + arena->used : NULL;
    arena->used += (count + 15) / 16 * 16;
    return at;
}

static Packed take_packed(Arena *arena, int K, int n) {
    Packed packed = {K, n, take(arena, packed_size(K, n))};
    return packed;
}

static void lay_out(Ready *q, const Flow *f, const Step *s, Arena *arena) {
    int n = (int)f->n, H = (int)f->hidden, hp = (int)padded(H), np = (int)padded(n);
    q->given = s->flip ? n / 2 : (n + 1) / 2;
    q->changed = n - q->given;
    q->gp = (int)padded(q->given), q->cp = (int)padded(q->changed);
    q->a = s->flip ? q->changed : 0, q->b = s->flip ? 0 : q->given;
    q->matrix = take(arena, (long)n * n), q->scaled = take(arena, (long)n * n);
    q->offset = take(arena, np);
    q->enter_b = take(arena, hp), q->linear1_b = take(arena, hp), q->linear2_b = take(arena, hp);
    q->leave_b = take(arena, 2 * q->cp), q->leave = take(arena, 2L * q->cp * H);
    q->scale1 = take(arena, hp), q->offset1 = take(arena, hp);
    q->scale2 = take(arena, hp), q->offset2 = take(arena, hp);
    q->map_t = take_packed(arena, n, n), q->enter_t = take_packed(arena, q->given, H);
    q->linear1_t = take_packed(arena, H, H), q->linear2_t = take_packed(arena, H, H);
    q->leave_t = take_packed(arena, H, 2 * q->cp);
    q->map = take_packed(arena, n, n), q->enter = take_packed(arena, H, q->given);
    q->linear1 = take_packed(arena, H, H), q->linear2 = take_packed(arena, H, H);
    q->leave_p = take_packed(arena, 2 * q->cp, H), q->back_t = take_packed(arena, n, n);
}

/* Memory of this thread that is there again at the next call: fresh pages cost more than filling
   them. Each slot grows to the largest call's need; NULL where there is not so much. */
enum { READY, MAPS, CREW, SHARED, KEPT, SLOTS };

static void *scratch(int slot, size_t bytes) {
    static _Thread_local struct { void *at; size_t bytes; } slots[SLOTS];
    if (slots[slot].bytes < bytes) {
        free(slots[slot].at);
        slots[slot].bytes = (bytes + 4095) / 4096 * 4096;
        slots[slot].at = aligned_alloc(64, slots[slot].bytes);
        if (!slots[slot].at) slots[slot].bytes = 0;
    }
    return slots[slot].at;
}

static Ready *make_ready(const Flow *f, const Step *steps) {
    Ready *ready = scratch(READY, (size_t)f->steps * sizeof(Ready));
    if (!ready) return NULL;
    Arena arena = {NULL, 0};
    for (int k = 0; k < f->steps; k++) lay_out(ready + k, f, steps + k, &arena);
    arena.base = scratch(MAPS, (size_t)arena.used * sizeof(real));
    if (!arena.base) return NULL;
    arena.used = 0;
    for (int k = 0; k < f->steps; k++) lay_out(ready + k, f, steps + k, &arena);
    return ready;
}

static void copy_padded(real *to, const real *from, int n, int np) {
    for (int j = 0; j < n; j++) to[j] = from ? from[j] : 0;
    for (int j = n; j < np; j++) to[j] = 0;
}

/* matrix = L U (columns reversed for RLU), scaled = matrix diag(exp(log_scale)): a share of rows */
static void dense_map(Ready *q, const Flow *f, const Step *s, int t, int threads) {
    int n = (int)f->n;
    const real *packed = s->p[PACKED], *shift = s->p[SHIFT], *log_scale = s->p[LOG_SCALE];
    real diagonal[n], scale[n];
    for (int j = 0; j < n; j++) {
        diagonal[j] = packed ? exp_(packed[j * n + j]) : 1;
        scale[j] = log_scale ? exp_(log_scale[j]) : 1;
    }
    for (int i = n * t / threads; i < n * (t + 1) / threads; i++) {
        real *row = q->matrix + (long)i * n, *scaled = q->scaled + (long)i * n;
        memset(scaled, 0, (size_t)n * sizeof(real));
        if (s->p[WEIGHT]) memcpy(scaled, s->p[WEIGHT] + (long)i * n, (size_t)n * sizeof(real));
        else if (packed)
            for (int k = 0; k <= i; k++) {
                real l = k == i ? 1 : packed[i * n + k];
                scaled[k] += l * diagonal[k];
                for (int j = k + 1; j < n; j++) scaled[j] += l * packed[k * n + j];
            }
        else scaled[i] = 1;
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
    int n = (int)f->n, H = (int)f->hidden, hp = (int)padded(H), c = q->changed, g = q->given;
    if (t == 0) {
        for (int j = n; j < padded(n); j++) q->offset[j] = 0;
        copy_padded(q->enter_b, s->p[ENTER_B], H, hp);
        copy_padded(q->linear1_b, s->p[LINEAR1_B], H, hp);
        copy_padded(q->linear2_b, s->p[LINEAR2_B], H, hp);
        copy_padded(q->leave_b, s->p[LEAVE_B], c, q->cp);
        copy_padded(q->leave_b + q->cp, s->p[LEAVE_B] + c, c, q->cp);
        if (!f->batch) {
            fold_norm(H, f->eps, s->p[GAMMA1], s->p[BETA1], s->p[MEAN1], s->p[VAR1], q->scale1,
                      q->offset1);
            fold_norm(H, f->eps, s->p[GAMMA2], s->p[BETA2], s->p[MEAN2], s->p[VAR2], q->scale2,
                      q->offset2);
        }
    }
    pack(&q->map_t, q->scaled, 1, n, t, threads);
    pack(&q->enter_t, s->p[ENTER], 1, g, t, threads);
    pack(&q->linear1_t, s->p[LINEAR1], 1, H, t, threads);
    pack(&q->linear2_t, s->p[LINEAR2], 1, H, t, threads);
    pack(&q->leave_t, q->leave, 1, H, t, threads);
    if (!backward) return;
    pack(&q->map, q->scaled, n, 1, t, threads);
    pack(&q->enter, s->p[ENTER], g, 1, t, threads);
    pack(&q->linear1, s->p[LINEAR1], H, 1, t, threads);
    pack(&q->linear2, s->p[LINEAR2], H, 1, t, threads);
    pack(&q->leave_p, q->leave, H, 1, t, threads);
}

/* The last linear map with its shifts and its log-scales in blocks of whole vectors. */
static void pad_leave(Ready *q, const Flow *f, const Step *s, int t, int threads) {
    int H = (int)f->hidden, c = q->changed;
    for (int k = 2 * q->cp * t / threads; k < 2 * q->cp * (t + 1) / threads; k++) {
        int part = k / q->cp, j = k % q->cp;
        real *row = q->leave + (long)k * H;
        if (j < c) memcpy(row, s->p[LEAVE] + (long)(part * c + j) * H, (size_t)H * sizeof(real));
        else memset(row, 0, (size_t)H * sizeof(real));
    }
}

static void prepare(Ready *ready, const Flow *f, const Step *steps, int backward, int t, int threads) {
    for (int k = 0; k < f->steps; k++) {
        dense_map(ready + k, f, steps + k, t, threads);
        pad_leave(ready + k, f, steps + k, t, threads);
    }
#pragma omp barrier
    for (int k = 0; k < f->steps; k++)
        pack_step(ready + k, f, steps + k, backward, t, threads);
#pragma omp barrier
}

/* ---- tiles of the conditioner ---- */

/* u = gelu(scale * h + offset); slope its derivative, where wanted */
static void norm_gelu(int rows, int hp, const real *h, const real *scale, const real *offset,
                      real *u, real *slope) {
    for (int r = 0; r < rows; r++) {
        const real *from = h + (long)r * hp;
        real *to = u + (long)r * hp, *also = slope ? slope + (long)r * hp : NULL;
        real unused;
        if (also)
#pragma omp simd
            for (int j = 0; j < hp; j++) to[j] = gelu_(scale[j] * from[j] + offset[j], also + j);
        else
#pragma omp simd private(unused)
            for (int j = 0; j < hp; j++) to[j] = gelu_(scale[j] * from[j] + offset[j], &unused);
    }
}

static void squash_half(int rows, const real *y, long np, int a, int given, int gp, int squash,
                        real *to) {
    for (int r = 0; r < rows; r++) {
        const real *from = y + (long)r * np + a;
        real *into = to + (long)r * gp;
        if (squash)
#pragma omp simd
            for (int j = 0; j < given; j++) into[j] = squash_(from[j]);
        else memcpy(into, from, (size_t)given * sizeof(real));
        for (int j = given; j < gp; j++) into[j] = 0;
    }
}

static void residual(int rows, int hp, const real *h, const real *bias, const real *u,
                     const Packed *w, real *h2) {
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < hp; j++) h2[(long)r * hp + j] = h[(long)r * hp + j] + bias[j];
    times(rows, u, hp, w, h2, hp, NULL, 1);
}

/* log-scales, bounded, in the first block of raw */
static void bound_scales(int rows, int cp, real *raw, double bound) {
    if (bound <= 0) return;
    real b = (real)bound;
    for (int r = 0; r < rows; r++) {
        real *s = raw + (long)r * 2 * cp;
#pragma omp simd
        for (int j = 0; j < cp; j++) {
            real e = exp_(2 * s[j] / b); /* tanh(v) = 1 - 2 / (exp(2 v) + 1) */
            s[j] = b * (1 - 2 / (e + 1));
        }
    }
}

/* The tiles of thread t: [first row, end row) */
static void share(const Flow *f, int t, int threads, long *first, long *end) {
    long tiles = (f->rows + TILE - 1) / TILE;
    *first = smaller(tiles * t / threads * TILE, f->rows);
    *end = smaller(tiles * (t + 1) / threads * TILE, f->rows);
}
