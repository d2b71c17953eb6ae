// The tables that VectorOpsFor chooses from. A table may be touched only where its instructions run.
#pragma once

#include "cpu/vector_ops.h"

namespace thermocline {

extern const VectorOps kVectorOpsScalar;
extern const VectorOps kVectorOpsAvx2;
extern const VectorOps kVectorOpsAvx512;
void AttentionSplitAmx(const AttentionSplit& args);  // VectorOps::attention_split of Isa::kAmx

}  // namespace thermocline
