/* The codec's own functions, its coder and a step of a coupling, for tests against other sums. */
#include "../../src/mixerflow/compression/native/codec.c"

void own_floats(int which, int64_t count, const float *x, float *y) {
    static float (*const functions[])(float) = {exp_float,  log_float, squash_float,
                                                tanh_float, erf_float, gelu_float};
    for (int64_t i = 0; i < count; i++) y[i] = functions[which](x[i]);
}

void own_doubles(int which, int64_t count, const double *x, double *y) {
    for (int64_t i = 0; i < count; i++)
        y[i] = which == 0 ? exp_double(x[i]) : which == 1 ? log_double(x[i]) : nearest(x[i]);
}

static Stack stack_of(uint64_t stack[2], uint32_t *words, int64_t capacity) {
    return (Stack){.state = stack[0], .words = words, .count = (int64_t)stack[1],
                   .capacity = capacity};
}

/* Operations (count, 4): a kind, then its numbers; the last one is pushed, or is what was popped. */
void code(int64_t count, uint32_t *operations, uint64_t stack[2], uint32_t *words,
          int64_t capacity) {
    Stack s = stack_of(stack, words, capacity);
    for (int64_t i = 0; i < count; i++) {
        uint32_t *o = operations + 4 * i;
        switch (o[0]) {
        case 0: push_uniform(&s, o[1], o[3]); break;
        case 1: o[3] = pop_uniform(&s, o[1]); break;
        case 2: push_bits(&s, (int)o[1], o[3]); break;
        case 3: o[3] = pop_bits(&s, (int)o[1]); break;
        case 4: push_symbol(&s, SYMBOL_BITS, o[1], o[2]); break;
        default:
            o[3] = peek_slot(&s, SYMBOL_BITS);
            pop_symbol(&s, SYMBOL_BITS, o[1], o[2]);
        }
    }
    stack[0] = s.state, stack[1] = (uint64_t)s.count;
}

/* A coupling of one row of numbers n (2, at most 16), of which the first half is given, whose net
 * says the same to every image: log-scales, then shifts (numbers - given). */
int couple(int inverse, int numbers, double *n, double *units, double *offsets, float *says,
           uint64_t stack[2], uint32_t *words, int64_t capacity) {
    enum { MOST = 16 };
    static const float zeros[MOST * MOST];
    _Alignas(64) double own[MOST * LANES], ranges[MOST * LANES], wide[2][MOST * LANES];
    _Alignas(64) float x[MOST * LANES], raw[2 * MOST * LANES], scratch[8 * LANES];
    int32_t table[MOST];
    const int given = numbers / 2;
    for (int i = 0; i < MOST; i++) table[i] = i;
    for (int i = 0; i < numbers; i++)
        for (int l = 0; l < LANES; l++) {
            wide[0][i * LANES + l] = l ? 1.0 : units[i];
            wide[1][i * LANES + l] = l ? 0.0 : offsets[i];
        }
    float *none = (float *)zeros;
    Step step = {.kind = COUPLING, .n = numbers, .map = EXPONENTIAL, .rows = 1, .blocks = 1,
                 .table = table, .units = wide[0], .offsets = wide[1],
                 .net = {.enter = {none, none, 1, given}, .linear1 = {none, none, 1, 1},
                         .linear2 = {none, none, 1, 1},
                         .leave = {none, says, 2 * (numbers - given), 1},
                         .given = given, .hidden = 1}};
    Work work = {.n = n, .size = numbers, .own = own, .ranges = ranges, .x = x, .raw = raw,
                 .scratch = scratch, .product = 1.0, .ideal = 1.0};
    Stack s = stack_of(stack, words, capacity);
    if (inverse)
        coupling_inverse(&step, 0, 0, &s, &work);
    else
        coupling_forward(&step, 0, 0, &s, &work);
    stack[0] = s.state, stack[1] = (uint64_t)s.count;
    return work.bad;
}
