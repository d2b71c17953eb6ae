#include "runtime/quantizer.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>

#include "cpu/isa.h"
#include "cpu/vector_ops.h"
#include "models/check.h"
#include "models/error.h"
#include "models/gguf_writer.h"
#include "models/quantize.h"
#include "models/weight_rows.h"
#include "runtime/progress.h"

namespace thermocline {
namespace {

constexpr DType kTypes[] = {DType::kQ4_0, DType::kIQ4_NL, DType::kQ4_K, DType::kQ4_1, DType::kQ5_0,
                            DType::kQ5_K, DType::kQ5_1,   DType::kQ6_K, DType::kQ8_0};

// Rows that one member takes at a time hold about this many weights.
constexpr int64_t kChunkWeights = 1 << 14;

void CheckWeights(const GgufFile& file, const Tensor& tensor, int64_t first_row, std::span<const float> weights) {
  for (size_t i = 0; i < weights.size(); ++i) {
    if (std::abs(weights[i]) <= kMaxEncodedWeight) continue;  // false for NaN
    const int64_t row = first_row + static_cast<int64_t>(i) / tensor.ne[0];
    throw Error("{} holds {} at row {}, column {}: {}. The file is damaged: download or convert it again.",
                file.Where(tensor), weights[i], row, static_cast<int64_t>(i) % tensor.ne[0],
                std::isfinite(weights[i]) ? fmt::format("no block type holds weights beyond {}", kMaxEncodedWeight)
                                          : "no finite number");
  }
}

std::string Plural(size_t n, std::string_view what) { return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s"); }

}  // namespace

std::span<const DType> QuantizeTypes() { return kTypes; }

std::optional<DType> FindQuantizeType(std::string_view name) {
  std::string upper(name);
  for (char& c : upper) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  for (const DType type : kTypes) {
    if (Info(type).name == upper) return type;
  }
  return std::nullopt;
}

double BitsPerWeight(DType type) { return 8.0 * Info(type).block_bytes / Info(type).block; }

DType OneStepWider(DType type) {
  switch (type) {
    case DType::kQ4_0:
    case DType::kIQ4_NL: return DType::kQ5_0;
    case DType::kQ4_1: return DType::kQ5_1;
    case DType::kQ4_K: return DType::kQ5_K;
    case DType::kQ5_K: return DType::kQ6_K;
    default: return DType::kQ8_0;
  }
}

DType FittingType(DType type, int64_t k) {
  if (k % Info(type).block == 0) return type;
  const DType other = type == DType::kQ4_K   ? DType::kQ5_0
                      : type == DType::kQ5_K ? DType::kQ5_1
                      : type == DType::kQ6_K ? DType::kQ8_0
                                             : DType::kF16;
  return FittingType(other, k);
}

QuantizePlan PlanTypes(const GgufFile& file, const Model& model, DType type, bool pure) {
  QuantizePlan plan;
  for (const Tensor& tensor : file.tensors()) plan.types.push_back(tensor.type);
  std::map<std::pair<int64_t, DType>, size_t> fallbacks;  // row length and type to tensors
  std::map<DType, size_t> kept;
  size_t changed = 0;
  for (const Weight& weight : model.weights) {
    const Tensor& tensor = *weight.tensor;
    if (!weight.matrix || tensor.name == "position_embd.weight") continue;
    const bool ends = tensor.name == "token_embd.weight" || tensor.name == "output.weight";
    const DType wanted = ends && !pure ? OneStepWider(type) : type;
    const DType fitting = FittingType(wanted, weight.k);
    if (BitsPerWeight(tensor.type) <= BitsPerWeight(fitting)) {
      ++kept[tensor.type];
      continue;
    }
    plan.types[static_cast<size_t>(&tensor - file.tensors().data())] = fitting;
    ++changed;
    if (fitting != wanted) ++fallbacks[{weight.k, fitting}];
    if (wanted != type)
      plan.notes.push_back(fmt::format("{} becomes {}, one step wider than the rest (--pure: no wider)", tensor.name,
                                       Info(fitting).name));
    if (Info(tensor.type).block > 1 && tensor.type != DType::kQ8_0 && changed == 1)
      plan.notes.push_back(fmt::format("{} is {} already; quantizing the original model loses less", tensor.name,
                                       Info(tensor.type).name));
  }
  if (changed == 0)
    throw Error("{}: nothing to do: no matrix has more bits than {} already. Start from a wider file.", file.path(),
                Info(type).name);
  for (const auto& [what, n] : fallbacks) {
    const auto& [k, other] = what;
    plan.notes.push_back(fmt::format("{} with rows of {} weights, which blocks of {} do not divide, become{} {}",
                                     Plural(n, "tensor"), k, Info(type).name, n == 1 ? "s" : "", Info(other).name));
  }
  for (const auto& [other, n] : kept) {
    plan.notes.push_back(
        fmt::format("{} stay{} {}, which has no more bits", Plural(n, "tensor"), n == 1 ? "s" : "", Info(other).name));
  }
  return plan;
}

uint32_t FileType(DType type) {
  switch (type) {
    case DType::kF32: return 0;
    case DType::kF16: return 1;
    case DType::kQ4_0: return 2;
    case DType::kQ4_1: return 3;
    case DType::kQ8_0: return 7;
    case DType::kQ5_0: return 8;
    case DType::kQ5_1: return 9;
    case DType::kQ4_K: return 14;
    case DType::kQ5_K: return 16;
    case DType::kQ6_K: return 18;
    case DType::kIQ4_NL: return 25;
    case DType::kBF16: return 32;
    default: return 1024;  // LLAMA_FTYPE_GUESSED
  }
}

uint64_t PlannedBytes(const GgufFile& file, std::span<const DType> types) {
  return LayOutGguf(file, types, {}).file_bytes;
}

std::vector<float> ReadRows(const GgufFile& file, const Tensor& tensor, int64_t begin, int64_t end) {
  const int64_t k = tensor.ne[0];
  const int64_t row_bytes = k / Info(tensor.type).block * Info(tensor.type).block_bytes;
  std::vector<float> rows(static_cast<size_t>((end - begin) * k));
  Dequantize(tensor.type, tensor.data + begin * row_bytes, (end - begin) * k, rows.data());
  CheckWeights(file, tensor, begin, rows);
  return rows;
}

namespace {

std::vector<float> ReadOrdered(const GgufFile& file, const Weight& weight, int64_t begin, int64_t end) {
  std::vector<uint8_t> scratch;
  const FileRows read = RowsAs(DType::kF32, weight, begin, end - begin, 0, weight.k, scratch);
  std::vector<float> rows(static_cast<size_t>((end - begin) * weight.k));
  for (int64_t i = 0; i < end - begin; ++i)
    std::memcpy(rows.data() + i * weight.k, read.data + i * read.row_bytes, static_cast<size_t>(weight.k) * 4);
  CheckWeights(file, *weight.tensor, begin, rows);
  return rows;
}

}  // namespace

std::vector<uint8_t> EncodeTensor(const GgufFile& file, const Tensor& tensor, DType type, const Feedback* feedback,
                                  Team& team, const Weight* ordered, const Drift* drift) {
  const bool vector = ordered && !ordered->matrix;
  const int64_t k = vector ? 1 : tensor.ne[0], n = vector ? tensor.ne[0] : tensor.ne[1];
  const int64_t row_bytes = k / Info(type).block * Info(type).block_bytes;
  CHECK(feedback == nullptr || feedback->k == k);
  const VectorOps& ops = VectorOpsFor(ChooseIsa());
  std::vector<uint8_t> bytes(static_cast<size_t>(n * row_bytes));
  std::mutex mutex;
  std::exception_ptr failure;
  int64_t failed_row = n;  // the first, so that the message is the same for any number of threads
  team.Run([&](Team::Member& member) {
    member.For(n, std::max<int64_t>(24, kChunkWeights / k), [&](int64_t begin, int64_t end) {
      try {
        std::vector<float> rows =
            ordered ? ReadOrdered(file, *ordered, begin, end) : ReadRows(file, tensor, begin, end);
        if (drift != nullptr) FollowDrift(*drift, rows, ops);
        if (feedback != nullptr && HasEncoder(type)) {
          QuantizeWithFeedback(type, *feedback, rows, bytes.data() + begin * row_bytes, ops);
          return;
        }
        for (int64_t row = begin; row < end; ++row)
          Quantize(type, rows.data() + (row - begin) * k, nullptr, k, bytes.data() + row * row_bytes);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (begin < failed_row) {
          failed_row = begin;
          failure = std::current_exception();
        }
      }
    });
  });
  file.CheckIntact();  // zeros of a lost page are no weights
  if (failure) std::rethrow_exception(failure);
  return bytes;
}

void WriteQuantized(const GgufFile& file, std::span<const DType> types,
                    const std::function<std::vector<uint8_t>(size_t i)>& encode, OutputFile& out,
                    const std::function<bool(size_t i)>& reordered) {
  // The type that most bytes have names the file.
  std::map<DType, uint64_t> bytes_of;
  for (size_t i = 0; i < types.size(); ++i) bytes_of[types[i]] += TensorBytes(file.tensors()[i], types[i]);
  const DType most = std::max_element(bytes_of.begin(), bytes_of.end(), [](const auto& a, const auto& b) {
                       return a.second < b.second;
                     })->first;
  const std::pair<std::string_view, uint32_t> numbers[] = {{"general.file_type", FileType(most)},
                                                           {"general.quantization_version", kQuantizationVersion}};
  const GgufLayout layout = LayOutGguf(file, types, numbers);
  Progress progress("quantizing", "");
  out.Write(layout.header);
  for (size_t i = 0; i < types.size(); ++i) {
    const Tensor& tensor = file.tensors()[i];
    out.Pad(layout.offsets[i]);
    if (types[i] == tensor.type && !(reordered && reordered(i)))
      out.Write({tensor.data, tensor.bytes});
    else
      out.Write(encode(i));
    progress.Update(static_cast<int64_t>(out.size()), static_cast<int64_t>(layout.file_bytes));
  }
  out.Pad(layout.file_bytes);
  file.CheckIntact();
}

}  // namespace thermocline
