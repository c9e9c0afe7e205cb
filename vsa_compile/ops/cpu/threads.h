// Distributes work to threads, and allocates their scratch memory.
#pragma once

#include "call.h"
#include "product.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace vsa {

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
  if (alone == heads) return;
  auto body = worker();
  for (int64_t head = alone; head < heads; ++head) body(head, threads);
}

// Uninitialised, 64-byte aligned.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t elements) {
    size_t bytes = round_up(std::max<int64_t>(elements, 1) * sizeof(T), 64);
    memory_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!memory_) throw std::bad_alloc();
#ifdef VSA_POISON_SCRATCH  // tests: a value that is read before it is written is NaN
    std::memset(memory_.get(), 0xff, bytes);
#endif
  }
  T* get() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> memory_;
};

}  // namespace vsa
