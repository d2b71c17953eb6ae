// The contract of gpu/device.h, as the emulated device keeps it.
#include "gpu/emulated_device.h"

#include <doctest/doctest.h>

#include <chrono>
#include <cstring>
#include <thread>

namespace thermocline {
namespace {

using Clock = std::chrono::steady_clock;

// Knows kAdd alone.
class Adder final : public DeviceOpExecutor {
 public:
  bool Supports(DType type) const override { return type == DType::kQ4_0; }
  void Prepare(std::span<const DeviceOp>, const DeviceLimits&) override {}
  void Run(const DeviceOp& op, const DeviceStep& step) override {
    for (size_t row = 0; row < step.positions.size(); ++row)
      for (int i = 0; i < op.out.width; ++i)
        reinterpret_cast<float*>(op.out.data)[row * op.out.stride + i] +=
            reinterpret_cast<const float*>(op.in.data)[row * op.in.stride + i];
  }
};

// Adds what the host sends to a sum, row by row, and sends the sum back.
struct Summing {
  static constexpr int kWidth = 20, kStride = 32, kMaxRows = 3;

  explicit Summing(EmulatedDeviceOptions options) : device(options, std::make_unique<Adder>()) {
    constexpr int64_t kBytes = int64_t{kMaxRows} * kStride * sizeof(float);
    in = device.Allocate(kBytes, "input");
    sum = device.Allocate(kBytes, "sum");
    host = device.AllocateStaging(2 * kBytes, "rows");
    const DeviceRows in_rows{in.address(), kStride, kWidth}, sum_rows{sum.address(), kStride, kWidth};
    DeviceOp receive{.kind = DeviceOpKind::kReceive, .out = in_rows, .flag = 0, .host = {host.as<float>(), kStride}};
    DeviceOp add{.kind = DeviceOpKind::kAdd, .in = in_rows, .out = sum_rows};
    DeviceOp send{.kind = DeviceOpKind::kSend, .in = sum_rows, .flag = 1, .host = {Back(0), kStride}};
    device.SetPrograms({{receive, add, send}}, {.max_rows = kMaxRows, .max_spans = 1, .max_pages = 1, .n_flags = 2});
  }

  float* Back(int row) { return host.as<float>() + (kMaxRows + row) * kStride; }
  void Begin(int n_rows) {
    device.Begin({.positions = {positions, static_cast<size_t>(n_rows)},
                  .prompt = {prompt, static_cast<size_t>(n_rows)},
                  .wanted = {},
                  .spans = {}});
  }
  // False where the device did not answer.
  bool Step(int n_rows, float value) {
    Begin(n_rows);
    for (int row = 0; row < n_rows; ++row) std::fill_n(host.as<float>() + row * kStride, kWidth, value);
    device.Raise(0);
    const bool came = device.Await(1);
    return device.Finish() && came;
  }

  const int32_t positions[kMaxRows] = {0, 1, 2};
  const uint8_t prompt[kMaxRows] = {};
  EmulatedDevice device;
  DeviceBuffer in, sum;
  StagingBuffer host;
};

constexpr EmulatedDeviceOptions kRoomy{.budget_bytes = 1 << 20};

}  // namespace

TEST_CASE("device: rows go there and come back, step after step, for any number of rows") {
  Summing summing(kRoomy);
  float expected[Summing::kMaxRows] = {};
  for (const int n_rows : {1, 3, 2, 3, 1}) {
    REQUIRE(summing.Step(n_rows, 1.5f));
    for (int row = 0; row < n_rows; ++row) {
      expected[row] += 1.5f;
      for (int i = 0; i < Summing::kWidth; ++i) CHECK(summing.Back(row)[i] == expected[row]);
    }
  }
  CHECK(summing.device.counts().launches == 5 * 3);
}

TEST_CASE("device: the budget holds, and what is given back can be had again") {
  EmulatedDevice device({.budget_bytes = 1000}, std::make_unique<Adder>());
  CHECK(device.Supports(DType::kQ4_0));
  CHECK_FALSE(device.Supports(DType::kF16));
  DeviceBuffer first = device.Allocate(600, "a test");
  CHECK(first.address() % 256 == 0);
  CHECK(device.free_bytes() == 400);
  CHECK_THROWS_AS(device.Allocate(401, "a test"), DeviceOutOfMemory);
  first = {};
  CHECK(device.free_bytes() == 1000);
  std::vector<uint8_t> bytes(1000, 7), back(1000, 1);
  const DeviceBuffer all = device.Allocate(1000, "a test");
  device.Download(back, all.address());
  CHECK(back == std::vector<uint8_t>(1000));
  device.Upload(all.address(), bytes);
  device.Download(back, all.address());
  CHECK(back == bytes);
}

TEST_CASE("device: a host that gives up is not waited for") {
  Summing summing(kRoomy);
  summing.Begin(2);
  std::thread waiter([&] { CHECK_FALSE(summing.device.Await(1)); });
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  summing.device.Abandon();
  CHECK(summing.device.Finish());
  waiter.join();
  CHECK(summing.Step(1, 1.f));
}

TEST_CASE("device: lost, it says why, and every call fails without hanging") {
  Summing summing(kRoomy);
  summing.Begin(1);
  std::thread waiter([&] { CHECK_FALSE(summing.device.Await(1)); });
  summing.device.Lose();
  waiter.join();
  CHECK_FALSE(summing.device.Finish());
  CHECK(summing.device.LostBecause() != "");
  CHECK_THROWS_AS(summing.Begin(1), DeviceLost);
  CHECK_THROWS_AS(summing.device.Allocate(1, "a test"), DeviceLost);
}

TEST_CASE("device: what is told to fail does, once") {
  EmulatedDevice device({.budget_bytes = 1000, .failures = {.allocation = 2}}, std::make_unique<Adder>());
  const DeviceBuffer first = device.Allocate(10, "a test");
  CHECK_THROWS_AS(device.AllocateStaging(10, "a test"), DeviceOutOfMemory);
  CHECK(device.LostBecause() == "");
  const DeviceBuffer third = device.Allocate(10, "a test");

  for (int64_t n = 1; n <= 6; ++n) {
    Summing summing(kRoomy);
    summing.device.Inject({.launch = n});
    CHECK(summing.Step(1, 1.f) == (n > 3));
    if (n > 3) CHECK(summing.Step(1, 1.f) == (n > 6));
  }
  Summing summing(kRoomy);
  summing.device.Inject({.upload = 1});
  CHECK_THROWS_AS(summing.Begin(1), DeviceLost);
}

TEST_CASE("device: it is no faster than it is told to be") {
  constexpr int64_t kNs = 2'000'000;
  Summing slow({.budget_bytes = 1 << 20, .link_bytes_per_s = 4e4, .launch_ns = kNs});
  const auto begin = Clock::now();
  CHECK(slow.Step(1, 1.f));
  // Three ops, two of which move 80 bytes at 2 ms each.
  CHECK(Clock::now() - begin >= std::chrono::nanoseconds(3 * kNs + 2 * 2'000'000));
}

TEST_CASE("device: panels come through a buffer, each when its flag is up, in the program that was named") {
  constexpr int kPieces = 3;
  constexpr int64_t kN = 32, kK = 64;
  EmulatedDevice device(kRoomy, std::make_unique<Adder>());
  const int64_t bytes = PackedBytes(DType::kQ4_0, kN, kK);
  const DeviceBuffer buffer = device.Allocate(bytes, "a buffer");
  const StagingBuffer staging = device.AllocateStaging(bytes, "panels");
  std::vector<DeviceOp> ops(kPieces);
  for (int i = 0; i < kPieces; ++i) {
    ops[i] = {.kind = DeviceOpKind::kReceivePanels, .n_projections = 1, .panels = staging.as<uint8_t>()};
    ops[i].flag = 2 * i;
    ops[i].taken = 2 * i + 1;
    ops[i].projections[0].w = {DType::kQ4_0, kN, kK, buffer.address()};
  }
  device.SetPrograms({{}, ops}, {.max_rows = 1, .max_spans = 1, .max_pages = 1, .n_flags = 2 * kPieces});
  std::vector<uint8_t> sent(static_cast<size_t>(bytes)), came(sent);
  const int32_t position = 0;
  const uint8_t prompt = 1;
  DeviceStep step{.positions = {&position, 1}, .prompt = {&prompt, 1}, .wanted = {}, .spans = {}};
  device.Begin(step);
  CHECK(device.Finish());  // the empty one
  CHECK(device.counts().launches == 0);
  step.program = 1;
  for (int round = 1; round <= 2; ++round) {
    device.Begin(step);
    for (int i = 0; i < kPieces; ++i) {
      std::ranges::fill(sent, static_cast<uint8_t>(7 * i + round));
      std::ranges::copy(sent, staging.as<uint8_t>());
      device.Raise(2 * i);
      REQUIRE(device.Await(2 * i + 1));
    }
    CHECK(device.Finish());
    device.Download(came, buffer.address());
    CHECK(came == sent);
  }
  device.Begin(step);
  std::thread waiter([&] { CHECK_FALSE(device.Await(1)); });
  device.Abandon();
  CHECK(device.Finish());
  waiter.join();
}

}  // namespace thermocline
