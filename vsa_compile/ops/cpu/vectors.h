// Vectors of f32, one lane for each query (or place in a row), on PyTorch's own at::vec. Notation: kernel.cpp.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <type_traits>

namespace vsa {

using at::BFloat16;
using at::Half;
using V = at::vec::Vectorized<float>;

constexpr int64_t kLanes = V::size();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kLog2e = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

inline V load_lanes(const float* from) { return V::loadu(from); }

template <typename T>
V load_lanes(const T* from) {
  V lanes;
  at::vec::load_to_float<T>(from, lanes);
  return lanes;
}

inline void store_lanes(float* to, V x) { x.store(to); }

template <typename T>
void store_lanes(T* to, V x) {
  at::vec::convert_from_float<T>(x, x).store(to, static_cast<int>(kLanes));
}

// The higher of the two, lane by lane; `top` where x is NaN.
inline V raise(V top, V x) { return at::vec::clamp_min(top, x); }

// At most 0, to which scores are rounded that are the highest, and huge: no weight is above 1. NaN stays NaN.
inline V below_highest(V x) { return at::vec::clamp_max(x, V(0.f)); }

// x where `condition`, else 0: also where x is NaN.
inline V only_where(V condition, V x) { return V::blendv(V(0.f), x, condition); }

}  // namespace vsa

#ifdef CPU_CAPABILITY_AVX512
#include "avx512.h"
#endif

namespace vsa {

#ifndef CPU_CAPABILITY_AVX512
// Splits x <= 127 into an integer n and a rest in [-1/2, 1/2]; times(y) is y * 2^n.
struct Power {
  V shifted, rest;

  explicit Power(V x) {
    // Adding 1.5 * 2^23 leaves the nearest integer in the last bits, here with the bias of exponents.
    const V shifter(12582912.f + 127.f);
    x = at::vec::clamp_min(x, V(-127.f));
    shifted = x + shifter;
    rest = x - (shifted - shifter);
  }

  V times(V y) const {  // 0 for -127 and below
    using Bits = at::vec::Vectorized<int32_t>;
    return y * at::vec::cast<float, int32_t>(at::vec::cast<int32_t, float>(shifted) << Bits(23));
  }
};
#endif

// 2^x for x <= 127; 0 below the normal numbers; NaN for NaN. Relative error 7.5e-8, or 7.5e-5 if the
// result is rounded to bf16 anyway (to 2e-3). Coefficients: minimax on [-1/2, 1/2].
template <typename T>
inline V exp2_lanes(V x) {
  const Power power(x);
  V y;
  if constexpr (std::is_same_v<T, float>) {
    y = V(0.001327647129073739f);
    y = at::vec::fmadd(y, power.rest, V(0.009675540961325169f));
    y = at::vec::fmadd(y, power.rest, V(0.05550713092088699f));
    y = at::vec::fmadd(y, power.rest, V(0.24022120237350464f));
    y = at::vec::fmadd(y, power.rest, V(0.6931469440460205f));
    y = at::vec::fmadd(y, power.rest, V(1.0000001192092896f));
  } else {
    y = V(0.0551716648042202f);
    y = at::vec::fmadd(y, power.rest, V(0.2426111251115799f));
    y = at::vec::fmadd(y, power.rest, V(0.6932609677314758f));
    y = at::vec::fmadd(y, power.rest, V(0.9999280571937561f));
  }
  return power.times(y);
}

// Transposes a square: its halves are interleaved once for each bit of a row index.
inline void transpose_square(V (&x)[kLanes]) {
  V y[kLanes];
  for (int64_t bit = 1; bit < kLanes; bit *= 2) {
    for (int64_t i = 0; i < kLanes / 2; ++i)
      std::tie(y[2 * i], y[2 * i + 1]) = at::vec::interleave2(x[i], x[i + kLanes / 2]);
    for (int64_t i = 0; i < kLanes; ++i) x[i] = y[i];
  }
}

// to (columns, stride) = from (rows, columns)^T, columns a multiple of kLanes; rows of `from` are adjacent.
inline void transpose(const float* from, int64_t rows, int64_t columns, float* to, int64_t stride) {
  for (int64_t r = 0; r < rows; r += kLanes) {
    const int64_t height = std::min(kLanes, rows - r);
    for (int64_t c = 0; c < columns; c += kLanes) {
      const float* block = from + r * columns + c;
      V x[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) x[i] = i < height ? load_lanes(block + i * columns) : V(0.f);
      transpose_square(x);
      float* turned = to + c * stride + r;
      if (height == kLanes)
        for (int64_t i = 0; i < kLanes; ++i) store_lanes(turned + i * stride, x[i]);
      else
        for (int64_t i = 0; i < kLanes; ++i) x[i].store(turned + i * stride, static_cast<int>(height));
    }
  }
}

}  // namespace vsa
