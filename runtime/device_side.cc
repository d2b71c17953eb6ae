#include "runtime/device_side.h"

#include <algorithm>

#include "models/check.h"
#include "models/weight_rows.h"
#include "runtime/kv_cache.h"

namespace thermocline {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kLineFloats = 16;
// Panels are packed and brought so many bytes at a time, by all threads.
constexpr int64_t kUploadBytes = int64_t{8} << 20;

// Hands out places one behind the other.
class Places {
 public:
  explicit Places(DeviceAddress base) : base_(base) {}
  DeviceAddress Next(int64_t bytes) {
    const DeviceAddress at = base_ + bytes_;
    bytes_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  }
  int64_t bytes() const { return bytes_; }

 private:
  DeviceAddress base_;
  int64_t bytes_ = 0;
};

int64_t RoundUp(int64_t n) { return (n + kLineFloats - 1) / kLineFloats * kLineFloats; }
int Width(const Program& program, Slot slot) { return program.width[static_cast<size_t>(slot)]; }

void PlaceWeights(const Device& device, const Model& half, Places& places, DeviceMap& map) {
  map.matrices.assign(half.weights.size(), {});
  map.vectors.assign(half.weights.size(), 0);
  for (size_t id = 0; id < half.weights.size(); ++id) {
    const Weight& weight = half.weights[id];
    if (weight.n == 0) continue;
    if (weight.matrix)
      map.matrices[id] = {weight.type(), weight.n, weight.k,
                          places.Next(device.MatrixBytes(weight.type(), weight.n, weight.k))};
    else
      map.vectors[id] = places.Next(weight.n * static_cast<int64_t>(sizeof(float)));
  }
  map.ropes.clear();
  for (const Op* op : DistinctRopes(half.program))
    map.ropes.push_back({op, places.Next(half.config.rope_dims / 2 * static_cast<int64_t>(sizeof(double))), {}});
}

// The counters come first, one behind the other, then the levels.
void PlaceCounters(const Model& half, Places& places, DeviceMap& map) {
  map.counters.assign(static_cast<size_t>(half.config.n_layer), {});
  for (const Op& op : half.program.ops)
    if (op.kind == OpKind::kGatedAct) {
      CHECK(op.begin == 0);
      map.counters[op.layer] = {places.Next(op.end * static_cast<int64_t>(sizeof(uint32_t))), 0, op.end};
    }
  for (DeviceMap::Counter& counter : map.counters)
    if (counter.n > 0) counter.level = places.Next(sizeof(float));
}

using UsedSlots = std::array<bool, static_cast<size_t>(Slot::kCount)>;

void FindUsed(const Program& program, UsedSlots& used) {
  for (const Op& op : program.ops) {
    const auto use = [&](Slot slot) {
      if (slot != Slot::kCount && slot != Slot::kLogits) used[static_cast<size_t>(slot)] = true;
    };
    use(op.in);
    use(op.out);
    if (op.kind == OpKind::kGatedAct) use(Slot::kUp);
    if (op.kind == OpKind::kAttentionMerge) use(Slot::kOtherState);
    for (int i = 0; i < op.n_projections; ++i) use(op.projections[i].out);
  }
}

void PlaceRows(const Model& half, const UsedSlots& used, int max_rows, Places& places, DeviceMap& map) {
  const auto place = [&](int width) {
    const int64_t stride = RoundUp(width);
    return DeviceRows{places.Next(stride * max_rows * static_cast<int64_t>(sizeof(float))), stride, width};
  };
  for (size_t i = 0; i < used.size(); ++i)
    if (used[i]) map.slots[i] = place(half.program.width[i]);
  for (DeviceMap::Rope& rope : map.ropes) rope.table = place(half.config.rope_dims);
}

int64_t KvBytes(const ModelConfig& config, const KvLayout& layout, int kind, const StepLimits& limits) {
  return KvCache::DeviceBytesFor(config, layout, kind, limits.n_ctx, limits.max_rows) * limits.max_sequences;
}

// Rows of both programs, which never run at the same time.
void PlaceRows(const SplitModel& split, const StreamedModel* streamed, int max_rows, Places& places, DeviceMap& map) {
  UsedSlots used{};
  FindUsed(split.device.program, used);
  if (streamed) FindUsed(streamed->split.device.program, used);
  PlaceRows(split.device, used, max_rows, places, map);
}

// A place for any piece.
int64_t PieceBytes(const Device& device, const StreamedModel& streamed) {
  int64_t bytes = 0;
  for (const StreamedPiece& piece : streamed.pieces)
    bytes = std::max(bytes, device.MatrixBytes(piece.w.type, piece.w.n, piece.w.k));
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// Makes the panels of a weight; by several threads at once.
class PanelPacker {
 public:
  PanelPacker(const Weight& weight, const DeviceMatrix& to, Isa isa) : weight_(weight), to_(to), isa_(isa) {}
  int64_t n_panels() const { return (to_.n + kPanelRows - 1) / kPanelRows; }
  int64_t panel_bytes() const { return PackedBytes(to_.type, kPanelRows, to_.k); }
  void Pack(int64_t panel, uint8_t* out) const {
    std::vector<uint8_t> scratch;
    const int64_t first = panel * kPanelRows, n = std::min<int64_t>(kPanelRows, to_.n - first);
    const FileRows rows = RowsAs(to_.type, weight_, first, n, weight_.first_k, to_.k, scratch);
    PackPanelRun(to_.type, rows, n, to_.k, 0, 1, isa_, out);
  }

 private:
  const Weight& weight_;
  const DeviceMatrix& to_;
  const Isa isa_;
};

}  // namespace

DeviceBytes DeviceSide::BytesFor(const Device& device, const SplitModel& split, const StreamedModel* streamed,
                                 const KvLayout& layout, const StepLimits& limits) {
  DeviceMap map;
  Places weights(0), rows(0);
  PlaceWeights(device, streamed ? streamed->split.device : split.device, weights, map);
  PlaceRows(split, streamed, limits.max_rows, rows, map);
  DeviceBytes bytes{.weights = weights.bytes(), .rows = rows.bytes()};
  if (streamed) bytes.streamed = kPiecesAtOnce * PieceBytes(device, *streamed);
  for (int kind = 0; kind < kLayerKinds; ++kind) bytes.kv += KvBytes(split.device.config, layout, kind, limits);
  if (limits.count_firings) {
    Places counters(0);
    PlaceCounters(split.device, counters, map);
    bytes.counters = counters.bytes();
  }
  return bytes;
}

DeviceSide::DeviceSide(Device& device, const SplitModel& split, const StreamedModel* streamed, const KvLayout& layout,
                       const StepLimits& limits)
    : device_(device), split_(split), streamed_(streamed), layout_(layout) {
  const Model& half = split.device;
  const DeviceBytes bytes = BytesFor(device, split, streamed, layout, limits);
  for (int kind = 0; kind < kLayerKinds; ++kind)
    kv_[kind] = device.Allocate(KvBytes(half.config, layout, kind, limits), "keys and values");
  rows_ = device.Allocate(bytes.rows, "one step");
  weights_ = device.Allocate(bytes.weights, "the weights");
  counters_ = device.Allocate(bytes.counters, "counts of firing neurons");
  counts_.resize(static_cast<size_t>(bytes.counters) / sizeof(uint32_t));
  Places weights(weights_.address()), rows(rows_.address()), counters(counters_.address());
  if (bytes.counters > 0) PlaceCounters(half, counters, map_);
  PlaceWeights(device, Resident(), weights, map_);
  PlaceRows(split, streamed, limits.max_rows, rows, map_);
  MakeChannels(limits);
  if (streamed) PlacePieces();

  const int max_pages = (limits.n_ctx + kPageTokens - 1) / kPageTokens;
  std::vector<std::vector<DeviceOp>> programs = {MakeDeviceProgram(half, layout_, map_, channels_[0], {}, {})};
  size_t n_flags = split.channels.size();
  if (streamed) {
    stream_.first_flag = static_cast<int>(streamed->split.channels.size());
    n_flags = std::max(n_flags, streamed->split.channels.size() + 2 * streamed->pieces.size());
    programs.push_back(
        MakeDeviceProgram(streamed->split.device, layout_, map_, channels_[1], streamed->pieces, stream_));
  }
  device.SetPrograms(std::move(programs), {.max_rows = limits.max_rows,
                                           .max_spans = limits.max_sequences,
                                           .max_pages = max_pages,
                                           .n_flags = static_cast<int>(n_flags)});
  spans_.reserve(limits.max_sequences);
  pages_.reserve(int64_t{limits.max_sequences} * kLayerKinds * max_pages);
}

// Page-locked rows, which both programs share, and logits, which do not pass the other way.
void DeviceSide::MakeChannels(const StepLimits& limits) {
  const SplitModel* splits[] = {&split_, streamed_ ? &streamed_->split : nullptr};
  const ModelConfig& config = split_.device.config;
  int64_t stride = 0;
  int n_buffers = 0;
  for (const SplitModel* split : splits) {
    if (!split) continue;
    n_buffers = std::max(n_buffers, split->n_buffers);
    for (const Channel& channel : split->channels)
      if (channel.slot == Slot::kLogits)
        logits_ = Buffer(RoundUp(config.n_vocab) * limits.max_rows * static_cast<int64_t>(sizeof(float)), "logits");
      else
        stride = std::max(stride, RoundUp(Width(split->device.program, channel.slot)));
  }
  const int64_t buffer_floats = stride * limits.max_rows;
  staging_ = device_.AllocateStaging(n_buffers * buffer_floats * static_cast<int64_t>(sizeof(float)), "one step");
  for (size_t i = 0; i < channels_.size(); ++i) {
    if (!splits[i]) continue;
    for (const Channel& channel : splits[i]->channels)
      channels_[i].push_back(channel.slot == Slot::kLogits
                                 ? HostRows{logits_.as<float>(), RoundUp(config.n_vocab)}
                                 : HostRows{staging_.as<float>() + channel.buffer * buffer_floats, stride});
  }
}

void DeviceSide::PlacePieces() {
  const int64_t bytes = PieceBytes(device_, *streamed_);
  buffers_ = device_.Allocate(kPiecesAtOnce * bytes, "weights that pass through");
  panels_ = device_.AllocateStaging(kPiecesAtOnce * bytes, "weights that pass through");
  for (int i = 0; i < kPiecesAtOnce; ++i) {
    stream_.buffers[i] = buffers_.address() + i * bytes;
    stream_.staging[i] = panels_.as<uint8_t>() + i * bytes;
  }
}

void DeviceSide::Load(const GgufFile& file, Team& team, Isa isa, const std::function<void(int64_t, int64_t)>& on_load) {
  const Model& half = Resident();
  int64_t done = 0;
  const auto progress = [&](int64_t bytes) {
    done += bytes;
    if (on_load) on_load(done, weights_.bytes());
  };
  std::vector<std::vector<float>> vectors(half.weights.size());
  for (size_t id = 0; id < half.weights.size(); ++id) {
    const Weight& weight = half.weights[id];
    if (weight.n == 0) continue;
    if (weight.matrix) {
      Upload(weight, map_.matrices[id], team, isa, progress);
      continue;
    }
    vectors[id] = VectorOf(weight);
    device_.Upload(map_.vectors[id],
                   {reinterpret_cast<const uint8_t*>(vectors[id].data()), vectors[id].size() * sizeof(float)});
  }
  for (const DeviceMap::Rope& rope : map_.ropes) {
    const float* factors = rope.op->rope_factors >= 0 ? vectors[rope.op->rope_factors].data() : nullptr;
    const std::vector<double> frequencies = RopeFrequencies(half.config, *rope.op, factors);
    device_.Upload(rope.frequencies,
                   {reinterpret_cast<const uint8_t*>(frequencies.data()), frequencies.size() * sizeof(double)});
  }
  file.CheckIntact();
}

void DeviceSide::Upload(const Weight& weight, const DeviceMatrix& to, Team& team, Isa isa,
                        const std::function<void(int64_t)>& progress) {
  const PanelPacker packer(weight, to, isa);
  const int64_t n_panels = packer.n_panels(), bytes = PackedBytes(to.type, to.n, to.k);
  const int64_t panel_bytes = packer.panel_bytes();
  const int64_t together = std::max<int64_t>(1, kUploadBytes / panel_bytes);
  const Buffer panels(std::min(together, n_panels) * panel_bytes, "the weights");
  for (int64_t begin = 0; begin < n_panels; begin += together) {
    const int64_t end = std::min(begin + together, n_panels);
    team.Run([&](Team::Member& member) {
      member.For(end - begin, 1, [&](int64_t i, int64_t) { packer.Pack(begin + i, panels.data() + i * panel_bytes); });
    });
    device_.UploadPanels(to, begin, end, panels.data());
    progress(std::min(end * panel_bytes, bytes) - begin * panel_bytes);
  }
}

std::optional<StagedDeviceFfn> DeviceSide::StageFfn(const Model& half, int layer, Isa isa,
                                                    const std::atomic<bool>& stop) const {
  StagedDeviceFfn staged;
  for (const WeightId id : OrderedWeights(half, layer)) {
    const Weight& weight = half.weights[id];
    if (weight.n == 0) continue;
    if (!weight.matrix) {
      staged.vectors.emplace_back(id, VectorOf(weight));
      continue;
    }
    const DeviceMatrix& to = map_.matrices[id];
    CHECK(to.type == weight.type() && to.n == weight.n && to.k == weight.k);
    Buffer packed(PackedBytes(to.type, to.n, to.k), "an FFN in another order");
    const PanelPacker packer(weight, to, isa);
    for (int64_t i = 0; i < packer.n_panels(); ++i) {
      if (stop) return std::nullopt;
      packer.Pack(i, packed.data() + i * packer.panel_bytes());
    }
    staged.matrices.push_back({id, std::move(packed)});
  }
  return staged;
}

void DeviceSide::ReplaceFfn(const StagedDeviceFfn& staged) {
  for (const StagedDeviceFfn::Panels& panels : staged.matrices) {
    const DeviceMatrix& to = map_.matrices[panels.id];
    device_.UploadPanels(to, 0, (to.n + kPanelRows - 1) / kPanelRows, panels.packed.data());
  }
  for (const auto& [id, values] : staged.vectors)
    device_.Upload(map_.vectors[id],
                   {reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof values[0]});
}

std::array<uint64_t, kLayerKinds> DeviceSide::kv_memory() const {
  std::array<uint64_t, kLayerKinds> memory{};
  for (int kind = 0; kind < kLayerKinds; ++kind) memory[kind] = kv_[kind].address();
  return memory;
}

void DeviceSide::SetLevels(std::span<const float> levels) {
  for (size_t layer = 0; layer < map_.counters.size(); ++layer)
    if (map_.counters[layer].n > 0)
      device_.Upload(map_.counters[layer].level,
                     {reinterpret_cast<const uint8_t*>(&levels[layer]), sizeof levels[layer]});
}

void DeviceSide::AddFired(std::vector<std::vector<uint32_t>>& fired) {
  if (counts_.empty()) return;
  std::vector<uint32_t> now(counts_.size());
  device_.Download({reinterpret_cast<uint8_t*>(now.data()), now.size() * sizeof now[0]}, counters_.address());
  for (size_t layer = 0; layer < map_.counters.size(); ++layer) {
    const DeviceMap::Counter& counter = map_.counters[layer];
    const size_t first = (counter.counts - counters_.address()) / sizeof(uint32_t);
    for (int i = 0; i < counter.n; ++i) fired[layer][i] += now[first + i] - counts_[first + i];
  }
  counts_ = std::move(now);
}

void DeviceSide::Begin(const StepView& step) {
  streams_ = step.streamed;
  spans_.clear();
  pages_.clear();
  for (const SpanView& span : step.spans) {
    DeviceSpan& out = spans_.emplace_back(DeviceSpan{span.first_row, span.n_rows, span.first_position, {}});
    const int n_pages = (span.first_position + span.n_rows - 1) / kPageTokens + 1;
    for (int kind = 0; kind < kLayerKinds; ++kind) {
      if (!kv_[kind].address()) continue;
      out.pages[kind] = pages_.data() + pages_.size();  // never moves: reserved
      const int here = kind == kSplitKind ? std::min(n_pages, layout_.device_tokens / kPageTokens) : n_pages;
      for (int i = 0; i < n_pages; ++i)
        pages_.push_back(i < here ? reinterpret_cast<DeviceAddress>(span.pages[kind][i]) : 0);
    }
  }
  device_.Begin({step.positions, step.prompt, step.wanted, spans_, streams_});
}

bool DeviceSide::End(bool finished) {
  if (!finished) device_.Abandon();
  return device_.Finish();
}

SlotRows DeviceSide::Rows(int channel) {
  const HostRows& rows = channels_[streams_][channel];
  return {rows.data, rows.stride};
}

uint8_t* DeviceSide::Panels(int piece) {
  const int before = piece - kPiecesAtOnce;
  if (before >= 0 && !device_.Await(stream_.first_flag + 2 * before + 1)) return nullptr;
  return stream_.staging[piece % kPiecesAtOnce];
}

}  // namespace thermocline
