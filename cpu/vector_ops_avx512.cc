// GCC 12 takes its own headers' undefined registers for mistakes (gcc.gnu.org/PR105593).
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "cpu/vector_ops_avx512.h"

#include "cpu/vector_ops_instance.h"

namespace thermocline {

const VectorOps kVectorOpsAvx512 = Table<Avx512>(Isa::kAvx512);

}  // namespace thermocline
