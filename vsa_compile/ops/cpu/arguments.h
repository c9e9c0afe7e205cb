// Checks the operators' arguments before any pointer is followed, and makes a Call. Notation: kernel.cpp.
#pragma once

#include "call.h"
#include "product.h"
#include "vectors.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <initializer_list>
#include <optional>
#include <vector>

namespace vsa {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Python has normally checked the arguments already; this protects direct calls of the operators.
#define VSA_CHECK(condition, ...) STD_TORCH_CHECK(condition, "vsa_compile CPU kernel: ", __VA_ARGS__)

inline bool has_shape(const Tensor& x, std::initializer_list<int64_t> shape) {
  auto sizes = x.sizes();
  return std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end());
}

// A tensor that the kernel walks by its own arithmetic.
inline void check_dense(const char* name, const Tensor& x, ScalarType type, std::initializer_list<int64_t> shape) {
  VSA_CHECK(x.is_cpu() && x.scalar_type() == type, name, " has a wrong type or device");
  VSA_CHECK(has_shape(x, shape), name, " has a wrong shape");
  VSA_CHECK(x.is_contiguous(), name, " must be contiguous");
}

// Axes `heads` and `token` of a tensor (B, heads, N, D) or (B, N, heads, D).
inline View as_view(const char* name, const Tensor& x, ScalarType type, std::initializer_list<int64_t> shape,
                    int heads, int token) {
  VSA_CHECK(x.is_cpu() && x.scalar_type() == type, name, " has another type or device than q");
  VSA_CHECK(has_shape(x, shape), name, " has a wrong shape");
  VSA_CHECK(x.size(3) == 1 || x.stride(3) == 1, name, " must be contiguous in its last dimension");
  return {x.data_ptr(), x.stride(0), x.stride(heads), x.stride(token)};
}

inline void set_box(const char* name, const std::vector<int64_t>& from, int64_t (&to)[3]) {
  VSA_CHECK(from.size() == 3, name, " needs 3 numbers");
  for (int axis = 0; axis < 3; ++axis) {
    VSA_CHECK(from[axis] > 0 && from[axis] < (int64_t{1} << 20), name, " must be positive and below 2^20");
    to[axis] = from[axis];
  }
}

inline void check_raster(const char* name, const Raster& video, int64_t start, int64_t tokens) {
  VSA_CHECK(start >= 0 && video.tokens() <= tokens && start <= tokens - video.tokens(), "the video of ",
            video.tokens(), " ", name, " at ", start, " does not fit in ", tokens, " tokens");
  int64_t most = video.tile[0] * video.tile[1] * video.tile[2];
  VSA_CHECK(most <= kMostTokens, "a tile of ", most, " ", name, ", but at most ", kMostTokens);
}

inline Dtype dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return kFloat32;
    case ScalarType::BFloat16: return kBFloat16;
    case ScalarType::Half: return kFloat16;
    default: VSA_CHECK(false, "q must be float32, bfloat16 or float16"); return kFloat32;
  }
}

namespace {  // Tensor has hidden visibility, and so must what holds one

struct Lists {  // the arguments that attend and attend_backward share
  const Tensor &tiles, &counts;
  const std::optional<Tensor>& key_padding;
  const std::vector<int64_t>&grid, &tile, &q_grid, &q_tile;
  int64_t q_start, kv_start;
  double scale;
};

inline Call make_call(const Tensor& q, const Tensor& k, const Tensor& v, const Lists& lists) {
  Call c{};
  VSA_CHECK(q.dim() == 4 && k.dim() == 4, "q, k and v must have 4 dimensions");
  c.batch = q.size(0), c.heads = q.size(1), c.q_tokens = q.size(2), c.width = q.size(3);
  c.kv_heads = k.size(1), c.kv_tokens = k.size(2);
  VSA_CHECK(q.numel() > 0 && k.numel() > 0, "q and k must not be empty");
  VSA_CHECK(c.heads % c.kv_heads == 0, "the heads of k must divide those of q");
  c.packed_width = round_up(c.width, kLanes);
  c.dtype = dtype_of(q);
  c.brgemm = takes_brgemm<float>();
  ScalarType type = q.scalar_type();
  c.q = as_view("q", q, type, {c.batch, c.heads, c.q_tokens, c.width}, 1, 2);
  c.k = as_view("k", k, type, {c.batch, c.kv_heads, c.kv_tokens, c.width}, 1, 2);
  c.v = as_view("v", v, type, {c.batch, c.kv_heads, c.kv_tokens, c.width}, 1, 2);

  set_box("grid", lists.grid, c.grid), set_box("tile", lists.tile, c.tile);
  set_box("q_grid", lists.q_grid, c.q_grid), set_box("q_tile", lists.q_tile, c.q_tile);
  c.q_start = lists.q_start, c.kv_start = lists.kv_start, c.scale = lists.scale;
  check_raster("queries", video_queries(c), c.q_start, c.q_tokens);
  check_raster("keys", video_keys(c), c.kv_start, c.kv_tokens);

  VSA_CHECK(lists.tiles.dim() == 4, "tiles must have 4 dimensions");
  int64_t rows = video_queries(c).tiles();
  c.listed = lists.tiles.size(3);
  check_dense("tiles", lists.tiles, ScalarType::Int, {c.batch, c.heads, rows, c.listed});
  check_dense("counts", lists.counts, ScalarType::Int, {c.batch, c.heads, rows});
  c.tiles = static_cast<const int32_t*>(lists.tiles.data_ptr());
  c.counts = static_cast<const int32_t*>(lists.counts.data_ptr());
  if (lists.key_padding) {
    const Tensor& padding = *lists.key_padding;
    int64_t variants = padding.dim() == 2 && padding.size(0) == 1 ? 1 : c.batch;
    check_dense("key_padding", padding, ScalarType::Bool, {variants, c.kv_tokens});
    c.key_padding = static_cast<const bool*>(padding.data_ptr());
    c.padding_batch = variants > 1 ? c.kv_tokens : 0;
  }
  return c;
}

}  // namespace

// The lse (B, H, Nq) that a call writes or reads.
inline float* lse_of(const Call& c, const Tensor& lse) {
  check_dense("lse", lse, ScalarType::Float, {c.batch, c.heads, c.q_tokens});
  return static_cast<float*>(lse.data_ptr());
}

// A tensor (B, N, heads, D) of queries or of keys.
inline View query_rows(const char* name, const Call& c, const Tensor& like, const Tensor& x) {
  return as_view(name, x, like.scalar_type(), {c.batch, c.q_tokens, c.heads, c.width}, 2, 1);
}
inline View key_rows(const char* name, const Call& c, const Tensor& like, const Tensor& x) {
  return as_view(name, x, like.scalar_type(), {c.batch, c.kv_tokens, c.kv_heads, c.width}, 2, 1);
}

}  // namespace vsa
