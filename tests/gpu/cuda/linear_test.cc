#include "gpu/cuda/linear.h"

#include <algorithm>
#include <cstring>

#include "cpu/packed.h"
#include "gpu/cuda/vector_ops.h"
#include "tests/cpu/random_weights.h"
#include "tests/gpu/cuda/device_array.h"

namespace thermocline::test {
namespace {

constexpr DType kTypes[] = {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                            DType::kQ8_0, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};

struct Matrix {
  Matrix(DType type, int n, int k, std::mt19937& rng) : weights(static_cast<size_t>(n) * k), packed(type, n, k) {
    const std::vector<uint8_t> file = RandomWeights(type, n, k, rng);
    Dequantize(type, file.data(), static_cast<int64_t>(n) * k, weights.data());
    packed.PackPanels(file.data(), 0, packed.n_panels());
    panels.assign(packed.panel(0), packed.panel(0) + packed.bytes());
  }
  std::vector<float> weights;
  PackedMatrix packed;
  std::vector<uint8_t> panels;
};

// What the activations of (m, k) x stand for.
std::vector<float> Rounded(const std::vector<float>& x, int m, int k, std::vector<uint8_t>& activations) {
  activations.assign(cuda::ActivationBytes(m, k), 0);
  std::vector<float> rounded(static_cast<size_t>(m) * k);
  for (int row = 0; row < m; ++row) {
    uint8_t* tile = activations.data() + row / cuda::kTileRows * cuda::ActivationTileBytes(k);
    cuda::QuantizeReference(x.data() + static_cast<int64_t>(row) * k, k, k, false, row % cuda::kTileRows, tile);
    for (int i = 0; i < k; ++i) rounded[row * k + i] = cuda::ReadActivation(tile, row % cuda::kTileRows, i);
  }
  return rounded;
}

// Products over panels that were interleaved on the device, m rows of x.
std::vector<float> RunLinear(const Matrix& matrix, const std::vector<uint8_t>& x, const std::vector<float>& bias, int m,
                             bool accumulate, const std::vector<float>& y) {
  const int n = static_cast<int>(matrix.packed.n());
  const cuda::Queue queue = cuda::MakeQueue(nullptr);
  const DeviceArray<uint8_t> panels(matrix.panels), activations(x);
  const DeviceArray<float> biases(bias), out(y);
  cuda::LaunchInterleave(queue, matrix.packed.type(), panels.data(), matrix.packed.n_panels(), matrix.packed.k());
  cuda::LinearArgs args{activations.data(), m, matrix.packed.k(), 1, {}, accumulate};
  args.projections[0] = {panels.data(), n, out.data(), n, bias.empty() ? nullptr : biases.data()};
  cuda::LaunchLinear(queue, matrix.packed.type(), args);
  return out.Get();
}

}  // namespace

TEST_CASE("interleaving a panel keeps every byte, and on the device does what it does on the host") {
  std::mt19937 rng(1);
  const bool has_gpu = HasGpu();
  for (const DType type : kTypes) {
    CAPTURE(Info(type).name);
    const Matrix matrix(type, 48, 768, rng);
    std::vector<uint8_t> host = matrix.panels;
    cuda::InterleaveOnHost(type, host.data(), 3, 768);
    CHECK(host != matrix.panels);
    if (type == DType::kQ4_1 || type == DType::kQ4_K) {  // the others change bytes
      std::vector<uint8_t> a = host, b = matrix.panels;
      std::ranges::sort(a);
      std::ranges::sort(b);
      CHECK(a == b);
    }
    if (!has_gpu) continue;
    const DeviceArray<uint8_t> device(matrix.panels);
    cuda::LaunchInterleave(cuda::MakeQueue(nullptr), type, device.data(), 3, 768);
    CHECK(device.Get() == host);
  }
}

TEST_CASE("linear: every type equals the reference over random shapes with tails") {
  if (!HasGpu()) return;
  std::mt19937 rng(2);
  for (const DType type : kTypes)
    for (int i = 0; i < 24; ++i) {
      const int step = Info(type).block, m = i < 16 ? 1 + i % 8 : 9 + static_cast<int>(rng() % 120);
      const int k = step * (1 + static_cast<int>(rng() % (2048 / step))), n = 1 + static_cast<int>(rng() % 700);
      const bool accumulate = rng() % 2, with_bias = rng() % 2;
      CAPTURE(Info(type).name);
      CAPTURE(m);
      CAPTURE(n);
      CAPTURE(k);
      CAPTURE(accumulate);
      CAPTURE(with_bias);
      const Matrix matrix(type, n, k, rng);
      std::vector<uint8_t> activations;
      const std::vector<float> x = Rounded(RandomFloats(static_cast<size_t>(m) * k, rng), m, k, activations);
      const std::vector<float> bias = with_bias ? RandomFloats(n, rng) : std::vector<float>();
      const std::vector<float> y = RandomFloats(static_cast<size_t>(m) * n, rng);
      std::vector<float> expected = y;
      cuda::LinearReference(matrix.weights.data(), x.data(), with_bias ? bias.data() : nullptr, m, n, k, accumulate,
                            expected.data());
      CHECK(RelativeError(RunLinear(matrix, activations, bias, m, accumulate, y), expected) < 2e-6);
    }
}

TEST_CASE("linear: a row of up to 8 has the same bits in any company") {
  if (!HasGpu()) return;
  std::mt19937 rng(3);
  for (const DType type : kTypes) {
    CAPTURE(Info(type).name);
    const int n = 100, k = 1024, m = 8;
    const Matrix matrix(type, n, k, rng);
    const std::vector<float> x = RandomFloats(m * k, rng), y(m * n);
    std::vector<uint8_t> all;
    Rounded(x, m, k, all);
    const std::vector<float> together = RunLinear(matrix, all, {}, m, false, y);
    for (int row = 0; row < m; ++row) {
      std::vector<uint8_t> one;
      Rounded({x.begin() + row * k, x.begin() + (row + 1) * k}, 1, k, one);
      const std::vector<float> alone = RunLinear(matrix, one, {}, 1, false, std::vector<float>(n));
      CHECK(std::memcmp(alone.data(), together.data() + row * n, n * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("linear: three projections of one input in one launch") {
  if (!HasGpu()) return;
  std::mt19937 rng(4);
  const int k = 512, m = 3, stride = 80;
  const Matrix a(DType::kQ4_0, 70, k, rng), b(DType::kQ4_0, 16, k, rng), c(DType::kQ4_0, 33, k, rng);
  const Matrix* matrices[] = {&a, &b, &c};
  std::vector<uint8_t> x;
  Rounded(RandomFloats(m * k, rng), m, k, x);
  const cuda::Queue queue = cuda::MakeQueue(nullptr);
  const DeviceArray<uint8_t> activations(x), panels_a(a.panels), panels_b(b.panels), panels_c(c.panels);
  const DeviceArray<float> out_a(m * stride), out_b(m * stride), out_c(m * stride);
  const DeviceArray<uint8_t>* panels[] = {&panels_a, &panels_b, &panels_c};
  const DeviceArray<float>* out[] = {&out_a, &out_b, &out_c};
  cuda::LinearArgs args{activations.data(), m, k, 3, {}, false};
  for (int i = 0; i < 3; ++i) {
    const PackedMatrix& packed = matrices[i]->packed;
    cuda::LaunchInterleave(queue, DType::kQ4_0, panels[i]->data(), packed.n_panels(), k);
    args.projections[i] = {panels[i]->data(), static_cast<int>(packed.n()), out[i]->data(), stride};
  }
  cuda::LaunchLinear(queue, DType::kQ4_0, args);
  for (int i = 0; i < 3; ++i) {
    const int n = static_cast<int>(matrices[i]->packed.n());
    const std::vector<float> alone = RunLinear(*matrices[i], x, {}, m, false, std::vector<float>(m * n));
    std::vector<float> together;
    for (int row = 0; row < m; ++row) {
      const std::vector<float> all = out[i]->Get();
      together.insert(together.end(), all.begin() + row * stride, all.begin() + row * stride + n);
    }
    CHECK(RelativeError(together, alone) < 1e-6);
  }
}

}  // namespace thermocline::test
