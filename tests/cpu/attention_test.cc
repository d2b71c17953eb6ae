#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/vector_ops.h"
#include "models/dtype.h"
#include "models/limits.h"
#include "tests/cpu/guarded.h"
#include "tests/cpu/kernel_test_util.h"

namespace thermocline::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Shape {
  int n_queries, head_dim, window, n_pages, first_token;
  int n_tokens;  // written; the slots behind them hold NaN
  KvTypes types = {};
  bool prompt = false;
};

constexpr KvTypes kF16{}, kQ8{DType::kQ8_0, DType::kQ8_0};
constexpr KvTypes kTypes[] = {kF16, kQ8, {DType::kQ8_0, DType::kF16}, {DType::kF16, DType::kQ8_0}};
struct Form {
  KvTypes types;
  bool prompt;
};
constexpr Form kForms[] = {{kF16, false}, {kF16, true}, {kQ8, false}, {kTypes[2], false}, {kTypes[3], true}};

std::ostream& operator<<(std::ostream& out, const Shape& s) {
  return out << s.n_queries << " queries, head_dim " << s.head_dim << ", window " << s.window << ", " << s.n_pages
             << " pages from token " << s.first_token << ", " << s.n_tokens << " tokens, " << Info(s.types.key).name
             << " keys, " << Info(s.types.value).name << " values, of " << (s.prompt ? "a prompt" : "generated rows");
}

// One split with every buffer between guard pages.
struct Case {
  Case(const Shape& shape, Flush flush, uint64_t seed = 1)
      : shape(shape),
        flush(flush),
        q(size_t(shape.n_queries) * shape.head_dim, 4, flush),
        position(shape.n_queries, 4, flush) {
    Random random(seed);
    for (float& x : q) x = random.Normal(3 / std::sqrt(static_cast<float>(shape.head_dim)));
    // Consecutive tokens, several heads each, up to the last token; as spans of a prompt come.
    for (int i = 0; i < shape.n_queries; ++i)
      position[i] = shape.first_token + shape.n_tokens - 1 - (shape.n_queries - 1 - i) / 3;
    const VectorOps& reference = VectorOpsFor(Isa::kScalar);
    for (int p = 0; p < shape.n_pages; ++p) {
      const size_t bytes = KvHeadBytes(shape.types, shape.head_dim);
      pages.push_back(std::make_unique<GuardedBuffer<uint8_t>>(bytes, 2, flush));
      page_pointers.push_back(pages.back()->data());
      for (int slot = 0; slot < kPageTokens && p * kPageTokens + slot < shape.n_tokens; ++slot) {
        const std::vector<float> key = random.Normals(shape.head_dim), value = random.Normals(shape.head_dim);
        reference.store_kv(shape.types, key.data(), value.data(), shape.head_dim, slot, pages.back()->data());
      }
    }
  }

  Shape shape;
  Flush flush;
  GuardedBuffer<float> q;
  GuardedBuffer<int32_t> position;
  std::vector<std::unique_ptr<GuardedBuffer<uint8_t>>> pages;
  std::vector<const uint8_t*> page_pointers;
};

// The keys (or the values) of a page, by what models/kv_layout.h says of them.
struct PageSide {
  PageSide(const Shape& shape, const uint8_t* page, bool keys)
      : type(keys ? shape.types.key : shape.types.value),
        head_dim(shape.head_dim),
        keys(keys),
        bytes(page + (keys ? 0 : KvSideBytes(shape.types.key, shape.head_dim))) {}

  size_t Index(int slot, int d) const { return keys ? d * 64 + slot : slot * head_dim + d; }
  size_t ScaleBytes() const { return (head_dim + 31) / 32 * 64 * 2; }
  size_t Byte(int slot, int d) const {
    return keys ? ((d / 2) * 64 + slot) * 2 + d % 2 : ((slot / 2) * head_dim + d) * 2 + slot % 2;
  }
  uint16_t Half(size_t i) const { return static_cast<uint16_t>(bytes[2 * i] | bytes[2 * i + 1] << 8); }
  float At(int slot, int d) const {
    if (type == DType::kF16) return HalfToFloat(Half(Index(slot, d)));
    return HalfToFloat(Half(d / 32 * 64 + slot)) * static_cast<int8_t>(bytes[ScaleBytes() + Byte(slot, d)]);
  }

  DType type;
  int head_dim;
  bool keys;
  const uint8_t* bytes;
};

// Gives every F16 number of a token, which is its scales where it is Q8_0, the same bits.
void Spoil(const Case& c, int token, uint16_t bits) {
  uint8_t* page = c.pages[token / kPageTokens]->data();
  for (const bool keys : {true, false}) {
    const PageSide side(c.shape, page, keys);
    for (int d = 0; d < c.shape.head_dim; ++d) {
      const size_t i = side.type == DType::kF16 ? side.Index(token % 64, d) : d / 32 * 64 + token % 64;
      std::memcpy(page + (side.bytes - page) + 2 * i, &bits, 2);
    }
  }
}

struct Result {
  std::vector<float> max, sum, acc;
};

// Queries [first, first + n) of the case over pages [first_page, first_page + n_pages).
Result Run(const VectorOps& ops, const Case& c, int first, int n, int first_page, int n_pages) {
  const size_t head_dim = c.shape.head_dim;
  GuardedBuffer<float> max(n, 4, c.flush), sum(n, 4, c.flush), acc(n * head_dim, 4, c.flush);
  ops.attention_split({.q = c.q.data() + first * head_dim,
                       .position = c.position.data() + first,
                       .n_queries = n,
                       .head_dim = c.shape.head_dim,
                       .window = c.shape.window,
                       .prompt = c.shape.prompt,
                       .types = c.shape.types,
                       .pages = c.page_pointers.data() + first_page,
                       .n_pages = n_pages,
                       .next = nullptr,
                       .first_token = c.shape.first_token + first_page * kPageTokens,
                       .max = max.data(),
                       .sum = sum.data(),
                       .acc = acc.data()});
  return {max.ToVector(), sum.ToVector(), acc.ToVector()};
}
Result Run(const VectorOps& ops, const Case& c) { return Run(ops, c, 0, c.shape.n_queries, 0, c.shape.n_pages); }

void CheckSameResult(const Result& actual, const Result& expected) {
  CheckSame<float>(actual.max, expected.max);
  CheckSame<float>(actual.sum, expected.sum);
  CheckSame<float>(actual.acc, expected.acc);
}

// Query i of a result as a result of its own.
Result Row(const Result& all, int i, int head_dim) {
  return {{all.max[i]}, {all.sum[i]}, {all.acc.begin() + i * head_dim, all.acc.begin() + (i + 1) * head_dim}};
}

// What softmax(q K^T) V is in the end.
std::vector<float> Normalized(const Result& result, int head_dim) {
  std::vector<float> out = result.acc;
  for (size_t i = 0; i < out.size(); ++i) out[i] /= result.sum[i / head_dim];
  return out;
}

// Scores are sums of head_dim products, sum |q||k| about 4 sigma_q sigma_k head_dim: an error d there is a relative one
// of each weight, as are the roundings of up to n_tokens additions; values are normal, at most about 5.
// Over Q8_0, queries are rounded to a 32767th of the largest of a group, at most 4 sigma_q, the products of weights and
// scales likewise to a 32767th of the largest of a page; such errors are uniform and add up as a random walk. Of prompt
// rows F16 is rounded to a 4095th of the largest of a token, queries and weights to an 8191st, together 1.5 times that
// of keys alone by reckoning: twice the step allows 5 standard deviations.
double Step(const Shape& shape, DType type) {
  return type == DType::kQ8_0 ? 1.0 / 32767 : shape.prompt ? 2.0 / 4095 : 0;
}
double ScoreTolerance(const Shape& shape) {
  return kEpsilon * (std::sqrt(static_cast<double>(shape.head_dim)) * 3 * 4 + 4) + Step(shape, shape.types.key) * 3 * 4;
}
double OutputTolerance(const Shape& shape) {
  return 5 * (2 * ScoreTolerance(shape) + kEpsilon * (8 + shape.n_tokens / 8.0) +
              Step(shape, shape.types.value) * std::sqrt(shape.n_tokens));
}

void CheckAgainstReference(const VectorOps& ops, const Shape& shape, Flush flush) {
  CAPTURE(shape);
  const Case c(shape, flush);
  const Result actual = Run(ops, c), expected = Run(VectorOpsFor(Isa::kScalar), c);
  CheckNear(actual.max, expected.max, [&](size_t) { return ScoreTolerance(shape); });
  for (int i = 0; i < shape.n_queries; ++i) {
    CAPTURE(i);
    const Result row = Row(actual, i, shape.head_dim), expected_row = Row(expected, i, shape.head_dim);
    if (expected.max[i] == -kInf) {
      CHECK(actual.max[i] == -kInf);
      CHECK(actual.sum[i] == 0);
      CheckSame<float>(row.acc, std::vector<float>(shape.head_dim, 0.f));
      continue;
    }
    CheckNear(Normalized(row, shape.head_dim), Normalized(expected_row, shape.head_dim),
              [&](size_t) { return OutputTolerance(shape); });
    CHECK(std::fabs(actual.sum[i] / expected.sum[i] - 1) <= OutputTolerance(shape));
  }
}

constexpr Isa kWithAttention[] = {Isa::kAvx2, Isa::kAvx512, Isa::kAmx};

template <typename Body>
void ForEachIsa(const Body& body) {
  for (Isa isa : RunnableIsas(kWithAttention)) {
    CAPTURE(Name(isa));
    body(VectorOpsFor(isa));
  }
}

TEST_CASE("the reference is softmax(q K^T) V") {
  for (const KvTypes types : kTypes)
    for (const int head_dim : {5, 70}) {
      const Shape shape{2, head_dim, 0, 2, 0, 70, types};
      CAPTURE(shape);
      const Case c(shape, Flush::kEnd);
      const std::vector<float> actual = Normalized(Run(VectorOpsFor(Isa::kScalar), c), head_dim);
      for (int i = 0; i < 2; ++i) {
        std::vector<double> weighted(head_dim, 0);
        double sum = 0;
        for (int t = 0; t <= c.position[i]; ++t) {
          const uint8_t* page = c.page_pointers[t / 64];
          const PageSide keys(shape, page, true), values(shape, page, false);
          double score = 0;
          for (int d = 0; d < head_dim; ++d) score += double{c.q[i * head_dim + d]} * keys.At(t % 64, d);
          sum += std::exp(score);
          for (int d = 0; d < head_dim; ++d) weighted[d] += std::exp(score) * values.At(t % 64, d);
        }
        for (int d = 0; d < head_dim; ++d)
          CHECK(actual[i * head_dim + d] == doctest::Approx(weighted[d] / sum).epsilon(1e-5));
      }
    }
}

TEST_CASE("attention_split equals the reference over head dims and numbers of queries") {
  ForEachIsa([](const VectorOps& ops) {
    for (int head_dim : {1, 2, 7, 8, 9, 15, 16, 17, 24, 31, 32, 48, 64, 80, 96, 128, 256})
      for (int n_queries : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 32, kMaxQueries})
        for (KvTypes types : kTypes)
          for (bool prompt : {false, true})
            for (Flush flush : {Flush::kEnd, Flush::kStart}) {
              if (ops.isa == Isa::kAmx && !prompt) continue;  // AVX-512's code
              CheckAgainstReference(ops, {n_queries, head_dim, 0, 2, 0, 100, types, prompt}, flush);
            }
  });
}

TEST_CASE("attention_split equals the reference at the largest head dim") {
  ForEachIsa([](const VectorOps& ops) {
    for (const auto& [types, prompt] : kForms)
      CheckAgainstReference(ops, {kMaxQueries, kMaxHeadDim, 0, 2, 0, 100, types, prompt}, Flush::kEnd);
  });
}

TEST_CASE("over F16 a token with nearly all of the weight and hardly any value takes no precision from the others") {
  ForEachIsa([](const VectorOps& ops) {
    for (const auto& [types, prompt] : kForms) {
      if (types.value != DType::kF16) continue;
      Case c({6, 64, 0, 1, 0, 64, types, prompt}, Flush::kEnd);
      CAPTURE(c.shape);
      const std::vector<float> key(64, 1), value(64, 1e-3f);
      for (int i = 0; i < 6; ++i)
        for (int d = 0; d < 64; ++d) c.q[i * 64 + d] = 0.1f;  // a score of 6.4 there, of less than 3 elsewhere
      VectorOpsFor(Isa::kScalar).store_kv(types, key.data(), value.data(), 64, 0, c.pages[0]->data());
      const std::vector<float> actual = Normalized(Run(ops, c), 64);
      const std::vector<float> expected = Normalized(Run(VectorOpsFor(Isa::kScalar), c), 64);
      float largest = 0;
      for (const float x : expected) largest = std::max(largest, std::fabs(x));
      CheckNear(actual, expected, [&](size_t) { return 3e-3 * largest; });
    }
  });
}

TEST_CASE("attention_split equals the reference over windows, partial pages and positions far out") {
  ForEachIsa([](const VectorOps& ops) {
    for (int n_queries : {1, 3, 32})
      for (int window : {0, 1, 2, 16, 63, 64, 65, 512})
        for (int n_tokens : {1, 2, 15, 16, 63, 64, 65, 128, 130, 511, 512})
          for (int first_token : {0, 64 * 1000})
            for (KvTypes types : {kF16, kQ8})
              for (bool prompt : {false, true})
                CheckAgainstReference(
                    ops, {n_queries, 24, window, (n_tokens + 63) / 64, first_token, n_tokens, types, prompt},
                    Flush::kEnd);
  });
}

TEST_CASE("a query that sees nothing leaves a neutral state") {
  ForEachIsa([](const VectorOps& ops) {
    for (int n_queries : {1, 5, 32}) {
      Case c({n_queries, 24, 0, 2, 640, 128, kF16, n_queries == 5}, Flush::kEnd);
      for (int i = 0; i < n_queries; i += 2) c.position[i] = 639;  // all tokens are in its future
      Result result = Run(ops, c);
      for (int i = 0; i < n_queries; i += 2) CHECK(result.max[i] == -kInf);
      c.shape.window = 20;
      for (int i = 0; i < n_queries; i += 2) c.position[i] = 640 + 128 + 19;  // all fell out of the window
      result = Run(ops, c);
      for (int i = 0; i < n_queries; i += 2) {
        CHECK(result.max[i] == -kInf);
        CHECK(result.sum[i] == 0);
        for (int d = 0; d < 24; ++d) CHECK(result.acc[i * 24 + d] == 0);
      }
    }
  });
}

TEST_CASE("a query's result is the same bits alone and among others") {
  ForEachIsa([](const VectorOps& ops) {
    for (int head_dim : {7, 24, 64, 80, 256})
      for (int window : {0, 40})
        for (const auto& [types, prompt] : kForms) {
          Case c({kMaxQueries, head_dim, window, 4, 128, 250, types, prompt}, Flush::kEnd);
          CAPTURE(c.shape);
          // Positions that mask whole pages, parts of pages and nothing, next to each other.
          Random random(7);
          for (int i = 0; i < kMaxQueries; i += 3) c.position[i] = 128 + random.Int(-5, 255);
          const Result all = Run(ops, c);
          for (int n : {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 32, 42})
            for (int first = 0; first + n <= (n <= 12 ? 32 : kMaxQueries); first += n) {
              const Result part = Run(ops, c, first, n, 0, 4);
              for (int i = 0; i < n; ++i) {
                CAPTURE(n);
                CAPTURE(first + i);
                CheckSameResult(Row(part, i, head_dim), Row(all, first + i, head_dim));
              }
            }
        }
  });
}

TEST_CASE("NaN and infinities of hidden slots, other queries and other tokens change nothing") {
  ForEachIsa([](const VectorOps& ops) {
    constexpr int kHeadDim = 24;
    for (const auto& [types, prompt] : kForms) {
      Case c({6, kHeadDim, 0, 2, 0, 128, types, prompt}, Flush::kEnd);
      CAPTURE(c.shape);
      for (int i = 0; i < 6; ++i) c.position[i] = 90 + i;
      const Result clean = Run(ops, c);
      // Token 93 is seen by queries 3 to 5 only.
      for (uint16_t bad : {0x7E00, 0xFFFF, 0x7C00, 0xFC00}) {
        const std::vector<uint8_t> before = c.pages[1]->ToVector();
        Spoil(c, 93, bad);
        const Result dirty = Run(ops, c);
        for (int i = 0; i < 3; ++i) CheckSameResult(Row(dirty, i, kHeadDim), Row(clean, i, kHeadDim));
        if (types == kF16)
          for (int i = 3; i < 6; ++i) CHECK(!std::isfinite(dirty.acc[i * kHeadDim]));
        std::copy(before.begin(), before.end(), c.pages[1]->data());
      }
      for (float bad : {std::numeric_limits<float>::quiet_NaN(), kInf, -kInf}) {
        const float before = c.q[0];
        c.q[0] = bad;
        const Result dirty = Run(ops, c);
        for (int i = 1; i < 6; ++i) CheckSameResult(Row(dirty, i, kHeadDim), Row(clean, i, kHeadDim));
        c.q[0] = before;
      }
    }
  });
}

TEST_CASE("pages that are wholly hidden are as if they were not there") {
  ForEachIsa([](const VectorOps& ops) {
    for (const auto& [types, prompt] : kForms) {
      Case c({5, 24, 70, 6, 0, 384, types, prompt}, Flush::kEnd);
      for (int i = 0; i < 5; ++i) c.position[i] = 250 + i;  // sees tokens of pages 2 and 3 only
      CheckSameResult(Run(ops, c, 0, 5, 2, 2), Run(ops, c));
    }
  });
}

TEST_CASE("merged splits equal one pass over everything") {
  std::vector<Isa> isas = RunnableIsas(kWithAttention);
  isas.push_back(Isa::kScalar);
  for (Isa isa : isas) {
    CAPTURE(Name(isa));
    const VectorOps& ops = VectorOpsFor(isa);
    for (int head_dim : {1, 7, 16, 17, 64})
      for (int window : {0, 150}) {
        const Shape shape{4, head_dim, window, 8, 64, 500};
        const Case c(shape, Flush::kEnd);
        const Result whole = Run(VectorOpsFor(Isa::kScalar), c);
        GuardedBuffer<float> max(4), sum(4), acc(size_t(4) * head_dim);
        std::fill(max.begin(), max.end(), -kInf);
        std::fill(sum.begin(), sum.end(), 0.f);
        std::fill(acc.begin(), acc.end(), 0.f);
        for (int page = 0; page < 8; page += 2) {
          const Result part = Run(ops, c, 0, 4, page, 2);
          const GuardedBuffer<float> max2(part.max), sum2(part.sum), acc2(part.acc);
          const Result before{max.ToVector(), sum.ToVector(), acc.ToVector()};
          ops.attention_merge(4, head_dim, max2.data(), sum2.data(), acc2.data(), max.data(), sum.data(), acc.data());
          const Result after{max.ToVector(), sum.ToVector(), acc.ToVector()};
          for (int i = 0; i < 4; ++i) {  // neutral on either side: the other, bit for bit
            if (part.max[i] == -kInf) CheckSameResult(Row(after, i, head_dim), Row(before, i, head_dim));
            if (before.max[i] == -kInf) CheckSameResult(Row(after, i, head_dim), Row(part, i, head_dim));
          }
        }
        CheckNear(Normalized({max.ToVector(), sum.ToVector(), acc.ToVector()}, head_dim), Normalized(whole, head_dim),
                  [&](size_t) { return OutputTolerance(shape); });
      }
  }
}

}  // namespace
}  // namespace thermocline::test
