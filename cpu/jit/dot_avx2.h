// The step of a dot product in 8 lanes of a ymm: lane r += the 4 products of a quad of row r's codes and 4 values of x.
// It is all that AVX2 and AVX-VNNI do differently.
//
//   kVnni     vpdpbusd, exact: 4 * 255 * 128 * 8 steps of a group stay far within 32 bits
//   kMaddubs  vpmaddubsw adds pairs of products in 16 bits, with saturation, and vpaddw adds those of further quads. A
//             pair is at most 2 * max_code * 128 in magnitude, so that QuadsPerFlush steps reach at most 15 * 256 * 8 =
//             30720 for codes of 4 bits, 31 * 256 * 4 = 31744 for 5, 63 * 256 * 2 = 32256 for 6: nothing saturates,
//             nothing wraps. Then vpmaddwd widens them; it multiplies the hi plane by 256 on the way.
//   kWords    codes of 8 bits, and of codebooks that have such: already one pair may reach 2 * 255 * 128 = 65280. Codes
//             and x are made words instead, a word of x being both planes, q = 256 * hi + lo: vpmaddwd and vpaddd,
//             |sum| <= 32 * 255 * 32640 < 2^28. Words stand in two lots, those of even bytes and those of odd ones, in
//             the place of the two planes.
//
// Micro-ops for 8 rows x 32 k, one plane / both (3 vector ports; kVnni: 2): kMaddubs 8 + 7 + 1 / twice that + 1 for 4
// bits, kWords 31 + 16 on codes, kVnni 8 / 16.
#pragma once

#include <xbyak/xbyak.h>

#include "cpu/jit/linear_jit.h"

namespace thermocline {

enum class DotStep { kVnni, kMaddubs, kWords };

// 0: 16 bits do not even hold one pair.
inline int QuadsPerFlush(const PackedFormat& format) { return 32767 / (2 * 128 * format.max_code()); }
inline DotStep StepFor(const PackedFormat& format, bool vnni) {
  if (vnni) return DotStep::kVnni;
  return QuadsPerFlush(format) > 0 ? DotStep::kMaddubs : DotStep::kWords;
}

// acc = or += products; `first` starts anew, except for kVnni, whose acc must be zero then.
inline void EmitStep(Xbyak::CodeGenerator& code, DotStep step, const Xbyak::Ymm& acc, const Xbyak::Ymm& codes,
                     const Xbyak::Ymm& x, const Xbyak::Ymm& temp, bool first) {
  if (step == DotStep::kVnni) return code.vpdpbusd(acc, codes, x, Xbyak::VexEncoding);
  const Xbyak::Ymm& to = first ? acc : temp;
  if (step == DotStep::kMaddubs) {
    code.vpmaddubsw(to, codes, x);
    if (!first) code.vpaddw(acc, acc, temp);
  } else {
    code.vpmaddwd(to, codes, x);
    if (!first) code.vpaddd(acc, acc, temp);
  }
}

// kWords: 32 values of x from both planes, 64 bytes apart, into words of the even and of the odd ones. `high_bytes` is
// 0xff00 in every word.
inline void EmitWordsOfX(Xbyak::CodeGenerator& code, const Xbyak::RegExp& planes, const Xbyak::RegExp& even,
                         const Xbyak::RegExp& odd, const Xbyak::Address& high_bytes) {
  using namespace Xbyak::util;
  const auto &hi = ymm12, &lo = ymm13, &word = ymm14, &low_part = ymm15;
  code.vmovdqa(hi, ptr[planes]);
  code.vmovdqa(lo, ptr[planes + 64]);
  code.vpsllw(word, hi, 8);
  code.vpsllw(low_part, lo, 8);
  code.vpsraw(low_part, low_part, 8);
  code.vpaddw(word, word, low_part);
  code.vmovdqa(ptr[even], word);
  code.vpand(word, hi, high_bytes);
  code.vpsraw(low_part, lo, 8);
  code.vpaddw(word, word, low_part);
  code.vmovdqa(ptr[odd], word);
}
// kWords: the even or odd bytes of a line of codes.
inline void EmitWordsOfCodes(Xbyak::CodeGenerator& code, const Xbyak::Ymm& codes, bool odd,
                             const Xbyak::Address& low_bytes) {
  if (odd)
    code.vpsrlw(codes, codes, 8);
  else
    code.vpand(codes, codes, low_bytes);
}

}  // namespace thermocline
