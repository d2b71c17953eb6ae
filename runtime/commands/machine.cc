#include <algorithm>
#include <cmath>

#include "cpu/isa.h"
#include "cpu/topology.h"
#include "runtime/commands/commands.h"
#include "runtime/text_io.h"

namespace thermocline {
namespace {

constexpr int64_t kMeasuredBytes = int64_t{2} << 30;  // beyond every cache

std::string CpuList(std::vector<int> cpus) {
  std::sort(cpus.begin(), cpus.end());
  std::string list;
  for (size_t i = 0; i < cpus.size();) {
    size_t end = i + 1;
    while (end < cpus.size() && cpus[end] == cpus[end - 1] + 1) end++;
    list += fmt::format("{}{}", list.empty() ? "" : ",", cpus[i]);
    if (end - i > 1) list += fmt::format("-{}", cpus[end - 1]);
    i = end;
  }
  return list;
}

std::string BinaryBytes(int64_t bytes) {
  if (bytes >= int64_t{1} << 30) return fmt::format("{:.1f} GiB", static_cast<double>(bytes) / 0x1p30);
  if (bytes >= 1 << 20) return fmt::format("{:.4g} MiB", static_cast<double>(bytes) / 0x1p20);
  return fmt::format("{} KiB", bytes >> 10);
}

}  // namespace

int RunMachine(const Command& command, std::vector<std::string> args) {
  CommandLine line(command);
  if (!line.Parse(std::move(args))) return kGood;

  const Topology topology = DetectTopology();
  std::string runnable;
  for (const Isa isa : kIsas) {
    if (CanRun(isa)) runnable += (runnable.empty() ? "" : ", ") + std::string(Name(isa));
  }
  std::string out = fmt::format("CPU           {}\n", TerminalSafe(topology.cpu_name));
  out += fmt::format("Cores         {} physical, {} logical\n", topology.physical_cores, topology.logical_cpus);
  out += fmt::format("For us        CPU {}", CpuList(topology.team_cpus));
  out += std::isinf(topology.cpu_quota) ? "\n" : fmt::format(", quota of {:.2f} CPUs\n", topology.cpu_quota);
  out += fmt::format("Threads       {} by default\n", topology.DefaultThreads());
  for (const CacheInfo& cache : topology.caches) {
    out += fmt::format("L{} cache      {} x {}\n", cache.level, cache.count, BinaryBytes(cache.bytes));
  }
  out += fmt::format("Instructions  {} (can run: {})\n", Name(ChooseIsa()), runnable);
  out += fmt::format("Memory        {}, {} available\n", BinaryBytes(topology.memory_bytes),
                     BinaryBytes(topology.memory_available_bytes));
  WriteOut(out);

  const int64_t bytes = std::min(kMeasuredBytes, topology.memory_available_bytes / 4);
  const int all = topology.DefaultThreads();
  WriteOut(fmt::format("Memory read   {:.1f} GB/s with 1 thread", ReadProbe(1, bytes).Measure()));
  if (all > 1) WriteOut(fmt::format(", {:.1f} GB/s with {}", ReadProbe(all, bytes).Measure(), all));
  WriteOut("\n");
  return kGood;
}

}  // namespace thermocline
