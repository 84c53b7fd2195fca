// Activations and their gradient 64 elements at a time, in the registers of a processor with AVX-512; the same formulas
// as the loops in kernels.cpp, which every other processor takes.
//
// Two things differ in the last place: sums are added up in another order, and bfloat16 is stored by the processor's own
// instruction where it has one, which takes numbers below 1.2e-38 for zero.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define HAS_VECTORS 1
#include <immintrin.h>

namespace {

constexpr int LANES = 16, GROUP = 64;  // a group's random bytes are one vector

inline __mmask16 lanes_below(int64_t count) {  // the first lanes, as many as there are elements
    return count >= LANES ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << (count < 0 ? 0 : count)) - 1);
}

inline __m512 load16(const float *place, __mmask16 lanes) { return _mm512_maskz_loadu_ps(lanes, place); }
inline __m512 load16(const bfloat16 *place, __mmask16 lanes) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, place)), 16));
}

inline void store16(float *place, __mmask16 lanes, __m512 values) { _mm512_mask_storeu_ps(place, lanes, values); }
inline void store16(bfloat16 *place, __mmask16 lanes, __m512 values) {
#if defined(__AVX512BF16__)
    _mm256_mask_storeu_epi16(place, lanes, (__m256i)_mm512_cvtneps_pbh(values));
#else
    const __m512i bits = _mm512_castps_si512(values), one = _mm512_set1_epi32(1);
    const __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, even), _mm512_set1_epi32(0x7fff));
    rounded = _mm512_srli_epi32(rounded, 16);
    const __mmask16 broken = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
    rounded = _mm512_mask_mov_epi32(rounded, broken, _mm512_set1_epi32(0x7fc0));
    _mm256_mask_storeu_epi16(place, lanes, _mm512_cvtepi32_epi16(rounded));
#endif
}

inline __m512i scramble16(__m512i x) {
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
    x = _mm512_mullo_epi32(x, _mm512_set1_epi32(0x7feb352d));
    x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 15));
    x = _mm512_mullo_epi32(x, _mm512_set1_epi32(static_cast<int>(0x846ca68bU)));
    return _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
}

// Which of the elements start .. start + 63 keep the quantized value; start is a multiple of four.
inline uint64_t kept64(Draw draw, int64_t start) {
    if (draw.threshold >= 256) return ~0ULL;
    if (draw.threshold <= 0) return 0;
    const __m512i count = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i words = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(start >> 2)), count);
    words = scramble16(_mm512_xor_si512(words, _mm512_set1_epi32(static_cast<int>(draw.key))));
    words = scramble16(_mm512_add_epi32(words, _mm512_set1_epi32(static_cast<int>(draw.tweak))));
    return _mm512_cmplt_epu8_mask(words, _mm512_set1_epi8(static_cast<char>(draw.threshold)));
}

inline __m512 clamp16(__m512 x, __m512 lower, __m512 upper) {  // of two, min and max give the second for NaN
    return _mm512_min_ps(upper, _mm512_max_ps(lower, x));
}

inline __m512 round16(__m512 x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// x / scale, by the inverse and the remainder: a division takes as long as all the rest.  Where the quotient is so large
// that its remainder says nothing, or is not finite, it is far outside of every grid.
inline __m512 divide16(__m512 x, __m512 scale, __m512 inverse) {
    const __m512 quotient = _mm512_mul_ps(x, inverse);
    const __m512 exact = _mm512_fmadd_ps(_mm512_fnmadd_ps(quotient, scale, x), inverse, quotient);
    const __mmask16 is_near = _mm512_cmp_ps_mask(_mm512_abs_ps(quotient), _mm512_set1_ps(1e6f), _CMP_LT_OQ);
    return _mm512_mask_mov_ps(quotient, is_near, exact);
}

template <class A, class R> inline __m512 summed16(const A *a, const R *residual, int64_t at, __mmask16 lanes) {
    const __m512 x = load16(a + at, lanes);
    return residual ? _mm512_add_ps(x, load16(residual + at, lanes)) : x;
}

// out[start ..] of activation_forward, as many elements as length says.
template <class A, class R, class O>
void forward64(const A *a, const R *residual, Limits limits, int64_t start, int64_t length, Grid grid, Draw draw,
               O *out) {
    const __m512 floor = _mm512_set1_ps(limits.floor), ceiling = _mm512_set1_ps(limits.ceiling);
    const __m512 scale = _mm512_set1_ps(grid.scale), inverse = _mm512_set1_ps(1.0f / grid.scale);
    const __m512 lower = _mm512_set1_ps(grid.lower), upper = _mm512_set1_ps(grid.upper);
    for (int64_t group = 0; group < length; group += GROUP) {
        const uint64_t kept = kept64(draw, start + group);
        for (int part = 0; part < GROUP; part += LANES) {
            const int64_t at = start + group + part;
            const __mmask16 lanes = lanes_below(length - group - part);
            __m512 x = clamp16(summed16(a, residual, at, lanes), floor, ceiling);
            if (draw.threshold > 0) {
                const __m512 code = clamp16(round16(divide16(x, scale, inverse)), lower, upper);
                x = _mm512_mask_mul_ps(x, static_cast<__mmask16>(kept >> part), code, scale);
            }
            store16(out + at, lanes, x);
        }
    }
}

// The same of activation_backward; the sum of these elements.
template <class G, class A, class R>
double backward64(const G *gradient, const A *a, const R *residual, Limits limits, int64_t start, int64_t length,
                  Grid grid, Draw draw, A *out) {
    const __m512 floor = _mm512_set1_ps(limits.floor), ceiling = _mm512_set1_ps(limits.ceiling);
    const __m512 inverse = _mm512_set1_ps(1.0f / grid.scale);
    const __m512 lower = _mm512_set1_ps(grid.lower), upper = _mm512_set1_ps(grid.upper);
    __m512 total = _mm512_setzero_ps();
    for (int64_t group = 0; group < length; group += GROUP) {
        const uint64_t kept = kept64(draw, start + group);
        for (int part = 0; part < GROUP; part += LANES) {
            const int64_t at = start + group + part;
            const __mmask16 lanes = lanes_below(length - group - part);
            const __m512 g = load16(gradient + at, lanes), value = summed16(a, residual, at, lanes);
            __mmask16 passes = 0xffff;
            if (limits.any)
                passes = _mm512_cmp_ps_mask(value, floor, _CMP_GT_OQ) & _mm512_cmp_ps_mask(value, ceiling, _CMP_LT_OQ);
            if (draw.threshold > 0) {
                const __mmask16 keep = static_cast<__mmask16>(kept >> part);
                const __m512 steps = _mm512_mul_ps(clamp16(value, floor, ceiling), inverse), code = round16(steps);
                const __m512 nearest = clamp16(code, lower, upper);
                const __mmask16 clipped = _mm512_cmp_ps_mask(nearest, code, _CMP_NEQ_UQ);
                const __m512 slope = _mm512_mask_mov_ps(_mm512_sub_ps(code, steps), clipped, nearest);
                total = _mm512_mask3_fmadd_ps(g, slope, total, keep & lanes);
                passes &= static_cast<__mmask16>(~(keep & clipped));
            }
            store16(out + at, lanes, _mm512_maskz_mov_ps(passes, g));
        }
    }
    return static_cast<double>(_mm512_reduce_add_ps(total));
}

}  // namespace
#endif
