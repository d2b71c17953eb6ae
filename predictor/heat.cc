#include "predictor/heat.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

#include "models/check.h"
#include "models/error.h"
#include "models/gguf_writer.h"
#include "models/hash.h"
#include "models/limits.h"
#include "models/mapped_file.h"
#include "models/quoted.h"

namespace thermocline {
namespace {

constexpr uint32_t kVersion = 1;
constexpr char kArchitecture[] = "heat", kChecksumKey[] = "heat.checksum", kChosenKey[] = "heat.threshold";
// Where the checksum stands, 16 hexadecimal digits: behind "GGUF", the version, both counts, its key's length and
// letters, its type and its own length.
constexpr size_t kChecksumAt = 4 + 4 + 8 + 8 + 8 + (sizeof kChecksumKey - 1) + 4 + 8, kChecksumDigits = 16;

std::string Hex(uint64_t value) { return fmt::format("{:016x}", value); }

// Of the file with zeros for the checksum itself.
std::string Checksum(std::span<const uint8_t> bytes) {
  Hash hash;
  hash.Add(bytes.first(kChecksumAt));
  hash.Add(bytes.subspan(kChecksumAt + kChecksumDigits));
  return Hex(hash.value());
}

std::string LayerKey(size_t layer, const char* name) { return fmt::format("blk.{}.{}", layer, name); }

// Collects the tensors of a file, so that header and data have one order.
class Writer {
 public:
  GgufHeader header;

  template <typename T>
  void Add(const std::string& name, std::span<const T> values, std::vector<int64_t> ne) {
    CHECK(std::accumulate(ne.begin(), ne.end(), int64_t{1}, std::multiplies<>()) == std::ssize(values));
    header.AddTensor(name, DType::kF32, ne);
    std::vector<float>& floats = data_.emplace_back();
    for (const T value : values) floats.push_back(static_cast<float>(value));
  }
  template <typename T>
  void Add(const std::string& name, const std::vector<T>& values) {
    Add(name, std::span<const T>(values), {std::ssize(values)});
  }

  std::vector<uint8_t> Finish() const {
    const GgufLayout layout = header.LayOut(32);
    std::vector<uint8_t> bytes(layout.file_bytes);
    std::copy(layout.header.begin(), layout.header.end(), bytes.begin());
    for (size_t i = 0; i < data_.size(); ++i)
      std::memcpy(bytes.data() + layout.offsets[i], data_[i].data(), data_[i].size() * sizeof(float));
    const std::string checksum = Checksum(bytes);
    std::copy(checksum.begin(), checksum.end(), bytes.begin() + kChecksumAt);
    return bytes;
  }

 private:
  std::vector<std::vector<float>> data_;
};

class Reader {
 public:
  explicit Reader(const GgufFile& file) : file_(file) {}

  template <typename T>
  void Read(const std::string& name, int64_t n, double min, double max, std::vector<T>& out, int64_t rows = 1) const {
    const Tensor* tensor = file_.FindTensor(name);
    if (!tensor) throw Error("{}: the tensor {} is missing; profile the model anew", file_.path(), Quoted(name));
    const int64_t ne[] = {n, rows, 1, 1};
    if (tensor->type != DType::kF32 || !std::equal(ne, ne + 4, tensor->ne))
      throw Error("{}: not ({}, {}) numbers in F32, as this model needs; profile it anew", file_.Where(*tensor), rows,
                  n);
    out.resize(static_cast<size_t>(n * rows));
    for (size_t i = 0; i < out.size(); ++i) {
      float value;
      std::memcpy(&value, tensor->data + i * sizeof value, sizeof value);
      if (!(value >= min && value <= max))
        throw Error("{}: number {} is {}, not within {} and {}; profile the model anew", file_.Where(*tensor), i, value,
                    min, max);
      out[i] = value;
    }
  }

  uint64_t ReadHex(std::string_view key) const {
    const std::string text(file_.GetString(key));
    size_t end = 0;
    const bool hex = text.size() == 16 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
    if (!hex) throw Error("{}: not 16 hexadecimal digits; profile the model anew", file_.Where(key));
    return std::stoull(text, &end, 16);
  }

  int64_t Length(const std::string& name) const {
    const Tensor* tensor = file_.FindTensor(name);
    return tensor ? tensor->ne[0] : 0;
  }

 private:
  const GgufFile& file_;
};

void CheckAscending(const GgufFile& file, const char* what, std::span<const float> values) {
  if (std::adjacent_find(values.begin(), values.end(), std::greater_equal<>()) != values.end())
    throw Error("{}: {} do not ascend; profile the model anew", file.path(), what);
}

void ReadThresholds(const GgufFile& file, int n_layer, Heat& heat) {
  constexpr double kAnyRise = 1e6, kAnyLoss = 1e30;
  const Reader reader(file);
  if (reader.Length("threshold.sensitivity") > 0)
    reader.Read("threshold.sensitivity", n_layer, -1, kAnyLoss, heat.sensitivity);
  const int64_t n = reader.Length("threshold.sparsity");
  if (n == 0) return;
  std::vector<float> sparsity, rise, levels, missed;
  reader.Read("threshold.sparsity", n, 0, 1, sparsity);
  reader.Read("threshold.rise", n, -1, kAnyRise, rise);
  reader.Read("threshold.levels", n_layer, 0, HUGE_VALF, levels, n);
  reader.Read("threshold.missed", n_layer, 0, kAnyLoss, missed, n);
  CheckAscending(file, "the sparsities of thresholds", sparsity);
  for (int64_t i = 0; i < n; ++i) {
    const auto of_point = [&](const std::vector<float>& values) {
      return std::vector<float>(values.begin() + i * n_layer, values.begin() + (i + 1) * n_layer);
    };
    heat.thresholds.push_back({sparsity[i], rise[i], of_point(levels), of_point(missed)});
  }
  heat.chosen_threshold = static_cast<int>(file.GetInt(kChosenKey, 0, n)) - 1;
}

}  // namespace

std::vector<float> Heat::Frequency(int layer, int target) const {
  std::vector<float> frequency(static_cast<size_t>(n_ff));
  const double* counts = layers[layer].fired.data() + target * n_ff;
  for (int64_t i = 0; i < n_ff; ++i)
    frequency[i] = static_cast<float>(counts[i] / std::max<double>(1, static_cast<double>(n_counted)));
  return frequency;
}

double Heat::ActiveShare(int layer, int target) const {
  const std::vector<float> frequency = Frequency(layer, target);
  return std::accumulate(frequency.begin(), frequency.end(), 0.0) / static_cast<double>(n_ff);
}

int HeatBin(float activation) {
  // The exponent and the first bits of the mantissa are the number of the bin.
  constexpr int kMantissaBits = 4, kBias = 127;
  static_assert(1 << kMantissaBits == kHeatPerOctave);
  const uint32_t magnitude = std::bit_cast<uint32_t>(activation) & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0;  // no number
  const int bin = static_cast<int>(magnitude >> (23 - kMantissaBits)) - (kBias + kHeatSmallest) * kHeatPerOctave + 1;
  return std::clamp(bin, 0, kHeatBins - 1);
}

float HeatBinBegin(int bin) {
  const int octave = (bin - 1) / kHeatPerOctave, part = (bin - 1) % kHeatPerOctave;
  return std::ldexp(1 + static_cast<float>(part) / kHeatPerOctave, kHeatSmallest + octave);
}

float Heat::Level(int layer, double sparsity) const {
  const std::vector<double>& histogram = layers[layer].histogram;
  const double wanted = sparsity * std::accumulate(histogram.begin(), histogram.end(), 0.0);
  double below = 0;
  for (int bin = 0; bin < kHeatBins; ++bin) {
    if (below + histogram[bin] > wanted) {
      const float begin = bin == 0 ? 0 : HeatBinBegin(bin), end = HeatBinBegin(bin + 1);
      return begin + (end - begin) * static_cast<float>((wanted - below) / histogram[bin]);
    }
    below += histogram[bin];
  }
  return sparsity > 0 ? HeatBinBegin(kHeatBins) : 0;
}

double Heat::SquaresBelow(int layer, double sparsity) const {
  const std::vector<double>& histogram = layers[layer].histogram;
  const double wanted = sparsity * std::accumulate(histogram.begin(), histogram.end(), 0.0);
  double count = 0, below = 0, all = 0;
  for (int bin = 1; bin < kHeatBins; ++bin) {
    const double middle = (double{HeatBinBegin(bin)} + HeatBinBegin(bin + 1)) / 2, square = middle * middle;
    const double before = bin == 1 ? histogram[0] : count;
    below += square * std::clamp(wanted - before, 0.0, histogram[bin]);
    all += square * histogram[bin];
    count = before + histogram[bin];
  }
  return all > 0 ? below / all : 0;
}

std::vector<uint8_t> SerializeHeat(const Heat& heat) {
  Writer writer;
  writer.header.AddText(kChecksumKey, std::string(kChecksumDigits, '0'));
  writer.header.AddText("general.architecture", kArchitecture);
  writer.header.AddText("general.name", heat.model);
  writer.header.AddU32("heat.version", kVersion);
  writer.header.AddText("heat.model", Hex(heat.identity));
  writer.header.AddText("heat.text", Hex(heat.text_hash));
  writer.header.AddText("heat.calibration", Hex(heat.calibration_hash));
  writer.header.AddText("heat.activation", Name(heat.activation));
  writer.header.AddU32("heat.tokens", static_cast<uint32_t>(heat.n_tokens));
  writer.header.AddU32("heat.tokens_counted", static_cast<uint32_t>(heat.n_counted));
  writer.Add("targets", heat.targets);
  const auto n_targets = std::ssize(heat.targets);
  for (size_t i = 0; i < heat.layers.size(); ++i) {
    const LayerHeat& layer = heat.layers[i];
    writer.Add(LayerKey(i, "levels"), layer.levels);
    writer.Add<double>(LayerKey(i, "fired"), layer.fired, {heat.n_ff, n_targets});
    writer.Add(LayerKey(i, "sum_abs"), layer.sum_abs);
    writer.Add(LayerKey(i, "histogram"), layer.histogram);
  }
  if (!heat.sensitivity.empty()) writer.Add("threshold.sensitivity", heat.sensitivity);
  if (!heat.thresholds.empty()) {
    std::vector<float> sparsity, rise, levels, missed;
    for (const ThresholdPoint& point : heat.thresholds) {
      sparsity.push_back(point.sparsity);
      rise.push_back(point.rise);
      levels.insert(levels.end(), point.levels.begin(), point.levels.end());
      missed.insert(missed.end(), point.missed.begin(), point.missed.end());
    }
    const auto n_layer = std::ssize(heat.layers), n = std::ssize(heat.thresholds);
    writer.header.AddU32(kChosenKey, static_cast<uint32_t>(heat.chosen_threshold + 1));
    writer.Add("threshold.sparsity", sparsity);
    writer.Add("threshold.rise", rise);
    writer.Add<float>("threshold.levels", levels, {n_layer, n});
    writer.Add<float>("threshold.missed", missed, {n_layer, n});
  }
  return writer.Finish();
}

Heat ReadHeat(const std::filesystem::path& path, const GgufFile& model, const ModelConfig& config) {
  std::vector<uint8_t> bytes;
  {
    const MappedFile map = MappedFile::Open(path);
    if (map.size() > kMaxHeatBytes)
      throw Error("{}: {} MB are more than any .heat file has; is it one?", path.string(), map.size() >> 20);
    bytes.assign(map.data(), map.data() + map.size());
    if (map.damaged()) throw Error("{}: it cannot be read to its end; profile the model anew", path.string());
  }
  const bool whole = bytes.size() > kChecksumAt + kChecksumDigits;
  const std::string_view digits(reinterpret_cast<const char*>(bytes.data()) + (whole ? kChecksumAt : 0),
                                whole ? kChecksumDigits : 0);
  if (!whole || Checksum(bytes) != digits)
    throw Error(
        "{}: not a .heat file, or a damaged one: its checksum does not hold. Profile the model anew: "
        "thermocline profile MODEL --text FILE",
        path.string());
  const GgufFile file = GgufFile::FromBytes(bytes, path.string());
  if (file.GetString("general.architecture") != kArchitecture)
    throw Error("{}: this is no .heat file", file.Where("general.architecture"));
  if (file.GetInt("heat.version", 0, UINT32_MAX) != kVersion)
    throw Error("{}: another version than {}, the one this program reads; profile the model anew",
                file.Where("heat.version"), kVersion);
  const Reader reader(file);
  Heat heat;
  heat.identity = reader.ReadHex("heat.model");
  heat.model = file.GetString("general.name");
  if (heat.identity != model.Identity())
    throw Error("{}: it was learned from another model, {}, or from this one before it changed; profile {} anew",
                path.string(), Quoted(heat.model), model.path());
  heat.text_hash = reader.ReadHex("heat.text");
  heat.calibration_hash = reader.ReadHex("heat.calibration");
  heat.activation = config.arch.activation;
  if (file.GetString("heat.activation") != Name(heat.activation))
    throw Error("{}: not the model's activation, {}; profile it anew", file.Where("heat.activation"),
                Name(heat.activation));
  heat.n_ff = config.n_ff;
  heat.n_tokens = file.GetInt("heat.tokens", 0, kMaxHeatTokens);
  heat.n_counted = file.GetInt("heat.tokens_counted", 0, heat.n_tokens);
  const int64_t n_targets = reader.Length("targets");
  if (n_targets > kMaxHeatTargets)
    throw Error("{}: {} targets are more than {}; profile the model anew", path.string(), n_targets, kMaxHeatTargets);
  reader.Read("targets", n_targets, 0, 1, heat.targets);
  CheckAscending(file, "the targets", heat.targets);
  constexpr double kAnySum = 1e30;
  for (int i = 0; i < config.n_layer; ++i) {
    LayerHeat& layer = heat.layers.emplace_back();
    reader.Read(LayerKey(i, "levels"), n_targets, 0, HUGE_VALF, layer.levels);
    reader.Read(LayerKey(i, "fired"), config.n_ff, 0, static_cast<double>(heat.n_counted), layer.fired, n_targets);
    reader.Read(LayerKey(i, "sum_abs"), config.n_ff, 0, kAnySum, layer.sum_abs);
    reader.Read(LayerKey(i, "histogram"), kHeatBins, 0, kAnySum, layer.histogram);
  }
  ReadThresholds(file, config.n_layer, heat);
  return heat;
}

std::filesystem::path HeatPath(std::filesystem::path model) { return model.replace_extension(".heat"); }

}  // namespace thermocline
