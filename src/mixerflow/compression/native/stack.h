/* The coder: a stack of bits from which uniform numbers and symbols are popped, and pushed.
 *
 * A state in [2^32, 2^64) lies on top of 32-bit words. Popping a uniform number of R values takes
 * log2(R) bits from the stack, pushing it adds as many; each undoes the other exactly:
 *
 *     push v of R:   c' = c R + v;  while c' >= 2^64 the low 32 bits go to the words
 *     pop  v of R:   if c < R 2^32, 32 bits come from the words first;  v = c mod R, c' = c div R
 *
 * Symbols with frequencies (asymmetric numeral systems) work on the same state.
 *
 * What a caller may undo: words that are popped are kept in a journal from `stack_mark` on, and
 * `stack_undo` brings the stack back to the mark.
 *
 * References: Duda, Asymmetric numeral systems (2013), arXiv:1311.2540; Zhang et al., iVPF (2021),
 *     arXiv:2103.16211.
 */
#ifndef MIXERFLOW_STACK_H
#define MIXERFLOW_STACK_H

#include <stdint.h>
#include <string.h>

#define STATE_LEAST ((uint64_t)1 << 32)
#define SYMBOL_BITS 24 /* most bits of the total of frequencies */

typedef struct {
    uint64_t state;
    uint32_t *words;   /* the caller's; words[0] is the bottom */
    int64_t count;     /* words on the stack */
    int64_t capacity;  /* of words, and of journal */
    uint32_t *journal; /* words that lay at low - 1, low - 2, ... or NULL */
    int64_t low;       /* the fewest words since the mark */
    int64_t mark;      /* words at the mark */
    uint64_t marked;   /* the state at the mark */
    int dry;           /* 1 once a word was popped that was not there */
    int full;          /* 1 once there was no room for a word */
} Stack;

static inline void stack_put(Stack *s, uint32_t word) {
    if (s->count < s->capacity)
        s->words[s->count++] = word;
    else
        s->full = 1;
}

static inline uint32_t stack_take(Stack *s) {
    if (!s->count) {
        s->dry = 1;
        return 0;
    }
    uint32_t word = s->words[--s->count];
    if (s->count < s->low && s->journal) {
        s->journal[s->mark - 1 - s->count] = word;
        s->low = s->count;
    }
    return word;
}

/* Remember the stack as it is now. */
static inline void stack_mark(Stack *s) {
    s->low = s->mark = s->count;
    s->marked = s->state;
    s->dry = s->full = 0;
}

/* Bring the stack back to the mark. */
static inline void stack_undo(Stack *s) {
    for (int64_t i = s->low; i < s->mark; i++) s->words[i] = s->journal[s->mark - 1 - i];
    s->count = s->mark;
    s->state = s->marked;
    s->dry = s->full = 0;
}

/* Push value v, of range R in [1, 2^32). */
static inline void push_uniform(Stack *s, uint32_t range, uint32_t value) {
    unsigned __int128 wide = (unsigned __int128)s->state * range + value;
    if (wide >> 64) {
        stack_put(s, (uint32_t)wide);
        wide >>= 32;
    }
    s->state = (uint64_t)wide;
}

/* Pop a value of range R in [1, 2^32). */
static inline uint32_t pop_uniform(Stack *s, uint32_t range) {
    uint64_t c = s->state, quotient = c / range, rest = c - quotient * range;
    if (quotient >> 32) {
        s->state = quotient;
        return (uint32_t)rest;
    }
    uint64_t low = (rest << 32) | stack_take(s); /* the division goes on with 32 more bits */
    s->state = (quotient << 32) + low / range;
    return (uint32_t)(low % range);
}

/* The same for a range of 2^bits, at most 2^31. */
static inline void push_bits(Stack *s, int bits, uint32_t value) {
    uint64_t c = s->state;
    if (c >> (64 - bits)) {
        stack_put(s, (uint32_t)(c << bits | value));
        s->state = c >> (32 - bits);
    } else
        s->state = c << bits | value;
}

static inline uint32_t pop_bits(Stack *s, int bits) {
    uint64_t c = s->state;
    uint32_t mask = ((uint32_t)1 << bits) - 1;
    if (c >> (32 + bits)) {
        s->state = c >> bits;
        return (uint32_t)c & mask;
    }
    uint32_t word = stack_take(s);
    s->state = c << (32 - bits) | word >> bits;
    return word & mask;
}

/* Push a symbol of frequency f, in [1, 2^bits], whose slots begin at `start`; `bits` <= 24. */
static inline void push_symbol(Stack *s, int bits, uint32_t start, uint32_t frequency) {
    if (s->state >= (uint64_t)frequency << (64 - bits) && frequency >> bits == 0) {
        stack_put(s, (uint32_t)s->state);
        s->state >>= 32;
    }
    uint64_t quotient = s->state / frequency;
    s->state = (quotient << bits) + start + (s->state - quotient * frequency);
}

/* The slot of the symbol on top, in [0, 2^bits): the caller finds its symbol, and then pops it. */
static inline uint32_t peek_slot(const Stack *s, int bits) {
    return (uint32_t)(s->state & (((uint64_t)1 << bits) - 1));
}

static inline void pop_symbol(Stack *s, int bits, uint32_t start, uint32_t frequency) {
    uint32_t slot = peek_slot(s, bits);
    s->state = (s->state >> bits) * frequency + slot - start;
    if (s->state < STATE_LEAST) s->state = (s->state << 32) | stack_take(s);
}

#endif
