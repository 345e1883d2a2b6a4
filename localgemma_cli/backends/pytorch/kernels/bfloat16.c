/* Products of bfloat16 numbers on AVX-512 that has no instructions for them, in float32: each sum in the order
   of PyTorch's own product there, so that what a model says is the reference's bit for bit.

   The orders are those of ATen and oneDNN 3, found by adding up numbers of very different sizes:
   - `chains`, one row with weights [n, k]: four chains of sixteen lanes;
   - `pairs`, one query with keys [n, k]: one chain of sixteen lanes, of two numbers the second first;
   - `eights`, one row with values [k, n]: eight after the other, of two the second first, then these sums;
   - `tile`, more rows: blocks of input features, in each one after the other, of two the second first.
   Where PyTorch's threads share a product, a row that two of them have a part in is computed as one row.

   Weights may be compact, the same numbers in 12 bits, as the exponents of neighbours are near each other. Of 64
   along a row: sign and mantissa in a byte each, then exponents above a base in half a byte each, 16 in the low
   halves of 16 bytes, 16 in the high ones, and again; their base, an exponent, is kept apart. A group whose
   exponents are too far from each other has no base but RAW, and is kept as it is. */

#include <immintrin.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

#include "halves.h"

enum {
    LANES = 16,
    WIDE = 4,             /* vectors of output features at once */
    BLOCK = WIDE * LANES,
    MOST = 6,             /* rows at once: with WIDE, their sums fill the registers */
    FEW = 4,              /* rows at once where each is computed as one */
    DEEP = 768,           /* input features of a block */
    AHEAD = 3072,         /* bytes: without asking early a core reads less */
    GROUP = 64,           /* compact weights that share a base */
    PACKED = 96,          /* bytes of them */
    RAW = 255,
};

static inline __m512 widened(__mmask16 which, const Half *from) {
    __m256i halves = _mm256_maskz_loadu_epi16(which, from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

static inline __m512 first_of(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }

static inline __m512 second_of(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}

/* Where the i-th of `count` numbers is added, the second of a pair before the first. */
static inline long turned(long i, long count) { return (i ^ 1) < count ? i ^ 1 : i; }

static inline long least(long a, long b) { return a < b ? a : b; }

/* ---- Weights ---- */

typedef struct { /* [n, k]; k by GROUP where they are compact */
    const Half *plain;     /* NULL where they are compact */
    const uint8_t *packed; /* [n, k / GROUP, PACKED] */
    const uint8_t *bases;  /* [n, k / GROUP] */
    const Half *raw;       /* [groups without a base, GROUP] */
    const int32_t *firsts; /* [n], which of these is the first of a row */
} Weights;

/* A group of compact weights as they were. */
static inline void opened(const uint8_t *packed, uint8_t base, __m512i out[2]) {
    for (int i = 0; i < 2; i++) {
        __m512i signs = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(packed + 32 * i)));
        __m128i codes = _mm_loadu_si128((const __m128i *)(packed + GROUP + 16 * i));
        __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(codes), _mm_srli_epi16(codes, 4), 1);
        __m512i exponents = _mm512_cvtepu8_epi16(_mm256_and_si256(both, _mm256_set1_epi8(15)));
        exponents = _mm512_slli_epi16(_mm512_add_epi16(exponents, _mm512_set1_epi16(base)), 7);
        __m512i kept = _mm512_set1_epi16((short)0x807f); /* of a sign that was spread over the exponent */
        out[i] = _mm512_ternarylogic_epi32(signs, kept, exponents, 0xea);
    }
}

/* The `group`-th of a row; `raw` counts those that the row had without a base. */
static inline __attribute__((always_inline)) void group_of(const int compact, const Weights *w, long k, long row,
                                                           long group, long *raw, __m512i out[2]) {
    const Half *from;
    if (!compact) {
        from = w->plain + row * k + group * GROUP;
    } else {
        long index = row * (k / GROUP) + group;
        if (w->bases[index] != RAW) {
            opened(w->packed + index * PACKED, w->bases[index], out);
            return;
        }
        from = w->raw + (w->firsts[row] + (*raw)++) * GROUP;
    }
    out[0] = _mm512_loadu_si512(from);
    out[1] = _mm512_loadu_si512(from + 32);
}

/* `count` rows from the `first` on as they are, k numbers each; where they are compact, written to `to`. */
static const Half *rows_of(const Weights *w, long first, long count, long k, Half *to) {
    if (w->plain)
        return w->plain + first * k;
    for (long row = 0; row < count; row++) {
        long raw = 0;
        for (long group = 0; group < k / GROUP; group++) {
            __m512i halves[2];
            group_of(1, w, k, first + row, group, &raw, halves);
            _mm512_storeu_si512(to + row * k + group * GROUP, halves[0]);
            _mm512_storeu_si512(to + row * k + group * GROUP + 32, halves[1]);
        }
    }
    return to;
}

/* w [n, k] to compact ones; `counts` [n] of the groups in each row that have no base. */
void compact(long threads, long n, long k, const Half *w, uint8_t *packed, uint8_t *bases, int32_t *counts) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < n; row++) {
        counts[row] = 0;
        for (long index = row * (k / GROUP); index < (row + 1) * (k / GROUP); index++) {
            const Half *from = w + index * GROUP;
            uint8_t *to = packed + index * PACKED;
            int lowest = 255, highest = 0;
            for (int i = 0; i < GROUP; i++) {
                int exponent = from[i] >> 7 & 255;
                lowest = exponent < lowest ? exponent : lowest;
                highest = exponent > highest ? exponent : highest;
            }
            int base = highest > 15 ? highest - 15 : 0;
            bases[index] = lowest < base || highest == 255 ? RAW : base;
            counts[row] += bases[index] == RAW;
            for (int i = 0; i < GROUP; i++)
                to[i] = (from[i] >> 8 & 0x80) | (from[i] & 0x7f);
            for (int i = 0; i < GROUP / 2; i++) {
                int low = i + (i & 16), high = low + 16; /* 16 to 31 follow the first 16 in the same bytes */
                to[GROUP + i] = (((from[low] >> 7) - base) & 15) | (((from[high] >> 7) - base) & 15) << 4;
            }
        }
    }
}

/* The groups that have no base, one after the other. */
void keep_raw(long threads, long n, long k, const Half *w, const uint8_t *bases, const int32_t *firsts, Half *raw) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < n; row++) {
        Half *to = raw + (long)firsts[row] * GROUP;
        for (long index = row * (k / GROUP); index < (row + 1) * (k / GROUP); index++)
            if (bases[index] == RAW) {
                memcpy(to, w + index * GROUP, GROUP * sizeof(Half));
                to += GROUP;
            }
    }
}

/* ---- Rows computed as one ---- */

static inline __attribute__((always_inline)) void chains(const int compact, const int rows, long n, long k,
                                                         const float *x, const Weights *w, long row, Half *out) {
    long raw = 0, bytes = compact ? PACKED : GROUP * (long)sizeof(Half);
    const char *ahead = compact ? (const char *)w->packed : (const char *)w->plain;
    ahead += row * (k / GROUP) * bytes + AHEAD;
    __m512 sums[FEW][4];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 4; i++)
            sums[r][i] = _mm512_setzero_ps();
    for (long group = 0; group < k / GROUP; group++, ahead += bytes) {
        __m512i halves[2];
        _mm_prefetch(ahead, _MM_HINT_T0);
        _mm_prefetch(ahead + 64, _MM_HINT_T0);
        group_of(compact, w, k, row, group, &raw, halves);
        for (int i = 0; i < 4; i++) {
            __m512i pair = halves[i / 2];
            __m256i sixteen = i % 2 ? _mm512_extracti64x4_epi64(pair, 1) : _mm512_castsi512_si256(pair);
            __m512 weights = first_of(_mm512_cvtepu16_epi32(sixteen));
            for (int r = 0; r < rows; r++) {
                __m512 numbers = _mm512_loadu_ps(x + r * k + group * GROUP + LANES * i);
                sums[r][i] = _mm512_fmadd_ps(weights, numbers, sums[r][i]);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        __m512 even = _mm512_add_ps(sums[r][0], sums[r][2]), odd = _mm512_add_ps(sums[r][1], sums[r][3]);
        out[r * n] = narrowed(_mm512_reduce_add_ps(_mm512_add_ps(even, odd)));
    }
}

static inline __attribute__((always_inline)) void few(const int compact, long threads, long m, long n, long k,
                                                      const float *x, const Weights *w, Half *out) {
#pragma omp parallel for schedule(static) num_threads(threads) if (n * k >= 200000)
    for (long j = 0; j < n; j++)
        for (long row = 0; row < m; row += FEW) {
            const float *here = x + row * k;
            Half *to = out + row * n + j;
            switch (m - row) {
            case 1: chains(compact, 1, n, k, here, w, j, to); break;
            case 2: chains(compact, 2, n, k, here, w, j, to); break;
            case 3: chains(compact, 3, n, k, here, w, j, to); break;
            default: chains(compact, 4, n, k, here, w, j, to);
            }
        }
}

/* x [m, k] in float32, w [n, k], out [m, n]; k by GROUP. */
void few_rows(long threads, long m, long n, long k, const float *x, const Weights *w, Half *out) {
    if (w->plain)
        few(0, threads, m, n, k, x, w, out);
    else
        few(1, threads, m, n, k, x, w, out);
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
                __m512 numbers = widened(which[i], values + token * width + i * LANES);
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

/* Of weights [n, k] `count` rows and an even `depth` of columns to [depth, BLOCK]. */
static void pack_rows(long count, long depth, const Half *w, long k, float *to) {
    for (long j = 0; j < BLOCK; j += LANES)
        for (long q = 0; q < depth; q += 2 * LANES) {
            __m512i v[LANES];
            long twos = least(LANES, (depth - q) / 2);
            for (long i = 0; i < LANES; i++) /* beyond `count` nothing is read */
                v[i] = _mm512_maskz_loadu_epi32(j + i < count ? 0xffff >> (LANES - twos) : 0,
                                                w + (j + i) * k + q);
            transpose(v);
            for (long i = 0; i < twos; i++) {
                _mm512_store_ps(to + (q + 2 * i) * BLOCK + j, second_of(v[i]));
                _mm512_store_ps(to + (q + 2 * i + 1) * BLOCK + j, first_of(v[i]));
            }
        }
}

/* The same of values [k, n], and of any depth. */
static void pack_columns(long count, long depth, const Half *w, long n, float *to) {
    for (long q = 0; q < depth; q++)
        for (long j = 0; j < BLOCK; j++)
            to[turned(q, depth) * BLOCK + j] = j < count ? wide(w[q * n + j]) : 0;
}

/* A row's `count` columns from `first` on, as if it came alone; `line` holds one of the weights' rows. */
static void one_row(long first, long count, long n, long k, int across, const Half *x, const Weights *w, Half *out,
                    Half *line) {
    if (across)
        for (long j = first; j < first + count; j += BLOCK)
            eights(1, k, n, least(BLOCK, first + count - j), x, w->plain + j, out + j);
    else
        for (long j = first; j < first + count; j++)
            out[j] = pairs(k, x, rows_of(w, j, 1, k, line));
}

/* What of the `thread`-th share of [all, n] outputs is of one row only, as oneDNN divides them: products of
   `together` rows each. Here are `m` of the rows, behind `before` others. */
static void shared_rows(long thread, long threads, long before, long together, long all, long m, long n, long k,
                        int across, const Half *x, const Weights *w, Half *out, Half *line) {
    long part = all * n / threads, more = all * n % threads;
    long from = thread * part + least(thread, more), end = from + part + (thread < more);
    while (from < end) {
        long row = from / n, first = from % n, rows = 1, count = least(n - first, end - from);
        if (first == 0 && count == n)
            rows = least(together - row % together, (end - from) / n);
        if (rows == 1 && row >= before && row < before + m)
            one_row(first, count, n, k, across, x + (row - before) * k, w, out + (row - before) * n, line);
        from += rows * count;
    }
}

/* x [m, k] times w, [n, k] or `across` plain [k, n] -> out [m, n]; k by 2, or across any. For `before`,
   `together` and `all` see `shared_rows`. Scratch: numbers [m, k], and `own` bytes for each thread, aligned:
   [DEEP + m, BLOCK] numbers and, of compact weights, BLOCK rows. */
void many_rows(long threads, long before, long together, long all, long m, long n, long k, int across,
               const Half *x, const Weights *w, Half *out, float *numbers, char *scratch, long own) {
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
        float *weights = (float *)(scratch + omp_get_thread_num() * own), *sums = weights + DEEP * BLOCK;
        Half *lines = (Half *)(sums + m * BLOCK);
#pragma omp for schedule(dynamic)
        for (long first = 0; first < n; first += BLOCK) {
            long count = least(BLOCK, n - first);
            const Half *rows = across ? NULL : rows_of(w, first, count, k, lines);
            for (long from = 0; from < k; from += depth) {
                long deep = least(depth, k - from);
                if (across)
                    pack_columns(count, deep, w->plain + from * n + first, n, weights);
                else
                    pack_rows(count, deep, rows + from, k, weights);
                for (long t = 0; t < tiles; t++) {
                    long row = m * t / tiles, some = m * (t + 1) / tiles - row;
                    const float *here = numbers + from * m + row * deep;
                    tile_of(some, deep, here, weights, sums + row * BLOCK, from > 0);
                }
            }
            for (long row = 0; row < m; row++)
                for (long j = 0; j < count; j++)
                    out[row * n + first + j] = narrowed(sums[row * BLOCK + j]);
        }
#pragma omp for schedule(dynamic)
        for (long thread = 0; thread < threads; thread++)
            shared_rows(thread, threads, before, together, all, m, n, k, across, x, w, out, lines);
    }
}
