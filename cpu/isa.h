// Instruction sets, chosen at run time.
#pragma once

#include <string_view>

namespace thermocline {

enum class Isa : unsigned char {
  kScalar,   // the reference
  kAvx2,     // AVX2, FMA, F16C
  kAvxVnni,  // the same and AVX-VNNI: vpdpbusd on ymm
  kAvx512,   // AVX-512 F, BW, VL, DQ and VNNI
  kAmx,      // the same, AVX-512 BF16 and AMX TILE and BF16: prompt rows' products in tiles (cpu/amx_linear.h)
};
inline constexpr Isa kIsas[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvxVnni, Isa::kAvx512, Isa::kAmx};  // the widest last
constexpr bool HasZmm(Isa isa) { return isa >= Isa::kAvx512; }

std::string_view Name(Isa isa);  // "scalar", "avx2", "avxvnni", "avx512", "amx": the values of THERMOCLINE_ISA
bool CanRun(Isa isa);            // CPU and operating system
// Widest that runs here, capped by THERMOCLINE_ISA. Throws Error for an unknown value, naming the known, and for one
// that this CPU does not have.
Isa ChooseIsa();

}  // namespace thermocline
