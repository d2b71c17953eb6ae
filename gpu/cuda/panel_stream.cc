#include "gpu/cuda/panel_stream.h"

#include <cuda_runtime.h>

#include "gpu/cuda/linear.h"

namespace thermocline::cuda {
namespace {

// The driver holds about a thousand launches of a stream and lets whoever adds more wait, locks in hand. A piece takes
// ten on both streams; two or three times as many pieces as these are ahead of the device.
constexpr int64_t kPacePieces = 8;

void CheckStream(int code) { CheckCuda(code, "panels"); }

cudaEvent_t MakeEvent(unsigned flags) {
  cudaEvent_t event = nullptr;
  CheckStream(cudaEventCreateWithFlags(&event, cudaEventDisableTiming | flags));
  return event;
}

}  // namespace

// Its kernels are short, and what comes next waits for them: their blocks go in front of those of a product.
PanelStream::PanelStream(const std::vector<std::vector<DeviceOp>>& programs) {
  int lowest = 0, highest = 0;
  CheckStream(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
  cudaStream_t stream = nullptr;
  CheckStream(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, highest));
  queue_ = MakeQueue(stream);
  queue_.overlaps = false;
  begin_ = MakeEvent(0);
  for (CUevent_st*& event : pace_) event = MakeEvent(cudaEventBlockingSync);
  for (const std::vector<DeviceOp>& ops : programs)
    for (const DeviceOp& op : ops)
      if (op.kind == DeviceOpKind::kReceivePanels) buffers_[op.projections[0].w.data];
  for (auto& [address, buffer] : buffers_) buffer = {MakeEvent(0), MakeEvent(0), false};
}

PanelStream::~PanelStream() {
  for (auto& [address, buffer] : buffers_)
    for (CUevent_st* event : {buffer.filled, buffer.read}) cudaEventDestroy(event);
  for (CUevent_st* event : {begin_, pace_[0], pace_[1]}) cudaEventDestroy(event);
  cudaStreamDestroy(queue_.stream);
}

void PanelStream::Begin(const Queue& kernels, bool recorded) {
  recorded_ = recorded;
  n_received_ = 0;
  for (auto& [address, buffer] : buffers_) buffer.was_read = false;
  CheckStream(cudaEventRecord(begin_, kernels.stream));
  CheckStream(cudaStreamWaitEvent(queue_.stream, begin_, 0));
}

void PanelStream::Receive(const Queue& kernels, const DeviceOp& op, const Flag& flag, const Flag& taken) {
  const DeviceMatrix& w = op.projections[0].w;
  Buffer& buffer = buffers_.at(w.data);
  auto* data = reinterpret_cast<uint8_t*>(w.data);
  if (!recorded_) KeepPace(kernels);
  if (buffer.was_read) CheckStream(cudaStreamWaitEvent(queue_.stream, buffer.read, 0));
  LaunchAwait(queue_, flag);
  CheckStream(cudaMemcpyAsync(data, op.panels, static_cast<size_t>(PackedBytes(w.type, w.n, w.k)),
                              cudaMemcpyHostToDevice, queue_.stream));
  LaunchRaise(queue_, taken);
  LaunchInterleave(queue_, w.type, data, CeilDiv(w.n, kPanelRows), w.k);
  CheckStream(cudaEventRecord(buffer.filled, queue_.stream));
  CheckStream(cudaStreamWaitEvent(kernels.stream, buffer.filled, 0));
}

void PanelStream::Release(const Queue& kernels, DeviceAddress address) {
  const auto found = buffers_.find(address);
  if (found == buffers_.end()) return;
  CheckStream(cudaEventRecord(found->second.read, kernels.stream));
  found->second.was_read = true;
}

void PanelStream::KeepPace(const Queue& kernels) {
  const int64_t turn = n_received_ / kPacePieces;
  if (n_received_++ % kPacePieces != 0) return;
  CUevent_st* event = pace_[turn % 2];
  if (turn >= 2) CheckStream(cudaEventSynchronize(event));
  CheckStream(cudaEventRecord(event, kernels.stream));
}

}  // namespace thermocline::cuda
