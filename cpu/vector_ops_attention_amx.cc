// Attention of prompt rows with AMX: scores and weighted values as products in BF16, 32 queries at a time, over all
// pages of a split; softmax between them with AVX-512.
//
// All operands are sums of two BF16, which F16 is exactly and Q8_0 nearly, and only the product of both second parts is
// left out. With one BF16 for weights and values logits of float weights were off by a thousandth.

// GCC 12 takes its own headers' undefined registers for mistakes (gcc.gnu.org/PR105593).
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "cpu/amx.h"
#include "cpu/vector_ops_avx512.h"
#include "models/limits.h"

namespace thermocline {
namespace {

using V = Avx512;

constexpr int kRows = kAmxHalves * kAmxHalfRows;  // queries of a block
constexpr int kBlocks = kMaxQueries / kRows;
constexpr int kUnit = kAmxStepK;  // tokens
constexpr int kUnitsPerPage = kPageTokens / kUnit, kUnits = kSplitTokens / kUnit;
constexpr int kMaxSteps = kMaxHeadDim / kAmxStepK;
constexpr int kFirstPart = 0, kSecondPart = 2 * kAmxTileBytes;  // of two halves, or two blocks, in one step
constexpr int kStepBytes = 2 * kSecondPart;

template <int kTile>
void Load(const void* from, int64_t stride_bytes = 64) {
  asm volatile("tileloadd (%0,%1), %%tmm%c2" : : "r"(from), "r"(stride_bytes), "i"(kTile) : "memory");
  asm volatile(".rept %c0\nnop\n.endr" : : "i"(kAmxSpace));
}
template <int kFirst>
void LoadTwo(const uint8_t* from) {
  Load<kFirst>(from), Load<kFirst + 1>(from + kAmxTileBytes);
}
template <int kSum>
void AddProduct() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(4 + kSum / 2), "i"(6 + kSum % 2));
  asm volatile(".rept %c0\nnop\n.endr" : : "i"(kAmxSpace));
}
void AddProducts() { AddProduct<0>(), AddProduct<1>(), AddProduct<2>(), AddProduct<3>(); }
// Of one step of two parts each.
void AddProducts(const uint8_t* x, const uint8_t* weights) {
  LoadTwo<6>(weights + kFirstPart), LoadTwo<4>(x + kSecondPart), AddProducts();
  LoadTwo<4>(x + kFirstPart), AddProducts();
  LoadTwo<6>(weights + kSecondPart), AddProducts();
}
void ZeroSums() { asm volatile("tilezero %tmm0\ntilezero %tmm1\ntilezero %tmm2\ntilezero %tmm3"); }
template <int kTile>
void Store(float* to, int64_t stride_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1)" : : "r"(to), "r"(stride_bytes), "i"(kTile) : "memory");
}
void StoreSums(float* to, int64_t stride) {
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
  float* second = to + kAmxHalfRows * stride;
  Store<0>(to, bytes), Store<1>(to + 16, bytes), Store<2>(second, bytes), Store<3>(second + 16, bytes);
}

__m512i Round(__m512 high, __m512 low) { return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)); }
__m512 LowOf(__m512i bf16) { return V::FromBf16(_mm512_castsi512_si256(bf16)); }
__m512 HighOf(__m512i bf16) { return V::FromBf16(_mm512_extracti64x4_epi64(bf16, 1)); }

// From 16 values of one k and 16 of the next to pairs.
struct Pairs {
  Pairs() {
    alignas(64) uint16_t order[32];
    for (uint16_t i = 0; i < 16; ++i) order[2 * i] = i, order[2 * i + 1] = static_cast<uint16_t>(16 + i);
    index = _mm512_load_si512(order);
  }
  __m512i Of(__m512i bf16) const { return _mm512_permutexvar_epi16(index, bf16); }
  __m512i index;
};

// Both parts of the values, `low` in the first half of a line.
struct Parts {
  Parts(__m512 high, __m512 low)
      : first(Round(high, low)), second(Round(V::Sub(high, HighOf(first)), V::Sub(low, LowOf(first)))) {}
  void Store(uint8_t* line) const {
    _mm512_store_si512(line + kFirstPart, first), _mm512_store_si512(line + kSecondPart, second);
  }
  void StorePairs(const Pairs& pairs, uint8_t* line) const {
    _mm512_store_si512(line + kFirstPart, pairs.Of(first)), _mm512_store_si512(line + kSecondPart, pairs.Of(second));
  }
  __m512i first, second;
};

struct Range {
  int begin, end;
};

// What a split takes on the stack, 1.3 MB for the largest head.
struct Work {
  // Scores of all queries; a stride whose lines fall into many sets of a cache.
  static constexpr int kScoreStride = kSplitTokens + 16;
  alignas(64) float scores[kMaxQueries * kScoreStride];
  alignas(64) uint8_t queries[kBlocks * kMaxSteps][kStepBytes];     // by block and step
  alignas(64) uint8_t keys[kMaxSteps * kUnitsPerPage][kStepBytes];  // by step and unit
  alignas(64) uint8_t weights[kBlocks * kUnits][kStepBytes];        // by block and unit
  alignas(64) uint8_t values[kUnits][kStepBytes];                   // of 32 dims, by unit
  alignas(64) float poison[kSplitTokens];                           // 0, or NaN where a value is not finite
  Range seen[kMaxQueries];                                          // tokens of the split
  Range units[kBlocks];                                             // that any query of the block sees
};

void SetRanges(const AttentionSplit& args, Work& work) {
  const int64_t n_tokens = int64_t{args.n_pages} * kPageTokens;
  for (int b = 0; b < kBlocks; ++b) work.units[b] = {kUnits, 0};
  for (int i = 0; i < args.n_queries; ++i) {
    const int64_t position = args.position[i] - int64_t{args.first_token};
    const int64_t end = Most(0, Least(n_tokens, position + 1));
    const int64_t begin = args.window > 0 ? Most(0, Least(end, position - args.window + 1)) : 0;
    work.seen[i] = {static_cast<int>(begin), static_cast<int>(end)};
    if (begin == end) continue;
    Range& units = work.units[i / kRows];
    units.begin = static_cast<int>(Least(units.begin, begin / kUnit));
    units.end = static_cast<int>(Most(units.end, (end + kUnit - 1) / kUnit));
  }
}

Range Intersection(const Range& a, const Range& b) {
  return {static_cast<int>(Most(a.begin, b.begin)), static_cast<int>(Least(a.end, b.end))};
}

void StageQueries(const AttentionSplit& args, int n_steps, Work& work) {
  for (int i = 0; i < args.n_queries; ++i)
    for (int step = 0; step < n_steps; ++step) {
      const float* q = args.q + int64_t{i} * args.head_dim + step * kAmxStepK;
      const int n = args.head_dim - step * kAmxStepK;
      const __m512 low = n < 16 ? V::Load(q, n) : V::Load(q);
      const __m512 high = n <= 16 ? V::Set(0.f) : n < 32 ? V::Load(q + 16, n - 16) : V::Load(q + 16);
      Parts(high, low).Store(work.queries[i / kRows * n_steps + step] + i % kRows * 64);
    }
}

// Two neighbouring dims of 16 tokens, or two neighbouring tokens of 16 dims.
struct Two {
  __m512 even, odd;
};

// The keys, or the values, of a page. Dims and tokens are even.
struct F16Side {
  F16Side(const uint8_t* side, int head_dim) : x(reinterpret_cast<const uint16_t*>(side)), head_dim(head_dim) {}
  Two Keys(int d, int token) const {
    const uint16_t* at = x + d * kPageTokens + token;
    return {V::LoadHalf(at), d + 1 < head_dim ? V::LoadHalf(at + kPageTokens) : V::Set(0.f)};
  }
  Two Values(int token, int d) const {
    const uint16_t* at = x + int64_t{token} * head_dim + d;
    if (const int n = head_dim - d; n < 16) return {V::LoadHalf(at, n), V::LoadHalf(at + head_dim, n)};
    return {V::LoadHalf(at), V::LoadHalf(at + head_dim)};
  }
  // That a token of them is infinite or no number.
  bool Spoilt(int token) const {
    const uint16_t* values = x + int64_t{token} * head_dim;
    __m512i largest = V::ZeroInt();
    for (int d = 0; d < head_dim; d += 32)
      largest =
          V::MaxHalves(largest, head_dim - d < 32 ? V::AbsHalves(values + d, head_dim - d) : V::AbsHalves(values + d));
    return _mm512_cmpge_epi16_mask(largest, _mm512_set1_epi16(kInfiniteHalf)) != 0;
  }
  static constexpr int16_t kInfiniteHalf = 0x7C00;
  const uint16_t* x;
  int head_dim;
};

struct Q8Side {
  Q8Side(const uint8_t* side, int head_dim)
      : scales(reinterpret_cast<const uint16_t*>(side)),
        x(reinterpret_cast<const int8_t*>(scales + KvGroups(head_dim) * kPageTokens)),
        head_dim(head_dim) {}
  Two Keys(int d, int token) const {
    const __m512 scale = V::LoadHalf(scales + d / kKvGroup * kPageTokens + token);
    return Scaled(V::LoadPairs(x + d * kPageTokens + 2 * token), scale, scale);
  }
  Two Values(int token, int d) const {
    const int8_t* at = x + int64_t{token} * head_dim + 2 * d;
    const uint16_t* scale = scales + d / kKvGroup * kPageTokens + token;
    return Scaled(head_dim - d < 16 ? V::LoadPairs(at, head_dim - d) : V::LoadPairs(at), V::Set(_cvtsh_ss(scale[0])),
                  V::Set(_cvtsh_ss(scale[1])));
  }
  bool Spoilt(int token) const {
    bool any = false;
    for (int64_t group = 0; group < KvGroups(head_dim); ++group)
      any |= (scales[group * kPageTokens + token] & F16Side::kInfiniteHalf) == F16Side::kInfiniteHalf;
    return any;
  }
  static Two Scaled(__m512i pairs, __m512 even, __m512 odd) {
    const __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(pairs, 16), 16), high = _mm512_srai_epi32(pairs, 16);
    return {V::Mul(V::ToFloat(low), even), V::Mul(V::ToFloat(high), odd)};
  }
  const uint16_t* scales;
  const int8_t* x;
  int head_dim;
};

template <typename Side>
void StageKeys(const Side& keys, int n_steps, const Pairs& pairs, Work& work) {
  for (int step = 0; step < n_steps; ++step)
    for (int j = 0; j < 16; ++j) {
      const int d = step * kAmxStepK + 2 * j;
      for (int t = 0; t < kPageTokens; t += 16) {
        const Two both = d < keys.head_dim ? keys.Keys(d, t) : Two{V::Set(0.f), V::Set(0.f)};
        uint8_t* line = work.keys[step * kUnitsPerPage + t / kUnit] + t % kUnit / 16 * kAmxTileBytes + 64 * j;
        Parts(both.odd, both.even).StorePairs(pairs, line);
      }
    }
}

template <typename Side>
void Scores(const AttentionSplit& args, int n_steps, const Pairs& pairs, Work& work) {
  for (int page = 0; page < args.n_pages; ++page) {
    bool staged = false;
    for (int b = 0; b * kRows < args.n_queries; ++b) {
      const Range units = Intersection({page * kUnitsPerPage, (page + 1) * kUnitsPerPage}, work.units[b]);
      if (units.begin >= units.end) continue;
      if (!staged) StageKeys(Side(args.pages[page], args.head_dim), n_steps, pairs, work);
      staged = true;
      for (int unit = units.begin; unit < units.end; ++unit) {
        ZeroSums();
        for (int step = 0; step < n_steps; ++step)
          AddProducts(work.queries[b * n_steps + step], work.keys[step * kUnitsPerPage + unit % kUnitsPerPage]);
        StoreSums(work.scores + b * kRows * Work::kScoreStride + unit * kUnit, Work::kScoreStride);
      }
    }
  }
}

template <typename Side>
Side ValuesOf(const AttentionSplit& args, int token) {
  return Side(args.pages[token / kPageTokens] + KvSideBytes(args.types.key, args.head_dim), args.head_dim);
}

// True if any token has a value that is not finite.
template <typename Side>
bool FindPoison(const AttentionSplit& args, const Range& units, Work& work) {
  bool any = false;
  for (int token = units.begin * kUnit; token < units.end * kUnit; ++token) {
    const bool spoilt = ValuesOf<Side>(args, token).Spoilt(token % kPageTokens);
    work.poison[token] = spoilt ? __builtin_nanf("") : 0;
    any |= spoilt;
  }
  return any;
}

// 2^x within 2^-18.5; 0 for -inf, NaN stays. 2^x = 2^floor(x) P(x - floor(x)), P minimax of degree 4.
__m512 PowerOfTwo(__m512 x) {
  const __m512 fraction = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 p = V::Set(0.01353416791f);
  p = V::Fma(p, fraction, V::Set(0.05201146062f));
  p = V::Fma(p, fraction, V::Set(0.24144275689f));
  p = V::Fma(p, fraction, V::Set(0.69300383447f));
  p = V::Fma(p, fraction, V::Set(1.00000259337f));
  return V::ScaleByPower(p, x);
}

// -inf for the tokens of [begin, end) that are hidden, so that nothing else has to ask.
void HideScores(const Range& seen, const Range& tokens, float* scores) {
  const __m512 hidden = V::Set(-kInfinity);
  for (int t = tokens.begin; t < tokens.end; t += 16) {
    if (t >= seen.begin && t + 16 <= seen.end) continue;
    const auto below = [&](int end) { return V::First(static_cast<int>(Most(0, Least(16, end - t)))); };
    V::Store(scores + t, V::Select(below(seen.end) & ~below(seen.begin), V::Load(scores + t), hidden));
  }
}

// Scores of one query to weights.
void Softmax(const AttentionSplit& args, int i, bool poisoned, Work& work) {
  constexpr float kLog2E = 1.44269504f;
  const Range seen = work.seen[i], units = work.units[i / kRows];
  const Range tokens{units.begin * kUnit, units.end * kUnit};
  float* scores = work.scores + i * Work::kScoreStride;
  if (poisoned)
    for (int t = tokens.begin; t < tokens.end; t += 16)
      V::Store(scores + t, V::Add(V::Load(scores + t), V::Load(work.poison + t)));
  HideScores(seen, tokens, scores);
  __m512 largest[2] = {V::Set(-kInfinity), V::Set(-kInfinity)};
  for (int t = tokens.begin; t < tokens.end; t += 32) {
    largest[0] = V::Max(largest[0], V::Load(scores + t));
    largest[1] = V::Max(largest[1], V::Load(scores + t + 16));
  }
  const float max = V::ReduceMax(V::Max(largest[0], largest[1]));
  const __m512 minus_max = V::Set(seen.begin == seen.end ? 0.f : -max * kLog2E);
  __m512 sums[2] = {V::Set(0.f), V::Set(0.f)};
  uint8_t* weights = work.weights[i / kRows * kUnits] + i % kRows * 64;
  for (int unit = units.begin; unit < units.end; ++unit) {
    const auto weights_at = [&](int t) { return PowerOfTwo(V::Fma(V::Load(scores + t), V::Set(kLog2E), minus_max)); };
    const __m512 low = weights_at(unit * kUnit), high = weights_at(unit * kUnit + 16);
    sums[0] = V::Add(sums[0], low), sums[1] = V::Add(sums[1], high);
    Parts(high, low).Store(weights + unit * kStepBytes);
  }
  args.max[i] = max;
  args.sum[i] = V::ReduceAdd(V::Add(sums[0], sums[1]));
}

// Dims [d, d + 32) of the tokens; zeros of those whose weights are no number anyway.
template <typename Side>
void StageValues(const AttentionSplit& args, const Range& units, int d, const Pairs& pairs, Work& work) {
  for (int unit = units.begin; unit < units.end; ++unit)
    for (int j = 0; j < 16; ++j) {
      const int token = unit * kUnit + 2 * j;
      const Side values = ValuesOf<Side>(args, token);
      for (int block = 0; block < 2; ++block) {
        Two both{V::Set(0.f), V::Set(0.f)};
        if (d + 16 * block < args.head_dim) both = values.Values(token % kPageTokens, d + 16 * block);
        if (work.poison[token] != 0) both.even = V::Set(0.f);
        if (work.poison[token + 1] != 0) both.odd = V::Set(0.f);
        Parts(both.odd, both.even).StorePairs(pairs, work.values[unit] + block * kAmxTileBytes + 64 * j);
      }
    }
}

void WeightedValues(const AttentionSplit& args, int block, int d, Work& work) {
  ZeroSums();
  for (int unit = work.units[block].begin; unit < work.units[block].end; ++unit)
    AddProducts(work.weights[block * kUnits + unit], work.values[unit]);
  float* out = args.acc + int64_t{block} * kRows * args.head_dim + d;
  const int n_dims = static_cast<int>(Least(32, args.head_dim - d));
  const int n_queries = static_cast<int>(Least(kRows, args.n_queries - block * kRows));
  if (n_dims == 32 && n_queries == kRows) return StoreSums(out, args.head_dim);
  alignas(64) float sums[kRows * 32];
  StoreSums(sums, 32);
  for (int i = 0; i < n_queries; ++i)
    for (int j = 0; j < n_dims; ++j) out[int64_t{i} * args.head_dim + j] = sums[32 * i + j];
}

template <typename Keys, typename Values>
void Attend(const AttentionSplit& args) {
  const Pairs pairs;
  Work work;
  const int n_steps = (args.head_dim + kAmxStepK - 1) / kAmxStepK;
  SetRanges(args, work);
  Range units{kUnits, 0};  // of all blocks
  for (const Range& each : work.units)
    units = {static_cast<int>(Least(units.begin, each.begin)), static_cast<int>(Most(units.end, each.end))};
  LoadAmxConfig(AmxConfigFor(kRows));
  StageQueries(args, n_steps, work);
  Scores<Keys>(args, n_steps, pairs, work);
  const bool poisoned = FindPoison<Values>(args, units, work);
  for (int i = 0; i < args.n_queries; ++i) Softmax(args, i, poisoned, work);
  for (int d = 0; d < args.head_dim; d += 32) {
    StageValues<Values>(args, units, d, pairs, work);
    for (int block = 0; block * kRows < args.n_queries; ++block) WeightedValues(args, block, d, work);
  }
  ReleaseAmx();
}

}  // namespace

void AttentionSplitAmx(const AttentionSplit& args) {
  const auto [keys, values] = args.types;
  const bool f16_keys = keys == DType::kF16, f16_values = values == DType::kF16;
  const auto attend = !args.prompt ? kVectorOpsAvx512.attention_split
                      : f16_keys   ? (f16_values ? Attend<F16Side, F16Side> : Attend<F16Side, Q8Side>)
                                   : (f16_values ? Attend<Q8Side, F16Side> : Attend<Q8Side, Q8Side>);
  attend(args);
}

}  // namespace thermocline
