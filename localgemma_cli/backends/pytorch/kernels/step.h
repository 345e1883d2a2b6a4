/* What a decoding step computes between its products: norms, rotation, the KV cache, attention and the gate. Numbers are
   rounded to bfloat16 where transformers rounds them. Rows have a multiple of 8 numbers. A step has one or more rows,
   each the next token of a text: of different texts, or of one text in order. A row's result is the same bits for any
   number of rows.

   Vectors of 8 float32 serve all variants: this is a small part of a step. */

enum {
    TOGETHER_FROM = 1 << 14, /* scores of all heads from which threads share their softmax */
    SHARED_FROM = 200000,    /* products of a row from which threads share its attention */
    GATED_FROM = 1 << 14,    /* numbers from which threads share the gate */
};

typedef struct {
    long heads, kv_heads, width;           /* width of a head */
    float scaling, softcap, epsilon;       /* softcap 0: none */
    const Half *query_norm, *key_norm;     /* [width]; NULL: none */
    Half *query, *key, *value;             /* [rows, heads, width], [rows, kv_heads, width] twice: of the products */
    Half *out;                             /* [rows, heads, width] */
} Attention;

typedef struct {                           /* a row's KV cache of a layer; its token is the last that attention sees */
    void *keys, *values;                   /* [kv_heads, tokens, width]; [kv_heads, width, tokens] */
    long keys_next, values_next, stride;   /* from head to head; from one dimension of the values to the next */
    Half *scales;                          /* [2 * kv_heads, scales_next], the keys' first; NULL: in bfloat16 */
    long scales_next;
    long first, end;                       /* tokens that attention sees, the new one included */
    float *scores, *numbers;               /* scratch of [heads, n] and [heads, n or width rounded up to GROUP] */
    const Half *cosines, *sines;           /* [width], of the token's position */
} Cached;

/* ---- Vectors of 8 ---- */

INLINED __m256 eight(const Half *from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from)), 16));
}

/* Round to bfloat16 as `narrowed` does. */
INLINED __m256 rounded(__m256 a) {
    __m256i bits = _mm256_castps_si256(a), last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    bits = _mm256_add_epi32(bits, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff)));
    __m256 value = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32((int32_t)0xffff0000)));
    __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    return _mm256_blendv_ps(value, nan, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}

/* Store eight numbers that are rounded to bfloat16. */
INLINED void keep_eight(Half *to, __m256 a) {
    __m256i high = _mm256_srli_epi32(_mm256_castps_si256(a), 16);
    __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    _mm_storeu_si128((__m128i *)to, halves);
}

INLINED float sum_of(__m256 a) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

INLINED float largest_of(__m256 a) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

/* Coefficients of Cephes' expf and tanhf, whose results are within about an ulp. A NaN stays NaN. */
INLINED __m256 exponential(__m256 x) {
    const float terms[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                           5.0000001201e-1f};
    x = _mm256_max_ps(_mm256_set1_ps(-87.3f), _mm256_min_ps(_mm256_set1_ps(88.3f), x));
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 rest = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    rest = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), rest);
    __m256 sum = _mm256_set1_ps(terms[0]);
    for (int i = 1; i < 6; i++)
        sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(terms[i]));
    sum = _mm256_add_ps(_mm256_fmadd_ps(sum, _mm256_mul_ps(rest, rest), rest), _mm256_set1_ps(1));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(sum, _mm256_castsi256_ps(power));
}

INLINED __m256 hyperbolic_tangent(__m256 x) {
    const float terms[] = {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f,
                           -3.33332819422e-1f};
    const __m256 sign = _mm256_set1_ps(-0.0f), one = _mm256_set1_ps(1);
    __m256 size = _mm256_andnot_ps(sign, x), square = _mm256_mul_ps(x, x), sum = _mm256_set1_ps(terms[0]);
    for (int i = 1; i < 5; i++)
        sum = _mm256_fmadd_ps(sum, square, _mm256_set1_ps(terms[i]));
    __m256 small = _mm256_fmadd_ps(_mm256_mul_ps(sum, square), x, x);
    __m256 power = exponential(_mm256_add_ps(size, size));
    __m256 large = _mm256_sub_ps(one, _mm256_div_ps(_mm256_set1_ps(2), _mm256_add_ps(power, one)));
    large = _mm256_or_ps(large, _mm256_and_ps(sign, x));
    return _mm256_blendv_ps(large, small, _mm256_cmp_ps(size, _mm256_set1_ps(0.625f), _CMP_LT_OQ));
}

/* ---- Norms and the gate ---- */

/* The inverse root of the mean square. */
INLINED __m256 norm_of(long n, float epsilon, const Half *x) {
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (long i = 0; i < n; i += 8) {
        __m256 numbers = eight(x + i);
        sums[i / 8 % 2] = _mm256_fmadd_ps(numbers, numbers, sums[i / 8 % 2]);
    }
    return _mm256_set1_ps(1 / __builtin_sqrtf(sum_of(_mm256_add_ps(sums[0], sums[1])) / n + epsilon));
}

INLINED __m256 normed(__m256 x, __m256 norm, const Half *weight) {
    return rounded(_mm256_mul_ps(_mm256_mul_ps(x, norm), _mm256_add_ps(_mm256_set1_ps(1), eight(weight))));
}

static void add_norm_row(long n, float epsilon, Half *state, const Half *added, const Half *after, const Half *weight,
                         Half *out) {
    if (added) {
        __m256 norm = after ? norm_of(n, epsilon, added) : _mm256_setzero_ps();
        for (long i = 0; i < n; i += 8) {
            __m256 more = after ? normed(eight(added + i), norm, after + i) : eight(added + i);
            keep_eight(state + i, rounded(_mm256_add_ps(eight(state + i), more)));
        }
    }
    __m256 norm = norm_of(n, epsilon, state);
    for (long i = 0; i < n; i += 8)
        keep_eight(out + i, normed(eight(state + i), norm, weight + i));
}

/* Add to state [rows, n] what a block computed, normed by `after` unless NULL; out = the state normed by `weight`. */
void NAMED(add_norm)(long rows, long n, float epsilon, Half *state, const Half *added, const Half *after,
                     const Half *weight, Half *out) {
    for (long at = 0; at < rows * n; at += n)
        add_norm_row(n, epsilon, state + at, added ? added + at : NULL, after, weight, out + at);
}

/* out [n] = gelu(gate) * up, with the tanh form of gelu. */
void NAMED(gate)(long threads, long n, const Half *gate, const Half *up, Half *out) {
    const __m256 beta = _mm256_set1_ps(0.7978845608f), kappa = _mm256_set1_ps(0.044715f), one = _mm256_set1_ps(1);
#pragma omp parallel for schedule(static) num_threads(threads) if (n >= GATED_FROM)
    for (long i = 0; i < n; i += 8) {
        __m256 x = eight(gate + i), cube = _mm256_mul_ps(_mm256_mul_ps(x, x), x);
        __m256 inner = _mm256_mul_ps(beta, _mm256_add_ps(x, _mm256_mul_ps(kappa, cube)));
        __m256 gelu = _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(0.5f), x), _mm256_add_ps(one, hyperbolic_tangent(inner)));
        keep_eight(out + i, rounded(_mm256_mul_ps(rounded(gelu), eight(up + i))));
    }
}

/* ---- Attention ---- */

/* Norm a head by `weight` unless NULL, and rotate it, in place; cosines and sines [width]. */
static void turn_head(long width, float epsilon, const Half *weight, const Half *cosines, const Half *sines, Half *x) {
    long half = width / 2;
    if (weight) {
        __m256 norm = norm_of(width, epsilon, x);
        for (long i = 0; i < width; i += 8)
            keep_eight(x + i, normed(eight(x + i), norm, weight + i));
    }
    for (long i = 0; i < half; i += 8) {
        __m256 low = eight(x + i), high = eight(x + half + i);
        __m256 turned_low = rounded(_mm256_mul_ps(high, eight(sines + i)));
        __m256 turned_high = rounded(_mm256_mul_ps(low, eight(sines + half + i)));
        low = rounded(_mm256_mul_ps(low, eight(cosines + i)));
        high = rounded(_mm256_mul_ps(high, eight(cosines + half + i)));
        keep_eight(x + i, rounded(_mm256_sub_ps(low, turned_low)));
        keep_eight(x + half + i, rounded(_mm256_add_ps(high, turned_high)));
    }
}

/* Round a head's numbers to 8 bits, `apart` bytes apart; return the value of 1. */
static Half keep_int8(long width, const Half *x, int8_t *to, long apart) {
    float largest = 0;
    for (long i = 0; i < width; i++)
        largest = __builtin_fmaxf(largest, __builtin_fabsf(widened(x[i])));
    float even_scale = largest / 127;
    Half scale = narrowed(even_scale < 1e-30f ? 1e-30f : even_scale);
    for (long i = 0; i < width; i++) {
        float level = __builtin_rintf(widened(x[i]) / widened(scale));
        to[i * apart] = (int8_t)__builtin_fmaxf(-127, __builtin_fminf(127, level));
    }
    return scale;
}

static void keep_token(const Attention *a, const Cached *c) {
    long at = c->end - 1;
    for (long head = 0; head < a->kv_heads; head++) {
        const Half *key = a->key + head * a->width, *value = a->value + head * a->width;
        long keys = head * c->keys_next + at * a->width, values = head * c->values_next + at;
        if (c->scales) {
            Half *scales = c->scales + head * c->scales_next + at;
            scales[0] = keep_int8(a->width, key, (int8_t *)c->keys + keys, 1);
            scales[a->kv_heads * c->scales_next] = keep_int8(a->width, value, (int8_t *)c->values + values, c->stride);
        } else {
            memcpy((Half *)c->keys + keys, key, a->width * sizeof(Half));
            for (long i = 0; i < a->width; i++)
                ((Half *)c->values)[values + i * c->stride] = value[i];
        }
    }
}

/* Scale and cap a vector of scores; with `halves` round after each step. */
INLINED __m256 capped(const int halves, __m256 x, float scaling, float softcap) {
    x = _mm256_mul_ps(x, _mm256_set1_ps(scaling));
    x = halves ? rounded(x) : x;
    if (softcap != 0) {
        x = _mm256_div_ps(x, _mm256_set1_ps(softcap));
        x = hyperbolic_tangent(halves ? rounded(x) : x);
        x = _mm256_mul_ps(halves ? rounded(x) : x, _mm256_set1_ps(softcap));
        x = halves ? rounded(x) : x;
    }
    return x;
}

/* Scores [n], at least one, to weights that add up to 1; both have room up to a multiple of 8. */
static void soften(long n, float *x) {
    __m256 largest = _mm256_set1_ps(-__builtin_inff()), sums = _mm256_setzero_ps();
    for (long i = n; i % 8 != 0; i++)
        x[i] = -__builtin_inff();
    for (long i = 0; i < n; i += 8)
        largest = _mm256_max_ps(_mm256_loadu_ps(x + i), largest);
    largest = _mm256_set1_ps(largest_of(largest));
    for (long i = 0; i < n; i += 8) {
        __m256 power = exponential(_mm256_sub_ps(_mm256_loadu_ps(x + i), largest));
        _mm256_storeu_ps(x + i, power);
        sums = _mm256_add_ps(sums, power);
    }
    __m256 sum = _mm256_set1_ps(sum_of(sums));
    for (long i = 0; i < n; i += 8)
        _mm256_storeu_ps(x + i, _mm256_div_ps(_mm256_loadu_ps(x + i), sum));
}

/* The weights of one head, in place of its scores [n], in bfloat16. Scratch: x [n rounded up to 8]. */
static void weigh_halves(long n, const Attention *a, Half *scores, float *x) {
    long whole = n / 8 * 8;
    Half rest[8] = {0};
    memcpy(rest, scores + whole, (n - whole) * sizeof(Half));
    for (long i = 0; i < n; i += 8)
        _mm256_storeu_ps(x + i, capped(1, eight(i < whole ? scores + i : rest), a->scaling, a->softcap));
    soften(n, x);
    for (long i = 0; i < whole; i += 8)
        keep_eight(scores + i, rounded(_mm256_loadu_ps(x + i)));
    for (long i = whole; i < n; i++)
        scores[i] = narrowed(x[i]);
}

/* The weights of one head times the scales [n] of the values, in place of its scores in float32. */
static void weigh_floats(long n, const Attention *a, const Half *scales, float *scores, float *x) {
    memcpy(x, scores, n * sizeof(float));
    for (long i = n; i % 8 != 0; i++)
        x[i] = 0;
    for (long i = 0; i < n; i += 8)
        _mm256_storeu_ps(x + i, capped(0, _mm256_loadu_ps(x + i), a->scaling, a->softcap));
    soften(n, x);
    for (long i = 0; i < n; i++)
        scores[i] = x[i] * widened(scales[i]);
}

static void attend_halves(long threads, long n, const Attention *a, const Cached *c) {
    long group = a->heads / a->kv_heads, room = (n + 7) / 8 * 8;
    Half *scores = (Half *)c->scores;
    Weights keys = {.plain = (const Half *)c->keys + c->first * a->width, .stride = a->width};
    Weights values = {.plain = (const Half *)c->values + c->first, .stride = c->stride};
    NAMED(bfloat16_rows)(threads, a->kv_heads, group, n, a->width, a->query, &keys, c->keys_next, scores, c->numbers);
#pragma omp parallel for schedule(static) num_threads(threads) if (a->heads * n >= TOGETHER_FROM)
    for (long head = 0; head < a->heads; head++)
        weigh_halves(n, a, scores + head * n, c->numbers + head * room);
    NAMED(bfloat16_rows)(threads, a->kv_heads, group, a->width, n, scores, &values, c->values_next, a->out, c->numbers);
}

static void attend_int8(long threads, long n, const Attention *a, const Cached *c) {
    long group = a->heads / a->kv_heads, room = (n + 7) / 8 * 8;
    const int8_t *keys = (const int8_t *)c->keys + c->first * a->width, *values = (const int8_t *)c->values + c->first;
    const Half *key_scales = c->scales + c->first, *value_scales = key_scales + a->kv_heads * c->scales_next;
    for (long i = 0; i < a->heads * a->width; i++)
        c->numbers[i] = widened(a->query[i]);
    NAMED(int8_rows)(threads, a->kv_heads, group, n, a->width, c->numbers, keys, c->keys_next, a->width, key_scales,
                     c->scales_next, c->scores);
#pragma omp parallel for schedule(static) num_threads(threads) if (a->heads * n >= TOGETHER_FROM)
    for (long head = 0; head < a->heads; head++)
        weigh_floats(n, a, value_scales + head / group * c->scales_next, c->scores + head * n,
                     c->numbers + head * room);
    NAMED(int8_rows)(threads, a->kv_heads, group, a->width, n, c->scores, values, c->values_next, c->stride, NULL, 0,
                     c->numbers);
    for (long i = 0; i < a->heads * a->width; i++)
        a->out[i] = narrowed(c->numbers[i]);
}

/* The attention of one row, whose token is in the cache. */
static void attend_row(long threads, const Attention *a, const Cached *c) {
    if (c->scales)
        attend_int8(threads, c->end - c->first, a, c);
    else
        attend_halves(threads, c->end - c->first, a, c);
}

INLINED Attention of_row(const Attention *all, long row) {
    Attention a = *all;
    a.query += row * a.heads * a.width;
    a.key += row * a.kv_heads * a.width;
    a.value += row * a.kv_heads * a.width;
    a.out += row * a.heads * a.width;
    return a;
}

/* Norm and rotate the queries and the keys, keep the keys and the values in the caches, and attend. */
void NAMED(attend_rows)(long threads, long rows, const Attention *all, const Cached *cached) {
    long products = 0, most = 0; /* of all rows and of the longest one */
    for (long row = 0; row < rows; row++) {
        const Attention a = of_row(all, row);
        const Cached *c = cached + row;
        for (long head = 0; head < a.heads; head++)
            turn_head(a.width, a.epsilon, a.query_norm, c->cosines, c->sines, a.query + head * a.width);
        for (long head = 0; head < a.kv_heads; head++)
            turn_head(a.width, a.epsilon, a.key_norm, c->cosines, c->sines, a.key + head * a.width);
        keep_token(&a, c); /* before any row attends: a later one can see it */
        long own = (c->end - c->first) * a.heads * a.width;
        products += own;
        most = own > most ? own : most;
    }
    int apart = rows > 1 && (rows >= threads || most < SHARED_FROM); /* else threads share each row */
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (apart && products >= SHARED_FROM)
    for (long row = 0; row < rows; row++) {
        const Attention a = of_row(all, row);
        attend_row(apart ? 1 : threads, &a, cached + row);
    }
}
