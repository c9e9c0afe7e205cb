// Sparse attention over listed key tiles, forward and backward, in one source for every instruction set.
//
// VSA_VARIANT names the one that this is compiled for: avx512, avx2, neon, or plain, which any processor runs.
//
// B batch, H heads, N tokens, D head width, E tokens of a full tile, M tiles, Kcap width of the lists.
// A "group" is a set of tokens that is processed as one block: the real tokens of a video tile (border tiles
// are simply smaller), or up to 64 tokens outside the video. Every query group has a list of key
// groups: a video tile sees the tiles it keeps and all groups outside the video, other queries see all.
//
// Everything is transposed: keys are rows and queries are columns, one query to a lane of a vector. The softmax
// of a query runs down one vector lane with no horizontal reduction; a border tile is a matrix with
// fewer rows, so no key slot needs a mask; columns that fill up a vector cannot touch real ones.
//
// Matrix products are C (M, N) f32 = [C +] A (M, K) B (K, N), by oneDNN's brgemm where it takes the type:
// f32 from AVX2 on, bf16 from AVX-512 on. bf16 becomes f32 elsewhere, f16 always; where there is no brgemm a
// product of our own serves. A left operand A is plain rows; a right operand B of bf16 has pairs of rows
// interleaved, [K / 2][N][2]. Rows in packed memory have their width rounded up to whole vectors, with zeros.
//
// The keys of one head are packed once and serve all its query groups. Nothing is atomic but the work
// queue: the same thread count gives the same bits.

#include "arguments.h"
#include "backward.h"
#include "call.h"
#include "forward.h"
#include "threads.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

namespace vsa {

// --- Selection ------------------------------------------------------------------------------------

// Scores as integers in the opposite order: the highest score first, NaN before it, -0 equal to 0.
inline int32_t descending(float score) {
  int32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  int32_t size = bits & 0x7fffffff;
  return size > 0x7f800000 ? std::numeric_limits<int32_t>::min() : bits < 0 ? size : -size;
}

class Selection {  // of rows of `tiles` scores
 public:
  explicit Selection(int64_t tiles)
      : tiles(tiles), ranks(round_up(tiles, Ranks::size()), std::numeric_limits<int32_t>::max()) {}

  // The `kept` highest of a row, ties to the lowest id, ids ascending. The limit of the kept ranks is found bit
  // by bit, which is faster than sorting, because hardly a branch depends on the scores.
  void operator()(const float* scores, int64_t kept, int32_t* to) {
    std::transform(scores, scores + tiles, ranks.begin(), descending);
    int32_t limit = std::numeric_limits<int32_t>::min();
    int64_t found = 0;
    for (uint32_t bit = 1u << 31; bit && found < kept; bit >>= 1) {
      auto higher = static_cast<int32_t>(static_cast<uint32_t>(limit) + bit);
      int64_t count = before(higher);
      if (count <= kept) limit = higher, found = count;
    }
    int64_t ties = kept - found;  // of rank `limit`
    for (int64_t i = 0; i < tiles; ++i)
      if (ranks[i] < limit || (ranks[i] == limit && ties-- > 0)) *to++ = static_cast<int32_t>(i);
  }

 private:
  using Ranks = at::vec::Vectorized<int32_t>;
  int64_t tiles;
  std::vector<int32_t> ranks;  // padded to whole vectors with the last rank of all

  int64_t before(int32_t limit) const {
    Ranks count(0);
    for (size_t i = 0; i < ranks.size(); i += Ranks::size())
      count = count - (Ranks::loadu(&ranks[i]) < Ranks(limit));  // true is -1
    int32_t counts[Ranks::size()];
    count.store(counts);
    return std::accumulate(counts, counts + Ranks::size(), int64_t{0});
  }
};

// --- The operators ---------------------------------------------------------------------------------

template <typename F>
void with_operands(const Call& c, F f) {
  if constexpr (kBrgemmBF16)
    if (c.dtype == kBFloat16 && takes_brgemm<BFloat16>()) return f(BFloat16{});
  f(float{});
}

// -> out (B, Nq, H, D), lse (B, H, Nq)
void attend(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& tiles, const Tensor& counts,
            const std::vector<int64_t>& grid, const std::vector<int64_t>& tile, int64_t q_start, int64_t kv_start,
            const std::optional<Tensor>& key_padding, double scale, const std::vector<int64_t>& q_grid,
            const std::vector<int64_t>& q_tile, const Tensor& out, const Tensor& lse) {
  Call c = make_call(q, k, v, {tiles, counts, key_padding, grid, tile, q_grid, q_tile, q_start, kv_start, scale});
  c.out = query_rows("out", c, q, out);
  c.lse = lse_of(c, lse);
  with_operands(c, [&](auto operand) { forward<decltype(operand)>(c); });
}

// -> grad_q (B, Nq, H, D), grad_k and grad_v (B, Nkv, Hkv, D). With key_padding the caller zeroes grad_k and
// grad_v first: keys that take no part are not visited.
void attend_backward(const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                     const Tensor& lse, const Tensor& tiles, const Tensor& counts, const std::vector<int64_t>& grid,
                     const std::vector<int64_t>& tile, int64_t q_start, int64_t kv_start,
                     const std::optional<Tensor>& key_padding, double scale, const std::vector<int64_t>& q_grid,
                     const std::vector<int64_t>& q_tile, const Tensor& grad_q, const Tensor& grad_k,
                     const Tensor& grad_v) {
  Call c = make_call(q, k, v, {tiles, counts, key_padding, grid, tile, q_grid, q_tile, q_start, kv_start, scale});
  c.grad_out = query_rows("grad_out", c, q, grad_out);
  c.out = query_rows("out", c, q, out);
  c.lse = lse_of(c, lse);
  c.grad_q = query_rows("grad_q", c, q, grad_q);
  c.grad_k = key_rows("grad_k", c, q, grad_k);
  c.grad_v = key_rows("grad_v", c, q, grad_v);
  with_operands(c, [&](auto operand) { backward<decltype(operand)>(c); });
}

// scores (rows, tiles) -> selected (rows, kept)
void select(const Tensor& scores, const Tensor& selected) {
  VSA_CHECK(scores.dim() == 2 && selected.dim() == 2, "scores and selected must have 2 dimensions");
  int64_t rows = scores.size(0), tiles = scores.size(1), kept = selected.size(1);
  VSA_CHECK(kept >= 1 && kept <= tiles && tiles < (int64_t{1} << 31), "cannot keep ", kept, " of ", tiles);
  check_dense("scores", scores, ScalarType::Float, {rows, tiles});
  check_dense("selected", selected, ScalarType::Int, {rows, kept});
  const float* from = static_cast<const float*>(scores.data_ptr());
  int32_t* to = static_cast<int32_t*>(selected.data_ptr());
  at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
    Selection row(tiles);
    for (int64_t r = begin; r < end; ++r) row(from + r * tiles, kept, to + r * kept);
  });
}

}  // namespace vsa

#define VSA_SITE                                                                                        \
  "Tensor tiles, Tensor counts, int[] grid, int[] tile, int q_start, int kv_start, Tensor? key_padding, " \
  "float scale, int[] q_grid, int[] q_tile, "

STABLE_TORCH_LIBRARY_FRAGMENT(VSA_VARIANT, m) {
  m.def("attend(Tensor q, Tensor k, Tensor v, " VSA_SITE "Tensor(a!) out, Tensor(b!) lse) -> ()");
  m.def("attend_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, " VSA_SITE
        "Tensor(a!) grad_q, Tensor(b!) grad_k, Tensor(c!) grad_v) -> ()");
  m.def("select(Tensor scores, Tensor(a!) selected) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(VSA_VARIANT, CPU, m) {
  m.impl("attend", TORCH_BOX(&vsa::attend));
  m.impl("attend_backward", TORCH_BOX(&vsa::attend_backward));
  m.impl("select", TORCH_BOX(&vsa::select));
}
