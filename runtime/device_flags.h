// --gpu, --vram, --placement and --heat: which device computes beside the CPU, how much of its memory is ours, and what
// it gets.
#pragma once

#include <optional>
#include <string>

#include "runtime/cli.h"
#include "runtime/hybrid.h"

namespace thermocline {

class DeviceFlags {
 public:
  void AddFlags(CommandLine& line);
  void Check() const;  // throws UsageError for what is no device and no size
  // A device for one engine of the model whose generated rows read that of FFNs, or none. Throws Error where the one
  // named is not there, or the placement is none, or counts on other heat.
  // recent: what chat learned lately decides as well what is hot.
  DeviceOptions Open(const GgufFile& file, const Model& model, FfnMode ffn, bool recent = false) const;
  // The .heat file that --heat names, or the one beside the model.
  std::filesystem::path HeatFile(const GgufFile& file) const;

 private:
  DeviceOptions OpenDevice() const;
  // Of the .heat file; nullopt where there is none. Throws Error.
  std::optional<Heat> ReadHeatOf(const GgufFile& file, const Model& model) const;
  void Place(const GgufFile& file, const Model& model, FfnMode ffn, bool recent, DeviceOptions& options) const;

  std::optional<std::string> gpu_, vram_, placement_, heat_;
};

// Unless --vram says, of the emulated device.
inline constexpr int64_t kEmulatedBytes = int64_t{1} << 30;

// The GPU of this machine that a text is the number of. Throws UsageError for no number, Error where there is none.
int GpuIndex(const std::string& text);

// "800M", "4.5G", "123456": bytes, with K, M or G times 1024, its square, its cube; nullopt: none of that.
std::optional<int64_t> ParseSize(const std::string& text);

}  // namespace thermocline
