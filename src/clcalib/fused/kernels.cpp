// The elementwise passes of a calibration step, each in one loop over memory.  See kernels.py for the formulas.
//
// Values are float32 or bfloat16 (as uint16), told apart by a template; arithmetic is float32, sums are float64 over
// blocks of fixed size that are added in order, so no result depends on the number of threads.  Arrays are dense, and
// all arrays of one call lie in memory in the same order.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int64_t BLOCK = 2048;  // elements at a time; what the loops share stays in the first-level cache

struct bfloat16 {
    uint16_t bits;
};

inline float load(float value) { return value; }
inline float load(bfloat16 value) {
    uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}
inline void store(float *place, float value) { *place = value; }
inline void store(bfloat16 *place, float value) {  // nearest, halves to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    place->bits = static_cast<uint16_t>(value != value ? 0x7fc0 : rounded);
}

inline uint32_t scramble(uint32_t x) {  // a bijection of 32-bit words with good avalanche
    x ^= x >> 16;
    x *= 0x7feb352dU;
    x ^= x >> 15;
    x *= 0x846ca68bU;
    x ^= x >> 16;
    return x;
}

// One random byte for each of the elements start .. start + count - 1; bytes beyond are scratch.
const uint8_t *random_bytes(uint32_t key, uint32_t tweak, int64_t start, int64_t count, uint32_t *words) {
    uint32_t first = static_cast<uint32_t>(start >> 2);
    int64_t total = ((start & 3) + count + 3) >> 2;
    for (int64_t i = 0; i < total; ++i)
        words[i] = scramble(scramble((first + static_cast<uint32_t>(i)) ^ key) + tweak);
    return reinterpret_cast<const uint8_t *>(words) + (start & 3);
}

struct Grid {  // codes minus zero point go from lower to upper
    float scale, lower, upper;
};

inline float clamp(float x, float lower, float upper) {  // passes NaN on
    x = x < lower ? lower : x;
    return x > upper ? upper : x;
}

struct Limits {  // of the activation function before the quantizer: ReLU has 0 and infinity
    float floor, ceiling;
    bool any;
};

template <class Function> void for_blocks(int64_t count, const Function &body) {
    int64_t blocks = (count + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static) if (blocks >= 32)
    for (int64_t block = 0; block < blocks; ++block) {
        int64_t start = block * BLOCK;
        body(block, start, count - start < BLOCK ? count - start : BLOCK);
    }
}

template <class Function> double sum_blocks(int64_t count, const Function &body) {
    std::vector<double> parts((count + BLOCK - 1) / BLOCK, 0.0);
    for_blocks(count, [&](int64_t block, int64_t start, int64_t length) { parts[block] = body(start, length); });
    double total = 0.0;
    for (double part : parts) total += part;
    return total;
}

struct Draw {  // keep the quantized value where the random byte is below threshold; 256 keeps all, 0 none
    uint32_t key, tweak;
    int32_t threshold;
};

}  // namespace

#include "vectors.hpp"

namespace {

template <class A, class R, class O>
void activation_forward(const A *a, const R *residual, Limits limits, int64_t count, Grid grid, Draw draw, O *out) {
    for_blocks(count, [=](int64_t, int64_t start, int64_t length) {
#ifdef HAS_VECTORS
        forward64(a, residual, limits, start, length, grid, draw, out);
#else
        uint32_t words[BLOCK / 4 + 2];
        float x[BLOCK];
        if (residual)
            for (int64_t i = 0; i < length; ++i) x[i] = load(a[start + i]) + load(residual[start + i]);
        else
            for (int64_t i = 0; i < length; ++i) x[i] = load(a[start + i]);
        if (limits.any)
            for (int64_t i = 0; i < length; ++i) x[i] = clamp(x[i], limits.floor, limits.ceiling);
        if (draw.threshold <= 0) {
            for (int64_t i = 0; i < length; ++i) store(out + start + i, x[i]);
            return;
        }
        if (draw.threshold >= 256) {
            for (int64_t i = 0; i < length; ++i)
                store(out + start + i, clamp(nearbyintf(x[i] / grid.scale), grid.lower, grid.upper) * grid.scale);
            return;
        }
        const uint8_t *bytes = random_bytes(draw.key, draw.tweak, start, length, words);
        for (int64_t i = 0; i < length; ++i) {
            float quantized = clamp(nearbyintf(x[i] / grid.scale), grid.lower, grid.upper) * grid.scale;
            store(out + start + i, bytes[i] < draw.threshold ? quantized : x[i]);
        }
#endif
    });
}

// Gradient of a + residual, and the sum over all elements of gradient * d x_hat / d scale.
template <class G, class A, class R>
double activation_backward(const G *gradient, const A *a, const R *residual, Limits limits, int64_t count, Grid grid,
                           Draw draw, A *out) {
    return sum_blocks(count, [=](int64_t start, int64_t length) {
#ifdef HAS_VECTORS
        return backward64(gradient, a, residual, limits, start, length, grid, draw, out);
#else
        uint32_t words[BLOCK / 4 + 2];
        float x[BLOCK], g[BLOCK], passes[BLOCK];
        for (int64_t i = 0; i < length; ++i) g[i] = load(gradient[start + i]);
        if (residual)
            for (int64_t i = 0; i < length; ++i) x[i] = load(a[start + i]) + load(residual[start + i]);
        else
            for (int64_t i = 0; i < length; ++i) x[i] = load(a[start + i]);
        if (limits.any)
            for (int64_t i = 0; i < length; ++i) {
                float value = x[i];
                x[i] = clamp(value, limits.floor, limits.ceiling);
                passes[i] = value > limits.floor && value < limits.ceiling ? 1.0f : 0.0f;
            }
        else
            for (int64_t i = 0; i < length; ++i) passes[i] = 1.0f;
        float total = 0.0f;
        const float inverse = 1.0f / grid.scale;  // only ties of the rounding could tell it from the division
        // The order of these sums is the compiler's, but fixed once compiled, and the same for every thread.
        if (draw.threshold <= 0) {
            for (int64_t i = 0; i < length; ++i) g[i] = passes[i] != 0.0f ? g[i] : 0.0f;
        } else if (draw.threshold >= 256) {
#pragma omp simd reduction(+ : total)
            for (int64_t i = 0; i < length; ++i) {
                float steps = x[i] * inverse, code = nearbyintf(steps), nearest = clamp(code, grid.lower, grid.upper);
                total += g[i] * (nearest == code ? code - steps : nearest);
                g[i] = nearest == code && passes[i] != 0.0f ? g[i] : 0.0f;
            }
        } else {
            const uint8_t *bytes = random_bytes(draw.key, draw.tweak, start, length, words);
            float keep[BLOCK];
            for (int64_t i = 0; i < length; ++i) keep[i] = bytes[i] < draw.threshold ? 1.0f : 0.0f;
#pragma omp simd reduction(+ : total)
            for (int64_t i = 0; i < length; ++i) {
                float steps = x[i] * inverse, code = nearbyintf(steps), nearest = clamp(code, grid.lower, grid.upper);
                float difference = nearest - code;
                total += keep[i] * g[i] * (difference != 0.0f ? nearest : code - steps);
                g[i] = (keep[i] * difference != 0.0f) | (passes[i] == 0.0f) ? 0.0f : g[i];
            }
        }
        for (int64_t i = 0; i < length; ++i) store(out + start + i, g[i]);
        return static_cast<double>(total);
#endif
    });
}

// Codes of half a byte, as bytes; first is even.
inline void unpack(const uint8_t *packed, int64_t first, int64_t count, uint8_t *codes) {
    const uint8_t *place = packed + first / 2;
    for (int64_t i = 0; i < (count + 1) / 2; ++i) {
        codes[2 * i] = place[i] & 15;
        codes[2 * i + 1] = place[i] >> 4;
    }
}

// One block of one row: out[i] is quantized(i) where it is kept, else floating[i]; first counts the elements before it.
template <class R, class O, class Read>
void mix_block(Read quantized, const R *floating, int64_t first, int64_t length, Draw draw, O *out) {
    uint32_t words[BLOCK / 4 + 2];
    if (draw.threshold >= 256) {
        for (int64_t i = 0; i < length; ++i) store(out + i, quantized(i));
        return;
    }
    const uint8_t *bytes = random_bytes(draw.key, draw.tweak, first, length, words);
    for (int64_t i = 0; i < length; ++i) {
        float kept = quantized(i), other = load(floating[i]);
        store(out + i, bytes[i] < draw.threshold ? kept : other);
    }
}

// fast, branch-free exp and log2 to about 2 units in the last place, the same on every machine
inline float exp_fast(float x) {
    x = clamp(x, -87.0f, 88.0f);
    float n = nearbyintf(x * 1.44269504f);
    float r = std::fma(n, -0.693359375f, x);
    r = std::fma(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = std::fma(p, r, 1.3981999507e-3f);
    p = std::fma(p, r, 8.3334519073e-3f);
    p = std::fma(p, r, 4.1665795894e-2f);
    p = std::fma(p, r, 1.6666665459e-1f);
    p = std::fma(p, r, 5.0000001201e-1f);
    p = std::fma(p, r * r, r) + 1.0f;
    uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

inline float log_fast(float x) {  // x > 0, normal
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    int32_t exponent = static_cast<int32_t>(bits - 0x3f3504f3U) >> 23;  // mantissa in [sqrt(1/2), sqrt(2))
    bits -= static_cast<uint32_t>(exponent) << 23;
    float m;
    std::memcpy(&m, &bits, 4);
    m -= 1.0f;
    float z = m * m;
    float p = 7.0376836292e-2f;
    p = std::fma(p, m, -1.1514610310e-1f);
    p = std::fma(p, m, 1.1676998740e-1f);
    p = std::fma(p, m, -1.2420140846e-1f);
    p = std::fma(p, m, 1.4249322787e-1f);
    p = std::fma(p, m, -1.6668057665e-1f);
    p = std::fma(p, m, 2.0000714765e-1f);
    p = std::fma(p, m, -2.4999993993e-1f);
    p = std::fma(p, m, 3.3333331174e-1f);
    float e = static_cast<float>(exponent);
    float y = m * z * p;
    y = std::fma(e, -2.12194440e-4f, y);
    y = std::fma(z, -0.5f, y);
    return std::fma(e, 0.693359375f, m + y);
}

constexpr float GAMMA = -0.1f, SPREAD = 1.2f;

#include "info_nce.hpp"

inline float sigmoid(float v) { return 1.0f / (1.0f + exp_fast(-v)); }

template <class O>
void soft_round_forward(const float *floors, const float *v, const float *scale, const float *zero, int64_t channels,
                        int64_t row, float q_min, float q_max, O *out) {
#pragma omp parallel for schedule(static) if (channels * row >= 32 * BLOCK)
    for (int64_t channel = 0; channel < channels; ++channel) {
        int64_t first = channel * row;
        float s = scale[channel], z = zero[channel];
        for (int64_t i = first; i < first + row; ++i) {
            float h = clamp(std::fma(sigmoid(v[i]), SPREAD, GAMMA), 0.0f, 1.0f);
            store(out + i, (clamp(h + floors[i] + z, q_min, q_max) - z) * s);
        }
    }
}

template <class G>
void soft_round_backward(const G *gradient, const float *floors, const float *v, const float *scale, const float *zero,
                         int64_t channels, int64_t row, float q_min, float q_max, float *out) {
#pragma omp parallel for schedule(static) if (channels * row >= 32 * BLOCK)
    for (int64_t channel = 0; channel < channels; ++channel) {
        int64_t first = channel * row;
        float factor = scale[channel] * SPREAD, z = zero[channel];
        for (int64_t i = first; i < first + row; ++i) {
            float sigma = sigmoid(v[i]), h = std::fma(sigma, SPREAD, GAMMA);
            float code = clamp(h, 0.0f, 1.0f) + floors[i] + z;
            bool moves = h > 0.0f && h < 1.0f && code > q_min && code < q_max;
            out[i] = moves ? load(gradient[i]) * factor * sigma * (1.0f - sigma) : 0.0f;
        }
    }
}

// The gradient of each channel's scale: the sum of gradient * (code - z), where s * (code - z) is the weight.
template <class G>
void soft_round_scale_gradient(const G *gradient, const float *floors, const float *v, const float *zero,
                               int64_t channels, int64_t row, float q_min, float q_max, float *out) {
#pragma omp parallel for schedule(static) if (channels * row >= 32 * BLOCK)
    for (int64_t channel = 0; channel < channels; ++channel) {
        float z = zero[channel];
        double total = 0.0;
        for (int64_t start = channel * row, end = start + row; start < end; start += BLOCK) {
            float part = 0.0f;
            int64_t stop = end - start < BLOCK ? end : start + BLOCK;
#pragma omp simd reduction(+ : part)
            for (int64_t i = start; i < stop; ++i) {
                float h = clamp(std::fma(sigmoid(v[i]), SPREAD, GAMMA), 0.0f, 1.0f);
                part += load(gradient[i]) * (clamp(h + floors[i] + z, q_min, q_max) - z);
            }
            total += static_cast<double>(part);
        }
        out[channel] = static_cast<float>(total);
    }
}

template <class R, class O>
void gather_mix(const char *quantized, int kind, float scale, float offset, int64_t stride, const R *floating,
                const int64_t *index, int64_t rows, int64_t row, Draw draw, O *out) {
#pragma omp parallel for schedule(static) if (rows * row >= 32 * BLOCK)
    for (int64_t b = 0; b < rows; ++b) {
        const char *line = quantized + index[b] * stride;
        for (int64_t start = 0; start < row; start += BLOCK) {
            int64_t length = row - start < BLOCK ? row - start : BLOCK, first = b * row + start;
            const R *other = floating ? floating + index[b] * row + start : nullptr;
            uint8_t unpacked[BLOCK + 1];
            auto floats = reinterpret_cast<const float *>(line) + start;
            auto halves = reinterpret_cast<const bfloat16 *>(line) + start;
            auto codes = reinterpret_cast<const uint8_t *>(line) + start;
            if (kind == 3) {
                unpack(reinterpret_cast<const uint8_t *>(line), start, length, unpacked);
                codes = unpacked;
            }
            if (kind == 0)
                mix_block([=](int64_t i) { return floats[i]; }, other, first, length, draw, out + first);
            else if (kind == 1)
                mix_block([=](int64_t i) { return load(halves[i]); }, other, first, length, draw, out + first);
            else
                mix_block([=](int64_t i) { return (static_cast<float>(codes[i]) + offset) * scale; }, other, first,
                          length, draw, out + first);
        }
    }
}

template <class O, class T>
double squared_error(const O *output, const T *target, int64_t rows, int64_t row, float factor, O *gradient) {
    std::vector<double> parts(rows, 0.0);
#pragma omp parallel for schedule(static) if (rows * row >= 32 * BLOCK)
    for (int64_t b = 0; b < rows; ++b) {
        const O *x = output + b * row;
        const T *y = target + b * row;
        O *g = gradient + b * row;
        for (int64_t start = 0; start < row; start += BLOCK) {
            int64_t end = row - start < BLOCK ? row : start + BLOCK;
            float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = start; i < end; ++i) {
                float difference = load(x[i]) - load(y[i]);
                sum += difference * difference;
                store(g + i, factor * difference);
            }
            parts[b] += static_cast<double>(sum);
        }
    }
    double total = 0.0;
    for (double part : parts) total += part;
    return total;
}

}  // namespace

#include "weight_gradient.hpp"

static Limits limits_of(float floor, float ceiling) {
    return Limits{floor, ceiling, floor > -INFINITY || ceiling < INFINITY};
}

// ---- what Python calls; "bf16" flags say which arrays hold bfloat16 ----

#define DISPATCH3(FLAG_A, FLAG_B, FLAG_C, CALL)                                                  \
    switch ((FLAG_A ? 4 : 0) | (FLAG_B ? 2 : 0) | (FLAG_C ? 1 : 0)) {                            \
        case 0: { using A = float; using B = float; using C = float; CALL; break; }              \
        case 1: { using A = float; using B = float; using C = bfloat16; CALL; break; }           \
        case 2: { using A = float; using B = bfloat16; using C = float; CALL; break; }           \
        case 3: { using A = float; using B = bfloat16; using C = bfloat16; CALL; break; }        \
        case 4: { using A = bfloat16; using B = float; using C = float; CALL; break; }           \
        case 5: { using A = bfloat16; using B = float; using C = bfloat16; CALL; break; }        \
        case 6: { using A = bfloat16; using B = bfloat16; using C = float; CALL; break; }        \
        default: { using A = bfloat16; using B = bfloat16; using C = bfloat16; CALL; break; }    \
    }

EXPORT void clcalib_activation_forward(const void *a, int a_bf16, const void *residual, int r_bf16, float floor,
                                       float ceiling, int64_t count, float scale, float lower, float upper,
                                       uint32_t key, uint32_t tweak, int threshold, void *out, int o_bf16) {
    DISPATCH3(a_bf16, r_bf16, o_bf16,
              activation_forward(static_cast<const A *>(a), static_cast<const B *>(residual), limits_of(floor, ceiling),
                                 count, Grid{scale, lower, upper}, Draw{key, tweak, threshold}, static_cast<C *>(out)))
}

EXPORT double clcalib_activation_backward(const void *gradient, int g_bf16, const void *a, int a_bf16,
                                          const void *residual, int r_bf16, float floor, float ceiling,
                                          int64_t count, float scale,
                                          float lower, float upper, uint32_t key, uint32_t tweak, int threshold,
                                          void *out) {
    double total = 0.0;
    DISPATCH3(g_bf16, a_bf16, r_bf16,
              total = activation_backward(static_cast<const A *>(gradient), static_cast<const B *>(a),
                                          static_cast<const C *>(residual), limits_of(floor, ceiling), count,
                                          Grid{scale, lower, upper}, Draw{key, tweak, threshold},
                                          static_cast<B *>(out)))
    return total;
}

// Rows of the two caches by index, mixed.  kind: 0 float32, 1 bfloat16, 2 codes of one byte, 3 codes of half a byte,
// the low half first; a code c stands for (c + offset) * scale.  row: elements; stride: bytes from row to row.
EXPORT void clcalib_gather_mix(const void *quantized, int kind, float scale, float offset, int64_t stride,
                               const void *floating, int f_bf16, const int64_t *index, int64_t rows, int64_t row,
                               uint32_t key, uint32_t tweak, int threshold, void *out, int o_bf16) {
    DISPATCH3(0, f_bf16, o_bf16,
              (void)sizeof(A);
              gather_mix(static_cast<const char *>(quantized), kind, scale, offset, stride,
                         static_cast<const B *>(floating), index, rows, row, Draw{key, tweak, threshold},
                         static_cast<C *>(out)))
}

// sum (output - target)^2, and factor * (output - target).
EXPORT double clcalib_squared_error(const void *output, int a_bf16, const void *target, int t_bf16, int64_t rows,
                                    int64_t row, float factor, void *gradient) {
    double total = 0.0;
    DISPATCH3(0, a_bf16, t_bf16,
              (void)sizeof(A);
              total = squared_error(static_cast<const B *>(output), static_cast<const C *>(target), rows, row, factor,
                                    static_cast<B *>(gradient)))
    return total;
}

// One step of Adam; mean_bias and square_bias are 1 - beta^t.
EXPORT void clcalib_adam(float *parameter, const float *gradient, float *mean, float *square, int64_t count, float rate,
                         float beta_mean, float beta_square, float epsilon, float mean_bias, float square_bias) {
    const float step = rate / mean_bias, scale = 1.0f / std::sqrt(square_bias);
    for_blocks(count, [=](int64_t, int64_t start, int64_t length) {
        for (int64_t i = start; i < start + length; ++i) {
            float g = gradient[i];
            float m = mean[i] + (1.0f - beta_mean) * (g - mean[i]);
            float v = beta_square * square[i] + (1.0f - beta_square) * g * g;
            mean[i] = m;
            square[i] = v;
            parameter[i] -= step * m / (std::sqrt(v) * scale + epsilon);
        }
    });
}

EXPORT void clcalib_soft_round_forward(const float *floors, const float *v, const float *scale, const float *zero,
                                       int64_t channels, int64_t row, float q_min, float q_max, void *out,
                                       int o_bf16) {
    if (o_bf16)
        soft_round_forward(floors, v, scale, zero, channels, row, q_min, q_max, static_cast<bfloat16 *>(out));
    else
        soft_round_forward(floors, v, scale, zero, channels, row, q_min, q_max, static_cast<float *>(out));
}

EXPORT void clcalib_soft_round_backward(const void *gradient, int g_bf16, const float *floors, const float *v,
                                        const float *scale, const float *zero, int64_t channels, int64_t row,
                                        float q_min, float q_max, float *out) {
    if (g_bf16)
        soft_round_backward(static_cast<const bfloat16 *>(gradient), floors, v, scale, zero, channels, row, q_min,
                            q_max, out);
    else
        soft_round_backward(static_cast<const float *>(gradient), floors, v, scale, zero, channels, row, q_min, q_max,
                            out);
}

EXPORT void clcalib_soft_round_scale_gradient(const void *gradient, int g_bf16, const float *floors, const float *v,
                                              const float *zero, int64_t channels, int64_t row, float q_min,
                                              float q_max, float *out) {
    if (g_bf16)
        soft_round_scale_gradient(static_cast<const bfloat16 *>(gradient), floors, v, zero, channels, row, q_min,
                                  q_max, out);
    else
        soft_round_scale_gradient(static_cast<const float *>(gradient), floors, v, zero, channels, row, q_min, q_max,
                                  out);
}

// sum of 1 - |2 h(v) - 1|^beta, and its gradient in v.
EXPORT double clcalib_rounding_penalty(const float *v, int64_t count, float beta, float *gradient) {
    return sum_blocks(count, [=](int64_t start, int64_t length) {
        float sigma[BLOCK], centred[BLOCK], power[BLOCK];  // three short loops are twice as fast as a long one
        for (int64_t i = 0; i < length; ++i) {
            sigma[i] = sigmoid(v[start + i]);
            centred[i] = 2.0f * clamp(std::fma(sigma[i], SPREAD, GAMMA), 0.0f, 1.0f) - 1.0f;
        }
        for (int64_t i = 0; i < length; ++i) {
            float size = std::fabs(centred[i]);
            float logarithm = log_fast(size < 1e-30f ? 1e-30f : size) * beta;
            power[i] = logarithm < -60.0f ? 0.0f : exp_fast(logarithm);  // smaller ones would end in slow denormals
            power[i] = size != size ? size : power[i];  // log_fast takes NaN for a number
        }
        float total = 0.0f;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < length; ++i) {
            total += 1.0f - power[i];
            float safe = std::fabs(centred[i]) < 1e-30f ? 1e-30f : centred[i];
            float slope = -2.0f * SPREAD * beta * power[i] / safe * (sigma[i] * (1.0f - sigma[i]));
            gradient[start + i] = std::fabs(centred[i]) >= 1.0f ? 0.0f : slope;  // h is clamped at 0 and 1
        }
        return static_cast<double>(total);
    });
}

EXPORT double clcalib_cosine_info_nce(const float *queries, const float *columns, const int64_t *positive,
                                      int64_t batch, int64_t count, int64_t width, float least, float sharpness,
                                      float *gradient) {
    return cosine_info_nce(queries, columns, positive, batch, count, width, least, sharpness, gradient);
}

// s * (clamp(round(x / s) + z, q_min, q_max) - z), bit for bit as PyTorch's passes have it.
EXPORT void clcalib_fake_quantize(const float *x, int64_t count, float scale, float zero, float q_min, float q_max,
                                  float *out) {
    for_blocks(count, [=](int64_t, int64_t start, int64_t length) {
        for (int64_t i = start; i < start + length; ++i)
            out[i] = (clamp(nearbyintf(x[i] / scale) + zero, q_min, q_max) - zero) * scale;
    });
}

// Rows of values on a grid as codes c, value = (c - origin) * scale, in one byte or, the first one low, in half a byte.
// Tells whether all values come back bit for bit.
EXPORT int clcalib_encode(const float *values, int64_t rows, int64_t row, int bits, float scale, float origin,
                          uint8_t *out) {
    const float top = static_cast<float>((1 << bits) - 1);
    const int64_t width = bits == 8 ? row : (row + 1) / 2;
    int differs = 0;
#pragma omp parallel for schedule(static) reduction(| : differs) if (rows * row >= 32 * BLOCK)
    for (int64_t b = 0; b < rows; ++b) {
        uint8_t codes[BLOCK + 1];
        for (int64_t start = 0; start < row; start += BLOCK) {
            const int64_t length = row - start < BLOCK ? row - start : BLOCK;
            const float *x = values + b * row + start;
            uint32_t different = 0;
            for (int64_t i = 0; i < length; ++i) {
                float code = clamp(nearbyintf(x[i] / scale) + origin, 0.0f, top);
                code = code == code ? code : 0.0f;
                const float back = (code - origin) * scale;
                uint32_t own, other;
                std::memcpy(&own, x + i, 4);
                std::memcpy(&other, &back, 4);
                different |= own ^ other;
                codes[i] = static_cast<uint8_t>(static_cast<int32_t>(code));
            }
            differs |= different != 0;
            if (bits == 8) {
                std::memcpy(out + b * width + start, codes, length);
                continue;
            }
            codes[length] = 0;
            uint8_t *place = out + b * width + start / 2;  // blocks are even
            for (int64_t i = 0; i < (length + 1) / 2; ++i)
                place[i] = static_cast<uint8_t>(codes[2 * i] | (codes[2 * i + 1] << 4));
        }
    }
    return !differs;
}

// Adds to counts how many values are in each bin: round(x / width) + below, at least 0 and below bins.
EXPORT void clcalib_histogram(const float *x, int64_t count, float width, int32_t below, int32_t bins, int64_t *counts) {
    constexpr int TABLES = 4;  // neighbours are often in one bin, and must not wait for each other
    std::vector<int32_t> tables(static_cast<size_t>(TABLES) * bins, 0);
    int32_t place[BLOCK];
    for (int64_t start = 0; start < count; start += BLOCK) {
        const int64_t length = count - start < BLOCK ? count - start : BLOCK;
        for (int64_t i = 0; i < length; ++i) {
            const int32_t bin = static_cast<int32_t>(nearbyintf(x[start + i] / width)) + below;
            place[i] = bin < 0 ? 0 : bin >= bins ? bins - 1 : bin;
        }
        for (int64_t i = 0; i < length; ++i) ++tables[static_cast<size_t>(i % TABLES) * bins + place[i]];
    }
    for (int table = 0; table < TABLES; ++table)
        for (int32_t bin = 0; bin < bins; ++bin) counts[bin] += tables[static_cast<size_t>(table) * bins + bin];
}

// For each candidate (row of values, scale, zero point): sum of counts * |clamp(round(u), 0, top) - u|^exponent over
// the row, u = value / scale + zero point.  counts may be null.
EXPORT void clcalib_grid_errors(const float *values, const float *counts, int64_t width, const int64_t *rows,
                                const float *scale, const float *zero, int64_t candidates, float top, float exponent,
                                float *totals) {
#pragma omp parallel for schedule(static) if (candidates * width >= 32 * BLOCK)
    for (int64_t candidate = 0; candidate < candidates; ++candidate) {
        const float *x = values + rows[candidate] * width;
        const float *often = counts ? counts + rows[candidate] * width : nullptr;
        const float s = scale[candidate], z = zero[candidate];
        double total = 0.0;
        for (int64_t start = 0; start < width; start += BLOCK) {
            int64_t length = width - start < BLOCK ? width - start : BLOCK;
            float error[BLOCK];
            for (int64_t i = 0; i < length; ++i) {
                float u = x[start + i] / s + z;
                float distance = std::fabs(clamp(nearbyintf(u), 0.0f, top) - u);
                float logarithm = log_fast(distance < 1e-30f ? 1e-30f : distance) * exponent;
                error[i] = logarithm < -60.0f ? 0.0f : exp_fast(logarithm);
                error[i] = distance != distance ? distance : error[i];
            }
            float sum = 0.0f;
            if (often) {
#pragma omp simd reduction(+ : sum)
                for (int64_t i = 0; i < length; ++i) sum += error[i] * often[start + i];
            } else {
#pragma omp simd reduction(+ : sum)
                for (int64_t i = 0; i < length; ++i) sum += error[i];
            }
            total += static_cast<double>(sum);
        }
        totals[candidate] = static_cast<float>(total);
    }
}
