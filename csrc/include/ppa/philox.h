// Philox4x32-10 (Salmon et al., SC 2011), and the random decisions of the method that use it.
#pragma once

#include "ppa/common.h"

namespace ppa {

struct PhiloxWords {
  uint32_t w0, w1, w2, w3;
};

PPA_INLINE uint32_t mul_high(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

PPA_INLINE PhiloxWords philox4x32(PhiloxWords c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = mul_high(0xD2511F53u, c.w0), low0 = 0xD2511F53u * c.w0;
    const uint32_t high1 = mul_high(0xCD9E8D57u, c.w2), low1 = 0xCD9E8D57u * c.w2;
    c = {high1 ^ c.w1 ^ k0, low1, high0 ^ c.w3 ^ k1, low0};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

constexpr uint32_t kStreamMasking = 0, kStreamCoin = 1;

// key = (seed mod 2^32, epoch), counter = (position, stream, pair_id mod 2^32, pair_id >> 32).
PPA_INLINE PhiloxWords pair_words(uint32_t seed, int64_t epoch, int64_t pair_id, uint32_t stream, uint32_t position) {
  const uint64_t id = static_cast<uint64_t>(pair_id);
  return philox4x32({position, stream, static_cast<uint32_t>(id), static_cast<uint32_t>(id >> 32)}, seed,
                    static_cast<uint32_t>(static_cast<uint64_t>(epoch)));
}

// Random input shuffling: side a is the query for 0, side b for 1.
PPA_INLINE uint32_t coin(uint32_t seed, int64_t epoch, int64_t pair_id) {
  return pair_words(seed, epoch, pair_id, kStreamCoin, 0).w0 >> 31;
}

// T(p) = floor(p * 2^32), to be compared with a word in 64 bits. T(1) is above every word.
PPA_INLINE uint64_t threshold(double p) { return static_cast<uint64_t>(p * 4294967296.0); }

// The masking of an ordinary token at a position of its TLM sequence (paper: 15 %, of these 80/10/10).
struct Masking {
  uint32_t seed;
  uint64_t select;  // T(mask probability)
  uint32_t vocab_size;
  int32_t mask_id;
};

PPA_INLINE bool selected(const Masking& masking, const PhiloxWords& words) { return words.w0 < masking.select; }

// Returns the replacement of a selected token.
PPA_INLINE int32_t replacement(const Masking& masking, const PhiloxWords& words, int32_t token) {
  if (words.w1 < 3435973836u) return masking.mask_id;                                               // T(0.8)
  if (words.w1 < 3865470566u) return static_cast<int32_t>(mul_high(words.w2, masking.vocab_size));  // T(0.9)
  return token;
}

}  // namespace ppa
