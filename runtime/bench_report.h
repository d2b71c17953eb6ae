// What `bench` measured, and the forms in which it says so.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cpu/op_cost.h"
#include "cpu/topology.h"
#include "models/gguf.h"
#include "models/kv_layout.h"

namespace thermocline {

struct BenchTest {
  int n_prompt, n_gen, n_depth;  // of each sequence
  int n_parallel = 1;            // sequences, each with a row in every step of a generation

  int n_tokens() const { return n_parallel * (n_prompt + n_gen); }
  int context() const { return n_depth + n_prompt + n_gen; }
};

// The roofs of the machine with so many threads, while a test ran.
struct Roofs {
  int n_threads;
  double bytes_per_s;  // average over repetitions of what was measured before and after each
  double ops_per_s;  // of what the model's weights take: byte dots (tiles of BF16 with AMX) or floats; 0: not measured
};

struct BenchResult {
  BenchTest test;
  int n_threads;
  KvTypes kv_types;
  std::string test_time;  // UTC, ISO 8601
  std::vector<int64_t> samples_ns;
  std::optional<int> busy_cpu;  // that another process kept busy
  Work work;                    // of one repetition
  std::optional<Roofs> roofs;

  std::string Name() const;  // "pp512", "tg128 x16 @ d4096, KV q8_0, CPU 1 busy"
  std::vector<double> Nanoseconds() const { return {samples_ns.begin(), samples_ns.end()}; }
  std::vector<double> TokensPerSecond() const;
  double Seconds() const;  // average
  double BandwidthFraction() const { return static_cast<double>(work.bytes) / Seconds() / roofs->bytes_per_s; }
  double PeakFraction() const { return static_cast<double>(work.ops) / Seconds() / roofs->ops_per_s; }
};

struct BenchAbout {  // the model and the machine, the same for all results
  std::string model_filename, model_type, cpu_info, isa, backends = "CPU";
  uint64_t model_size = 0, model_n_params = 0;
  bool float_weights = false;  // most of them
};
BenchAbout DescribeBench(const GgufFile& file);

// Begin, then each result, then End: the pieces of the output as they come.
class BenchFormat {
 public:
  virtual ~BenchFormat() = default;
  virtual std::string Begin() { return ""; }
  virtual std::string Row(const BenchResult& result) = 0;
  virtual std::string End() { return ""; }
};
// md, csv, json, jsonl; nullptr for any other name. `roofline`: a table has columns for the fractions reached.
std::unique_ptr<BenchFormat> MakeBenchFormat(std::string_view name, const BenchAbout& about, bool roofline);

// A plot of the results under their roofs, operations per second over operations per byte, as an SVG file's text.
// All results have roofs; the highest are drawn.
std::string RooflineSvg(const std::vector<BenchResult>& results, const BenchAbout& about);

}  // namespace thermocline
