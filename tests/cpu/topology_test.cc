#include "cpu/topology.h"

#include <doctest/doctest.h>
#include <sched.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>
#include <string>

namespace thermocline {
namespace {

namespace fs = std::filesystem;

// A directory that stands for "/", gone with the scope.
class Root {
 public:
  Root() {
    std::string pattern = (fs::temp_directory_path() / "thermocline-XXXXXX").string();
    REQUIRE(mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~Root() { fs::remove_all(path_); }
  Root& Add(const std::string& name, const std::string& content) {
    fs::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name) << content;
    return *this;
  }
  CgroupLimits Limits() const { return ReadCgroupLimits(path_.string()); }

 private:
  fs::path path_;
};

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

TEST_CASE("no cgroup files: no limits") {
  const CgroupLimits limits = Root().Limits();
  CHECK(limits.cpus == kInf);
  CHECK(limits.memory_bytes == kNoLimit);
  CHECK(limits.memory_available_bytes == kNoLimit);
}

TEST_CASE("cgroup v2: the least along the path counts") {
  Root root;
  root.Add("proc/self/cgroup", "0::/user.slice/app.scope\n")
      .Add("sys/fs/cgroup/user.slice/cpu.max", "150000 100000\n")
      .Add("sys/fs/cgroup/user.slice/memory.max", "1000000\n")
      .Add("sys/fs/cgroup/user.slice/memory.current", "900000\n")
      .Add("sys/fs/cgroup/user.slice/memory.stat", "anon 1\ninactive_file 300000\nactive_file 5\n")
      .Add("sys/fs/cgroup/user.slice/app.scope/cpu.max", "max 100000\n")
      .Add("sys/fs/cgroup/user.slice/app.scope/memory.max", "max\n");
  CgroupLimits limits = root.Limits();
  CHECK(limits.cpus == 1.5);
  CHECK(limits.memory_bytes == 1000000);
  CHECK(limits.memory_available_bytes == 400000);  // file cache counts as free
  root.Add("sys/fs/cgroup/user.slice/app.scope/cpu.max", "50000 100000\n")
      .Add("sys/fs/cgroup/user.slice/app.scope/memory.max", "2000\n")
      .Add("sys/fs/cgroup/user.slice/app.scope/memory.current", "5000\n");
  limits = root.Limits();
  CHECK(limits.cpus == 0.5);
  CHECK(limits.memory_bytes == 2000);
  CHECK(limits.memory_available_bytes == 0);
}

TEST_CASE("cgroup v2 inside a container: the mount is our own group, the path names the host's") {
  for (const char* path : {"0::/\n", "0::/docker/1234\n", "0::/../../sibling\n"}) {
    Root root;
    root.Add("proc/self/cgroup", path)
        .Add("sys/fs/cgroup/cpu.max", "200000 100000\n")
        .Add("sys/fs/cgroup/memory.max", "4096\n")
        .Add("sys/fs/cgroup/memory.current", "96\n");
    const CgroupLimits limits = root.Limits();
    CHECK(limits.cpus == 2);
    CHECK(limits.memory_available_bytes == 4000);
  }
}

TEST_CASE("cgroup v1, controllers mounted under one name or all of them") {
  for (const char* cpu : {"cpu", "cpu,cpuacct"}) {
    Root root;
    const std::string group = std::string("sys/fs/cgroup/") + cpu + "/docker/1234/";
    root.Add("proc/self/cgroup", "5:memory:/docker/1234\n4:cpu,cpuacct:/docker/1234\n1:name=systemd:/docker/1234\n")
        .Add(group + "cpu.cfs_quota_us", "250000\n")
        .Add(group + "cpu.cfs_period_us", "100000\n")
        .Add("sys/fs/cgroup/memory/docker/1234/memory.limit_in_bytes", "5000\n")
        .Add("sys/fs/cgroup/memory/docker/1234/memory.usage_in_bytes", "3000\n")
        .Add("sys/fs/cgroup/memory/docker/1234/memory.stat", "cache 1\ntotal_inactive_file 1000\n")
        .Add("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    const CgroupLimits limits = root.Limits();
    CHECK(limits.cpus == 2.5);
    CHECK(limits.memory_bytes == 5000);
    CHECK(limits.memory_available_bytes == 3000);
    root.Add(group + "cpu.cfs_quota_us", "-1\n");
    CHECK(root.Limits().cpus == kInf);
  }
}

TEST_CASE("cgroup files with anything in them are no limit and no harm") {
  for (const char* text :
       {"", "\n", "max", "-5 100000", "abc def", "100000 0", "99999999999999999999999 1", ":::\n::"}) {
    Root root;
    root.Add("proc/self/cgroup", "0::/\nnonsense\n" + std::string(text))
        .Add("sys/fs/cgroup/cpu.max", text)
        .Add("sys/fs/cgroup/memory.stat", text);
    const CgroupLimits limits = root.Limits();
    CHECK(limits.cpus == kInf);
    CHECK(limits.memory_bytes == kNoLimit);
  }
}

TEST_CASE("the team's CPUs are distinct, in the affinity mask, and all that hwloc and the system agree on") {
  const Topology topology = DetectTopology();
  cpu_set_t set;
  REQUIRE(sched_getaffinity(0, sizeof set, &set) == 0);
  CHECK(topology.affinity_cpus == CPU_COUNT(&set));
  const std::set<int> distinct(topology.team_cpus.begin(), topology.team_cpus.end());
  CHECK(!topology.team_cpus.empty());
  CHECK(distinct.size() == topology.team_cpus.size());
  for (int cpu : distinct) CHECK(CPU_ISSET(cpu, &set));
  CHECK(topology.fast_cores >= 1);
  CHECK(topology.fast_cores <= static_cast<int>(topology.team_cpus.size()));
  CHECK(topology.physical_cores <= topology.logical_cpus);
  CHECK(topology.memory_bytes > 0);
  CHECK(topology.memory_available_bytes > 0);
  CHECK(topology.memory_available_bytes <= topology.memory_bytes);
  CHECK(!topology.cpu_name.empty());
}

TEST_CASE("a narrowed affinity mask narrows the team") {
  cpu_set_t before;
  REQUIRE(sched_getaffinity(0, sizeof before, &before) == 0);
  const int last = DetectTopology().team_cpus.back();
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(last, &one);
  REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0);
  const Topology topology = DetectTopology();
  sched_setaffinity(0, sizeof before, &before);
  CHECK(topology.team_cpus == std::vector<int>{last});
  CHECK(topology.affinity_cpus == 1);
  CHECK(topology.DefaultThreads() == 1);
}

// HWLOC_SYNTHETIC describes a machine that is not this one; the affinity mask still is this one's.
TEST_CASE("siblings of one core are one member") {
  setenv("HWLOC_SYNTHETIC", "package:1 core:1 pu:1024", 1);
  const Topology topology = DetectTopology();
  unsetenv("HWLOC_SYNTHETIC");
  CHECK(topology.physical_cores == 1);
  CHECK(topology.team_cpus.size() == 1);
}

TEST_CASE("the default number of threads obeys the quota") {
  Topology topology{};
  topology.team_cpus = {0, 1, 2, 3, 4, 5, 6, 7};
  topology.cpu_quota = kInf;
  CHECK(topology.DefaultThreads() == 8);
  topology.cpu_quota = 2.5;
  CHECK(topology.DefaultThreads() == 2);
  topology.cpu_quota = 0.2;
  CHECK(topology.DefaultThreads() == 1);
}

TEST_CASE("read bandwidth is measured") {
  ReadProbe probe(1, 8 << 20);
  for (int i = 0; i < 2; ++i) {
    const double gb_per_s = probe.Measure();
    CHECK(gb_per_s > 0.1);
    CHECK(gb_per_s < 2000);
  }
}

}  // namespace
}  // namespace thermocline
