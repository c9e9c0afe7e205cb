// Sparse attention over listed key tiles, forward and backward, for AVX-512 and better.
//
// B batch, H heads, N tokens, D head width, E tokens of a full tile, M tiles, Kcap width of the lists.
// A "group" is a set of tokens that is handled as one block: a video tile with its real tokens (border
// tiles are simply smaller), or up to 64 tokens outside the video. Every query group has a list of key
// groups: a video tile sees the tiles it keeps and all groups outside the video, other queries see all.
//
// Everything is transposed: keys are rows and queries are columns, 16 queries to a vector. The softmax
// of a query runs down one vector lane with no horizontal reduction; a border tile is a matrix with
// fewer rows, so no key slot needs a mask; columns that fill up a vector cannot touch real ones.
//
// Matrix products are at::native::cpublas::brgemm: C (M, N) f32 = [C +] A (M, K) B (K, N). A left
// operand A is plain rows; a right operand B of bf16 has pairs of rows interleaved, [K / 2][N][2].
//
// The keys of one head are packed once and serve all its query groups. Nothing is atomic but the work
// queue: the same thread count gives the same bits.

#include "backward.h"
#include "call.h"
#include "forward.h"
#include "lanes.h"
#include "threads.h"

#include <exception>

namespace vsa {

// --- Selection ------------------------------------------------------------------------------------

// Scores as integers that rise when scores fall: NaN first, -0 equal to 0.
inline uint32_t descending(float score) {
  if (std::isnan(score)) return 0;
  if (score == 0.f) return 0x7fffffffu;
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  return bits & 0x80000000u ? bits : 0x7fffffffu - bits;
}

// The `kept` highest of a row, ties to the lowest id, ids ascending.
inline void select_row(const float* scores, int64_t kept, std::vector<uint64_t>& rank, int32_t* to) {
  int64_t tiles = rank.size();
  for (int64_t i = 0; i < tiles; ++i) rank[i] = static_cast<uint64_t>(descending(scores[i])) << 32 | i;
  std::vector<uint64_t> order = rank;
  std::nth_element(order.begin(), order.begin() + (kept - 1), order.end());
  for (int64_t i = 0; i < tiles; ++i)
    if (rank[i] <= order[kept - 1]) *to++ = static_cast<int32_t>(i);
}

// --- Entry points: 0, or 1 with the reason in `message` ---------------------------------------------

template <typename F>
int guarded(char* message, int64_t size, F f) {
  try {
    f();
    return 0;
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), size - 1);
    message[size - 1] = 0;
    return 1;
  }
}

template <typename T>
void multiply_once() {
  alignas(64) T zeros[kLanes * kLanes] = {};
  alignas(64) float product[kLanes * kLanes];
  multiply(kLanes, kLanes, kLanes, zeros, kLanes, zeros, product, false);
  blas::brgemm_release();
}

}  // namespace vsa

#define VSA_EXPORT extern "C" __attribute__((visibility("default")))

// Whether this processor multiplies matrices of the type.
VSA_EXPORT int vsa_probe(int64_t dtype, char* message, int64_t size) {
  return vsa::guarded(message, size, [&] {
    dtype == vsa::kBFloat16 ? vsa::multiply_once<at::BFloat16>() : vsa::multiply_once<float>();
  });
}

VSA_EXPORT int vsa_attend(const vsa::Call* call, char* message, int64_t size) {
  return vsa::guarded(message, size, [&] {
    call->dtype == vsa::kBFloat16 ? vsa::forward<at::BFloat16>(*call) : vsa::forward<float>(*call);
  });
}

VSA_EXPORT int vsa_attend_backward(const vsa::Call* call, char* message, int64_t size) {
  return vsa::guarded(message, size, [&] {
    call->dtype == vsa::kBFloat16 ? vsa::backward<at::BFloat16>(*call) : vsa::backward<float>(*call);
  });
}

// scores (rows, tiles) -> selected (rows, kept).
VSA_EXPORT int vsa_select(const float* scores, int64_t rows, int64_t tiles, int64_t kept, int32_t* selected,
                          char* message, int64_t size) {
  return vsa::guarded(message, size, [&] {
    at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
      std::vector<uint64_t> rank(tiles);
      for (int64_t r = begin; r < end; ++r)
        vsa::select_row(scores + r * tiles, kept, rank, selected + r * kept);
    });
  });
}
