// Keys and values of all sequences in pages of 64 tokens. One block table per sequence and layer kind; window layers
// give back pages that no later token can see.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "cpu/buffer.h"
#include "models/kv_layout.h"

namespace thermocline {

class KvCache {
 public:
  // Room for max_sequences of n_ctx tokens; memory is taken page by page as it is written. `seed` other than 0 hands
  // out physical pages in a shuffled order. `device`: for each kind that is on a device DeviceBytes of its memory,
  // which are never read or written here. Throws Error when the address space does not suffice.
  KvCache(const ModelConfig& config, const KvLayout& layout, int n_ctx, int max_sequences, int max_rows, uint64_t seed,
          const std::array<uint64_t, kLayerKinds>& device = {});

  const KvLayout& layout() const { return layout_; }
  int length(int sequence) const { return sequences_[sequence].length; }

  // Makes sure that positions [length, length + n) of the sequence have pages. There are always enough of them.
  void Reserve(int sequence, int n);
  // The reserved tokens are written: they count from now on, and pages behind the window are freed.
  void Commit(int sequence, int n);
  // Forgets tokens from n on, reserved ones included; returns the new length, which is 0 where the window layers no
  // longer hold what position n needs.
  int Truncate(int sequence, int n);

  // Pages by position / 64, null where freed; valid until the next change of the sequence.
  uint8_t* const* Pages(int sequence, int kind) const { return sequences_[sequence].pages[kind].data(); }
  int64_t bytes_in_use() const;

  // Bytes that one sequence of n_ctx tokens takes when all of them are in use; of one kind of layers what the device
  // has of it.
  static int64_t DeviceBytesFor(const ModelConfig& config, const KvLayout& layout, int kind, int n_ctx, int max_rows);
  static int64_t BytesFor(const ModelConfig& config, KvTypes types, int n_ctx, int max_rows);

 private:
  struct Pool {
    Buffer memory;
    std::vector<uint8_t*> free;
    int64_t n_pages = 0;
    int64_t page_bytes = 0;
  };
  struct Sequence {
    int length = 0;
    std::vector<uint8_t*> pages[kLayerKinds];
    int first_page = 0;  // pages of window layers before it have been freed
  };
  static int64_t PagesFor(const ModelConfig& config, int kind, int n_ctx, int max_rows);
  static int64_t DevicePagesFor(const ModelConfig& config, const KvLayout& layout, int kind, int n_ctx, int max_rows);
  // Of the page that holds tokens from 64 * page on.
  Pool& PoolOf(int kind, int64_t page) {
    return kind == kSplitKind && page >= layout_.device_tokens / kPageTokens ? rest_ : pools_[kind];
  }
  void Free(Sequence& sequence, int kind, int begin, int end);

  KvLayout layout_;
  int window_;
  Pool pools_[kLayerKinds];
  Pool rest_;  // of kSplitKind, what is with the CPU
  std::vector<Sequence> sequences_;
};

}  // namespace thermocline
