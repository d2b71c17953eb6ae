#include "cpu/jit/linear_jit.h"

#include "models/check.h"

namespace thermocline {

using Xbyak::Reg64;
using Xbyak::RegExp;

Reg64 JitCode::RowReg(int m) {
  CHECK(m >= 0 && m < kMaxRows);
  const Reg64 rows[kMaxRows] = {Xbyak::util::rdx, Xbyak::util::rcx, Xbyak::util::r8,
                                Xbyak::util::r9,  Xbyak::util::r10, Xbyak::util::r11};
  return rows[m];
}

void JitCode::EnterFrame(int bytes) {
  mov(rax, rsp);
  sub(rsp, bytes + 8);
  and_(rsp, -64);
  mov(ptr[rsp + bytes], rax);
}

void JitCode::LeaveFrame(int bytes) { mov(rsp, ptr[rsp + bytes]); }

// All ones: NaN as floats, -1 as integers, every lane of a mask.
void JitCode::Poison(Isa isa) {
  if (isa == Isa::kAvx2 || isa == Isa::kAvxVnni)
    for (int i = 0; i < 16; ++i) vpcmpeqd(Xbyak::Ymm(i), Xbyak::Ymm(i), Xbyak::Ymm(i));
  if (!HasZmm(isa)) return;
  for (int i = 0; i < 32; ++i) vpternlogd(Xbyak::Zmm(i), Xbyak::Zmm(i), Xbyak::Zmm(i), 0xff);
  for (int i = 0; i < 8; ++i) kxnorq(Xbyak::Opmask(i), Xbyak::Opmask(i), Xbyak::Opmask(i));
}

RegExp PanelJit::scales(int offset) const {
  if (!format().has_super_scales()) return w_ + (format().block_bytes() - format().scale_bytes() + offset);
  return scales_ + offset;
}

void PanelJit::Generate() {
  const Reg64 saved[] = {rbx, rbp, r12, r13, r14, r15};
  for (const Reg64& reg : saved) push(reg);
  if (frame_bytes_ > 0) EnterFrame(frame_bytes_);
  mov(panel_, ptr[args_ + offsetof(LinearArgs, panel)]);
  mov(y_, ptr[args_ + offsetof(LinearArgs, y)]);
  mov(n_panels_, ptr[args_ + offsetof(LinearArgs, n_panels)]);
  Constants();

  Xbyak::Label next_panel;
  L(next_panel);
  for (pass_ = 0; pass_ < passes_; ++pass_) Panel();
  mov(panel_, w_);
  add(y_, kPanelRows * sizeof(float));
  dec(n_panels_);
  jnz(next_panel, T_NEAR);

  vzeroupper();
  if (frame_bytes_ > 0) LeaveFrame(frame_bytes_);
  for (int i = 5; i >= 0; --i) pop(saved[i]);
  ret();
  Data();
}

void PanelJit::Panel() {
  mov(w_, panel_);
  for (int i = 0; i < m(); ++i) {
    mov(RowReg(i), i == 0 ? ptr[args_ + offsetof(LinearArgs, x)] : ptr[args_ + offsetof(LinearArgs, x_stride_bytes)]);
    if (i > 0) add(RowReg(i), RowReg(i - 1));
  }
  mov(n_blocks_, ptr[args_ + offsetof(LinearArgs, n_blocks)]);
  BeginPanel();
  Xbyak::Label next_block;
  L(next_block);
  if (!format().has_super_scales()) {
    Pair();
    add(w_, format().block_bytes());
  } else {
    BlockOfSuperScales();
  }
  dec(n_blocks_);
  jnz(next_block, T_NEAR);
  EndPanel();
}

void PanelJit::Pair() {
  for (int chunk = 0; chunk < 2; ++chunk) Chunk(chunk);
  for (int i = 0; i < m(); ++i) add(RowReg(i), kActivationPairBytes);
  EndPair();
}

// The pairs in a loop: unrolled they would not fit the micro-op cache.
void PanelJit::BlockOfSuperScales() {
  lea(scales_, ptr[w_ + (format().block_bytes() - format().scale_bytes())]);
  lea(super_, ptr[scales_ + (format().scale_bytes() - 64)]);
  BeginBlock();
  mov(n_pairs_, format().block_k() / (2 * kChunk));
  Xbyak::Label next_pair;
  L(next_pair);
  Pair();
  add(w_, 2 * format().chunk_bytes());
  add(scales_, 2 * kPanelRows * groups_per_chunk());
  dec(n_pairs_);
  jnz(next_pair, T_NEAR);
  add(w_, format().scale_bytes());
}

}  // namespace thermocline
