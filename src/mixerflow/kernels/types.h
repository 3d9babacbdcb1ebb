/* What the passes of a row flow share: its description, a step made ready, memory.
   A row flow: (ActNorm, linear map, coupling with a residual MLP) several times, then ActNorm.
   Rows are cut into tiles that stay in cache; a thread owns a contiguous run of tiles. */
#define TILE 64

/* Parameters of a step, and in the same places their gradients; then what has none: statistics, and
   of a flow for inference the linear map, its inverse and log-det in place of PACKED; then a
   parameter again, the map of contexts. */
enum { LOG_SCALE, SHIFT, PACKED, OFFSET, ENTER, ENTER_B, GAMMA1, BETA1, LINEAR1, LINEAR1_B,
       GAMMA2, BETA2, LINEAR2, LINEAR2_B, LEAVE, LEAVE_B, PARAMETERS,
       MEAN1 = PARAMETERS, VAR1, MEAN2, VAR2, WEIGHT, INVERSE, LOG_DET, CONTEXT, POINTERS };

typedef struct {
    real *p[POINTERS]; /* NULL where a step has no such part */
    long flip;
} Step;

typedef struct {
    long rows, n, hidden, steps, norm, batch, update, squash, squares, reverse, threads;
    long map, params, kept, count; /* the elementwise map: raw numbers, numbers kept, its parts */
    double eps, momentum, limit;   /* the map's own number: see elementwise.h */
    long context, within; /* length of a context, 0 for none; rows that follow each other have one */
    const real *contexts;
    long *unsolved; /* counts numbers of which the inverse has not been found to rounding */
    /* where other processes hold more rows: makes count, means and sums of squared deviations (kind
       MOMENTS), or count and sums (kind SUMS), those of all; NULL where there are none */
    void (*share)(double *numbers, long count, long kind);
} Flow;

enum { MOMENTS, SUMS };

/* Of hidden rows: none, batch norm, or a norm of each row by itself. */
enum { NO_NORM, BATCH_NORM, LAYER_NORM, RMS_NORM };

static inline int by_row(const Flow *f) { return f->norm == LAYER_NORM || f->norm == RMS_NORM; }

/* What a step keeps for its backward pass, `stride` numbers a row each. */
typedef struct {
    real *x, *y, *h, *i, *h2, *s, *stats;
} Kept;

/* A step made ready: one dense map, packed matrices, padded biases. */
typedef struct {
    int given, changed, cp, a, b;     /* sizes, padded size, first columns of both halves */
    int read, rp;                     /* what the net reads of the given half, and padded */
    int wide;                         /* raw parameters of a row: blocks of cp */
    real *lower, *upper, *matrix, *scaled, *offset, *enter_b, *linear1_b, *linear2_b, *leave_b, *leave;
    real *scale1, *offset1, *scale2, *offset2; /* batch norm as one affine map; after others, theirs */
    Packed map_t, enter_t, linear1_t, linear2_t, leave_t; /* forward */
    Packed upper_t, map, enter, linear1, linear2, leave_p;         /* backward */
    Packed back_t;                                        /* the inverse map */
    Packed context_t, context;                            /* of contexts, forward and backward */
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
    q->read = f->squares ? 2 * q->given : q->given;
    q->rp = (int)padded(q->read), q->cp = (int)padded(q->changed);
    q->wide = (int)f->params * q->cp;
    q->a = s->flip ? q->changed : 0, q->b = s->flip ? 0 : q->given;
    q->lower = take(arena, (long)n * np), q->upper = take(arena, (long)n * np);
    q->matrix = take(arena, (long)n * np), q->scaled = take(arena, (long)n * np);
    q->offset = take(arena, np);
    q->enter_b = take(arena, hp), q->linear1_b = take(arena, hp), q->linear2_b = take(arena, hp);
    q->leave_b = take(arena, q->wide), q->leave = take(arena, (long)q->wide * H);
    q->scale1 = take(arena, hp), q->offset1 = take(arena, hp);
    q->scale2 = take(arena, hp), q->offset2 = take(arena, hp);
    q->map_t = take_packed(arena, n, n), q->enter_t = take_packed(arena, q->read, H);
    q->linear1_t = take_packed(arena, H, H), q->linear2_t = take_packed(arena, H, H);
    q->leave_t = take_packed(arena, H, q->wide);
    q->upper_t = take_packed(arena, n, n);
    q->map = take_packed(arena, n, n), q->enter = take_packed(arena, H, q->read);
    q->linear1 = take_packed(arena, H, H), q->linear2 = take_packed(arena, H, H);
    q->context_t = take_packed(arena, (int)f->context, H);
    q->context = take_packed(arena, H, (int)f->context);
    q->leave_p = take_packed(arena, q->wide, H), q->back_t = take_packed(arena, n, n);
}

/* Memory of this thread that is there again at the next call, and gone with the thread: fresh pages
   cost more than filling them. Each slot grows to the largest call's need; NULL where there is not so
   much. */
enum { READY, MAPS, CREW, SHARED, KEPT, SLOTS };

typedef struct { void *at; size_t bytes; } Slot;

static pthread_key_t thread_ends;

static void free_slots(void *slots) {
    for (int k = 0; k < SLOTS; k++) free(((Slot *)slots)[k].at);
}

static void watch_threads(void) { pthread_key_create(&thread_ends, free_slots); }

static void *scratch(int slot, size_t bytes) {
    static _Thread_local Slot slots[SLOTS];
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (slots[slot].bytes < bytes) {
        pthread_once(&once, watch_threads);
        pthread_setspecific(thread_ends, slots);
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

/* The most that a net reads of a row. */
static long longest(const Flow *f) { return padded(f->squares ? f->n + f->n % 2 : f->n); }

/* The most raw parameters of a row. */
static long widest(const Flow *f) { return f->params * padded((f->n + 1) / 2); }

static void copy_padded(real *to, const real *from, int n, int np) {
    for (int j = 0; j < n; j++) to[j] = from ? from[j] : 0;
    for (int j = n; j < np; j++) to[j] = 0;
}
