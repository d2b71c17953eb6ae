#include "cpu/isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <iterator>

#include "models/check.h"
#include "models/error.h"

namespace thermocline {
namespace {

struct Cpuid {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  explicit Cpuid(unsigned leaf, unsigned subleaf = 0) { __get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx); }
};

// Which register state the operating system saves (XCR0); 0 where it does not say.
uint64_t SavedState() {
  if ((Cpuid(1).ecx & bit_OSXSAVE) == 0) return 0;
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

bool Has(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }

bool HasAvx2() {
  constexpr uint64_t kXmmYmm = 0x6;
  return (SavedState() & kXmmYmm) == kXmmYmm && Has(Cpuid(1).ecx, bit_AVX | bit_FMA | bit_F16C) &&
         Has(Cpuid(7).ebx, bit_AVX2);
}

bool HasAvxVnni() {
  constexpr unsigned kAvxVnniBit = 1 << 4;
  return HasAvx2() && Cpuid(7).eax >= 1 && Has(Cpuid(7, 1).eax, kAvxVnniBit);
}

bool HasAvx512() {
  constexpr uint64_t kXmmYmmZmmMask = 0xE6;
  return HasAvx2() && (SavedState() & kXmmYmmZmmMask) == kXmmYmmZmmMask &&
         Has(Cpuid(7).ebx, bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ) &&
         Has(Cpuid(7).ecx, bit_AVX512VNNI);
}

// The system gives a process tiles only when it asks, for all its threads.
bool MayUseTiles() {
  constexpr int kArchReqXcompPerm = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
}

bool HasAmx() {
  constexpr uint64_t kTileState = 0x60000;
  constexpr unsigned kAvx512Bf16Bit = 1 << 5, kAmxBf16Bit = 1 << 22, kAmxTileBit = 1 << 24;
  return HasAvx512() && (SavedState() & kTileState) == kTileState && Has(Cpuid(7).edx, kAmxBf16Bit | kAmxTileBit) &&
         Cpuid(7).eax >= 1 && Has(Cpuid(7, 1).eax, kAvx512Bf16Bit) && MayUseTiles();
}

}  // namespace

std::string_view Name(Isa isa) {
  switch (isa) {
    case Isa::kScalar: return "scalar";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvxVnni: return "avxvnni";
    case Isa::kAvx512: return "avx512";
    case Isa::kAmx: return "amx";
  }
  CHECK(!"an Isa outside the enumeration");
  return {};
}

bool CanRun(Isa isa) {
  static const bool can_run[] = {true, HasAvx2(), HasAvxVnni(), HasAvx512(), HasAmx()};
  return can_run[static_cast<int>(isa)];
}

Isa ChooseIsa() {
  const char* wanted = std::getenv("THERMOCLINE_ISA");
  for (auto at = std::rbegin(kIsas); at != std::rend(kIsas); ++at) {
    const Isa isa = *at;
    if (wanted == nullptr || *wanted == '\0') {
      if (CanRun(isa)) return isa;
    } else if (Name(isa) == wanted) {
      if (CanRun(isa)) return isa;
      throw Error("THERMOCLINE_ISA={}: this CPU (or its operating system) cannot run it; unset the variable", wanted);
    }
  }
  throw Error("THERMOCLINE_ISA={}: unknown; it is one of scalar, avx2, avxvnni, avx512, amx", wanted);
}

}  // namespace thermocline
