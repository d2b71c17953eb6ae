#include "cpu/vector_ops.h"

#include "cpu/vector_ops_tables.h"
#include "models/check.h"
#include "models/error.h"

namespace thermocline {
namespace {

VectorOps WithAmx() {
  VectorOps ops = kVectorOpsAvx512;
  ops.isa = Isa::kAmx;
  ops.attention_split = AttentionSplitAmx;
  return ops;
}

}  // namespace

const VectorOps& VectorOpsFor(Isa isa) {
  CHECK(CanRun(isa));
  switch (isa) {
    case Isa::kScalar: return kVectorOpsScalar;
    case Isa::kAvx2:
    case Isa::kAvxVnni: return kVectorOpsAvx2;
    case Isa::kAvx512: return kVectorOpsAvx512;
    case Isa::kAmx: {
      static const VectorOps with_amx = WithAmx();
      return with_amx;
    }
  }
  CHECK(!"an Isa outside the enumeration");
  return kVectorOpsScalar;
}

}  // namespace thermocline
