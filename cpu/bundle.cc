#include "cpu/bundle.h"

#include <emmintrin.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/pack.h"
#include "models/weight_rows.h"

namespace thermocline {
namespace {

constexpr int kLanes = 16;
constexpr int kPanelsPerBlock = kDownOutputs / kPanelRows;
// Where n F16 values of one chunk stand in a packed block of two: scales, or mins behind all scales.
constexpr int64_t ScaleOffset(int chunk, bool min) { return 64 * min + 32 * chunk; }

// Lane by lane: nibble t of line[q] becomes nibble q of line[t]. Its own inverse.
void TransposeNibbles(uint32_t line[8][kLanes]) {
  const auto exchange = [line](int distance, int shift, uint32_t mask) {
    for (int q = 0; q < 8; ++q) {
      if (q & distance) continue;
      uint32_t *a = line[q], *b = line[q + distance];
      for (int i = 0; i < kLanes; ++i) {
        const uint32_t moved = ((a[i] >> shift) ^ b[i]) & mask;
        b[i] ^= moved;
        a[i] ^= moved << shift;
      }
    }
  };
  exchange(4, 16, 0x0000ffff);
  exchange(2, 8, 0x00ff00ff);
  exchange(1, 4, 0x0f0f0f0f);
}

__m128i Load128(const uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
void Store128(uint8_t* to, __m128i value) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), value); }

// 4 x 4 words of 32 bits.
void TransposeWords(__m128i rows[4]) {
  const __m128i low01 = _mm_unpacklo_epi32(rows[0], rows[1]), low23 = _mm_unpacklo_epi32(rows[2], rows[3]);
  const __m128i high01 = _mm_unpackhi_epi32(rows[0], rows[1]), high23 = _mm_unpackhi_epi32(rows[2], rows[3]);
  rows[0] = _mm_unpacklo_epi64(low01, low23);
  rows[1] = _mm_unpackhi_epi64(low01, low23);
  rows[2] = _mm_unpacklo_epi64(high01, high23);
  rows[3] = _mm_unpackhi_epi64(high01, high23);
}

// The neuron of a group in nibble t of quad pair j: a panel's line j has quad j in its low nibbles, j + 4 in its high.
constexpr int NeuronOfNibble(int j, int t) { return 4 * j + t / 2 + 16 * (t % 2); }

// Where 8 bits of output r of panel p stand in the lines of a block.
constexpr int64_t DownByte(int64_t p, int r) { return 64 * (p / 4) + 4 * r + p % 4; }

float Half(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, 2);
  return HalfToFloat(half);
}

}  // namespace

DType BundleShape::UpType(DType source) {
  switch (source) {
    case DType::kQ4_0:
    case DType::kQ4_1:
    case DType::kQ5_0:
    case DType::kQ5_1: return source;
    default: return DType::kQ8_0;
  }
}

DType BundleShape::DownType(DType source) {
  return source == DType::kQ4_0 || source == DType::kQ4_1 ? source : DType::kQ8_0;
}

void Bundles::PackUp(const Weight& up, int64_t slice, Isa isa) {
  const PackedFormat& format = shape_.up_format();
  const int64_t first = slice * kSliceNeurons, last = std::min(first + kSliceNeurons, shape_.n_ff);
  std::vector<uint8_t> scratch;
  const FileRows rows = RowsAs(shape_.up, up, first, last - first, 0, shape_.n_embd, scratch);
  std::vector<uint8_t> memory(PackedMatrix::BytesFor(shape_.up, kPanelRows, shape_.n_embd) + 64);
  uint8_t* panel = memory.data() + -reinterpret_cast<uintptr_t>(memory.data()) % 64;
  for (int64_t neuron = first; neuron < last; neuron += kPanelRows) {
    PackPanel(isa, format, rows.data + (neuron - first) * rows.row_bytes, rows.row_bytes, kPanelRows, shape_.n_embd,
              panel);
    for (int64_t chunk = 0; chunk < shape_.n_embd / kChunk; ++chunk) {
      const uint8_t* from = panel + chunk / 2 * format.block_bytes();
      const uint8_t* codes = from + chunk % 2 * format.chunk_bytes();
      const uint8_t* scales = from + 2 * format.chunk_bytes();
      const int64_t block = chunk / kLanes, lane = chunk % kLanes;
      for (int r = 0; r < kPanelRows; ++r) {
        uint8_t* out = Mutable(bundle(neuron + r));
        uint8_t* to = out + block * format.chunk_bytes() + 4 * lane;
        for (int line = 0; line < format.bits; ++line) std::memcpy(to + 64 * line, codes + 64 * line + 4 * r, 4);
        to = out + shape_.up_code_bytes() + block * shape_.up_scale_bytes() + 2 * lane;
        for (int min = 0; min <= format.has_min; ++min)
          std::memcpy(to + 32 * min, scales + ScaleOffset(chunk % 2, min) + 2 * r, 2);
      }
    }
  }
}

void Bundles::PackDown(const Weight& down, int64_t first_neuron, int64_t block, Isa isa) {
  std::vector<uint8_t> scratch;
  const int64_t row = block * kDownOutputs, n_rows = std::min<int64_t>(kDownOutputs, shape_.n_embd - row);
  const FileRows rows = RowsAs(shape_.down, down, row, n_rows, first_neuron, shape_.n_ff, scratch);
  for (int64_t slice = 0; slice < shape_.n_slices(); ++slice)
    PackDownSlice({rows.data + FileRowBytes(shape_.down, slice * kSliceNeurons), rows.row_bytes}, block, slice, isa);
}

// From rows of the block that begin with the slice.
void Bundles::PackDownSlice(const FileRows& rows, int64_t block, int64_t slice, Isa isa) {
  const PackedFormat& format = shape_.down_format();
  const int64_t first = slice * kSliceNeurons, n = std::min<int64_t>(kSliceNeurons, shape_.n_ff - first);
  const int64_t panel_bytes = PackedMatrix::BytesFor(shape_.down, kPanelRows, n);
  std::vector<uint8_t> memory(kPanelsPerBlock * panel_bytes + 64);
  uint8_t* panels = memory.data() + -reinterpret_cast<uintptr_t>(memory.data()) % 64;
  for (int64_t p = 0; p < DownPanelCount(block); ++p) {
    const int64_t row = p * kPanelRows, left = shape_.n_embd - block * kDownOutputs - row;
    PackPanel(isa, format, rows.data + row * rows.row_bytes, rows.row_bytes,
              static_cast<int>(std::min<int64_t>(kPanelRows, left)), n, panels + p * panel_bytes);
  }
  for (int64_t chunk = 0; chunk < n / kChunk; ++chunk) {
    const int64_t group = first / kBundleNeurons + chunk;
    const uint8_t* from = panels + chunk / 2 * format.block_bytes();
    const uint8_t* codes = from + chunk % 2 * format.chunk_bytes();
    const auto line_of = [&](int neuron) {
      return Mutable(bundle(group * kBundleNeurons + neuron)) + shape_.down_offset() +
             block * shape_.down_block_bytes();
    };
    for (int line = 0; line < format.bits; ++line) {
      if (format.bits == 8) {  // quad `line`
        for (int p = 0; p < kPanelsPerBlock; ++p)
          for (int i = 0; i < 64; ++i)
            line_of(4 * line + i % 4)[DownByte(p, i / 4)] = codes[p * panel_bytes + 64 * line + i];
        continue;
      }
      uint32_t words[8][kLanes];
      for (int p = 0; p < kPanelsPerBlock; ++p) std::memcpy(words[p], codes + p * panel_bytes + 64 * line, 64);
      TransposeNibbles(words);
      for (int t = 0; t < 8; ++t) std::memcpy(line_of(NeuronOfNibble(line, t)), words[t], 64);
    }
    const uint8_t* scales = from + 2 * format.chunk_bytes();
    for (int min = 0; min <= format.has_min; ++min)
      for (int p = 0; p < kPanelsPerBlock; ++p)
        std::memcpy(Mutable(down_scales(group)) + 2 * (min * shape_.n_outputs() + block * kDownOutputs) + 32 * p,
                    scales + p * panel_bytes + ScaleOffset(chunk % 2, min), 32);
  }
}

int64_t Bundles::UpBlocks(int64_t block) const {
  return (std::min<int64_t>(kUpBlockK, shape_.n_embd - block * kUpBlockK) + 63) / 64;
}

void Bundles::UpPanels(int64_t group, int64_t block, int64_t panel_stride, uint8_t* out) const {
  const PackedFormat& format = shape_.up_format();
  for (int64_t p = 0; p < kBundleNeurons / kPanelRows; ++p) {
    uint8_t* panel = out + p * panel_stride;
    const uint8_t* bundles = bundle(group * kBundleNeurons + p * kPanelRows);
    const uint8_t* codes = bundles + block * format.chunk_bytes();
    const uint8_t* scales = bundles + shape_.up_code_bytes() + block * shape_.up_scale_bytes();
    const int64_t stride = shape_.bundle_bytes(), n_lanes = 2 * UpBlocks(block);
    const auto to = [&](int64_t lane) { return panel + lane / 2 * format.block_bytes(); };
    for (int64_t lane = 0; lane < n_lanes; lane += 4)
      for (int r = 0; r < kPanelRows; r += 4)
        for (int line = 0; line < format.bits; ++line) {
          __m128i words[4];
          for (int i = 0; i < 4; ++i) words[i] = Load128(codes + (r + i) * stride + 64 * line + 4 * lane);
          TransposeWords(words);
          for (int i = 0; i < std::min<int64_t>(4, n_lanes - lane); ++i)
            Store128(to(lane + i) + (lane + i) % 2 * format.chunk_bytes() + 64 * line + 4 * r, words[i]);
        }
    for (int64_t lane = 0; lane < n_lanes; ++lane)
      for (int min = 0; min <= format.has_min; ++min) {
        uint8_t* halves = to(lane) + 2 * format.chunk_bytes() + ScaleOffset(static_cast<int>(lane % 2), min);
        for (int r = 0; r < kPanelRows; ++r) std::memcpy(halves + 2 * r, scales + r * stride + 32 * min + 2 * lane, 2);
      }
  }
}

int64_t Bundles::DownPanelCount(int64_t block) const {
  return (std::min<int64_t>(kDownOutputs, shape_.n_embd - block * kDownOutputs) + kPanelRows - 1) / kPanelRows;
}

void Bundles::DownPanels(int64_t block, int64_t first_group, int64_t n_groups, int64_t panel_stride,
                         uint8_t* out) const {
  const PackedFormat& format = shape_.down_format();
  const int64_t n_panels = DownPanelCount(block);
  const int64_t stride = shape_.bundle_bytes();
  for (int64_t chunk = 0; chunk < n_groups; ++chunk) {
    const int64_t group = first_group + chunk;
    uint8_t* to = out + chunk / 2 * format.block_bytes();
    uint8_t* codes = to + chunk % 2 * format.chunk_bytes();
    const uint8_t* lines = bundle(group * kBundleNeurons) + shape_.down_offset() + block * shape_.down_block_bytes();
    const auto line_of = [&](int neuron) { return lines + neuron * stride; };
    for (int line = 0; line < format.bits; ++line) {
      if (format.bits == 8) {
        for (int j = 0; j < 4; ++j) {
          const uint8_t* from = line_of(4 * line + j);
          for (int64_t p = 0; p < n_panels; ++p)
            for (int r = 0; r < kPanelRows; ++r) codes[p * panel_stride + 64 * line + 4 * r + j] = from[DownByte(p, r)];
        }
        continue;
      }
      uint32_t words[8][kLanes];
      for (int t = 0; t < 8; ++t) std::memcpy(words[t], line_of(NeuronOfNibble(line, t)), 64);
      TransposeNibbles(words);
      for (int64_t p = 0; p < n_panels; ++p) std::memcpy(codes + p * panel_stride + 64 * line, words[p], 64);
    }
    for (int min = 0; min <= format.has_min; ++min)
      for (int64_t p = 0; p < n_panels; ++p)
        std::memcpy(to + p * panel_stride + 2 * format.chunk_bytes() + ScaleOffset(chunk % 2, min),
                    down_scales(group) + 2 * (min * shape_.n_outputs() + block * kDownOutputs) + 32 * p, 32);
  }
  if (n_groups % 2 == 0) return;
  // The last block's second chunk.
  for (int64_t p = 0; p < n_panels; ++p) {
    uint8_t* last = out + p * panel_stride + n_groups / 2 * format.block_bytes();
    std::memset(last + format.chunk_bytes(), 0, format.chunk_bytes());
    for (int min = 0; min <= format.has_min; ++min)
      std::memset(last + 2 * format.chunk_bytes() + ScaleOffset(1, min), 0, 32);
  }
}

void Bundles::DequantizeUp(int64_t neuron, float* out) const {
  const PackedFormat& format = shape_.up_format();
  const uint8_t* row = bundle(neuron);
  for (int64_t k = 0; k < shape_.n_embd; ++k) {
    const int64_t block = k / kUpBlockK;
    const int lane = static_cast<int>(k % kUpBlockK / kChunk), quad = static_cast<int>(k % kChunk / 4);
    const uint8_t* codes = row + block * format.chunk_bytes() + 4 * lane + k % 4;
    int code = codes[64 * (format.bits == 8 ? quad : quad % 4)];
    if (format.bits < 8) code = code >> (quad < 4 ? 0 : 4) & 15;
    if (format.bits == 5) code |= (codes[256] >> quad & 1) << 4;
    const uint8_t* scales = row + shape_.up_code_bytes() + block * shape_.up_scale_bytes() + 2 * lane;
    out[k] = format.has_min ? Half(scales) * static_cast<float>(code) + Half(scales + 32)
                            : Half(scales) * static_cast<float>(code - format.zero_point);
  }
}

void Bundles::DequantizeDown(int64_t neuron, float* out) const {
  const PackedFormat& format = shape_.down_format();
  const uint8_t* codes = bundle(neuron) + shape_.down_offset();
  const uint8_t* scales = down_scales(neuron / kBundleNeurons);
  for (int64_t e = 0; e < shape_.n_embd; ++e) {
    const uint8_t* block = codes + e / kDownOutputs * shape_.down_block_bytes();
    const int lane = static_cast<int>(e % kLanes), q = static_cast<int>(e % kDownOutputs / kLanes);
    const int code = format.bits == 8 ? block[DownByte(q, lane)] : block[4 * lane + q / 2] >> q % 2 * 4 & 15;
    out[e] = Half(scales + 2 * e) * static_cast<float>(code - format.zero_point);
    if (format.has_min) out[e] += Half(scales + 2 * (shape_.n_outputs() + e));
  }
}

}  // namespace thermocline
