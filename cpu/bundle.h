// The up and down weights of an FFN with what belongs to a neuron side by side, so that a silent neuron is not read
// (DESIGN "Weights in memory", form F2). A neuron is a row of up and a column of down.
//
//   32 neurons    [down scales][bundle of neuron 0] ... [bundle of neuron 31]
//   a bundle      [up codes][up scales][down codes], whole cache lines
//   up codes      per 512 k the lines of one chunk of a panel (models/packed_format.h), a lane of 4 bytes for each
//                 group of 32 k where a panel has one for each output row: K runs across the lanes
//   up scales     per 512 k 16 F16 scales, then 16 F16 mins if the type has them
//   down codes    4 bits: a line per 128 outputs, nibble q of lane i is output 16 q + i
//                 8 bits: two lines per 128 outputs, byte b of lane i of line j is output 64 j + 16 b + i
//   down scales   F16 of each output, then as many mins if the type has them
//
// The 32 neurons are one group of the file's down, along n_ff: they share a scale per output. Kept so, down is not
// quantized anew. At 4 bits and 10 % of neurons active its scales cost as many bytes as 8-bit codes with scales of
// their own would, and fewer from 14 % on.
//
// k past n_embd and outputs past n_embd have zero scales.
//
// Rows may also stand so alone, without a down: the gates that are read where a predictor says so (form F3).
#pragma once

#include <cstdint>

#include "cpu/packed.h"
#include "models/model.h"

namespace thermocline {

// To be raised when any byte of a bundle changes.
inline constexpr uint64_t kBundleLayoutVersion = 2;

inline constexpr int kBundleNeurons = 32;  // that share down scales
inline constexpr int kUpBlockK = 512;      // k per block of up codes: 16 lanes x 32
inline constexpr int kDownOutputs = 128;   // outputs per line or two of down codes
// Neurons whose sum is one partial result; merged in order. In slices of this size two threads share 5632 neurons
// evenly, and 16 do it well.
inline constexpr int kSliceNeurons = 256;

struct BundleShape {
  DType up{}, down{};
  int64_t n_embd = 0, n_ff = 0;
  bool has_down = true;

  BundleShape() = default;
  BundleShape(DType up, DType down, int64_t n_embd, int64_t n_ff)
      : up(up),
        down(down),
        n_embd(n_embd),
        n_ff(n_ff),
        up_format_(FindPackedFormat(up)),
        down_format_(FindPackedFormat(down)) {}
  // Of rows without a down.
  static BundleShape Rows(DType type, int64_t n_embd, int64_t n_ff) {
    BundleShape shape(type, type, n_embd, n_ff);
    shape.has_down = false;
    return shape;
  }

  const PackedFormat& up_format() const { return *up_format_; }
  const PackedFormat& down_format() const { return *down_format_; }
  int64_t n_groups() const { return n_ff / kBundleNeurons; }
  int64_t n_slices() const { return (n_ff + kSliceNeurons - 1) / kSliceNeurons; }
  int64_t up_blocks() const { return (n_embd + kUpBlockK - 1) / kUpBlockK; }
  int64_t up_code_bytes() const { return up_blocks() * up_format().chunk_bytes(); }
  int64_t up_scale_bytes() const { return up_format().has_min ? 64 : 32; }  // per block
  int64_t down_offset() const { return up_code_bytes() + (up_blocks() * up_scale_bytes() + 63) / 64 * 64; }
  int64_t down_blocks() const { return has_down ? (n_embd + kDownOutputs - 1) / kDownOutputs : 0; }
  int64_t down_block_bytes() const { return kDownOutputs * down_format().bits / 8; }
  int64_t n_outputs() const { return down_blocks() * kDownOutputs; }  // with the padding
  int64_t bundle_bytes() const { return down_offset() + down_blocks() * down_block_bytes(); }
  int64_t scale_bytes() const { return n_outputs() * 2 * (down_format().has_min ? 2 : 1); }
  int64_t group_bytes() const { return scale_bytes() + kBundleNeurons * bundle_bytes(); }
  int64_t bytes() const { return n_groups() * group_bytes(); }

  // Whether an FFN of such widths can stand in bundles, and the type in which they hold a type of the file: itself, or
  // Q8_0, to which rows are then requantized.
  static bool Fits(int64_t n_embd, int64_t n_ff) { return n_embd % 32 == 0 && n_ff % kBundleNeurons == 0; }
  static DType UpType(DType source);
  static DType DownType(DType source);

 private:
  const PackedFormat *up_format_ = nullptr, *down_format_ = nullptr;
};

class Bundles {
 public:
  Bundles() = default;
  // In shape.bytes() bytes of somebody else's memory, zeroed and 64-byte aligned, that must outlive it.
  Bundles(const BundleShape& shape, uint8_t* memory) : shape_(shape), data_(memory) {}

  // Packs rows of up (n_ff, n_embd), those of the neurons of a slice; and rows of down (n_embd, at least first_neuron +
  // n_ff), those of a block of kDownOutputs, whose column first_neuron belongs to neuron 0. Slices and blocks may be
  // packed by several threads at once. Every instruction set writes the same bytes.
  void PackUp(const Weight& up, int64_t slice, Isa isa);
  void PackDown(const Weight& down, int64_t first_neuron, int64_t block, Isa isa);

  // Panels made anew for the packed product: the same bytes that the file's rows become. 64-byte aligned, panel_stride
  // bytes apart.
  // Of up: the two panels of a group's 32 neurons, for one block of k.
  void UpPanels(int64_t group, int64_t block, int64_t panel_stride, uint8_t* out) const;
  int64_t UpBlocks(int64_t block) const;  // packed blocks of such a panel
  int64_t UpPanelBytes(int64_t block) const { return UpBlocks(block) * shape_.up_format().block_bytes(); }
  // Of down: the panels of a block of 128 outputs, for n_groups groups of neurons from an even one on.
  void DownPanels(int64_t block, int64_t first_group, int64_t n_groups, int64_t panel_stride, uint8_t* out) const;
  int64_t DownPanelBytes(int64_t n_groups) const { return (n_groups + 1) / 2 * shape_.down_format().block_bytes(); }
  int64_t DownPanelCount(int64_t block) const;

  // A neuron's rows as floats (n_embd): the specification of the layout.
  void DequantizeUp(int64_t neuron, float* out) const;
  void DequantizeDown(int64_t neuron, float* out) const;

  const BundleShape& shape() const { return shape_; }
  bool empty() const { return data_ == nullptr; }
  const uint8_t* down_scales(int64_t group) const { return data_ + group * shape_.group_bytes(); }
  const uint8_t* bundle(int64_t neuron) const {
    return down_scales(neuron / kBundleNeurons) + shape_.scale_bytes() +
           neuron % kBundleNeurons * shape_.bundle_bytes();
  }

 private:
  void PackDownSlice(const FileRows& rows, int64_t block, int64_t slice, Isa isa);
  uint8_t* Mutable(const uint8_t* at) { return data_ + (at - data_); }

  BundleShape shape_{};
  uint8_t* data_ = nullptr;
};

}  // namespace thermocline
