/* Images without the flow: an adaptive predictor of pixels, for the first images of a block. */
#ifndef MIXERFLOW_PREDICTOR_H
#define MIXERFLOW_PREDICTOR_H

#include <stdint.h>
#include <stdlib.h>

#include "stack.h"

typedef struct {
    int32_t channels, height, width, levels;
} PictureShape;

/* Push images (count, channels, height, width), so that `predictor_pop` gives the first one first.
 * Returns 0, or 1 if there is no memory. */
static int predictor_push(Stack *s, const PictureShape *shape, const uint16_t *pixels,
                          int64_t count) {
    for (int64_t i = count * shape->channels * shape->height * shape->width; i-- > 0;)
        push_uniform(s, (uint32_t)shape->levels, pixels[i]);
    return 0;
}

static int predictor_pop(Stack *s, const PictureShape *shape, uint16_t *pixels, int64_t count) {
    const int64_t size = count * shape->channels * shape->height * shape->width;
    for (int64_t i = 0; i < size; i++)
        pixels[i] = (uint16_t)pop_uniform(s, (uint32_t)shape->levels);
    return 0;
}

#endif
