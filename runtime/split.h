// A model cut in two by a placement: a half that the CPU executes and a half that a device executes, each a Model of
// its own with the weights it needs and its own list of ops. Where one half reads what the other wrote, a kSend and a
// kReceive pass it on, through a channel.
//
//   CPU      norm  send 0       gate, up [n_hot, n_ff)  act  down               receive 1  add
//   device         receive 0    gate, up [0, n_hot)     act  down into kPartial  send 1
#pragma once

#include <vector>

#include "gpu/device.h"
#include "models/model.h"
#include "predictor/placement.h"

namespace thermocline {

struct Channel {
  Slot slot;       // whose rows pass
  bool to_device;  // or from it
  int buffer = 0;  // channels that never hold rows at the same time share a buffer
};

struct SplitModel {
  Model cpu, device;  // weights by the ids of the whole model
  std::vector<Channel> channels;
  int n_buffers = 0;
};

// `placement` is one of the model. All channels are passed once in every step, in the order of both lists.
SplitModel Split(const Model& model, const Placement& placement);
// `placement` without the weights that the device cannot multiply, and keys and values that it cannot hold.
Placement Restrict(const Device& device, const Model& model, KvTypes kv_types, Placement placement);

}  // namespace thermocline
