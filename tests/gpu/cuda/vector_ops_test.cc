#include "gpu/cuda/vector_ops.h"

#include "tests/gpu/cuda/device_array.h"

namespace thermocline::test {
namespace {

constexpr int kWidths[] = {1, 31, 32, 100, 576, 1024, 4096, 5120, 16384};

// large_group: of every other row.
std::vector<uint8_t> QuantizedRows(const std::vector<float>& x, int n_rows, int n, int64_t k, float large_group) {
  std::vector<uint8_t> out(cuda::ActivationBytes(n_rows, k));
  for (int row = 0; row < n_rows; ++row)
    cuda::QuantizeReference(x.data() + static_cast<int64_t>(row) * n, n, k, row % 2 == 0 ? large_group : -1,
                            row % cuda::kTileRows, out.data() + row / cuda::kTileRows * cuda::ActivationTileBytes(k));
  return out;
}

}  // namespace

TEST_CASE("norm: RMS and layer norms, gathered, accumulated, rounded besides") {
  if (!HasGpu()) return;
  std::mt19937 rng(1);
  for (const int n : kWidths)
    for (const int kind : {0, 1, 2}) {  // RMS, RMS accumulated, layer norm
      CAPTURE(n);
      CAPTURE(kind);
      const int n_rows = 1 + static_cast<int>(rng() % 11);
      const std::vector<float> x = RandomFloats(n_rows * n, rng, 3), weight = RandomFloats(n, rng);
      const std::vector<float> bias = RandomFloats(n, rng), old = RandomFloats(n_rows * n, rng);
      std::vector<int32_t> gather(n_rows);
      for (int& row : gather) row = static_cast<int>(rng() % n_rows);
      std::vector<float> expected = old;
      for (int row = 0; row < n_rows; ++row)
        cuda::NormReference(x.data() + gather[row] * n, weight.data(), kind == 2 ? bias.data() : nullptr, 1e-5f, n,
                            kind == 1, expected.data() + row * n);
      const DeviceArray<float> device_x(x), device_weight(weight), device_bias(bias), out(old);
      const DeviceArray<int32_t> device_gather(gather);
      const DeviceArray<uint8_t> quantized(std::vector<uint8_t>(cuda::ActivationBytes(n_rows, n)));
      cuda::NormArgs args;
      args.x = {device_x.data(), n};
      args.gather = device_gather.data();
      args.weight = device_weight.data();
      args.bias = kind == 2 ? device_bias.data() : nullptr;
      args.eps = 1e-5f;
      args.n = n;
      args.accumulate = kind == 1;
      args.out = {out.data(), n};
      args.quantized = quantized.data();
      cuda::LaunchNorm(cuda::MakeQueue(nullptr), args, n_rows);
      const std::vector<float> actual = out.Get();
      CHECK(RelativeError(actual, expected) < 1e-6);
      CHECK(quantized.Get() == QuantizedRows(actual, n_rows, n, n, false));
    }
}

TEST_CASE("head norm, rope table and rope") {
  if (!HasGpu()) return;
  std::mt19937 rng(2);
  const cuda::Queue queue = cuda::MakeQueue(nullptr);
  for (const int head_dim : {32, 64, 96, 128, 256})
    for (const RopeKind kind : {RopeKind::kInterleaved, RopeKind::kHalves}) {
      CAPTURE(head_dim);
      const int n_heads = 3, n_rows = 5, width = n_heads * head_dim, n_dims = head_dim / 4 * 2;
      const std::vector<float> x = RandomFloats(n_rows * width, rng), weight = RandomFloats(head_dim, rng);
      const std::vector<int32_t> position = {0, 1, 17, 4095, 131071};
      std::vector<double> frequency(n_dims / 2);
      for (size_t i = 0; i < frequency.size(); ++i) frequency[i] = std::pow(10000., -2. * i / n_dims);
      std::vector<float> expected = x, table(n_rows * n_dims);
      for (int row = 0; row < n_rows; ++row) {
        for (int i = 0; i < n_dims / 2; ++i) {
          table[row * n_dims + 2 * i] = static_cast<float>(std::cos(position[row] * frequency[i]));
          table[row * n_dims + 2 * i + 1] = static_cast<float>(std::sin(position[row] * frequency[i]));
        }
        for (int h = 0; h < n_heads; ++h) {
          float* head = expected.data() + row * width + h * head_dim;
          cuda::NormReference(head, weight.data(), nullptr, 1e-6f, head_dim, false, head);
          cuda::RopeReference(head, table.data() + row * n_dims, n_dims, kind);
        }
      }
      const DeviceArray<float> device_x(x), device_weight(weight), device_table(table.size());
      const DeviceArray<double> device_frequency(frequency);
      const DeviceArray<int32_t> device_position(position);
      cuda::LaunchHeadNorm(queue, {device_x.data(), width}, device_weight.data(), 1e-6f, n_heads, head_dim, n_rows);
      cuda::LaunchRopeTable(queue, device_position.data(), device_frequency.data(), n_dims / 2,
                            {device_table.data(), n_dims}, n_rows);
      cuda::LaunchRope(queue, {device_x.data(), width}, {device_table.data(), n_dims}, kind, n_dims, n_heads, head_dim,
                       n_rows);
      CHECK(RelativeError(device_table.Get(), table) < 1e-7);
      CHECK(RelativeError(device_x.Get(), expected) < 1e-6);
    }
}

TEST_CASE("activations, gated or not, rounded besides; sums") {
  if (!HasGpu()) return;
  std::mt19937 rng(3);
  const cuda::Queue queue = cuda::MakeQueue(nullptr);
  for (const int n : kWidths)
    for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh, Activation::kRelu})
      for (const bool gated : {false, true}) {
        CAPTURE(n);
        CAPTURE(Name(activation));
        const int n_rows = 1 + static_cast<int>(rng() % 10);
        const std::vector<float> gate = RandomFloats(n_rows * n, rng, 4), up = RandomFloats(n_rows * n, rng);
        std::vector<float> expected(n_rows * n), sum(n_rows * n);
        for (size_t i = 0; i < expected.size(); ++i) {
          expected[i] = cuda::ActReference(gate[i], activation) * (gated ? up[i] : 1);
          sum[i] = up[i] + expected[i];
        }
        const DeviceArray<float> device_gate(gate), device_up(up);
        const DeviceArray<uint8_t> quantized(std::vector<uint8_t>(cuda::ActivationBytes(n_rows, n)));
        const cuda::ConstRows factor = gated ? cuda::ConstRows(device_up.data(), n) : cuda::ConstRows();
        cuda::LaunchAct(queue, {device_gate.data(), n}, factor, activation, n, {device_gate.data(), n},
                        quantized.data(), n_rows);
        cuda::LaunchAdd(queue, {device_gate.data(), n}, n, {device_up.data(), n}, n_rows);
        const std::vector<float> actual = device_gate.Get();
        CHECK(RelativeError(actual, expected) < 1e-6);
        CHECK(quantized.Get() == QuantizedRows(actual, n_rows, n, n, false));
        CHECK(RelativeError(device_up.Get(), sum) < 1e-6);
      }
}

TEST_CASE("firings: of rows of the decode class, added to what was counted before") {
  if (!HasGpu()) return;
  std::mt19937 rng(5);
  const cuda::Queue queue = cuda::MakeQueue(nullptr);
  for (const int n : kWidths)
    for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh, Activation::kRelu}) {
      CAPTURE(n);
      CAPTURE(Name(activation));
      const int n_rows = 1 + static_cast<int>(rng() % 20);
      const float level = activation == Activation::kRelu ? 0 : 0.125f;
      std::vector<float> gate = RandomFloats(n_rows * n, rng);
      gate[0] = NAN;
      std::vector<uint8_t> prompt(n_rows);
      for (uint8_t& p : prompt) p = rng() % 2;
      std::vector<uint32_t> expected(n);
      for (uint32_t& count : expected) count = 0xffffffff - rng() % 4;  // counts go round
      const DeviceArray<uint32_t> counts(expected);
      for (int row = 0; row < n_rows; ++row)
        for (int i = 0; i < n; ++i)
          expected[i] += !prompt[row] && !(std::abs(cuda::ActReference(gate[row * n + i], activation)) <= level);
      const DeviceArray<float> device_gate(gate), device_level(std::vector<float>{level});
      const DeviceArray<uint8_t> device_prompt(prompt);
      cuda::LaunchCountFirings(queue, {device_gate.data(), n}, activation, n, device_level.data(), device_prompt.data(),
                               counts.data(), n_rows);
      // Where rounding puts an activation on the other side of the level, it is one off.
      const std::vector<uint32_t> actual = counts.Get();
      int n_off = 0;
      for (int i = 0; i < n; ++i) {
        const auto difference = static_cast<int32_t>(actual[i] - expected[i]);
        CHECK(std::abs(difference) <= 1);
        n_off += difference != 0;
      }
      CHECK(n_off <= (activation == Activation::kRelu ? 0 : 1 + n / 1000));
    }
}

TEST_CASE("quantize: the reference's bits, also of odd values and where only large groups have a lo plane") {
  if (!HasGpu()) return;
  std::mt19937 rng(4);
  for (const int n : kWidths)
    for (const float large_group : {-1.f, 0.5f, 2.f}) {
      CAPTURE(n);
      CAPTURE(large_group);
      const int n_rows = 1 + static_cast<int>(rng() % 10);
      const int64_t k = n + static_cast<int64_t>(rng() % 300);
      std::vector<float> x = RandomFloats(n_rows * n, rng);
      for (size_t i = 0; i < x.size(); i += 3) x[i] *= 9;
      x[0] = NAN;
      x[x.size() / 2] = n % 2 ? INFINITY : -1e-38f;
      x.back() = 0;
      std::vector<uint8_t> flags(n_rows);
      for (int row = 0; row < n_rows; ++row) flags[row] = row % 2 == 0;
      const DeviceArray<float> device_x(x), limits(n_rows);
      const DeviceArray<uint8_t> device_flags(flags), out(std::vector<uint8_t>(cuda::ActivationBytes(n_rows, k)));
      const int lead = n > 64 ? static_cast<int>(rng() % 64) : 0;
      cuda::LaunchQuantize(cuda::MakeQueue(nullptr), {device_x.data(), n}, n, k,
                           {large_group, large_group < 0 ? nullptr : device_flags.data(), limits.data()}, out.data(),
                           n_rows, lead);
      for (int row = 0; row < n_rows; ++row) std::fill_n(x.begin() + row * n, lead, 0.f);
      CHECK(out.Get() == QuantizedRows(x, n_rows, n, k, large_group));
    }
}

}  // namespace thermocline::test
