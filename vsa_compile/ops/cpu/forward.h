// out and lse. Notation: kernel.cpp.
#pragma once

#include "call.h"
#include "rows.h"
#include "threads.h"

namespace vsa {

constexpr int64_t kKeysPerStep = 512;  // of the online softmax: few rescales, and scores stay in L2
static_assert(kKeysPerStep >= kMostTokens, "a step takes whole groups");

// The keys and values of one head.
template <typename T>
struct ForwardKeys {
  Buffer<T> k;             // (n, D) of every group: left operand of the scores
  Buffer<T> v_transposed;  // (D, n) of every group: left operand of the output

  ForwardKeys(const Call& c, int64_t most_rows) : k(most_rows * c.packed_width), v_transposed(most_rows * c.packed_width) {}

  void pack(const Call& c, const Groups& keys, Head at) {
    share(keys.count(), [&] {
      return [&, plain = Buffer<float>(kMostTokens * c.packed_width),
              turned = Buffer<float>(kMostTokens * c.packed_width)](int64_t g) {
        int64_t rows = keys.rows(g), start = keys.row[g] * c.packed_width;
        gather_left(c, c.k, at, keys, g, plain.get(), k.get() + start);
        gather(c, c.v, at, keys, g, rows, plain.get());
        transpose_left(plain.get(), rows, c.packed_width, turned.get(), v_transposed.get() + start);
      };
    });
  }
};

// One step of the online softmax for a vector of queries. `scores` is a column of `count` (even) vectors, one
// per key; `weights`, a right operand, receives 2^(factor * score - highest). Returns what earlier sums
// shrink by.
template <typename T>
V softmax_step(const float* scores, int64_t count, int64_t stride, float factor, float* highest, float* sum,
               T* weights) {
  V top0(-kInfinity), top1 = top0;
  for (int64_t r = 0; r < count; r += 2) {
    top0 = raise(top0, load_lanes(scores + r * stride));
    top1 = raise(top1, load_lanes(scores + (r + 1) * stride));
  }
  const V times(factor), before = load_lanes(highest), now = raise(before, raise(top0, top1) * times);
  store_lanes(highest, now);
  // Where all scores are -infinity any finite reference gives weights of 0.
  const V reference = only_where(now != V(-kInfinity), now);

  V sum0(0.f), sum1(0.f);
  for (int64_t r = 0; r < count; r += 2) {
    const float* at = scores + r * stride;
    V even = exp2_lanes<T>(below_highest(at::vec::fmsub(load_lanes(at), times, reference)));
    V odd = exp2_lanes<T>(below_highest(at::vec::fmsub(load_lanes(at + stride), times, reference)));
    sum0 = sum0 + even;
    sum1 = sum1 + odd;
    store_pair(weights + r * stride, stride, even, odd);
  }
  const V shrink = exp2_lanes<float>(before - reference);
  store_lanes(sum, at::vec::fmadd(load_lanes(sum), shrink, sum0 + sum1));
  return shrink;
}

// Attention of one query group at a time, with the scratch for it.
template <typename T>
class ForwardGroup {
 public:
  explicit ForwardGroup(const Call& call)
      : c(call), rows(kMostTokens * c.packed_width), out(kMostTokens * c.packed_width), queries(kMostTokens * c.packed_width),
        scores(kKeysPerStep * kMostTokens), converted(kKeysPerStep * kMostTokens) {}

  void operator()(const Plan& plan, const ForwardKeys<T>& packed, Head at, int64_t g) {
    const Groups& keys = plan.keys_of(at.batch);
    columns = round_up(plan.queries.size(g), kLanes);
    gather(c, c.q, at, plan.queries, g, columns, rows.get());
    take_sign(rows.get(), columns * c.packed_width, c.scale);
    transpose_right(rows.get(), columns, c.packed_width, out.get(), queries.get());

    highest.assign(columns, -kInfinity);
    sum.assign(columns, 0.f);
    list = list_keys(c, keys, at, g);
    if (list.empty()) std::fill_n(out.get(), c.packed_width * columns, 0.f);
    for (size_t first = 0; first < list.size();) first = step(keys, packed, first);
    finish(plan.queries, at, g);
  }

 private:
  const Call& c;
  int64_t columns = 0;            // queries, rounded up to whole vectors
  Buffer<float> rows, out;        // (columns, D), (D, columns)
  Buffer<T> queries;              // Q^T, right operand
  Buffer<float> scores;           // (keys of a step, columns)
  Buffer<T> converted;            // weights, right operand; f32 weights overwrite the scores
  std::vector<float> highest, sum;  // of the softmax so far, per query
  std::vector<int64_t> list;      // key groups

  // Takes groups list[first..] up to kKeysPerStep keys; returns the next first.
  size_t step(const Groups& keys, const ForwardKeys<T>& packed, size_t first) {
    int64_t count = 0;
    size_t last = first;
    for (; last < list.size() && count + keys.rows(list[last]) <= kKeysPerStep; ++last) {
      int64_t g = list[last], n = keys.size(g);
      float* to = scores.get() + count * columns;
      const T* rows = packed.k.get() + keys.row[g] * c.packed_width;
      multiply(c, n, columns, c.packed_width, rows, c.packed_width, queries.get(), to, false);
      count += keys.rows(g);
      if (keys.rows(g) > n) std::fill_n(to + n * columns, columns, -kInfinity);  // the padding key
    }
    T* weights = operand(scores.get(), converted.get());
    for (int64_t column = 0; column < columns; column += kLanes) soften(count, column, first > 0, weights);
    for (size_t i = first; i < last; ++i) {
      int64_t n = keys.rows(list[i]);
      const T* values = packed.v_transposed.get() + keys.row[list[i]] * c.packed_width;
      multiply(c, c.packed_width, columns, n, values, n, weights, out.get(), i > 0);
      weights += n * columns;
    }
    return last;
  }

  // Turns the scores of a vector of queries into weights; scales earlier output where the highest score rose.
  void soften(int64_t count, int64_t column, bool earlier, T* weights) {
    T* to = weights + column * (kConverts<T> ? 2 : 1);
    V shrink = softmax_step(scores.get() + column, count, columns, score_factor(c.scale),
                            &highest[column], &sum[column], to);
    bool same = (shrink != V(1.f)).zero_mask() == (1 << kLanes) - 1;
    if (earlier && !same) scale_column(out.get() + column, c.packed_width, columns, shrink);
  }

  void finish(const Groups& groups, Head at, int64_t g) {
    for (int64_t column = 0; column < columns; column += kLanes) {
      V total = load_lanes(&sum[column]);
      V inverse = only_where(total != V(0.f), V(1.f) / total);
      scale_column(out.get() + column, c.packed_width, columns, inverse);
    }
    transpose(out.get(), c.packed_width, columns, rows.get(), c.packed_width);
    scatter(c, c.out, at, groups, g, rows.get());
    float* lse = c.lse + (at.batch * c.heads + at.index) * c.q_tokens;
    for (int64_t i = 0; i < groups.size(g); ++i) {
      double base = sum[i] == 0.f ? 0. : kLn2 * highest[i];
      lse[groups.tokens(g)[i]] = static_cast<float>(base + std::log(static_cast<double>(sum[i])));
    }
  }
};

template <typename T>
void forward_head(const Call& c, const Plan& plan, Head kv, ForwardKeys<T>& packed) {
  int64_t heads = c.heads / c.kv_heads, groups = plan.queries.count();
  packed.pack(c, plan.keys_of(kv.batch), kv);
  share(heads * groups, [&] {
    return [&, group = ForwardGroup<T>(c)](int64_t unit) mutable {
      // Groups outside the video come last and see the most keys: start with them.
      group(plan, packed, {kv.batch, kv.index * heads + unit % heads}, groups - 1 - unit / heads);
    };
  });
}

template <typename T>
void forward(const Call& c) {
  Plan plan(c);
  share_heads(c.batch * c.kv_heads, [&] {
    return [&, packed = ForwardKeys<T>(c, plan.most_rows())](int64_t head, int64_t) mutable {
      forward_head(c, plan, {head / c.kv_heads, head % c.kv_heads}, packed);
    };
  });
}

}  // namespace vsa
