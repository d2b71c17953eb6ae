#include "cpu/bundle.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "tests/cpu/file_weight.h"
#include "tests/cpu/kernel_test_util.h"
#include "tests/cpu/random_weights.h"

namespace thermocline {
namespace {

constexpr int64_t kEmbds[] = {32, 96, 128, 512, 608}, kFfs[] = {32, 96, 256, 544};

// An FFN as in the file, and in bundles.
struct Ffn {
  std::vector<uint8_t> up_rows, down_rows;
  test::FileWeight up, down;
  BundleShape shape;
  Buffer memory;
  Bundles bundles;

  Ffn(DType up_type, DType down_type, int64_t n_embd, int64_t n_ff, Isa isa) {
    std::mt19937 rng(static_cast<uint32_t>(n_embd + n_ff));
    up_rows = test::RandomWeights(up_type, n_ff, n_embd, rng);
    down_rows = test::RandomWeights(down_type, n_embd, n_ff, rng);
    up = test::FileWeight(up_type, up_rows, n_ff, n_embd);
    down = test::FileWeight(down_type, down_rows, n_embd, n_ff);
    shape = {BundleShape::UpType(up_type), BundleShape::DownType(down_type), n_embd, n_ff};
    memory = Buffer(shape.bytes(), "a test");
    bundles = Bundles(shape, memory.data());
    test::PackBundles(up.weight, down.weight, 0, isa, bundles);
  }
};

std::vector<float> Floats(const test::FileWeight& matrix) {
  std::vector<float> out(matrix.weight.n * matrix.weight.k);
  Dequantize(matrix.tensor->type, matrix.tensor->data, std::ssize(out), out.data());
  return out;
}

}  // namespace

TEST_CASE("bundle: holds what the file holds") {
  std::vector<Isa> isas = test::RunnableIsas();
  isas.push_back(Isa::kScalar);
  for (const Isa isa : isas)
    for (const DType type : {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0})
      for (const int64_t n_embd : kEmbds)
        for (const int64_t n_ff : kFfs) {
          CAPTURE(Info(type).name);
          CAPTURE(n_embd);
          CAPTURE(n_ff);
          const Ffn ffn(type, type, n_embd, n_ff, isa);
          const std::vector<float> up = Floats(ffn.up), down = Floats(ffn.down);
          std::vector<float> row(n_embd);
          bool up_same = true;
          double down_error = 0;
          for (int64_t j = 0; j < n_ff; ++j) {
            ffn.bundles.DequantizeUp(j, row.data());
            up_same &= std::memcmp(row.data(), &up[j * n_embd], n_embd * sizeof(float)) == 0;
            ffn.bundles.DequantizeDown(j, row.data());
            for (int64_t e = 0; e < n_embd; ++e)
              down_error = std::max(down_error, std::fabs(double{row[e]} - down[e * n_ff + j]));
          }
          CHECK(up_same);
          // Of five bits down is requantized; scales are at most 1, so a group spans at most 32.
          CHECK(down_error <= (ffn.shape.down == type ? 0 : 32. / 127));
        }
}

TEST_CASE("bundle: a part of an FFN holds what the whole holds of its neurons") {
  constexpr int64_t kEmbd = 256, kFf = 768;
  for (const DType type : {DType::kQ4_0, DType::kQ8_0, DType::kQ5_1, DType::kF16, DType::kQ4_K})
    for (const int64_t first : {64, 320, 704}) {
      CAPTURE(Info(type).name);
      CAPTURE(first);
      const Ffn whole(type, type, kEmbd, kFf, Isa::kScalar);
      const BundleShape shape{whole.shape.up, whole.shape.down, kEmbd, kFf - first};
      const Buffer memory(shape.bytes(), "a test");
      Bundles part(shape, memory.data());
      Weight up = whole.up.weight;
      up.first_row = first;
      up.n = kFf - first;
      test::PackBundles(up, whole.down.weight, first, Isa::kScalar, part);
      std::vector<float> expected(kEmbd), row(kEmbd);
      bool up_same = true, down_same = true;
      for (int64_t j = first; j < kFf; ++j) {
        whole.bundles.DequantizeUp(j, expected.data());
        part.DequantizeUp(j - first, row.data());
        up_same &= row == expected;
        whole.bundles.DequantizeDown(j, expected.data());
        part.DequantizeDown(j - first, row.data());
        down_same &= row == expected;
      }
      CHECK(up_same);
      CHECK(down_same);
    }
}

TEST_CASE("bundle: other types are requantized to 8 bits") {
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ4_K, DType::kQ6_K}) {
    CAPTURE(Info(type).name);
    const Ffn ffn(type, type, 512, 512, Isa::kScalar);
    CHECK(ffn.shape.up == DType::kQ8_0);
    CHECK(ffn.shape.down == DType::kQ8_0);
    const std::vector<float> up = Floats(ffn.up), down = Floats(ffn.down);
    std::vector<float> row(512);
    double error = 0, squares = 0;
    for (int64_t j = 0; j < 512; ++j) {
      ffn.bundles.DequantizeUp(j, row.data());
      for (int64_t k = 0; k < 512; ++k) error += std::pow(row[k] - up[j * 512 + k], 2), squares += row[k] * row[k];
      ffn.bundles.DequantizeDown(j, row.data());
      for (int64_t e = 0; e < 512; ++e) error += std::pow(row[e] - down[e * 512 + j], 2), squares += row[e] * row[e];
    }
    CHECK(squares > 0);
    CHECK(error / squares < 1e-4);
  }
}

TEST_CASE("bundle: gives the panels that the file's rows become") {
  for (const DType type : {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0})
    for (const int64_t n_embd : kEmbds)
      for (const int64_t n_ff : kFfs) {
        CAPTURE(Info(type).name);
        CAPTURE(n_embd);
        CAPTURE(n_ff);
        const Ffn ffn(type, type, n_embd, n_ff, Isa::kScalar);
        PackedMatrix up(type, n_ff, n_embd), down(type, n_embd, n_ff);
        up.PackPanels(ffn.up_rows.data(), 0, up.n_panels());
        down.PackPanels(ffn.down_rows.data(), 0, down.n_panels());
        const Bundles& bundles = ffn.bundles;
        bool same = true;
        for (int64_t group = 0; group < ffn.shape.n_groups(); ++group)
          for (int64_t block = 0; block < ffn.shape.up_blocks(); ++block) {
            const int64_t bytes = bundles.UpPanelBytes(block);
            std::vector<uint8_t> panels(2 * bytes);
            bundles.UpPanels(group, block, bundles.UpPanelBytes(block), panels.data());
            for (int64_t p = 0; p < 2; ++p)
              same &= std::memcmp(&panels[p * bytes], up.panel(2 * group + p) + block * 8 * up.format()->block_bytes(),
                                  bytes) == 0;
          }
        CHECK(same);
        if (ffn.shape.down != type) continue;
        constexpr int64_t kGroups = 4;
        for (int64_t block = 0; block < ffn.shape.down_blocks(); ++block)
          for (int64_t group = 0; group < ffn.shape.n_groups(); group += kGroups) {
            const int64_t n = std::min(kGroups, ffn.shape.n_groups() - group), bytes = bundles.DownPanelBytes(n);
            std::vector<uint8_t> panels(bundles.DownPanelCount(block) * bytes);
            bundles.DownPanels(block, group, n, bundles.DownPanelBytes(n), panels.data());
            for (int64_t p = 0; p < bundles.DownPanelCount(block); ++p)
              same &= std::memcmp(&panels[p * bytes],
                                  down.panel(8 * block + p) + group / 2 * down.format()->block_bytes(), bytes) == 0;
          }
        CHECK(same);
      }
}

}  // namespace thermocline
