// One call, and its tokens in groups. Notation: kernel.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace vsa {

enum Dtype { kFloat32, kBFloat16, kFloat16 };

struct View {  // (B, heads, N, D) with a contiguous last dimension; strides in elements
  void* data;
  int64_t batch, head, token;
};

struct Head {
  int64_t batch, index;
};

struct Call {
  int64_t batch, heads, kv_heads, q_tokens, kv_tokens, width;
  int64_t packed_width;      // of rows in packed memory: width, rounded up to whole vectors
  int64_t grid[3], tile[3];  // of the video keys
  int64_t q_grid[3], q_tile[3];  // of the video queries: the same, or packed queries as a raster of their own
  int64_t q_start, kv_start;
  int64_t listed;            // Kcap, the width of `tiles`
  int64_t padding_batch;     // batch stride of key_padding; 0 if all batches share one row
  Dtype dtype;
  bool brgemm;               // whether oneDNN multiplies f32, or our own code
  const int32_t* tiles;      // (B, H, M, Kcap): M tiles of the queries, ids of tiles of the keys
  const int32_t* counts;     // (B, H, M)
  const bool* key_padding;   // (B or 1, N) or null: whether a non-video key takes part
  double scale;
  View q, k, v, out, grad_out, grad_q, grad_k, grad_v;
  float* lse;                // (B, H, N), natural logarithm
};

// --- Groups of tokens -----------------------------------------------------------------------------

constexpr int64_t kMostTokens = 256;  // in any group
constexpr int64_t kOtherTokens = 64;  // in a group outside the video

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

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

struct Raster {  // a run of video tokens and its tiles
  const int64_t (&grid)[3], (&tile)[3];

  int64_t tokens() const { return grid[0] * grid[1] * grid[2]; }
  int64_t tiles_along(int axis) const { return (grid[axis] + tile[axis] - 1) / tile[axis]; }
  int64_t tiles() const { return tiles_along(0) * tiles_along(1) * tiles_along(2); }
};

inline Raster video_keys(const Call& c) { return {c.grid, c.tile}; }
inline Raster video_queries(const Call& c) { return {c.q_grid, c.q_tile}; }

inline void add_tile(Groups& groups, const Raster& video, const int64_t (&tile)[3], int64_t first) {
  int64_t low[3], high[3];
  for (int axis = 0; axis < 3; ++axis) {
    low[axis] = tile[axis] * video.tile[axis];
    high[axis] = std::min(low[axis] + video.tile[axis], video.grid[axis]);
  }
  for (int64_t f = low[0]; f < high[0]; ++f)
    for (int64_t r = low[1]; r < high[1]; ++r)
      for (int64_t x = low[2]; x < high[2]; ++x)
        groups.token.push_back(first + (f * video.grid[1] + r) * video.grid[2] + x);
  groups.close();
}

// The M video tiles, row-major, then groups of the other tokens that take part.
inline Groups make_groups(const Raster& video, int64_t first, int64_t tokens, const bool* takes_part) {
  Groups groups;
  groups.token.reserve(tokens);
  int64_t tile[3];
  for (tile[0] = 0; tile[0] < video.tiles_along(0); ++tile[0])
    for (tile[1] = 0; tile[1] < video.tiles_along(1); ++tile[1])
      for (tile[2] = 0; tile[2] < video.tiles_along(2); ++tile[2]) add_tile(groups, video, tile, first);
  for (int64_t token = 0; token < tokens; ++token) {
    if (token == first) token += video.tokens();
    if (token >= tokens) break;
    if (takes_part && !takes_part[token]) continue;
    groups.token.push_back(token);
    if (static_cast<int64_t>(groups.token.size()) - groups.start.back() == kOtherTokens) groups.close();
  }
  if (static_cast<int64_t>(groups.token.size()) > groups.start.back()) groups.close();
  return groups;
}

struct Plan {
  Groups queries;
  std::vector<Groups> keys;  // one, or one per batch where key_padding differs

  explicit Plan(const Call& c) : queries(make_groups(video_queries(c), c.q_start, c.q_tokens, nullptr)) {
    int64_t variants = c.key_padding && c.padding_batch ? c.batch : 1;
    for (int64_t b = 0; b < variants; ++b) {
      const bool* takes_part = c.key_padding ? c.key_padding + b * c.padding_batch : nullptr;
      keys.push_back(make_groups(video_keys(c), c.kv_start, c.kv_tokens, takes_part));
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
inline std::vector<int64_t> list_keys(const Call& c, const Groups& keys, Head at, int64_t g) {
  std::vector<int64_t> list;
  int64_t tiles = video_keys(c).tiles(), query_tiles = video_queries(c).tiles();
  bool video = g < query_tiles;
  if (video) {
    int64_t row = (at.batch * c.heads + at.index) * query_tiles + g;
    const int32_t* ids = c.tiles + row * c.listed;
    int64_t count = std::clamp<int64_t>(c.counts[row], 0, c.listed);
    for (int64_t i = 0; i < count; ++i) list.push_back(std::clamp<int64_t>(ids[i], 0, tiles - 1));
  }
  for (int64_t other = video ? tiles : 0; other < keys.count(); ++other) list.push_back(other);
  return list;
}

}  // namespace vsa
