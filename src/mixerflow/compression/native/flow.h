/* The flow on integers.
 *
 * The number at a position is ``unit * n + offset``, the middle of a cell of width unit: n is an
 * integer, held by a double, and unit and offset are the same for all images. Affine maps with
 * constants change units and offsets only. Where a unit has become too coarse, m bits are popped, and
 * ``n' = 2^m n + bits``; where it is needlessly fine, the lowest bits of n are pushed: what couplings
 * shrink and constants enlarge again would otherwise end in units as large as the numbers themselves.
 * Unit triangular maps add a rounded sum to n, in an order in which the inverse finds the same
 * numbers to sum. A coupling scales n by R / 2^16 for an integer R near 2^16 exp(s):
 *
 *     pop r of R;  m = R n + r;  n' = floor(m / 2^16);  push m mod 2^16;  n' += rint(shift / unit)
 *
 * which is a bijection of integers and stacks, and costs -log2(R / 2^16) bits.
 *
 * References: Zhang et al., iVPF (2021), arXiv:2103.16211, and iFlow (2021), arXiv:2111.00965; Ho et
 *     al., Compression with flows via local bits-back coding (2019), arXiv:1905.08500.
 */
#ifndef MIXERFLOW_FLOW_H
#define MIXERFLOW_FLOW_H

#include "coupling.h"
#include "steps.h"
#include "triangles.h"

/* Pop bits below the integers of a step, or push their lowest bits; the inverse does the opposite, from
 * the last position to the first. */
static void refine(const Step *s, int inverse, Stack *stack, Work *w) {
    for (int64_t e = 0; e < s->count; e++) {
        const int64_t i = inverse ? s->count - 1 - e : e;
        const int bits = inverse ? -s->bits[i] : s->bits[i];
        double *own = w->n + s->positions[i];
        int64_t n = (int64_t)*own;
        if (bits > 0)
            n = n * ((int64_t)1 << bits) + pop_bits(stack, bits);
        else {
            push_bits(stack, -bits, (uint32_t)n & (((uint32_t)1 << -bits) - 1));
            n >>= -bits;
        }
        *own = (double)n;
    }
    w->bad |= !within(w->n, w->size);
}

/* Pixels to scores, or back. */
static void scores_forward(const Step *s, Stack *stack, Work *w) {
    for (int64_t i = 0; i < s->n * s->rows; i++) {
        double *own = w->n + s->table[i];
        int64_t n = (int64_t)*own;
        w->bad |= score_forward(s->scores, stack, (int32_t)(i / s->rows), &n);
        *own = (double)n;
    }
}

static void scores_inverse(const Step *s, Stack *stack, Work *w) {
    for (int64_t i = s->n * s->rows; i-- > 0 && !w->bad;) {
        double *own = w->n + s->table[i];
        int64_t n = (int64_t)*own;
        w->bad |= score_inverse(s->scores, stack, (int32_t)(i / s->rows), &n);
        *own = (double)n;
    }
}

/* One step of an image, w->n, from data to latents or back. */
static void step_forward(const Step *s, int32_t class, Stack *stack, Work *w) {
    if (s->kind == REFINE) refine(s, 0, stack, w);
    if (s->kind == SCORES) scores_forward(s, stack, w);
    if (s->maps) convolution_read(s, class, w);
    for (int64_t b = 0; b < s->blocks && !w->bad; b++)
        if (s->kind == TRIANGLES)
            triangles_forward(s, b, w);
        else if (s->map == SPLINE)
            spline_block(s, b, class, 0, stack, w);
        else
            coupling_forward(s, b, class, stack, w);
}

static void step_inverse(const Step *s, int32_t class, Stack *stack, Work *w) {
    if (s->kind == REFINE) refine(s, 1, stack, w);
    if (s->kind == SCORES) scores_inverse(s, stack, w);
    if (s->maps) convolution_read(s, class, w);
    for (int64_t b = s->blocks; b-- > 0 && !w->bad;)
        if (s->kind == TRIANGLES)
            triangles_inverse(s, b, w);
        else if (s->map == SPLINE)
            spline_block(s, b, class, 1, stack, w);
        else
            coupling_inverse(s, b, class, stack, w);
}

#endif
