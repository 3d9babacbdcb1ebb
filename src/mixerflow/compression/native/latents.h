/* The coder of latents: the bin of a fixed table, and the place in the bin, which is uniform.
 *
 * Bins are of equal width near 0 and of equal width within each octave beyond. Frequencies are
 * computed here from the base's density, by strict arithmetic. Numbers beyond the table have the
 * first and the last symbol, and their distance follows.
 */
#ifndef MIXERFLOW_LATENTS_H
#define MIXERFLOW_LATENTS_H

#include <stdlib.h>

#include "maps.h"
#include "stack.h"
#include "strict.h"

#define BIN_BITS 5        /* 2^5 bins of the smallest scale, and of an octave */
#define MOST_LINEAR 4096  /* bins of equal width on either side */
#define FARTHEST 65536.0  /* where the table ends */
#define MOST_BINS 12288
#define STARTS_BITS 12

enum { NORMAL, STUDENT, MIXTURE };

typedef struct {
    int32_t kind, components;
    double freedom;                  /* degrees of freedom */
    double *peaks, *means, *scales;  /* of a mixture: weight / scale */
    int32_t bins;                    /* symbols 1 to bins; 0 and bins + 1 lie beyond */
    double edges[MOST_BINS + 1];     /* bin b is from edges[b - 1] to edges[b] */
    uint32_t sums[MOST_BINS + 3];    /* symbol b has the slots from sums[b] to sums[b + 1] */
    int32_t starts[(1 << STARTS_BITS) + 1];
    double mass;                     /* of the density below, which is not normalised */
} Table;

static double density(const Table *t, double z) {
    if (t->kind == NORMAL) return exp_double(-0.5 * z * z);
    if (t->kind == STUDENT)
        return exp_double(-0.5 * (t->freedom + 1.0) * log_double(1.0 + z * z / t->freedom));
    double sum = 0.0;
    for (int32_t i = 0; i < t->components; i++) {
        double x = (z - t->means[i]) / t->scales[i];
        sum += t->peaks[i] * exp_double(-0.5 * x * x);
    }
    return sum;
}

/* Choose the edges: returns 1 if the base is too wide, or too fine, for a table. */
static int table_edges(Table *t) {
    double least = 1.0, reach = 4.0;
    for (int32_t i = 0; i < t->components; i++) {
        double size = t->means[i] < 0.0 ? -t->means[i] : t->means[i];
        double far = size + 4.0 * t->scales[i];
        if (t->scales[i] < least) least = t->scales[i];
        if (far > reach) reach = far;
    }
    if (!(reach < FARTHEST / 4.0)) return 1;
    double width = 1.0 / (1 << BIN_BITS), power = 4.0;
    for (int i = 0; i < 30 && width * (1 << BIN_BITS) > least; i++) width *= 0.5;
    while (power < reach) power *= 2.0;
    while (power / width > MOST_LINEAR) width *= 2.0;
    int32_t half = 0;
    double *right = t->edges + MOST_BINS / 2;
    right[0] = 0.0;
    for (double edge = 0.0; edge < FARTHEST;) {
        double step = width;
        if (edge >= power) {
            double octave = power;
            while (octave * 2.0 <= edge) octave *= 2.0;
            step = octave / (1 << BIN_BITS);
            if (step < width) step = width;
        }
        edge += step;
        if (++half > MOST_BINS / 2) return 1;
        right[half] = edge;
    }
    double *edges = t->edges;
    memmove(edges + half, right, (size_t)(half + 1) * sizeof *edges);
    for (int32_t i = 0; i < half; i++) edges[i] = -edges[2 * half - i];
    t->bins = 2 * half;
    return 0;
}

/* Fill the table of a base whose parameters are set; 1 if it has none. */
static int table_fill(Table *t) {
    double masses[MOST_BINS];
    if (table_edges(t)) return 1;
    t->mass = 0.0;
    int32_t top = 0;
    for (int32_t b = 0; b < t->bins; b++) {
        double from = t->edges[b], to = t->edges[b + 1], middle = 0.5 * (from + to);
        masses[b] = (density(t, from) + 4.0 * density(t, middle) + density(t, to)) / 6.0 * (to - from);
        t->mass += masses[b];
        if (masses[b] > masses[top]) top = b;
    }
    if (!(t->mass > 1e-100 && t->mass < 1e100)) return 1;
    const uint32_t total = 1u << SYMBOL_BITS;
    uint32_t free = total - (uint32_t)t->bins - 2, given = 0, frequency[MOST_BINS];
    for (int32_t b = 0; b < t->bins; b++) {
        uint32_t more = (uint32_t)(masses[b] / t->mass * (double)free);
        frequency[b] = 1 + more;
        given += more;
    }
    if (given > free) {
        if (given - free >= frequency[top]) return 1;
        frequency[top] -= given - free;
    } else
        frequency[top] += free - given;
    t->sums[0] = 0;
    t->sums[1] = 1;
    for (int32_t b = 0; b < t->bins; b++) t->sums[b + 2] = t->sums[b + 1] + frequency[b];
    t->sums[t->bins + 2] = total;
    for (int32_t i = 0, b = 0; i <= 1 << STARTS_BITS; i++) {
        uint32_t slot = (uint32_t)i << (SYMBOL_BITS - STARTS_BITS);
        while (b <= t->bins && t->sums[b + 1] <= slot) b++;
        t->starts[i] = b;
    }
    return 0;
}

/* The first integer of the bin behind an edge, for unit > 0. */
static inline int64_t first_of(const Table *t, int32_t edge, double unit, double offset) {
    return cell_from(t->edges[edge], unit, offset);
}

/* Numbers of any range up to 2^55; beyond 2^31 the range is rounded up to a multiple of 2^24. */
static inline void push_wide(Stack *s, int64_t range, int64_t value) {
    if (range >> 31 == 0) {
        push_uniform(s, (uint32_t)range, (uint32_t)value);
        return;
    }
    push_bits(s, 24, (uint32_t)value & 0xffffffu);
    push_uniform(s, (uint32_t)((range - 1) >> 24) + 1, (uint32_t)(value >> 24));
}

static inline int64_t pop_wide(Stack *s, int64_t range) {
    if (range >> 31 == 0) return pop_uniform(s, (uint32_t)range);
    int64_t high = pop_uniform(s, (uint32_t)((range - 1) >> 24) + 1);
    return high << 24 | pop_bits(s, 24);
}

/* Push integer n, |n| < 2^45, whose number is unit n + offset; returns 1 if it is beyond the table. */
static int latent_push(const Table *t, Stack *s, int64_t n, double unit, double offset) {
    if (unit < 0.0) unit = -unit, n = -n;
    const int32_t bins = t->bins;
    int64_t left = first_of(t, 0, unit, offset), right = first_of(t, bins, unit, offset);
    if (n < left || n >= right) {
        uint64_t distance = (uint64_t)(n < left ? left - 1 - n : n - right);
        int length = distance ? 64 - __builtin_clzll(distance) : 0; /* at most 51 */
        if (length > 30) push_bits(s, length - 30, (uint32_t)(distance >> 30));
        if (length) push_bits(s, length > 30 ? 30 : length, (uint32_t)distance & 0x3fffffffu);
        push_bits(s, 6, (uint32_t)length);
        if (n < left)
            push_symbol(s, SYMBOL_BITS, 0, 1);
        else
            push_symbol(s, SYMBOL_BITS, t->sums[bins + 1], 1);
        return 1;
    }
    double z = unit * (double)n + offset;
    int32_t low = 0, high = bins; /* edges[low] <= z < edges[high], to rounding */
    while (high - low > 1) {
        int32_t middle = (low + high) / 2;
        if (t->edges[middle] <= z)
            low = middle;
        else
            high = middle;
    }
    int64_t first = first_of(t, low, unit, offset), next = first_of(t, low + 1, unit, offset);
    while (n < first) next = first, first = first_of(t, --low, unit, offset);
    while (n >= next) first = next, next = first_of(t, ++low + 1, unit, offset);
    push_wide(s, next - first, n - first);
    push_symbol(s, SYMBOL_BITS, t->sums[low + 1], t->sums[low + 2] - t->sums[low + 1]);
    return 0;
}

/* Pop an integer; 1 if the stack holds none. */
static int latent_pop(const Table *t, Stack *s, double unit, double offset, int64_t *popped) {
    const int negative = unit < 0.0;
    if (negative) unit = -unit;
    uint32_t slot = peek_slot(s, SYMBOL_BITS);
    int32_t symbol = t->starts[slot >> (SYMBOL_BITS - STARTS_BITS)];
    while (t->sums[symbol + 1] <= slot) symbol++;
    pop_symbol(s, SYMBOL_BITS, t->sums[symbol], t->sums[symbol + 1] - t->sums[symbol]);
    int64_t n;
    if (symbol == 0 || symbol == t->bins + 1) {
        int length = (int)pop_bits(s, 6);
        if (length > 52) return 1;
        uint64_t distance = length ? pop_bits(s, length > 30 ? 30 : length) : 0;
        if (length > 30) distance |= (uint64_t)pop_bits(s, length - 30) << 30;
        n = symbol ? first_of(t, t->bins, unit, offset) + (int64_t)distance
                   : first_of(t, 0, unit, offset) - 1 - (int64_t)distance;
    } else {
        int64_t first = first_of(t, symbol - 1, unit, offset);
        int64_t range = first_of(t, symbol, unit, offset) - first;
        if (range < 1) return 1;
        n = first + pop_wide(s, range);
    }
    *popped = negative ? -n : n;
    return 0;
}

#endif
