#include "cpu/jit/bundle_jit.h"

namespace thermocline {

void BundleJit::LoadAhead(const Xbyak::Reg64& ahead) {
  mov(next_, ptr[ahead + offsetof(BundlesAhead, next)]);
  mov(at_, ptr[ahead + offsetof(BundlesAhead, at)]);
  mov(end_, ptr[ahead + offsetof(BundlesAhead, end)]);
}

void BundleJit::StoreAhead(const Xbyak::Reg64& ahead) {
  mov(ptr[ahead + offsetof(BundlesAhead, next)], next_);
  mov(ptr[ahead + offsetof(BundlesAhead, at)], at_);
  mov(ptr[ahead + offsetof(BundlesAhead, end)], end_);
}

// Neurons come from memory in no order that a CPU could guess, but within a neuron line follows line, and there the L2
// prefetcher runs ahead of what is asked for here. In equal parts, so that memory is never idle.
void BundleJit::PrefetchBundles(const Xbyak::Reg64& ahead, const Xbyak::Reg64& temp) {
  Xbyak::Label next_line, within, done;
  mov(temp, ptr[ahead + offsetof(BundlesAhead, lines_per_step)]);
  L(next_line);
  cmp(at_, end_);
  jb(within);
  cmp(qword[next_], 0);
  je(done);
  mov(at_, ptr[next_]);
  lea(end_, ptr[at_ + static_cast<int>(shape().bundle_bytes())]);
  add(next_, 8);
  L(within);
  prefetcht1(ptr[at_]);
  add(at_, 64);
  dec(temp);
  jnz(next_line);
  L(done);
}

void BundleUpJit::Generate() {
  const Xbyak::Reg64 saved[] = {rbx, r12, r13, r14, r15};
  for (const Xbyak::Reg64& reg : saved) push(reg);
  mov(bundles_, ptr[args_ + offsetof(BundleUpArgs, bundle)]);
  mov(out_, ptr[args_ + offsetof(BundleUpArgs, out)]);
  mov(n_, ptr[args_ + offsetof(BundleUpArgs, n)]);
  mov(ahead_, ptr[args_ + offsetof(BundleUpArgs, ahead)]);
  LoadAhead(ahead_);
  Constants();
  Xbyak::Label next_neuron, next_block;
  L(next_neuron);
  mov(w_, ptr[bundles_]);
  mov(x_, ptr[args_ + offsetof(BundleUpArgs, x)]);
  lea(scales_, ptr[w_ + static_cast<int>(shape().up_code_bytes())]);
  lea(down_, ptr[w_ + static_cast<int>(shape().down_offset())]);
  mov(n_blocks_, shape().up_blocks());
  BeginNeuron();
  L(next_block);
  PrefetchDown();
  PrefetchBundles(ahead_, temp_);
  Block();
  add(w_, format().chunk_bytes());
  add(scales_, static_cast<int>(shape().up_scale_bytes()));
  add(x_, kSpreadBlockBytes);
  dec(n_blocks_);
  jnz(next_block, T_NEAR);
  EndNeuron();
  add(bundles_, 8);
  add(out_, sizeof(float));
  dec(n_);
  jnz(next_neuron, T_NEAR);
  StoreAhead(ahead_);
  vzeroupper();
  for (int i = 4; i >= 0; --i) pop(saved[i]);
  ret();
  Data();
}

void BundleUpJit::PrefetchDown() {
  if (!shape().has_down) return;
  const int down = kUpBlockK / kDownOutputs * static_cast<int>(shape().down_block_bytes());
  for (int at = 0; at < down; at += 64) prefetcht0(ptr[down_ + at]);
  add(down_, down);
}

void BundleDownJit::Generate() {
  const Xbyak::Reg64 saved[] = {rbx, rbp, r12, r13, r14, r15};
  for (const Xbyak::Reg64& reg : saved) push(reg);
  mov(bundles_, ptr[args_ + offsetof(BundleDownArgs, bundle)]);
  mov(q_, ptr[args_ + offsetof(BundleDownArgs, q)]);
  mov(scales_, ptr[args_ + offsetof(BundleDownArgs, scales)]);
  mov(y_, ptr[args_ + offsetof(BundleDownArgs, y)]);
  mov(n_, ptr[args_ + offsetof(BundleDownArgs, n)]);
  mov(ahead_, ptr[args_ + offsetof(BundleDownArgs, ahead)]);
  LoadAhead(ahead_);
  mov(block_, shape().down_offset());
  mov(n_blocks_, shape().down_blocks());
  Constants();
  Xbyak::Label next_block;
  L(next_block);
  PrefetchScales();
  for (pass_ = 0; pass_ < passes_; ++pass_) {
    Xbyak::Label next_pair;
    Begin();
    xor_(i_, i_);
    L(next_pair);
    if (pass_ == 0) PrefetchBundles(ahead_, w0_);
    mov(w0_, ptr[bundles_ + i_ * 8]);
    mov(w1_, ptr[bundles_ + i_ * 8 + 8]);
    Pair();
    add(i_, 2);
    cmp(i_, n_);
    jb(next_pair, T_NEAR);
    End();
  }
  add(block_, static_cast<int>(shape().down_block_bytes()));
  add(scales_, 2 * kDownOutputs);
  add(y_, 4 * kDownOutputs);
  dec(n_blocks_);
  jnz(next_block, T_NEAR);
  vzeroupper();
  for (int i = 5; i >= 0; --i) pop(saved[i]);
  ret();
  Data();
}

void BundleDownJit::PrefetchScales() {
  const Xbyak::Reg64& scales = w0_;  // before it holds a neuron
  const int bytes = static_cast<int>(shape().scale_bytes() / shape().down_blocks());
  mov(scales, ptr[ahead_ + offsetof(BundlesAhead, scales)]);
  for (int at = 0; at < bytes; at += 64) prefetcht1(ptr[scales + at]);
  add(qword[ahead_ + offsetof(BundlesAhead, scales)], bytes);
}

}  // namespace thermocline
