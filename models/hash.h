// A 64-bit hash of bytes against accidents: damage, a file in the place of another. Not against forgery.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>

namespace thermocline {

class Hash {
 public:
  void Add(std::span<const uint8_t> bytes) {
    size_t i = 0;
    for (; i + 8 <= bytes.size(); i += 8) {
      uint64_t word;
      std::memcpy(&word, bytes.data() + i, 8);
      Mix(word);
    }
    uint64_t rest = 0;
    if (i < bytes.size()) std::memcpy(&rest, bytes.data() + i, bytes.size() - i);
    Mix(rest);
    Mix(bytes.size());
  }
  void Add(uint64_t word) { Mix(word); }
  uint64_t value() const { return state_; }

 private:
  // Both halves of a product with an odd constant (2^64 over the golden ratio): every bit of the word reaches every bit
  // of the state.
  void Mix(uint64_t word) {
    const auto product = static_cast<unsigned __int128>(state_ ^ word) * 0x9e3779b97f4a7c15;
    state_ = static_cast<uint64_t>(product >> 64) + static_cast<uint64_t>(product) + 0x9e3779b97f4a7c15;
  }
  uint64_t state_ = 0x243f6a8885a308d3;  // pi
};

}  // namespace thermocline
