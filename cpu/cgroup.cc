// What the control groups of this process allow (Linux Documentation/admin-guide/cgroup-v1, cgroup-v2.rst).
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>

#include "cpu/topology.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

// First number of a file; -1 for "max", negative numbers and files that are not there.
int64_t ReadNumber(const fs::path& path) {
  std::ifstream file(path);
  int64_t value;
  return file >> value && value >= 0 ? value : -1;
}

// Value of "key value" in a file of such lines; 0 where it is missing.
int64_t ReadKey(const fs::path& path, const std::string& wanted) {
  std::ifstream file(path);
  std::string key;
  for (int64_t value; file >> key >> value;)
    if (key == wanted) return std::max<int64_t>(value, 0);
  return 0;
}

// Names of one version's files.
struct Files {
  const char *limit, *usage, *inactive_file;
};
constexpr Files kV1{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"};
constexpr Files kV2{"memory.max", "memory.current", "inactive_file"};

void ApplyMemory(const fs::path& group, const Files& files, CgroupLimits& limits) {
  const int64_t limit = ReadNumber(group / files.limit);
  if (limit < 0) return;
  const int64_t cache = ReadKey(group / "memory.stat", files.inactive_file);
  const int64_t used = std::max<int64_t>(0, ReadNumber(group / files.usage) - cache);
  limits.memory_bytes = std::min(limits.memory_bytes, limit);
  limits.memory_available_bytes = std::min(limits.memory_available_bytes, std::max<int64_t>(0, limit - used));
}

void ApplyQuota(int64_t quota, int64_t period, CgroupLimits& limits) {
  if (quota > 0 && period > 0)
    limits.cpus = std::min(limits.cpus, static_cast<double>(quota) / static_cast<double>(period));
}

void ApplyCpuV2(const fs::path& group, CgroupLimits& limits) {
  std::ifstream file(group / "cpu.max");  // "max 100000" or "150000 100000"
  int64_t quota, period;
  if (file >> quota >> period) ApplyQuota(quota, period, limits);
}

void ApplyCpuV1(const fs::path& group, CgroupLimits& limits) {
  ApplyQuota(ReadNumber(group / "cpu.cfs_quota_us"), ReadNumber(group / "cpu.cfs_period_us"), limits);
}

// Calls apply for the group and everything above it up to the mount. In a container whose mount shows only its own
// group, the path names directories that are not there: the mount itself is then what counts.
template <typename Apply>
void ForPath(const fs::path& mount, const std::string& group, const Apply& apply) {
  apply(mount);
  fs::path path = mount;
  for (const fs::path& part : fs::path(group).relative_path()) {
    if (part == "..") return;  // outside of our cgroup namespace
    path /= part;
    apply(path);
  }
}

bool Lists(const std::string& controllers, const std::string& wanted) {
  std::istringstream list(controllers);
  for (std::string name; std::getline(list, name, ',');)
    if (name == wanted) return true;
  return false;
}

}  // namespace

CgroupLimits ReadCgroupLimits(const std::string& root) {
  CgroupLimits limits{std::numeric_limits<double>::infinity(), kNoLimit, kNoLimit};
  const fs::path mount = fs::path(root) / "sys/fs/cgroup";
  std::ifstream file(fs::path(root) / "proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {  // "4:cpu,cpuacct:/path", version 2 "0::/path"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), group = line.substr(second + 1);
    if (controllers.empty()) {
      ForPath(mount, group, [&](const fs::path& path) {
        ApplyCpuV2(path, limits);
        ApplyMemory(path, kV2, limits);
      });
    }
    if (Lists(controllers, "cpu")) {
      for (const std::string& name : {std::string("cpu"), controllers})  // mounted under one name or all of them
        ForPath(mount / name, group, [&](const fs::path& path) { ApplyCpuV1(path, limits); });
    }
    if (Lists(controllers, "memory"))
      ForPath(mount / "memory", group, [&](const fs::path& path) { ApplyMemory(path, kV1, limits); });
  }
  return limits;
}

}  // namespace thermocline
