#include "runtime/bench_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "cpu/isa.h"
#include "models/dtype.h"
#include "runtime/engine.h"
#include "runtime/kv_types.h"
#include "runtime/synth.h"

namespace thermocline {
namespace {

double Average(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double Deviation(const std::vector<double>& values) {
  if (values.size() < 2) return 0;
  double sum = 0;
  for (const double value : values) sum += (value - Average(values)) * (value - Average(values));
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

nlohmann::ordered_json ToJson(const BenchResult& result, const BenchAbout& about) {
  const auto rates = result.TokensPerSecond(), times = result.Nanoseconds();
  nlohmann::ordered_json json = {
      {"build_version", THERMOCLINE_VERSION},
      {"cpu_info", about.cpu_info},
      {"backends", about.backends},
      {"isa", about.isa},
      {"model_filename", about.model_filename},
      {"model_type", about.model_type},
      {"model_size", about.model_size},
      {"model_n_params", about.model_n_params},
      {"n_batch", kMaxBatchRows},
      {"n_threads", result.n_threads},
      {"type_k", KvTypeName(result.kv_types.key)},
      {"type_v", KvTypeName(result.kv_types.value)},
      {"n_prompt", result.test.n_prompt},
      {"n_gen", result.test.n_gen},
      {"n_depth", result.test.n_depth},
      {"n_parallel", result.test.n_parallel},
      {"busy_cpu", result.busy_cpu ? nlohmann::ordered_json(*result.busy_cpu) : nullptr},
      {"test_time", result.test_time},
      {"bytes", result.work.bytes},
      {"ops", result.work.ops},
      {"avg_ns", std::llround(Average(times))},
      {"stddev_ns", std::llround(Deviation(times))},
      {"avg_ts", Average(rates)},
      {"stddev_ts", Deviation(rates)},
  };
  if (result.roofs) {
    json["read_bandwidth_gb_s"] = result.roofs->bytes_per_s * 1e-9;
    json["bandwidth_fraction"] = result.BandwidthFraction();
    if (result.roofs->ops_per_s > 0) {
      json["peak_gops"] = result.roofs->ops_per_s * 1e-9;
      json["peak_fraction"] = result.PeakFraction();
    }
  }
  json["samples_ns"] = result.samples_ns;
  json["samples_ts"] = rates;
  return json;
}

std::string Dump(const nlohmann::ordered_json& json, int indent) {
  return json.dump(indent, ' ', false, nlohmann::json::error_handler_t::replace);
}

class JsonFormat : public BenchFormat {
 public:
  explicit JsonFormat(const BenchAbout& about) : about_(about) {}
  std::string Begin() override { return "[\n"; }
  std::string Row(const BenchResult& result) override {
    return (std::exchange(first_, false) ? "" : ",\n") + Dump(ToJson(result, about_), 2);
  }
  std::string End() override { return "\n]\n"; }

 private:
  const BenchAbout& about_;
  bool first_ = true;
};

class JsonLinesFormat : public BenchFormat {
 public:
  explicit JsonLinesFormat(const BenchAbout& about) : about_(about) {}
  std::string Row(const BenchResult& result) override { return Dump(ToJson(result, about_), -1) + "\n"; }

 private:
  const BenchAbout& about_;
};

// JSON's fields but for the samples. Every value is in quotes, a quote within it doubled.
class CsvFormat : public BenchFormat {
 public:
  explicit CsvFormat(const BenchAbout& about) : about_(about) {}
  std::string Row(const BenchResult& result) override {
    std::string names, values;
    const auto json = ToJson(result, about_);
    for (const auto& [name, value] : json.items()) {
      if (value.is_array()) continue;
      std::string text = value.is_string() ? value.get<std::string>() : value.is_null() ? "" : Dump(value, -1);
      for (size_t i = 0; (i = text.find('"', i)) != std::string::npos; i += 2) text.insert(i, 1, '"');
      names += (names.empty() ? "" : ",") + name;
      values += fmt::format("{}\"{}\"", values.empty() ? "" : ",", text);
    }
    return (std::exchange(first_, false) ? names + "\n" : "") + values + "\n";
  }

 private:
  const BenchAbout& about_;
  bool first_ = true;
};

class MarkdownFormat : public BenchFormat {
 public:
  MarkdownFormat(const BenchAbout& about, bool roofline) : about_(about), roofline_(roofline) {}

  std::string Begin() override {
    std::string text = fmt::format(kRow, "model", "size", "params", "backend", "threads", "test", "t/s");
    text += roofline_ ? fmt::format(kRoofs, "GB/s", "of read", "GOP/s", "of peak") : "\n";
    text += fmt::format("| {:-<30} | {:->9}: | {:->9}: | {:-<10} | {:->6}: | {:->23}: | {:->19}: |", "", "", "", "", "",
                        "", "");
    text += roofline_ ? fmt::format(" {:->6}: | {:->6}: | {:->6}: | {:->6}: |\n", "", "", "", "") : "\n";
    return text;
  }

  std::string Row(const BenchResult& result) override {
    const auto rates = result.TokensPerSecond();
    std::string text =
        fmt::format(kRow, about_.model_type, fmt::format("{:.2f} MiB", static_cast<double>(about_.model_size) / 0x1p20),
                    fmt::format("{:.2f} M", static_cast<double>(about_.model_n_params) / 1e6), about_.backends,
                    result.n_threads, result.Name(), fmt::format("{:.2f} ± {:.2f}", Average(rates), Deviation(rates)));
    if (!roofline_) return text + "\n";
    const double seconds = result.Seconds();
    return text + fmt::format(kRoofs, fmt::format("{:.1f}", static_cast<double>(result.work.bytes) * 1e-9 / seconds),
                              fmt::format("{:.1f} %", 100 * result.BandwidthFraction()),
                              fmt::format("{:.0f}", static_cast<double>(result.work.ops) * 1e-9 / seconds),
                              result.roofs->ops_per_s > 0 ? fmt::format("{:.1f} %", 100 * result.PeakFraction()) : "");
  }

 private:
  static constexpr const char* kRow = "| {:<30} | {:>10} | {:>10} | {:<10} | {:>7} | {:>24} | {:>20} |";
  static constexpr const char* kRoofs = " {:>7} | {:>7} | {:>7} | {:>7} |\n";
  const BenchAbout& about_;
  bool roofline_;
};

}  // namespace

std::string BenchResult::Name() const {
  std::string name = test.n_prompt > 0 && test.n_gen > 0 ? fmt::format("pp{}+tg{}", test.n_prompt, test.n_gen)
                     : test.n_prompt > 0                 ? fmt::format("pp{}", test.n_prompt)
                                                         : fmt::format("tg{}", test.n_gen);
  if (test.n_parallel > 1) name += fmt::format(" x{}", test.n_parallel);
  if (test.n_depth > 0) name += fmt::format(" @ d{}", test.n_depth);
  const auto [key, value] = kv_types;
  if (kv_types != KvTypes{}) name += ", KV " + KvTypeName(key) + (key == value ? "" : "/" + KvTypeName(value));
  if (busy_cpu) name += fmt::format(", CPU {} busy", *busy_cpu);
  return name;
}

std::vector<double> BenchResult::TokensPerSecond() const {
  std::vector<double> rates;
  for (const int64_t ns : samples_ns) rates.push_back(1e9 * test.n_tokens() / static_cast<double>(ns));
  return rates;
}

double BenchResult::Seconds() const { return Average(Nanoseconds()) * 1e-9; }

BenchAbout DescribeBench(const GgufFile& file) {
  BenchAbout about;
  about.model_filename = file.path();
  about.cpu_info = DetectTopology().cpu_name;
  about.isa = Name(ChooseIsa());
  std::map<DType, uint64_t> weights;
  for (const Tensor& tensor : file.tensors()) {
    const auto n = static_cast<uint64_t>(tensor.ne[0] * tensor.ne[1] * tensor.ne[2] * tensor.ne[3]);
    about.model_size += tensor.bytes;
    about.model_n_params += n;
    weights[tensor.type] += n;
  }
  const auto most = [](const auto& a, const auto& b) { return a.second < b.second; };
  const DType type = std::max_element(weights.begin(), weights.end(), most)->first;
  about.float_weights = type == DType::kF32 || type == DType::kF16 || type == DType::kBF16;
  const double millions = static_cast<double>(about.model_n_params) / 1e6;
  about.model_type = fmt::format("{}{} {:.0f}M {}", IsSynthetic(file) ? "synthetic " : "",
                                 file.GetString("general.architecture"), millions, Info(type).name);
  return about;
}

std::unique_ptr<BenchFormat> MakeBenchFormat(std::string_view name, const BenchAbout& about, bool roofline) {
  if (name == "md") return std::make_unique<MarkdownFormat>(about, roofline);
  if (name == "csv") return std::make_unique<CsvFormat>(about);
  if (name == "json") return std::make_unique<JsonFormat>(about);
  if (name == "jsonl") return std::make_unique<JsonLinesFormat>(about);
  return nullptr;
}

}  // namespace thermocline
