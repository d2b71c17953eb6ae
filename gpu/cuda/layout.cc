#include "gpu/cuda/layout.h"

#include <algorithm>

namespace thermocline::cuda {
namespace {

constexpr DType kTypes[] = {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                            DType::kQ8_0, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};

}  // namespace

bool HasKernel(DType type) { return std::ranges::find(kTypes, type) != std::end(kTypes); }

std::string TypesWithKernel() {
  std::string names;
  for (const DType type : kTypes) names += (names.empty() ? "" : ", ") + std::string(Info(type).name);
  return names;
}

}  // namespace thermocline::cuda
