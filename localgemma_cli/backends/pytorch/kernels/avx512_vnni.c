/* The products for AVX-512 with VNNI. */

#if defined(__x86_64__) && defined(__GNUC__)

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vnni")
#endif

#define VARIANT avx512_vnni
#define WITH_AVX512
#define WITH_VNNI

#include "numbers.h"

#include "bfloat16.h"
#include "grouped.h"
#include "int8.h"
#include "quantize.h"
#include "step.h"

#ifdef __clang__
#pragma clang attribute pop
#endif

#endif
