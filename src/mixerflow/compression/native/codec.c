/* The lossless codec of images by a flow on integers: see codec.h and flow.h. */
#include "codec.h"

#include "read.h"

#define FLAG_BITS 16
#define FLAG_PLAIN 64 /* of 2^16: how often an image behind the flow's is the predictor's */

void codec_close(Codec *codec) {
    while (codec && codec->memory) {
        Memory *memory = codec->memory;
        codec->memory = memory->next;
        free(memory->block);
        free(memory);
    }
    free(codec);
}

typedef struct {
    const uint16_t *pixels;
    const int32_t *classes;
    int64_t count;
} Images;

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
    return 32.0 * (double)s->count + log_double((double)s->state) * 1.4426950408889634;
}

/* An image's pixels to latents in w->n; 1 unless the flow can code it. */
static int pixels_forward(const Codec *c, Stack *s, const uint16_t *pixels, int32_t class, Work *w) {
    w->bad = 0;
    for (int32_t i = 0; i < c->size; i++)
        w->n[i] = (double)(((int64_t)pixels[i] << c->k) + pop_bits(s, c->k));
    for (int32_t i = 0; i < c->n_steps && !w->bad && !s->dry; i++) {
        const Step *step = c->steps + i;
        if (step->kind == REFINE) refine_forward(step, s, w);
        if (step->kind == SCORES) scores_forward(step, s, w);
        if (step->maps) convolution_read(step, class, w);
        for (int64_t b = 0; b < step->blocks && !w->bad; b++)
            if (step->kind == TRIANGLES)
                triangles_forward(step, b, w);
            else if (step->map == SPLINE)
                spline_block(step, b, class, 0, s, w);
            else
                coupling_forward(step, b, class, s, w);
    }
    return w->bad || s->dry || s->full;
}

static int image_push(const Codec *c, Stack *s, const uint16_t *pixels, int32_t class, Work *w,
                      CodecReport *report) {
    double ideal = 0.0;
    int64_t escaped = 0;
    if (pixels_forward(c, s, pixels, class, w)) return 1;
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
    report->ideal_latents += ideal * 1.4426950408889634;
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
    for (int32_t i = c->n_steps; i-- > 0 && !w->bad && !s->dry && !s->full;) {
        const Step *step = c->steps + i;
        if (step->kind == REFINE) refine_inverse(step, s, w);
        if (step->kind == SCORES) scores_inverse(step, s, w);
        if (step->maps) convolution_read(step, class, w);
        for (int64_t b = step->blocks; b-- > 0 && !w->bad;)
            if (step->kind == TRIANGLES)
                triangles_inverse(step, b, w);
            else if (step->map == SPLINE)
                spline_block(step, b, class, 1, s, w);
            else
                coupling_inverse(step, b, class, s, w);
    }
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
    int64_t capacity = (int64_t)c->size * 4 + 1024;
    Work work;
    void *memory = work_open(c, &work);
    uint32_t *words = malloc((size_t)capacity * sizeof *words);
    uint16_t *pixels = malloc((size_t)c->size * sizeof *pixels);
    int missing = !memory || !words || !pixels;
    if (!missing) {
        Stack stack = {.state = STATE_LEAST, .words = words, .count = capacity / 2, .capacity = capacity};
        for (int64_t i = 0; i < capacity / 2; i++)
            words[i] = (uint32_t)((random = random * 6364136223846793005u + 1442695040888963407u) >> 32);
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

int codec_open(const int32_t *words, int64_t n_words, const double *values, int64_t n_values,
               int32_t k, Codec **opened) {
    Strict saved;
    *opened = NULL;
    if (k < 1 || k > 24) return CODEC_PROGRAM;
    Codec *codec = calloc(1, sizeof *codec);
    if (!codec) return CODEC_MEMORY;
    codec->k = k;
    Reader reader = {words, values, n_words, n_values, codec, 0};
    strict_enter(&saved);
    read_program(&reader);
    int error = reader.error ? reader.error : fingerprint(codec);
    strict_leave(&saved);
    if (error)
        codec_close(codec);
    else
        *opened = codec;
    return error;
}

uint64_t codec_fingerprint(const Codec *codec) { return codec->fingerprint; }

/* Code image `number` by the flow, or leave stack, report and counts as they were and return 1. */
static int flow_push(const Codec *c, Stack *s, const Images *images, int64_t number, Work *w,
                     CodecReport *report) {
    const uint16_t *pixels = images->pixels + number * c->size;
    const int32_t class = c->classes ? images->classes[number] : 0;
    const Work before = *w;
    double bits = bits_on(s);
    stack_mark(s);
    if (image_push(c, s, pixels, class, w, report)) {
        w->dry = s->dry;
        stack_undo(s);
        w->product = before.product;
        w->ideal = before.ideal;
        w->bits = before.bits;
        w->ideal_bits = before.ideal_bits;
        w->clamped = before.clamped;
        return 1;
    }
    push_symbol(s, FLAG_BITS, FLAG_PLAIN, (1u << FLAG_BITS) - FLAG_PLAIN);
    bits = bits_on(s) - bits;
    report->flow_bits += bits;
    if (report->each) report->each[number] = bits;
    return 0;
}

/* Code an image that the flow cannot. */
static int plain_push(const Codec *c, Stack *s, const Images *images, int64_t number,
                      CodecReport *report) {
    double bits = bits_on(s);
    if (predictor_push(s, &c->shape, images->pixels + number * c->size, 1)) return CODEC_MEMORY;
    push_symbol(s, FLAG_BITS, 0, FLAG_PLAIN);
    bits = bits_on(s) - bits;
    report->plain++;
    report->plain_bits += bits;
    if (report->each) report->each[number] = bits;
    return 0;
}

/* Push the last images by the predictor, as many as give the flow bits for the one before them. */
static int initial_push(const Codec *c, Stack *s, const Images *images, Work *w,
                        CodecReport *report) {
    double least = (double)c->size * c->k;
    for (report->initial = images->count ? 1 : 0; !s->full;) {
        const int64_t left = images->count - report->initial;
        s->count = 0;
        s->state = STATE_LEAST;
        if (predictor_push(s, &c->shape, images->pixels + left * c->size, report->initial))
            return CODEC_MEMORY;
        report->done = report->initial;
        const double bits = report->initial_bits = bits_on(s);
        if (!left) break;
        if (bits >= least) {
            int failed = flow_push(c, s, images, left - 1, w, report);
            if (!failed || !w->dry) {
                if (failed && plain_push(c, s, images, left - 1, report)) return CODEC_MEMORY;
                report->done++;
                break;
            }
            least = 1.125 * bits;
        }
        /* So many that another try is rare, but twice as many at most. */
        double more = (least - bits) / bits * (double)report->initial;
        int64_t step = more > (double)report->initial ? report->initial : (int64_t)more;
        report->initial += step < 1 ? 1 : step > left ? left : step;
    }
    return 0;
}

static int check(const Codec *c, const uint16_t *pixels, const int32_t *classes, int64_t images) {
    for (int64_t i = 0; pixels && i < images * c->size; i++)
        if (pixels[i] >= c->levels) return 1;
    if (c->classes && !classes) return 1;
    for (int64_t i = 0; c->classes && i < images; i++)
        if (classes[i] < 0 || classes[i] >= c->classes) return 1;
    return images < 0;
}

static int encode(const Codec *c, const Images *images, Stack *s, Work *w, CodecReport *report) {
    for (int64_t i = 0; report->each && i < images->count; i++) report->each[i] = -1.0;
    if (initial_push(c, s, images, w, report)) return CODEC_MEMORY;
    for (int64_t left = images->count - report->done; left-- > 0 && !s->full; report->done++) {
        if (report->stop) return CODEC_STOPPED;
        if (flow_push(c, s, images, left, w, report) && plain_push(c, s, images, left, report))
            return CODEC_MEMORY;
    }
    if (s->full) return CODEC_FULL;
    report->clamped = w->clamped;
    report->scale_bits = w->bits - log_double(w->product) * 1.4426950408889634;
    report->ideal_scales = w->ideal_bits - log_double(w->ideal) * 1.4426950408889634;
    stack_put(s, (uint32_t)s->state);
    stack_put(s, (uint32_t)(s->state >> 32));
    return s->full ? CODEC_FULL : 0;
}

int codec_encode(const Codec *c, const uint16_t *pixels, const int32_t *classes, int64_t images,
                 uint32_t *words, int64_t capacity, int64_t *count, CodecReport *report) {
    Work work;
    Strict saved;
    if (check(c, pixels, classes, images)) return CODEC_PIXELS;
    void *memory = work_open(c, &work);
    uint32_t *journal = malloc((size_t)(capacity + 1) * sizeof *journal);
    Stack stack = {.state = STATE_LEAST, .words = words, .capacity = capacity, .journal = journal};
    int error = CODEC_MEMORY;
    if (memory && journal) {
        strict_enter(&saved);
        const Images given = {pixels, classes, images};
        error = encode(c, &given, &stack, &work, report);
        strict_leave(&saved);
    }
    free(memory);
    free(journal);
    *count = stack.count;
    return error;
}

static int decode(const Codec *c, int64_t images, int64_t initial, const int32_t *classes,
                  uint16_t *pixels, Stack *s, Work *w, CodecReport *report) {
    s->state = (uint64_t)stack_take(s) << 32;
    s->state |= stack_take(s);
    if (s->state < STATE_LEAST) return CODEC_DAMAGED;
    for (report->done = 0; report->done < images - initial; report->done++) {
        uint16_t *image = pixels + report->done * c->size;
        if (report->stop) return CODEC_STOPPED;
        if (peek_slot(s, FLAG_BITS) < FLAG_PLAIN) {
            pop_symbol(s, FLAG_BITS, 0, FLAG_PLAIN);
            if (predictor_pop(s, &c->shape, image, 1)) return CODEC_MEMORY;
        } else {
            pop_symbol(s, FLAG_BITS, FLAG_PLAIN, (1u << FLAG_BITS) - FLAG_PLAIN);
            if (image_pop(c, s, image, c->classes ? classes[report->done] : 0, w))
                return CODEC_DAMAGED;
        }
        if (s->dry || s->full) return CODEC_DAMAGED;
    }
    if (predictor_pop(s, &c->shape, pixels + (images - initial) * c->size, initial))
        return CODEC_MEMORY;
    report->done = images;
    return s->dry || s->count || s->state != STATE_LEAST ? CODEC_DAMAGED : 0;
}

int codec_decode(const Codec *c, const uint32_t *words, int64_t count, int64_t images,
                 int64_t initial, const int32_t *classes, uint16_t *pixels, CodecReport *report) {
    Work work;
    Strict saved;
    if (check(c, NULL, classes, images) || initial < 0 || initial > images || count < 2)
        return CODEC_PIXELS;
    int64_t capacity = count + (int64_t)c->size * 4 + 1024; /* decoding pushes back what it popped */
    void *memory = work_open(c, &work);
    uint32_t *own = malloc((size_t)capacity * sizeof *own);
    int error = CODEC_MEMORY;
    if (memory && own) {
        memcpy(own, words, (size_t)count * sizeof *own);
        Stack stack = {.words = own, .count = count, .capacity = capacity};
        strict_enter(&saved);
        error = decode(c, images, initial, classes, pixels, &stack, &work, report);
        strict_leave(&saved);
    }
    free(memory);
    free(own);
    return error;
}
