/* The predictor of pixels as a library, for tests. */
#include "../../src/mixerflow/compression/native/predictor.h"

/* `stack` is the state and the count of words; returns 0, or why it failed, as the codec says it. */
int push(uint32_t *words, int64_t capacity, uint64_t stack[2], const int32_t shape[4],
         const uint16_t *pixels, int64_t images) {
    Stack s = {.state = stack[0], .words = words, .count = (int64_t)stack[1], .capacity = capacity};
    PictureShape picture = {shape[0], shape[1], shape[2], shape[3]};
    int failed = predictor_push(&s, &picture, pixels, images);
    stack[0] = s.state, stack[1] = (uint64_t)s.count;
    return failed ? failed : s.full ? 3 : 0;
}

int pop(uint32_t *words, uint64_t stack[2], const int32_t shape[4], uint16_t *pixels,
        int64_t images) {
    Stack s = {.state = stack[0], .words = words, .count = (int64_t)stack[1]};
    PictureShape picture = {shape[0], shape[1], shape[2], shape[3]};
    int failed = predictor_pop(&s, &picture, pixels, images);
    stack[0] = s.state, stack[1] = (uint64_t)s.count;
    return failed ? failed : s.dry ? 4 : 0;
}
