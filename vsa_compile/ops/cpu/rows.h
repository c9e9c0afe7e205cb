// Moves rows of tokens into and out of packed memory, and scales them there. Notation: kernel.cpp.
#pragma once

#include "call.h"
#include "product.h"
#include "vectors.h"

namespace vsa {

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
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) store_lanes(to + d, load_lanes(from + d));
  for (; d < width; ++d) to[d] = static_cast<To>(static_cast<float>(from[d]));
}

// Rows of a head lie far apart, in an order that no processor predicts.
template <typename From>
void prefetch_row(const From* from, int64_t width) {
#ifdef __GNUC__  // other compilers have no prefetch for every processor
  const char* row = reinterpret_cast<const char*>(from);
  for (int64_t byte = 0; byte < width * static_cast<int64_t>(sizeof(From)); byte += 64) __builtin_prefetch(row + byte);
#endif
}

constexpr int64_t kRowsAhead = 8;  // rows that are copied while one load is under way

// The rows of group g of a head, as f32; zero past the width, and in rows from the group's size to `rows`.
inline void gather(const Call& c, const View& view, Head at, const Groups& groups, int64_t g,
                   int64_t rows, float* to) {
  with_head(c, view, at, [&](const auto* from) {
    for (int64_t i = 0; i < groups.size(g); ++i) {
      if (groups.start[g] + i + kRowsAhead < groups.start.back())  // it may be in a later group
        prefetch_row(from + groups.tokens(g)[i + kRowsAhead] * view.token, c.width);
      copy_row(from + groups.tokens(g)[i] * view.token, c.width, to + i * c.packed_width);
    }
  });
  if (c.width < c.packed_width)
    for (float* row = to; row < to + groups.size(g) * c.packed_width; row += c.packed_width)
      std::fill(row + c.width, row + c.packed_width, 0.f);
  std::fill(to + groups.size(g) * c.packed_width, to + rows * c.packed_width, 0.f);
}

inline void scatter(const Call& c, const View& view, Head at, const Groups& groups, int64_t g,
                    const float* from) {
  with_head(c, view, at, [&](auto* to) {
    for (int64_t i = 0; i < groups.size(g); ++i)
      copy_row(from + i * c.packed_width, c.width, to + groups.tokens(g)[i] * view.token);
  });
}

// The rows of a group as a left operand (n, D).
template <typename T>
void gather_left(const Call& c, const View& view, Head at, const Groups& groups, int64_t g, float* scratch,
                 T* to) {
  float* rows = kConverts<T> ? scratch : reinterpret_cast<float*>(to);
  gather(c, view, at, groups, g, groups.rows(g), rows);
  if constexpr (kConverts<T>) as_left(rows, groups.rows(g) * c.packed_width, to);
}

inline void scale_column(float* column, int64_t rows, int64_t stride, V factor) {
  for (float* at = column; at < column + rows * stride; at += stride)
    store_lanes(at, load_lanes(at) * factor);
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
