// What the generators of bundle kernels (cpu/bundle_kernel.h) share: the walks over neurons and blocks.
#pragma once

#include "cpu/bundle_kernel.h"
#include "cpu/jit/linear_jit.h"

namespace thermocline {

using BundleUpFn = void (*)(const BundleUpArgs*);
using BundleDownFn = void (*)(const BundleDownArgs*);

// For each neuron: BeginNeuron, Block for each 512 k, EndNeuron.
class BundleUpJit : public JitCode {
 protected:
  explicit BundleUpJit(const BundleShape& shape) : JitCode(shape.up_format()), shape_(shape) {}

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
  void Prefetch();

  const BundleShape shape_;
  const Xbyak::Reg64 args_ = rdi, bundles_ = rsi, n_ = rdx, out_ = rcx, w_ = r8, x_ = r9, scales_ = r10;
  const Xbyak::Reg64 n_blocks_ = r11, down_ = rax;
};

// For each block of 128 outputs and each pass: Begin, Neuron for each, End.
class BundleDownJit : public JitCode {
 protected:
  // `passes`: how many times a block is walked, 128 / passes outputs each.
  BundleDownJit(const BundleShape& shape, int passes) : JitCode(shape.down_format()), shape_(shape), passes_(passes) {}

  virtual void Constants() = 0;
  virtual void Begin() = 0;
  virtual void Neuron() = 0;
  virtual void End() = 0;
  virtual void Data() = 0;

  int pass() const { return pass_; }                                       // being emitted now
  Xbyak::RegExp codes(int offset) const { return w_ + block_ + offset; }   // of the neuron at hand
  Xbyak::RegExp h() const { return h_ + i_ * 4; }                          // of the neuron at hand
  Xbyak::RegExp scales(int output) const { return scales_ + 2 * output; }  // of the block at hand
  Xbyak::RegExp mins(int output) const { return scales_ + static_cast<int>(2 * (shape_.n_outputs() + output)); }
  Xbyak::RegExp y(int output) const { return y_ + 4 * output; }
  Xbyak::Address h_sum() const { return ptr[args_ + offsetof(BundleDownArgs, h_sum)]; }

 private:
  void Generate() override;
  void Prefetch();

  const BundleShape shape_;
  const int passes_;
  int pass_ = 0;
  const Xbyak::Reg64 args_ = rdi, bundles_ = rsi, h_ = rdx, scales_ = rcx, y_ = r8, n_ = r9, i_ = r10, w_ = r11;
  const Xbyak::Reg64 block_ = rax, n_blocks_ = rbx, next_ = r12, next_scales_ = r13, n_next_ = r14, ahead_ = r15;
};

std::unique_ptr<JitCode> MakeBundleUpAvx2(const BundleShape& shape);
std::unique_ptr<JitCode> MakeBundleUpAvx512(const BundleShape& shape);
std::unique_ptr<JitCode> MakeBundleDownAvx2(const BundleShape& shape);
std::unique_ptr<JitCode> MakeBundleDownAvx512(const BundleShape& shape);

}  // namespace thermocline
