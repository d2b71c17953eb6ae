#include "predictor/placement_solver.h"

#include <coin/Cbc_C_Interface.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "models/check.h"
#include "models/error.h"

namespace thermocline {
namespace {

double Of(const PartCost& cost, Memory memory) { return memory == Memory::kDevice ? cost.device_s : cost.cpu_s; }

// Blocks [0, n) on the device.
int64_t HotBlocks(const LayerPlacement& layer) { return (layer.n_hot + kHotBlock - 1) / kHotBlock; }

double FfnSeconds(const LayerCost& cost, int64_t n_hot) {
  const auto n = std::ssize(cost.neurons);
  double cpu = n_hot < n ? cost.ffn.cpu_s : 0, device = n_hot > 0 ? cost.ffn.device_s : 0;
  for (int64_t i = 0; i < n; ++i)
    (i < n_hot ? device : cpu) += Of(cost.neurons[i], i < n_hot ? Memory::kDevice : Memory::kCpu);
  return std::max(cpu, device);
}

bool IsHottestFirst(const LayerCost& layer) {
  const std::vector<PartCost>& blocks = layer.neurons;
  for (size_t i = 1; i < blocks.size(); ++i) {
    if (blocks[i].cpu_s > blocks[i - 1].cpu_s) return false;
    const bool alike = blocks[i].device_s == blocks[0].device_s && blocks[i].bytes == blocks[0].bytes;
    if (!alike && i + 1 < blocks.size()) return false;
  }
  return !blocks.empty();
}

// The integer program, column by column.
//
//   n[l]     hot blocks of layer l, of B in all               integer
//   y[l]     1 where there are any        f[l]  where all     binary: n <= B y, n >= B f
//   a[l]     attention on the device      k[l]  and its KV    binary: k <= a
//   h        the head on the device                           binary
//   t[l]     seconds of the FFN: no less than either side takes
//   m[l]     1 where the FFN is not all on the attention's side
//   d[l]     1 where the attention is not where the last one was (d[L]: the head)
//
// What the CPU takes is a convex function of n, as its blocks come hottest first: t lies above its tangents.
class IntegerProgram {
 public:
  IntegerProgram(const PlacementProblem& problem, bool layers_only) : problem_(problem) {
    for (const LayerCost& layer : problem.layers) CHECK(IsHottestFirst(layer));
    const auto n_layers = std::ssize(problem.layers);
    memory_row_ = AddRow(-kFree, ToUnits(problem.device_bytes));
    if (BytesInAll(problem) > problem.cpu_bytes)
      relief_row_ = AddRow(ToUnits(BytesInAll(problem) - problem.cpu_bytes), kFree);
    int last_attention = -1;
    for (int64_t l = 0; l < n_layers; ++l) {
      AddLayer(problem.layers[l], last_attention, layers_only);
      last_attention = columns_[l].attention;
    }
    head_ = AddBinary(problem.head.device_s - problem.head.cpu_s);
    constant_ += problem.head.cpu_s;
    Put(memory_row_, head_, ToUnits(problem.head.bytes));
    if (relief_row_ >= 0 && !problem.cpu_keeps_head) Put(relief_row_, head_, ToUnits(problem.head.bytes));
    AddHandover(head_, last_attention);
  }

  SolvedPlacement Solve(const Placement& start, const SolverOptions& options) const;

 private:
  static constexpr double kFree = 1e30;
  struct Layer {
    int hot, attention, kv;
  };
  struct Column {
    double cost, upper;
    bool integer;
    std::vector<std::pair<int, double>> entries;  // row, value
  };

  // Numbers near 1 are what a solver likes: memory in GiB, time in milliseconds.
  static double ToUnits(int64_t bytes) { return static_cast<double>(bytes) / 0x1p30; }
  static constexpr double kTimeUnit = 1e3;

  int AddColumn(double cost_s, double upper, bool integer) {
    columns_of_program_.push_back({cost_s * kTimeUnit, upper, integer, {}});
    return static_cast<int>(columns_of_program_.size()) - 1;
  }
  int AddBinary(double cost_s) { return AddColumn(cost_s, 1, true); }
  int AddRow(double lower, double upper) {
    row_lower_.push_back(lower);
    row_upper_.push_back(upper);
    return static_cast<int>(row_lower_.size()) - 1;
  }
  void Put(int row, int column, double value) { columns_of_program_[column].entries.emplace_back(row, value); }
  // A part that takes so much of the device's memory, and leaves as much of the CPU's free.
  void PutBytes(int column, int64_t bytes) {
    Put(memory_row_, column, ToUnits(bytes));
    if (relief_row_ >= 0) Put(relief_row_, column, ToUnits(bytes));
  }
  // sum of value * column >= lower.
  void AddAtLeast(double lower, std::initializer_list<std::pair<int, double>> terms) {
    const int row = AddRow(lower, kFree);
    for (const auto& [column, value] : terms) Put(row, column, value);
  }

  // A column that is 1 where a and b differ; b < 0 stands for 0.
  void AddHandover(int a, int b) {
    const int differs = AddColumn(problem_.handover_s, 1, false);
    if (b < 0) return AddAtLeast(0, {{differs, 1}, {a, -1}});
    AddAtLeast(0, {{differs, 1}, {a, -1}, {b, 1}});
    AddAtLeast(0, {{differs, 1}, {a, 1}, {b, -1}});
  }

  void AddLayer(const LayerCost& cost, int last_attention, bool layers_only) {
    Layer layer{};
    const int n = static_cast<int>(cost.neurons.size());
    layer.attention = AddBinary(cost.attention.device_s - cost.attention.cpu_s + problem_.merge_s);
    layer.kv = AddBinary(cost.kv.device_s - cost.kv.cpu_s - problem_.merge_s);
    constant_ += cost.attention.cpu_s + cost.kv.cpu_s;
    PutBytes(layer.attention, cost.attention.bytes);
    PutBytes(layer.kv, cost.kv.bytes);
    AddAtLeast(0, {{layer.attention, 1}, {layer.kv, -1}});
    AddHandover(layer.attention, last_attention);

    const int time = AddColumn(1 / kTimeUnit, kFree, false);
    const PartCost &first = cost.neurons.front(), &last = cost.neurons.back();  // the last one may be shorter
    layer.hot = AddColumn(0, n, true);
    const int any = AddBinary(0), all = AddBinary(0);
    AddAtLeast(0, {{any, n}, {layer.hot, -1}});
    AddAtLeast(0, {{layer.hot, 1}, {all, -n}});
    PutBytes(layer.hot, first.bytes);
    PutBytes(all, last.bytes - first.bytes);
    const double block = first.device_s * kTimeUnit, shorter = (first.device_s - last.device_s) * kTimeUnit;
    AddAtLeast(0, {{time, 1}, {layer.hot, -block}, {all, shorter}, {any, -cost.ffn.device_s * kTimeUnit}});
    AddTangents(cost, time, layer.hot, all);
    const int merges = AddColumn(problem_.merge_s, 1, false);
    AddAtLeast(0, {{merges, 1}, {any, -1}, {layer.attention, 1}});
    AddAtLeast(0, {{merges, 1}, {layer.attention, -1}, {all, 1}});
    if (layers_only) {
      AddAtLeast(0, {{layer.kv, 1}, {layer.attention, -1}});
      AddAtLeast(0, {{all, 1}, {layer.attention, -1}});
      AddAtLeast(0, {{layer.attention, 1}, {any, -1}});
    }
    columns_.push_back(layer);
  }

  void AddTangents(const LayerCost& cost, int time, int hot, int all) {
    constexpr int kTangents = 32;  // more than that changes the bound by less than 0.1 %
    const auto n = static_cast<int>(cost.neurons.size());
    const double fixed = cost.ffn.cpu_s * kTimeUnit;
    double left = fixed;  // what the CPU takes for the blocks from b on
    for (const PartCost& block : cost.neurons) left += block.cpu_s * kTimeUnit;
    for (int b = 0, tangent = 0; b < n; ++b) {
      const double slope = cost.neurons[b].cpu_s * kTimeUnit;
      // Closer together where the hot ones are.
      if (n <= kTangents || b * kTangents * kTangents >= n * tangent * tangent) {
        AddAtLeast(left + slope * b, {{time, 1}, {hot, slope}, {all, fixed}});
        ++tangent;
      }
      left -= slope;
    }
  }

  Placement Read(const double* solution) const {
    Placement placement;
    const auto on = [&](int column) { return solution[column] > 0.5; };
    const auto where = [&](int column) { return on(column) ? Memory::kDevice : Memory::kCpu; };
    for (size_t l = 0; l < columns_.size(); ++l) {
      const int64_t n_hot = std::llround(solution[columns_[l].hot]);
      placement.layers.push_back(
          {std::min(n_hot * kHotBlock, problem_.n_ff), where(columns_[l].attention), where(columns_[l].kv)});
    }
    placement.head = where(head_);
    return placement;
  }

  const PlacementProblem& problem_;
  std::vector<Column> columns_of_program_;
  std::vector<double> row_lower_, row_upper_;
  std::vector<Layer> columns_;
  int memory_row_ = -1, relief_row_ = -1, head_ = -1;
  double constant_ = 0;  // seconds
};

SolvedPlacement IntegerProgram::Solve(const Placement& start, const SolverOptions& options) const {
  std::vector<CoinBigIndex> starts = {0};
  std::vector<int> rows;
  std::vector<double> values, lower, upper, cost;
  for (const Column& column : columns_of_program_) {
    for (const auto& [row, value] : column.entries) rows.push_back(row), values.push_back(value);
    starts.push_back(static_cast<CoinBigIndex>(rows.size()));
    lower.push_back(0);
    upper.push_back(column.upper);
    cost.push_back(column.cost);
  }
  const std::unique_ptr<Cbc_Model, void (*)(Cbc_Model*)> model(Cbc_newModel(), Cbc_deleteModel);
  Cbc_setLogLevel(model.get(), 0);
  Cbc_loadProblem(model.get(), static_cast<int>(cost.size()), static_cast<int>(row_lower_.size()), starts.data(),
                  rows.data(), values.data(), lower.data(), upper.data(), cost.data(), row_lower_.data(),
                  row_upper_.data());
  for (size_t i = 0; i < columns_of_program_.size(); ++i)
    if (columns_of_program_[i].integer) Cbc_setInteger(model.get(), static_cast<int>(i));
  Cbc_setAllowableFractionGap(model.get(), options.gap);
  Cbc_setMaximumSeconds(model.get(), options.max_seconds);

  SolvedPlacement solved{start, Fits(problem_, start) ? SecondsPerToken(problem_, start) : kFree, 0};
  Cbc_solve(model.get());
  // What the solver gives is judged by ourselves: a time limit may leave it without any solution.
  if (const double* solution = Cbc_bestSolution(model.get())) {
    const Placement found = Read(solution);
    if (Fits(problem_, found) && SecondsPerToken(problem_, found) < solved.seconds)
      solved.placement = found, solved.seconds = SecondsPerToken(problem_, found);
  }
  solved.bound = std::min(solved.seconds, Cbc_getBestPossibleObjValue(model.get()) / kTimeUnit + constant_);
  return solved;
}

}  // namespace

int64_t BytesInAll(const PlacementProblem& problem) {
  int64_t bytes = problem.cpu_only_bytes + (problem.cpu_keeps_head ? 0 : problem.head.bytes);
  for (const LayerCost& layer : problem.layers) {
    bytes += layer.attention.bytes + layer.kv.bytes;
    for (const PartCost& block : layer.neurons) bytes += block.bytes;
  }
  return bytes;
}

double SecondsPerToken(const PlacementProblem& problem, const Placement& placement) {
  CHECK(placement.layers.size() == problem.layers.size());
  double seconds = 0;
  Memory at = Memory::kCpu;
  const auto move_to = [&](Memory next) {
    if (next != at) seconds += problem.handover_s;
    at = next;
  };
  for (size_t l = 0; l < problem.layers.size(); ++l) {
    const LayerPlacement& layer = placement.layers[l];
    const LayerCost& cost = problem.layers[l];
    move_to(layer.attention);
    seconds += Of(cost.attention, layer.attention) + Of(cost.kv, layer.kv);
    if (layer.kv != layer.attention) seconds += problem.merge_s;
    const int64_t n_hot = HotBlocks(layer),
                  all_here = layer.attention == Memory::kDevice ? std::ssize(cost.neurons) : 0;
    seconds += FfnSeconds(cost, n_hot);
    if (n_hot != all_here) seconds += problem.merge_s;
  }
  move_to(placement.head);
  return seconds + Of(problem.head, placement.head);
}

int64_t BytesOnDevice(const PlacementProblem& problem, const Placement& placement) {
  int64_t bytes = placement.head == Memory::kDevice ? problem.head.bytes : 0;
  for (size_t l = 0; l < problem.layers.size(); ++l) {
    const LayerPlacement& layer = placement.layers[l];
    const LayerCost& cost = problem.layers[l];
    if (layer.attention == Memory::kDevice) bytes += cost.attention.bytes;
    if (layer.kv == Memory::kDevice) bytes += cost.kv.bytes;
    for (int64_t b = 0; b < HotBlocks(layer); ++b) bytes += cost.neurons[b].bytes;
  }
  return bytes;
}

int64_t BytesOnCpu(const PlacementProblem& problem, const Placement& placement) {
  const bool copied = problem.cpu_keeps_head && placement.head == Memory::kDevice;
  return BytesInAll(problem) - BytesOnDevice(problem, placement) + (copied ? problem.head.bytes : 0);
}

bool Fits(const PlacementProblem& problem, const Placement& placement) {
  return BytesOnDevice(problem, placement) <= problem.device_bytes &&
         BytesOnCpu(problem, placement) <= problem.cpu_bytes;
}

namespace {

constexpr int64_t kSimpleShares = 64;

// The best of a few simple placements: what the search has to beat, and what remains when its time is over.
Placement BestSimple(const PlacementProblem& problem, bool layers_only) {
  const auto n = std::ssize(problem.layers);
  const Placement on_cpu{.layers = std::vector<LayerPlacement>(static_cast<size_t>(n))};
  Placement best = on_cpu;
  double least = Fits(problem, on_cpu) ? SecondsPerToken(problem, on_cpu) : HUGE_VAL;
  const auto offer = [&](Placement placement) {
    for (const Memory head : {Memory::kCpu, Memory::kDevice}) {
      placement.head = head;
      if (!Fits(problem, placement) || SecondsPerToken(problem, placement) >= least) continue;
      best = placement;
      least = SecondsPerToken(problem, placement);
    }
  };
  constexpr LayerPlacement kAttention{0, Memory::kDevice, Memory::kDevice};
  for (int64_t j = n; j > 0; j -= std::max<int64_t>(1, n / kSimpleShares))  // the last j layers as a whole
    offer([&] {
      Placement placement = on_cpu;
      std::fill(placement.layers.end() - j, placement.layers.end(),
                LayerPlacement{problem.n_ff, Memory::kDevice, Memory::kDevice});
      return placement;
    }());
  if (layers_only) return best;
  const int64_t n_blocks = problem.layers.empty() ? 0 : std::ssize(problem.layers[0].neurons);
  const int64_t step = std::max<int64_t>(1, n_blocks / kSimpleShares);
  for (const bool attention : {false, true})  // the same share of every layer
    for (int64_t hot = 0; hot <= n_blocks; hot += step) {
      Placement placement = on_cpu;
      for (LayerPlacement& layer : placement.layers) {
        if (attention) layer = kAttention;
        layer.n_hot = std::min(hot * kHotBlock, problem.n_ff);
      }
      offer(placement);
    }
  return best;
}

}  // namespace

SolvedPlacement SolvePlacement(const PlacementProblem& problem, const SolverOptions& options) {
  const SolvedPlacement solved =
      IntegerProgram(problem, options.layers_only).Solve(BestSimple(problem, options.layers_only), options);
  if (!Fits(problem, solved.placement))
    throw Error(
        "the model needs {} MB, and cannot be cut so that it fits into {} MB of the CPU's memory and {} MB of the "
        "device's",
        BytesInAll(problem) >> 20, problem.cpu_bytes >> 20, problem.device_bytes >> 20);
  return solved;
}

}  // namespace thermocline
