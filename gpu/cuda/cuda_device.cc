#include "gpu/cuda/cuda_device.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>

#include "gpu/cuda/launch_thread.h"
#include "gpu/cuda/linear.h"
#include "gpu/cuda/program.h"
#include "gpu/devices.h"
#include "models/check.h"

namespace thermocline {
namespace {

using cuda::Program;
using cuda::StepShape;

constexpr int64_t kUploadBytes = int64_t{16} << 20;  // of each of two page-locked buffers
constexpr int kSpins = 1 << 14;                      // looks at a flag between asking whether the device is still there

// The tables of a step, side by side in page-locked memory and on the device.
class StepMemory {
 public:
  explicit StepMemory(const DeviceLimits& limits) {
    const auto place = [this](int64_t bytes) {
      const int64_t at = bytes_;
      bytes_ += (bytes + 255) / 256 * 256;
      return at;
    };
    step_ = place(sizeof(uint32_t));
    position_ = place(int64_t{4} * limits.max_rows);
    span_of_row_ = place(int64_t{4} * limits.max_rows);
    wanted_ = place(int64_t{4} * limits.max_rows);
    prompt_ = place(limits.max_rows);
    blocks_ = place(static_cast<int64_t>(sizeof(cuda::RowBlock)) * limits.max_rows);
    tables_end_ = bytes_;
    for (int64_t& pages : pages_) pages = place(int64_t{8} * limits.max_spans * limits.max_pages);
    max_pages_ = limits.max_pages;
  }
  int64_t bytes() const { return bytes_; }
  int64_t tables_end() const { return tables_end_; }  // what changes with every step ends here
  int64_t pages_offset(int kind, int span) const { return pages_[kind] + int64_t{8} * span * max_pages_; }

  cuda::StepAddresses Addresses(DeviceAddress base) const {
    cuda::StepAddresses at;
    at.step = reinterpret_cast<const uint32_t*>(base + step_);
    at.position = reinterpret_cast<const int32_t*>(base + position_);
    at.span_of_row = reinterpret_cast<const int32_t*>(base + span_of_row_);
    at.wanted = reinterpret_cast<const int32_t*>(base + wanted_);
    at.prompt = reinterpret_cast<const uint8_t*>(base + prompt_);
    at.blocks = reinterpret_cast<const cuda::RowBlock*>(base + blocks_);
    for (int kind = 0; kind < kLayerKinds; ++kind)
      at.pages[kind] = reinterpret_cast<const uint64_t*>(base + pages_[kind]);
    at.max_pages = max_pages_;
    return at;
  }

  // Everything but the pages. Returns what launches depend on.
  StepShape Fill(const DeviceStep& step, uint32_t number, int rows_per_block, uint8_t* memory) const {
    StepShape shape{static_cast<int>(step.positions.size()), static_cast<int>(step.wanted.size()), 0, false};
    std::memcpy(memory + step_, &number, sizeof number);
    std::ranges::copy(step.positions, reinterpret_cast<int32_t*>(memory + position_));
    std::ranges::copy(step.wanted, reinterpret_cast<int32_t*>(memory + wanted_));
    std::ranges::copy(step.prompt, memory + prompt_);
    shape.prompt = std::ranges::find_if(step.prompt, [](uint8_t p) { return p != 0; }) != step.prompt.end();
    auto* span_of_row = reinterpret_cast<int32_t*>(memory + span_of_row_);
    auto* blocks = reinterpret_cast<cuda::RowBlock*>(memory + blocks_);
    for (size_t s = 0; s < step.spans.size(); ++s) {
      const DeviceSpan& span = step.spans[s];
      std::fill_n(span_of_row + span.first_row, span.n_rows, static_cast<int32_t>(s));
      for (int row = 0; row < span.n_rows; row += rows_per_block)
        blocks[shape.n_blocks++] = {span.first_row + row, std::min(rows_per_block, span.n_rows - row),
                                    span.first_position + row, static_cast<int32_t>(s)};
    }
    return shape;
  }

 private:
  int64_t step_, position_, span_of_row_, wanted_, prompt_, blocks_, tables_end_, pages_[kLayerKinds], bytes_ = 0;
  int max_pages_;
};

class CudaDevice final : public Device {
 public:
  CudaDevice(int index, int64_t budget_bytes);
  ~CudaDevice() override;

  std::string name() const override { return name_; }
  int64_t free_bytes() const override;
  bool Supports(DType type) const override { return cuda::HasKernel(type); }
  bool SupportsKv(KvTypes types) const override { return types == KvTypes{}; }  // F16
  bool StreamsUnasked() const override { return false; }  // until tests/gpu/cuda have passed on a GPU with it
  void Upload(DeviceAddress to, std::span<const uint8_t> from) override;
  void Download(std::span<uint8_t> to, DeviceAddress from) override;
  void UploadPanels(const DeviceMatrix& to, int64_t begin, int64_t end, const uint8_t* packed) override;
  void SetPrograms(std::vector<std::vector<DeviceOp>> programs, const DeviceLimits& limits) override;
  void Begin(const DeviceStep& step) override;
  void Raise(int flag) noexcept override;
  [[nodiscard]] bool Await(int flag) noexcept override;
  [[nodiscard]] bool Finish() noexcept override;
  void Abandon() noexcept override;
  std::string LostBecause() const override;

 private:
  DeviceAddress AllocateBytes(int64_t bytes, const char* what) override;
  void FreeBytes(DeviceAddress address, int64_t bytes) noexcept override;
  void* AllocateStagingBytes(int64_t bytes, const char* what) override;
  void FreeStagingBytes(void* data, int64_t bytes) noexcept override;

  // What the budget still allows.
  int64_t LeftOfBudget() const {
    return budget_bytes_ - bytes_in_use_ - (preparing_ ? 0 : ProgramBytes(budget_bytes_));
  }
  // Makes the GPU current for this thread; throws DeviceLost when it is lost.
  void Enter() const;
  void Check(cudaError_t code, const char* what);
  void Lose(cudaError_t code, const char* what) noexcept;
  // What launches kernels: where that fails the device is lost.
  template <typename Fn>
  void Launching(const Fn& fn);
  void CopyIn(DeviceAddress to, std::span<const uint8_t> from);
  void UploadPages(const DeviceStep& step);
  void Prepare(std::vector<std::vector<DeviceOp>> programs, const DeviceLimits& limits);
  void LockLogits(const Program& program, int max_rows);
  void ForgetPrograms() noexcept;
  cudaGraph_t Capture(const Program& program, const StepShape& shape);
  void LoadKernels(const DeviceLimits& limits);
  void Launch() noexcept;  // the step at hand
  void Record(const DeviceLimits& limits);
  std::atomic_ref<uint32_t> FlagAt(int flag) const {
    return std::atomic_ref(flags_.as<uint32_t>()[flag * Program::kFlagStride]);
  }

  const int index_;
  std::string name_;
  int64_t budget_bytes_ = 0, bytes_in_use_ = 0;
  cudaStream_t stream_ = nullptr;
  cuda::Queue queue_;
  StagingBuffer upload_[2];
  cudaEvent_t uploaded_[2] = {};

  std::optional<StepMemory> layout_;
  StagingBuffer step_staging_, flags_;
  DeviceBuffer step_memory_;
  std::vector<DeviceBuffer> scratch_;
  std::optional<cuda::PanelStream> panels_;
  std::vector<Program> programs_;
  std::vector<void*> registered_;          // host memory that was page-locked for logits
  std::map<int, cudaGraphExec_t> graphs_;  // of n generated rows, all wanted, one per sequence
  uint32_t step_number_ = 0;
  bool preparing_ = false;  // a program, which takes what was kept for it
  std::atomic<bool> abandoned_ = false, lost_ = false;
  mutable std::mutex mutex_;
  std::string lost_because_;

  const Program* launched_ = nullptr;
  StepShape shape_;
  std::optional<cuda::LaunchThread> launcher_;
};

std::string Words(cudaError_t code) { return cudaGetErrorString(code); }

CudaDevice::CudaDevice(int index, int64_t budget_bytes) : index_(index) {
  cudaDeviceProp properties{};
  const auto check = [index](cudaError_t code) {
    if (code != cudaSuccess)
      throw DeviceError("GPU {} cannot be used: {}; choose another with --gpu, or --gpu off", index, Words(code));
  };
  check(cudaGetDeviceProperties(&properties, index));
  name_ = properties.name;
  check(cudaSetDevice(index));
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  queue_ = cuda::MakeQueue(stream_);
  for (int i = 0; i < 2; ++i) {
    check(cudaEventCreateWithFlags(&uploaded_[i], cudaEventDisableTiming));
    upload_[i] = AllocateStaging(kUploadBytes, "uploads to the GPU");
  }
  launcher_.emplace([this] { Launch(); });
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total));
  budget_bytes_ =
      budget_bytes > 0 ? budget_bytes : std::max<int64_t>(0, static_cast<int64_t>(free) - kDeviceReserveBytes);
}

CudaDevice::~CudaDevice() {
  cudaSetDevice(index_);
  Abandon();
  launcher_.reset();
  cudaStreamSynchronize(stream_);
  ForgetPrograms();  // buffers give their memory back through this object, so before its own end
  for (StagingBuffer& buffer : upload_) buffer = StagingBuffer();
  for (cudaEvent_t event : uploaded_)
    if (event) cudaEventDestroy(event);
  cudaStreamDestroy(stream_);
}

void CudaDevice::Enter() const {
  if (lost_) throw DeviceLost("{} is lost: {}", name_, LostBecause());
  cudaSetDevice(index_);
}

void CudaDevice::Lose(cudaError_t code, const char* what) noexcept {
  const std::lock_guard lock(mutex_);
  if (lost_) return;
  try {
    lost_because_ = fmt::format("{}: {}", what, Words(code));
  } catch (...) {
  }
  lost_ = true;
}

void CudaDevice::Check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  Lose(code, what);
  throw DeviceLost("{} is lost: {}: {}", name_, what, Words(code));
}

template <typename Fn>
void CudaDevice::Launching(const Fn& fn) {
  try {
    fn();
  } catch (const DeviceError&) {
    throw;
  } catch (const Error& error) {
    Lose(cudaErrorLaunchFailure, error.what());
    throw DeviceLost("{} is lost: {}", name_, LostBecause());
  }
}

std::string CudaDevice::LostBecause() const {
  const std::lock_guard lock(mutex_);
  return lost_because_;
}

int64_t CudaDevice::free_bytes() const {
  size_t free = 0, total = 0;
  cudaSetDevice(index_);
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) return 0;
  return std::max<int64_t>(0, std::min(LeftOfBudget(), static_cast<int64_t>(free)));
}

DeviceAddress CudaDevice::AllocateBytes(int64_t bytes, const char* what) {
  Enter();
  if (bytes > LeftOfBudget())
    throw DeviceOutOfMemory("{} has no {} bytes for {}: {} are left of its budget", name_, bytes, what, LeftOfBudget());
  void* memory = nullptr;
  const cudaError_t code = cudaMalloc(&memory, static_cast<size_t>(bytes));
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // it is no error of the device's
    throw DeviceOutOfMemory("{} has no {} bytes for {}", name_, bytes, what);
  }
  Check(code, "cudaMalloc");
  bytes_in_use_ += bytes;
  Check(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), stream_), "cudaMemset");
  Check(cudaStreamSynchronize(stream_), "cudaMemset");
  return reinterpret_cast<DeviceAddress>(memory);
}

void CudaDevice::FreeBytes(DeviceAddress address, int64_t bytes) noexcept {
  cudaSetDevice(index_);
  cudaFree(reinterpret_cast<void*>(address));
  bytes_in_use_ -= bytes;
}

void* CudaDevice::AllocateStagingBytes(int64_t bytes, const char* what) {
  Enter();
  void* memory = nullptr;
  const cudaError_t code = cudaHostAlloc(&memory, static_cast<size_t>(bytes), cudaHostAllocPortable);
  if (code != cudaSuccess) {
    cudaGetLastError();
    throw DeviceOutOfMemory("this machine has no {} bytes of page-locked memory for {}: {}", bytes, what, Words(code));
  }
  std::memset(memory, 0, static_cast<size_t>(bytes));
  return memory;
}

void CudaDevice::FreeStagingBytes(void* data, int64_t) noexcept {
  cudaSetDevice(index_);
  cudaFreeHost(data);
}

void CudaDevice::CopyIn(DeviceAddress to, std::span<const uint8_t> from) {
  for (int i = 0; !from.empty(); i = 1 - i) {
    const size_t bytes = std::min<size_t>(from.size(), kUploadBytes);
    Check(cudaEventSynchronize(uploaded_[i]), "an upload");
    std::memcpy(upload_[i].as<uint8_t>(), from.data(), bytes);
    Check(
        cudaMemcpyAsync(reinterpret_cast<void*>(to), upload_[i].as<uint8_t>(), bytes, cudaMemcpyHostToDevice, stream_),
        "an upload");
    Check(cudaEventRecord(uploaded_[i], stream_), "an upload");
    to += bytes;
    from = from.subspan(bytes);
  }
}

void CudaDevice::Upload(DeviceAddress to, std::span<const uint8_t> from) {
  Enter();
  CopyIn(to, from);
  Check(cudaStreamSynchronize(stream_), "an upload");
}

void CudaDevice::Download(std::span<uint8_t> to, DeviceAddress from) {
  Enter();
  Check(cudaMemcpyAsync(to.data(), reinterpret_cast<const void*>(from), to.size(), cudaMemcpyDeviceToHost, stream_),
        "a download");
  Check(cudaStreamSynchronize(stream_), "a download");
}

void CudaDevice::UploadPanels(const DeviceMatrix& to, int64_t begin, int64_t end, const uint8_t* packed) {
  Enter();
  CHECK(Supports(to.type));
  const int64_t per_panel = PackedBytes(to.type, kPanelRows, to.k), bytes = (end - begin) * per_panel;
  const DeviceAddress at = to.data + begin * per_panel;
  CopyIn(at, {packed, static_cast<size_t>(bytes)});
  Launching([&] { cuda::LaunchInterleave(queue_, to.type, reinterpret_cast<uint8_t*>(at), end - begin, to.k); });
  Check(cudaStreamSynchronize(stream_), "an upload");
}

void CudaDevice::SetPrograms(std::vector<std::vector<DeviceOp>> programs, const DeviceLimits& limits) {
  Enter();
  CHECK(programs_.empty());
  preparing_ = true;
  try {
    Launching([&] { Prepare(std::move(programs), limits); });
  } catch (...) {
    ForgetPrograms();  // the host may come with smaller ones
    throw;
  }
}

void CudaDevice::ForgetPrograms() noexcept {
  for (const auto& [rows, graph] : graphs_) cudaGraphExecDestroy(graph);
  for (void* data : registered_) cudaHostUnregister(data);
  graphs_.clear();
  registered_.clear();
  programs_.clear();
  panels_.reset();
  scratch_.clear();
  step_memory_ = DeviceBuffer();
  for (StagingBuffer* buffer : {&step_staging_, &flags_}) *buffer = StagingBuffer();
  preparing_ = false;
}

void CudaDevice::Prepare(std::vector<std::vector<DeviceOp>> programs, const DeviceLimits& limits) {
  layout_.emplace(limits);
  step_staging_ = AllocateStaging(layout_->bytes(), "the tables of a step");
  step_memory_ = Allocate(layout_->bytes(), "the tables of a step");
  flags_ = AllocateStaging(int64_t{4} * Program::kFlagStride * std::max(1, limits.n_flags), "flags");
  const cuda::Scratch scratch = cuda::TakeScratch(programs, limits, [this](int64_t bytes, const char* what) {
    scratch_.push_back(Allocate(bytes, what));
    return scratch_.back().address();
  });
  panels_.emplace(programs);
  for (std::vector<DeviceOp>& ops : programs) {
    const bool streams =
        std::ranges::any_of(ops, [](const DeviceOp& op) { return op.kind == DeviceOpKind::kReceivePanels; });
    programs_.emplace_back(std::move(ops), layout_->Addresses(step_memory_.address()), flags_.as<uint32_t>(), scratch,
                           streams ? &*panels_ : nullptr);
    LockLogits(programs_.back(), limits.max_rows);
  }
  LoadKernels(limits);
  Record(limits);
}

void CudaDevice::LockLogits(const Program& program, int max_rows) {
  for (const DeviceOp& op : program.ops()) {
    if (op.kind != DeviceOpKind::kLogits) continue;
    cudaPointerAttributes attributes{};
    if (cudaPointerGetAttributes(&attributes, op.host.data) == cudaSuccess && attributes.type == cudaMemoryTypeHost)
      continue;  // it is page-locked
    cudaGetLastError();
    const size_t bytes = static_cast<size_t>(op.host.stride) * max_rows * sizeof(float);
    if (cudaHostRegister(op.host.data, bytes, cudaHostRegisterPortable) != cudaSuccess) {
      cudaGetLastError();
      throw DeviceOutOfMemory("{} bytes of logits cannot be page-locked", bytes);
    }
    registered_.push_back(op.host.data);
  }
}

cudaGraph_t CudaDevice::Capture(const Program& program, const StepShape& shape) {
  cudaGraph_t graph = nullptr;
  Check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "recording a step");
  try {
    program.Enqueue(queue_, shape, true);
  } catch (...) {
    cudaStreamEndCapture(stream_, &graph);
    throw;
  }
  Check(cudaStreamEndCapture(stream_, &graph), "recording a step");
  return graph;
}

// The driver loads a kernel when it is first launched, and may wait for the device then, which in a step may wait for
// the host: so every kernel that a step may need is launched here, if only to be recorded.
void CudaDevice::LoadKernels(const DeviceLimits& limits) {
  constexpr int kRows[] = {1, 2, cuda::kTileRows, cuda::kTileRows + 1};
  for (const Program& program : programs_)
    for (const int rows : kRows)
      for (const int wanted : kRows)
        for (const bool prompt : {false, true}) {
          if (wanted > rows || rows > limits.max_rows || (program.streams() && !prompt)) continue;
          for (const int blocks : {1, rows}) cudaGraphDestroy(Capture(program, {rows, wanted, blocks, prompt}));
        }
}

void CudaDevice::Record(const DeviceLimits& limits) {
  const int last = std::min({limits.decode_rows[1], limits.max_rows, cuda::kDecodeRows});
  for (int rows = limits.decode_rows[0]; rows <= last; ++rows) {
    cudaGraphExec_t exec = nullptr;
    const cudaGraph_t graph = Capture(programs_.front(), {rows, rows, rows, false});
    const cudaError_t code = cudaGraphInstantiate(&exec, graph, 0);
    cudaGraphDestroy(graph);
    Check(code, "recording a step");
    graphs_[rows] = exec;
    Check(cudaGraphUpload(exec, stream_), "recording a step");
  }
  Check(cudaStreamSynchronize(stream_), "recording a step");
}

// Block tables change when a sequence takes a page, once in 64 tokens; only what differs is sent.
void CudaDevice::UploadPages(const DeviceStep& step) {
  for (size_t s = 0; s < step.spans.size(); ++s) {
    const DeviceSpan& span = step.spans[s];
    const int n = (span.first_position + span.n_rows - 1) / kPageTokens + 1;
    for (int kind = 0; kind < kLayerKinds; ++kind) {
      if (!span.pages[kind]) continue;
      const int64_t at = layout_->pages_offset(kind, static_cast<int>(s));
      auto* sent = reinterpret_cast<DeviceAddress*>(step_staging_.as<uint8_t>() + at);
      const auto differs = std::mismatch(sent, sent + n, span.pages[kind]).first - sent;
      if (differs == n) continue;
      std::copy(span.pages[kind] + differs, span.pages[kind] + n, sent + differs);
      Check(cudaMemcpyAsync(reinterpret_cast<void*>(step_memory_.address() + at + 8 * differs), sent + differs,
                            static_cast<size_t>(8 * (n - differs)), cudaMemcpyHostToDevice, stream_),
            "the start of a step");
    }
  }
}

void CudaDevice::Begin(const DeviceStep& step) {
  Enter();
  launched_ = &programs_.at(step.program);
  abandoned_ = false;
  if (++step_number_ == 0) ++step_number_;  // what flags hold at first
  shape_ = layout_->Fill(step, step_number_, launched_->rows_per_block(), step_staging_.as<uint8_t>());
  Check(cudaMemcpyAsync(reinterpret_cast<void*>(step_memory_.address()), step_staging_.as<uint8_t>(),
                        static_cast<size_t>(layout_->tables_end()), cudaMemcpyHostToDevice, stream_),
        "the start of a step");
  UploadPages(step);
  const bool plain = !shape_.prompt && shape_.n_wanted == shape_.n_rows && shape_.n_blocks == shape_.n_rows;
  const auto graph = graphs_.find(shape_.n_rows);
  if (step.program == 0 && plain && graph != graphs_.end())
    Check(cudaGraphLaunch(graph->second, stream_), "the start of a step");
  else
    launcher_->Start();
}

void CudaDevice::Launch() noexcept {
  cudaSetDevice(index_);
  try {
    Launching([&] { launched_->Enqueue(queue_, shape_, false); });
  } catch (const DeviceError&) {
    Abandon();
  }
}

void CudaDevice::Raise(int flag) noexcept { FlagAt(flag).store(step_number_); }

bool CudaDevice::Await(int flag) noexcept {
  for (int64_t spins = 1; FlagAt(flag).load(std::memory_order_acquire) != step_number_; ++spins) {
    if (lost_ || abandoned_) return false;
    if (spins % kSpins != 0) continue;
    std::this_thread::yield();
    if (launcher_->busy()) continue;  // who would notice
    cudaSetDevice(index_);
    const cudaError_t code = cudaStreamQuery(stream_);
    if (code != cudaSuccess && code != cudaErrorNotReady) Lose(code, "a step");
  }
  return !lost_ && !abandoned_;
}

bool CudaDevice::Finish() noexcept {
  launcher_->Wait();
  cudaSetDevice(index_);
  const cudaError_t code = cudaStreamSynchronize(stream_);
  if (code != cudaSuccess) Lose(code, "a step");
  return !lost_;
}

void CudaDevice::Abandon() noexcept {
  abandoned_ = true;
  for (int64_t i = 0; i < flags_.bytes() / (4 * Program::kFlagStride); ++i) Raise(static_cast<int>(i));
}

}  // namespace

std::vector<DeviceInfo> FindCudaDevices() {
  int n = 0;
  if (cudaGetDeviceCount(&n) != cudaSuccess) {
    cudaGetLastError();
    return {};
  }
  std::vector<DeviceInfo> devices;
  for (int i = 0; i < n; ++i) {
    cudaDeviceProp properties{};
    size_t free = 0, total = 0;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess || cudaSetDevice(i) != cudaSuccess ||
        cudaMemGetInfo(&free, &total) != cudaSuccess)
      break;
    devices.push_back({properties.name, static_cast<int64_t>(total), static_cast<int64_t>(free)});
  }
  return devices;
}

std::unique_ptr<Device> OpenCudaDevice(int index, int64_t budget_bytes) {
  return std::make_unique<CudaDevice>(index, budget_bytes);
}

}  // namespace thermocline
