// grad_q, grad_k and grad_v. Notation: kernel.cpp.
//
// One pass over the (query group, key group) pairs computes all three with five matrix products; a pass for
// grad_q and another for grad_k and grad_v would take seven. Gradients of keys are summed in f32, in one
// accumulator per head and slice of its query groups; there is one slice, unless heads are fewer than threads.
#pragma once

#include "call.h"
#include "rows.h"
#include "threads.h"

namespace vsa {

// The keys and values of one head, and their gradients.
template <typename T>
struct BackwardKeys {
  Buffer<T> k, v;                             // (n, D) of every group, left operands
  Buffer<T> k_transposed;                     // (D, n) of every group, left operand
  std::vector<Buffer<float>> grad_k, grad_v;  // (n, D) of every group, for each slice

  BackwardKeys(const Call& c, int64_t most_rows)
      : k(most_rows * c.packed_width), v(most_rows * c.packed_width), k_transposed(most_rows * c.packed_width) {}

  void pack(const Call& c, const Groups& keys, Head at) {
    share(keys.count(), [&] {
      return [&, plain = Buffer<float>(kMostTokens * c.packed_width),
              turned = Buffer<float>(kMostTokens * c.packed_width)](int64_t g) {
        int64_t rows = keys.rows(g), start = keys.row[g] * c.packed_width;
        gather_left(c, c.v, at, keys, g, plain.get(), v.get() + start);
        gather(c, c.k, at, keys, g, rows, plain.get());
        as_left(plain.get(), rows * c.packed_width, k.get() + start);
        transpose_left(plain.get(), rows, c.packed_width, turned.get(), k_transposed.get() + start);
      };
    });
  }

  void make_slices(int64_t count, int64_t elements) {
    while (static_cast<int64_t>(grad_k.size()) < count) {
      grad_k.emplace_back(elements);
      grad_v.emplace_back(elements);
    }
  }

  // Sums the slices of one group in order and writes its rows of grad_k and grad_v.
  void write(const Call& c, const Groups& keys, Head at, int64_t g, int64_t slices) {
    write(c, c.grad_k, keys, at, g, slices, grad_k, static_cast<float>(c.scale));
    write(c, c.grad_v, keys, at, g, slices, grad_v, 1.f);
  }

 private:
  static void write(const Call& c, const View& view, const Groups& keys, Head at, int64_t g, int64_t slices,
                    const std::vector<Buffer<float>>& grads, float factor) {
    int64_t start = keys.row[g] * c.packed_width;
    float* total = grads[0].get() + start;
    for (int64_t i = 0; i < keys.size(g) * c.packed_width; i += kLanes) {
      V sum = load_lanes(total + i);
      for (int64_t s = 1; s < slices; ++s) sum = sum + load_lanes(grads[s].get() + start + i);
      store_lanes(total + i, sum * V(factor));
    }
    scatter(c, view, at, keys, g, total);
  }
};

// The gradients through one query group at a time, with the scratch for it.
template <typename T>
class BackwardGroup {
 public:
  explicit BackwardGroup(const Call& call)
      : c(call), rows(kMostTokens * c.packed_width), turned(kMostTokens * c.packed_width), grad_q(kMostTokens * c.packed_width),
        q(kMostTokens * c.packed_width), q_transposed(kMostTokens * c.packed_width), grad_out(kMostTokens * c.packed_width),
        grad_out_transposed(kMostTokens * c.packed_width), scores(kMostTokens * kMostTokens),
        score_grads(kMostTokens * kMostTokens), weights_left(kMostTokens * kMostTokens),
        grads_left(kMostTokens * kMostTokens), grads_right(kMostTokens * kMostTokens), lse2(kMostTokens),
        delta(kMostTokens) {}

  // Writes grad_q of query group g, and adds what it contributes to a slice of grad_k and grad_v.
  void operator()(const Plan& plan, const BackwardKeys<T>& packed, int64_t slice, Head at, int64_t g) {
    const Groups& keys = plan.keys_of(at.batch);
    queries = plan.queries.size(g);
    columns = round_up(queries, kLanes);
    pack(plan.queries, at, g);
    std::fill_n(grad_q.get(), c.packed_width * columns, 0.f);
    for (int64_t group : list_keys(c, keys, at, g))
      add(keys.size(group), packed, slice, keys.row[group] * c.packed_width);
    for (int64_t column = 0; column < columns; column += kLanes)
      scale_column(grad_q.get() + column, c.packed_width, columns, V(static_cast<float>(c.scale)));
    transpose(grad_q.get(), c.packed_width, columns, rows.get(), c.packed_width);
    scatter(c, c.grad_q, at, plan.queries, g, rows.get());
  }

 private:
  const Call& c;
  int64_t queries = 0, columns = 0;    // of this group, and rounded up to whole vectors
  Buffer<float> rows, turned, grad_q;  // (columns, D), (D, columns), (D, columns)
  Buffer<T> q, q_transposed, grad_out, grad_out_transposed;  // right operands
  Buffer<float> scores, score_grads;                         // (keys, columns)
  Buffer<T> weights_left, grads_left, grads_right;           // of these; f32 uses them directly
  Buffer<float> lse2, delta;                                 // per query: lse to base 2, grad_out . out

  void pack(const Groups& groups, Head at, int64_t g) {
    int64_t pairs = padded<T>(queries);
    gather(c, c.grad_out, at, groups, g, columns, rows.get());
    gather(c, c.out, at, groups, g, columns, turned.get());
    for (int64_t i = 0; i < columns; ++i)
      delta.get()[i] = dot(rows.get() + i * c.packed_width, turned.get() + i * c.packed_width);
    // A padding query, where products take pairs, is a row of zeros in both of them: it adds nothing.
    as_right(rows.get(), pairs, c.packed_width, grad_out.get());
    transpose_right(rows.get(), columns, c.packed_width, turned.get(), grad_out_transposed.get());

    gather(c, c.q, at, groups, g, columns, rows.get());
    as_right(rows.get(), pairs, c.packed_width, q.get());
    take_sign(rows.get(), columns * c.packed_width, c.scale);
    transpose_right(rows.get(), columns, c.packed_width, turned.get(), q_transposed.get());

    const float* lse = c.lse + (at.batch * c.heads + at.index) * c.q_tokens;
    for (int64_t i = 0; i < columns; ++i) {
      float value = i < queries ? lse[groups.tokens(g)[i]] : 0.f;
      lse2.get()[i] = value == -kInfinity ? 0.f : static_cast<float>(value * kLog2e);
    }
  }

  float dot(const float* a, const float* b) const {
    V sum(0.f);
    for (int64_t d = 0; d < c.packed_width; d += kLanes)
      sum = at::vec::fmadd(load_lanes(a + d), load_lanes(b + d), sum);
    return at::vec::vec_reduce_all<float>([](V x, V y) { return x + y; }, sum);
  }

  // Adds the contribution of a key group of n keys that is packed at `start`.
  void add(int64_t n, const BackwardKeys<T>& packed, int64_t slice, int64_t start) {
    int64_t even = padded<T>(n), pairs = padded<T>(queries), width = c.packed_width;
    const T *k = packed.k.get() + start, *v = packed.v.get() + start;
    multiply(c, n, columns, width, k, width, q_transposed.get(), scores.get(), false);
    multiply(c, n, columns, width, v, width, grad_out_transposed.get(), score_grads.get(), false);
    if (even > n) {  // the padding key
      std::fill_n(scores.get() + n * columns, columns, -kInfinity);
      std::fill_n(score_grads.get() + n * columns, columns, 0.f);
    }
    for (int64_t column = 0; column < columns; column += kLanes) differentiate(even, column);
    T* weights = operand(scores.get(), weights_left.get());
    T* left = operand(score_grads.get(), grads_left.get());
    const T* right = operand(score_grads.get(), grads_right.get());
    multiply(c, n, width, pairs, weights, columns, grad_out.get(), packed.grad_v[slice].get() + start, true);
    multiply(c, n, width, pairs, left, columns, q.get(), packed.grad_k[slice].get() + start, true);
    multiply(c, width, columns, even, packed.k_transposed.get() + start, round_up(n, 2), right, grad_q.get(), true);
  }

  // For a vector of queries: scores and gradients of the weights -> weights and gradients of the scaled scores.
  void differentiate(int64_t keys, int64_t column) {
    const V factor(score_factor(c.scale));
    const V reference = load_lanes(lse2.get() + column), mean = load_lanes(delta.get() + column);
    T* weights = operand(scores.get(), weights_left.get());
    T* left = operand(score_grads.get(), grads_left.get());
    auto one = [&](int64_t at) {
      V weight = exp2_lanes<T>(below_highest(at::vec::fmsub(load_lanes(scores.get() + at), factor, reference)));
      V grad = weight * (load_lanes(score_grads.get() + at) - mean);
      store_lanes(weights + at, weight);
      store_lanes(left + at, grad);
      return grad;
    };
    for (int64_t r = 0; r < keys; r += kConverts<T> ? 2 : 1) {
      int64_t at = r * columns + column;
      V even = one(at);
      if constexpr (kConverts<T>) store_pair(grads_right.get() + at + column, columns, even, one(at + columns));
    }
  }
};

template <typename T>
void backward_head(const Call& c, const Plan& plan, Head kv, int64_t slices, BackwardKeys<T>& packed) {
  int64_t heads = c.heads / c.kv_heads, units = heads * plan.queries.count();
  const Groups& keys = plan.keys_of(kv.batch);
  packed.make_slices(slices, plan.most_rows() * c.packed_width);
  packed.pack(c, keys, kv);
  share(slices, [&] {
    return [&, group = BackwardGroup<T>(c)](int64_t slice) mutable {
      for (auto* grads : {&packed.grad_k, &packed.grad_v})
        std::fill_n((*grads)[slice].get(), keys.all_rows() * c.packed_width, 0.f);
      for (int64_t unit = slice; unit < units; unit += slices)
        group(plan, packed, slice, {kv.batch, kv.index * heads + unit % heads}, unit / heads);
    };
  });
  share(keys.count(), [&] { return [&](int64_t g) { packed.write(c, keys, kv, g, slices); }; });
}

template <typename T>
void backward(const Call& c) {
  Plan plan(c);
  share_heads(c.batch * c.kv_heads, [&] {
    return [&, packed = BackwardKeys<T>(c, plan.most_rows())](int64_t head, int64_t threads) mutable {
      backward_head(c, plan, {head / c.kv_heads, head % c.kv_heads}, threads, packed);
    };
  });
}

}  // namespace vsa
