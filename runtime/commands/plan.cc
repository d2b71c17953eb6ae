#include <algorithm>
#include <nlohmann/json.hpp>

#include "cpu/isa.h"
#include "cpu/team.h"
#include "cpu/topology.h"
#include "models/error.h"
#include "models/gguf.h"
#include "models/limits.h"
#include "models/quoted.h"
#include "predictor/heat.h"
#include "predictor/placement_cost.h"
#include "runtime/commands/commands.h"
#include "runtime/device_flags.h"
#include "runtime/engine.h"
#include "runtime/kv_types.h"
#include "runtime/placement_file.h"
#include "runtime/text_io.h"

namespace thermocline {
namespace {

struct Request {
  std::optional<std::string> heat, vram, ram, sparsity;
  int n_ctx = 4096, n_threads = 0;
  double device_gbs = 250, launch_us = 5, transfer_us = 15, transfer_gbs = 12;
  KvTypes kv_types;
  bool json = false, layers_only = false;
};

// The CPU's part of a plan, by the form of the FFNs.
struct Form {
  FfnMode mode;
  const char* name;
  CpuSeconds seconds;
};

struct Plan {
  const char* name;
  SolvedPlacement solved;
};

bool ParseRequest(CommandLine& line, std::vector<std::string> args, Request& request) {
  line.AddModel();
  line.AddText("--heat", "FILE", &request.heat, "What `profile` learned (beside the model, by its name)");
  line.AddText("--vram", "SIZE", &request.vram, "Memory of a device, as 6G or 800M (none)");
  line.AddText("--ram", "SIZE", &request.ram, "Memory of the CPU (what is available)");
  line.AddInt("-c,--ctx-size,--ctx", &request.n_ctx, 1, kMaxContext,
              "Tokens that are kept when a token is timed (4096)");
  line.AddInt("-t,--threads", &request.n_threads, 1, kMaxThreads, "Threads (one per physical core)");
  line.AddText("--sparsity", "MODE", &request.sparsity,
               "dense or exact (auto: the faster one where neurons fall silent)");
  AddKvTypes(line, &request.kv_types);
  line.AddDouble("--device-bandwidth", &request.device_gbs, 0.1, 1e5, "GB/s that the device reads of its memory (250)");
  line.AddDouble("--device-launch", &request.launch_us, 0, 1e6,
                 "Microseconds that an op of the device takes besides (5)");
  line.AddDouble("--device-latency", &request.transfer_us, 0, 1e6,
                 "Microseconds from one memory to the other, of few bytes (15)");
  line.AddDouble("--device-transfer", &request.transfer_gbs, 0.01, 1e4, "GB/s between the memories (12)");
  line.AddFlag("--layers-only", &request.layers_only, "Place layers as a whole, as other programs do");
  line.AddFlag("--json", &request.json, "Print the plan as JSON");
  line.SetFooter(
      "What the CPU takes is measured, with the kernels and the shapes of the model; what a device takes is taken "
      "from\n"
      "the flags. Times are of one generated token, by itself.");
  if (!line.Parse(std::move(args))) return false;
  for (const auto& [flag, size] : {std::pair("--vram", request.vram), std::pair("--ram", request.ram)})
    if (size && !ParseSize(*size))
      throw UsageError(fmt::format("{}: {} is no size like 6G, 800M or 123456789", flag, Quoted(*size)));
  const std::string mode = request.sparsity.value_or("auto");
  if (mode != "auto" && mode != "dense" && mode != "exact")
    throw UsageError(fmt::format("--sparsity: {} is none of auto, dense, exact", Quoted(mode)));
  return true;
}

// By layer, the share of neurons that are read; all where nothing is known.
std::vector<double> ActiveShares(const GgufFile& file, const Model& model, const Request& request) {
  std::vector<double> shares(static_cast<size_t>(model.config.n_layer), 1);
  const std::filesystem::path path = request.heat ? std::filesystem::path(*request.heat) : HeatPath(file.path());
  std::error_code error;
  if (!request.heat && !std::filesystem::exists(path, error)) {
    Note("nothing is known of which neurons fire: thermocline profile MODEL --text FILE");
    return shares;
  }
  const Heat heat = ReadHeat(path, file, model.config);
  for (size_t i = 0; i < shares.size(); ++i) shares[i] = heat.ActiveShare(static_cast<int>(i), 0);
  return shares;
}

Form MeasureFastest(const GgufFile& file, const Model& model, const Request& request, int n_threads) {
  const std::string mode = request.sparsity.value_or("auto");
  const bool can_skip = !FindSparseFfns(model, FfnMode::kExact).empty();
  if (mode == "exact" && !can_skip)
    throw Error("--sparsity exact needs FFNs gated by relu, which this model has not. Leave the flag out.");
  std::optional<Form> fastest;
  const auto offer = [&](FfnMode ffn, const char* name, const std::vector<double>& active) {
    Form form{ffn, name, MeasureCpu(model, ffn, active, request.kv_types, n_threads, request.n_ctx)};
    if (!fastest || form.seconds.sum() < fastest->seconds.sum()) fastest = std::move(form);
  };
  if (mode != "exact")
    offer(FfnMode::kDense, "dense", std::vector<double>(static_cast<size_t>(model.config.n_layer), 1));
  if (mode != "dense" && can_skip) offer(FfnMode::kExact, "exact", ActiveShares(file, model, request));
  return *fastest;
}

std::vector<Plan> MakePlans(const PlacementProblem& problem, bool layers_only) {
  std::vector<Plan> plans = {{"this plan", SolvePlacement(problem, {.layers_only = layers_only})}};
  const auto on_cpu = [&] {
    Placement placement{.layers = std::vector<LayerPlacement>(problem.layers.size())};
    const double seconds = SecondsPerToken(problem, placement);
    return SolvedPlacement{std::move(placement), seconds, seconds};
  };
  plans.push_back({"all on the CPU", on_cpu()});
  if (problem.device_bytes == 0) return plans;
  plans.push_back({"whole layers", SolvePlacement(problem, {.layers_only = true})});
  PlacementProblem unlimited = problem;
  unlimited.cpu_bytes = unlimited.device_bytes = INT64_MAX / 4;
  plans.push_back({"no budget", SolvePlacement(unlimited, {})});
  return plans;
}

std::string LayerTable(const Placement& placement, int64_t n_ff) {
  std::string text = "layers      attention  keys, values  neurons on the device\n";
  const auto& layers = placement.layers;
  for (size_t begin = 0, end = 0; begin < layers.size(); begin = end) {
    const auto same = [&](const LayerPlacement& a, const LayerPlacement& b) {
      return a.n_hot == b.n_hot && a.attention == b.attention && a.kv == b.kv;
    };
    while (end < layers.size() && same(layers[begin], layers[end])) ++end;
    const std::string range = end - begin > 1 ? fmt::format("{}-{}", begin, end - 1) : fmt::format("{}", begin);
    text += fmt::format("{:<10}  {:<9}  {:<12}  {} of {}\n", range, Name(layers[begin].attention),
                        Name(layers[begin].kv), layers[begin].n_hot, n_ff);
  }
  return text + fmt::format("output      {}\n", Name(placement.head));
}

std::string AsText(const std::vector<Plan>& plans, const PlacementProblem& problem, const Form& form) {
  const Placement& placement = plans[0].solved.placement;
  const auto gb = [](int64_t bytes) { return HumanBytes(static_cast<double>(bytes)); };
  std::string text = LayerTable(placement, problem.n_ff);
  const int64_t device = BytesOnDevice(problem, placement);
  text += fmt::format("memory      CPU {} of {}", gb(BytesInAll(problem) - device), gb(problem.cpu_bytes));
  text += fmt::format(", device {} of {}\nFFNs        {}\n\n", gb(device), gb(problem.device_bytes), form.name);
  text += "                   ms per token   tokens/s\n";
  for (const Plan& plan : plans)
    text += fmt::format("{:<18} {:>12.2f} {:>10.1f}\n", plan.name, 1e3 * plan.solved.seconds, 1 / plan.solved.seconds);
  return text;
}

std::string AsJson(const std::vector<Plan>& plans, const PlacementProblem& problem, const Form& form) {
  nlohmann::ordered_json out = {{"sparsity", form.name},
                                {"cpu_bytes", problem.cpu_bytes},
                                {"device_bytes", problem.device_bytes},
                                {"n_ff", problem.n_ff}};
  for (const Plan& plan : plans) {
    const Placement& placement = plan.solved.placement;
    const int64_t device = BytesOnDevice(problem, placement);
    nlohmann::ordered_json entry = {{"name", plan.name},
                                    {"seconds_per_token", plan.solved.seconds},
                                    {"bound", plan.solved.bound},
                                    {"cpu_bytes", BytesInAll(problem) - device},
                                    {"device_bytes", device}};
    WritePlacement(placement, entry);
    out["plans"].push_back(std::move(entry));
  }
  return out.dump() + "\n";
}

}  // namespace

int RunPlan(const Command& command, std::vector<std::string> args) {
  CommandLine line(command);
  Request request;
  if (!ParseRequest(line, std::move(args), request)) return kGood;
  const GgufFile file = GgufFile::Open(line.ModelPath());
  const Model model = Model::FromGguf(file);
  if (model.config.HasLearnedPositions() && request.n_ctx > model.config.n_ctx_train)
    throw Error(
        "a context of {} tokens is longer than the {} positions that the model has learned; choose a shorter one",
        request.n_ctx, model.config.n_ctx_train);
  const Topology topology = DetectTopology();
  // Attention is measured over all of it.
  if (const int64_t kv = KvBytes(model.config, request.kv_types, request.n_ctx);
      kv > topology.memory_available_bytes / 2)
    throw Error("a context of {} tokens takes {} MB to measure, more than half of what is free; choose a smaller one",
                request.n_ctx, kv >> 20);
  const int n_threads = request.n_threads > 0 ? request.n_threads : topology.DefaultThreads();
  const Form form = MeasureFastest(file, model, request, n_threads);
  const DeviceRates device{1e9 * request.device_gbs, 1e-6 * request.launch_us, 1e-6 * request.transfer_us,
                           1e9 * request.transfer_gbs};
  const int64_t ram = request.ram ? *ParseSize(*request.ram) : topology.memory_available_bytes;
  const int64_t vram = request.vram ? *ParseSize(*request.vram) : 0;
  const PlacementProblem problem = MakeProblem(model, form.seconds, device, request.kv_types, request.n_ctx, ram, vram);
  const std::vector<Plan> plans = MakePlans(problem, request.layers_only);
  WriteOut(request.json ? AsJson(plans, problem, form) : AsText(plans, problem, form));
  return kGood;
}

}  // namespace thermocline
