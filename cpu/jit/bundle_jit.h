// What the generators of bundle kernels (cpu/bundle_kernel.h) share: the walks over neurons and blocks.
#pragma once

#include "cpu/bundle_kernel.h"
#include "cpu/jit/linear_jit.h"

namespace thermocline {

using BundleUpFn = void (*)(const BundleUpArgs*);
using BundleDownFn = void (*)(const BundleDownArgs*);

class BundleJit : public JitCode {
 protected:
  BundleJit(const BundleShape& shape, const PackedFormat& format) : JitCode(format), shape_(shape) {}
  const BundleShape& shape() const { return shape_; }

  // BundlesAhead: in registers from LoadAhead to StoreAhead. `ahead` points to it and stays as it is.
  void LoadAhead(const Xbyak::Reg64& ahead);
  void StoreAhead(const Xbyak::Reg64& ahead);
  void PrefetchBundles(const Xbyak::Reg64& ahead, const Xbyak::Reg64& temp);

 private:
  const BundleShape shape_;
  const Xbyak::Reg64 next_ = r12, at_ = r13, end_ = r14;
};

// For each neuron: BeginNeuron, Block for each 512 k, EndNeuron.
class BundleUpJit : public BundleJit {
 protected:
  explicit BundleUpJit(const BundleShape& shape) : BundleJit(shape, shape.up_format()) {}

  virtual void Constants() {}
  virtual void BeginNeuron() = 0;
  virtual void Block() = 0;
  virtual void EndNeuron() = 0;  // the sum to [out()]
  virtual void Data() {}

  // Of the block at hand.
  Xbyak::RegExp codes(int offset) const { return w_ + offset; }
  Xbyak::RegExp scales(int offset) const { return scales_ + offset; }
  Xbyak::RegExp x(int offset) const { return x_ + offset; }
  Xbyak::RegExp out() const { return out_; }

 private:
  void Generate() override;
  void PrefetchDown();

  const Xbyak::Reg64 args_ = rdi, bundles_ = rsi, n_ = rdx, out_ = rcx, w_ = r8, x_ = r9, scales_ = r10;
  const Xbyak::Reg64 n_blocks_ = r11, down_ = rax, ahead_ = rbx, temp_ = r15;
};

// For each block of 128 outputs and each pass: Begin, Pair for each two neurons, End. Words of 16 bits of both stand
// side by side in a lane, as vpmaddwd and vpdpwssd want them: the low word is the first neuron's. The words of a line's
// low halves are outputs of the first half of the quads, those of the high halves of the second.
class BundleDownJit : public BundleJit {
 protected:
  // `passes`: how many times a block is walked, 128 / passes outputs each.
  BundleDownJit(const BundleShape& shape, int passes) : BundleJit(shape, shape.down_format()), passes_(passes) {}

  virtual void Constants() = 0;
  virtual void Begin() = 0;
  virtual void Pair() = 0;
  virtual void End() = 0;
  virtual void Data() = 0;

  int pass() const { return pass_; }  // being emitted now
  // Of the pair at hand.
  Xbyak::RegExp codes(int neuron, int offset) const { return (neuron ? w1_ : w0_) + block_ + offset; }
  Xbyak::RegExp q() const { return q_ + i_ * 2; }
  Xbyak::RegExp scales(int output) const { return scales_ + 2 * output; }  // of the block at hand
  Xbyak::RegExp mins(int output) const { return scales_ + static_cast<int>(2 * (shape().n_outputs() + output)); }
  Xbyak::RegExp y(int output) const { return y_ + 4 * output; }
  Xbyak::Address h_scale() const { return ptr[args_ + offsetof(BundleDownArgs, scale)]; }
  Xbyak::Address h_sum() const { return ptr[args_ + offsetof(BundleDownArgs, sum)]; }
  Xbyak::Address correction() const { return ptr[args_ + offsetof(BundleDownArgs, correction)]; }
  int lines() const { return format().bits / 4; }
  // How many values of 4 or 8 bits a word holds, and which 16 outputs of the block the v-th of a half of a line is.
  int values_per_word() const { return 16 / format().bits; }
  int quad(int line, int half, int v) const { return line * 4 + half * values_per_word() + v; }
  uint32_t value_mask() const { return format().bits == 4 ? 0x000f000f : 0x00ff00ff; }

 private:
  void Generate() override;
  void PrefetchScales();

  const int passes_;
  int pass_ = 0;
  const Xbyak::Reg64 args_ = rdi, bundles_ = rsi, q_ = rdx, scales_ = rcx, y_ = r8, n_ = r9, i_ = r10, w0_ = r11;
  const Xbyak::Reg64 w1_ = rbp, block_ = rax, n_blocks_ = rbx, ahead_ = r15;
};

std::unique_ptr<JitCode> MakeBundleUpAvx2(const BundleShape& shape);
std::unique_ptr<JitCode> MakeBundleUpAvx512(const BundleShape& shape);
std::unique_ptr<JitCode> MakeBundleDownAvx2(const BundleShape& shape);
std::unique_ptr<JitCode> MakeBundleDownAvx512(const BundleShape& shape);

}  // namespace thermocline
