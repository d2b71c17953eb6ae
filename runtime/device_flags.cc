#include "runtime/device_flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "gpu/devices.h"
#include "gpu/emulated_device.h"
#include "models/error.h"
#include "models/limits.h"
#include "models/quoted.h"
#include "predictor/heat.h"
#include "predictor/recent_heat.h"
#include "runtime/emulated_ops.h"
#include "runtime/placement_file.h"
#include "runtime/text_io.h"

namespace thermocline {
namespace {

std::optional<int> ParseIndex(const std::string& text) {
  int index = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), index);
  if (error != std::errc{} || end != text.data() + text.size() || index < 0) return std::nullopt;
  return index;
}

const char* WhyNone() { return BuiltForDevices() ? "no GPU that CUDA can use is here" : "this build is without CUDA"; }

}  // namespace

int GpuIndex(const std::string& text) {
  const std::optional<int> index = ParseIndex(text);
  if (!index) throw UsageError(fmt::format("--gpu: {} is no number of a GPU", Quoted(text)));
  const auto n = std::ssize(FindDevices());
  if (*index >= n)
    throw Error("--gpu {}: {}. Leave the flag out, and the CPU computes everything.", *index,
                n == 0 ? WhyNone() : fmt::format("the GPUs here are 0 to {}", n - 1).c_str());
  return *index;
}

std::optional<int64_t> ParseSize(const std::string& text) {
  double value = 0;
  const char* last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), last, value);
  if (error != std::errc{} || last - end > 1 || !(value >= 0)) return std::nullopt;
  if (end != last) {
    const size_t power = std::string_view("KMG").find(*end);
    if (power == std::string_view::npos) return std::nullopt;
    value *= std::pow(1024.0, static_cast<double>(power + 1));
  }
  if (value > static_cast<double>(kMaxDeviceBytes)) return std::nullopt;
  return static_cast<int64_t>(value);
}

void DeviceFlags::AddFlags(CommandLine& line) {
  const char* device = BuiltForDevices()
                           ? "off; the number of an NVIDIA GPU, from 0; emulated: none, for tests (auto: "
                             "the first GPU there is)"
                           : "emulated: none, for tests; off (auto, which is off in a build without CUDA)";
  line.AddText("--gpu", "DEVICE", &gpu_, fmt::format("Computes a part of the model beside the CPU: {}", device));
  line.AddText("--vram", "SIZE", &vram_,
               "Memory of the device to use, as 6G or 800M (what is free but for a reserve; emulated: 1G)");
  line.AddText("--placement", "FILE", &placement_,
               "What the device gets, as `plan --json` printed it (as much as its memory holds)");
  line.AddText(
      "--heat", "FILE", &heat_,
      "What `profile` learned of which neurons fire, so that the device gets the hottest (beside the model, by "
      "its name)");
}

void DeviceFlags::Check() const {
  const std::string gpu = gpu_.value_or("auto");
  if (gpu != "auto" && gpu != "off" && gpu != "emulated" && !ParseIndex(gpu))
    throw UsageError(fmt::format("--gpu: {} is none of auto, off, emulated, and no number of a GPU", Quoted(gpu)));
  if (gpu == "off" && heat_) throw UsageError("--heat is for a device, and --gpu off is for none");
  if (gpu == "off" && placement_) throw UsageError("--placement is for a device, and --gpu off is for none");
  if (vram_ && !ParseSize(*vram_))
    throw UsageError(fmt::format("--vram: {} is no size like 6G, 800M or 123456789", Quoted(*vram_)));
}

DeviceOptions DeviceFlags::Open(const GgufFile& file, const Model& model, FfnMode ffn, bool recent) const {
  DeviceOptions options = OpenDevice();
  if (options.device) Place(file, model, ffn, recent, options);
  return options;
}

std::optional<Heat> DeviceFlags::ReadHeatOf(const GgufFile& file, const Model& model) const {
  const std::filesystem::path path = HeatFile(file);
  std::error_code error;
  if (!heat_ && !std::filesystem::exists(path, error)) return std::nullopt;
  return ProfiledOrRecent(ReadHeat(path, file, model.config));
}

std::filesystem::path DeviceFlags::HeatFile(const GgufFile& file) const {
  return heat_ ? std::filesystem::path(*heat_) : HeatPath(file.path());
}

void DeviceFlags::Place(const GgufFile& file, const Model& model, FfnMode ffn, bool recent,
                        DeviceOptions& options) const {
  if (placement_) {
    options.placement = ReadPlacement(*placement_, [&](HeatOrder by) {
      const std::optional<Heat> heat = ReadHeatOf(file, model);
      if (!heat)
        throw Error("{}: it counts on which neurons fire, and {} is missing; name the .heat file with --heat",
                    *placement_, HeatPath(file.path()).string());
      return HottestFirst(model, *heat, by);
    });
  }
  if (ffn == FfnMode::kDense) return;  // reads all neurons, however hot
  try {
    const std::optional<Heat> heat = ReadHeatOf(file, model);
    if (heat && !heat->targets.empty())
      options.hot = ByHeat(model, recent ? WithRecent(*heat) : *heat, FreeOrder(model));
  } catch (const Error& error) {
    if (heat_) throw;
    options.on_note(fmt::format("{}; neurons count as equally hot", error.what()));
  }
}

DeviceOptions DeviceFlags::OpenDevice() const {
  const std::string gpu = gpu_.value_or("auto");
  DeviceOptions options;
  options.on_note = [](const std::string& text) { Note("{}", TerminalSafe(text)); };
  if (gpu == "off") return options;
  const int64_t budget = vram_ ? *ParseSize(*vram_) : 0;
  if (gpu == "emulated") {
    options.device = std::make_shared<EmulatedDevice>(
        EmulatedDeviceOptions{.budget_bytes = vram_ ? budget : kEmulatedBytes}, MakeEmulatedOps());
    return options;
  }
  if (gpu == "auto" && FindDevices().empty()) {
    // Who asks for nothing is not told what a build cannot do anyway.
    if (gpu_ || vram_ || placement_ || BuiltForDevices()) Note("{}: the CPU computes everything", WhyNone());
    return options;
  }
  const int index = gpu == "auto" ? 0 : GpuIndex(gpu);
  try {
    options.device = thermocline::OpenDevice(index, vram_ ? std::max<int64_t>(budget, 1) : 0);
  } catch (const DeviceError& error) {
    if (gpu != "auto") throw;
    Note("{}; the CPU computes everything", TerminalSafe(error.what()));
  }
  return options;
}

}  // namespace thermocline
