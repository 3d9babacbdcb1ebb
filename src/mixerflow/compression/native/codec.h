/* The lossless codec of images by a flow on integers: what Python, and the tests' tool, call. */
#ifndef MIXERFLOW_CODEC_H
#define MIXERFLOW_CODEC_H

#include <stdint.h>

/* Why a call failed; 0 is success. */
enum {
    CODEC_MEMORY = 1,   /* no memory */
    CODEC_PROGRAM = 2,  /* the program is none of ours */
    CODEC_FULL = 3,     /* the caller's words are too few */
    CODEC_DAMAGED = 4,  /* the words are not of this program */
    CODEC_STOPPED = 5,  /* the caller asked for it */
    CODEC_PIXELS = 6    /* pixels, classes or counts outside their range */
};

/* Told by the codec while it works, and afterwards. Bits are sums over the images of the flow. */
typedef struct {
    int64_t done;           /* images so far; another thread may read it */
    int64_t stop;           /* another thread sets it to 1 to stop the call */
    int64_t initial;        /* images at the end of the block that the predictor codes */
    int64_t plain;          /* images elsewhere in the block that the predictor codes */
    int64_t clamped;        /* scales at an end of [1, 2^30] */
    int64_t escaped;        /* latents beyond the table */
    int64_t trial;          /* the caller sets it to 1 to learn the bits only: pixels have the same noise
                               for every k, and the words are none to decode */
    double initial_bits;    /* bits of the initial images */
    double plain_bits;      /* bits of the plain images */
    double flow_bits;       /* bits of the images that the flow codes */
    double latent_bits;     /* of these, what the latents cost, low bits included */
    double ideal_latents;   /* the same under the base's density itself */
    double scale_bits;      /* -log2(R / S), over the scales */
    double ideal_scales;    /* -log2 of the scales before they are rounded */
    double *each;           /* NULL, or room for the bits of each image: -1 for initial images */
} CodecReport;

typedef struct Codec Codec;

/* Read a program (see program.py) for k bits below a pixel; constants are computed here. */
int codec_open(const int32_t *words, int64_t n_words, const double *numbers, int64_t n_numbers,
               int32_t k, Codec **opened);
void codec_close(Codec *codec);

/* A number of all constants, and of what the flow makes of an image: machines must agree on it. */
uint64_t codec_fingerprint(const Codec *codec);

/* Code images (images, D) to at most `capacity` words; `classes` is NULL for a flow without. */
int codec_encode(const Codec *codec, const uint16_t *pixels, const int32_t *classes,
                 int64_t images, uint32_t *words, int64_t capacity, int64_t *count,
                 CodecReport *report);
int codec_decode(const Codec *codec, const uint32_t *words, int64_t count, int64_t images,
                 int64_t initial, const int32_t *classes, uint16_t *pixels, CodecReport *report);

#endif
