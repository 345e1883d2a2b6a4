/* bfloat16 numbers as bits, and vectors of LANES numbers of 32 bits, for one instruction set.

   The source file of an instruction set defines VARIANT, and which of WITH_AVX512 and WITH_VNNI
   it has. */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define JOIN_(name, variant) name##_##variant
#define JOIN(name, variant) JOIN_(name, variant)
#define NAMED(name) JOIN(name, VARIANT) /* of an exported function: name_avx2 and so on */
#define INLINED static inline __attribute__((always_inline))

typedef uint16_t Half;

INLINED float widened(Half bits) {
    uint32_t whole = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &whole, sizeof value);
    return value;
}

/* Round to nearest, ties to even; NaN stays NaN. */
INLINED Half narrowed(float value) {
    uint32_t whole;
    memcpy(&whole, &value, sizeof whole);
    uint32_t rounded = (whole + 0x7fff + (whole >> 16 & 1)) >> 16;
    return value == value ? rounded : 0x7fc0;
}

INLINED long least(long a, long b) { return a < b ? a : b; }

/* Prefetch into the caches; addresses past the end of an array are harmless.
   Without prefetching a core reads a quarter less, or half. GCC drops calls to a function like this. */
INLINED void prefetch(const void *start, long bytes) {
    for (long i = 0; i < bytes; i += 64)
        _mm_prefetch((const char *)start + i, _MM_HINT_T0);
}

#ifdef WITH_AVX512

enum { LANES = 16 };
typedef __m512i Ints;
typedef __m512 Floats;

INLINED Ints load(const void *from) { return _mm512_loadu_si512(from); }
INLINED Ints all(int32_t value) { return _mm512_set1_epi32(value); }
INLINED Ints both(Ints a, Ints b) { return _mm512_and_si512(a, b); }
INLINED Ints high_halves(Ints a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), all(0x0f0f0f0f)); }
INLINED Ints shifted_up(Ints a) { return _mm512_slli_epi32(a, 16); }
INLINED Floats as_floats(Ints bits) { return _mm512_castsi512_ps(bits); }
INLINED Floats to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }
INLINED Floats every(float value) { return _mm512_set1_ps(value); }
INLINED Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
INLINED Floats times_plus(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINED void store(float *to, Floats a) { _mm512_storeu_ps(to, a); }
INLINED Floats floats(const float *from) { return _mm512_loadu_ps(from); }
INLINED Ints from_bytes(const int8_t *from) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)); }
INLINED __m256 folded(Floats a) {
    __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1));
    return _mm256_add_ps(_mm512_castps512_ps256(a), high);
}

INLINED Ints from_unsigned_bytes(const uint8_t *from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from));
}
INLINED Floats plus(Floats a, Floats b) { return _mm512_add_ps(a, b); }

/* Add four products of numbers in 0..15 with signed bytes to each sum; up to eight times, then `small_totals`. */
INLINED Ints add_small_products(Ints sums, Ints weights, Ints x) {
#ifdef WITH_VNNI
    return _mm512_dpbusd_epi32(sums, weights, x);
#else
    return _mm512_add_epi16(sums, _mm512_maddubs_epi16(weights, x)); /* 8 * 2 * 15 * 127 is below 2^15 */
#endif
}
INLINED Ints small_totals(Ints sums) {
#ifdef WITH_VNNI
    return sums;
#else
    return _mm512_madd_epi16(sums, _mm512_set1_epi16(1));
#endif
}
/* Add four products of numbers in -127..127 to each 32-bit sum. */
INLINED Ints add_signed_products(Ints sums, Ints weights, Ints x) {
    Ints sizes = _mm512_abs_epi8(weights);
    x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(weights), all(0), x);
#ifdef WITH_VNNI
    return _mm512_dpbusd_epi32(sums, sizes, x);
#else
    return _mm512_add_epi32(sums, _mm512_madd_epi16(_mm512_maddubs_epi16(sizes, x), _mm512_set1_epi16(1)));
#endif
}

/* Make vectors of bfloat16 from a vector of low bytes and one of high bytes. */
INLINED void merge_bytes(Ints low, Ints high, Ints out[2]) {
    out[0] = _mm512_unpacklo_epi8(low, high);
    out[1] = _mm512_unpackhi_epi8(low, high);
}
/* Look up each of the indices 0..15 in a table of 16 bytes, which every 128 bits repeat. */
INLINED Ints look_up(Ints table, Ints indices) { return _mm512_shuffle_epi8(table, indices); }
/* Unpack 64 half bytes to bytes: the low halves of 32 bytes, then the high ones. */
INLINED void open_halves(const uint8_t *from, Ints out[1]) {
    __m256i pairs = _mm256_loadu_si256((const __m256i *)from);
    Ints apart = _mm512_inserti64x4(_mm512_castsi256_si512(pairs), _mm256_srli_epi16(pairs, 4), 1);
    out[0] = both(apart, all(0x0f0f0f0f));
}

#else

enum { LANES = 8 };
typedef __m256i Ints;
typedef __m256 Floats;

INLINED Ints load(const void *from) { return _mm256_loadu_si256(from); }
INLINED Ints all(int32_t value) { return _mm256_set1_epi32(value); }
INLINED Ints both(Ints a, Ints b) { return _mm256_and_si256(a, b); }
INLINED Ints high_halves(Ints a) { return _mm256_and_si256(_mm256_srli_epi16(a, 4), all(0x0f0f0f0f)); }
INLINED Ints shifted_up(Ints a) { return _mm256_slli_epi32(a, 16); }
INLINED Floats as_floats(Ints bits) { return _mm256_castsi256_ps(bits); }
INLINED Floats to_floats(Ints a) { return _mm256_cvtepi32_ps(a); }
INLINED Floats every(float value) { return _mm256_set1_ps(value); }
INLINED Floats times(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
INLINED Floats times_plus(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
INLINED void store(float *to, Floats a) { _mm256_storeu_ps(to, a); }
INLINED Floats floats(const float *from) { return _mm256_loadu_ps(from); }
INLINED Ints from_bytes(const int8_t *from) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)); }
INLINED __m256 folded(Floats a) { return a; }

INLINED Ints from_unsigned_bytes(const uint8_t *from) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from));
}
INLINED Floats plus(Floats a, Floats b) { return _mm256_add_ps(a, b); }

INLINED Ints add_small_products(Ints sums, Ints weights, Ints x) {
#ifdef WITH_VNNI
    return _mm256_dpbusd_avx_epi32(sums, weights, x);
#else
    return _mm256_add_epi16(sums, _mm256_maddubs_epi16(weights, x));
#endif
}
INLINED Ints small_totals(Ints sums) {
#ifdef WITH_VNNI
    return sums;
#else
    return _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
#endif
}
INLINED Ints add_signed_products(Ints sums, Ints weights, Ints x) {
    Ints sizes = _mm256_abs_epi8(x), signed_weights = _mm256_sign_epi8(weights, x);
#ifdef WITH_VNNI
    return _mm256_dpbusd_avx_epi32(sums, sizes, signed_weights);
#else
    Ints pairs = _mm256_maddubs_epi16(sizes, signed_weights); /* at most 2 * 127 * 127 */
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}

INLINED void merge_bytes(Ints low, Ints high, Ints out[2]) {
    out[0] = _mm256_unpacklo_epi8(low, high);
    out[1] = _mm256_unpackhi_epi8(low, high);
}
INLINED Ints look_up(Ints table, Ints indices) { return _mm256_shuffle_epi8(table, indices); }
INLINED void open_halves(const uint8_t *from, Ints out[2]) {
    Ints pairs = load(from);
    out[0] = both(pairs, all(0x0f0f0f0f));
    out[1] = high_halves(pairs);
}

#endif

/* Sum each of four vectors. */
INLINED __m128 totals(const Floats a[4]) {
    __m256 twos = _mm256_hadd_ps(folded(a[0]), folded(a[1])), others = _mm256_hadd_ps(folded(a[2]), folded(a[3]));
    __m256 fours = _mm256_hadd_ps(twos, others);
    return _mm_add_ps(_mm256_castps256_ps128(fours), _mm256_extractf128_ps(fours, 1));
}
