/* The products for AVX-512. */

#if defined(__x86_64__) && defined(__GNUC__)

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw")
#endif

#define VARIANT avx512
#define WITH_AVX512

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
