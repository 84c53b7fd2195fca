// InfoNCE on cosines, with its gradient: the scores of a query stay in the first-level cache, and nothing of them is
// written to memory.  Included by kernels.cpp, whose exp_fast it uses; the products are few enough for plain loops.
#pragma once

inline float dot(const float *a, const float *b, int64_t width) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) sum += a[i] * b[i];
    return sum;
}

typedef float Lane __attribute__((vector_size(64)));  // 16 numbers; several registers where the processor has none so wide

inline Lane lane_at(const float *place) {
    Lane lane;
    std::memcpy(&lane, place, sizeof lane);
    return lane;
}

constexpr int64_t LANE = 16, PANEL = 4 * LANE;

struct Panel {  // by name and not as an array, so that they stay in registers
    Lane a, b, c, d;
};

inline Panel panel_at(const float *place) {
    return {lane_at(place), lane_at(place + LANE), lane_at(place + 2 * LANE), lane_at(place + 3 * LANE)};
}

// scores[j] = factor * sum_i unit[i] * columns[i][j], for PANEL keys at a time.
inline void scores_of(const float *unit, const float *columns, int64_t count, int64_t width, float factor,
                      float *scores) {
    int64_t start = 0;
    for (; start + PANEL <= count; start += PANEL) {
        Lane a = {}, b = {}, c = {}, d = {};
        for (int64_t i = 0; i < width; ++i) {
            const Panel keys = panel_at(columns + i * count + start);
            a += unit[i] * keys.a, b += unit[i] * keys.b, c += unit[i] * keys.c, d += unit[i] * keys.d;
        }
        const Panel sums = {a * factor, b * factor, c * factor, d * factor};
        std::memcpy(scores + start, &sums, sizeof sums);
    }
    for (; start < count; ++start) {
        float sum = 0.0f;
        for (int64_t i = 0; i < width; ++i) sum += unit[i] * columns[i * count + start];
        scores[start] = sum * factor;
    }
}

// mean[i] = sum_j weights[j] * columns[i][j] / total
inline void mean_of(const float *weights, const float *columns, int64_t count, int64_t width, float total,
                    float *mean) {
    for (int64_t i = 0; i < width; ++i) {
        Lane a = {}, b = {}, c = {}, d = {};
        const float *row = columns + i * count;
        int64_t j = 0;
        for (; j + PANEL <= count; j += PANEL) {
            const Panel weight = panel_at(weights + j), keys = panel_at(row + j);
            a += weight.a * keys.a, b += weight.b * keys.b, c += weight.c * keys.c, d += weight.d * keys.d;
        }
        const Lane all = (a + b) + (c + d);
        float rest = 0.0f;
        for (int64_t l = 0; l < LANE; ++l) rest += all[l];
        for (; j < count; ++j) rest += weights[j] * row[j];
        mean[i] = rest / total;
    }
}

// Of one query q: u = q / max(|q|, least), s_j = sharpness <u, k_j>; gives log sum_j e^{s_j} - s_positive, and writes
// ``share`` of its gradient in q.  NaN in q is NaN in both.  The keys stand in columns, (width, count).
inline double info_nce_of(const float *query, const float *columns, int64_t positive, int64_t count, int64_t width,
                          float least, float sharpness, float share, float *scores, float *unit, float *out) {
    const float norm = std::sqrt(dot(query, query, width));
    const bool is_long = !(norm < least);
    const float length = is_long ? norm : least;
    for (int64_t i = 0; i < width; ++i) unit[i] = query[i] / length;
    scores_of(unit, columns, count, width, sharpness, scores);
    float top = -INFINITY, total = 0.0f;
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < count; ++j) top = scores[j] > top ? scores[j] : top;
    const float own = scores[positive];
    for (int64_t j = 0; j < count; ++j) scores[j] = exp_fast(scores[j] - top);
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < count; ++j) total += scores[j];
    mean_of(scores, columns, count, width, total, out);
    for (int64_t i = 0; i < width; ++i) out[i] = (out[i] - columns[i * count + positive]) * (sharpness * share);
    const float along = is_long ? dot(unit, out, width) : 0.0f;  // a query that is too short is divided by a constant
    for (int64_t i = 0; i < width; ++i) out[i] = (out[i] - unit[i] * along) / length;
    return std::log(static_cast<double>(total)) + static_cast<double>(top - own);
}

// Queries (batch, width), keys of length one in columns (width, count): the mean over queries, and its gradient (batch, width);
// -1 where a positive is no key.
inline double cosine_info_nce(const float *queries, const float *columns, const int64_t *positive, int64_t batch,
                              int64_t count, int64_t width, float least, float sharpness, float *gradient) {
    for (int64_t b = 0; b < batch; ++b)
        if (positive[b] < 0 || positive[b] >= count) return -1.0;
    std::vector<double> losses(static_cast<size_t>(batch));
    const float share = 1.0f / static_cast<float>(batch);
#pragma omp parallel if (batch * count * width >= 32 * BLOCK)
    {
        std::vector<float> scratch(static_cast<size_t>(count + width));
#pragma omp for schedule(static)
        for (int64_t b = 0; b < batch; ++b)
            losses[static_cast<size_t>(b)] =
                info_nce_of(queries + b * width, columns, positive[b], count, width, least, sharpness, share,
                            scratch.data(), scratch.data() + count, gradient + b * width);
    }
    double sum = 0.0;
    for (double loss : losses) sum += loss;
    return sum / static_cast<double>(batch);
}
