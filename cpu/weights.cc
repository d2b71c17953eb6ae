#include "cpu/weights.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "cpu/packed_file.h"
#include "models/error.h"

namespace thermocline {
namespace {

// What one member packs at once: enough that claiming and advising cost nothing, little enough for progress and
// balance.
constexpr int64_t kTaskBytes = 1 << 20;
// A file that is not in the page cache is read ahead by so many tasks.
constexpr size_t kTasksAhead = 32;

// A run of panels, and the rows they are packed from; or one slice of an FFN's bundles or gate rows, and its rows of up
// or gate.
struct Task {
  PackedMatrix* matrix;  // null: a slice
  FileRows source;       // from row 0 on
  int64_t begin, end;    // panels; the slice
  const uint8_t* read;   // the rows of [begin, end)
  uint64_t read_bytes;
  int64_t bytes;  // packed
  Bundles* bundles = nullptr;
  WeightId rows = -1, down = -1;  // of the bundles; no down: -1
};

FileMatrix AsFileMatrix(const Weight& weight, int64_t first_row, int64_t first_column) {
  return {weight.tensor->type, weight.tensor->data + first_row * weight.row_bytes(), weight.tensor->ne[0],
          first_column};
}

void AddSlices(const Model& model, Bundles& bundles, WeightId rows, WeightId down, std::vector<Task>& tasks) {
  const BundleShape& shape = bundles.shape();
  const Weight& weight = model.weights[rows];
  const int64_t row_bytes = weight.row_bytes();
  for (int64_t slice = 0; slice < shape.n_slices(); ++slice) {
    const int64_t first = slice * kSliceNeurons, n = std::min<int64_t>(kSliceNeurons, shape.n_ff - first);
    tasks.push_back({nullptr,
                     {},
                     slice,
                     slice + 1,
                     weight.data() + first * row_bytes,
                     static_cast<uint64_t>(n * row_bytes),
                     n / kBundleNeurons * shape.group_bytes(),
                     &bundles,
                     rows,
                     down});
  }
}

std::vector<Task> MakeTasks(const Model& model, std::vector<PackedMatrix>& matrices, std::span<const GatedFfn> ffns,
                            std::vector<Bundles>& bundles, std::vector<Bundles>& gate_rows) {
  std::vector<Task> tasks;
  for (const GatedFfn& ffn : ffns) {
    AddSlices(model, bundles[ffn.layer], ffn.up, ffn.down, tasks);
    if (!gate_rows[ffn.layer].empty()) AddSlices(model, gate_rows[ffn.layer], ffn.gate, -1, tasks);
  }
  for (size_t id = 0; id < matrices.size(); ++id) {
    PackedMatrix& matrix = matrices[id];
    if (matrix.bytes() == 0) continue;
    const FileRows source{model.weights[id].data(), model.weights[id].row_bytes()};
    const int64_t per_panel = std::max<int64_t>(1, matrix.bytes() / matrix.n_panels());
    const int64_t n = std::max<int64_t>(1, kTaskBytes / per_panel);
    for (int64_t begin = 0; begin < matrix.n_panels(); begin += n) {
      const int64_t end = std::min(begin + n, matrix.n_panels());
      const int64_t first_row = begin * kPanelRows, last_row = std::min(end * kPanelRows, matrix.n());
      // Of a part of its columns whole rows but what is in front of the part.
      const uint64_t bytes = (last_row - first_row - 1) * source.row_bytes + FileRowBytes(matrix.type(), matrix.k());
      tasks.push_back(
          {&matrix, source, begin, end, source.data + first_row * source.row_bytes, bytes, per_panel * (end - begin)});
    }
  }
  // In the order of the file, as disks like it.
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.read < b.read; });
  return tasks;
}

void PackSlice(const Model& model, const Task& task, Isa isa) {
  const Weight& rows = model.weights[task.rows];
  const FileMatrix down = task.down < 0 ? FileMatrix{} : AsFileMatrix(model.weights[task.down], 0, rows.first_row);
  task.bundles->PackSlice(AsFileMatrix(rows, rows.first_row, 0), down, task.begin, isa);
}

PackedIdentity Identity(const GgufFile& file, const Model& model, std::span<const GatedFfn> ffns, FfnMode mode) {
  std::vector<uint64_t> words = {kPackedLayoutVersion, file.Fingerprint(), kBundleLayoutVersion, ffns.size()};
  if (mode == FfnMode::kPredicted) words.push_back(static_cast<uint64_t>(mode));
  for (const Weight& weight : model.weights) {
    if (!weight.matrix) continue;
    words.push_back(static_cast<uint64_t>(weight.tensor->type));
    words.push_back(static_cast<uint64_t>(weight.n));
    words.push_back(static_cast<uint64_t>(weight.k));
    if (weight.n != weight.tensor->ne[1] || weight.k != weight.tensor->ne[0]) {
      words.push_back(static_cast<uint64_t>(weight.first_row));
      words.push_back(static_cast<uint64_t>(weight.first_k));
    }
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
    vectors_[id].resize(weight.n);
    Dequantize(weight.tensor->type, weight.data(), weight.n, vectors_[id].data());
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
    const BundleShape shape{BundleShape::UpType(up.tensor->type), BundleShape::DownType(down.tensor->type), up.k, up.n};
    bundles_[ffn.layer] = Bundles(shape, nullptr);
    in_bundles_[ffn.up] = in_bundles_[ffn.down] = true;
    if (mode != FfnMode::kPredicted) continue;
    const Weight& gate = model.weights[ffn.gate];
    gate_rows_[ffn.layer] = Bundles(BundleShape::Rows(BundleShape::UpType(gate.tensor->type), gate.k, gate.n), nullptr);
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
    if (weight.matrix && !in_bundles_[id]) bytes += PackedMatrix::BytesFor(weight.tensor->type, weight.n, weight.k);
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
    matrices_[id] = PackedMatrix(weight.tensor->type, weight.n, weight.k, at);
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
        file.WillRead(ahead.read, ahead.read_bytes);
      }
      if (task.matrix)
        task.matrix->PackPanels(task.source.data, task.begin, task.end, isa, task.source.row_bytes);
      else
        PackSlice(model, task, isa);
      file.DoneWith(task.read, task.read_bytes);
      const int64_t now = done.fetch_add(task.bytes, std::memory_order_relaxed) + task.bytes;
      if (member.index() == 0 && options.on_load) options.on_load(now, total);
    });
  });
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
    bytes += weight.matrix ? PackedMatrix::BytesFor(weight.tensor->type, weight.n, weight.k) : weight.n * 4;
  return bytes;
}

}  // namespace thermocline
