/* The normal scores of pixels as a map of integers: `mixerflow.transforms.NormalScores`.
 *
 * A level's cells are cut into pieces that are shorter towards both ends, where the scores bend, and
 * mapped linearly to cells that are fine enough for the rarest level. Of these the lowest bits are
 * pushed again at once, since common levels do not need them.
 */
#ifndef MIXERFLOW_SCORES_H
#define MIXERFLOW_SCORES_H

#include "maps.h"

#define MARGIN 0.00006103515625 /* 2^-14: probability beyond either end */
#define SCORE_BITS 8            /* bits of a score's unit below those of a pixel */
#define MIDDLE_BITS 6           /* 2^6 pieces of equal length, less the first and the last */

typedef struct {
    int32_t channels, levels, k, spare; /* spare: bits of the fine cells that are pushed again */
    double fine;                        /* width of a fine cell */
    double *shares, *below, *above;     /* of each channel's levels */
    int64_t *edges;                     /* fine cells at which levels begin, (channels, levels + 1) */
} Scores;

/* The normal quantile of p in (0, 1/2], to 1e-9. Acklam, An algorithm for computing the inverse
 * normal cumulative distribution function (2003). */
static double quantile(double p) {
    if (p < 0.02425) {
        double q = __builtin_sqrt(-2.0 * log_double(p));
        double top = -7.784894002430293e-03;
        top = top * q - 3.223964580411365e-01;
        top = top * q - 2.400758277161838e+00;
        top = top * q - 2.549732539343734e+00;
        top = top * q + 4.374664141464968e+00;
        top = top * q + 2.938163982698783e+00;
        double below = 7.784695709041462e-03;
        below = below * q + 3.224671290700398e-01;
        below = below * q + 2.445134137142996e+00;
        below = below * q + 3.754408661907416e+00;
        return top / (below * q + 1.0);
    }
    double q = p - 0.5, r = q * q;
    double top = -3.969683028665376e+01;
    top = top * r + 2.209460984245205e+02;
    top = top * r - 2.759285104469687e+02;
    top = top * r + 1.383577518672690e+02;
    top = top * r - 3.066479806614716e+01;
    top = top * r + 2.506628277459239e+00;
    double below = -5.447609879822406e+01;
    below = below * r + 1.615858368580409e+02;
    below = below * r - 1.556989798598866e+02;
    below = below * r + 6.680131188771972e+01;
    below = below * r - 1.328068155288572e+01;
    return top * q / (below * r + 1.0);
}

/* The fine cell at which cell q, in [0, 2^k], of a level begins. */
static int64_t score_at(const Scores *s, int32_t channel, int32_t level, int64_t q) {
    const int64_t at = (int64_t)channel * s->levels + level;
    double inside = (double)q / (double)((int64_t)1 << s->k);
    double low = (s->below[at] + s->shares[at] * inside) * (1.0 - 2.0 * MARGIN) + MARGIN;
    double high = (s->above[at] + s->shares[at] * (1.0 - inside)) * (1.0 - 2.0 * MARGIN) + MARGIN;
    double z = high < low ? -quantile(high) : quantile(low);
    return whole(z / s->fine);
}

/* Where piece i of a level begins, in cells of a pixel; 2^k for the one behind the last. */
static inline int64_t piece_from(const Scores *s, int32_t i) {
    const int more = s->k > MIDDLE_BITS ? s->k - MIDDLE_BITS : 0;
    const int32_t half = more + 1 + ((1 << (s->k - more)) - 2) / 2; /* pieces up to the middle */
    const int upper = i > half;
    if (upper) i = 2 * half - i;
    int64_t from = i <= more ? (i ? (int64_t)1 << (i - 1) : 0) : (int64_t)(i - more) << more;
    return upper ? ((int64_t)1 << s->k) - from : from;
}

static inline int32_t pieces_of(const Scores *s) {
    const int more = s->k > MIDDLE_BITS ? s->k - MIDDLE_BITS : 0;
    return 2 * (more + 1 + ((1 << (s->k - more)) - 2) / 2);
}

static void score_piece(const Scores *s, int32_t channel, int32_t level, int32_t i, Piece *p) {
    const int64_t *edges = s->edges + (int64_t)channel * (s->levels + 1) + level;
    const int64_t from = piece_from(s, i), to = piece_from(s, i + 1);
    const int64_t pixel = (int64_t)level << s->k;
    p->from = pixel + from;
    p->to = pixel + to;
    p->start = from ? score_at(s, channel, level, from) : edges[0];
    p->end = to >> s->k ? edges[1] : score_at(s, channel, level, to);
}

/* A pixel's integer to its score's; 1 if they have none. */
static int score_forward(const Scores *s, Stack *stack, int32_t channel, int64_t *n) {
    const int32_t level = (int32_t)(*n >> s->k);
    const int64_t q = *n - ((int64_t)level << s->k);
    int32_t low = 0, high = pieces_of(s);
    while (high - low > 1) {
        int32_t middle = (low + high) / 2;
        if (q >= piece_from(s, middle))
            low = middle;
        else
            high = middle;
    }
    Piece piece;
    score_piece(s, channel, level, low, &piece);
    if (!holds(&piece)) return 1;
    int64_t score = piece_forward(&piece, stack, *n);
    if (s->spare) push_bits(stack, s->spare, (uint32_t)score & ((1u << s->spare) - 1));
    *n = score >> s->spare;
    return 0;
}

static int score_inverse(const Scores *s, Stack *stack, int32_t channel, int64_t *n) {
    int64_t score = *n * ((int64_t)1 << s->spare);
    if (s->spare) score += pop_bits(stack, s->spare);
    const int64_t *edges = s->edges + (int64_t)channel * (s->levels + 1);
    if (score < edges[0] || score >= edges[s->levels]) return 1;
    int32_t level = 0, low = 0, high = s->levels;
    while (high - level > 1) {
        int32_t middle = (level + high) / 2;
        if (score >= edges[middle])
            level = middle;
        else
            high = middle;
    }
    for (high = pieces_of(s); high - low > 1;) {
        int32_t middle = (low + high) / 2;
        if (score >= score_at(s, channel, level, piece_from(s, middle)))
            low = middle;
        else
            high = middle;
    }
    Piece piece;
    score_piece(s, channel, level, low, &piece);
    if (!holds(&piece) || score < piece.start || score >= piece.end) return 1;
    *n = piece_inverse(&piece, stack, score);
    return 0;
}

#endif
