// How fast this machine multiplies and adds when nothing else holds it up: the roof of `bench --roofline`.
#include <xbyak/xbyak.h>

#include <algorithm>
#include <chrono>
#include <limits>

#include "cpu/jit/tile_amx.h"
#include "cpu/team.h"
#include "cpu/topology.h"

namespace thermocline {
namespace {

constexpr int kPasses = 5;
constexpr int64_t kIterations = 20'000;  // of the loop: about 100 us per chunk
constexpr int64_t kChunksPerThread = 200;

enum class Kind { kInt8, kF32, kBf16Tiles };

// A loop over independent accumulators, more of them than latency x throughput of any CPU asks for (5 cycles, 2 a
// cycle).
//   zmm0..11 (ymm0..11)   accumulators
//   zmm12, 13             operands
//   ymm15                 product: AVX2 adds it with an instruction of its own, in 16 bits, which exact sums of short
//                         codes allow for a while (cpu/jit/tile_avx2.cc)
class PeakLoop : public Xbyak::CodeGenerator {
 public:
  static constexpr int kAccumulators = 12;

  PeakLoop(Isa isa, Kind kind) {
    using namespace Xbyak;
    if (kind == Kind::kBf16Tiles) {
      TileLoop();
      return;
    }
    const bool wide = HasZmm(isa);
    if (wide) {
      for (int i = 0; i < 16; ++i) vpxord(Zmm(i), Zmm(i), Zmm(i));
    } else {
      for (int i = 0; i < 16; ++i) vpxor(Ymm(i), Ymm(i), Ymm(i));
    }
    Label loop;
    L(loop);
    for (int i = 0; i < kAccumulators; ++i) {
      const Ymm y(i);
      const Zmm z(i);
      if (kind == Kind::kF32) {
        if (wide)
          vfmadd231ps(z, zmm12, zmm13);
        else
          vfmadd231ps(y, ymm12, ymm13);
      } else if (wide) {
        vpdpbusd(z, zmm12, zmm13);
      } else if (isa == Isa::kAvxVnni) {
        vpdpbusd(y, ymm12, ymm13, VexEncoding);
      } else {
        vpmaddubsw(ymm15, ymm12, ymm13);
        vpaddw(y, y, ymm15);
      }
    }
    dec(rdi);
    jnz(loop);
    vzeroupper();
    ret();
    setProtectModeRE();
  }
  // tmm0..5 are accumulators, tmm6 and 7 operands.
  static constexpr int kTileAccumulators = 6, kTileOps = 16 * 16 * 32;
  void TileLoop() {
    using namespace Xbyak;
    Label config, loop;
    ldtilecfg(ptr[rip + config]);
    for (int i = 0; i < 8; ++i) tilezero(Tmm(i));
    L(loop);
    for (int i = 0; i < kTileAccumulators; ++i) tdpbf16ps(Tmm(i), tmm6, tmm7);
    dec(rdi);
    jnz(loop);
    tilerelease();
    ret();
    align(64);
    L(config);
    AmxConfig all = AmxConfigFor(kAmxHalves * kAmxHalfRows);
    db(reinterpret_cast<const uint8_t*>(&all), sizeof(all));
    setProtectModeRE();
  }
  void Run(int64_t iterations) const { getCode<void (*)(int64_t)>()(iterations); }
};

double Measure(Isa isa, Kind kind, Team& team) {
  const PeakLoop loop(isa, kind);
  const int64_t n_chunks = kChunksPerThread * team.size();
  double best_s = std::numeric_limits<double>::infinity();
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    team.Run([&](Team::Member& member) { member.For(n_chunks, 1, [&](int64_t, int64_t) { loop.Run(kIterations); }); });
    best_s = std::min(best_s, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  const int lanes = (HasZmm(isa) ? 64 : 32) / (kind == Kind::kF32 ? 4 : 1);
  const int per_iteration =
      kind == Kind::kBf16Tiles ? PeakLoop::kTileOps * PeakLoop::kTileAccumulators : lanes * PeakLoop::kAccumulators;
  return 2.0 * per_iteration * kIterations * static_cast<double>(n_chunks) / best_s;
}

}  // namespace

Peak MeasurePeak(Isa isa, int n_threads) {
  if (isa == Isa::kScalar) return {0, 0, 0};
  Team team(n_threads);
  return {Measure(isa, Kind::kInt8, team), Measure(isa, Kind::kF32, team),
          isa == Isa::kAmx ? Measure(isa, Kind::kBf16Tiles, team) : 0};
}

}  // namespace thermocline
