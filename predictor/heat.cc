#include "predictor/heat.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "models/limits.h"
#include "models/mapped_file.h"
#include "predictor/heat_container.h"

namespace thermocline {
namespace {

constexpr uint32_t kVersion = 1;
constexpr char kArchitecture[] = "heat", kChosenKey[] = "heat.threshold", kRecentTokens[] = "recent.tokens";

void CheckAscending(const GgufFile& file, const char* what, std::span<const float> values) {
  if (std::adjacent_find(values.begin(), values.end(), std::greater_equal<>()) != values.end())
    throw Error("{}: {} do not ascend; profile the model anew", file.path(), what);
}

void ReadThresholds(const GgufFile& file, int n_layer, Heat& heat) {
  constexpr double kAnyRise = 1e6, kAnyLoss = 1e30;
  const HeatReader reader(file);
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

void ReadRecent(const GgufFile& file, const ModelConfig& config, RecentHeat& recent) {
  constexpr double kRounding = 1e-4;  // of many additions
  const HeatReader reader(file);
  if (reader.Length(kRecentTokens) == 0) return;
  std::vector<float> tokens;
  reader.Read(kRecentTokens, 1, 0, static_cast<double>(kMaxHeatTokens), tokens);
  recent.tokens = tokens[0];
  for (int i = 0; i < config.n_layer; ++i)
    reader.Read(HeatLayerKey(i, "recent"), config.n_ff, 0, recent.tokens * (1 + kRounding) + kRounding,
                recent.fired.emplace_back());
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
  HeatWriter writer;
  writer.header.AddText(kHeatChecksumKey, std::string(kHeatChecksumDigits, '0'));
  writer.header.AddText("general.architecture", kArchitecture);
  writer.header.AddText("general.name", heat.model);
  writer.header.AddU32("heat.version", kVersion);
  writer.header.AddText("heat.model", HeatHex(heat.identity));
  writer.header.AddText("heat.text", HeatHex(heat.text_hash));
  writer.header.AddText("heat.calibration", HeatHex(heat.calibration_hash));
  writer.header.AddText("heat.activation", Name(heat.activation));
  writer.header.AddU32("heat.tokens", static_cast<uint32_t>(heat.n_tokens));
  writer.header.AddU32("heat.tokens_counted", static_cast<uint32_t>(heat.n_counted));
  writer.Add("targets", heat.targets);
  const auto n_targets = std::ssize(heat.targets);
  for (size_t i = 0; i < heat.layers.size(); ++i) {
    const LayerHeat& layer = heat.layers[i];
    writer.Add(HeatLayerKey(i, "levels"), layer.levels);
    writer.Add<double>(HeatLayerKey(i, "fired"), layer.fired, {heat.n_ff, n_targets});
    writer.Add(HeatLayerKey(i, "sum_abs"), layer.sum_abs);
    writer.Add(HeatLayerKey(i, "histogram"), layer.histogram);
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
  if (!heat.recent.fired.empty()) {
    writer.Add(kRecentTokens, std::vector<double>{heat.recent.tokens});
    for (size_t i = 0; i < heat.recent.fired.size(); ++i) writer.Add(HeatLayerKey(i, "recent"), heat.recent.fired[i]);
  }
  WritePredictors(heat.predictors, heat.n_ff, writer);
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
  const bool whole = bytes.size() > kHeatChecksumAt + kHeatChecksumDigits;
  const std::string_view digits(reinterpret_cast<const char*>(bytes.data()) + (whole ? kHeatChecksumAt : 0),
                                whole ? kHeatChecksumDigits : 0);
  if (!whole || HeatChecksum(bytes) != digits)
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
  const HeatReader reader(file);
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
    reader.Read(HeatLayerKey(i, "levels"), n_targets, 0, HUGE_VALF, layer.levels);
    reader.Read(HeatLayerKey(i, "fired"), config.n_ff, 0, static_cast<double>(heat.n_counted), layer.fired, n_targets);
    reader.Read(HeatLayerKey(i, "sum_abs"), config.n_ff, 0, kAnySum, layer.sum_abs);
    reader.Read(HeatLayerKey(i, "histogram"), kHeatBins, 0, kAnySum, layer.histogram);
  }
  ReadThresholds(file, config.n_layer, heat);
  ReadRecent(file, config, heat.recent);
  heat.predictors = ReadPredictors(file, config);
  return heat;
}

std::filesystem::path HeatPath(std::filesystem::path model) { return model.replace_extension(".heat"); }

}  // namespace thermocline
