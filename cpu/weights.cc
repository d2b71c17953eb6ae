#include "cpu/weights.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "cpu/packed_file.h"
#include "models/check.h"
#include "models/error.h"
#include "models/weight_rows.h"

namespace thermocline {
namespace {

// What one member packs at once: enough that claiming and advising cost nothing, little enough for progress and
// balance.
constexpr int64_t kTaskBytes = 1 << 20;
// A file that is not in the page cache is read ahead by so many tasks.
constexpr size_t kTasksAhead = 32;

// What is packed at once, of which file.
struct Task {
  enum class Kind : uint8_t {
    kPanels,  // panels [begin, end) of `matrix`
    kUp,      // slice `begin` of `bundles`
    kDown,    // outputs of block `begin` of `bundles`
  };
  Kind kind;
  const Weight* weight;
  int64_t begin, end;
  std::span<const uint8_t> read;  // where what it reads stands
  int64_t bytes;                  // packed
  PackedMatrix* matrix = nullptr;
  Bundles* bundles = nullptr;
  int64_t first_neuron = 0;  // of the bundles, in the whole FFN
};

// Where rows [begin, end) of a weight stand in the file.
std::span<const uint8_t> Reads(const Weight& weight, int64_t begin, int64_t end) {
  if (weight.rows || weight.transposed) return {weight.tensor->data, weight.tensor->bytes};
  const int64_t row_bytes = weight.row_bytes();
  const uint8_t* first = weight.tensor->data + (weight.first_row + begin) * row_bytes;
  // Of a part of the columns whole rows but what is in front of the part.
  const int64_t skipped = weight.columns ? 0 : weight.data() - weight.tensor->data - weight.first_row * row_bytes;
  return {first + skipped, static_cast<size_t>((end - begin) * row_bytes - skipped)};
}

// `down` is null where the bundles have none.
void AddTasks(const Weight& rows, const Weight* down, Bundles& bundles, std::vector<Task>& tasks) {
  const BundleShape& shape = bundles.shape();
  const auto add = [&](Task::Kind kind, const Weight& weight, int64_t at, int64_t first, int64_t last, int64_t bytes) {
    tasks.push_back({.kind = kind,
                     .weight = &weight,
                     .begin = at,
                     .end = at + 1,
                     .read = Reads(weight, first, last),
                     .bytes = bytes,
                     .bundles = &bundles,
                     .first_neuron = rows.first_row});
  };
  for (int64_t slice = 0; slice < shape.n_slices(); ++slice) {
    const int64_t first = slice * kSliceNeurons, last = std::min(first + kSliceNeurons, shape.n_ff);
    add(Task::Kind::kUp, rows, slice, first, last, (last - first) * shape.down_offset());
  }
  if (!down) return;
  const int64_t per_block = (shape.bytes() - shape.n_ff * shape.down_offset()) / shape.down_blocks();
  for (int64_t block = 0; block < shape.down_blocks(); ++block) {
    const int64_t first = block * kDownOutputs, last = std::min(first + kDownOutputs, shape.n_embd);
    add(Task::Kind::kDown, *down, block, first, last, per_block);
  }
}

void AddTasks(const Weight& weight, PackedMatrix& matrix, std::vector<Task>& tasks) {
  const int64_t per_panel = std::max<int64_t>(1, matrix.bytes() / matrix.n_panels());
  const int64_t n = std::max<int64_t>(1, kTaskBytes / per_panel);
  for (int64_t begin = 0; begin < matrix.n_panels(); begin += n) {
    const int64_t end = std::min(begin + n, matrix.n_panels());
    tasks.push_back({.kind = Task::Kind::kPanels,
                     .weight = &weight,
                     .begin = begin,
                     .end = end,
                     .read = Reads(weight, begin * kPanelRows, std::min(end * kPanelRows, matrix.n())),
                     .bytes = per_panel * (end - begin),
                     .matrix = &matrix});
  }
}

std::vector<Task> MakeTasks(const Model& model, std::vector<PackedMatrix>& matrices, std::span<const GatedFfn> ffns,
                            std::vector<Bundles>& bundles, std::vector<Bundles>& gate_rows) {
  std::vector<Task> tasks;
  for (const GatedFfn& ffn : ffns) {
    const Weight &gate = model.weights[ffn.gate], &up = model.weights[ffn.up], &down = model.weights[ffn.down];
    AddTasks(up, &down, bundles[ffn.layer], tasks);
    if (!gate_rows[ffn.layer].empty()) AddTasks(gate, nullptr, gate_rows[ffn.layer], tasks);
  }
  for (size_t id = 0; id < matrices.size(); ++id)
    if (matrices[id].bytes() > 0) AddTasks(model.weights[id], matrices[id], tasks);
  // In the order of the file, as disks like it.
  std::stable_sort(tasks.begin(), tasks.end(),
                   [](const Task& a, const Task& b) { return a.read.data() < b.read.data(); });
  return tasks;
}

void PackTask(const Task& task, Isa isa) {
  switch (task.kind) {
    case Task::Kind::kUp: return task.bundles->PackUp(*task.weight, task.begin, isa);
    case Task::Kind::kDown: return task.bundles->PackDown(*task.weight, task.first_neuron, task.begin, isa);
    case Task::Kind::kPanels: break;
  }
  const Weight& weight = *task.weight;
  std::vector<uint8_t> scratch;
  const int64_t first = task.begin * kPanelRows, n = std::min(task.end * kPanelRows, weight.n) - first;
  task.matrix->PackPanels(RowsAs(weight.type(), weight, first, n, weight.first_k, weight.k, scratch), task.begin,
                          task.end, isa);
}

PackedIdentity Identity(const GgufFile& file, const Model& model, std::span<const GatedFfn> ffns, FfnMode mode) {
  std::vector<uint64_t> words = {kPackedLayoutVersion, file.Fingerprint(), kBundleLayoutVersion, ffns.size()};
  if (mode == FfnMode::kPredicted) words.push_back(static_cast<uint64_t>(mode));
  for (const Weight& weight : model.weights) {
    if (!weight.matrix) continue;
    words.push_back(static_cast<uint64_t>(weight.type()));
    words.push_back(static_cast<uint64_t>(weight.n));
    words.push_back(static_cast<uint64_t>(weight.k));
    const int rows = weight.transposed ? 0 : 1;
    if (weight.n != weight.tensor->ne[rows] || weight.k != weight.tensor->ne[1 - rows]) {
      words.push_back(static_cast<uint64_t>(weight.first_row));
      words.push_back(static_cast<uint64_t>(weight.first_k));
    }
    for (const auto& order : {weight.rows, weight.columns})
      if (order) words.push_back(order->hash());
  }
  PackedIdentity identity(8 * words.size());
  std::memcpy(identity.data(), words.data(), identity.size());
  return identity;
}

}  // namespace

Weights::Weights(const GgufFile& file, const Model& model, Team& team, Isa isa, const LoadOptions& options)
    : matrices_(model.weights.size()),
      vectors_(model.weights.size()),
      in_bundles_(model.weights.size()),
      bundles_(model.config.n_layer),
      gate_rows_(model.config.n_layer) {
  for (size_t id = 0; id < model.weights.size(); ++id) {
    const Weight& weight = model.weights[id];
    if (weight.matrix) continue;
    vectors_[id] = VectorOf(weight);
  }
  if (options.ffn != FfnMode::kDense) ChooseBundles(model, options.ffn);
  const int64_t bytes = MatrixBytes(model);
  if (!Map(file, model, team, bytes, options)) {
    memory_ = Buffer(bytes, "the weights");
    Place(model, memory_.data());
    Pack(file, model, team, isa, options);
    if (!options.packed_file.empty()) Keep(file, model, team, options);
  }
  file.CheckIntact();
}

Weights::~Weights() = default;

void Weights::ChooseBundles(const Model& model, FfnMode mode) {
  bundled_ = FindSparseFfns(model, mode);
  for (const GatedFfn& ffn : bundled_) {
    const Weight &up = model.weights[ffn.up], &down = model.weights[ffn.down];
    const BundleShape shape{BundleShape::UpType(up.type()), BundleShape::DownType(down.type()), up.k, up.n};
    bundles_[ffn.layer] = Bundles(shape, nullptr);
    in_bundles_[ffn.up] = in_bundles_[ffn.down] = true;
    if (mode != FfnMode::kPredicted) continue;
    const Weight& gate = model.weights[ffn.gate];
    gate_rows_[ffn.layer] = Bundles(BundleShape::Rows(BundleShape::UpType(gate.type()), gate.k, gate.n), nullptr);
    in_bundles_[ffn.gate] = true;
  }
}

int64_t Weights::BundleBytes() const {
  int64_t bytes = 0;
  for (const GatedFfn& ffn : bundled_)
    for (const BundleShape& shape : {bundles_[ffn.layer].shape(), gate_rows_[ffn.layer].shape()})
      if (shape.n_ff > 0) bytes += shape.bytes();
  return bytes;
}

int64_t Weights::MatrixBytes(const Model& model) const {
  int64_t bytes = BundleBytes();
  for (size_t id = 0; id < model.weights.size(); ++id) {
    const Weight& weight = model.weights[id];
    if (weight.matrix && !in_bundles_[id]) bytes += PackedMatrix::BytesFor(weight.type(), weight.n, weight.k);
  }
  return bytes;
}

// Where each matrix stands.
void Weights::Place(const Model& model, uint8_t* at) {
  for (const GatedFfn& ffn : bundled_) {
    for (Bundles* bundles : {&bundles_[ffn.layer], &gate_rows_[ffn.layer]}) {
      if (bundles->shape().n_ff == 0) continue;
      *bundles = Bundles(bundles->shape(), at);
      at += bundles->shape().bytes();
    }
  }
  for (size_t id = 0; id < model.weights.size(); ++id) {
    const Weight& weight = model.weights[id];
    if (!weight.matrix || in_bundles_[id]) continue;
    matrices_[id] = PackedMatrix(weight.type(), weight.n, weight.k, at);
    at += matrices_[id].bytes();
  }
}

bool Weights::Map(const GgufFile& file, const Model& model, Team& team, int64_t bytes, const LoadOptions& options) {
  if (options.packed_file.empty()) return false;
  std::string reason;
  const auto progress = [&](int64_t done) {
    if (options.on_load) options.on_load(done, bytes);
  };
  mapped_ = PackedFile::Open(options.packed_file, Identity(file, model, bundled_, options.ffn), bytes, team, progress,
                             reason);
  if (!reason.empty() && options.on_warning)
    options.on_warning(fmt::format("{}: not used, and made anew: {}", options.packed_file.string(), reason));
  if (!mapped_) return false;
  Place(model, const_cast<uint8_t*>(mapped_->weights()));  // nobody packs into it
  return true;
}

void Weights::Keep(const GgufFile& file, const Model& model, Team& team, const LoadOptions& options) {
  file.CheckIntact();  // what was lost from it must not be kept
  const auto progress = [&](int64_t done) {
    if (options.on_load) options.on_load(memory_.bytes() + done, 2 * memory_.bytes());
  };
  try {
    PackedFile::Write(options.packed_file, Identity(file, model, bundled_, options.ffn),
                      {memory_.data(), static_cast<size_t>(memory_.bytes())}, team, progress);
  } catch (const Error& error) {
    if (options.on_warning) options.on_warning(fmt::format("the packed weights cannot be kept: {}", error.what()));
  }
}

void Weights::CheckIntact() const {
  if (mapped_ && mapped_->damaged())
    throw Error("{}: the file became shorter while it was in use, or its disk failed. Delete it and start again.",
                mapped_->path());
}

void Weights::Pack(const GgufFile& file, const Model& model, Team& team, Isa isa, const LoadOptions& options) {
  const std::vector<Task> tasks = MakeTasks(model, matrices_, bundled_, bundles_, gate_rows_);
  const int64_t total = memory_.bytes() * (options.packed_file.empty() ? 1 : 2);  // Keep is the second half
  std::atomic<int64_t> done = 0;
  team.Run([&](Team::Member& member) {
    member.For(static_cast<int64_t>(tasks.size()), 1, [&](int64_t i, int64_t) {
      const Task& task = tasks[i];
      if (i + kTasksAhead < tasks.size()) {
        const Task& ahead = tasks[i + kTasksAhead];
        file.WillRead(ahead.read.data(), ahead.read.size());
      }
      PackTask(task, isa);
      file.DoneWith(task.read.data(), task.read.size());
      const int64_t now = done.fetch_add(task.bytes, std::memory_order_relaxed) + task.bytes;
      if (member.index() == 0 && options.on_load) options.on_load(now, total);
    });
  });
}

std::optional<StagedFfn> Weights::StageFfn(const Model& model, int layer, Isa isa,
                                           const std::atomic<bool>& stop) const {
  CHECK(!mapped_);
  StagedFfn staged;
  std::vector<PackedMatrix> matrices(matrices_.size());
  std::vector<Bundles> bundles(bundles_.size()), gate_rows(gate_rows_.size());
  std::vector<GatedFfn> ffns;
  int64_t bytes = 0;
  // First the bytes, then, with their memory, the places.
  const auto place = [&](uint8_t* memory) {
    bytes = 0;
    for (const GatedFfn& ffn : bundled_) {
      if (ffn.layer != layer) continue;
      const Weight &up = model.weights[ffn.up], &down = model.weights[ffn.down];
      const BundleShape& shape = bundles_[layer].shape();
      CHECK(shape.up == BundleShape::UpType(up.type()) && shape.down == BundleShape::DownType(down.type()));
      CHECK(gate_rows_[layer].empty() && up.n == shape.n_ff && up.k == shape.n_embd);
      if (memory) {
        bundles[layer] = Bundles(shape, memory + bytes);
        staged.parts.push_back(
            {memory_.data() + (bundles_[layer].down_scales(0) - memory_.data()), memory + bytes, shape.bytes()});
        ffns.push_back(ffn);
      }
      bytes += shape.bytes();
    }
    for (const WeightId id : OrderedWeights(model, layer)) {
      const Weight& weight = model.weights[id];
      const PackedMatrix& here = matrices_[id];
      if (!weight.matrix || in_bundles_[id] || weight.n == 0) continue;
      CHECK(here.type() == weight.type() && here.n() == weight.n && here.k() == weight.k);
      if (memory) {
        matrices[id] = PackedMatrix(weight.type(), weight.n, weight.k, memory + bytes);
        staged.parts.push_back({memory_.data() + (here.row(0) - memory_.data()), memory + bytes, here.bytes()});
      }
      bytes += here.bytes();
    }
  };
  place(nullptr);
  staged.memory = Buffer(bytes, "an FFN in another order");
  place(staged.memory.data());
  for (const Task& task : MakeTasks(model, matrices, ffns, bundles, gate_rows)) {
    if (stop) return std::nullopt;
    PackTask(task, isa);
  }
  for (const WeightId id : OrderedWeights(model, layer))
    if (const Weight& weight = model.weights[id]; !weight.matrix) staged.vectors.emplace_back(id, VectorOf(weight));
  return staged;
}

void Weights::ReplaceFfn(StagedFfn staged) noexcept {
  for (const StagedFfn::Part& part : staged.parts) std::memcpy(part.to, part.from, part.bytes);
  for (auto& [id, values] : staged.vectors) {
    CHECK(vectors_[id].size() == values.size());
    std::copy(values.begin(), values.end(), vectors_[id].begin());
  }
}

int64_t Weights::bytes() const {
  int64_t bytes = BundleBytes();
  for (const PackedMatrix& matrix : matrices_) bytes += matrix.bytes();
  for (const std::vector<float>& vector : vectors_) bytes += static_cast<int64_t>(vector.size()) * 4;
  return bytes;
}

int64_t Weights::BytesFor(const Model& model) {
  int64_t bytes = 0;
  for (const Weight& weight : model.weights)
    bytes += weight.matrix ? PackedMatrix::BytesFor(weight.type(), weight.n, weight.k) : weight.n * 4;
  return bytes;
}

}  // namespace thermocline
