#include "cpu/topology.h"

#include <hwloc.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <memory>
#include <numeric>

namespace thermocline {
namespace {

using Hwloc = std::unique_ptr<hwloc_topology, decltype(&hwloc_topology_destroy)>;

// nullptr where hwloc cannot say anything about this machine.
Hwloc LoadHwloc() {
  hwloc_topology_t topology = nullptr;
  if (hwloc_topology_init(&topology) != 0) return {nullptr, hwloc_topology_destroy};
  Hwloc owner(topology, hwloc_topology_destroy);
  // The machine, not our share of it: the affinity mask says what we may use. Devices are of no interest, and I/O
  // discovery is what takes long.
  hwloc_topology_set_flags(topology, HWLOC_TOPOLOGY_FLAG_INCLUDE_DISALLOWED);
  hwloc_topology_set_io_types_filter(topology, HWLOC_TYPE_FILTER_KEEP_NONE);
  if (hwloc_topology_load(topology) != 0) owner.reset();
  return owner;
}

// Logical CPUs of the affinity mask, ascending.
std::vector<int> AffinityCpus() {
  std::vector<int> cpus;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  if (cpus.empty()) {  // more than CPU_SETSIZE CPUs, or no such call: all of them
    cpus.resize(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
    std::iota(cpus.begin(), cpus.end(), 0);
  }
  return cpus;
}

struct Core {
  int cpu;         // its first logical CPU that we may use
  int efficiency;  // hwloc's rank of the kind of core: more is faster; -1: unknown
};

std::vector<Core> UsableCores(hwloc_topology_t topology, const std::vector<int>& affinity) {
  std::vector<Core> cores;
  const int n_cores = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE);
  for (int i = 0; i < n_cores; ++i) {
    const hwloc_obj_t core = hwloc_get_obj_by_type(topology, HWLOC_OBJ_CORE, i);
    const auto mine = std::find_if(affinity.begin(), affinity.end(),
                                   [&](int cpu) { return hwloc_bitmap_isset(core->cpuset, cpu) != 0; });
    if (mine == affinity.end()) continue;
    int efficiency = -1;
    const int kind = hwloc_cpukinds_get_by_cpuset(topology, core->cpuset, 0);
    if (kind >= 0) hwloc_cpukinds_get_info(topology, kind, nullptr, &efficiency, nullptr, nullptr, 0);
    cores.push_back({*mine, efficiency});
  }
  return cores;
}

std::vector<CacheInfo> Caches(hwloc_topology_t topology) {
  std::vector<CacheInfo> caches;
  for (hwloc_obj_type_t type : {HWLOC_OBJ_L1CACHE, HWLOC_OBJ_L2CACHE, HWLOC_OBJ_L3CACHE, HWLOC_OBJ_L4CACHE}) {
    const int count = hwloc_get_nbobjs_by_type(topology, type);
    if (count <= 0) continue;
    const hwloc_obj_t first = hwloc_get_obj_by_type(topology, type, 0);
    caches.push_back(
        {static_cast<int>(first->attr->cache.depth), static_cast<int64_t>(first->attr->cache.size), count});
  }
  return caches;
}

std::string CpuName(hwloc_topology_t topology) {
  if (topology != nullptr) {
    for (hwloc_obj_t object : {hwloc_get_obj_by_type(topology, HWLOC_OBJ_PACKAGE, 0), hwloc_get_root_obj(topology)}) {
      if (object == nullptr) continue;
      if (const char* name = hwloc_obj_get_info_by_name(object, "CPUModel")) return name;
    }
  }
  return "unknown CPU";
}

// The line "key  123 kB" of /proc/meminfo, in bytes; -1: not there.
int64_t MemInfo(const std::string& key) {
  std::ifstream file("/proc/meminfo");
  std::string name, unit;
  int64_t value;
  while (file >> name >> value && std::getline(file, unit))
    if (name == key) return value * 1024;
  return -1;
}

}  // namespace

Topology DetectTopology() {
  Topology result{};
  const std::vector<int> affinity = AffinityCpus();
  result.affinity_cpus = static_cast<int>(affinity.size());
  const Hwloc hwloc = LoadHwloc();
  result.cpu_name = CpuName(hwloc.get());
  std::vector<Core> cores;
  if (hwloc != nullptr) {
    result.physical_cores = std::max(0, hwloc_get_nbobjs_by_type(hwloc.get(), HWLOC_OBJ_CORE));
    result.logical_cpus = std::max(0, hwloc_get_nbobjs_by_type(hwloc.get(), HWLOC_OBJ_PU));
    result.caches = Caches(hwloc.get());
    cores = UsableCores(hwloc.get(), affinity);
  }
  if (cores.empty())  // hwloc knows no cores: every CPU of the mask is one
    for (int cpu : affinity) cores.push_back({cpu, -1});
  result.logical_cpus = std::max(result.logical_cpus, result.affinity_cpus);
  if (result.physical_cores <= 0) result.physical_cores = result.logical_cpus;

  std::stable_sort(cores.begin(), cores.end(),
                   [](const Core& a, const Core& b) { return a.efficiency > b.efficiency; });
  for (const Core& core : cores) {
    result.team_cpus.push_back(core.cpu);
    if (core.efficiency == cores.front().efficiency) ++result.fast_cores;
  }

  const CgroupLimits limits = ReadCgroupLimits();
  result.cpu_quota = limits.cpus;
  const int64_t total = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  const int64_t available = MemInfo("MemAvailable:");
  result.memory_bytes = std::min(total, limits.memory_bytes);
  result.memory_available_bytes =
      std::min({available >= 0 ? available : total, limits.memory_available_bytes, result.memory_bytes});
  return result;
}

int Topology::DefaultThreads() const {
  const double cores = static_cast<double>(team_cpus.size());
  return std::max(1, static_cast<int>(std::floor(std::min(cores, cpu_quota))));
}

}  // namespace thermocline
