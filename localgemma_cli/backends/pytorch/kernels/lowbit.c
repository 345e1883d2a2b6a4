/* Products of rows with 4-bit weights and with 8-bit keys and values, on AVX-512 or AVX2. A row's result is the
   same bits however many rows come with it.

   A weight of 4 bits is (q - 8) * scale + offset, q in 0..15. The rows multiplied with are rounded to 8 bits, by
   one step per row and group of input features, so that sums are exact, on the integer dot products.

   Packed weights lie in blocks of output features, 64 with AVX-512 and 32 without: for every input feature a
   block's first half in the low halves of bytes, its second half in the high ones. */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "halves.h"

typedef struct {  /* of one row and one group */
    float step;   /* what 1 stands for in the rounded numbers */
    float sum;    /* of the numbers before they were rounded */
    int32_t zero; /* -8 times the sum of the rounded numbers */
} Part;

#ifdef __AVX512BW__

enum { LANES = 16 }; /* numbers of 32 bits in a vector */
typedef __m512i Ints;
typedef __m512 Floats;

static inline Ints load(const void *from) { return _mm512_loadu_si512(from); }
static inline Ints all(int32_t value) { return _mm512_set1_epi32(value); }
static inline Ints both(Ints a, Ints b) { return _mm512_and_si512(a, b); }
static inline Ints high_halves(Ints a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), all(0x0f0f0f0f)); }
static inline Ints up(Ints a) { return _mm512_slli_epi32(a, 16); }
static inline Floats as_floats(Ints bits) { return _mm512_castsi512_ps(bits); }
static inline Floats to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }
static inline Floats every(float value) { return _mm512_set1_ps(value); }
static inline Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
static inline Floats times_plus(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
static inline void store(float *to, Floats a) { _mm512_storeu_ps(to, a); }
static inline Floats floats(const float *from) { return _mm512_loadu_ps(from); }
static inline Ints from_bytes(const int8_t *from) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from));
}
static inline float total(Floats a) { return _mm512_reduce_add_ps(a); }
static inline Floats plus(Floats a, Floats b) { return _mm512_add_ps(a, b); }

/* Each 32-bit sum plus four products of unsigned with signed bytes. */
static inline Ints add_products(Ints sums, Ints weights, Ints x) {
#ifdef __AVX512VNNI__
    return _mm512_dpbusd_epi32(sums, weights, x);
#else
    Ints pairs = _mm512_maddubs_epi16(weights, x); /* at most 2 * 15 * 127 */
    return _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
}

/* Bytes of four input features, `a` two and `b` two, to one feature after the other for each output feature. */
static inline void interleave(Ints a, Ints b, Ints out[2]) {
#ifdef __AVX512VBMI__
    const Ints lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const Ints bytes = _mm512_add_epi32(all(0x60402000), _mm512_mullo_epi32(lane, all(0x01010101)));
    out[0] = _mm512_permutex2var_epi8(a, bytes, b);
    out[1] = _mm512_permutex2var_epi8(a, _mm512_add_epi32(bytes, all(0x10101010)), b);
#else
    const Ints fours = _mm512_setr_epi32(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15);
    const Ints pairs = _mm512_set4_epi32(0x0f0b0e0a, 0x0d090c08, 0x07030602, 0x05010400);
    a = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(fours, a), pairs);
    b = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(fours, b), pairs);
    out[0] = _mm512_unpacklo_epi16(a, b);
    out[1] = _mm512_unpackhi_epi16(a, b);
#endif
}

#else

enum { LANES = 8 };
typedef __m256i Ints;
typedef __m256 Floats;

static inline Ints load(const void *from) { return _mm256_loadu_si256(from); }
static inline Ints all(int32_t value) { return _mm256_set1_epi32(value); }
static inline Ints both(Ints a, Ints b) { return _mm256_and_si256(a, b); }
static inline Ints high_halves(Ints a) { return _mm256_and_si256(_mm256_srli_epi16(a, 4), all(0x0f0f0f0f)); }
static inline Ints up(Ints a) { return _mm256_slli_epi32(a, 16); }
static inline Floats as_floats(Ints bits) { return _mm256_castsi256_ps(bits); }
static inline Floats to_floats(Ints a) { return _mm256_cvtepi32_ps(a); }
static inline Floats every(float value) { return _mm256_set1_ps(value); }
static inline Floats times(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
static inline Floats times_plus(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
static inline void store(float *to, Floats a) { _mm256_storeu_ps(to, a); }
static inline Floats floats(const float *from) { return _mm256_loadu_ps(from); }
static inline Ints from_bytes(const int8_t *from) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from));
}
static inline float total(Floats a) {
    a = _mm256_hadd_ps(a, a);
    a = _mm256_hadd_ps(a, a);
    return _mm256_cvtss_f32(a) + _mm_cvtss_f32(_mm256_extractf128_ps(a, 1));
}
static inline Floats plus(Floats a, Floats b) { return _mm256_add_ps(a, b); }

static inline Ints add_products(Ints sums, Ints weights, Ints x) {
#ifdef __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(sums, weights, x);
#else
    Ints pairs = _mm256_maddubs_epi16(weights, x);
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}

static inline void interleave(Ints a, Ints b, Ints out[2]) {
    const Ints fours = _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7);
    const Ints pairs = _mm256_setr_epi32(0x05010400, 0x07030602, 0x0d090c08, 0x0f0b0e0a,
                                         0x05010400, 0x07030602, 0x0d090c08, 0x0f0b0e0a);
    a = _mm256_shuffle_epi8(_mm256_permutevar8x32_epi32(a, fours), pairs);
    b = _mm256_shuffle_epi8(_mm256_permutevar8x32_epi32(b, fours), pairs);
    out[0] = _mm256_unpacklo_epi16(a, b);
    out[1] = _mm256_unpackhi_epi16(a, b);
}

#endif

enum {
    BLOCK = 4 * LANES, /* output features that lie together */
    FOUR = 2 * BLOCK,  /* bytes of their weights of four input features */
    MOST = 5,          /* rows that are multiplied at once: their sums fill the registers */
    FEW = 4,           /* the same for 8 bits */
    AHEAD = 3072,      /* bytes: without asking for weights early a core reads a quarter less, or half */
    GROUPS_AHEAD = 8,
    BYTES_AHEAD = 1024,
};

/* One row's numbers of one group to -127..127; with one that is not finite among them the step is none. */
static Part round_group(long group, const Half *x, int8_t *rounded) {
    Half largest = 0; /* as bits: those of greater numbers are greater, and infinity's are 0x7f80 */
    for (long i = 0; i < group; i++) {
        Half size = x[i] & 0x7fff;
        largest = size > largest ? size : largest;
    }
    float sums[16] = {0}, sum = 0;
    for (long i = 0; i < group; i += 16)
        for (long j = 0; j < 16; j++)
            sums[j] += wide(x[i + j]);
    for (long j = 0; j < 16; j++)
        sum += sums[j];
    int known = largest >= 0x0d80 && largest < 0x7f80; /* below 2^-100 a number's inverse might overflow */
    float inverse = known ? 127 / wide(largest) : 0;
    int32_t total = 0;
    for (long i = 0; i < group; i++) {
        rounded[i] = known ? (int8_t)__builtin_rintf(wide(x[i]) * inverse) : 0;
        total += rounded[i];
    }
    float step = largest < 0x7f80 ? (known ? wide(largest) / 127 : 0) : __builtin_nanf("");
    return (Part){step, sum, -8 * total};
}

/* To the caches; past the end of what is there nothing happens. GCC drops calls to a function like this. */
static inline __attribute__((always_inline)) void ask_for(const void *start, long bytes) {
    for (long i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)start + i, _MM_HINT_T0);
}

/* Weights of four input features, one feature after the other in a lane; four vectors of output features. */
static inline void unpack(const uint8_t *packed, Ints weights[4]) {
    Ints pairs[2];
    interleave(load(packed), load(packed + BLOCK), pairs);
    for (int i = 0; i < 2; i++) {
        weights[i] = both(pairs[i], all(0x0f0f0f0f));
        weights[2 + i] = high_halves(pairs[i]);
    }
}

/* Output features of one block for `count` rows of x, which lie `k` apart, as their parts lie `k / group`. */
static inline __attribute__((always_inline)) void multiply(
    const int count, long n, long k, long group, const int8_t *x, const Part *parts,
    const uint8_t *packed, const Half *factors, Half *out) {
    Floats results[MOST][4];
    for (int row = 0; row < count; row++)
        for (int i = 0; i < 4; i++)
            results[row][i] = every(0);
    for (long g = 0; g < k / group; g++) {
        Ints sums[MOST][4], weights[4];
        ask_for(factors + 2 * (g + GROUPS_AHEAD) * n, 4 * BLOCK);
        for (int row = 0; row < count; row++)
            for (int i = 0; i < 4; i++)
                sums[row][i] = all(parts[row * (k / group) + g].zero);
        for (long first = g * group; first < (g + 1) * group; first += 4) {
            const uint8_t *here = packed + first / 4 * FOUR;
            ask_for(here + AHEAD, FOUR);
            unpack(here, weights);
            for (int row = 0; row < count; row++) {
                int32_t four;
                memcpy(&four, x + row * k + first, sizeof four);
                for (int i = 0; i < 4; i++)
                    sums[row][i] = add_products(sums[row][i], weights[i], all(four));
            }
        }
        for (int i = 0; i < 4; i++) {
            Ints pairs = load(factors + 2 * (g * n + i * LANES)); /* a scale below an offset */
            Floats scale = as_floats(up(pairs)), offset = as_floats(both(pairs, all((int32_t)0xffff0000)));
            for (int row = 0; row < count; row++) {
                const Part *part = parts + row * (k / group) + g;
                Floats partial = times_plus(offset, every(part->sum), results[row][i]);
                results[row][i] = times_plus(times(scale, every(part->step)), to_floats(sums[row][i]), partial);
            }
        }
    }
    for (int row = 0; row < count; row++) {
        float wide[BLOCK];
        for (int i = 0; i < 4; i++)
            store(wide + i * LANES, results[row][i]);
        for (int i = 0; i < BLOCK; i++)
            out[row * n + i] = narrowed(wide[i]);
    }
}

/* `multiply` for a count that the compiler knows, so that sums stay in registers. */
static void multiply_few(int count, long n, long k, long group, const int8_t *x, const Part *parts,
                         const uint8_t *packed, const Half *factors, Half *out) {
    switch (count) {
    case 1: multiply(1, n, k, group, x, parts, packed, factors, out); break;
    case 2: multiply(2, n, k, group, x, parts, packed, factors, out); break;
    case 3: multiply(3, n, k, group, x, parts, packed, factors, out); break;
    case 4: multiply(4, n, k, group, x, parts, packed, factors, out); break;
    case 5: multiply(5, n, k, group, x, parts, packed, factors, out); break;
    }
}

/* x [m, k] and out [m, n] in bfloat16; packed [n, k / 2]; factors [k / group, n, 2] in bfloat16, scale and
   offset. Scratch: rounded [m, k], parts [m, k / group]. n by the block, groups by 32. */
void int4_rows(long threads, long m, long n, long k, long group, const Half *x, const uint8_t *packed,
               const Half *factors, Half *out, int8_t *rounded, Part *parts) {
    long tiles = (m + MOST - 1) / MOST;
#pragma omp parallel num_threads(threads) if (m * n * k >= 200000)
    {
#pragma omp for schedule(static)
        for (long g = 0; g < m * k / group; g++)
            parts[g] = round_group(group, x + g * group, rounded + g * group);
#pragma omp for schedule(static)
        for (long first = 0; first < n; first += BLOCK)
            for (long tile = 0; tile < tiles; tile++) { /* of even sizes; the block stays in the cache */
                long row = m * tile / tiles, count = m * (tile + 1) / tiles - row;
                multiply_few(count, n, k, group, rounded + row * k, parts + row * (k / group),
                             packed + first * (k / 2), factors + 2 * first, out + row * n + first);
            }
    }
}

/* Four keys, or four dimensions of all values, of k levels, for `count` rows of x, which lie `k` apart. */
static inline __attribute__((always_inline)) void multiply_bytes(const int count, long k, const float *x,
                                                                 const int8_t *const levels[4],
                                                                 float sums[FEW][4]) {
    Floats parts[FEW][4];
    for (int row = 0; row < count; row++)
        for (int i = 0; i < 4; i++)
            parts[row][i] = every(0);
    long first = 0;
    for (; first + LANES <= k; first += LANES)
        for (int i = 0; i < 4; i++) {
            if (first % 64 == 0)
                ask_for(levels[i] + first + BYTES_AHEAD, 64);
            Floats numbers = to_floats(from_bytes(levels[i] + first));
            for (int row = 0; row < count; row++)
                parts[row][i] = times_plus(numbers, floats(x + row * k + first), parts[row][i]);
        }
    for (int row = 0; row < count; row++)
        for (int i = 0; i < 4; i++) {
            sums[row][i] = total(parts[row][i]);
            for (long rest = first; rest < k; rest++)
                sums[row][i] += x[row * k + rest] * levels[i][rest];
        }
}

/* x [heads, rows, k] in float32 with levels [n, k] of each head, whose rows lie `stride` and whose heads `next`
   apart -> out [heads, rows, n] in float32; times scales [heads, n] in bfloat16 if there are any, heads `far` apart. */
void int8_rows(long threads, long heads, long rows, long n, long k, const float *x, const int8_t *levels,
               long next, long stride, const Half *scales, long far, float *out) {
#pragma omp parallel for schedule(static) collapse(2) num_threads(threads) if (heads * n * k >= 200000)
    for (long head = 0; head < heads; head++)
        for (long first = 0; first < n; first += 4)
            for (long row = 0; row < rows; row += FEW) {
                const float *here = x + (head * rows + row) * k;
                const int8_t *with[4];
                float sums[FEW][4];
                long last = n - 1, count = rows - row < FEW ? rows - row : FEW;
                for (long i = 0; i < 4; i++)
                    with[i] = levels + head * next + (first + i < last ? first + i : last) * stride;
                switch (count) {
                case 1: multiply_bytes(1, k, here, with, sums); break;
                case 2: multiply_bytes(2, k, here, with, sums); break;
                case 3: multiply_bytes(3, k, here, with, sums); break;
                case 4: multiply_bytes(4, k, here, with, sums); break;
                }
                for (long r = 0; r < count; r++)
                    for (long i = 0; i < 4 && first + i < n; i++) {
                        float scale = scales ? wide(scales[head * far + first + i]) : 1;
                        out[(head * rows + row + r) * n + first + i] = sums[r][i] * scale;
                    }
            }
}
