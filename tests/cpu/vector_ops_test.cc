#include "cpu/vector_ops.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "models/dtype.h"
#include "tests/cpu/guarded.h"
#include "tests/cpu/kernel_test_util.h"

namespace thermocline::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
const VectorOps& Reference() { return VectorOpsFor(Isa::kScalar); }

template <typename Body>
void ForEach(std::initializer_list<int> sizes, const Body& body) {
  for (Isa isa : RunnableIsas())
    for (int n : sizes)
      for (Flush flush : {Flush::kEnd, Flush::kStart}) {
        CAPTURE(Name(isa));
        CAPTURE(n);
        body(VectorOpsFor(isa), n, flush);
      }
}

TEST_CASE("every table says which ISA it is") {
  CHECK(Reference().isa == Isa::kScalar);
  for (Isa isa : RunnableIsas()) CHECK(VectorOpsFor(isa).isa == isa);
}

TEST_CASE("rms_norm equals the reference") {
  ForEach({1, 7, 16, 17, 63, 64, 65, 576, 640}, [](const VectorOps& ops, int n, Flush flush) {
    Random random(n);
    const std::vector<float> x = random.Normals(n, 3), weight = random.Normals(n), before = random.Normals(n);
    for (bool accumulate : {false, true}) {
      const GuardedBuffer<float> x_in(x, 4, flush), weight_in(weight, 4, flush);
      GuardedBuffer<float> out(before, 4, flush);
      std::vector<float> expected = before;
      Reference().rms_norm(x.data(), weight.data(), 1e-5f, n, accumulate, expected.data());
      ops.rms_norm(x_in.data(), weight_in.data(), 1e-5f, n, accumulate, out.data());
      // The sum of squares has no cancellation: n / 2 eps at most, halved by the root; then 4 roundings and the sum.
      CheckNear(out.ToVector(), expected, [&](size_t i) {
        return kEpsilon * ((n / 4 + 4) * std::fabs(expected[i] - (accumulate ? before[i] : 0)) +
                           std::fabs(expected[i]) + (accumulate ? std::fabs(before[i]) : 0));
      });
    }
    GuardedBuffer<float> in_place(x, 4, flush);
    std::vector<float> apart(n);
    ops.rms_norm(x.data(), weight.data(), 1e-5f, n, false, apart.data());
    ops.rms_norm(in_place.data(), weight.data(), 1e-5f, n, false, in_place.data());
    CheckSame<float>(in_place.ToVector(), apart);
  });
}

TEST_CASE("rms_norm of zeros is zero") {
  for (Isa isa : RunnableIsas()) {
    std::vector<float> x(40, 0.f), weight(40, 2.f), out(40, 1.f);
    VectorOpsFor(isa).rms_norm(x.data(), weight.data(), 1e-6f, 40, false, out.data());
    CheckSame<float>(out, x);
  }
}

TEST_CASE("layer_norm equals the reference, in place too") {
  ForEach({1, 7, 16, 17, 63, 64, 65, 127, 129, 768}, [](const VectorOps& ops, int n, Flush flush) {
    for (const float center : {0.f, 20.f}) {
      CAPTURE(center);
      Random random(n);
      std::vector<float> x = random.Normals(n, 3);
      for (float& value : x) value += center;
      const std::vector<float> weight = random.Normals(n), bias = random.Normals(n);
      const GuardedBuffer<float> x_in(x, 4, flush), weight_in(weight, 4, flush), bias_in(bias, 4, flush);
      GuardedBuffer<float> out(n, 4, flush), in_place(x, 4, flush);
      std::vector<float> expected(n);
      Reference().layer_norm(x.data(), weight.data(), bias.data(), 1e-2f, n, expected.data());
      ops.layer_norm(x_in.data(), weight_in.data(), bias_in.data(), 1e-2f, n, out.data());
      ops.layer_norm(in_place.data(), weight_in.data(), bias_in.data(), 1e-2f, n, in_place.data());
      CheckSame<float>(in_place.ToVector(), out.ToVector());
      // A lane adds n / 32 terms, and some 16 roundings follow: the mean is wrong by that many eps of the largest
      // |x|, which its product with the factor magnifies, and so is the factor, relatively.
      float largest = 0;
      double mean = 0, squares = 0;
      for (const float value : x) largest = std::max(largest, std::fabs(value)), mean += value / n;
      for (const float value : x) squares += (value - mean) * (value - mean);
      const double terms = n / 32.0 + 16, factor = 1 / std::sqrt(squares / n + 1e-2);
      CheckNear(out.ToVector(), expected, [&](size_t i) {
        const double normed = std::fabs((x[i] - mean) * factor);
        return kEpsilon * (terms * std::fabs(weight[i]) * (largest * factor + normed) + 2 * std::fabs(expected[i]) +
                           std::fabs(bias[i]));
      });
    }
  });
}

TEST_CASE("layer_norm: the reference centers, scales to deviation 1, weighs and shifts") {
  const float x[] = {1, 2, 3, 6}, weight[] = {1, 1, -2, 1}, bias[] = {0, 0, 10, 0.5f};
  float out[4];
  Reference().layer_norm(x, weight, bias, 0.5f, 4, out);  // mean 3, variance 3.5
  CHECK(out[0] == doctest::Approx(-1));
  CHECK(out[1] == doctest::Approx(-0.5));
  CHECK(out[2] == doctest::Approx(10));
  CHECK(out[3] == doctest::Approx(2));
  for (Isa isa : RunnableIsas()) {
    const std::vector<float> same(40, 3.25f), weights(40, 2.f), biases(40, -1.f);
    std::vector<float> normed(40);
    VectorOpsFor(isa).layer_norm(same.data(), weights.data(), biases.data(), 1e-5f, 40, normed.data());
    CheckSame<float>(normed, biases);  // no deviation: the epsilon alone keeps it a number
  }
}

TEST_CASE("rope equals the reference, and leaves what does not rotate") {
  ForEach({2, 6, 14, 16, 18, 34, 64, 80, 256}, [](const VectorOps& ops, int n, Flush flush) {
    for (RopeKind kind : {RopeKind::kInterleaved, RopeKind::kHalves}) {
      Random random(n);
      const std::vector<float> head = random.Normals(n + 3);
      std::vector<float> cos_sin;
      for (int i = 0; i < n / 2; ++i) {
        const float angle = random.Normal(2);
        cos_sin.push_back(std::cos(angle));
        cos_sin.push_back(std::sin(angle));
      }
      const GuardedBuffer<float> angles(cos_sin, 4, flush);
      GuardedBuffer<float> actual(std::vector<float>(head.begin(), head.begin() + n), 4, flush);
      std::vector<float> expected = head, partial = head;
      Reference().rope(expected.data(), cos_sin.data(), n, kind);
      ops.rope(actual.data(), angles.data(), n, kind);
      ops.rope(partial.data(), angles.data(), n, kind);
      for (int i = n; i < n + 3; ++i) CHECK(partial[i] == head[i]);
      // |a cos| + |b sin| <= |a| + |b|, each rounded.
      CheckNear(actual.ToVector(), std::span(expected).first(n), [&](size_t) { return kEpsilon * 2 * 8; });
    }
  });
}

// All magnitudes from 1e-8 to 100, both signs, zeros and what is not a number.
std::vector<float> ActivationInputs(int n) {
  std::vector<float> x;
  Random random(n);
  for (int i = 0; i < n; ++i) x.push_back(random.Normal() * std::pow(10.f, random.Normal(2)));
  const float special[] = {0.f, -0.f, 88.f, -88.f, 104.f, -104.f, 1e30f, 3.f, -3.f};
  for (int i = 0; i < n && i < 9; ++i) x[(i * 5) % n] = special[i];
  return x;
}

constexpr Activation kActivations[] = {Activation::kSilu, Activation::kGeluTanh, Activation::kRelu};

TEST_CASE("gated_act equals the reference") {
  ForEach({1, 7, 16, 17, 576, 10007}, [](const VectorOps& ops, int n, Flush flush) {
    for (Activation activation : kActivations) {
      CAPTURE(static_cast<int>(activation));
      const std::vector<float> gate = ActivationInputs(n), up = Random(n + 1).Normals(n);
      const GuardedBuffer<float> gate_in(gate, 4, flush), up_in(up, 4, flush);
      GuardedBuffer<float> out(n, 4, flush), in_place(gate, 4, flush);
      std::vector<float> expected(n);
      Reference().gated_act(gate.data(), up.data(), n, activation, expected.data());
      ops.gated_act(gate_in.data(), up_in.data(), n, activation, out.data());
      ops.gated_act(in_place.data(), up_in.data(), n, activation, in_place.data());
      CheckSame<float>(in_place.ToVector(), out.ToVector());
      // ReLU is exact. x / (1 + e^-u): a relative error of 6 eps, of which the tail e^u multiplies the rounding of u by
      // |u| (GELU's u has 4 roundings; it is under 1e-37 from |u| = 87 on, where denormals take over).
      CheckNear(out.ToVector(), expected, [&](size_t i) {
        if (activation == Activation::kRelu) return 0.0;
        const double tail = activation == Activation::kGeluTanh && gate[i] < 0 ? 2 * 87 : 0;
        return kEpsilon * (6 + tail) * std::fabs(expected[i]) + 1e-36 * (1 + std::fabs(up[i]));
      });
    }
  });
}

TEST_CASE("act is gated_act of ones, bit for bit, in place too") {
  ForEach({1, 7, 8, 15, 16, 17, 31, 33, 576, 10007}, [](const VectorOps& ops, int n, Flush flush) {
    for (Activation activation : kActivations) {
      CAPTURE(static_cast<int>(activation));
      std::vector<float> x = ActivationInputs(n);
      if (n > 16) x[9] = kNan, x[10] = kInf, x[11] = -1e38f;
      const GuardedBuffer<float> x_in(x, 4, flush);
      GuardedBuffer<float> out(n, 4, flush), in_place(x, 4, flush);
      std::vector<float> expected(n);
      ops.gated_act(x.data(), std::vector<float>(n, 1).data(), n, activation, expected.data());
      ops.act(x_in.data(), n, activation, out.data());
      ops.act(in_place.data(), n, activation, in_place.data());
      const auto bits = [](const std::vector<float>& values) {
        std::vector<uint32_t> words;
        for (const float value : values)
          words.push_back(std::isnan(value) ? 0x7FC00000 : std::bit_cast<uint32_t>(value));
        return words;
      };
      CheckSame<uint32_t>(bits(out.ToVector()), bits(expected));
      CheckSame<uint32_t>(bits(in_place.ToVector()), bits(expected));
    }
  });
}

TEST_CASE("the reference activations are SiLU, GELU's tanh form and ReLU") {
  for (float x : {-3.f, -1.f, -0.01f, 0.f, 0.5f, 2.f, 6.f}) {
    const float up = 3;
    float silu, gelu, relu;
    Reference().gated_act(&x, &up, 1, Activation::kSilu, &silu);
    Reference().gated_act(&x, &up, 1, Activation::kGeluTanh, &gelu);
    Reference().gated_act(&x, &up, 1, Activation::kRelu, &relu);
    CHECK(relu == (x > 0 ? 3 * x : 0));
    CHECK(silu == doctest::Approx(3 * x / (1 + std::exp(-x))).epsilon(1e-6));
    const double inner = std::sqrt(2 / M_PI) * (x + 0.044715 * std::pow(x, 3));
    CHECK(gelu == doctest::Approx(3 * 0.5 * x * (1 + std::tanh(inner))).epsilon(1e-6));
  }
}

TEST_CASE("gated_act of infinities and NaN") {
  for (Isa isa : RunnableIsas()) {
    const std::vector<float> gate = {kInf, kNan, -1e38f}, up = {1, 1, 1};
    std::vector<float> out(3);
    for (Activation activation : kActivations) {
      VectorOpsFor(isa).gated_act(gate.data(), up.data(), 3, activation, out.data());
      CHECK(out[0] == kInf);
      CHECK(std::isnan(out[1]));
      CHECK(std::fabs(out[2]) == 0);
    }
  }
}

TEST_CASE("add equals the reference bit for bit") {
  ForEach({1, 7, 16, 17, 576}, [](const VectorOps& ops, int n, Flush flush) {
    const std::vector<float> x = Random(1).Normals(n), before = Random(2).Normals(n);
    const GuardedBuffer<float> x_in(x, 4, flush);
    GuardedBuffer<float> out(before, 4, flush);
    std::vector<float> expected = before;
    Reference().add(x.data(), n, expected.data());
    ops.add(x_in.data(), n, out.data());
    CheckSame<float>(out.ToVector(), expected);
  });
}

std::vector<uint8_t> Quantized(const VectorOps& ops, const std::vector<float>& x, float large_group, Flush flush) {
  const GuardedBuffer<float> in(x, 4, flush);
  GuardedBuffer<uint8_t> out(ActivationRowBytes(static_cast<int64_t>(x.size())), 64, flush);
  ops.quantize(in.data(), static_cast<int64_t>(x.size()), large_group, out.data());
  return out.ToVector();
}

ActivationMeta MetaOf(const std::vector<uint8_t>& row, int64_t group) {
  ActivationMeta meta;
  std::memcpy(&meta, row.data() + ActivationMetaOffset(group), sizeof meta);
  return meta;
}

bool HasLo(const std::vector<uint8_t>& row, int64_t group) {
  return MetaOf(row, group / kMaskGroups * kMaskGroups).lo_groups >> group % kMaskGroups & 1;
}

int Code(const std::vector<uint8_t>& row, int64_t i) {
  return 256 * static_cast<int8_t>(row[ActivationOffset(i, 0)]) + static_cast<int8_t>(row[ActivationOffset(i, 1)]);
}

float Dequantized(const std::vector<uint8_t>& row, int64_t i) {
  return MetaOf(row, i / 32).scale * static_cast<float>(Code(row, i));
}

TEST_CASE("quantize keeps 15 bits, or 8 where they bear it, with their sums") {
  std::vector<float> x = Random(5).Normals(1000, 4);
  for (int64_t i = 640; i < 672; ++i) x[i] *= 10;
  for (const float large_group : {kAllGroups, 0.5f, 2.f}) {
    const std::vector<uint8_t> row = Quantized(Reference(), x, large_group, Flush::kEnd);
    int without_lo = 0;
    for (int group = 0; group < 32; ++group) {
      float largest = 0;
      double sum = 0;
      int code_sums[2] = {0, 0};
      const int end = std::min(1000, group * 32 + 32);
      for (int i = group * 32; i < end; ++i) largest = std::max(largest, std::fabs(x[i]));
      const bool lo = HasLo(row, group);
      without_lo += !lo;
      for (int i = group * 32; i < end; ++i) {
        const float value = Dequantized(row, i);
        CHECK(std::fabs(value - x[i]) <= largest / (lo ? kActivationMax : 127) * 0.501f);
        sum += value;
        code_sums[i / 16 % 2] += Code(row, i);
        if (!lo) CHECK(Code(row, i) % 256 == 0);
      }
      const ActivationMeta meta = MetaOf(row, group);
      CHECK(meta.sum32 == doctest::Approx(sum).epsilon(1e-5));
      CHECK(meta.sum16[0] + meta.sum16[1] == doctest::Approx(sum).epsilon(1e-5));
      CHECK(meta.correction16[0] == -8 * code_sums[0]);
      CHECK(meta.correction16[1] == -8 * code_sums[1]);
      CHECK(meta.correction32 == -8 * (code_sums[0] + code_sums[1]));
    }
    CHECK(HasLo(row, 20));
    CHECK(without_lo == (large_group == kAllGroups ? 0 : 31));
    for (int64_t i = 1000; i < 1024; ++i) CHECK(Dequantized(row, i) == 0);
  }
}

TEST_CASE("quantize is the same bits on every ISA") {
  ForEach({1, 7, 16, 17, 31, 32, 33, 63, 64, 65, 96, 576, 640}, [](const VectorOps& ops, int n, Flush flush) {
    const auto check = [&](const std::vector<float>& x) {
      for (const float large_group : {kAllGroups, 0.5f, 2.f})
        CheckSame<uint8_t>(Quantized(ops, x, large_group, flush), Quantized(Reference(), x, large_group, flush));
    };
    Random random(n);
    for (float deviation : {1.f, 1e-6f, 1e-33f, 1e-42f, 1e20f, 1e38f}) {
      std::vector<float> x = random.Normals(n, deviation);
      CAPTURE(deviation);
      check(x);
      for (int i = 0; i < n; i += 3) x[i] = 0;
      for (int i = 0; i < n; i += 50) x[i] *= 20;
      check(x);
    }
    // Halves between two integers, and the largest magnitudes on both sides.
    for (const int most : {kActivationMax, 127}) {
      std::vector<float> ties(n);
      for (int i = 0; i < n; ++i) ties[i] = static_cast<float>(random.Int(-2 * most, 2 * most)) / 2;
      for (int i = 0; i < n; i += 32) ties[i] = static_cast<float>(i % 64 == 0 ? most : -most);
      check(ties);
    }
    std::vector<float> bad = random.Normals(n);
    const float special[] = {kNan, kInf, -kInf, -kNan, 3e38f, 0.f, -0.f, 1e-45f};
    for (int i = 0; i < n; ++i)
      if (random.Int(0, 3) == 0) bad[i] = special[random.Int(0, 7)];
    check(bad);
  });
}

TEST_CASE("quantize: NaN is zero, infinities are the largest value, nothing overflows") {
  std::vector<float> x(64, 1.f);
  x[3] = kNan, x[4] = kInf, x[5] = -kInf, x[40] = kNan;
  for (const float large_group : {kAllGroups, 0.5f, 2.f}) {
    const std::vector<uint8_t> row = Quantized(Reference(), x, large_group, Flush::kEnd);
    CHECK(Dequantized(row, 3) == 0);
    CHECK(Dequantized(row, 4) == doctest::Approx(0x1p120));
    CHECK(Dequantized(row, 5) == doctest::Approx(-0x1p120));
    CHECK(Dequantized(row, 40) == 0);
    CHECK(Dequantized(row, 41) == doctest::Approx(1));
    for (int group = 0; group < 2; ++group) CHECK(std::isfinite(MetaOf(row, group).sum32));
  }
}

TEST_CASE("store_kv is the same bits on every ISA, and touches one slot") {
  ForEach({1, 7, 8, 16, 17, 24, 32, 33, 64, 80, 256}, [](const VectorOps& ops, int head_dim, Flush flush) {
    Random random(head_dim);
    std::vector<float> key = random.Normals(head_dim), value = random.Normals(head_dim, 1e-6f);
    const float special[] = {kNan, kInf, -kInf, 65520.f, -7e4f, 65519.99f, 6e-8f, -0.f};
    for (int i = 0; i < head_dim && i < 8; ++i) key[(i * 7) % head_dim] = value[(i * 3) % head_dim] = special[i];
    const GuardedBuffer<float> key_in(key, 4, flush), value_in(value, 4, flush);
    for (const DType key_type : {DType::kF16, DType::kQ8_0})
      for (const DType value_type : {DType::kF16, DType::kQ8_0})
        for (int slot : {0, 1, 37, 63}) {
          const KvTypes types{key_type, value_type};
          const size_t n = KvHeadBytes(types, head_dim);
          GuardedBuffer<uint8_t> page(n, 2, flush);
          std::vector<uint8_t> expected(n, 0xFF);
          ops.store_kv(types, key_in.data(), value_in.data(), head_dim, slot, page.data());
          Reference().store_kv(types, key.data(), value.data(), head_dim, slot, expected.data());
          CheckSame<uint8_t>(page.ToVector(), expected);
        }
  });
}

TEST_CASE("store_kv in F16 rounds to nearest, clamps what is too large and keeps NaN") {
  const std::vector<float> key = {1.f, 65520.f, -kInf, kNan}, value = {1.00048828125f, -7e4f, 0.f, kInf};
  std::vector<uint8_t> page(KvHeadBytes({}, 4));
  Reference().store_kv({}, key.data(), value.data(), 4, 3, page.data());
  const auto half = [&](size_t i) { return HalfToFloat(static_cast<uint16_t>(page[2 * i] | page[2 * i + 1] << 8)); };
  for (int d = 0; d < 3; ++d) CHECK(half(d * 64 + 3) == std::vector{1.f, 65504.f, -65504.f}[d]);
  CHECK(std::isnan(half(3 * 64 + 3)));
  for (int d = 0; d < 4; ++d) CHECK(half(4 * 64 + 3 * 4 + d) == std::vector{1.f, -65504.f, 0.f, 65504.f}[d]);
}

TEST_CASE("store_kv in Q8_0 errs by half a step, clamps what is too large, and NaN becomes 0") {
  constexpr int kHeadDim = 40, kSlot = 5;
  constexpr KvTypes kTypes{DType::kQ8_0, DType::kF16};
  for (const float deviation : {1.f, 1e-3f, 1e3f, 1e6f, 1e-9f}) {
    CAPTURE(deviation);
    std::vector<float> key = Random(3).Normals(kHeadDim, deviation);
    key[2] = kNan, key[35] = kNan;
    std::vector<uint8_t> page(KvHeadBytes(kTypes, kHeadDim));
    Reference().store_kv(kTypes, key.data(), key.data(), kHeadDim, kSlot, page.data());
    for (int d = 0; d < kHeadDim; ++d) {
      const size_t at = 2 * (d / 32 * 64 + kSlot);
      const float scale = HalfToFloat(static_cast<uint16_t>(page[at] | page[at + 1] << 8));
      const float stored = scale * static_cast<int8_t>(page[2 * 2 * 64 + d / 2 * 128 + 2 * kSlot + d % 2]);
      float largest = 0;
      for (int i = d / 32 * 32; i < std::min(kHeadDim, d / 32 * 32 + 32); ++i)
        if (!std::isnan(key[i])) largest = std::max(largest, std::min(65504.f, std::fabs(key[i])));
      const float wanted = std::isnan(key[d]) ? 0 : std::clamp(key[d], -65504.f, 65504.f);
      // A scale is within 2^-11 of the largest value over 127, or of the smallest F16.
      CHECK(std::fabs(scale - largest / 127) <= std::max(scale * 0x1p-11f, 0x1p-25f));
      CHECK(std::fabs(stored - wanted) <= std::max(0.5f * scale * 1.14f, 127 * 0x1p-25f));
    }
  }
}

TEST_CASE("float_gemv equals the reference for every type, and a row does not depend on its neighbours") {
  ForEach({1, 7, 8, 16, 17, 31, 33, 64, 576}, [](const VectorOps& ops, int k, Flush flush) {
    for (DType type : {DType::kF32, DType::kF16, DType::kBF16})
      for (int n : {0, 1, 3, 4, 5, 9}) {
        CAPTURE(n);
        Random random(k + n);
        const std::vector<float> x = random.Normals(k), w = random.Normals(size_t(n) * k);
        const size_t size = type == DType::kF32 ? 4 : 2, stride = k * size + (n % 2 == 1 ? 2 * size : 0);
        std::vector<uint8_t> rows(n == 0 ? 0 : (n - 1) * stride + k * size);
        std::vector<double> norms(n, 0);  // sum |w| |x| of each row
        for (int row = 0; row < n; ++row)
          for (int i = 0; i < k; ++i) {
            const float value = w[size_t(row) * k + i];
            uint16_t bits = FloatToHalf(value);
            if (type == DType::kBF16) bits = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
            std::memcpy(rows.data() + row * stride + i * size, type == DType::kF32 ? (const void*)&value : &bits, size);
            norms[row] += std::fabs(double{value} * x[i]);
          }
        const GuardedBuffer<uint8_t> w_in(rows, 1, flush);
        const GuardedBuffer<float> x_in(x, 4, flush);
        GuardedBuffer<float> y(n, 4, flush);
        std::vector<float> expected(n);
        ops.float_gemv(type, w_in.data(), stride, n, k, x_in.data(), y.data());
        Reference().float_gemv(type, rows.data(), stride, n, k, x.data(), expected.data());
        CheckNear(y.ToVector(), expected, [&](size_t i) { return kEpsilon * (k / 16 + 8) * norms[i]; });
        for (int row = 0; row < n; ++row) {
          float alone;
          ops.float_gemv(type, w_in.data() + row * stride, stride, 1, k, x_in.data(), &alone);
          CHECK(alone == y[row]);
        }
      }
  });
}

TEST_CASE("add_outer_products equals the reference") {
  ForEach({1, 7, 8, 15, 16, 17, 31, 33, 64, 100}, [](const VectorOps& ops, int n, Flush flush) {
    for (int m : {0, 1, 3, 4, 6, 7, 13})
      for (int n_products : {0, 1, 2, 40, 128, 301}) {
        CAPTURE(m);
        CAPTURE(n_products);
        Random random(n + m);
        const int a_stride = m + 1, b_stride = n + 3, c_stride = n + 2;
        const auto size = [](int rows, int stride, int columns) {
          return rows == 0 || columns == 0 ? size_t{0} : size_t(rows - 1) * stride + columns;
        };
        const GuardedBuffer<float> a(random.Normals(size(n_products, a_stride, m)), 4, flush);
        const GuardedBuffer<float> b(random.Normals(size(n_products, b_stride, n)), 4, flush);
        std::vector<float> expected = random.Normals(size(m, c_stride, n));
        GuardedBuffer<float> c(expected, 4, flush);
        ops.add_outer_products({a.data(), a_stride, b.data(), b_stride, c.data(), c_stride, m, n, n_products});
        Reference().add_outer_products(
            {a.data(), a_stride, b.data(), b_stride, expected.data(), c_stride, m, n, n_products});
        CheckNear(c.ToVector(), expected, [&](size_t) { return kEpsilon * 8 * (n_products + 4); });
      }
  });
}

}  // namespace
}  // namespace thermocline::test
