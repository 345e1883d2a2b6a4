/* The products for AVX2. */

#if defined(__x86_64__) && defined(__GNUC__)

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define VARIANT avx2

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
