/* The products for AVX2 with AVX-VNNI. */

#if defined(__x86_64__) && defined(__GNUC__) && (defined(__clang__) || __GNUC__ >= 11)

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,avxvnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avxvnni")
#endif

#define VARIANT avx_vnni
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
