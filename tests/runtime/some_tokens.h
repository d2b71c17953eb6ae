// Tokens of a tiny model, at random.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "models/tokenizer.h"

namespace thermocline {

inline std::vector<TokenId> SomeTokens(int n, uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::vector<TokenId> tokens;
  for (int i = 0; i < n; ++i) tokens.push_back(static_cast<TokenId>(random() % 288));
  return tokens;
}

}  // namespace thermocline
