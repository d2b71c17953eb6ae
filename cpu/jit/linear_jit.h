// What the packed matrix kernels of all instruction sets share: the calling convention, the loops over panels and
// blocks, and the addresses of activation rows. A subclass emits the arithmetic of one chunk.
//
//   for each panel:                       rows [0, 16), or twice 8 rows where a vector holds 8
//     sums = 0
//     for each block:                     BeginBlock
//       for each chunk of 32 k:           Chunk: unpack codes once, use them for all M rows of x
//     y (+)= sums
#pragma once

#include <xbyak/xbyak.h>

#include <cstddef>

#include "cpu/activations.h"
#include "cpu/linear.h"

namespace thermocline {

class LinearJit : public Xbyak::CodeGenerator {
 public:
  virtual ~LinearJit() = default;
  // Emits the code and makes it executable and read-only.
  LinearFn Finish();

 protected:
  static constexpr size_t kMaxCodeBytes = 64 * 1024;
  // `passes`: how many times a panel is walked, 16 / passes rows each.
  LinearJit(const LinearSpec& spec, int passes);

  virtual void Constants() = 0;  // loads what stays in registers for the whole call
  virtual void ZeroSums() = 0;
  virtual void BeginBlock() = 0;  // K types: super-block scales from [scales()]
  // One chunk whose codes begin at codes(). `chunk` is its number within the block where the loop over chunks is
  // unrolled (F16 scales), and 0 where it is a loop that moves scales(), x and meta along.
  virtual void Chunk(int chunk) = 0;
  virtual void StoreSums() = 0;  // to y_row() and, stride apart, the rows below; adds first if accumulating
  virtual void Data() {}         // constants behind the code

  // Addresses. `offset` in bytes.
  Xbyak::RegExp codes(int offset) const { return w_ + offset; }
  Xbyak::RegExp scales(int offset) const;
  Xbyak::RegExp x(int m, int offset) const { return RowOf(x_, m) + offset; }
  Xbyak::RegExp meta(int m, int offset) const { return RowOf(meta_, m) + offset; }
  Xbyak::RegExp super_scales(int offset) const { return super_ + offset; }  // K types: 16 F16 d, then dmin

  const PackedFormat& format() const { return *spec_.format; }
  int m() const { return spec_.m; }
  int pass() const { return pass_; }  // being emitted now
  int rows_per_pass() const { return kPanelRows / passes_; }
  int groups_per_chunk() const { return kChunk / format().group; }
  bool f16_scales() const { return format().scale == ScaleKind::kF16; }
  const Xbyak::Reg64& y() const { return y_; }
  // Runs emit(m) for each row with y_row() standing on it.
  template <typename Emit>
  void ForEachOutputRow(const Emit& emit) {
    mov(tmp_, y_);
    for (int i = 0; i < m(); ++i) {
      emit(i);
      if (i + 1 < m()) add(tmp_, ptr[args_ + offsetof(LinearArgs, y_stride_bytes)]);
    }
  }
  Xbyak::RegExp y_row(int offset) const { return tmp_ + offset; }
  Xbyak::Address accumulate() const { return qword[args_ + offsetof(LinearArgs, accumulate)]; }

 private:
  void Generate();
  void Panel();
  void BlockOfF16Scales();
  void BlockOfSuperScales();
  Xbyak::RegExp RowOf(const Xbyak::Reg64& base, int m) const;

  LinearSpec spec_;
  int passes_, pass_ = 0;
  const Xbyak::Reg64 args_ = rdi, w_ = rsi, x_ = rdx, meta_ = rcx;
  const Xbyak::Reg64 stride_ = r8, stride3_ = r9, stride5_ = r10, stride7_ = r11;
  const Xbyak::Reg64 n_blocks_ = rax, tmp_ = rax, y_ = rbx, n_panels_ = rbp, panel_ = r12;
  const Xbyak::Reg64 n_chunks_ = r13, scales_ = r14, super_ = r15;
};

std::unique_ptr<LinearJit> MakeLinearAvx2(const LinearSpec& spec);    // M 1 .. kLinearMaxMAvx2
std::unique_ptr<LinearJit> MakeLinearAvx512(const LinearSpec& spec);  // M 1 .. kLinearMaxM
inline constexpr int kLinearMaxMAvx2 = 2;

}  // namespace thermocline
