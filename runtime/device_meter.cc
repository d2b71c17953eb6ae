#include "runtime/device_meter.h"

#include <algorithm>
#include <chrono>

#include "models/check.h"

namespace thermocline {
namespace {

using Clock = std::chrono::steady_clock;

// Matrices as those of a layer of a model worth splitting; no weight is brought: zeros are read as fast.
constexpr DType kType = DType::kQ4_0;
constexpr int kWidth = 4096, kOutputs = 4 * kWidth;
constexpr int kAdds = 256, kWays = 32, kRuns = 9;
constexpr int kWideWidth = 1 << 20;  // floats that show how fast the way between the memories is

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

double Median(std::vector<double>& values) {
  std::nth_element(values.begin(), values.begin() + std::ssize(values) / 2, values.end());
  return values[values.size() / 2];
}

// A program in stretches, each of which begins when the host says so and says when it ends.
class Meter {
 public:
  explicit Meter(Device& device) : device_(device) {
    const int64_t bytes = std::min(kMaxDeviceMeterBytes, device.free_bytes() / 2);
    const int64_t matrix_bytes = device.MatrixBytes(kType, kOutputs, kWidth);
    n_matrices_ = std::max<int64_t>(1, bytes / matrix_bytes);
    weights_ = device.Allocate(n_matrices_ * matrix_bytes, "measuring");
    rows_ = device.Allocate(int64_t{4} * (3 * kWidth + kOutputs + kWideWidth), "measuring");
    staging_ = device.AllocateStaging(int64_t{4} * kWideWidth, "measuring");
    const DeviceRows x = Rows(0, kWidth), normed = Rows(kWidth, kWidth), scale = Rows(2 * kWidth, kWidth),
                     y = Rows(3 * kWidth, kOutputs), wide = Rows(3 * kWidth + kOutputs, kWideWidth);
    std::vector<DeviceOp> ops;
    const auto stretch = [&](const DeviceRows& passed, int width, const auto& between) {
      DeviceRows few = passed;
      few.width = width;
      ops.push_back({.kind = DeviceOpKind::kReceive, .out = few, .flag = n_flags_++, .host = Host()});
      between();
      ops.push_back({.kind = DeviceOpKind::kSend, .in = few, .flag = n_flags_++, .host = Host()});
    };
    stretch(y, kFew, [&] {
      for (int64_t i = 0; i < n_matrices_; ++i) {
        // As in a layer: what is multiplied was normed before, which a device may fuse.
        ops.push_back({.kind = DeviceOpKind::kNorm, .in = x, .out = normed, .vector = scale.data, .eps = 1e-5f});
        DeviceOp op{.kind = DeviceOpKind::kLinear, .in = normed, .n_projections = 1};
        op.projections[0] = {{kType, kOutputs, kWidth, weights_.address() + i * matrix_bytes}, 0, y};
        ops.push_back(op);
      }
    });
    stretch(y, kFew, [&] {
      for (int i = 0; i < kAdds; ++i) ops.push_back({.kind = DeviceOpKind::kAdd, .in = x, .out = normed});
    });
    for (int i = 0; i < kWays; ++i) stretch(y, kFew, [] {});
    stretch(wide, kWideWidth, [] {});
    std::vector<std::vector<DeviceOp>> programs;
    programs.push_back(std::move(ops));
    device.SetPrograms(std::move(programs), {.max_rows = 1, .max_spans = 1, .max_pages = 1, .n_flags = n_flags_});
  }

  DeviceRates Measure() {
    std::vector<double> products, adds, way, wide;
    for (int i = 0; i < kRuns; ++i) {
      Begin();
      products.push_back(Next());
      adds.push_back(Next());
      for (int j = 0; j < kWays; ++j) way.push_back(Next() / 2);
      wide.push_back(Next());
      if (!device_.Finish()) throw DeviceLost("{}", device_.LostBecause());
    }
    DeviceRates rates;
    rates.transfer_s = Median(way);
    const auto beyond_the_ways = [&](std::vector<double>& seconds) {
      return std::max(kLeastSeconds, Median(seconds) - 2 * rates.transfer_s);
    };
    rates.launch_s = beyond_the_ways(adds) / kAdds;
    rates.bytes_per_s = static_cast<double>(weights_.bytes()) /
                        std::max(kLeastSeconds, beyond_the_ways(products) - 2 * n_matrices_ * rates.launch_s);
    rates.transfer_bytes_per_s = 2.0 * 4 * kWideWidth / beyond_the_ways(wide);
    return rates;
  }

 private:
  static constexpr int kFew = 16;
  static constexpr double kLeastSeconds = 1e-9;  // where nothing can be told from the way

  DeviceRows Rows(int64_t first, int width) const {
    return {rows_.address() + first * static_cast<int64_t>(sizeof(float)), width, width};
  }
  HostRows Host() const { return {staging_.as<float>(), kWideWidth}; }

  void Begin() {
    flag_ = 0;
    constexpr int32_t kPosition = 0, kWanted = 0;
    constexpr uint8_t kPrompt = 0;
    const DeviceSpan span{0, 1, 0, {}};
    device_.Begin({{&kPosition, 1}, {&kPrompt, 1}, {&kWanted, 1}, {&span, 1}});
  }

  // Seconds of the next stretch.
  double Next() {
    const Clock::time_point start = Clock::now();
    device_.Raise(flag_);
    if (!device_.Await(flag_ + 1)) throw DeviceLost("{}", device_.LostBecause());
    flag_ += 2;
    return SecondsSince(start);
  }

  Device& device_;
  DeviceBuffer weights_, rows_;
  StagingBuffer staging_;
  int64_t n_matrices_ = 0;
  int n_flags_ = 0, flag_ = 0;
};

}  // namespace

DeviceRates MeasureDevice(Device& device) { return Meter(device).Measure(); }

}  // namespace thermocline
