/* Products of bfloat16 numbers on AVX-512 that has no instructions for them, in float32: each sum in the order
   of PyTorch's own product there, so that what a model says is the reference's bit for bit.

   The orders are those of ATen and oneDNN 3, found by adding up numbers of very different sizes:
   - `chains`, one row with weights [n, k]: four chains of sixteen lanes;
   - `pairs`, one query with keys [n, k]: one chain of sixteen lanes, of two numbers the second first;
   - `eights`, one row with values [k, n]: eight after the other, of two the second first, then these sums;
   - `tile`, more rows: blocks of input features, in each one after the other, of two the second first.
   Where PyTorch's threads share a product, a row that two of them have a part in is computed as one row. */

#include <immintrin.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

enum {
    LANES = 16,
    WIDE = 4,             /* vectors of output features at once */
    BLOCK = WIDE * LANES,
    MOST = 6,             /* rows at once: with WIDE, their sums fill the registers */
    FEW = 4,              /* rows at once where each is computed as one */
    DEEP = 768,           /* input features of a block */
    AHEAD = 3072,         /* bytes: without asking early a core reads less */
};

typedef uint16_t Half; /* the bits of a bfloat16 */

static inline __m512 widened(const Half *from) {
    __m256i halves = _mm256_loadu_si256((const __m256i *)from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

static inline __m512 widened_some(__mmask16 which, const Half *from) {
    __m256i halves = _mm256_maskz_loadu_epi16(which, from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

static inline __m512 first_of(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }

static inline __m512 second_of(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}

static inline float wide(Half bits) {
    uint32_t whole = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &whole, sizeof value);
    return value;
}

/* To the nearest and of two to the even; what is not a number stays none. */
static inline Half narrowed(float value) {
    uint32_t whole;
    memcpy(&whole, &value, sizeof whole);
    uint32_t rounded = (whole + 0x7fff + (whole >> 16 & 1)) >> 16;
    return value == value ? rounded : 0x7fc0;
}

/* Where the i-th of `count` numbers is added, the second of a pair before the first. */
static inline long turned(long i, long count) { return (i ^ 1) < count ? i ^ 1 : i; }

static inline long least(long a, long b) { return a < b ? a : b; }

/* ---- Rows computed as one ---- */

static inline __attribute__((always_inline)) void chains(const int rows, long n, long k, const float *x,
                                                         const Half *w, Half *out) {
    __m512 sums[FEW][4];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 4; i++)
            sums[r][i] = _mm512_setzero_ps();
    for (long first = 0; first < k; first += BLOCK) {
        _mm_prefetch((const char *)(w + first) + AHEAD, _MM_HINT_T0);
        _mm_prefetch((const char *)(w + first) + AHEAD + 64, _MM_HINT_T0);
        for (int i = 0; i < 4; i++) {
            __m512 weights = widened(w + first + LANES * i);
            for (int r = 0; r < rows; r++) {
                __m512 numbers = _mm512_loadu_ps(x + r * k + first + LANES * i);
                sums[r][i] = _mm512_fmadd_ps(weights, numbers, sums[r][i]);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        __m512 even = _mm512_add_ps(sums[r][0], sums[r][2]), odd = _mm512_add_ps(sums[r][1], sums[r][3]);
        out[r * n] = narrowed(_mm512_reduce_add_ps(_mm512_add_ps(even, odd)));
    }
}

/* x [m, k] in float32, w [n, k], out [m, n]; k by 64. */
void few_rows(long threads, long m, long n, long k, const float *x, const Half *w, Half *out) {
#pragma omp parallel for schedule(static) num_threads(threads) if (n * k >= 200000)
    for (long j = 0; j < n; j++)
        for (long row = 0; row < m; row += FEW) {
            const float *here = x + row * k;
            Half *to = out + row * n + j;
            switch (m - row) {
            case 1: chains(1, n, k, here, w + j * k, to); break;
            case 2: chains(2, n, k, here, w + j * k, to); break;
            case 3: chains(3, n, k, here, w + j * k, to); break;
            default: chains(4, n, k, here, w + j * k, to);
            }
        }
}

static inline Half pairs(long k, const Half *x, const Half *w) {
    __m512 sum = _mm512_setzero_ps();
    for (long first = 0; first < k; first += 2 * LANES) {
        __m512i a = _mm512_loadu_si512(x + first), b = _mm512_loadu_si512(w + first);
        sum = _mm512_fmadd_ps(second_of(a), second_of(b), sum);
        sum = _mm512_fmadd_ps(first_of(a), first_of(b), sum);
    }
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
    eight = _mm256_hadd_ps(eight, eight);
    eight = _mm256_hadd_ps(eight, eight);
    return narrowed(_mm256_cvtss_f32(eight) + _mm_cvtss_f32(_mm256_extractf128_ps(eight, 1)));
}

/* Scores of few queries: x [heads, rows, k] with keys [n, k] of each head -> [heads, rows, n]; k by 32. */
void few_scores(long threads, long heads, long rows, long n, long k, const Half *x, const Half *keys,
                long stride, Half *out) {
#pragma omp parallel for schedule(static) collapse(2) num_threads(threads) if (heads * n * k >= 200000)
    for (long head = 0; head < heads; head++)
        for (long j = 0; j < n; j++)
            for (long row = head * rows; row < (head + 1) * rows; row++)
                out[row * n + j] = pairs(k, x + row * k, keys + head * stride + j * k);
}

/* `count` columns, at most BLOCK, of values that lie `width` apart. */
static inline __attribute__((always_inline)) void eights(const int rows, long n, long width, long count,
                                                         const Half *x, const Half *values, Half *out) {
    __m512 sums[FEW][WIDE];
    __mmask16 which[WIDE];
    for (int i = 0; i < WIDE; i++) {
        long left = count - i * LANES;
        which[i] = left >= LANES ? 0xffff : left > 0 ? (1 << left) - 1 : 0;
        for (int r = 0; r < rows; r++)
            sums[r][i] = _mm512_setzero_ps();
    }
    for (long first = 0; first < n; first += 8) {
        __m512 parts[FEW][WIDE];
        long some = least(8, n - first);
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < WIDE; i++)
                parts[r][i] = _mm512_setzero_ps();
        for (long t = 0; t < some; t++) {
            long token = first + turned(t, some);
            for (int i = 0; i < WIDE; i++) {
                __m512 numbers = widened_some(which[i], values + token * width + i * LANES);
                for (int r = 0; r < rows; r++) {
                    __m512 weight = _mm512_set1_ps(wide(x[r * n + token]));
                    parts[r][i] = _mm512_fmadd_ps(weight, numbers, parts[r][i]);
                }
            }
        }
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < WIDE; i++)
                sums[r][i] = _mm512_add_ps(sums[r][i], parts[r][i]);
    }
    for (int r = 0; r < rows; r++) {
        float all[BLOCK];
        for (int i = 0; i < WIDE; i++)
            _mm512_storeu_ps(all + i * LANES, sums[r][i]);
        for (long i = 0; i < count; i++)
            out[r * width + i] = narrowed(all[i]);
    }
}

/* What few queries read: x [heads, rows, n] times values [n, width] of each head -> [heads, rows, width]. */
void few_mixed(long threads, long heads, long rows, long n, long width, const Half *x, const Half *values,
               long stride, Half *out) {
#pragma omp parallel for schedule(static) collapse(2) num_threads(threads) if (heads * n * width >= 200000)
    for (long head = 0; head < heads; head++)
        for (long first = 0; first < width; first += BLOCK)
            for (long r = 0; r < rows; r += FEW) {
                const Half *here = x + (head * rows + r) * n, *from = values + head * stride + first;
                Half *to = out + (head * rows + r) * width + first;
                long count = least(BLOCK, width - first);
                switch (rows - r) {
                case 1: eights(1, n, width, count, here, from, to); break;
                case 2: eights(2, n, width, count, here, from, to); break;
                case 3: eights(3, n, width, count, here, from, to); break;
                default: eights(4, n, width, count, here, from, to);
                }
            }
}

/* ---- Many rows ---- */

static inline long depth_of(long k) { return k <= DEEP / 2 ? k : k < 2 * DEEP ? (k + 1) / 2 : DEEP; }

/* x [depth, rows] and w [depth, BLOCK] in float32; sums lie BLOCK apart. */
static inline __attribute__((always_inline)) void tile(const int rows, long depth, const float *x,
                                                       const float *w, float *sums, int adds) {
    __m512 here[MOST][WIDE];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < WIDE; i++)
            here[r][i] = _mm512_setzero_ps();
    for (long q = 0; q < depth; q++) {
        __m512 weights[WIDE];
        for (int i = 0; i < WIDE; i++)
            weights[i] = _mm512_load_ps(w + q * BLOCK + i * LANES);
        for (int r = 0; r < rows; r++) {
            __m512 number = _mm512_set1_ps(x[q * rows + r]);
            for (int i = 0; i < WIDE; i++)
                here[r][i] = _mm512_fmadd_ps(number, weights[i], here[r][i]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < WIDE; i++) {
            float *to = sums + r * BLOCK + i * LANES;
            _mm512_storeu_ps(to, adds ? _mm512_add_ps(_mm512_loadu_ps(to), here[r][i]) : here[r][i]);
        }
}

static void tile_of(long rows, long depth, const float *x, const float *w, float *sums, int adds) {
    switch (rows) {
    case 1: tile(1, depth, x, w, sums, adds); break;
    case 2: tile(2, depth, x, w, sums, adds); break;
    case 3: tile(3, depth, x, w, sums, adds); break;
    case 4: tile(4, depth, x, w, sums, adds); break;
    case 5: tile(5, depth, x, w, sums, adds); break;
    case 6: tile(6, depth, x, w, sums, adds); break;
    }
}

/* Sixteen vectors of 32-bit numbers, mirrored at the diagonal. */
static inline void transpose(__m512i v[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            v[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + 2 + j]);
            v[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + 2 + j]);
        }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 16; j += 8) {
            t[i + j] = _mm512_shuffle_i32x4(v[i + j], v[i + 4 + j], 0x88);
            t[i + 4 + j] = _mm512_shuffle_i32x4(v[i + j], v[i + 4 + j], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

/* Of weights [n, k], `stride` apart, `count` rows and an even `depth` of columns to [depth, BLOCK]. */
static void pack_rows(long count, long depth, const Half *w, long stride, float *to) {
    for (long j = 0; j < BLOCK; j += LANES)
        for (long q = 0; q < depth; q += 2 * LANES) {
            __m512i v[LANES];
            long twos = least(LANES, (depth - q) / 2);
            for (long i = 0; i < LANES; i++) /* beyond `count` nothing is read */
                v[i] = _mm512_maskz_loadu_epi32(j + i < count ? 0xffff >> (LANES - twos) : 0,
                                                w + (j + i) * stride + q);
            transpose(v);
            for (long i = 0; i < twos; i++) {
                _mm512_store_ps(to + (q + 2 * i) * BLOCK + j, second_of(v[i]));
                _mm512_store_ps(to + (q + 2 * i + 1) * BLOCK + j, first_of(v[i]));
            }
        }
}

/* The same of values [k, n], and of any depth. */
static void pack_columns(long count, long depth, const Half *w, long stride, float *to) {
    for (long q = 0; q < depth; q++)
        for (long j = 0; j < BLOCK; j++)
            to[turned(q, depth) * BLOCK + j] = j < count ? wide(w[q * stride + j]) : 0;
}

/* A row's `count` columns from `first` on, as if it came alone. */
static void one_row(long first, long count, long n, long k, int across, const Half *x, const Half *w,
                    long stride, Half *out) {
    if (across)
        for (long j = first; j < first + count; j += BLOCK)
            eights(1, k, stride, least(BLOCK, first + count - j), x, w + j, out + j);
    else
        for (long j = first; j < first + count; j++)
            out[j] = pairs(k, x, w + j * stride);
}

/* What of the `thread`-th share of [all, n] outputs is of one row only, as oneDNN divides them: products of
   `together` rows each. Here are `m` of the rows, behind `before` others. */
static void shared_rows(long thread, long threads, long before, long together, long all, long m, long n,
                        long k, int across, const Half *x, const Half *w, long stride, Half *out) {
    long part = all * n / threads, more = all * n % threads;
    long from = thread * part + least(thread, more), end = from + part + (thread < more);
    while (from < end) {
        long row = from / n, first = from % n, rows = 1, count = least(n - first, end - from);
        if (first == 0 && count == n)
            rows = least(together - row % together, (end - from) / n);
        if (rows == 1 && row >= before && row < before + m)
            one_row(first, count, n, k, across, x + (row - before) * k, w, stride, out + (row - before) * n);
        from += rows * count;
    }
}

/* x [m, k] times w, [n, k] or `across` [k, n], which lies `stride` apart -> out [m, n]; k by 2, or across any.
   For `before`, `together` and `all` see `shared_rows`. Scratch: numbers [m, k], and for each thread
   [DEEP + m, BLOCK] of `packed`, which is aligned. */
void many_rows(long threads, long before, long together, long all, long m, long n, long k, int across,
               const Half *x, const Half *w, long stride, Half *out, float *numbers, float *packed) {
    long depth = depth_of(k), tiles = (m + MOST - 1) / MOST;
#pragma omp parallel num_threads(threads) if (m * n * k >= 200000)
    {
#pragma omp for schedule(static) collapse(2)
        for (long from = 0; from < k; from += depth)
            for (long t = 0; t < tiles; t++) {
                long deep = least(depth, k - from), row = m * t / tiles, rows = m * (t + 1) / tiles - row;
                float *to = numbers + from * m + row * deep;
                for (long q = 0; q < deep; q++)
                    for (long r = 0; r < rows; r++)
                        to[turned(q, deep) * rows + r] = wide(x[(row + r) * k + from + q]);
            }
        float *weights = packed + omp_get_thread_num() * (DEEP + m) * BLOCK, *sums = weights + DEEP * BLOCK;
#pragma omp for schedule(dynamic)
        for (long first = 0; first < n; first += BLOCK) {
            long count = least(BLOCK, n - first);
            for (long from = 0; from < k; from += depth) {
                long deep = least(depth, k - from);
                if (across)
                    pack_columns(count, deep, w + from * stride + first, stride, weights);
                else
                    pack_rows(count, deep, w + first * stride + from, stride, weights);
                for (long t = 0; t < tiles; t++) {
                    long row = m * t / tiles, rows = m * (t + 1) / tiles - row;
                    const float *here = numbers + from * m + row * deep;
                    tile_of(rows, deep, here, weights, sums + row * BLOCK, from > 0);
                }
            }
            for (long row = 0; row < m; row++)
                for (long j = 0; j < count; j++)
                    out[row * n + first + j] = narrowed(sums[row * BLOCK + j]);
        }
#pragma omp for schedule(dynamic)
        for (long thread = 0; thread < threads; thread++)
            shared_rows(thread, threads, before, together, all, m, n, k, across, x, w, stride, out);
    }
}
