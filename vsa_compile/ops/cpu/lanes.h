// Vectors of 16 queries (or widths), and the layouts that brgemm takes. Notation: kernel.cpp.
#pragma once

#include "call.h"

#include <ATen/native/CPUBlas.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

namespace vsa {

using at::BFloat16;
using at::Half;
namespace blas = at::native::cpublas;

constexpr int64_t kLanes = 16;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kLog2e = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

// 2^x for x <= 127; 0 below the normal numbers and outside `lanes`; NaN for NaN. Relative error 7.5e-8,
// or 7.5e-5 if the result is rounded to bf16 anyway (to 2e-3). Coefficients: minimax on [-1/2, 1/2].
template <typename T>
inline __m512 exp2_lanes(__m512 x, __mmask16 lanes = 0xffff) {
  __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 rest = _mm512_sub_ps(x, whole);
  __m512 y;
  if constexpr (std::is_same_v<T, float>) {
    y = _mm512_set1_ps(0.001327647129073739f);
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.009675540961325169f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.05550713092088699f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.24022120237350464f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.6931469440460205f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(1.0000001192092896f));
  } else {
    y = _mm512_set1_ps(0.0551716648042202f);
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.2426111251115799f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.6932609677314758f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(0.9999280571937561f));
  }
  __mmask16 not_tiny = _mm512_mask_cmp_ps_mask(lanes, x, _mm512_set1_ps(-126.f), _CMP_NLT_UQ);
  return _mm512_maskz_scalef_ps(not_tiny, y, whole);
}

// Two vectors of f32 as bf16, nearest even, lane by lane: low half of each 32 bits from `even`.
inline __m512i interleave_bf16(__m512 even, __m512 odd) {
#ifdef __AVX512BF16__
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                         23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even)));
#else
  auto rounded = [](__m512 x) {
    __m512i bits = _mm512_castps_si512(x);
    __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
    return _mm512_mask_mov_epi32(up, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
  };
  return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(rounded(even), 16), rounded(odd));
#endif
}

inline void store_lanes(float* to, __m512 x) { _mm512_storeu_ps(to, x); }

inline void store_lanes(BFloat16* to, __m512 x) {
#ifdef __AVX512BF16__
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
#else
  __m512i paired = interleave_bf16(x, _mm512_setzero_ps());
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(paired));
#endif
}

inline void store_lanes(Half* to, __m512 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

inline __m512 load_lanes(const float* from) { return _mm512_loadu_ps(from); }

inline __m512 load_lanes(const BFloat16* from) {
  __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline __m512 load_lanes(const Half* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// Two rows of a right operand, `stride` columns wide.
inline void store_pair(float* to, int64_t stride, __m512 even, __m512 odd) {
  store_lanes(to, even);
  store_lanes(to + stride, odd);
}

inline void store_pair(BFloat16* to, int64_t, __m512 even, __m512 odd) {
  _mm512_storeu_si512(to, interleave_bf16(even, odd));
}

// Transpose 16 x 16 in registers: pairs, quadruples, then 128-bit blocks.
inline void transpose16(__m512 (&x)[16]) {
  __m512 y[16];
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      __m512d a = _mm512_castps_pd(y[i + j]), b = _mm512_castps_pd(y[i + 2 + j]);
      x[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      x[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  // x[4 q + r] now holds, in 128-bit block b, column 4 b + r of rows 4 q .. 4 q + 3.
  for (int r = 0; r < 4; ++r) {
    __m512 low01 = _mm512_shuffle_f32x4(x[r], x[4 + r], 0x44);
    __m512 high01 = _mm512_shuffle_f32x4(x[r], x[4 + r], 0xee);
    __m512 low23 = _mm512_shuffle_f32x4(x[8 + r], x[12 + r], 0x44);
    __m512 high23 = _mm512_shuffle_f32x4(x[8 + r], x[12 + r], 0xee);
    y[r] = _mm512_shuffle_f32x4(low01, low23, 0x88);
    y[4 + r] = _mm512_shuffle_f32x4(low01, low23, 0xdd);
    y[8 + r] = _mm512_shuffle_f32x4(high01, high23, 0x88);
    y[12 + r] = _mm512_shuffle_f32x4(high01, high23, 0xdd);
  }
  for (int i = 0; i < 16; ++i) x[i] = y[i];
}

// to (columns, stride) = from (rows, columns)^T, columns a multiple of 16; to's tail to 16 is not written.
inline void transpose(const float* from, int64_t rows, int64_t columns, float* to, int64_t stride) {
  for (int64_t r = 0; r < rows; r += kLanes) {
    int64_t here = std::min(kLanes, rows - r);
    __mmask16 mask = static_cast<__mmask16>((1u << here) - 1);
    for (int64_t c = 0; c < columns; c += kLanes) {
      __m512 block[16];
      for (int64_t i = 0; i < 16; ++i)
        block[i] = i < here ? _mm512_loadu_ps(from + (r + i) * columns + c) : _mm512_setzero_ps();
      transpose16(block);
      for (int64_t i = 0; i < 16; ++i) _mm512_mask_storeu_ps(to + (c + i) * stride + r, mask, block[i]);
    }
  }
}

// --- Operands of brgemm ---------------------------------------------------------------------------

template <typename T>
constexpr bool kConverts = !std::is_same_v<T, float>;  // operands are not the f32 numbers themselves

// `f32` where it can be the operand itself, else `converted`.
template <typename T>
T* operand(float* f32, T* converted) {
  if constexpr (kConverts<T>) return converted;
  else return f32;
}

// C (m, n) f32 = [C +] A (m, k) B (k, n), rows of A `lda` apart; B and C are dense.
template <typename T>
void multiply(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, float* c, bool add) {
  blas::brgemm(m, n, k, lda, n, n, add, a, b, c, kConverts<T>);
}

// As a left operand: plain rows.
inline void as_left(const float* from, int64_t elements, float* to) {
  std::memcpy(to, from, elements * sizeof(float));
}

inline void as_left(const float* from, int64_t elements, BFloat16* to) {
  int64_t i = 0;
  for (; i + kLanes <= elements; i += kLanes) store_lanes(to + i, load_lanes(from + i));
  for (; i < elements; ++i) to[i] = from[i];
}

// As a right operand: (rows, columns), pairs of rows interleaved in bf16; rows even, columns % 16 = 0.
inline void as_right(const float* from, int64_t rows, int64_t columns, float* to) {
  as_left(from, rows * columns, to);
}

inline void as_right(const float* from, int64_t rows, int64_t columns, BFloat16* to) {
  for (int64_t r = 0; r < rows; r += 2)
    for (int64_t c = 0; c < columns; c += kLanes) {
      const float* even = from + r * columns + c;
      store_pair(to + r * columns + 2 * c, columns, load_lanes(even), load_lanes(even + columns));
    }
}

// Calls f with the typed start of head (b, h) of a view.
template <typename F>
void with_head(const Call& c, const View& view, Head at, F f) {
  int64_t offset = at.batch * view.batch + at.index * view.head;
  if (c.dtype == kFloat32) f(static_cast<float*>(view.data) + offset);
  if (c.dtype == kBFloat16) f(static_cast<BFloat16*>(view.data) + offset);
  if (c.dtype == kFloat16) f(static_cast<Half*>(view.data) + offset);
}

template <typename From, typename To>
void copy_row(const From* from, int64_t width, To* to) {
  for (int64_t d = 0; d < width; d += kLanes) store_lanes(to + d, load_lanes(from + d));
}

// The rows of group g of a head, as f32; rows from the group's size to `padded` are zero.
inline void gather(const Call& c, const View& view, Head at, const Groups& groups, int64_t g,
                   int64_t padded, float* to) {
  with_head(c, view, at, [&](const auto* from) {
    for (int64_t i = 0; i < groups.size(g); ++i)
      copy_row(from + groups.tokens(g)[i] * view.token, c.width, to + i * c.width);
  });
  std::fill(to + groups.size(g) * c.width, to + padded * c.width, 0.f);
}

inline void scatter(const Call& c, const View& view, Head at, const Groups& groups, int64_t g,
                    const float* from) {
  with_head(c, view, at, [&](auto* to) {
    for (int64_t i = 0; i < groups.size(g); ++i)
      copy_row(from + i * c.width, c.width, to + groups.tokens(g)[i] * view.token);
  });
}

// The rows of a group as a left operand (n, D).
template <typename T>
void gather_left(const Call& c, const View& view, Head at, const Groups& groups, int64_t g, float* scratch,
                 T* to) {
  float* rows = kConverts<T> ? scratch : reinterpret_cast<float*>(to);
  gather(c, view, at, groups, g, groups.rows(g), rows);
  if constexpr (kConverts<T>) as_left(rows, groups.rows(g) * c.width, to);
}

// from (rows, columns)^T as a left operand (columns, rows).
template <typename T>
void transpose_left(const float* from, int64_t rows, int64_t columns, float* scratch, T* to) {
  float* turned = kConverts<T> ? scratch : reinterpret_cast<float*>(to);
  transpose(from, rows, columns, turned, rows);
  if constexpr (kConverts<T>) as_left(turned, rows * columns, to);
}

// from (rows, columns)^T as a right operand (columns, rows); rows a multiple of 16.
template <typename T>
void transpose_right(const float* from, int64_t rows, int64_t columns, float* scratch, T* to) {
  float* turned = kConverts<T> ? scratch : reinterpret_cast<float*>(to);
  transpose(from, rows, columns, turned, rows);
  if constexpr (kConverts<T>) as_right(turned, columns, rows, to);
}

inline void scale_column(float* column, int64_t rows, int64_t stride, __m512 factor) {
  for (float* at = column; at < column + rows * stride; at += stride)
    store_lanes(at, _mm512_mul_ps(load_lanes(at), factor));
}

// Scores are |scale| log2(e) q k for q with the sign of scale, so that the highest product is the
// highest score. A scale of 0 zeroes q and leaves the products alone, for 0 * -infinity is NaN.
inline float score_factor(double scale) {
  return scale == 0. ? 1.f : static_cast<float>(std::abs(scale) * kLog2e);
}

inline void take_sign(float* queries, int64_t elements, double scale) {
  if (scale > 0.) return;
  float sign = scale < 0. ? -1.f : 0.f;
  for (int64_t i = 0; i < elements; ++i) queries[i] *= sign;
}

}  // namespace vsa
