#include "gpu/cuda/cuda_device.h"

#include <algorithm>
#include <cstring>

#include "cpu/packed.h"
#include "gpu/cuda/linear.h"
#include "tests/cpu/random_weights.h"
#include "tests/gpu/cuda/device_array.h"

namespace thermocline::test {
namespace {

constexpr int64_t kBudget = int64_t{256} << 20;

// Rows from the host, times a matrix, back to the host: what a device does for the CPU, at its smallest.
struct Product {
  static constexpr int kN = 80, kK = 256, kMaxRows = 16;

  explicit Product(Device& device) : packed(DType::kQ8_0, kN, kK) {
    std::mt19937 rng(1);
    const std::vector<uint8_t> file = RandomWeights(DType::kQ8_0, kN, kK, rng);
    weights.resize(kN * kK);
    Dequantize(DType::kQ8_0, file.data(), kN * kK, weights.data());
    packed.PackPanels(file.data(), 0, packed.n_panels());
    matrix = device.Allocate(device.MatrixBytes(DType::kQ8_0, kN, kK), "a matrix");
    rows = device.Allocate(kMaxRows * (kK + kN) * 4, "rows");
    staging = device.AllocateStaging(kMaxRows * (kK + kN) * 4, "rows");
    w = {DType::kQ8_0, kN, kK, matrix.address()};
    device.UploadPanels(w, 0, 2, packed.panel(0));  // in two parts
    device.UploadPanels(w, 2, packed.n_panels(), packed.panel(2));
  }
  float* input() const { return staging.as<float>(); }
  float* output() const { return staging.as<float>() + kMaxRows * kK; }

  std::vector<DeviceOp> Ops() const {
    const DeviceRows x{rows.address(), kK, kK}, y{rows.address() + kMaxRows * kK * 4, kN, kN};
    std::vector<DeviceOp> ops(3);
    ops[0].kind = DeviceOpKind::kReceive;
    ops[0].out = x;
    ops[0].flag = 0;
    ops[0].host = {input(), kK};
    ops[1].kind = DeviceOpKind::kLinear;
    ops[1].in = x;
    ops[1].n_projections = 1;
    ops[1].projections[0] = {w, 0, y};
    ops[2].kind = DeviceOpKind::kSend;
    ops[2].in = y;
    ops[2].flag = 1;
    ops[2].host = {output(), kN};
    return ops;
  }

  PackedMatrix packed;
  std::vector<float> weights;
  DeviceBuffer matrix, rows;
  StagingBuffer staging;
  DeviceMatrix w;
};

const DeviceLimits kLimits{.max_rows = Product::kMaxRows, .max_spans = Product::kMaxRows, .max_pages = 1, .n_flags = 2};

// A step of rows at position 0 of a sequence each.
struct Step {
  Step(int n_rows, bool prompt) : positions(n_rows), flags(n_rows, prompt), wanted(n_rows), spans(n_rows) {
    for (int i = 0; i < n_rows; ++i) {
      wanted[i] = i;
      spans[i] = {i, 1, 0, {}};
    }
  }
  DeviceStep view() const { return {positions, flags, wanted, spans, 0}; }
  std::vector<int32_t> positions;
  std::vector<uint8_t> flags;
  std::vector<int32_t> wanted;
  std::vector<DeviceSpan> spans;
};

}  // namespace

TEST_CASE("CUDA device: memory within its budget, zeroed, and back") {
  if (!HasGpu()) return;
  const std::unique_ptr<Device> device = OpenCudaDevice(0, kBudget);
  const int64_t free = device->free_bytes();
  CHECK(free > kBudget / 2);
  CHECK(free <= kBudget);
  {
    const DeviceBuffer buffer = device->Allocate(free, "all of it");
    CHECK(buffer.address() % 256 == 0);
    CHECK(device->free_bytes() == 0);
    CHECK_THROWS_AS(device->Allocate(1, "one byte more"), DeviceOutOfMemory);
    std::vector<uint8_t> back(3 << 20, 1), sent(3 << 20);
    device->Download(back, buffer.address());
    CHECK(std::ranges::all_of(back, [](uint8_t b) { return b == 0; }));
    for (size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<uint8_t>(i * 7 >> 3);
    device->Upload(buffer.address() + 1024, sent);
    device->Download(back, buffer.address() + 1024);
    CHECK(back == sent);
  }
  CHECK(device->free_bytes() == free);
  CHECK(device->LostBecause() == "");
}

TEST_CASE("CUDA device: steps meet the host at flags, recorded or not") {
  if (!HasGpu()) return;
  const std::unique_ptr<Device> device = OpenCudaDevice(0, kBudget);
  const Product product(*device);
  device->SetPrograms({product.Ops()}, kLimits);
  std::mt19937 rng(2);
  for (const bool prompt : {false, true})
    for (const int n_rows : {1, 2, 8, 3, 16, 9}) {
      CAPTURE(prompt);
      CAPTURE(n_rows);
      const std::vector<float> x = RandomFloats(n_rows * Product::kK, rng);
      std::vector<float> expected(n_rows * Product::kN);
      cuda::LinearReference(product.weights.data(), x.data(), nullptr, n_rows, Product::kN, Product::kK, false,
                            expected.data());
      const Step step(n_rows, prompt);
      device->Begin(step.view());
      std::ranges::copy(x, product.input());
      device->Raise(0);
      REQUIRE(device->Await(1));
      const std::vector<float> y(product.output(), product.output() + expected.size());
      CHECK(RelativeError(y, expected) < 1e-4);  // rows were rounded to 16 bits
      CHECK(device->Finish());
    }
}

TEST_CASE("CUDA device: weights that come while it computes multiply as those that are there") {
  if (!HasGpu()) return;
  constexpr int kPieces = 200;  // more launches than a driver takes ahead
  const std::unique_ptr<Device> device = OpenCudaDevice(0, kBudget);
  const Product product(*device);
  const int64_t bytes = PackedBytes(DType::kQ8_0, Product::kN, Product::kK);
  const DeviceBuffer buffers = device->Allocate(2 * bytes, "buffers");
  const StagingBuffer staging = device->AllocateStaging(2 * bytes, "panels");
  // The same product again and again, of which the first does not add to what was there.
  const std::vector<DeviceOp> plain = product.Ops();
  std::vector<DeviceOp> ops = {plain[0]};
  for (int i = 0; i < kPieces; ++i) {
    DeviceOp receive, multiply = plain[1];
    receive.kind = DeviceOpKind::kReceivePanels;
    receive.n_projections = 1;
    receive.projections[0].w = {DType::kQ8_0, Product::kN, Product::kK, buffers.address() + i % 2 * bytes};
    receive.panels = staging.as<uint8_t>() + i % 2 * bytes;
    receive.flag = 2 + 2 * i;
    receive.taken = 3 + 2 * i;
    multiply.projections[0].w = receive.projections[0].w;
    multiply.accumulate = i > 0;
    ops.push_back(receive);
    ops.push_back(multiply);
  }
  ops.push_back(plain[2]);
  DeviceLimits limits = kLimits;
  limits.n_flags = 2 + 2 * kPieces;
  device->SetPrograms({plain, ops}, limits);
  std::mt19937 rng(3);
  for (const int n_rows : {16, 9}) {
    const std::vector<float> x = RandomFloats(n_rows * Product::kK, rng);
    std::vector<float> expected(n_rows * Product::kN);
    cuda::LinearReference(product.weights.data(), x.data(), nullptr, n_rows, Product::kN, Product::kK, false,
                          expected.data());
    for (float& y : expected) y *= kPieces / 2;
    const Step step(n_rows, true);
    DeviceStep view = step.view();
    view.program = 1;
    for (const bool finishes : {true, false, true}) {
      device->Begin(view);
      std::ranges::copy(x, product.input());
      device->Raise(0);
      for (int i = 0; i < (finishes ? kPieces : kPieces / 2); ++i) {
        if (i >= 2) REQUIRE(device->Await(3 + 2 * (i - 2)));
        // Every other one is zeros.
        uint8_t* panels = staging.as<uint8_t>() + i % 2 * bytes;
        if (i / 2 % 2 == 0)
          std::memcpy(panels, product.packed.panel(0), bytes);
        else
          std::memset(panels, 0, bytes);
        device->Raise(2 + 2 * i);
      }
      if (!finishes) device->Abandon();
      CHECK(device->Await(1) == finishes);
      const std::vector<float> y(product.output(), product.output() + expected.size());
      CHECK(device->Finish());
      if (finishes) CHECK(RelativeError(y, expected) < 1e-4);
    }
  }
}

TEST_CASE("CUDA device: a step that is given up ends, and the next is right") {
  if (!HasGpu()) return;
  const std::unique_ptr<Device> device = OpenCudaDevice(0, kBudget);
  const Product product(*device);
  device->SetPrograms({product.Ops()}, kLimits);
  const Step step(1, false);
  std::vector<float> y[2];
  for (int i = 0; i < 2; ++i) {
    device->Begin(step.view());
    device->Abandon();
    CHECK(!device->Await(1));
    CHECK(device->Finish());
    device->Begin(step.view());
    std::fill_n(product.input(), Product::kK, 1.f);
    device->Raise(0);
    REQUIRE(device->Await(1));
    y[i].assign(product.output(), product.output() + Product::kN);
    CHECK(device->Finish());
  }
  CHECK(y[0] == y[1]);
}

TEST_CASE("CUDA device: refuses by name what it has no kernel for, and takes another program then") {
  if (!HasGpu()) return;
  const std::unique_ptr<Device> device = OpenCudaDevice(0, kBudget);
  const Product product(*device);
  const int64_t free = device->free_bytes();
  CHECK(!device->Supports(DType::kF16));
  std::vector<DeviceOp> ops = product.Ops();
  ops[1].projections[0].w.type = DType::kF16;
  CHECK_THROWS_WITH_AS(device->SetPrograms({ops}, kLimits), doctest::Contains("F16"), DeviceError);
  ops = product.Ops();
  ops[1].kind = DeviceOpKind::kStoreKv;
  ops[1].kv_types = {DType::kQ8_0, DType::kQ8_0};
  CHECK_THROWS_WITH_AS(device->SetPrograms({ops}, kLimits), doctest::Contains("-ctk"), DeviceError);
  CHECK(device->free_bytes() == free);
  device->SetPrograms({product.Ops()}, kLimits);
}

TEST_CASE("CUDA device: a GPU that is not there") {
  CHECK_THROWS_WITH_AS(OpenCudaDevice(1000, kBudget), doctest::Contains("--gpu"), DeviceError);
}

}  // namespace thermocline::test
