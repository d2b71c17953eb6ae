// The device's half of a split model while it runs: its weights, rows and KV pages in the device's memory, and the
// page-locked rows where it meets the CPU.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "cpu/executor.h"
#include "cpu/peer.h"
#include "cpu/team.h"
#include "gpu/device.h"
#include "models/gguf.h"
#include "runtime/device_program.h"
#include "runtime/split.h"
#include "runtime/stream.h"

namespace thermocline {

// Of all steps that will come.
struct StepLimits {
  int n_ctx, max_sequences, max_rows;
  bool count_firings = false;  // of generated rows, which of the device's neurons fire
};

// Bytes of a device's memory.
struct DeviceBytes {
  int64_t weights = 0;
  int64_t rows = 0;  // what flows between ops in a step
  int64_t kv = 0;
  int64_t counters = 0;
  int64_t streamed = 0;  // where weights pass through
  int64_t total() const { return weights + rows + kv + counters + streamed; }
};

// Weights of one FFN for the device, in another order of its neurons.
struct StagedDeviceFfn {
  struct Panels {
    WeightId id;
    Buffer packed;
  };
  std::vector<Panels> matrices;
  std::vector<std::pair<WeightId, std::vector<float>>> vectors;
};

class DeviceSide final : public Peer {
 public:
  // Takes all memory and hands the device its programs. streamed: for steps that say so, or null. Both must outlive it.
  // Throws DeviceError.
  DeviceSide(Device& device, const SplitModel& split, const StreamedModel* streamed, const KvLayout& layout,
             const StepLimits& limits);
  // Brings the weights; after that `file` is no longer referred to. on_load: bytes done and in all. Throws DeviceError.
  void Load(const GgufFile& file, Team& team, Isa isa, const std::function<void(int64_t, int64_t)>& on_load);

  // Packs what the device has of a layer's FFN anew on the calling thread; `half` is the device's half of the same
  // model in another order of this layer's neurons. Nothing where `stop` became true. Throws Error without memory.
  std::optional<StagedDeviceFfn> StageFfn(const Model& half, int layer, Isa isa, const std::atomic<bool>& stop) const;
  // Between steps. Throws DeviceError; part of it may have been replaced, and the device is lost.
  void ReplaceFfn(const StagedDeviceFfn& staged);

  static DeviceBytes BytesFor(const Device& device, const SplitModel& split, const StreamedModel* streamed,
                              const KvLayout& layout, const StepLimits& limits);

  // Where the pages of each kind of layers stand; 0: none on the device.
  std::array<uint64_t, kLayerKinds> kv_memory() const;
  // Of each layer, the |act(gate)| above which a neuron fires; 0 at first. Throws DeviceError.
  void SetLevels(std::span<const float> levels);
  // Adds to `fired`, by layer (n_ff), in how many generated rows each of the device's neurons fired since the last
  // call; fired[layer][0] is the first neuron of the layer's order. Between steps. Throws DeviceError.
  void AddFired(std::vector<std::vector<uint32_t>>& fired);

  // Starts the device's half of a step. Throws DeviceError.
  void Begin(const StepView& step);
  // After the CPU's half, which `finished` or gave up. False when the device is lost.
  [[nodiscard]] bool End(bool finished);

  SlotRows Rows(int channel) override;
  void Raise(int channel) override { device_.Raise(channel); }
  bool Await(int channel) override { return device_.Await(channel); }
  uint8_t* Panels(int piece) override;
  void RaisePanels(int piece) override { device_.Raise(stream_.first_flag + 2 * piece); }

 private:
  void MakeChannels(const StepLimits& limits);
  void PlacePieces();
  void Upload(const Weight& weight, const DeviceMatrix& to, Team& team, Isa isa,
              const std::function<void(int64_t)>& progress);

  // What the device holds all the time.
  const Model& Resident() const { return streamed_ ? streamed_->split.device : split_.device; }

  Device& device_;
  const SplitModel& split_;
  const StreamedModel* const streamed_;
  const KvLayout layout_;
  DeviceMap map_;
  StreamedMap stream_;
  std::array<std::vector<HostRows>, 2> channels_;  // of both programs
  std::vector<uint32_t> counts_;                   // of all counters, as AddFired last saw them: they are never reset
  DeviceBuffer weights_, rows_, buffers_, counters_;
  std::array<DeviceBuffer, kLayerKinds> kv_;
  StagingBuffer staging_, panels_;
  Buffer logits_;  // (max_rows, n_vocab), of which only what is wanted is ever touched

  // The step at hand.
  bool streams_ = false;
  std::vector<DeviceSpan> spans_;
  std::vector<DeviceAddress> pages_;
};

}  // namespace thermocline
