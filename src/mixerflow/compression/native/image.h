/* One image by the flow: pixels to latents on the stack, and back. */
#ifndef MIXERFLOW_IMAGE_H
#define MIXERFLOW_IMAGE_H

#include "read_steps.h"

#define STEP_OF_RANDOM 6364136223846793005u

/* A thread's working memory in one piece; NULL if there is none. */
static void *work_open(const Codec *c, Work *w) {
    const int64_t parts[] = {
        c->size * (int64_t)sizeof(double),      c->most_own * (int64_t)sizeof(double),
        c->most_own * (int64_t)sizeof(double),  c->most_own * (int64_t)sizeof(double),
        c->most_own * (int64_t)sizeof(float),   c->most_raw * (int64_t)sizeof(float),
        c->most_scratch * (int64_t)sizeof(float), c->most_raws * (int64_t)sizeof(float)};
    int64_t starts[8], total = 0;
    for (int i = 0; i < 8; i++) {
        starts[i] = total;
        total += (parts[i] + 64) / 64 * 64;
    }
    char *memory = aligned_alloc(64, (size_t)total);
    if (!memory) return NULL;
    memset(w, 0, sizeof *w);
    w->n = (double *)(memory + starts[0]);
    w->own = (double *)(memory + starts[1]);
    w->v = (double *)(memory + starts[2]);
    w->ranges = (double *)(memory + starts[3]);
    w->x = (float *)(memory + starts[4]);
    w->raw = (float *)(memory + starts[5]);
    w->scratch = (float *)(memory + starts[6]);
    w->raws = (float *)(memory + starts[7]);
    w->size = c->size;
    w->product = w->ideal = 1.0;
    return memory;
}

static double bits_on(const Stack *s) {
    return 32.0 * (double)s->count + log_double((double)s->state) * BITS_IN_NAT;
}

/* An image's pixels to latents in w->n; 1 unless the flow can code it. */
static int pixels_forward(const Codec *c, Stack *s, const uint16_t *pixels, int32_t class, int trial,
                          Work *w) {
    uint64_t random = STEP_OF_RANDOM; /* of a trial: the upper bits are the same for every k */
    w->bad = 0;
    for (int32_t i = 0; i < c->size; i++) {
        uint64_t drawn = (random ^= random << 13, random ^= random >> 7, random ^= random << 17);
        uint32_t noise = trial ? (uint32_t)(drawn >> (64 - c->k)) : pop_bits(s, c->k);
        w->n[i] = (double)(((int64_t)pixels[i] << c->k) + noise);
    }
    for (int32_t i = 0; i < c->n_steps && !w->bad && !s->dry; i++)
        step_forward(c->steps + i, class, s, w);
    return w->bad || s->dry || s->full;
}

static int image_push(const Codec *c, Stack *s, const uint16_t *pixels, int32_t class, Work *w,
                      CodecReport *report) {
    double ideal = 0.0;
    int64_t escaped = 0;
    if (pixels_forward(c, s, pixels, class, report->trial != 0, w)) return 1;
    double before = bits_on(s);
    for (int32_t i = c->size; i-- > 0;) {
        double unit = c->units[i], size = unit < 0.0 ? -unit : unit;
        double z = unit * w->n[i] + c->offsets[i];
        escaped += latent_push(&c->table, s, (int64_t)w->n[i], unit, c->offsets[i]);
        ideal -= log_double(density(&c->table, z) / c->table.mass * size + 1e-300);
    }
    if (s->full) return 1;
    report->escaped += escaped;
    report->latent_bits += bits_on(s) - before;
    report->ideal_latents += ideal * BITS_IN_NAT;
    return 0;
}

/* Pop what image_push pushed; 1 if the stack holds no image. */
static int image_pop(const Codec *c, Stack *s, uint16_t *pixels, int32_t class, Work *w) {
    w->bad = 0;
    for (int32_t i = 0; i < c->size; i++) {
        int64_t n;
        if (latent_pop(&c->table, s, c->units[i], c->offsets[i], &n)) return 1;
        w->n[i] = (double)n;
    }
    if (s->dry || !within(w->n, c->size)) return 1;
    for (int32_t i = c->n_steps; i-- > 0 && !w->bad && !s->dry && !s->full;)
        step_inverse(c->steps + i, class, s, w);
    if (w->bad || s->dry || s->full) return 1;
    for (int32_t i = c->size; i-- > 0;) {
        int64_t n = (int64_t)w->n[i], pixel = n >> c->k;
        if (pixel < 0 || pixel >= c->levels) return 1;
        push_bits(s, c->k, (uint32_t)(n & (((int64_t)1 << c->k) - 1)));
        pixels[i] = (uint16_t)pixel;
    }
    return s->full;
}

static uint64_t mix(uint64_t hash, const void *data, int64_t count) { /* of 64-bit words */
    for (int64_t i = 0; i < count; i++) {
        uint64_t each;
        memcpy(&each, (const char *)data + 8 * i, 8);
        hash = (hash ^ each) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 29;
    }
    return hash;
}

/* Sums of products of each kind, to the last bit. */
static uint64_t sums_of_products(uint64_t hash, uint64_t random) {
    _Alignas(64) float x[16 * LANES], w[TILE * 16], y[TILE * LANES] = {0};
    _Alignas(64) double v[2 * LANES];
    DoubleVector sum[DOUBLES] = {0};
    for (int i = 0; i < 16 * LANES; i++) x[i] = (float)(int32_t)((random *= STEP_OF_RANDOM) >> 32);
    for (int i = 0; i < TILE * 16; i++) w[i] = (float)(int32_t)((random *= STEP_OF_RANDOM) >> 32);
    accumulate_tile(w, 16, x, y);
    for (int j = 0; j < 16; j++) {
        for (int l = 0; l < LANES; l++) v[l] = (double)x[j * LANES + l] / 3.0;
        for (int k = 0; k < DOUBLES; k++) sum[k] += (double)w[j] / 7.0 * ((DoubleVector *)v)[k];
    }
    memcpy(v + LANES, sum, LANES * sizeof *v);
    for (int l = 0; l < LANES; l++) v[l] = (double)y[l];
    return mix(hash, v, 2 * LANES);
}

/* The constants, own functions on a grid, and the stack behind an image of pseudo-random pixels. */
static int fingerprint(Codec *c) {
    uint64_t hash = mix(mix(0, c->units, c->size), c->offsets, c->size), random = 1;
    for (int32_t b = 0; b < c->table.bins + 2; b++) {
        uint64_t sum = c->table.sums[b];
        hash = mix(hash, &sum, 1);
    }
    for (int i = -300; i < 300; i++) {
        double x = 0.07 * i, y = exp_double(x) + log_double(1.0 + x * x);
        float f = (float)x;
        uint64_t pair = (uint64_t)float_bits(gelu_float(f)) << 32 | float_bits(tanh_float(f));
        pair ^= (uint64_t)float_bits(squash_float(f)) << 16 ^ float_bits(exp_float(f));
        hash = mix(mix(hash, &y, 1), &pair, 1);
    }
    hash = sums_of_products(hash, 1);
    int64_t capacity = (int64_t)c->size * 4 + 1024;
    Work work;
    void *memory = work_open(c, &work);
    uint32_t *words = malloc((size_t)capacity * sizeof *words);
    uint16_t *pixels = malloc((size_t)c->size * sizeof *pixels);
    int missing = !memory || !words || !pixels;
    if (!missing) {
        Stack stack = {.state = STATE_LEAST, .words = words, .count = capacity / 2, .capacity = capacity};
        for (int64_t i = 0; i < capacity / 2; i++)
            words[i] = (uint32_t)((random = random * STEP_OF_RANDOM + 1442695040888963407u) >> 32);
        for (int32_t i = 0; i < c->size; i++)
            pixels[i] = (uint16_t)((words[i % (capacity / 2)] >> 8) % (uint32_t)c->levels);
        CodecReport report = {0};
        if (!image_push(c, &stack, pixels, 0, &work, &report)) hash = mix(hash, &stack.state, 1);
        for (int64_t i = 0; i < stack.count; i++) {
            uint64_t each = words[i];
            hash = mix(hash, &each, 1);
        }
    }
    free(memory);
    free(words);
    free(pixels);
    c->fingerprint = hash;
    return missing ? CODEC_MEMORY : 0;
}

#endif
