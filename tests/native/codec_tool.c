/* The codec without Python, on flat files in the machine's byte order, for other builds of it.
 *
 *     codec_tool encode PROGRAM K IMAGES CLASSES BLOCK [ENVIRONMENT]
 *     codec_tool decode PROGRAM K BLOCK CLASSES IMAGES [ENVIRONMENT]
 *     codec_tool fuzz PROGRAM K IMAGES CLASSES ROUNDS SEED
 *
 * PROGRAM: int64 words, int64 numbers; int32 words, double numbers. IMAGES: uint16 pixels. CLASSES:
 * int32, or - for none. BLOCK: int64 images, int64 initial; uint32 words. ENVIRONMENT is of letters:
 * u (round up), d (round down), z (towards zero), f (flush subnormal numbers), which the codec must
 * neither see nor change. Prints the fingerprint and, of a block, how many images the predictor coded
 * at its end and elsewhere; exits with the codec's code, or 9 if the
 * environment was changed, or 10 for a mistake of the caller's.
 */
#include "../../src/mixerflow/compression/native/codec.c"

#include <fenv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

static void *read_file(const char *path, int64_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) exit(10);
    *bytes = ftell(file);
    rewind(file);
    void *data = malloc((size_t)*bytes + 1);
    if (!data || fread(data, 1, (size_t)*bytes, file) != (size_t)*bytes) exit(10);
    fclose(file);
    return data;
}

static void write_file(const char *path, const void *head, size_t head_bytes, const void *data,
                       size_t bytes) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(head, 1, head_bytes, file) != head_bytes ||
        fwrite(data, 1, bytes, file) != bytes || fclose(file))
        exit(10);
}

/* The rounding mode and whether subnormal numbers are flushed, as the machine holds them. */
static uint64_t control(void) {
#if defined(__x86_64__)
    return __builtin_ia32_stmxcsr() & 0xe040u;
#elif defined(__aarch64__)
    uint64_t fpcr;
    __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
    return fpcr & (7u << 22);
#else
    return (uint64_t)fegetround();
#endif
}

static void set_control(const char *letters) {
    if (strchr(letters, 'u')) fesetround(FE_UPWARD);
    if (strchr(letters, 'd')) fesetround(FE_DOWNWARD);
    if (strchr(letters, 'z')) fesetround(FE_TOWARDZERO);
    if (!strchr(letters, 'f')) return;
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040u);
#elif defined(__aarch64__)
    uint64_t fpcr;
    __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
    __asm__ volatile("msr fpcr, %0" : : "r"(fpcr | (1u << 24)));
#endif
}

int main(int argc, char **argv) {
    if (argc < 7) return 10;
    int64_t bytes, class_bytes = 0, program_bytes;
    char *program = read_file(argv[2], &program_bytes);
    int64_t counts[2];
    if (program_bytes < 16) return 10;
    memcpy(counts, program, sizeof counts);
    if (counts[0] * 4 + counts[1] * 8 + 16 != program_bytes) return 10;
    int32_t *words = malloc((size_t)counts[0] * 4 + 1);
    double *numbers = malloc((size_t)counts[1] * 8 + 1);
    memcpy(words, program + 16, (size_t)counts[0] * 4);
    memcpy(numbers, program + 16 + counts[0] * 4, (size_t)counts[1] * 8);
    free(program);
    const int k = atoi(argv[3]), encoding = argv[1][0] != 'd';
    char *data = read_file(argv[4], &bytes);
    int32_t *classes = strcmp(argv[5], "-") ? read_file(argv[5], &class_bytes) : NULL;
    if (argc > 7) set_control(argv[7]);
    const uint64_t before = control();

    Codec *codec;
    int error = codec_open(words, counts[0], numbers, counts[1], k, &codec);
    if (error) return error;
    const int64_t size = words[2];
    CodecReport report = {0};
    printf("%016llx\n", (unsigned long long)codec_fingerprint(codec));
    if (argv[1][0] == 'f') {
        Given given = {words, numbers, counts[0], counts[1], k, size, bytes / 2 / size,
                       (uint16_t *)data, classes, words[1]};
        error = fuzz(&given, codec, atoll(argv[6]), strtoull(argv[7], NULL, 10));
    } else if (encoding) {
        const int64_t images = bytes / 2 / size, capacity = images * size * 2 + 4096;
        uint32_t *block = malloc((size_t)capacity * 4);
        int64_t count;
        error = codec_encode(codec, (uint16_t *)data, classes, images, block, capacity, &count,
                             &report);
        const int64_t head[2] = {images, report.initial};
        if (!error) write_file(argv[6], head, sizeof head, block, (size_t)count * 4);
        printf("%lld %lld\n", (long long)report.initial, (long long)report.plain);
        free(block);
    } else {
        int64_t head[2];
        if (bytes < (int64_t)sizeof head) return 10;
        memcpy(head, data, sizeof head);
        uint16_t *pixels = calloc((size_t)(head[0] * size) + 1, 2);
        error = codec_decode(codec, (uint32_t *)(data + 16), (bytes - 16) / 4, head[0], head[1],
                             classes, pixels, &report);
        if (!error) write_file(argv[6], NULL, 0, pixels, (size_t)(head[0] * size) * 2);
        free(pixels);
    }
    codec_close(codec);
    free(words);
    free(numbers);
    free(data);
    free(classes);
    return error ? error : before == control() ? 0 : 9;
}
