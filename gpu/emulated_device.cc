#include "gpu/emulated_device.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <new>
#include <thread>

#include "models/check.h"
#include "models/packed_format.h"

namespace thermocline {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::align_val_t kAlignment{256};
constexpr int kSpins = 4096;  // of a flag, before whoever waits for it gives its time slice away

// What an op reads besides activations.
int64_t WeightBytes(const DeviceOp& op) {
  int64_t bytes = 0;
  for (int i = 0; i < op.n_projections; ++i)
    bytes += PackedBytes(op.projections[i].w.type, op.projections[i].w.n, op.projections[i].w.k);
  return bytes;
}

// Panels from `begin` on, up to the last or to `end`.
void CopyPanels(const DeviceMatrix& to, int64_t begin, int64_t end, const uint8_t* packed) {
  const int64_t per_panel =
      FindPackedFormat(to.type) ? PackedBytes(to.type, kPanelRows, to.k) : kPanelRows * PackedStride(to.type, to.k);
  const int64_t last = std::min(end * per_panel, PackedBytes(to.type, to.n, to.k));
  std::memcpy(reinterpret_cast<uint8_t*>(to.data) + begin * per_panel, packed, last - begin * per_panel);
}

}  // namespace

struct EmulatedDevice::Impl {
  Impl(const EmulatedDeviceOptions& options, std::unique_ptr<DeviceOpExecutor> executor)
      : options(options), executor(std::move(executor)), failures(options.failures) {}

  void Serve();  // the queue's thread
  void RunProgram();
  void RunOp(const DeviceOp& op);
  void ReceivePanels(const DeviceOp& op);
  bool AwaitFlag(int flag, const std::atomic<bool>& abandoned) const;
  void Copy(const DeviceStep& from);
  void Lose(const char* because);
  void CheckAlive() const;
  // Throws where the failure that was asked for is due.
  void CountAllocation(int64_t bytes, const char* what);
  void CountUpload();
  void* Take(int64_t bytes, const char* what);

  const EmulatedDeviceOptions options;
  const std::unique_ptr<DeviceOpExecutor> executor;
  InjectedFailures failures;
  DeviceCounts counts, counts_at_injection;
  mutable std::mutex mutex;  // of what stands above and below, but for atomics and the program
  std::condition_variable changed;
  bool running = false, leaving = false;
  const char* lost_because = nullptr;
  std::atomic<bool> lost = false, abandoned = false;

  std::vector<std::vector<DeviceOp>> programs;
  std::unique_ptr<std::atomic<bool>[]> flags;
  int n_flags = 0;

  // The step at hand, in memory of the device's own.
  std::vector<int32_t> positions, wanted;
  std::vector<uint8_t> prompt;
  std::vector<DeviceSpan> spans;
  std::vector<DeviceAddress> pages;
  int max_pages = 0;
  DeviceStep step;

  std::thread queue;
};

EmulatedDevice::EmulatedDevice(const EmulatedDeviceOptions& options, std::unique_ptr<DeviceOpExecutor> executor)
    : impl_(std::make_unique<Impl>(options, std::move(executor))) {
  impl_->queue = std::thread([impl = impl_.get()] { impl->Serve(); });
}

EmulatedDevice::~EmulatedDevice() {
  Abandon();
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->leaving = true;
  }
  impl_->changed.notify_all();
  impl_->queue.join();
}

void EmulatedDevice::Impl::Lose(const char* because) {
  {
    const std::lock_guard lock(mutex);
    if (!lost_because) lost_because = because;
    lost = true;
  }
  changed.notify_all();
}

void EmulatedDevice::Impl::CheckAlive() const {
  if (lost) throw DeviceLost("the emulated device is lost: {}", lost_because);
}

void EmulatedDevice::Impl::CountAllocation(int64_t bytes, const char* what) {
  CheckAlive();
  const std::lock_guard lock(mutex);
  if (++counts.allocations - counts_at_injection.allocations == failures.allocation)
    throw DeviceOutOfMemory("the emulated device has no {} bytes for {}: it was told to fail", bytes, what);
}

void EmulatedDevice::Impl::CountUpload() {
  CheckAlive();
  bool fails;
  {
    const std::lock_guard lock(mutex);
    fails = ++counts.uploads - counts_at_injection.uploads == failures.upload;
  }
  if (!fails) return;
  Lose("an upload was told to fail");
  CheckAlive();
}

void* EmulatedDevice::Impl::Take(int64_t bytes, const char* what) {
  void* memory = ::operator new(static_cast<size_t>(bytes), kAlignment, std::nothrow);
  if (!memory) throw DeviceOutOfMemory("this machine has no {} bytes for {} of the emulated device", bytes, what);
  std::memset(memory, 0, static_cast<size_t>(bytes));
  return memory;
}

DeviceAddress EmulatedDevice::AllocateBytes(int64_t bytes, const char* what) {
  impl_->CountAllocation(bytes, what);
  if (bytes > free_bytes())
    throw DeviceOutOfMemory("the device has no {} bytes for {}: {} are left of its budget", bytes, what, free_bytes());
  void* memory = impl_->Take(bytes, what);
  const std::lock_guard lock(impl_->mutex);
  impl_->counts.bytes_in_use += bytes;
  return reinterpret_cast<DeviceAddress>(memory);
}

void EmulatedDevice::FreeBytes(DeviceAddress address, int64_t bytes) noexcept {
  ::operator delete(reinterpret_cast<void*>(address), kAlignment);
  const std::lock_guard lock(impl_->mutex);
  impl_->counts.bytes_in_use -= bytes;
}

void* EmulatedDevice::AllocateStagingBytes(int64_t bytes, const char* what) {
  impl_->CountAllocation(bytes, what);
  void* memory = impl_->Take(bytes, what);
  const std::lock_guard lock(impl_->mutex);
  impl_->counts.staging_bytes_in_use += bytes;
  return memory;
}

void EmulatedDevice::FreeStagingBytes(void* data, int64_t bytes) noexcept {
  ::operator delete(data, kAlignment);
  const std::lock_guard lock(impl_->mutex);
  impl_->counts.staging_bytes_in_use -= bytes;
}

int64_t EmulatedDevice::free_bytes() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->options.budget_bytes - impl_->counts.bytes_in_use;
}

bool EmulatedDevice::Supports(DType type) const {
  return impl_->executor->Supports(type) && (!impl_->options.packed_only || FindPackedFormat(type));
}

bool EmulatedDevice::SupportsKv(KvTypes types) const { return !impl_->options.f16_kv_only || types == KvTypes{}; }

void EmulatedDevice::Upload(DeviceAddress to, std::span<const uint8_t> from) {
  impl_->CountUpload();
  std::memcpy(reinterpret_cast<void*>(to), from.data(), from.size());
}

void EmulatedDevice::Download(std::span<uint8_t> to, DeviceAddress from) {
  impl_->CheckAlive();
  std::memcpy(to.data(), reinterpret_cast<const void*>(from), to.size());
}

void EmulatedDevice::UploadPanels(const DeviceMatrix& to, int64_t begin, int64_t end, const uint8_t* packed) {
  impl_->CountUpload();
  CopyPanels(to, begin, end, packed);
}

void EmulatedDevice::SetPrograms(std::vector<std::vector<DeviceOp>> programs, const DeviceLimits& limits) {
  Impl& impl = *impl_;
  impl.CheckAlive();
  CHECK(impl.programs.empty());
  std::vector<DeviceOp> all;
  for (const std::vector<DeviceOp>& ops : programs) all.insert(all.end(), ops.begin(), ops.end());
  impl.executor->Prepare(all, limits);
  impl.programs = std::move(programs);
  impl.n_flags = limits.n_flags;
  impl.flags = std::make_unique<std::atomic<bool>[]>(limits.n_flags);
  impl.max_pages = limits.max_pages;
  impl.positions.reserve(limits.max_rows);
  impl.prompt.reserve(limits.max_rows);
  impl.wanted.reserve(limits.max_rows);
  impl.spans.reserve(limits.max_spans);
  impl.pages.reserve(int64_t{limits.max_spans} * kLayerKinds * limits.max_pages);
}

void EmulatedDevice::Impl::Copy(const DeviceStep& from) {
  CHECK(from.positions.size() <= positions.capacity() && from.spans.size() <= spans.capacity());
  positions.assign(from.positions.begin(), from.positions.end());
  prompt.assign(from.prompt.begin(), from.prompt.end());
  wanted.assign(from.wanted.begin(), from.wanted.end());
  spans.assign(from.spans.begin(), from.spans.end());
  pages.clear();
  for (DeviceSpan& span : spans) {
    const int n = (span.first_position + span.n_rows - 1) / kPageTokens + 1;
    CHECK(n <= max_pages);
    for (const DeviceAddress*& table : span.pages) {
      if (!table) continue;
      pages.insert(pages.end(), table, table + n);  // never moves: reserved
      table = pages.data() + pages.size() - n;
    }
  }
  step = {positions, prompt, wanted, spans, from.program};
}

void EmulatedDevice::Begin(const DeviceStep& step) {
  Impl& impl = *impl_;
  impl.CountUpload();
  {
    const std::lock_guard lock(impl.mutex);
    CHECK(!impl.running);
    impl.Copy(step);
    for (int i = 0; i < impl.n_flags; ++i) impl.flags[i].store(false, std::memory_order_relaxed);
    impl.abandoned = false;
    impl.running = true;
  }
  impl.changed.notify_all();
}

void EmulatedDevice::Raise(int flag) noexcept { impl_->flags[flag].store(true, std::memory_order_release); }

bool EmulatedDevice::Impl::AwaitFlag(int flag, const std::atomic<bool>& abandoned) const {
  for (int spins = 0; !flags[flag].load(std::memory_order_acquire); ++spins) {
    if (lost || abandoned) return false;
    if (spins >= kSpins) std::this_thread::yield();
  }
  return true;
}

bool EmulatedDevice::Await(int flag) noexcept { return impl_->AwaitFlag(flag, impl_->abandoned); }

bool EmulatedDevice::Finish() noexcept {
  std::unique_lock lock(impl_->mutex);
  impl_->changed.wait(lock, [this] { return !impl_->running; });
  return !impl_->lost;
}

void EmulatedDevice::Abandon() noexcept { impl_->abandoned = true; }
void EmulatedDevice::Lose() { impl_->Lose("it was told to"); }

void EmulatedDevice::Inject(const InjectedFailures& failures) {
  const std::lock_guard lock(impl_->mutex);
  impl_->failures = failures;
  impl_->counts_at_injection = impl_->counts;
}

DeviceCounts EmulatedDevice::counts() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->counts;
}

std::string EmulatedDevice::LostBecause() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->lost_because ? impl_->lost_because : "";
}

void EmulatedDevice::Impl::Serve() {
  std::unique_lock lock(mutex);
  for (;;) {
    changed.wait(lock, [this] { return running || leaving; });
    if (!running) return;
    lock.unlock();
    RunProgram();
    lock.lock();
    running = false;
    changed.notify_all();
  }
}

void EmulatedDevice::Impl::RunProgram() {
  for (const DeviceOp& op : programs[step.program]) {
    if (lost || abandoned) return;
    bool fails;
    {
      const std::lock_guard lock(mutex);
      fails = ++counts.launches - counts_at_injection.launches == failures.launch;
    }
    if (fails) return Lose("an op was told to fail");
    RunOp(op);
  }
}

void EmulatedDevice::Impl::ReceivePanels(const DeviceOp& op) {
  if (!AwaitFlag(op.flag, abandoned)) return;
  try {
    CountUpload();
  } catch (const DeviceLost&) {
    return;
  }
  const auto begin = Clock::now();
  const DeviceMatrix& w = op.projections[0].w;
  CopyPanels(w, 0, (w.n + kPanelRows - 1) / kPanelRows, op.panels);
  if (options.link_bytes_per_s > 0)
    std::this_thread::sleep_until(
        begin + std::chrono::duration<double>(static_cast<double>(WeightBytes(op)) / options.link_bytes_per_s));
  flags[op.taken].store(true, std::memory_order_release);
}

void EmulatedDevice::Impl::RunOp(const DeviceOp& op) {
  if (op.kind == DeviceOpKind::kReceivePanels) return ReceivePanels(op);
  const int64_t n_rows = std::ssize(op.wanted_rows ? step.wanted : step.positions);
  const auto floats = [](DeviceAddress address) { return reinterpret_cast<float*>(address); };
  double seconds = 1e-9 * static_cast<double>(options.launch_ns);
  const auto begin = [&] {
    if (op.kind == DeviceOpKind::kReceive && !AwaitFlag(op.flag, abandoned)) return Clock::time_point{};
    return Clock::now();
  }();
  if (begin == Clock::time_point{}) return;
  const bool moves = op.kind == DeviceOpKind::kReceive || op.kind == DeviceOpKind::kSend;
  const int width = op.kind == DeviceOpKind::kReceive ? op.out.width : op.in.width;
  for (int64_t row = 0; moves && row < n_rows; ++row) {
    float* host = op.host.data + row * op.host.stride;
    if (op.kind == DeviceOpKind::kReceive)
      std::memcpy(floats(op.out.data) + row * op.out.stride, host, width * sizeof(float));
    else
      std::memcpy(host, floats(op.in.data) + row * op.in.stride, width * sizeof(float));
  }
  if (moves && options.link_bytes_per_s > 0)
    seconds += static_cast<double>(n_rows * width) * sizeof(float) / options.link_bytes_per_s;
  if (!moves) executor->Run(op, step);
  if (!moves && options.bytes_per_s > 0) seconds += static_cast<double>(WeightBytes(op)) / options.bytes_per_s;
  if (seconds > 0) std::this_thread::sleep_until(begin + std::chrono::duration<double>(seconds));
  if (op.kind == DeviceOpKind::kSend || op.kind == DeviceOpKind::kLogits)
    flags[op.flag].store(true, std::memory_order_release);
}

}  // namespace thermocline
