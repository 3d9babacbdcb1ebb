/* The lossless codec of images by a flow on integers: see codec.h and flow.h. */
#include "codec.h"

#include "image.h"

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
    bits = bits_on(s) - bits - (report->trial ? (double)c->size * c->k : 0.0);
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
    report->scale_bits = w->bits - log_double(w->product) * BITS_IN_NAT;
    report->ideal_scales = w->ideal_bits - log_double(w->ideal) * BITS_IN_NAT;
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
    if (report->stop) return CODEC_STOPPED;
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
        Stack stack = {.words = own, .count = count, .capacity = capacity, .stop = &report->stop};
        strict_enter(&saved);
        error = decode(c, images, initial, classes, pixels, &stack, &work, report);
        strict_leave(&saved);
    }
    free(memory);
    free(own);
    return error;
}
