// What this machine is: cores, caches, and what of them we may use.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace thermocline {

struct CacheInfo {
  int level;
  int64_t bytes;     // of one
  int count;
};

struct Topology {
  std::string cpu_name;
  int physical_cores;             // of the machine
  int logical_cpus;
  std::vector<int> team_cpus;     // one logical CPU per physical core in the affinity mask, fast cores first
  double cpu_quota;               // CPUs the cgroup allows; +inf: no limit
  std::vector<CacheInfo> caches;
  int64_t memory_bytes;           // of the machine, or the cgroup's limit where that is less
  int64_t memory_available_bytes; // now

  int DefaultThreads() const;     // team_cpus, no more than the quota allows, at least 1
};

Topology DetectTopology();

// Best of five passes over `bytes` of fresh memory with all `n_threads`, software prefetch ahead, in GB/s.
double MeasureReadBandwidth(int n_threads, int64_t bytes);

}  // namespace thermocline
