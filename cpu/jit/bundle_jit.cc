#include "cpu/jit/bundle_jit.h"

namespace thermocline {

void BundleUpJit::Generate() {
  mov(bundles_, ptr[args_ + offsetof(BundleUpArgs, bundle)]);
  mov(out_, ptr[args_ + offsetof(BundleUpArgs, out)]);
  mov(n_, ptr[args_ + offsetof(BundleUpArgs, n)]);
  Constants();
  Xbyak::Label next_neuron, next_block;
  L(next_neuron);
  mov(w_, ptr[bundles_]);
  mov(x_, ptr[args_ + offsetof(BundleUpArgs, x)]);
  lea(scales_, ptr[w_ + static_cast<int>(shape_.up_code_bytes())]);
  lea(down_, ptr[w_ + static_cast<int>(shape_.down_offset())]);
  mov(n_blocks_, shape_.up_blocks());
  BeginNeuron();
  L(next_block);
  Prefetch();
  Block();
  add(w_, format().chunk_bytes());
  add(scales_, static_cast<int>(shape_.up_scale_bytes()));
  add(x_, kSpreadBlockBytes);
  dec(n_blocks_);
  jnz(next_block, T_NEAR);
  EndNeuron();
  add(bundles_, 8);
  add(out_, sizeof(float));
  dec(n_);
  jnz(next_neuron, T_NEAR);
  vzeroupper();
  ret();
  Data();
}

void BundleUpJit::Prefetch() {
  const int down = kUpBlockK / kDownOutputs * static_cast<int>(shape_.down_block_bytes());
  for (int at = 0; at < down; at += 64) prefetcht0(ptr[down_ + at]);
  add(down_, down);
}

void BundleDownJit::Generate() {
  const Xbyak::Reg64 saved[] = {rbx, r12, r13, r14, r15};
  for (const Xbyak::Reg64& reg : saved) push(reg);
  mov(bundles_, ptr[args_ + offsetof(BundleDownArgs, bundle)]);
  mov(h_, ptr[args_ + offsetof(BundleDownArgs, h)]);
  mov(scales_, ptr[args_ + offsetof(BundleDownArgs, scales)]);
  mov(y_, ptr[args_ + offsetof(BundleDownArgs, y)]);
  mov(n_, ptr[args_ + offsetof(BundleDownArgs, n)]);
  mov(next_, ptr[args_ + offsetof(BundleDownArgs, next)]);
  mov(next_scales_, ptr[args_ + offsetof(BundleDownArgs, next_scales)]);
  mov(n_next_, ptr[args_ + offsetof(BundleDownArgs, n_next)]);
  xor_(ahead_, ahead_);
  mov(block_, shape_.down_offset());
  mov(n_blocks_, shape_.down_blocks());
  Constants();
  Xbyak::Label next_block;
  L(next_block);
  Prefetch();
  for (pass_ = 0; pass_ < passes_; ++pass_) {
    Xbyak::Label next_neuron;
    Begin();
    xor_(i_, i_);
    L(next_neuron);
    mov(w_, ptr[bundles_ + i_ * 8]);
    Neuron();
    inc(i_);
    cmp(i_, n_);
    jb(next_neuron, T_NEAR);
    End();
  }
  add(block_, static_cast<int>(shape_.down_block_bytes()));
  add(scales_, 2 * kDownOutputs);
  add(y_, 4 * kDownOutputs);
  dec(n_blocks_);
  jnz(next_block, T_NEAR);
  vzeroupper();
  for (int i = 4; i >= 0; --i) pop(saved[i]);
  ret();
  Data();
}

// Neurons come from memory in no order that a CPU could guess. All of the next group is asked for in equal parts while
// this one is multiplied, so that memory is never idle.
void BundleDownJit::Prefetch() {
  const int bundle = static_cast<int>(shape_.bundle_bytes()), scales = static_cast<int>(shape_.scale_bytes());
  const int n_blocks = static_cast<int>(shape_.down_blocks());
  const int lines = (bundle / 64 + n_blocks - 1) / n_blocks;
  Xbyak::Label next_neuron, done;
  test(n_next_, n_next_);
  jz(done, T_NEAR);
  for (int at = 0; at < scales / n_blocks; at += 64) prefetcht1(ptr[next_scales_ + at]);
  add(next_scales_, scales / n_blocks);
  cmp(ahead_, bundle);
  jae(done, T_NEAR);
  xor_(i_, i_);
  L(next_neuron);
  mov(w_, ptr[next_ + i_ * 8]);
  for (int line = 0; line < lines; ++line) prefetcht1(ptr[w_ + ahead_ + 64 * line]);
  inc(i_);
  cmp(i_, n_next_);
  jb(next_neuron, T_NEAR);
  add(ahead_, 64 * lines);
  L(done);
}

}  // namespace thermocline
