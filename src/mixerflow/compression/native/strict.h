/* Arithmetic that gives the same bits on every machine: IEEE 754 operations one by one, in the order
 * of the source, and functions made of them. Compile with -ffp-contract=off.
 *
 * Loops over lanes may be vectorised, since no operation joins two lanes.
 */
#ifndef MIXERFLOW_STRICT_H
#define MIXERFLOW_STRICT_H

#include <fenv.h>
#include <float.h>
#include <stdint.h>
#include <string.h>

#ifdef __FAST_MATH__
#error "the codec needs strict arithmetic: compile without -ffast-math"
#endif
#if FLT_EVAL_METHOD != 0
#error "the codec needs float and double arithmetic without excess precision"
#endif

/* Rounding to nearest with subnormal numbers, for this thread, until `strict_leave`. */
typedef struct {
    fenv_t environment;
} Strict;

static inline void strict_enter(Strict *saved) {
    fegetenv(&saved->environment);
    fesetenv(FE_DFL_ENV);
}

static inline void strict_leave(const Strict *saved) { fesetenv(&saved->environment); }

static inline uint32_t float_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint64_t double_bits(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline double double_of(uint64_t bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The nearest integer, ties to even, for |x| < 2^51; larger numbers stay large. */
#define BITS_IN_NAT 1.4426950408889634 /* log2(e) */
#define MAGIC 6755399441055744.0 /* 1.5 * 2^52 */
static inline double nearest(double x) { return (x + MAGIC) - MAGIC; }

/* exp(x) to 2 units in the last place for x in [-87, 88]; beyond, that of the nearer end. */
static inline float exp_float(float x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23 */
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504f + magic, n = shifted - magic;
    float r = x - n * 0.693359375f - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    float value = p * (r * r) + r + 1.0f;
    return value * float_of((float_bits(shifted) - float_bits(magic) + 127u) << 23);
}

/* log(x) for normal x >= 1; that of infinity is finite. */
static inline float log_float(float x) {
    int32_t shifted = (int32_t)(float_bits(x) - 0x3f3504f3u);
    float e = (float)(shifted >> 23);
    float f = float_of(((uint32_t)shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f, square = f * f;
    float p = 7.0376836292e-2f;
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    float value = p * f * square + e * -2.12194440e-4f - 0.5f * square;
    return f + value + e * 0.693359375f;
}

/* sign(x) log(1 + |x|): what is lost in 1 + |x| is added again. */
static inline float squash_float(float x) {
    float size = x < 0.0f ? -x : x, sum = 1.0f + size;
    float value = log_float(sum) + (size - (sum - 1.0f)) / sum;
    return x < 0.0f ? -value : value;
}

static inline float tanh_float(float x) {
    float bounded = x > 15.0f ? 15.0f : x;
    bounded = bounded < -15.0f ? -15.0f : bounded;
    return 1.0f - 2.0f / (exp_float(2.0f * bounded) + 1.0f);
}

/* erf(x) to 6e-7. Abramowitz, Stegun, Handbook of mathematical functions (1964), 7.1.26. */
static inline float erf_float(float x) {
    float size = x < 0.0f ? -x : x, t = 1.0f / (1.0f + 0.3275911f * size);
    float p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    float value = 1.0f - p * t * exp_float(-(size * size));
    return x < 0.0f ? -value : value;
}

static inline float gelu_float(float x) {
    return 0.5f * x * (1.0f + erf_float(x * 0.70710678f));
}

/* exp(x) to 2 units in the last place for x in [-700, 700]; beyond, that of the nearer end. */
static inline double exp_double(double x) {
    x = x < -700.0 ? -700.0 : x;
    x = x > 700.0 ? 700.0 : x;
    double n = nearest(x * BITS_IN_NAT);
    double r = x - n * 6.93147180369123816490e-01 - n * 1.90821492927058770002e-10;
    double value = 1.0;
    for (int i = 14; i >= 1; i--) value = 1.0 + value * r / i;
    return value * double_of((uint64_t)((int64_t)n + 1023) << 52);
}

/* log(x) for normal positive x. */
static inline double log_double(double x) {
    int64_t shifted = (int64_t)(double_bits(x) - 0x3fe6a09e667f3bcdu);
    double e = (double)(shifted >> 52);
    double m = double_of(((uint64_t)shifted & 0x000fffffffffffffu) + 0x3fe6a09e667f3bcdu);
    double s = (m - 1.0) / (m + 1.0), square = s * s, sum = 0.0;
    for (int i = 25; i >= 3; i -= 2) sum = (sum + 1.0 / i) * square;
    double low = e * 1.90821492927058770002e-10 + 2.0 * s * sum;
    return e * 6.93147180369123816490e-01 + (low + 2.0 * s);
}

#endif
