/* Detect which variants of the products this processor can run; a build for another processor than x86-64 has none. */

#if defined(__x86_64__) && defined(__GNUC__)

#include <cpuid.h>

enum { AVX2 = 1, AVX_VNNI = 2, AVX512 = 4, AVX512_VNNI = 8 };

static int has_avx_vnni(void) {
#if defined(__clang__) || __GNUC__ >= 11
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
#else
    return 0; /* avx_vnni.c is empty */
#endif
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
