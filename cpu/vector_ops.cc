#include "cpu/vector_ops.h"

#include "cpu/vector_ops_tables.h"
#include "models/check.h"
#include "models/error.h"

namespace thermocline {

const VectorOps& VectorOpsFor(Isa isa) {
  CHECK(CanRun(isa));
  switch (isa) {
    case Isa::kScalar: return kVectorOpsScalar;
    case Isa::kAvx2:
    case Isa::kAvxVnni: return kVectorOpsAvx2;
    case Isa::kAvx512:
    case Isa::kAmx: return kVectorOpsAvx512;
  }
  CHECK(!"an Isa outside the enumeration");
  return kVectorOpsScalar;
}

}  // namespace thermocline
