#include "runtime/planner.h"

#include <fmt/format.h>

#include <algorithm>

#include "models/error.h"
#include "runtime/device_plan.h"
#include "runtime/engine.h"

namespace thermocline {
namespace {

constexpr int kMaxRounds = 3;        // of solving, until what a step takes is what was left for it
constexpr double kRoundSeconds = 1;  // of each; there are several for each order of neurons
// By so much an order of neurons must be faster: it takes longer to load, and what it saves was measured.
constexpr double kWorthOrdering = 0.01;

NeuronShares Shares(const PlanRequest& request, FfnMode mode) {
  NeuronShares shares{.active = std::vector<double>(static_cast<size_t>(request.model.config.n_layer), 1)};
  if (mode == FfnMode::kDense) return shares;
  for (size_t i = 0; request.heat && i < shares.active.size(); ++i)
    shares.active[i] = request.heat->ActiveShare(static_cast<int>(i), 0);
  if (mode != FfnMode::kPredicted) return shares;
  const HeatPredictors& predictors = request.heat->predictors;
  shares.named.assign(predictors.computed.begin(), predictors.computed.end());
  for (const NeuronPredictor& layer : predictors.layers) shares.ranks.push_back(layer.rank);
  return shares;
}

CpuSeconds Measure(const PlanRequest& request, const Model& model, FfnMode mode) {
  return MeasureCpu(model, mode, Shares(request, mode), request.kv_types, request.n_threads, request.n_ctx);
}

// One order of neurons, and what the machine takes with it.
class Variant {
 public:
  Variant(const PlanRequest& request, std::optional<HeatOrder> by, const Model& model, const CpuSeconds& seconds,
          HotNeurons hot)
      : by(by), request_(request), orders_(std::move(hot.orders)) {
    problem_ = MakeProblem(model, seconds, request.rates, request.kv_types, request.n_ctx, hot.heat);
    problem_.cpu_bytes = request.cpu_bytes;
  }

  // The fastest placement that fits the device as it will run there, with the rows of a step, which depend on what is
  // placed: what they took is what the solver leaves free the next time. Never slower than `known`, the placement found
  // for another order, if given: the solver stops a little above the best it could find, here and there at another.
  Plan Solve(const char* name, bool layers_only, const SolvedPlacement* known = nullptr) const {
    PlacementProblem problem = problem_;
    const int64_t budget = request_.device ? request_.device->free_bytes() : 0;
    int64_t besides = RowBytes();
    std::optional<SolvedPlacement> best;
    // False where the CPU cannot hold what the device cannot.
    const auto consider = [&](SolvedPlacement solved, int64_t* now) {
      solved.placement = AsItRuns(std::move(solved.placement));
      solved.seconds = SecondsPerToken(problem, solved.placement);
      if (BytesOnCpu(problem, solved.placement) > problem.cpu_bytes) return false;
      const int64_t total = BytesFor(solved.placement).total();
      *now = total - BytesOnDevice(problem, solved.placement);
      if (total <= budget && (!best || solved.seconds < best->seconds)) best = std::move(solved);
      return total > 0;
    };
    for (int i = 0; budget > besides && i < kMaxRounds; ++i) {
      problem.device_bytes = budget - besides;
      int64_t now = 0;
      SolvedPlacement solved = SolvePlacement(problem, {.layers_only = layers_only, .max_seconds = kRoundSeconds});
      if (!consider(std::move(solved), &now) || now == besides) break;
      besides = now;
    }
    if (known) consider(*known, &besides);
    if (best) return AsPlan(name, std::move(*best));
    problem.device_bytes = 0;
    return AsPlan(name, SolvePlacement(problem, {.layers_only = layers_only}));
  }

  Plan SolveUnlimited(const char* name) const {
    PlacementProblem problem = problem_;
    problem.cpu_bytes = problem.device_bytes = INT64_MAX / 4;
    return AsPlan(name, SolvePlacement(problem, {}));
  }

  Plan AllOnCpu(const char* name) const {
    Placement placement{.layers = std::vector<LayerPlacement>(problem_.layers.size())};
    const double seconds = SecondsPerToken(problem_, placement);
    return AsPlan(name, {std::move(placement), seconds, seconds});
  }

  const std::optional<HeatOrder> by;

 private:
  Plan AsPlan(const char* name, SolvedPlacement solved) const {
    const int64_t device = BytesOnDevice(problem_, solved.placement), cpu = BytesOnCpu(problem_, solved.placement);
    const int64_t step = request_.device ? BytesFor(solved.placement).rows : 0;
    solved.placement.orders = orders_;
    return {name, std::move(solved), cpu, device, step};
  }

  // Without what the device cannot multiply, or hold.
  Placement AsItRuns(Placement placement) const {
    placement.orders = orders_;
    return Restrict(*request_.device, request_.model, request_.kv_types, std::move(placement));
  }

  DeviceBytes BytesFor(Placement placement) const {
    placement = AsItRuns(std::move(placement));
    if (!UsesDevice(placement)) return {};
    return DeviceSide::BytesFor(*request_.device, Split(request_.model, placement), nullptr,
                                LayoutOf(placement, request_.model.config, request_.kv_types),
                                {request_.n_ctx, 1, kMaxBatchRows});
  }

  // Of a step that runs on the device from the first layer to the head.
  int64_t RowBytes() const {
    if (!request_.device) return 0;
    const LayerPlacement all{request_.model.config.n_ff, Memory::kDevice, Memory::kDevice};
    return BytesFor({.layers = std::vector<LayerPlacement>(problem_.layers.size(), all), .head = Memory::kDevice}).rows;
  }

  const PlanRequest& request_;
  const NeuronOrders orders_;
  PlacementProblem problem_;
};

struct Form {
  FfnMode mode;
  CpuSeconds seconds;
};

Form MeasureFastest(const PlanRequest& request) {
  if (request.mode == FfnMode::kPredicted) {
    if (!request.heat || !request.heat->predictors.complete())
      throw Error(
          "--sparsity predicted needs a .heat file with predictors: thermocline profile MODEL --text FILE "
          "--train-predictors");
    if (FindSparseFfns(request.model, FfnMode::kExact).empty() ||
        FindSparseFfns(request.model, FfnMode::kPredicted).empty())
      throw Error("--sparsity predicted is planned for FFNs gated by relu, without biases; this model's are others");
    return {FfnMode::kPredicted, Measure(request, request.model, FfnMode::kPredicted)};
  }
  std::optional<Form> fastest;
  const bool can_skip = !FindSparseFfns(request.model, FfnMode::kExact).empty();
  for (const FfnMode mode : {FfnMode::kDense, FfnMode::kExact}) {
    if (request.mode && request.mode != mode) continue;
    if (mode == FfnMode::kExact && !can_skip) continue;
    Form form{mode, Measure(request, request.model, mode)};
    if (!fastest || form.seconds.sum() < fastest->seconds.sum()) fastest = std::move(form);
  }
  if (!fastest) throw Error("--sparsity exact needs FFNs gated by relu, which this model has not. Leave the flag out.");
  return *fastest;
}

// Neurons as in the file; and hottest first, by blocks and by neurons, where that counts.
std::vector<Variant> MakeVariants(const PlanRequest& request, const Form& form) {
  std::vector<Variant> variants;
  variants.emplace_back(request, std::nullopt, request.model, form.seconds, HotNeurons{});
  const bool counts = form.mode != FfnMode::kDense && request.heat && !request.heat->targets.empty();
  if (!counts || !request.device || request.layers_only) return variants;
  for (const std::optional<HeatOrder>& by : request.orders) {
    if (!by) continue;
    HotNeurons hot = ByHeat(request.model, *request.heat, *by);
    const Model model = Reorder(request.model, hot.orders);
    const bool same_types = std::equal(model.weights.begin(), model.weights.end(), request.model.weights.begin(),
                                       [](const Weight& a, const Weight& b) { return a.type() == b.type(); });
    const CpuSeconds seconds = same_types ? form.seconds : Measure(request, model, form.mode);
    variants.emplace_back(request, by, model, seconds, std::move(hot));
  }
  return variants;
}

// Whether the order of neurons matters.
bool Splits(const Placement& placement, int64_t n_ff) {
  return std::any_of(placement.layers.begin(), placement.layers.end(),
                     [&](const LayerPlacement& layer) { return layer.n_hot > 0 && layer.n_hot < n_ff; });
}

}  // namespace

Plans MakePlans(const PlanRequest& request) {
  const Form form = MeasureFastest(request);
  const std::vector<Variant> variants = MakeVariants(request, form);
  Plans plans{.mode = form.mode, .by = {}, .all = {}, .notes = {}};
  const Variant* best = nullptr;
  const bool has_orders = variants.size() > 1;
  Plan in_file_order = variants[0].Solve("the file's order", request.layers_only);
  for (const Variant& variant : variants) {
    if (has_orders && std::find(request.orders.begin(), request.orders.end(), variant.by) == request.orders.end())
      continue;
    Plan plan = variant.by ? variant.Solve("", false, &in_file_order.solved) : in_file_order;
    plan.name = "this plan";
    if (best && !Splits(plan.solved.placement, request.model.config.n_ff)) continue;
    if (best && plan.solved.seconds >= (1 - kWorthOrdering) * plans.all[0].solved.seconds) continue;
    best = &variant;
    plans.all = {std::move(plan)};
    plans.by = variant.by;
  }
  plans.all.push_back(variants[0].AllOnCpu("all on the CPU"));
  if (!request.device) return plans;
  const auto compare = [&](const char* name, const auto& solve) {
    try {
      plans.all.push_back(solve());
    } catch (const Error& error) {
      plans.notes.push_back(fmt::format("{}: {}", name, error.what()));
    }
  };
  compare("whole layers", [&] { return variants[0].Solve("whole layers", true); });
  // Layers that are split take rows of their own, which in little memory costs more than it gains.
  const bool may_choose = !plans.by || request.orders.size() > 1;
  if (may_choose && plans.all.size() == 3 && plans.all[2].solved.seconds < plans.all[0].solved.seconds) {
    plans.all[0] = plans.all[2];
    plans.all[0].name = "this plan";
    plans.by = {};
  }
  if (plans.by) plans.all.push_back(std::move(in_file_order));
  compare("no budget", [&] { return best->SolveUnlimited("no budget"); });
  return plans;
}

}  // namespace thermocline
