// A model's weights as other types: which type each tensor gets, and its bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cpu/feedback.h"
#include "cpu/team.h"
#include "models/model.h"
#include "runtime/output_file.h"

namespace thermocline {

// The types that `quantize --type` takes, narrowest first, and the one that a name means, in either case.
std::span<const DType> QuantizeTypes();
std::optional<DType> FindQuantizeType(std::string_view name);

double BitsPerWeight(DType type);
// The next type with more bits of the same family; Q8_0 is the widest.
DType OneStepWider(DType type);
// `type`, or the type that rows of k weights get instead because its blocks do not divide them, as llama.cpp has it:
// Q5_0, Q5_1 and Q8_0 for Q4_K, Q5_K and Q6_K, and F16 where not even 32 divides k.
DType FittingType(DType type, int64_t k);

struct QuantizePlan {
  std::vector<DType> types;        // by tensor of the file
  std::vector<std::string> notes;  // what departs from the type asked for, and why
};

// Matrices become `type`; norms, biases and learned positions stay, and so does what has no more bits than that
// already. Unless `pure`, the embedding and the head are one step wider.
QuantizePlan PlanTypes(const GgufFile& file, const Model& model, DType type, bool pure);

// general.file_type: llama.cpp's llama_ftype of files that are mostly of one type.
uint32_t FileType(DType type);
inline constexpr uint32_t kQuantizationVersion = 2;  // general.quantization_version: ggml's GGML_QNT_VERSION

// What the file becomes on disk.
uint64_t PlannedBytes(const GgufFile& file, std::span<const DType> types);

// The tensor's rows as floats. Throws Error naming tensor, row and column for a weight that is not a number or beyond
// what block types can hold.
std::vector<float> ReadRows(const GgufFile& file, const Tensor& tensor, int64_t begin, int64_t end);

// The whole tensor as `type`. `feedback`: of the inputs that its rows meet; null: all errors count alike. `ordered`: a
// weight that is the tensor in another order of neurons, which is then the file's; or null. `drift`: what FollowDrift
// moves the rows by before; or null. Throws as ReadRows.
std::vector<uint8_t> EncodeTensor(const GgufFile& file, const Tensor& tensor, DType type, const Feedback* feedback,
                                  Team& team, const Weight* ordered = nullptr, const Drift* drift = nullptr);

// Writes the file with tensors[i] as types[i], whose bytes `encode(i)` gives where the type changes, or `reordered`
// says that its order does. Does not commit.
void WriteQuantized(const GgufFile& file, std::span<const DType> types,
                    const std::function<std::vector<uint8_t>(size_t i)>& encode, OutputFile& out,
                    const std::function<bool(size_t i)>& reordered = {});

}  // namespace thermocline
