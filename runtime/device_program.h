// The device's half of a split model as the descriptors of gpu/device.h, with the addresses where everything stands.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "gpu/device.h"
#include "runtime/split.h"
#include "runtime/stream.h"

namespace thermocline {

struct DeviceMap {
  std::array<DeviceRows, static_cast<size_t>(Slot::kCount)> slots{};
  std::vector<DeviceMatrix> matrices;  // by WeightId
  std::vector<DeviceAddress> vectors;  // by WeightId
  // Where gated FFNs count which of their neurons fire, by layer, above which level; n = 0: it is not counted.
  struct Counter {
    DeviceAddress counts = 0, level = 0;
    int n = 0;  // neurons [0, n) of the layer's order
  };
  std::vector<Counter> counters;
  struct Rope {
    const Op* op;  // the first that rotates by these frequencies
    DeviceAddress frequencies;
    DeviceRows table;  // of a step
  };
  std::vector<Rope> ropes;
};

// Where the pieces of a streamed program stand.
struct StreamedMap {
  std::array<DeviceAddress, kPiecesAtOnce> buffers{};
  std::array<uint8_t*, kPiecesAtOnce> staging{};
  int first_flag = 0;  // of piece p: first_flag + 2 p is up when it is in staging, the next one when it was taken
};

// Ropes of a program that differ, as their first ops.
std::vector<const Op*> DistinctRopes(const Program& program);

// channels: by the split's. pieces, stream: of a streamed half, else empty.
std::vector<DeviceOp> MakeDeviceProgram(const Model& half, const KvLayout& layout, const DeviceMap& map,
                                        std::span<const HostRows> channels, std::span<const StreamedPiece> pieces,
                                        const StreamedMap& stream);

}  // namespace thermocline
