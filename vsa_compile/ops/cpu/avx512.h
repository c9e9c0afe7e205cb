// Powers of two and bf16 operands of matrix products by single instructions, which at::vec does not offer.
#pragma once

#include "vectors.h"

#include <immintrin.h>

#include <cstring>

namespace vsa {

// As in vectors.h.
struct Power {
  V whole, rest;
  __mmask16 normal;

  explicit Power(V x)
      : whole(x.round()), rest(x - whole), normal(_mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.f), _CMP_NLT_UQ)) {}

  V times(V y) const { return _mm512_maskz_scalef_ps(normal, y, whole); }
};

// Two vectors of f32 as interleaved bf16, rounded to nearest even: the low half of each 32 bits is `even`'s.
inline __m512i interleave_bf16(V even, V odd) {
#ifdef __AVX512BF16__
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                         23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  __m512bh pair = _mm512_cvtne2ps_pbh(odd, even);
  __m512i bits;
  std::memcpy(&bits, &pair, sizeof bits);
  return _mm512_permutexvar_epi16(order, bits);
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

inline void store_lanes(BFloat16* to, V x) {
#ifdef __AVX512BF16__
  __m256bh bits = _mm512_cvtneps_pbh(x);
  std::memcpy(to, &bits, sizeof bits);
#else
  __m512i paired = interleave_bf16(x, V(0.f));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(paired));
#endif
}

// Two rows of a right operand, 2 * kLanes numbers.
inline void store_pair(BFloat16* to, V even, V odd) { _mm512_storeu_si512(to, interleave_bf16(even, odd)); }

}  // namespace vsa
