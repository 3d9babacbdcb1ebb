/* The nets of couplings: `mixerflow.nets.ResidualMLP` of LANES rows at a time.
 *
 * Numbers lie as [feature][lane]. Each output is summed in order, so that the width of vectors and
 * the shape of tiles change no bit.
 */
#ifndef MIXERFLOW_NET_H
#define MIXERFLOW_NET_H

#include "strict.h"

#define LANES 16
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define FLOATS (LANES * 4 / VECTOR_BYTES)  /* vectors of LANES floats */
#define DOUBLES (LANES * 8 / VECTOR_BYTES) /* and of LANES doubles */
#define TILE (8 / FLOATS)                  /* outputs that are summed together */
typedef float FloatVector __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef double DoubleVector __attribute__((vector_size(VECTOR_BYTES), may_alias));

enum { NO_NORM, SCALE, LAYER, RMS };

typedef struct {
    float *weight, *bias; /* weight (out, in), bias (out) */
    int32_t out, in;
} Dense;

typedef struct {
    Dense enter, linear1, linear2, leave;
    float *by_class, *by_row; /* what classes and rows add to the first layer, or NULL */
    float *norm1, *norm2;     /* weight, then bias; or NULL */
    float epsilon;
    int32_t norm, squash, squares, given, hidden;
} Net;

/* y += W x, for TILE outputs or one. */
#define ACCUMULATE(name, outputs)                                                                  \
    static inline void name(const float *w, int64_t in, const float *x, float *y) {               \
        FloatVector sum[outputs][FLOATS];                                                          \
        for (int o = 0; o < outputs; o++)                                                          \
            for (int v = 0; v < FLOATS; v++) sum[o][v] = ((FloatVector *)(y + o * LANES))[v];      \
        for (int64_t j = 0; j < in; j++)                                                           \
            for (int o = 0; o < outputs; o++)                                                      \
                for (int v = 0; v < FLOATS; v++)                                                   \
                    sum[o][v] += w[o * in + j] * ((const FloatVector *)(x + j * LANES))[v];        \
        for (int o = 0; o < outputs; o++)                                                          \
            for (int v = 0; v < FLOATS; v++) ((FloatVector *)(y + o * LANES))[v] = sum[o][v];      \
    }
ACCUMULATE(accumulate_tile, TILE)
ACCUMULATE(accumulate_one, 1)

static void accumulate(const Dense *d, const float *x, float *y) {
    int32_t o = 0;
    for (; o + TILE <= d->out; o += TILE)
        accumulate_tile(d->weight + (int64_t)o * d->in, d->in, x, y + (int64_t)o * LANES);
    for (; o < d->out; o++)
        accumulate_one(d->weight + (int64_t)o * d->in, d->in, x, y + (int64_t)o * LANES);
}

static void begin(const Dense *d, float *y) {
    for (int32_t o = 0; o < d->out; o++)
        for (int l = 0; l < LANES; l++) y[o * LANES + l] = d->bias[o];
}

/* y = norm(x), features by lanes. */
static void normalise(const Net *net, const float *norm, const float *x, float *y) {
    const int32_t n = net->hidden;
    if (net->norm == NO_NORM || (net->norm == SCALE && !norm)) {
        memcpy(y, x, (size_t)n * LANES * sizeof *y);
        return;
    }
    float mean[LANES] = {0}, square[LANES] = {0};
    if (net->norm == LAYER) {
        for (int32_t i = 0; i < n; i++)
            for (int l = 0; l < LANES; l++) mean[l] += x[i * LANES + l];
        for (int l = 0; l < LANES; l++) mean[l] /= (float)n;
    }
    if (net->norm != SCALE) {
        for (int32_t i = 0; i < n; i++)
            for (int l = 0; l < LANES; l++) {
                float centred = x[i * LANES + l] - mean[l];
                square[l] += centred * centred;
            }
        for (int l = 0; l < LANES; l++)
            square[l] = 1.0f / __builtin_sqrtf(square[l] / (float)n + net->epsilon);
    }
    for (int32_t i = 0; i < n; i++)
        for (int l = 0; l < LANES; l++) {
            float value = x[i * LANES + l];
            if (net->norm != SCALE) value = (value - mean[l]) * square[l];
            y[i * LANES + l] = net->norm == RMS ? value : value * norm[i] + norm[n + i];
        }
}

static void activate(int64_t count, float *x) {
    for (int64_t i = 0; i < count; i++) x[i] = gelu_float(x[i]);
}

/* Raw parameters [leave.out][LANES] of the rows whose features are x [given][LANES].
 *
 * `scratch` has room for (reads + 3 hidden) LANES floats, `row` is the first row of the lanes.
 */
static void net_forward(const Net *net, const float *x, int32_t class, int64_t row, int64_t rows,
                        float *scratch, float *out) {
    const int64_t given = (int64_t)net->given * LANES, hidden = (int64_t)net->hidden * LANES;
    float *read = scratch, *h = read + (int64_t)net->enter.in * LANES, *a = h + hidden,
          *b = a + hidden;
    if (net->squash)
        for (int64_t i = 0; i < given; i++) read[i] = squash_float(x[i]);
    else
        memcpy(read, x, (size_t)given * sizeof *read);
    if (net->squares)
        for (int64_t i = 0; i < given; i++) read[given + i] = read[i] * read[i];
    begin(&net->enter, h);
    for (int32_t i = 0; i < net->hidden; i++)
        for (int l = 0; l < LANES; l++) {
            if (net->by_class) h[i * LANES + l] += net->by_class[(int64_t)class * net->hidden + i];
            if (net->by_row && row + l < rows)
                h[i * LANES + l] += net->by_row[(row + l) * net->hidden + i];
        }
    accumulate(&net->enter, read, h);
    normalise(net, net->norm1, h, a);
    activate(hidden, a);
    begin(&net->linear1, b);
    accumulate(&net->linear1, a, b);
    normalise(net, net->norm2, b, a);
    activate(hidden, a);
    for (int32_t i = 0; i < net->hidden; i++)
        for (int l = 0; l < LANES; l++) h[i * LANES + l] += net->linear2.bias[i];
    accumulate(&net->linear2, a, h);
    begin(&net->leave, out);
    accumulate(&net->leave, h, out);
}

#endif
