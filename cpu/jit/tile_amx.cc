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
    push(ahead_);
    push(three_);
    mov(x_half_[0], ptr[args_ + offsetof(AmxTileArgs, x)]);
    mov(x_stride_, ptr[args_ + offsetof(AmxTileArgs, x_stride_bytes)]);
    mov(y_, ptr[args_ + offsetof(AmxTileArgs, y)]);
    mov(y_stride_, ptr[args_ + offsetof(AmxTileArgs, y_stride_bytes)]);
    lea(three_, ptr[x_stride_ + 2 * x_stride_]);
    mov(line_, 64);
    Tile();
    pop(three_);
    pop(ahead_);
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
  const Xbyak::Reg64 ahead_ = rbx, three_ = rbp;  // every fourth row of x, and three times the stride
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
    int row = 0;
    for (int panel = 0; panel < panels_; ++panel) {
      tileloadd(Weights(panel), ptr[weights_ + line_ + LineOf(panel)]);
      Space(row);
    }
    for (int half = 0; half < halves_; ++half) {
      tileloadd(X(half), ptr[x_half_[half] + x_stride_]);
      Space(row);
      for (int panel = 0; panel < panels_; ++panel) {
        tdpbf16ps(Sum(half, panel), X(half), Weights(panel));
        Space(row);
      }
    }
    for (int half = 0; half < halves_; ++half) add(x_half_[half], kLine);
    add(weights_, kAmxStepBytes);
  }
  // kAmxSpace instructions, some of them fetching the next step of rows of x while there are any.
  void Space(int& row) {
    const bool fetch = row < halves_ * kAmxHalfRows;
    if (fetch) {
      if (row == 0)
        mov(ahead_, x_half_[0]);
      else
        lea(ahead_, ptr[ahead_ + x_stride_ * 4]);
      for (int i = 0; i < kFetched; ++i, ++row) prefetcht0(RowAhead(i));
    }
    for (int i = fetch ? kFetched : 0; i < kAmxSpace; ++i) nop();
  }
  Xbyak::Address RowAhead(int i) const {
    return i == 3 ? ptr[ahead_ + three_ + kLine] : i > 0 ? ptr[ahead_ + x_stride_ * i + kLine] : ptr[ahead_ + kLine];
  }
  static constexpr int kLine = kAmxStepK * 2, kFetched = 4;
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
