// How keys and values stand in memory.
//
// A page holds 64 tokens of all layers of its kind; of each layer and KV head the keys, then the values. Either is
//
//   F16    keys as (head_dim, 64), values as (64, head_dim)
//   Q8_0   scales as (ceil(head_dim / 32), 64) F16, then s8: keys as (dim pairs, 64, 2), values as (token pairs,
//          head_dim, 2); x = scale * s8
//
// where 32 dims of one token are a group with a scale, as in ggml's Q8_0, and the pairs are what a dot product of
// 16-bit numbers adds up. Tokens share no number, so that forgetting some of a page and going on is exact.
#pragma once

#include <cstdint>
#include <vector>

#include "models/dtype.h"
#include "models/model.h"

namespace thermocline {

inline constexpr int kPageTokens = 64;
inline constexpr int kKvGroup = 32;
// A block table each: layers that see everything, layers with a window; then the same of layers whose keys and values
// are in a device's memory.
inline constexpr int kLayerKinds = 4;
constexpr bool HasWindow(int kind) { return kind % 2 == 1; }
constexpr bool IsOnDevice(int kind) { return kind >= 2; }
inline constexpr int kSplitKind = 2;  // of whose pages a device may hold the first ones alone

struct KvTypes {  // F16 or Q8_0
  DType key = DType::kF16, value = DType::kF16;
  bool operator==(const KvTypes&) const = default;
};

// Static, as files compiled for different instruction sets use them.
static constexpr int64_t KvGroups(int head_dim) { return (head_dim + kKvGroup - 1) / kKvGroup; }
// What a page takes for the keys, or the values, of one head.
static constexpr int64_t KvSideBytes(DType type, int head_dim) {
  const int64_t per_token = type == DType::kQ8_0 ? (head_dim + 1) / 2 * 2 + 2 * KvGroups(head_dim) : 2 * head_dim;
  return kPageTokens * per_token;
}
static constexpr int64_t KvHeadBytes(KvTypes types, int head_dim) {
  return KvSideBytes(types.key, head_dim) + KvSideBytes(types.value, head_dim);
}

// Where a layer's keys and values stand within the pages of its kind.
struct KvLayout {
  struct Layer {
    int kind;
    int64_t offset_bytes;
  };
  KvTypes types;
  std::vector<Layer> layers;
  // Pages of the kind on a device that sees everything are there for tokens in front of this one, and with the CPU from
  // it on.
  int device_tokens = INT32_MAX;
  int64_t head_bytes;
  int64_t page_bytes[kLayerKinds];  // 0: no layer of that kind

  // on_device: by layer; empty: none.
  KvLayout(const ModelConfig& config, KvTypes types, const std::vector<bool>& on_device = {});
};

}  // namespace thermocline
