#include <algorithm>
#include <nlohmann/json.hpp>

#include "cpu/isa.h"
#include "cpu/team.h"
#include "cpu/topology.h"
#include "gpu/devices.h"
#include "gpu/emulated_device.h"
#include "models/error.h"
#include "models/gguf.h"
#include "models/limits.h"
#include "models/quoted.h"
#include "predictor/heat.h"
#include "predictor/recent_heat.h"
#include "runtime/commands/commands.h"
#include "runtime/device_flags.h"
#include "runtime/device_meter.h"
#include "runtime/emulated_ops.h"
#include "runtime/engine.h"
#include "runtime/kv_types.h"
#include "runtime/placement_file.h"
#include "runtime/planner.h"
#include "runtime/text_io.h"

namespace thermocline {
namespace {

struct Request {
  std::optional<std::string> heat, vram, ram, sparsity, gpu, order;
  int n_ctx = 4096, n_threads = 0;
  double device_gbs = 250, launch_us = 5, transfer_us = 15, transfer_gbs = 12;
  KvTypes kv_types;
  bool json = false, layers_only = false;
};

struct Limits {
  int64_t cpu_bytes, device_bytes;
};

std::optional<FfnMode> ParseMode(const Request& request) {
  const std::string mode = request.sparsity.value_or("auto");
  if (mode == "auto") return std::nullopt;
  if (mode == "dense") return FfnMode::kDense;
  if (mode == "exact") return FfnMode::kExact;
  if (mode == "predicted") return FfnMode::kPredicted;
  throw UsageError(fmt::format("--sparsity: {} is none of auto, dense, exact, predicted", Quoted(mode)));
}

std::vector<std::optional<HeatOrder>> ParseOrders(const Request& request) {
  if (!request.order) return {std::nullopt, HeatOrder::kBlocks, HeatOrder::kNeurons};
  if (*request.order == "file") return {std::nullopt};
  if (const std::optional<HeatOrder> by = FindHeatOrder(*request.order)) return {by};
  throw UsageError(fmt::format("--order: {} is none of file, blocks, neurons", Quoted(*request.order)));
}

bool ParseRequest(CommandLine& line, std::vector<std::string> args, Request& request) {
  line.AddModel();
  line.AddText("--heat", "FILE", &request.heat, "What `profile` learned (beside the model, by its name)");
  line.AddText("--vram", "SIZE", &request.vram,
               "Memory of a device, as 6G or 800M (none; with --gpu what is free there)");
  line.AddText(
      "--gpu", "DEVICE", &request.gpu,
      "The number of an NVIDIA GPU, from 0, whose speed is measured instead of taken from the flags; emulated: "
      "none, for tests");
  line.AddText("--ram", "SIZE", &request.ram, "Memory of the CPU (what is available)");
  line.AddInt("-c,--ctx-size,--ctx", &request.n_ctx, 1, kMaxContext,
              "Tokens that are kept when a token is timed (4096)");
  line.AddInt("-t,--threads", &request.n_threads, 1, kMaxThreads, "Threads (one per physical core)");
  line.AddText("--sparsity", "MODE", &request.sparsity,
               "dense, exact or predicted (auto: the faster one of dense and exact, where neurons fall silent)");
  AddKvTypes(line, &request.kv_types);
  line.AddDouble("--device-bandwidth", &request.device_gbs, 0.1, 1e5, "GB/s that the device reads of its memory (250)");
  line.AddDouble("--device-launch", &request.launch_us, 0, 1e6,
                 "Microseconds that an op of the device takes besides (5)");
  line.AddDouble("--device-latency", &request.transfer_us, 0, 1e6,
                 "Microseconds from one memory to the other, of few bytes (15)");
  line.AddDouble("--device-transfer", &request.transfer_gbs, 0.01, 1e4, "GB/s between the memories (12)");
  line.AddText(
      "--order", "ORDER", &request.order,
      "In which neurons count: file; hottest first by blocks, which loses nothing, or by neurons, for which down "
      "becomes Q8_0 (the fastest)");
  line.AddFlag("--layers-only", &request.layers_only, "Place layers as a whole, as other programs do");
  line.AddFlag("--json", &request.json, "Print the plan as JSON");
  line.SetFooter(
      "What the CPU takes is measured, with the kernels and the shapes of the model; what a device takes is taken "
      "from\n"
      "the flags, or measured with --gpu. Times are of one generated token, by itself.");
  if (!line.Parse(std::move(args))) return false;
  for (const auto& [flag, size] : {std::pair("--vram", request.vram), std::pair("--ram", request.ram)})
    if (size && !ParseSize(*size))
      throw UsageError(fmt::format("{}: {} is no size like 6G, 800M or 123456789", flag, Quoted(*size)));
  (void)ParseMode(request);
  (void)ParseOrders(request);
  if (request.gpu && *request.gpu != "emulated") (void)GpuIndex(*request.gpu);
  return true;
}

// What a plan is for: null where there is no memory of a device to plan with.
struct PlannedDevice {
  std::unique_ptr<Device> device;
  DeviceRates rates;
};

PlannedDevice OpenPlanned(const Request& request) {
  const int64_t vram = request.vram ? *ParseSize(*request.vram) : 0;
  const DeviceRates given{1e9 * request.device_gbs, 1e-6 * request.launch_us, 1e-6 * request.transfer_us,
                          1e9 * request.transfer_gbs};
  const auto emulate = [&](int64_t bytes) {
    return std::make_unique<EmulatedDevice>(EmulatedDeviceOptions{.budget_bytes = bytes}, MakeEmulatedOps());
  };
  if (!request.gpu) {
    // Nothing but its memory matters of it here.
    const int64_t bytes = vram - ProgramBytes(vram);
    return {bytes > 0 ? emulate(bytes) : nullptr, given};
  }
  if (request.vram && vram == 0) return {nullptr, given};
  const auto open = [&]() -> std::unique_ptr<Device> {
    if (*request.gpu == "emulated") return emulate(vram > 0 ? vram : kEmulatedBytes);
    return OpenDevice(GpuIndex(*request.gpu), vram);
  };
  const DeviceRates rates = MeasureDevice(*open());
  Note("measured: {:.0f} GB/s of weights, {:.1f} us an op, {:.1f} us and {:.2f} GB/s from one memory to the other",
       1e-9 * rates.bytes_per_s, 1e6 * rates.launch_s, 1e6 * rates.transfer_s, 1e-9 * rates.transfer_bytes_per_s);
  return {open(), rates};
}

std::optional<Heat> FindHeat(const GgufFile& file, const Model& model, const Request& request) {
  const std::filesystem::path path = request.heat ? std::filesystem::path(*request.heat) : HeatPath(file.path());
  std::error_code error;
  if (request.heat || std::filesystem::exists(path, error)) return ProfiledOrRecent(ReadHeat(path, file, model.config));
  if (!FindSparseFfns(model, FfnMode::kExact).empty())
    Note("nothing is known of which neurons fire: thermocline profile MODEL --text FILE");
  return std::nullopt;
}

const char* FormName(FfnMode mode) {
  return mode == FfnMode::kDense ? "dense" : mode == FfnMode::kExact ? "exact" : "predicted";
}

const char* OrderName(const Plans& plans) {
  if (!plans.by) return "as in the file";
  return plans.by == HeatOrder::kBlocks ? "hottest blocks first" : "hottest first, down in Q8_0";
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

std::string AsText(const Plans& plans, const Limits& limits, int64_t n_ff) {
  const Plan& plan = plans.all[0];
  const auto gb = [](int64_t bytes) { return HumanBytes(static_cast<double>(bytes)); };
  std::string text = LayerTable(plan.solved.placement, n_ff);
  text += fmt::format("memory      CPU {} of {}", gb(plan.cpu_bytes), gb(limits.cpu_bytes));
  text += fmt::format(", device {} and {} for a step, of {}\n", gb(plan.device_bytes), gb(plan.step_bytes),
                      gb(limits.device_bytes));
  text += fmt::format("FFNs        {}, neurons {}\n\n", FormName(plans.mode), OrderName(plans));
  text += "                   ms per token   tokens/s\n";
  for (const Plan& other : plans.all)
    text +=
        fmt::format("{:<18} {:>12.2f} {:>10.1f}\n", other.name, 1e3 * other.solved.seconds, 1 / other.solved.seconds);
  return text;
}

std::string AsJson(const Plans& plans, const Limits& limits, int64_t n_ff) {
  nlohmann::ordered_json out = {{"sparsity", FormName(plans.mode)},
                                {"cpu_bytes", limits.cpu_bytes},
                                {"device_bytes", limits.device_bytes},
                                {"n_ff", n_ff}};
  for (const Plan& plan : plans.all) {
    nlohmann::ordered_json entry = {
        {"name", plan.name},           {"seconds_per_token", plan.solved.seconds}, {"bound", plan.solved.bound},
        {"cpu_bytes", plan.cpu_bytes}, {"device_bytes", plan.device_bytes},        {"step_bytes", plan.step_bytes}};
    WritePlacement(plan.solved.placement, plan.solved.placement.orders.empty() ? std::nullopt : plans.by, entry);
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
  PlannedDevice planned = OpenPlanned(request);
  const Limits limits{request.ram ? *ParseSize(*request.ram) : topology.memory_available_bytes,
                      planned.device ? planned.device->free_bytes() : 0};
  const std::optional<Heat> heat = FindHeat(file, model, request);
  const PlanRequest plan_request{.model = model,
                                 .heat = heat ? &*heat : nullptr,
                                 .mode = ParseMode(request),
                                 .kv_types = request.kv_types,
                                 .n_ctx = request.n_ctx,
                                 .n_threads = n_threads,
                                 .cpu_bytes = limits.cpu_bytes,
                                 .device = planned.device.get(),
                                 .rates = planned.rates,
                                 .layers_only = request.layers_only,
                                 .orders = ParseOrders(request)};
  const Plans plans = MakePlans(plan_request);
  for (const std::string& note : plans.notes) Note("{}", TerminalSafe(note));
  WriteOut(request.json ? AsJson(plans, limits, model.config.n_ff) : AsText(plans, limits, model.config.n_ff));
  return kGood;
}

}  // namespace thermocline
