// What this machine is: cores, caches, and what of them we may use.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace thermocline {

struct CacheInfo {
  int level;
  int64_t bytes;  // of one
  int count;
};

struct Topology {
  std::string cpu_name;
  int physical_cores;  // of the machine
  int logical_cpus;
  int affinity_cpus;           // logical CPUs in the affinity mask
  std::vector<int> team_cpus;  // one logical CPU per physical core in the affinity mask, fast cores first
  int fast_cores;              // how many of team_cpus are of the fastest kind
  double cpu_quota;            // CPUs the cgroup allows; +inf: no limit
  std::vector<CacheInfo> caches;
  int64_t memory_bytes;            // of the machine, or the cgroup's limit where that is less
  int64_t memory_available_bytes;  // now

  int DefaultThreads() const;  // team_cpus, no more than the quota allows, at least 1
};

// What the cgroups of this process allow: the least along the path from its group to the root, versions 1 and 2.
struct CgroupLimits {
  double cpus;                     // +inf: no limit
  int64_t memory_bytes;            // INT64_MAX: no limit
  int64_t memory_available_bytes;  // what the limits leave, file cache counted as free
};
// `root` stands for "/" in front of proc/self/cgroup and sys/fs/cgroup. Anything missing or unreadable is no limit.
CgroupLimits ReadCgroupLimits(const std::string& root = "/");

Topology DetectTopology();

// Reads fresh memory of so many bytes with n_threads, as often as somebody wants to know what memory gives by then:
// where it is shared with others, that changes by half within minutes.
class ReadProbe {
 public:
  // Finds the prefetch distance and number of streams per thread that suit this machine best. Throws Error when there
  // is not enough memory.
  ReadProbe(int n_threads, int64_t bytes);
  ~ReadProbe();
  double Measure();  // GB/s, best of five passes over it all

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Operations per second, two per multiply and add, of independent dot products of bytes (VNNI where `isa` has it), of
// fused multiply-adds of floats, and of products of tiles of BF16, with all `n_threads`: best of five. 0: `isa` has
// none.
struct Peak {
  double int8, f32, bf16;
};
Peak MeasurePeak(Isa isa, int n_threads);

}  // namespace thermocline
