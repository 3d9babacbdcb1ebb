/* Vectors, elementwise functions and small matrix products. REAL is float, or double for proofs. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#define omp_get_num_threads() 1
#endif

#ifndef REAL
#define REAL float
#endif
typedef REAL real;

#if defined(__AVX512F__)
#define BYTES 64
#define MR 8
#elif defined(__AVX__)
#define BYTES 32
#define MR 6
#else
#define BYTES 16
#define MR 6
#endif
#define VL ((int)(BYTES / sizeof(real)))
typedef real vec __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));

static inline long padded(long n) { return (n + VL - 1) / VL * VL; }
static inline long smaller(long a, long b) { return a < b ? a : b; }
#define INLINE static inline __attribute__((always_inline))

/* ---- elementwise; written so that compilers turn loops over them into vectors ---- */

#define IS_FLOAT (sizeof(real) == 4)

INLINE real exp_(real x) {
    if (!IS_FLOAT) return (real)exp((double)x);
    /* exp(x) = 2^k exp(r), |r| <= ln 2 / 2; beyond the clamps the result is inf or 0 in float */
    float v = (float)x;
    v = v < -104.0f ? -104.0f : v;
    v = v > 89.0f ? 89.0f : v;
    float k = __builtin_floorf(v * 1.44269504088896341f + 0.5f);
    float r = v - k * 0.693359375f;
    r = r + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    /* the power in two halves, so that neither leaves the exponent's range */
    int whole = (int)k, half = whole >> 1;
    union { int i; float f; } a, b;
    a.i = (half + 127) << 23;
    b.i = (whole - half + 127) << 23;
    return (real)(p * a.f * b.f);
}

/* log(v) of positive normal v */
INLINE float log_normal(float v) {
    union { float f; int i; } u;
    u.f = v;
    int e = ((u.i >> 23) & 255) - 126;
    u.i = (u.i & 0x007fffff) | 0x3f000000; /* mantissa in [0.5, 1) */
    float m = u.f;
    int low = m < 0.707106781186547524f;
    float k = (float)(e - low);
    m = (low ? m + m : m) - 1.0f;
    float q = m * m;
    float p = 7.0376836292e-2f;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    return p * m * q - 2.12194440e-4f * k - 0.5f * q + m + 0.693359375f * k;
}

/* log(1 + x) of x in (-1, 1e30), accurate near 0 by Kahan's quotient */
INLINE real log1p_(real x) {
    if (!IS_FLOAT) return (real)log1p((double)x);
    float one = 1.0f + (float)x, left = one - 1.0f;
    float y = log_normal(one) * ((float)x / left);
    return (real)(left != 0.0f ? y : (float)x);
}

/* sign(x) log(1 + |x|) */
INLINE real squash_(real x) {
    if (!IS_FLOAT) return (real)copysign(log1p(fabs((double)x)), (double)x);
    float a = __builtin_fabsf((float)x);
    float one = 1.0f + a, left = one - 1.0f;
    float y = log_normal(one);
    float quotient = left > 0.0f ? a / left : 1.0f;
    y = left > 0.0f ? y * quotient : a;
    y = a == a && a <= 3.402823466e38f ? y : a; /* NaN and infinity stay what they are */
    return (real)__builtin_copysignf(y, (float)x);
}

/* exp(x) for x <= 0; below -87 that of -87, which is as good as 0 */
INLINE float exp_falling(float v) {
    v = v < -87.0f ? -87.0f : v;
    float k = __builtin_floorf(v * 1.44269504088896341f + 0.5f);
    float r = v - k * 0.693359375f + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { int i; float f; } power;
    power.i = ((int)k + 127) << 23;
    return p * power.f;
}

/* 1 / x for x in [1, 1e30]: the exponent turned round, then three of Newton's steps. A division takes
   as long as all else in a GELU. */
INLINE float reciprocal(float x) {
    union { float f; int i; } r;
    r.f = x;
    r.i = 0x7ef311c7 - r.i;
    float y = r.f;
    y = y * (2.0f - x * y);
    y = y * (2.0f - x * y);
    return y * (2.0f - x * y);
}

/* Phi(x) x and its derivative; erf by Abramowitz and Stegun 7.1.26, |error| < 1.5e-7 */
INLINE real gelu_(real x, real *slope) {
    real phi, cdf;
    if (!IS_FLOAT) {
        phi = (real)(0.39894228040143267794 * exp(-0.5 * (double)x * (double)x));
        cdf = (real)(0.5 * erfc(-0.70710678118654752440 * (double)x));
    } else {
        float v = (float)x, a = __builtin_fabsf(v) * 0.70710678118654752f;
        float e = exp_falling(-0.5f * v * v);
        a = a > 20.0f ? 20.0f : a; /* where the tail is 0 */
        float t = reciprocal(1.0f + 0.3275911f * a);
        float p = 1.061405429f;
        p = p * t - 1.453152027f;
        p = p * t + 1.421413741f;
        p = p * t - 0.284496736f;
        p = p * t + 0.254829592f;
        float tail = 0.5f * p * t * e; /* 1 - Phi(|x|) */
        cdf = (real)(v < 0.0f ? tail : 1.0f - tail);
        phi = (real)(0.3989422804014327f * e);
    }
    *slope = cdf + x * phi;
    return x * cdf;
}

/* ---- matrix products of row tiles with packed matrices ---- */

/* C (m, n) = bias + A B, or C + A B. A(i, k) = A[i * ai + k * ak]. B lies in panels of two vectors:
   B(k, j) = B[j / (2 VL) * panel + k * bk + j % (2 VL)]; columns are computed by whole vectors. */
INLINE void micro(const int mr, const int nv, int K, const real *A, long ai, long ak, const real *B,
                  long bk, real *C, long ldc, const real *bias, int add) {
    vec acc[MR][2];
    for (int i = 0; i < mr; i++)
        for (int v = 0; v < nv; v++) {
            if (add) acc[i][v] = *(const vec *)(C + i * ldc + v * VL);
            else if (bias) acc[i][v] = *(const vec *)(bias + v * VL);
            else acc[i][v] = (vec){0};
        }
    for (int k = 0; k < K; k++) {
        vec b[2];
        for (int v = 0; v < nv; v++) b[v] = *(const vec *)(B + k * bk + v * VL);
        for (int i = 0; i < mr; i++) {
            real a = A[i * ai + k * ak];
            for (int v = 0; v < nv; v++) acc[i][v] += a * b[v];
        }
    }
    for (int i = 0; i < mr; i++)
        for (int v = 0; v < nv; v++) *(vec *)(C + i * ldc + v * VL) = acc[i][v];
}

static void micro_rows(int mr, int nv, int K, const real *A, long ai, long ak, const real *B,
                       long bk, real *C, long ldc, const real *bias, int add) {
#define ROWS(m) case m: \
        if (nv == 2) micro(m, 2, K, A, ai, ak, B, bk, C, ldc, bias, add); \
        else micro(m, 1, K, A, ai, ak, B, bk, C, ldc, bias, add); \
        break;
    switch (mr) {
        ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#if MR == 8
        ROWS(7) ROWS(8)
#endif
    }
#undef ROWS
}

static void product(int m, int n, int K, const real *A, long ai, long ak, const real *B, long bk,
                    long panel, real *C, long ldc, const real *bias, int add) {
    for (int j = 0; j < n; j += 2 * VL) {
        int nv = n - j > VL ? 2 : 1;
        const real *Bj = B + j / (2 * VL) * panel;
        for (int i = 0; i < m; i += MR)
            micro_rows((int)smaller(MR, m - i), nv, K, A + i * ai, ai, ak, Bj, bk, C + i * ldc + j,
                       ldc, bias ? bias + j : NULL, add);
    }
}

/* A matrix packed for `product`: K rows of n columns in panels. */
typedef struct {
    int K, n;
    real *data;
} Packed;

static inline long packed_size(long K, long n) { return K * ((n + 2 * VL - 1) / (2 * VL)) * 2 * VL; }

/* Rows [share of thread t of threads) of B(k, j) = W[j * in + k] (transposed) or W[k * in + j]. */
static void pack(Packed *to, const real *W, long rs, long cs, int t, int threads) {
    int panels = (to->n + 2 * VL - 1) / (2 * VL);
    for (int p = 0; p < panels; p++) {
        int first = p * 2 * VL, width = (int)smaller(2 * VL, to->n - first);
        for (int k = to->K * t / threads; k < to->K * (t + 1) / threads; k++) {
            real *row = to->data + ((long)p * to->K + k) * 2 * VL;
            for (int j = 0; j < width; j++) row[j] = W[k * rs + (first + j) * cs];
            for (int j = width; j < 2 * VL; j++) row[j] = 0;
        }
    }
}

static void times(int m, const real *A, long lda, const Packed *B, real *C, long ldc,
                  const real *bias, int add) {
    product(m, B->n, B->K, A, lda, 1, B->data, 2 * VL, (long)B->K * 2 * VL, C, ldc, bias, add);
}

/* C (n_a, n_b) += A^T B over a tile of rows; A (rows, n_a), B (rows, n_b). */
static void outer(int rows, const real *A, long lda, int na, const real *B, long ldb, int nb,
                  real *C, long ldc) {
    product(na, nb, rows, A, 1, lda, B, ldb, 2 * VL, C, ldc, NULL, 1);
}

static void add_columns(int rows, int n, const real *A, long lda, real *sum) {
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < n; j++) sum[j] += A[r * lda + j];
}
