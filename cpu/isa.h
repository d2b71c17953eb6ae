// Instruction sets, chosen at run time.
#pragma once

#include <span>
#include <string_view>

namespace thermocline {

enum class Isa : unsigned char {
  kScalar,  // the reference
  kAvx2,    // AVX2, FMA, F16C
  kAvx512,  // AVX-512 F, BW, VL, DQ and VNNI
};

std::string_view Name(Isa isa);  // "scalar", "avx2", "avx512": the values of THERMOCLINE_ISA
bool CanRun(Isa isa);            // CPU and operating system
// Widest that runs here, capped by THERMOCLINE_ISA. Throws Error for an unknown value, naming the known, and for one
// that this CPU does not have.
Isa ChooseIsa();

}  // namespace thermocline
