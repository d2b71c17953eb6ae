#include "cpu/jit/linear_jit.h"

#include "models/error.h"

namespace thermocline {

using Xbyak::Reg64;
using Xbyak::RegExp;

LinearJit::LinearJit(const LinearSpec& spec, int passes)
    : CodeGenerator(kMaxCodeBytes, Xbyak::DontSetProtectRWE), spec_(spec), passes_(passes) {}

LinearFn LinearJit::Finish() {
  Generate();
  setProtectModeRE();
  return getCode<LinearFn>();
}

RegExp LinearJit::RowOf(const Reg64& base, int m) const {
  switch (m) {
    case 0: return RegExp(base);
    case 1: return base + stride_;
    case 2: return base + stride_ * 2;
    case 3: return base + stride3_;
    case 4: return base + stride_ * 4;
    case 5: return base + stride5_;
    case 6: return base + stride3_ * 2;
    default: return base + stride7_;
  }
}

RegExp LinearJit::scales(int offset) const {
  if (f16_scales()) return w_ + (format().block_bytes() - format().scale_bytes() + offset);
  return scales_ + offset;
}

void LinearJit::Generate() {
  const Reg64 saved[] = {rbx, rbp, r12, r13, r14, r15};
  for (const Reg64& reg : saved) push(reg);
  mov(panel_, ptr[args_ + offsetof(LinearArgs, panel)]);
  mov(y_, ptr[args_ + offsetof(LinearArgs, y)]);
  mov(n_panels_, ptr[args_ + offsetof(LinearArgs, n_panels)]);
  mov(stride_, ptr[args_ + offsetof(LinearArgs, x_stride_bytes)]);
  lea(stride3_, ptr[stride_ + stride_ * 2]);
  lea(stride5_, ptr[stride_ + stride_ * 4]);
  lea(stride7_, ptr[stride3_ + stride_ * 4]);
  Constants();

  Xbyak::Label next_panel;
  L(next_panel);
  for (pass_ = 0; pass_ < passes_; ++pass_) Panel();
  mov(panel_, w_);
  add(y_, kPanelRows * sizeof(float));
  dec(n_panels_);
  jnz(next_panel, T_NEAR);

  vzeroupper();
  for (int i = 5; i >= 0; --i) pop(saved[i]);
  ret();
  Data();
}

void LinearJit::Panel() {
  mov(w_, panel_);
  mov(x_, ptr[args_ + offsetof(LinearArgs, x)]);
  mov(n_blocks_, ptr[args_ + offsetof(LinearArgs, n_blocks)]);
  // Metas stand behind the lines of 64 bytes per group.
  imul(meta_, n_blocks_, format().block_k() / kActivationGroup * 64);
  add(meta_, x_);
  ZeroSums();
  Xbyak::Label next_block;
  L(next_block);
  if (f16_scales())
    BlockOfF16Scales();
  else
    BlockOfSuperScales();
  dec(n_blocks_);
  jnz(next_block, T_NEAR);
  StoreSums();
}

void LinearJit::BlockOfF16Scales() {
  constexpr int kChunks = 2;
  for (int c = 0; c < kChunks; ++c) Chunk(c);
  add(w_, format().block_bytes());
  add(x_, kChunks * 64);
  add(meta_, kChunks * static_cast<int>(sizeof(ActivationMeta)));
}

// Eight chunks in a loop: unrolled they would not fit the micro-op cache.
void LinearJit::BlockOfSuperScales() {
  lea(scales_, ptr[w_ + (format().block_bytes() - format().scale_bytes())]);
  lea(super_, ptr[scales_ + (format().scale_bytes() - 64)]);
  BeginBlock();
  mov(n_chunks_, format().block_k() / kChunk);
  Xbyak::Label next_chunk;
  L(next_chunk);
  Chunk(0);
  add(w_, format().chunk_bytes());
  add(scales_, kPanelRows * groups_per_chunk());
  add(x_, 64);
  add(meta_, static_cast<int>(sizeof(ActivationMeta)));
  dec(n_chunks_);
  jnz(next_chunk, T_NEAR);
  add(w_, format().scale_bytes());
}

}  // namespace thermocline
