/* Detect which variants of the products this processor can run; a build for another processor than x86-64 has none. */

#if defined(__x86_64__) && defined(__GNUC__)

#include <cpuid.h>
#include <stdint.h>

enum { AVX2 = 1, AVX_VNNI = 2, AVX512 = 4, AVX512_VNNI = 8 };

static int has_avx_vnni(void) {
#if defined(__clang__) || __GNUC__ >= 11
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
#else
    return 0; /* avx_vnni.c is empty */
#endif
}

/* See bfloat16.h; made here, in code that every processor can run. */
uint8_t high_bytes[255][64] __attribute__((visibility("hidden"), aligned(64)));

__attribute__((constructor)) static void make_high_bytes(void) {
    for (int base = 0; base < 255; base++)
        for (int i = 0; i < 64; i++)
            high_bytes[base][i] = (uint8_t)((i & 8) << 4 | ((base + (i & 7)) & 127));
}

int runnable_variants(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return 0;
    int found = AVX2;
    if (has_avx_vnni())
        found |= AVX_VNNI;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) {
        found |= AVX512;
        if (__builtin_cpu_supports("avx512vnni"))
            found |= AVX512_VNNI;
    }
    return found;
}

#else

int runnable_variants(void) { return 0; }

#endif
