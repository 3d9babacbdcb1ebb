/* Monotone maps of integers by pieces: n in [from, to) goes to [start, end), for any two lengths.
 *
 *     pop r of R = end - start;  m = R (n - from) + r;  n' = start + floor(m / S);  push m mod S
 *
 * with S = to - from is a bijection of integers and stacks, and costs -log2(R / S) bits. A map whose
 * ends of pieces both directions compute alike needs no inverse but the search for the piece.
 */
#ifndef MIXERFLOW_MAPS_H
#define MIXERFLOW_MAPS_H

#include "stack.h"
#include "strict.h"

typedef struct {
    int64_t from, to, start, end;
} Piece;

static inline int holds(const Piece *p) {
    return p->to > p->from && p->end > p->start && !((p->to - p->from) >> 32) &&
           !((p->end - p->start) >> 32);
}

static inline int64_t piece_forward(const Piece *p, Stack *s, int64_t n) {
    const uint32_t range = (uint32_t)(p->end - p->start), scale = (uint32_t)(p->to - p->from);
    uint64_t m = (uint64_t)range * (uint64_t)(n - p->from) + pop_uniform(s, range);
    push_uniform(s, scale, (uint32_t)(m % scale));
    return p->start + (int64_t)(m / scale);
}

static inline int64_t piece_inverse(const Piece *p, Stack *s, int64_t n) {
    const uint32_t range = (uint32_t)(p->end - p->start), scale = (uint32_t)(p->to - p->from);
    uint64_t m = (uint64_t)scale * (uint64_t)(n - p->start) + pop_uniform(s, scale);
    push_uniform(s, range, (uint32_t)(m % range));
    return p->from + (int64_t)(m / range);
}

#define FAR 1125899906842624.0 /* 2^50: integers of what is farther, or none, are +- this */

/* The least integer of a cell that begins at x or behind it, in cells of width unit > 0 from left. */
static inline int64_t cell_from(double x, double unit, double left) {
    double place = (x - left) / unit;
    if (!(place > -FAR)) return -(int64_t)FAR;
    if (place > FAR) return (int64_t)FAR;
    int64_t whole = (int64_t)place;
    return whole + ((double)whole < place);
}

/* The nearest integer as such. */
static inline int64_t whole(double x) {
    if (!(x > -FAR)) return -(int64_t)FAR;
    return x > FAR ? (int64_t)FAR : (int64_t)nearest(x);
}

#endif
