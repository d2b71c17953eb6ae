// --gpu, --vram and --placement: which device computes beside the CPU, how much of its memory is ours, and what it
// gets.
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
  // A device for one engine, or none. Throws Error where the one named is not there, or the placement is none.
  DeviceOptions Open() const;

 private:
  std::optional<std::string> gpu_, vram_, placement_;
};

// "800M", "4.5G", "123456": bytes, with K, M or G times 1024, its square, its cube; nullopt: none of that.
std::optional<int64_t> ParseSize(const std::string& text);

}  // namespace thermocline
