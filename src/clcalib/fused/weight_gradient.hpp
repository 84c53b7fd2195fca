// The gradient of the weight of a 3 x 3 convolution with stride and padding 1, from bfloat16 values that lie channels
// last: d[k][i][j][c] = sum over images, rows h and columns w of gradient[h][w][k] * x[h + i - 1][w + j - 1][c].
//
// The processor's instruction adds to 16 sums the products of two pairs each, so pixels are taken in pairs of neighbours:
// 16 channels of x with the pixels of a pair side by side, and from the gradient one channel's pair for all of them.  A
// pair begins at an even column for j = 1, at an odd one for j = 0 and 2, so x is laid out both ways.  24 sums, 8 of k
// times the three of j, stay in registers for all pixels of a tile of images.
#if defined(HAS_VECTORS) && defined(__AVX512BF16__)
#define HAS_WEIGHT_GRADIENT 1

namespace {

constexpr int64_t TILE_BYTES = 1 << 18, PARTS = 4;  // of a tile, well below the second-level cache; of the images
constexpr int OUTPUTS = 8;                          // sums over k at a time

struct Convolution {
    int64_t images, height, width, inputs, outputs;  // width is even, inputs a multiple of 16, outputs one of 8
};

// Two pixels' channels side by side: out[2 c] is first[c], out[2 c + 1] is second[c]; null is zero.
inline void pair_up(const bfloat16 *first, const bfloat16 *second, int64_t channels, bfloat16 *out) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                           5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int64_t c = 0; c < channels; c += LANES) {
        const __mmask16 lanes = lanes_below(channels - c);
        const __m256i low = first ? _mm256_maskz_loadu_epi16(lanes, first + c) : _mm256_setzero_si256();
        const __m256i high = second ? _mm256_maskz_loadu_epi16(lanes, second + c) : _mm256_setzero_si256();
        const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
        const __mmask32 pairs = lanes == 0xffff ? 0xffffffffu : (1u << (2 * (channels - c))) - 1;
        _mm512_mask_storeu_epi16(out + 2 * c, pairs, _mm512_permutexvar_epi16(order, both));
    }
}

// Every row of an image in pairs that begin at column -shift, pairs of them for each row.
void pair_image(const bfloat16 *image, int64_t height, int64_t width, int64_t channels, int64_t shift, int64_t pairs,
                bfloat16 *out) {
    for (int64_t h = 0; h < height; ++h)
        for (int64_t pair = 0; pair < pairs; ++pair, out += 2 * channels) {
            const int64_t column = 2 * pair - shift;
            const bfloat16 *place = image + (h * width + column) * channels;
            pair_up(column >= 0 ? place : nullptr, column + 1 < width ? place + channels : nullptr, channels, out);
        }
}

struct Tile {  // some images in pairs: the gradient, and x from even columns and from odd ones
    const bfloat16 *gradient, *even, *odd;
    int64_t images;
};

inline __m512bh pair_of_all(const bfloat16 *place) {
    int32_t both;
    std::memcpy(&both, place, 4);
    return (__m512bh)_mm512_set1_epi32(both);
}
inline __m512bh pairs_of_16(const bfloat16 *place) { return (__m512bh)_mm512_loadu_si512(place); }

// Adds a tile's part to d[k .. k + 7][i][0 .. 2][c .. c + 15].
void add_tile(const Tile &tile, const Convolution &shape, int64_t k, int64_t i, int64_t c, float *d) {
    const int64_t pairs = shape.width / 2, C = shape.inputs, K = shape.outputs;
    __m512 sums[OUTPUTS][3];
#pragma GCC unroll 8
    for (int own = 0; own < OUTPUTS; ++own)
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) sums[own][j] = _mm512_loadu_ps(d + (((k + own) * 3 + i) * 3 + j) * C + c);
    const int64_t first = i == 0 ? 1 : 0, last = i == 2 ? shape.height - 1 : shape.height;
    for (int64_t image = 0; image < tile.images; ++image)
        for (int64_t h = first; h < last; ++h) {
            const int64_t row = image * shape.height + h, other = row + i - 1;
            const bfloat16 *g = tile.gradient + row * pairs * 2 * K + 2 * k;
            const bfloat16 *even = tile.even + other * pairs * 2 * C + 2 * c;
            const bfloat16 *odd = tile.odd + other * (pairs + 1) * 2 * C + 2 * c;
            for (int64_t pair = 0; pair < pairs; ++pair, g += 2 * K, even += 2 * C, odd += 2 * C) {
                const __m512bh x[3] = {pairs_of_16(odd), pairs_of_16(even), pairs_of_16(odd + 2 * C)};
#pragma GCC unroll 8
                for (int own = 0; own < OUTPUTS; ++own) {
                    const __m512bh both = pair_of_all(g + 2 * own);
#pragma GCC unroll 3
                    for (int j = 0; j < 3; ++j) sums[own][j] = _mm512_dpbf16_ps(sums[own][j], x[j], both);
                }
            }
        }
#pragma GCC unroll 8
    for (int own = 0; own < OUTPUTS; ++own)
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) _mm512_storeu_ps(d + (((k + own) * 3 + i) * 3 + j) * C + c, sums[own][j]);
}

// The sum over the images first .. last - 1, put to d.
void weight_gradient_of(const bfloat16 *x, const bfloat16 *gradient, const Convolution &shape, int64_t first,
                        int64_t last, float *d) {
    const int64_t pairs = shape.width / 2, pixels = shape.height * shape.width;
    const int64_t of_gradient = pixels * shape.outputs, of_even = pixels * shape.inputs;
    const int64_t of_odd = shape.height * (pairs + 1) * 2 * shape.inputs, of_all = of_gradient + of_even + of_odd;
    int64_t most = TILE_BYTES / (2 * of_all);
    if (most < 1) most = 1;
    const std::unique_ptr<bfloat16[]> room(new bfloat16[most * of_all]);  // a vector would fill it with zeros first
    bfloat16 *g = room.get(), *even = g + most * of_gradient, *odd = even + most * of_even;
    std::memset(d, 0, sizeof(float) * 9 * shape.inputs * shape.outputs);
    for (int64_t start = first; start < last; start += most) {
        const int64_t images = last - start < most ? last - start : most;
        for (int64_t image = 0; image < images; ++image) {
            const bfloat16 *values = x + (start + image) * pixels * shape.inputs;
            pair_image(gradient + (start + image) * pixels * shape.outputs, shape.height, shape.width, shape.outputs, 0,
                       pairs, g + image * of_gradient);
            pair_image(values, shape.height, shape.width, shape.inputs, 0, pairs, even + image * of_even);
            pair_image(values, shape.height, shape.width, shape.inputs, 1, pairs + 1, odd + image * of_odd);
        }
        const Tile tile{g, even, odd, images};
        for (int64_t k = 0; k < shape.outputs; k += OUTPUTS)
            for (int64_t c = 0; c < shape.inputs; c += LANES)
                for (int64_t i = 0; i < 3; ++i) add_tile(tile, shape, k, i, c, d);
    }
}

}  // namespace
#endif

// d (K, 3, 3, C); the images are summed in four parts, which are then added in order, for any number of threads.
EXPORT int clcalib_has_weight_gradient() {
#ifdef HAS_WEIGHT_GRADIENT
    return 1;
#else
    return 0;
#endif
}

// Whether the processor multiplies tiles of bfloat16 (AMX): PyTorch's kernel does too, and is several times as fast.
EXPORT int clcalib_has_tiles() {
#ifdef __AMX_BF16__
    return 1;
#else
    return 0;
#endif
}

EXPORT void clcalib_weight_gradient(const void *x, const void *gradient, int64_t images, int64_t height, int64_t width,
                                    int64_t inputs, int64_t outputs, float *d) {
#ifdef HAS_WEIGHT_GRADIENT
    const Convolution shape{images, height, width, inputs, outputs};
    const int64_t size = 9 * inputs * outputs, each = (images + PARTS - 1) / PARTS;
    const std::unique_ptr<float[]> sums(new float[(PARTS - 1) * size]);
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < PARTS; ++part) {
        const int64_t first = part * each < images ? part * each : images;
        const int64_t last = first + each < images ? first + each : images;
        weight_gradient_of(static_cast<const bfloat16 *>(x), static_cast<const bfloat16 *>(gradient), shape, first, last,
                           part ? sums.get() + (part - 1) * size : d);
    }
    for (int64_t part = 0; part < PARTS - 1; ++part)
        for (int64_t i = 0; i < size; ++i) d[i] += sums[part * size + i];
#else
    (void)x, (void)gradient, (void)images, (void)height, (void)width, (void)inputs, (void)outputs, (void)d;
#endif
}
