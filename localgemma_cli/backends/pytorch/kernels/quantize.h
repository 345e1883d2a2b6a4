/* Quantize rows to 4 bits in groups of 32 input features; quantize_grouped.py says how. */

enum { STARTS = 2 };
static const float spans[STARTS] = {0.95f, 0.85f}; /* parts of a group's range that the first levels cover */
static const float MIDDLE = 7.5f, TINY = 1e-30f;

INLINED float sum_group(const float *x) {
    Floats sums = floats(x);
    for (int i = LANES; i < INPUTS; i += LANES)
        sums = plus(sums, floats(x + i));
    __m256 eight = folded(sums);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINED float least_of_group(const float *x) {
    __m256 eight = _mm256_loadu_ps(x);
    for (int i = 8; i < INPUTS; i += 8)
        eight = _mm256_min_ps(eight, _mm256_loadu_ps(x + i));
    __m128 four = _mm_min_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_min_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)));
}

/* Set `levels` to the nearest of -7.5..7.5. */
INLINED void find_levels(const float *x, float scale, float offset, float *levels) {
    float inverse = scale > 0 ? 1 / scale : 0;
    for (int i = 0; i < INPUTS; i++) {
        float level = __builtin_rintf((x[i] - offset) * inverse - 0.5f) + 0.5f;
        level = level > -MIDDLE ? level : -MIDDLE; /* as NaN becomes */
        levels[i] = level < MIDDLE ? level : MIDDLE;
    }
}

/* Find the scale and the offset of one group; `weigh`: each number's share, whose sum is 1. */
INLINED void fit_group(const float *x, const float *weigh, float *scale, float *offset) {
    float weighted[INPUTS], products[INPUTS], levels[INPUTS], negative[INPUTS], best = -1;
    for (int i = 0; i < INPUTS; i++)
        negative[i] = -x[i];
    float least = least_of_group(x), greatest = -least_of_group(negative);
    for (int i = 0; i < INPUTS; i++)
        weighted[i] = x[i] * weigh[i];
    float mean = sum_group(weighted), middle = (least + greatest) / 2;
    *scale = 0;
    *offset = mean; /* stays where a number is infinite or NaN */
    for (int start = 0; start < STARTS; start++) {
        find_levels(x, (greatest - least) * (spans[start] / (2 * MIDDLE)), middle, levels);
        for (int i = 0; i < INPUTS; i++)
            products[i] = levels[i] * weighted[i];
        float covariance = sum_group(products);
        for (int i = 0; i < INPUTS; i++)
            products[i] = levels[i] * weigh[i];
        float level_mean = sum_group(products);
        for (int i = 0; i < INPUTS; i++)
            products[i] *= levels[i];
        float variance = sum_group(products) - level_mean * level_mean;
        covariance -= level_mean * mean;
        float fitted = variance > 1e-6f && covariance > 0 ? covariance / variance : 0;
        if (fitted * covariance > best) { /* what it explains of the variance */
            best = fitted * covariance;
            *scale = fitted;
            *offset = mean - fitted * level_mean;
        }
    }
}

/* Quantize x [n, k] with shares of importance [k] -> levels [n, k] in 0..15, scales and offsets [n, k / 32],
   factors [2, n] of both. k is a multiple of 32. Scratch: fits [2, k / 32]. */
void NAMED(quantize_rows_4)(long n, long k, const float *x, const float *weigh, int8_t *levels, uint8_t *scales,
                            int8_t *offsets, float *factors, float *fits) {
    long groups = k / INPUTS;
    for (long row = 0; row < n; row++) {
        const float *here = x + row * k;
        float largest_scale = 0, largest_offset = 0;
        for (long g = 0; g < groups; g++) {
            float scale, offset;
            fit_group(here + g * INPUTS, weigh + g * INPUTS, &scale, &offset);
            fits[g] = scale;
            fits[groups + g] = offset;
            largest_scale = scale > largest_scale ? scale : largest_scale;
            float size = offset < 0 ? -offset : offset;
            largest_offset = size > largest_offset || size != size ? size : largest_offset;
        }
        float scale_factor = largest_scale / 255 > TINY ? largest_scale / 255 : TINY;
        float offset_factor = largest_offset / 127 <= TINY ? TINY : largest_offset / 127; /* NaN stays */
        for (long g = 0; g < groups; g++) {
            float scale = __builtin_rintf(fits[g] / scale_factor);
            float offset = __builtin_rintf(fits[groups + g] / offset_factor), exact[INPUTS];
            scales[row * groups + g] = (uint8_t)scale;
            offsets[row * groups + g] = (int8_t)offset;
            find_levels(here + g * INPUTS, scale * scale_factor, offset * offset_factor, exact);
            for (int i = 0; i < INPUTS; i++)
                levels[row * k + g * INPUTS + i] = (int8_t)(exact[i] + MIDDLE);
        }
        factors[row] = scale_factor;
        factors[n + row] = offset_factor;
    }
}
