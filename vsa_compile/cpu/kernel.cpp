// Sparse attention over listed key tiles, forward and backward, for AVX-512 and better.
//
// B batch, H query heads, K key heads, N tokens, D head width, E tokens of a full tile, M tiles.
// A "group" is a set of tokens that is handled as one block: a video tile with its real tokens (so
// border tiles are simply smaller), or up to 64 tokens outside the video. Key groups are listed per
// query group: a video tile sees the tiles it keeps and every non-video group, other queries see all.
//
// Everything is transposed: keys are rows and queries are columns, 16 queries to a vector. The softmax
// of a query then runs down one vector lane, with no horizontal reduction, missing key slots do not
// exist (a matrix just has fewer rows) and columns that pad a group to 16 cannot touch its real ones.
//
// Matrix products are at::native::cpublas::brgemm: C (M, N) f32 = [C +] A (M, K) B (K, N), where a
// bf16 B holds pairs of rows interleaved ("paired": [K / 2][N][2]).
//
// One head's keys are packed once and shared by its query groups. The backward adds into one f32
// accumulator per head and slice of query groups; slices are added in order, so there are no atomics
// and the same thread count always gives the same bits.

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

// --- The call, as Python lays it out --------------------------------------------------------------

enum Dtype : int64_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

struct View {  // (B, heads, N, D) with a contiguous last dimension; strides in elements
  void* data;
  int64_t batch, head, token;
};

struct Head {
  int64_t batch, head;
};

struct Call {
  int64_t batch, heads, kv_heads, q_tokens, kv_tokens, width;
  int64_t grid[3], tile[3];
  int64_t q_start, kv_start;
  int64_t listed;            // Kcap, the width of `tiles`
  int64_t padding_batch;     // stride of key_padding; 0 where one row serves every batch
  int64_t dtype;
  const int32_t* tiles;      // (B, H, M, Kcap)
  const int32_t* counts;     // (B, H, M)
  const bool* key_padding;   // (B or 1, N) or null: whether a non-video key takes part
  double scale;
  View q, k, v, out, grad_out, grad_q, grad_k, grad_v;
  float* lse;                // (B, H, N), natural logarithm
};

namespace {

namespace blas = at::native::cpublas;
using at::BFloat16;
using at::Half;

constexpr int64_t kLanes = 16;
constexpr int64_t kOtherGroup = 64;    // tokens in a group outside the video
constexpr int64_t kKeysPerStep = 256;  // keys per step of the online softmax, and the most in a group
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kLog2e = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// --- Groups of tokens -----------------------------------------------------------------------------

struct Groups {
  std::vector<int64_t> token;    // tokens of all groups, one group after the other
  std::vector<int64_t> start{0}; // group g is token[start[g] .. start[g + 1])
  std::vector<int64_t> row{0};   // where its rows start in packed arrays; groups have even sizes there

  int64_t count() const { return static_cast<int64_t>(start.size()) - 1; }
  int64_t size(int64_t g) const { return start[g + 1] - start[g]; }
  int64_t rows(int64_t g) const { return row[g + 1] - row[g]; }  // size, rounded up to even
  int64_t all_rows() const { return row.back(); }
  const int64_t* tokens(int64_t g) const { return token.data() + start[g]; }

  void close() {
    int64_t size = static_cast<int64_t>(token.size()) - start.back();
    start.push_back(token.size());
    row.push_back(row.back() + round_up(size, 2));
  }
};

int64_t video_tokens(const Call& c) { return c.grid[0] * c.grid[1] * c.grid[2]; }

int64_t tiles_along(const Call& c, int axis) { return (c.grid[axis] + c.tile[axis] - 1) / c.tile[axis]; }

int64_t tile_count(const Call& c) { return tiles_along(c, 0) * tiles_along(c, 1) * tiles_along(c, 2); }

void add_tile(Groups& groups, const Call& c, const int64_t (&tile)[3], int64_t first) {
  int64_t low[3], high[3];
  for (int axis = 0; axis < 3; ++axis) {
    low[axis] = tile[axis] * c.tile[axis];
    high[axis] = std::min(low[axis] + c.tile[axis], c.grid[axis]);
  }
  for (int64_t f = low[0]; f < high[0]; ++f)
    for (int64_t r = low[1]; r < high[1]; ++r)
      for (int64_t x = low[2]; x < high[2]; ++x)
        groups.token.push_back(first + (f * c.grid[1] + r) * c.grid[2] + x);
  groups.close();
}

// The M video tiles, row-major, then all other tokens that take part.
Groups make_groups(const Call& c, int64_t first, int64_t tokens, const bool* takes_part) {
  Groups groups;
  groups.token.reserve(tokens);
  int64_t tile[3];
  for (tile[0] = 0; tile[0] < tiles_along(c, 0); ++tile[0])
    for (tile[1] = 0; tile[1] < tiles_along(c, 1); ++tile[1])
      for (tile[2] = 0; tile[2] < tiles_along(c, 2); ++tile[2]) add_tile(groups, c, tile, first);
  for (int64_t token = 0; token < tokens; ++token) {
    if (token == first) token += video_tokens(c);
    if (token >= tokens) break;
    if (takes_part && !takes_part[token]) continue;
    groups.token.push_back(token);
    if (static_cast<int64_t>(groups.token.size()) - groups.start.back() == kOtherGroup) groups.close();
  }
  if (static_cast<int64_t>(groups.token.size()) > groups.start.back()) groups.close();
  return groups;
}

struct Plan {
  Groups queries;
  std::vector<Groups> keys;  // one, or one per batch where key_padding differs

  explicit Plan(const Call& c) : queries(make_groups(c, c.q_start, c.q_tokens, nullptr)) {
    int64_t variants = c.key_padding && c.padding_batch ? c.batch : 1;
    for (int64_t b = 0; b < variants; ++b) {
      const bool* takes_part = c.key_padding ? c.key_padding + b * c.padding_batch : nullptr;
      keys.push_back(make_groups(c, c.kv_start, c.kv_tokens, takes_part));
    }
  }
  const Groups& keys_of(int64_t b) const { return keys[keys.size() == 1 ? 0 : b]; }
  int64_t most_rows() const {
    int64_t most = 0;
    for (const Groups& groups : keys) most = std::max(most, groups.all_rows());
    return most;
  }
};

// The key groups that query group g of a head sees, in ascending order.
std::vector<int64_t> list_keys(const Call& c, const Groups& keys, Head at, int64_t g) {
  std::vector<int64_t> list;
  int64_t tiles = tile_count(c);
  bool video = g < tiles;
  if (video) {
    int64_t row = (at.batch * c.heads + at.head) * tiles + g;
    const int32_t* ids = c.tiles + row * c.listed;
    int64_t count = std::clamp<int64_t>(c.counts[row], 0, c.listed);
    for (int64_t i = 0; i < count; ++i) list.push_back(std::clamp<int64_t>(ids[i], 0, tiles - 1));
  }
  for (int64_t other = video ? tiles : 0; other < keys.count(); ++other) list.push_back(other);
  return list;
}

// --- Vectors --------------------------------------------------------------------------------------

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
void transpose(const float* from, int64_t rows, int64_t columns, float* to, int64_t stride) {
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

// C (m, n) f32 = [C +] A (m, k) B (k, n), rows of A `lda` apart; B and C are dense.
template <typename T>
void multiply(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, float* c, bool add) {
  blas::brgemm(m, n, k, lda, n, n, add, a, b, c, !std::is_same_v<T, float>);
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
  int64_t offset = at.batch * view.batch + at.head * view.head;
  if (c.dtype == kFloat32) f(static_cast<float*>(view.data) + offset);
  if (c.dtype == kBFloat16) f(static_cast<BFloat16*>(view.data) + offset);
  if (c.dtype == kFloat16) f(static_cast<Half*>(view.data) + offset);
}

template <typename From, typename To>
void copy_row(const From* from, int64_t width, To* to) {
  for (int64_t d = 0; d < width; d += kLanes) store_lanes(to + d, load_lanes(from + d));
}

// The rows of group g of a head, as f32; rows from the group's size to `padded` are zero.
void gather(const Call& c, const View& view, Head at, const Groups& groups, int64_t g, int64_t padded, float* to) {
  with_head(c, view, at, [&](const auto* from) {
    for (int64_t i = 0; i < groups.size(g); ++i)
      copy_row(from + groups.tokens(g)[i] * view.token, c.width, to + i * c.width);
  });
  std::fill(to + groups.size(g) * c.width, to + padded * c.width, 0.f);
}

void scatter(const Call& c, const View& view, Head at, const Groups& groups, int64_t g, const float* from) {
  with_head(c, view, at, [&](auto* to) {
    for (int64_t i = 0; i < groups.size(g); ++i)
      copy_row(from + i * c.width, c.width, to + groups.tokens(g)[i] * view.token);
  });
}

// Scores are |scale| log2(e) q k for q with the sign of scale, so that the highest product is the
// highest score. A scale of 0 zeroes q and leaves the products alone, for 0 * -infinity is NaN.
float score_factor(double scale) { return scale == 0. ? 1.f : static_cast<float>(std::abs(scale) * kLog2e); }

void take_sign(float* queries, int64_t elements, double scale) {
  if (scale > 0.) return;
  float sign = scale < 0. ? -1.f : 0.f;
  for (int64_t i = 0; i < elements; ++i) queries[i] *= sign;
}

// --- Threads --------------------------------------------------------------------------------------

// Runs body(unit) for every unit, each on whichever thread is free; `worker()` makes a thread's body.
// Inside another `share` this runs serially.
template <typename Worker>
void share(int64_t units, Worker worker) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(units, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    auto body = worker();
    for (int64_t unit = next++; unit < units; unit = next++) body(unit);
    blas::brgemm_release();
  });
}

// Heads are independent: whole heads per thread while every thread gets one, the rest one by one with
// all threads on each. `worker()` makes body(head, threads).
template <typename Worker>
void share_heads(int64_t heads, Worker worker) {
  int64_t threads = at::get_num_threads();
  int64_t alone = heads - heads % threads;
  share(alone, [&] { return [body = worker()](int64_t head) mutable { body(head, 1); }; });
  auto body = worker();
  for (int64_t head = alone; head < heads; ++head) body(head, threads);
}

template <typename T>
struct Buffer {  // uninitialised, 64-byte aligned
  std::unique_ptr<T[], decltype(&std::free)> data{nullptr, &std::free};
  Buffer() = default;
  explicit Buffer(int64_t elements) { resize(elements); }
  void resize(int64_t elements) {
    size_t bytes = round_up(std::max<int64_t>(elements, 1) * sizeof(T), 64);
    data.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!data) throw std::bad_alloc();
  }
  T* get() const { return data.get(); }
};

// --- Forward --------------------------------------------------------------------------------------

template <typename T>
struct ForwardKeys {       // one head
  Buffer<T> rows;          // K (n, D) of every group: left operand of the scores
  Buffer<T> transposed;    // V^T (D, n) of every group: left operand of the output

  ForwardKeys(const Call& c, int64_t most_rows) {
    rows.resize(most_rows * c.width);
    transposed.resize(most_rows * c.width);
  }
};

template <typename T>
void pack_keys(const Call& c, const Groups& keys, int64_t b, int64_t head, ForwardKeys<T>& packed) {
  share(keys.count(), [&] {
    Buffer<float> plain(kKeysPerStep * c.width), turned(kKeysPerStep * c.width);
    return [&, plain = std::move(plain), turned = std::move(turned)](int64_t g) {
      int64_t rows = keys.rows(g), at = keys.row[g] * c.width;
      gather(c, c.k, b, head, keys, g, rows, plain.get());
      as_left(plain.get(), rows * c.width, packed.rows.get() + at);
      gather(c, c.v, b, head, keys, g, rows, plain.get());
      transpose(plain.get(), rows, c.width, turned.get(), rows);
      as_left(turned.get(), rows * c.width, packed.transposed.get() + at);
    };
  });
}

// The softmax of one query group so far, 16 queries to a vector.
struct Running {
  std::vector<float> highest, sum;
  explicit Running(int64_t columns) : highest(columns, -kInfinity), sum(columns, 0.f) {}
};

// One step of the online softmax for 16 queries. `scores` is a column of `count` (even) vectors, one
// per key; they become weights 2^(factor * score - highest). Returns what to shrink earlier sums by.
template <typename T>
__m512 softmax_step(float* scores, int64_t count, int64_t stride, float factor, float* highest, float* sum, T* weights) {
  __m512 top0 = _mm512_set1_ps(-kInfinity), top1 = top0;
  for (int64_t r = 0; r < count; r += 2) {  // max(a, b) is b where either is NaN: NaN does not stick here
    top0 = _mm512_max_ps(load_lanes(scores + r * stride), top0);
    top1 = _mm512_max_ps(load_lanes(scores + (r + 1) * stride), top1);
  }
  __m512 scaled = _mm512_mul_ps(_mm512_max_ps(top0, top1), _mm512_set1_ps(factor));
  __m512 before = load_lanes(highest), now = _mm512_max_ps(before, scaled);
  store_lanes(highest, now);
  // Where no key was seen, any finite reference gives weights of 0.
  __m512 reference = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(now, _mm512_set1_ps(-kInfinity), _CMP_NEQ_UQ), now);

  __m512 times = _mm512_set1_ps(factor), sum0 = _mm512_setzero_ps(), sum1 = sum0;
  for (int64_t r = 0; r < count; r += 2) {
    __m512 even = exp2_lanes<T>(_mm512_fmsub_ps(load_lanes(scores + r * stride), times, reference));
    __m512 odd = exp2_lanes<T>(_mm512_fmsub_ps(load_lanes(scores + (r + 1) * stride), times, reference));
    sum0 = _mm512_add_ps(sum0, even);
    sum1 = _mm512_add_ps(sum1, odd);
    store_pair(weights + r * stride, stride, even, odd);
  }
  __m512 shrink = exp2_lanes<float>(_mm512_sub_ps(before, reference));
  store_lanes(sum, _mm512_fmadd_ps(load_lanes(sum), shrink, _mm512_add_ps(sum0, sum1)));
  return shrink;
}

// Columns of `rows` vectors times `factor`.
void scale_column(float* column, int64_t rows, int64_t stride, __m512 factor) {
  for (int64_t r = 0; r < rows; ++r) store_lanes(column + r * stride, _mm512_mul_ps(load_lanes(column + r * stride), factor));
}

template <typename T>
class ForwardGroup {
 public:
  explicit ForwardGroup(const Call& call)
      : c(call), rows(kKeysPerStep * c.width), out(kKeysPerStep * c.width), queries(kKeysPerStep * c.width),
        scores(kKeysPerStep * kKeysPerStep), weights(kKeysPerStep * kKeysPerStep) {}

  // Attention of query group g of head h.
  void operator()(const Plan& plan, const ForwardKeys<T>& packed, int64_t b, int64_t h, int64_t g) {
    const Groups& keys = plan.keys_of(b);
    int64_t columns = round_up(plan.queries.size(g), kLanes);
    pack_queries(plan.queries, b, h, g, columns);
    Running running(columns);
    list_keys(c, keys, b, h, g, list);
    if (list.empty()) std::fill_n(out.get(), c.width * columns, 0.f);
    for (size_t first = 0; first < list.size();) first = step(keys, packed, first, columns, running);
    finish(plan.queries, b, h, g, columns, running);
  }

 private:
  const Call& c;
  Buffer<float> rows, out;  // (columns, D); (D, columns)
  Buffer<T> queries;        // Q^T, right operand
  Buffer<float> scores;     // (keys of a step, columns)
  Buffer<T> weights;        // right operand; f32 weights overwrite the scores instead
  std::vector<int64_t> list;

  T* weights_of(float* scores) {
    if constexpr (std::is_same_v<T, float>) return scores;
    else return weights.get();
  }

  void pack_queries(const Groups& groups, int64_t b, int64_t h, int64_t g, int64_t columns) {
    gather(c, c.q, b, h, groups, g, columns, rows.get());
    take_sign(rows.get(), columns * c.width, c.scale);
    transpose(rows.get(), columns, c.width, out.get(), columns);
    as_right(out.get(), c.width, columns, queries.get());
  }

  // Groups list[first..] up to kKeysPerStep keys; returns the next first.
  size_t step(const Groups& keys, const ForwardKeys<T>& packed, size_t first, int64_t columns, Running& running) {
    int64_t count = 0;
    size_t last = first;
    for (; last < list.size() && count + keys.rows(list[last]) <= kKeysPerStep; ++last) {
      int64_t g = list[last];
      float* to = scores.get() + count * columns;
      multiply(keys.size(g), columns, c.width, packed.rows.get() + keys.row[g] * c.width, c.width, queries.get(), to, false);
      if (keys.rows(g) > keys.size(g)) std::fill_n(to + keys.size(g) * columns, columns, -kInfinity);
      count += keys.rows(g);
    }
    T* weight = weights_of(scores.get());
    for (int64_t at = 0; at < columns; at += kLanes) {
      T* to = weight + (std::is_same_v<T, float> ? at : 2 * at);
      __m512 shrink = softmax_step(scores.get() + at, count, columns, score_factor(c.scale), &running.highest[at], &running.sum[at], to);
      bool same = _mm512_cmp_ps_mask(shrink, _mm512_set1_ps(1.f), _CMP_EQ_OQ) == 0xffff;
      if (first > 0 && !same) scale_column(out.get() + at, c.width, columns, shrink);
    }
    for (size_t i = first; i < last; ++i) {
      int64_t g = list[i];
      multiply(c.width, columns, keys.rows(g), packed.transposed.get() + keys.row[g] * c.width, keys.rows(g), weight, out.get(), i > 0);
      weight += keys.rows(g) * columns;
    }
    return last;
  }

  void finish(const Groups& groups, int64_t b, int64_t h, int64_t g, int64_t columns, const Running& running) {
    for (int64_t at = 0; at < columns; at += kLanes) {
      __m512 sum = load_lanes(&running.sum[at]);
      __mmask16 any = _mm512_cmp_ps_mask(sum, _mm512_setzero_ps(), _CMP_NEQ_UQ);
      scale_column(out.get() + at, c.width, columns, _mm512_maskz_div_ps(any, _mm512_set1_ps(1.f), sum));
    }
    transpose(out.get(), c.width, columns, rows.get(), c.width);
    scatter(c, c.out, b, h, groups, g, rows.get());
    float* lse = c.lse + (b * c.heads + h) * c.q_tokens;
    for (int64_t i = 0; i < groups.size(g); ++i) {
      double highest = running.sum[i] == 0.f ? 0. : running.highest[i];
      lse[groups.tokens(g)[i]] = static_cast<float>(kLn2 * highest + std::log(static_cast<double>(running.sum[i])));
    }
  }
};

template <typename T>
void forward(const Call& c) {
  Plan plan(c);
  int64_t groups = c.heads / c.kv_heads;
  share_heads(c.batch * c.kv_heads, [&] {
    return [&, packed = ForwardKeys<T>(c, plan.most_rows())](int64_t head, int64_t) mutable {
      int64_t b = head / c.kv_heads, kv = head % c.kv_heads, count = plan.queries.count();
      pack_keys(c, plan.keys_of(b), b, kv, packed);
      share(groups * count, [&] {
        return [&, group = ForwardGroup<T>(c)](int64_t unit) mutable {
          // Groups outside the video come last and see the most keys: start with them.
          group(plan, packed, b, kv * groups + unit % groups, count - 1 - unit / groups);
        };
      });
    };
  });
}

// --- Backward -------------------------------------------------------------------------------------

template <typename T>
struct BackwardKeys {               // one head
  Buffer<T> k, v;                   // (n, D) of every group: left operands of scores and weight gradients
  Buffer<T> k_transposed;           // (D, n) of every group: left operand of grad_q^T
  std::vector<Buffer<float>> grad_k, grad_v;  // (n, D) of every group, one for every slice of query groups

  BackwardKeys(const Call& c, int64_t most_rows) {
    for (Buffer<T>* operand : {&k, &v, &k_transposed}) operand->resize(most_rows * c.width);
  }
  void slice(int64_t count, int64_t elements) {
    while (static_cast<int64_t>(grad_k.size()) < count) {
      grad_k.emplace_back(elements);
      grad_v.emplace_back(elements);
    }
  }
};

template <typename T>
void pack_keys(const Call& c, const Groups& keys, int64_t b, int64_t head, BackwardKeys<T>& packed) {
  share(keys.count(), [&] {
    Buffer<float> plain(kKeysPerStep * c.width), turned(kKeysPerStep * c.width);
    return [&, plain = std::move(plain), turned = std::move(turned)](int64_t g) {
      int64_t rows = keys.rows(g), at = keys.row[g] * c.width;
      gather(c, c.v, b, head, keys, g, rows, plain.get());
      as_left(plain.get(), rows * c.width, packed.v.get() + at);
      gather(c, c.k, b, head, keys, g, rows, plain.get());
      as_left(plain.get(), rows * c.width, packed.k.get() + at);
      transpose(plain.get(), rows, c.width, turned.get(), rows);
      as_left(turned.get(), rows * c.width, packed.k_transposed.get() + at);
    };
  });
}

template <typename T>
class BackwardGroup {
 public:
  explicit BackwardGroup(const Call& call)
      : c(call), rows(kKeysPerStep * c.width), turned(kKeysPerStep * c.width), grad_q(kKeysPerStep * c.width),
        q(kKeysPerStep * c.width), q_transposed(kKeysPerStep * c.width), grad_out(kKeysPerStep * c.width),
        grad_out_transposed(kKeysPerStep * c.width), scores(kKeysPerStep * kKeysPerStep),
        score_grads(kKeysPerStep * kKeysPerStep), weights_left(kKeysPerStep * kKeysPerStep),
        score_grads_left(kKeysPerStep * kKeysPerStep), score_grads_right(kKeysPerStep * kKeysPerStep),
        lse(kKeysPerStep), delta(kKeysPerStep) {}

  // Adds what query group g of head h contributes to grad_k and grad_v; writes its grad_q.
  void operator()(const Plan& plan, BackwardKeys<T>& packed, int64_t slice, int64_t b, int64_t h, int64_t g) {
    const Groups& keys = plan.keys_of(b);
    queries = plan.queries.size(g);
    columns = round_up(queries, kLanes);
    pack_queries(plan.queries, b, h, g);
    list_keys(c, keys, b, h, g, list);
    std::fill_n(grad_q.get(), c.width * columns, 0.f);
    for (int64_t group : list) {
      int64_t at = keys.row[group] * c.width;
      add_group(keys.size(group), packed, at, packed.grad_k[slice].get() + at, packed.grad_v[slice].get() + at);
    }
    for (int64_t at = 0; at < columns; at += kLanes)
      scale_column(grad_q.get() + at, c.width, columns, _mm512_set1_ps(static_cast<float>(c.scale)));
    transpose(grad_q.get(), c.width, columns, rows.get(), c.width);
    scatter(c, c.grad_q, b, h, plan.queries, g, rows.get());
  }

 private:
  const Call& c;
  int64_t queries = 0, columns = 0;   // queries of this group, and rounded up to whole vectors
  Buffer<float> rows, turned, grad_q; // (columns, D); (D, columns); (D, columns)
  Buffer<T> q, q_transposed, grad_out, grad_out_transposed;  // right operands
  Buffer<float> scores, score_grads;  // (keys, columns)
  Buffer<T> weights_left, score_grads_left, score_grads_right;  // bf16 only: f32 works in place
  Buffer<float> lse, delta;           // per query; lse to base 2
  std::vector<int64_t> list;

  void pack_queries(const Groups& groups, int64_t b, int64_t h, int64_t g) {
    int64_t pairs = round_up(queries, 2);
    gather(c, c.grad_out, b, h, groups, g, columns, rows.get());
    gather(c, c.out, b, h, groups, g, columns, turned.get());
    dot_rows(rows.get(), turned.get(), delta.get());
    as_right(rows.get(), pairs, c.width, grad_out.get());
    transpose(rows.get(), columns, c.width, turned.get(), columns);
    as_right(turned.get(), c.width, columns, grad_out_transposed.get());

    gather(c, c.q, b, h, groups, g, columns, rows.get());
    as_right(rows.get(), pairs, c.width, q.get());
    take_sign(rows.get(), columns * c.width, c.scale);
    transpose(rows.get(), columns, c.width, turned.get(), columns);
    as_right(turned.get(), c.width, columns, q_transposed.get());

    const float* natural = c.lse + (b * c.heads + h) * c.q_tokens;
    for (int64_t i = 0; i < columns; ++i) {
      float value = i < queries ? natural[groups.tokens(g)[i]] : 0.f;
      lse.get()[i] = value == -kInfinity ? 0.f : static_cast<float>(value * kLog2e);
    }
  }

  void dot_rows(const float* a, const float* b, float* to) {
    for (int64_t i = 0; i < columns; ++i) {
      __m512 sum = _mm512_setzero_ps();
      for (int64_t d = i * c.width; d < (i + 1) * c.width; d += kLanes) sum = _mm512_fmadd_ps(load_lanes(a + d), load_lanes(b + d), sum);
      to[i] = _mm512_reduce_add_ps(sum);
    }
  }

  // One key group of n keys, packed at `at`: its rows of grad_k and grad_v, and its share of grad_q.
  void add_group(int64_t n, const BackwardKeys<T>& packed, int64_t at, float* grad_k, float* grad_v) {
    int64_t even = round_up(n, 2), pairs = round_up(queries, 2);
    multiply(n, columns, c.width, packed.k.get() + at, c.width, q_transposed.get(), scores.get(), false);
    multiply(n, columns, c.width, packed.v.get() + at, c.width, grad_out_transposed.get(), score_grads.get(), false);
    if (even > n) {  // the missing key's weight is 0, and so is its gradient
      std::fill_n(scores.get() + n * columns, columns, -kInfinity);
      std::fill_n(score_grads.get() + n * columns, columns, 0.f);
    }
    for (int64_t column = 0; column < columns; column += kLanes) differentiate(even, column);
    T *weights = left(scores, weights_left), *grads = left(score_grads, score_grads_left);
    multiply(n, c.width, pairs, weights, columns, grad_out.get(), grad_v, true);
    multiply(n, c.width, pairs, grads, columns, q.get(), grad_k, true);
    multiply(c.width, columns, even, packed.k_transposed.get() + at, even, left(score_grads, score_grads_right), grad_q.get(), true);
  }

  static T* left(Buffer<float>& in_place, Buffer<T>& converted) {
    if constexpr (std::is_same_v<T, float>) return in_place.get();
    else return converted.get();
  }

  // Scores and gradients of the weights -> weights and gradients of the (scaled) scores, for 16 queries.
  void differentiate(int64_t keys, int64_t column) {
    __mmask16 lanes = static_cast<__mmask16>((1u << std::min(kLanes, queries - column)) - 1);
    __m512 factor = _mm512_set1_ps(score_factor(c.scale));
    __m512 lse2 = load_lanes(lse.get() + column), dot = load_lanes(delta.get() + column);
    auto one = [&](int64_t at, __m512& weight, __m512& grad) {
      weight = exp2_lanes<T>(_mm512_fmsub_ps(load_lanes(scores.get() + at), factor, lse2), lanes);
      grad = _mm512_maskz_mul_ps(lanes, weight, _mm512_sub_ps(load_lanes(score_grads.get() + at), dot));
    };
    for (int64_t r = 0; r < keys; r += 2) {
      int64_t at = r * columns + column, next = at + columns;
      __m512 weight, next_weight, grad, next_grad;
      one(at, weight, grad);
      one(next, next_weight, next_grad);
      store_lanes(left(scores, weights_left) + at, weight);
      store_lanes(left(scores, weights_left) + next, next_weight);
      store_lanes(left(score_grads, score_grads_left) + at, grad);
      store_lanes(left(score_grads, score_grads_left) + next, next_grad);
      if constexpr (!std::is_same_v<T, float>)
        store_pair(score_grads_right.get() + r * columns + 2 * column, columns, grad, next_grad);
    }
  }
};

// Sums the slices of one key group and writes grad_k and grad_v.
template <typename T>
void write_key_grads(const Call& c, const Groups& keys, int64_t b, int64_t head, int64_t g, BackwardKeys<T>& packed, int64_t slices) {
  int64_t at = keys.row[g] * c.width, elements = keys.size(g) * c.width;
  auto write = [&](std::vector<Buffer<float>>& grads, const View& view, float factor) {
    float* total = grads[0].get() + at;
    for (int64_t i = 0; i < elements; i += kLanes) {
      __m512 sum = load_lanes(total + i);
      for (int64_t s = 1; s < slices; ++s) sum = _mm512_add_ps(sum, load_lanes(grads[s].get() + at + i));
      store_lanes(total + i, _mm512_mul_ps(sum, _mm512_set1_ps(factor)));
    }
    scatter(c, view, b, head, keys, g, total);
  };
  write(packed.grad_k, c.grad_k, static_cast<float>(c.scale));
  write(packed.grad_v, c.grad_v, 1.f);
}

template <typename T>
void backward_head(const Call& c, const Plan& plan, int64_t head, int64_t slices, BackwardKeys<T>& packed) {
  int64_t b = head / c.kv_heads, kv = head % c.kv_heads;
  int64_t groups = c.heads / c.kv_heads, units = groups * plan.queries.count();
  const Groups& keys = plan.keys_of(b);
  packed.slice(slices, plan.most_rows() * c.width);
  pack_keys(c, keys, b, kv, packed);
  share(slices, [&] {
    return [&, group = BackwardGroup<T>(c)](int64_t slice) mutable {
      std::fill_n(packed.grad_k[slice].get(), keys.all_rows() * c.width, 0.f);
      std::fill_n(packed.grad_v[slice].get(), keys.all_rows() * c.width, 0.f);
      for (int64_t unit = slice; unit < units; unit += slices) group(plan, packed, slice, b, kv * groups + unit % groups, unit / groups);
    };
  });
  share(keys.count(), [&] { return [&](int64_t g) { write_key_grads(c, keys, b, kv, g, packed, slices); }; });
}

template <typename T>
void backward(const Call& c) {
  Plan plan(c);
  share_heads(c.batch * c.kv_heads, [&] {
    return [&, packed = BackwardKeys<T>(c, plan.most_rows())](int64_t head, int64_t threads) mutable {
      backward_head(c, plan, head, threads, packed);
    };
  });
}

// --- Selection ------------------------------------------------------------------------------------

// Orders scores as descending integers: NaN first, -0 equal to 0.
uint32_t descending(float score) {
  if (std::isnan(score)) return 0;
  if (score == 0.f) return 0x7fffffffu;
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  return bits & 0x80000000u ? bits : 0x7fffffffu - bits;
}

void select_row(const float* scores, int64_t tiles, int64_t kept, std::vector<uint64_t>& ranked, int32_t* to) {
  for (int64_t i = 0; i < tiles; ++i) ranked[i] = static_cast<uint64_t>(descending(scores[i])) << 32 | i;
  std::nth_element(ranked.begin(), ranked.begin() + (kept - 1), ranked.end());
  uint64_t last = ranked[kept - 1];
  for (int64_t i = 0; i < tiles; ++i)
    if ((static_cast<uint64_t>(descending(scores[i])) << 32 | i) <= last) *to++ = static_cast<int32_t>(i);
}

// Runs f; an exception becomes its text in `message`, and 1.
template <typename F>
int guarded(char* message, int64_t size, F f) {
  try {
    f();
    return 0;
  } catch (const std::exception& e) {
    std::strncpy(message, e.what(), size - 1);
    message[size - 1] = 0;
    return 1;
  }
}

}  // namespace

#define VSA_EXPORT extern "C" __attribute__((visibility("default")))

// Throws, into `message`, where this processor has no brgemm for the type.
VSA_EXPORT int vsa_probe(int64_t dtype, char* message, int64_t size) {
  return guarded(message, size, [&] {
    alignas(64) float c[kLanes * kLanes];
    alignas(64) float zeros[kLanes * kLanes] = {};
    if (dtype == kBFloat16) multiply(kLanes, kLanes, kLanes, reinterpret_cast<BFloat16*>(zeros), kLanes, reinterpret_cast<BFloat16*>(zeros), c, false);
    else multiply(kLanes, kLanes, kLanes, zeros, kLanes, zeros, c, false);
    blas::brgemm_release();
  });
}

VSA_EXPORT int vsa_attend(const Call* call, char* message, int64_t size) {
  return guarded(message, size, [&] { call->dtype == kBFloat16 ? forward<BFloat16>(*call) : forward<float>(*call); });
}

VSA_EXPORT int vsa_attend_backward(const Call* call, char* message, int64_t size) {
  return guarded(message, size, [&] { call->dtype == kBFloat16 ? backward<BFloat16>(*call) : backward<float>(*call); });
}

// scores (rows, tiles) -> to (rows, kept): the highest, ties to the lowest id, ascending ids.
VSA_EXPORT int vsa_select(const float* scores, int64_t rows, int64_t tiles, int64_t kept, int32_t* to, char* message, int64_t size) {
  return guarded(message, size, [&] {
    at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
      std::vector<uint64_t> ranked(tiles);
      for (int64_t r = begin; r < end; ++r) select_row(scores + r * tiles, tiles, kept, ranked, to + r * kept);
    });
  });
}
