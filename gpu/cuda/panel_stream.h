// The stream beside that of the kernels, on which panels come from page-locked memory into buffers that products read.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "gpu/cuda/transfer.h"
#include "gpu/device.h"

struct CUevent_st;

namespace thermocline::cuda {

class PanelStream {
 public:
  // For the buffers that kReceivePanels ops of the programs name, on the current device.
  explicit PanelStream(const std::vector<std::vector<DeviceOp>>& programs);
  ~PanelStream();
  PanelStream(const PanelStream&) = delete;

  // Panels come behind what was enqueued on `kernels` so far. recorded: nothing runs yet.
  void Begin(const Queue& kernels, bool recorded);
  // Once `flag` is up and nobody reads the buffer, it takes op's panels; then `taken` goes up, and what is enqueued on
  // `kernels` from now on may read it. Now and then waits for the device, so that it never runs out of room for what is
  // enqueued.
  void Receive(const Queue& kernels, const DeviceOp& op, const Flag& flag, const Flag& taken);
  // What was enqueued on `kernels` so far is all that reads the buffer, if it is one.
  void Release(const Queue& kernels, DeviceAddress buffer);

 private:
  struct Buffer {
    CUevent_st *filled = nullptr, *read = nullptr;
    bool was_read = false;  // in this step
  };
  void KeepPace(const Queue& kernels);

  Queue queue_;
  std::map<DeviceAddress, Buffer> buffers_;
  CUevent_st *begin_ = nullptr, *pace_[2] = {};
  bool recorded_ = false;
  int64_t n_received_ = 0;  // in this step
};

}  // namespace thermocline::cuda
