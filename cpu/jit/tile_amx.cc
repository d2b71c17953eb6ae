// Bound by tdpbf16ps, 16 cycles each: 64 a step, in which 4 tiles of 16 lines are loaded, from L2.
#include "cpu/jit/tile_amx.h"

#include <cstddef>

namespace thermocline {
namespace {

using Xbyak::Tmm;

class TileAmx final : public Xbyak::CodeGenerator {
 public:
  TileAmx(int halves, int panels)
      : CodeGenerator(kCodeBytes, Xbyak::DontSetProtectRWE), halves_(halves), panels_(panels) {
    mov(x_half_[0], ptr[args_ + offsetof(AmxTileArgs, x)]);
    mov(x_stride_, ptr[args_ + offsetof(AmxTileArgs, x_stride_bytes)]);
    mov(y_, ptr[args_ + offsetof(AmxTileArgs, y)]);
    mov(y_stride_, ptr[args_ + offsetof(AmxTileArgs, y_stride_bytes)]);
    mov(line_, 64);
    Tile();
    ret();
    setProtectModeRE();
  }

 private:
  static constexpr size_t kCodeBytes = 4096;
  static Tmm Sum(int half, int panel) { return Tmm(2 * half + panel); }
  static Tmm X(int half) { return Tmm(4 + half); }
  static Tmm Weights(int panel) { return Tmm(6 + panel); }
  const Xbyak::Reg64 args_ = rdi, weights_ = rsi, step_ = rdx, line_ = rcx;
  const Xbyak::Reg64 x_half_[kAmxHalves] = {r8, rax}, x_stride_ = r9;  // x: of each half, at the step
  const Xbyak::Reg64 y_ = r10, y_stride_ = r11;
  const int halves_, panels_;

  void Tile() {
    Xbyak::Label zero, begin, next_step;
    cmp(qword[args_ + offsetof(AmxTileArgs, accumulate)], 0);
    je(zero, T_NEAR);
    ForEachSum([&](const Tmm& sum, const Xbyak::Address& y) { tileloadd(sum, y); });
    mov(y_, ptr[args_ + offsetof(AmxTileArgs, y)]);
    jmp(begin, T_NEAR);
    L(zero);
    for (int half = 0; half < halves_; ++half)
      for (int panel = 0; panel < panels_; ++panel) tilezero(Sum(half, panel));
    L(begin);
    if (halves_ > 1) {
      mov(x_half_[1], x_half_[0]);
      AddRows(x_half_[1], x_stride_);
    }
    mov(weights_, ptr[args_ + offsetof(AmxTileArgs, weights)]);
    mov(step_, ptr[args_ + offsetof(AmxTileArgs, n_steps)]);
    align(32);
    L(next_step);
    Step();
    dec(step_);
    jnz(next_step, T_NEAR);
    ForEachSum([&](const Tmm& sum, const Xbyak::Address& y) { tilestored(y, sum); });
  }

  void Step() {
    for (int panel = 0; panel < panels_; ++panel) {
      tileloadd(Weights(panel), ptr[weights_ + line_ + LineOf(panel)]);
      Space();
    }
    for (int half = 0; half < halves_; ++half) {
      tileloadd(X(half), ptr[x_half_[half] + x_stride_]);
      Space();
      for (int panel = 0; panel < panels_; ++panel) {
        tdpbf16ps(Sum(half, panel), X(half), Weights(panel));
        Space();
      }
      add(x_half_[half], kAmxStepK * 2);
    }
    add(weights_, kAmxStepBytes);
  }
  void Space() {
    for (int i = 0; i < kAmxSpace; ++i) nop();
  }
  static int LineOf(int panel) { return panel * kAmxTileBytes; }

  // Leaves y_ on the last half.
  template <typename Emit>
  void ForEachSum(const Emit& emit) {
    for (int half = 0; half < halves_; ++half) {
      if (half > 0) AddRows(y_, y_stride_);
      for (int panel = 0; panel < panels_; ++panel) emit(Sum(half, panel), ptr[y_ + y_stride_ + 64 * panel]);
    }
  }

  // So many as a half has.
  void AddRows(const Xbyak::Reg64& at, const Xbyak::Reg64& stride) {
    static_assert(kAmxHalfRows == 2 * 8);
    for (int i = 0; i < 2; ++i) lea(at, ptr[at + stride * 8]);
  }
};

}  // namespace

std::unique_ptr<Xbyak::CodeGenerator> MakeTileAmx(int halves, int panels) {
  return std::make_unique<TileAmx>(halves, panels);
}

}  // namespace thermocline
