// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): the one random source of
// every op on every backend. A draw is a pure function of (seed, position, lane or token, purpose):
//   counter = (position low, position high, lane or token group, purpose),  key = (seed low, seed high).
// Nothing is stored between draws, so the order in which they are made, and by whom, changes nothing.
#pragma once

#include "common/portable.h"

namespace specbranch {

// What a draw is for. Mirrored in Python as specbranch.ops.PURPOSE_*.
enum Purpose : int32_t {
  kPurposeAccept = 0,   // accept or reject a drafted token; lane = index among its sampled siblings
  kPurposeRecover = 1,  // the target's own draws: residual, bonus, branch point, plain decoding
  kPurposeDraft = 2,    // the draft's draws
  kPurposeGumbel = 3,   // noise of the coupled mode, see gumbel.h
};

struct PhiloxBlock {
  uint32_t word[4];
};

SB_HD PhiloxBlock philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * c2;
    const uint32_t high0 = static_cast<uint32_t>(product0 >> 32), low0 = static_cast<uint32_t>(product0);
    const uint32_t high1 = static_cast<uint32_t>(product1 >> 32), low1 = static_cast<uint32_t>(product1);
    c0 = high1 ^ c1 ^ key0;
    c1 = low1;
    c2 = high0 ^ c3 ^ key1;
    c3 = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return PhiloxBlock{{c0, c1, c2, c3}};
}

SB_HD PhiloxBlock philox_at(int64_t seed, int64_t position, uint32_t lane, int32_t purpose) {
  const uint64_t s = static_cast<uint64_t>(seed), p = static_cast<uint64_t>(position);
  return philox(static_cast<uint32_t>(p), static_cast<uint32_t>(p >> 32), lane, static_cast<uint32_t>(purpose),
                static_cast<uint32_t>(s), static_cast<uint32_t>(s >> 32));
}

// Uniform in [0, 1) with 53 bits: the high 27 of word 0, then the high 26 of word 1.
SB_HD double uniform(int64_t seed, int64_t position, uint32_t lane, int32_t purpose) {
  const PhiloxBlock block = philox_at(seed, position, lane, purpose);
  const uint64_t bits = (uint64_t{block.word[0] >> 5} << 26) | uint64_t{block.word[1] >> 6};
  return static_cast<double>(bits) * (1.0 / 9007199254740992.0);
}

}  // namespace specbranch
