/* One step over a tile of rows. */

/* What a norm of each row takes off a row, and what it then multiplies it by. */
static void row_moments(const Flow *f, const real *row, real *mean, real *rstd) {
    int H = (int)f->hidden;
    real sum = 0, squares = 0;
    if (f->norm == LAYER_NORM)
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < H; j++) sum += row[j];
    sum /= (real)H;
#pragma omp simd reduction(+ : squares)
    for (int j = 0; j < H; j++) squares += (row[j] - sum) * (row[j] - sum);
    *mean = sum;
    *rstd = (real)(1 / sqrt((double)squares / H + f->eps));
}

/* u = gelu(scale * h + offset), of h normalised where rows are; slope its derivative, where wanted */
static void norm_gelu(const Flow *f, int rows, const real *h, const real *scale, const real *offset,
                      real *u, real *slope) {
    int hp = (int)padded(f->hidden);
    for (int r = 0; r < rows; r++) {
        const real *from = h + (long)r * hp;
        real *to = u + (long)r * hp, *also = slope ? slope + (long)r * hp : NULL;
        real unused, mean, rstd;
        if (by_row(f)) {
            row_moments(f, from, &mean, &rstd);
#pragma omp simd
            for (int j = 0; j < hp; j++) to[j] = (from[j] - mean) * rstd;
            from = to;
        }
        if (also)
#pragma omp simd
            for (int j = 0; j < hp; j++) to[j] = gelu_(scale[j] * from[j] + offset[j], also + j);
        else
#pragma omp simd private(unused)
            for (int j = 0; j < hp; j++) to[j] = gelu_(scale[j] * from[j] + offset[j], &unused);
    }
}

/* What the net reads: the given half, squashed or not, and then the squares of that where it reads them */
static void read_half(const Flow *f, const Ready *q, int rows, const real *y, real *to) {
    int given = q->given;
    for (int r = 0; r < rows; r++) {
        const real *from = y + r * padded(f->n) + q->a;
        real *into = to + (long)r * q->rp;
        if (f->squash)
#pragma omp simd
            for (int j = 0; j < given; j++) into[j] = squash_(from[j]);
        else memcpy(into, from, (size_t)given * sizeof(real));
        for (int j = q->read; j < q->rp; j++) into[j] = 0;
        if (!f->squares) continue;
        real *squares = into + given;
#pragma omp simd
        for (int j = 0; j < given; j++) squares[j] = into[j] * into[j];
    }
}

static void residual(int rows, int hp, const real *h, const real *bias, const real *u,
                     const Packed *w, real *h2) {
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < hp; j++) h2[(long)r * hp + j] = h[(long)r * hp + j] + bias[j];
    times(rows, u, hp, w, h2, hp, NULL, 1);
}

/* The tiles of thread t: [first row, end row) */
static void share(const Flow *f, int t, int threads, long *first, long *end) {
    long tiles = (f->rows + TILE - 1) / TILE;
    *first = smaller(tiles * t / threads * TILE, f->rows);
    *end = smaller(tiles * (t + 1) / threads * TILE, f->rows);
}

/* The next tile that no thread has taken, from `next` on: rows `*r` to `*r` + the number returned, 0 at
   the end. For passes in which no row sees another: a thread that has no core for a while holds up
   one tile, not its share of all. */
static int take_rows(const Flow *f, long *next, long *r) {
#pragma omp atomic capture
    { *r = *next; *next += TILE; }
    return (int)smaller(TILE, *r < f->rows ? f->rows - *r : 0);
}

typedef struct {
    real *x, *y, *half, *h, *u, *i, *h2, *raw;
} Tile;

static void take_tile(Tile *tile, const Flow *f, Arena *arena) {
    long np = padded(f->n), hp = padded(f->hidden);
    tile->x = take(arena, TILE * np), tile->y = take(arena, TILE * np);
    tile->half = take(arena, TILE * longest(f)), tile->raw = take(arena, TILE * widest(f));
    tile->h = take(arena, TILE * hp), tile->u = take(arena, TILE * hp);
    tile->i = take(arena, TILE * hp), tile->h2 = take(arena, TILE * hp);
}

/* h = b + C c for rows from r on, which see few contexts; `room` has space for a tile */
static void tile_contexts(const Flow *f, const Ready *q, long r, int rows, real *room, real *h) {
    long hp = padded(f->hidden), first = r / f->within, last = (r + rows - 1) / f->within;
    times((int)(last - first + 1), f->contexts + first * f->context, f->context, &q->context_t, room,
          hp, q->enter_b, 0);
    for (int i = 0; i < rows; i++)
        memcpy(h + i * hp, room + ((r + i) / f->within - first) * hp, (size_t)hp * sizeof(real));
}

/* Of rows from r on of all. */
static void tile_enter(const Flow *f, const Ready *q, long r, int rows, const real *y,
                       const Tile *tile, real *h) {
    read_half(f, q, rows, y, tile->half);
    if (f->context) tile_contexts(f, q, r, rows, tile->u, h);
    times(rows, tile->half, q->rp, &q->enter_t, h, padded(f->hidden), q->enter_b, f->context > 0);
}

static void tile_middle(const Flow *f, const Ready *q, int rows, const real *h, real *u, real *i) {
    int hp = (int)padded(f->hidden);
    norm_gelu(f, rows, h, q->scale1, q->offset1, u, NULL);
    times(rows, u, hp, &q->linear1_t, i, hp, q->linear1_b, 0);
}

static void tile_leave(const Flow *f, const Ready *q, int rows, const real *h, const real *i,
                       real *u, real *h2, real *raw) {
    int hp = (int)padded(f->hidden);
    norm_gelu(f, rows, i, q->scale2, q->offset2, u, NULL);
    residual(rows, hp, h, q->linear2_b, u, &q->linear2_t, h2);
    times(rows, h2, hp, &q->leave_t, raw, q->wide, q->leave_b, 0);
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
