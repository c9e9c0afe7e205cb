// Matrix products and the layouts of their operands. Notation: kernel.cpp.
#pragma once

#include "call.h"
#include "vectors.h"

#include <ATen/native/CPUBlas.h>

#include <cstring>

namespace vsa {

namespace blas = at::native::cpublas;

#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
constexpr bool kBrgemm = true;  // oneDNN may take products
#else
constexpr bool kBrgemm = false;
#endif

#ifdef CPU_CAPABILITY_AVX512
constexpr bool kBrgemmBF16 = true;
#else
constexpr bool kBrgemmBF16 = false;  // only with AVX-512; otherwise operands become f32
#endif

template <typename T>
constexpr bool kConverts = !std::is_same_v<T, float>;  // whether operands are converted from f32

// Rows of keys, or columns of queries, that a product needs: bf16 is multiplied in pairs.
template <typename T>
int64_t padded(int64_t n) {
  return kConverts<T> ? round_up(n, 2) : n;
}

// Whether oneDNN multiplies operands of this type here, which is tried once. Where a user switches oneDNN off,
// torch multiplies in another way.
template <typename T>
bool takes_brgemm() {
  if constexpr (!kBrgemm || (kConverts<T> && !kBrgemmBF16)) return false;
  static const bool taken = [] {
    try {
      alignas(64) T zeros[16 * 16] = {};
      alignas(64) float product[16 * 16];
      blas::brgemm(16, 16, 16, 16, 16, 16, false, zeros, zeros, product, kConverts<T>);
      blas::brgemm_release();
      return true;
    } catch (const std::exception&) {
      return false;
    }
  }();
  return taken;
}

// --- A product of our own, where there is no brgemm -------------------------------------------------

// C (R, Q vectors) = [C +] A (R, k) B (k, Q vectors), in registers.
template <int R, int Q>
void multiply_block(int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, bool add) {
  V sum[R][Q];
  for (int r = 0; r < R; ++r)
    for (int q = 0; q < Q; ++q) sum[r][q] = add ? V::loadu(c + r * ldb + q * kLanes) : V(0.f);
  for (int64_t i = 0; i < k; ++i) {
    V right[Q];
    for (int q = 0; q < Q; ++q) right[q] = V::loadu(b + i * ldb + q * kLanes);
    for (int r = 0; r < R; ++r) {
      V left(a[r * lda + i]);
      for (int q = 0; q < Q; ++q) sum[r][q] = at::vec::fmadd(left, right[q], sum[r][q]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int q = 0; q < Q; ++q) sum[r][q].store(c + r * ldb + q * kLanes);
}

template <int Q>
void multiply_columns(int64_t m, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                      float* c, bool add) {
  int64_t r = 0;
  for (; r + 4 <= m; r += 4) multiply_block<4, Q>(k, a + r * lda, lda, b, ldb, c + r * ldb, add);
  for (; r < m; ++r) multiply_block<1, Q>(k, a + r * lda, lda, b, ldb, c + r * ldb, add);
}

inline void multiply_here(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                          float* c, bool add) {
  constexpr int kVectors = 3;  // 4 x 3 sums, 3 right vectors and a left one fill 16 registers
  int64_t q = 0;
  for (; q + kVectors * kLanes <= n; q += kVectors * kLanes)
    multiply_columns<kVectors>(m, k, a, lda, b + q, n, c + q, add);
  for (; q < n; q += kLanes) multiply_columns<1>(m, k, a, lda, b + q, n, c + q, add);
}

// C (m, n) f32 = [C +] A (m, k) B (k, n), rows of A `lda` apart; B and C are dense; n a multiple of kLanes.
template <typename T>
void multiply(const Call& c, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, float* to,
              bool add) {
  if constexpr (kConverts<T>) blas::brgemm(m, n, k, lda, n, n, add, a, b, to, true);
  else if (kBrgemm && c.brgemm) blas::brgemm(m, n, k, lda, n, n, add, a, b, to, false);
  else multiply_here(m, n, k, a, lda, b, to, add);
}

// --- Operands -------------------------------------------------------------------------------------

// `f32` if operands are f32, else `converted`.
template <typename T>
T* operand(float* f32, T* converted) {
  if constexpr (kConverts<T>) return converted;
  else return f32;
}

// As a left operand: plain rows.
inline void as_left(const float* from, int64_t elements, float* to) {
  std::memcpy(to, from, elements * sizeof(float));
}

// Two rows of a right operand, `stride` columns wide.
inline void store_pair(float* to, int64_t stride, V even, V odd) {
  store_lanes(to, even);
  store_lanes(to + stride, odd);
}

// As a right operand: (rows, columns), pairs of rows interleaved in bf16; rows even there.
inline void as_right(const float* from, int64_t rows, int64_t columns, float* to) {
  as_left(from, rows * columns, to);
}

#ifdef CPU_CAPABILITY_AVX512
inline void as_left(const float* from, int64_t elements, BFloat16* to) {
  int64_t i = 0;
  for (; i + kLanes <= elements; i += kLanes) store_lanes(to + i, load_lanes(from + i));
  for (; i < elements; ++i) to[i] = from[i];
}

inline void store_pair(BFloat16* to, int64_t, V even, V odd) { store_pair(to, even, odd); }

inline void as_right(const float* from, int64_t rows, int64_t columns, BFloat16* to) {
  for (int64_t r = 0; r < rows; r += 2)
    for (int64_t c = 0; c < columns; c += kLanes) {
      const float* even = from + r * columns + c;
      store_pair(to + r * columns + 2 * c, load_lanes(even), load_lanes(even + columns));
    }
}
#endif

// from (rows, columns)^T as a left operand (columns, rows).
template <typename T>
void transpose_left(const float* from, int64_t rows, int64_t columns, float* scratch, T* to) {
  float* turned = kConverts<T> ? scratch : reinterpret_cast<float*>(to);
  transpose(from, rows, columns, turned, rows);
  if constexpr (kConverts<T>) as_left(turned, rows * columns, to);
}

// from (rows, columns)^T as a right operand (columns, rows); rows a multiple of kLanes.
template <typename T>
void transpose_right(const float* from, int64_t rows, int64_t columns, float* scratch, T* to) {
  float* turned = kConverts<T> ? scratch : reinterpret_cast<float*>(to);
  transpose(from, rows, columns, turned, rows);
  if constexpr (kConverts<T>) as_right(turned, columns, rows, to);
}

}  // namespace vsa
