#include "cpu/packed.h"

#include <doctest/doctest.h>

#include "cpu/pack.h"
#include "tests/cpu/guarded.h"
#include "tests/cpu/kernel_test_util.h"
#include "tests/cpu/random_weights.h"

namespace thermocline {

TEST_CASE("packing loses nothing: every row comes back as the file's values, tails included") {
  std::mt19937 rng(1);
  for (const DTypeInfo& info : DTypes())
    for (const int64_t n : {1, 15, 16, 33})
      for (const int64_t blocks : {1, 2, 3}) {
        const int64_t k = info.block * blocks;
        CAPTURE(info.name);
        CAPTURE(n);
        CAPTURE(k);
        const std::vector<uint8_t> source = test::RandomWeights(info.type, n, k, rng);
        PackedMatrix packed(info.type, n, k);
        packed.PackPanels(source.data(), 0, packed.n_panels());
        std::vector<float> expected(k), got(k);
        for (int64_t i = 0; i < n; ++i) {
          Dequantize(info.type, source.data() + i * blocks * info.block_bytes, k, expected.data());
          packed.DequantizeRow(i, got.data());
          REQUIRE(got == expected);
        }
      }
}

TEST_CASE("every instruction set packs the same bytes, whatever the memory held before") {
  std::mt19937 rng(2);
  for (const Isa isa : test::RunnableIsas())
    for (const PackedFormat& format : PackedFormats()) {
      const bool has_packer = PackFnFor(isa, format.source) != nullptr;
      CHECK(has_packer);
      const DTypeInfo& info = Info(format.source);
      for (const int64_t n : {15, 16, 40})
        for (const int64_t blocks : {1, 2, 5, 16}) {
          const int64_t k = info.block * blocks;
          CAPTURE(Name(isa));
          CAPTURE(format.name);
          CAPTURE(n);
          CAPTURE(k);
          test::GuardedBuffer<uint8_t> source(test::RandomWeights(format.source, n, k, rng));
          source.Protect();
          test::GuardedBuffer<uint8_t> memory(PackedMatrix::BytesFor(format.source, n, k), 64);
          PackedMatrix expected(format.source, n, k), packed(format.source, n, k, memory.data());
          expected.PackPanels(source.data(), 0, expected.n_panels());
          packed.PackPanels(source.data(), 0, packed.n_panels(), isa);
          REQUIRE(std::memcmp(memory.data(), expected.panel(0), memory.size()) == 0);
        }
    }
}

TEST_CASE("packed formats keep what HACKING.md says of their size") {
  const auto bits_per_weight = [](DType type) { return PackedMatrix::BytesFor(type, 16, 1024) * 8.0 / (16 * 1024); };
  CHECK(bits_per_weight(DType::kQ4_0) == 4.5);
  CHECK(bits_per_weight(DType::kQ4_1) == 5.0);
  CHECK(bits_per_weight(DType::kQ5_0) == 5.5);
  CHECK(bits_per_weight(DType::kQ5_1) == 6.0);
  CHECK(bits_per_weight(DType::kQ8_0) == 8.5);
  CHECK(bits_per_weight(DType::kQ2_K) == 2.625);
  CHECK(bits_per_weight(DType::kQ3_K) == 3.625);
  CHECK(bits_per_weight(DType::kQ4_K) == 4.625);
  CHECK(bits_per_weight(DType::kQ5_K) == 5.625);
  CHECK(bits_per_weight(DType::kQ6_K) == 6.625);
  CHECK(bits_per_weight(DType::kIQ4_NL) == 4.5);
  CHECK(bits_per_weight(DType::kIQ4_XS) == 4.375);
  CHECK(bits_per_weight(DType::kMXFP4) == 4.5);
}

}  // namespace thermocline
