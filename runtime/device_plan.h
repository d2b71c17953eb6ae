// What of a model goes to a device of limited memory when nobody has measured anything: keys and values with their
// attention first, then the output head, then as many neurons of every layer, or the hottest of all.
#pragma once

#include <string>

#include "gpu/device.h"
#include "predictor/heat_order.h"
#include "predictor/placement.h"
#include "runtime/device_side.h"

namespace thermocline {

// The most that fits `budget_bytes`, of weights that the device can multiply, beside what it takes to stream the rest
// for prompts, unless that is much of so little memory. ffn: how the CPU will hold its part of FFNs; piece_bytes 0:
// as many as suit the memory; hot: what is known of heat, or null.
Placement FillDevice(const Device& device, const Model& model, KvTypes kv_types, FfnMode ffn, const StepLimits& limits,
                     int64_t budget_bytes, int64_t piece_bytes, const HotNeurons* hot);
// Of a streamed weight, in that much memory.
int64_t SuitablePieceBytes(int64_t budget_bytes);

KvLayout LayoutOf(const Placement& placement, const ModelConfig& config, KvTypes kv_types);
bool UsesDevice(const Placement& placement);

// "emulated device: attention of 22 of 22 layers, 3072 of 5632 neurons a layer, the head; 540 MB of weights, 44 MB of
// keys and values, 28 MB for a step, 12 MB left"
std::string DescribePlan(const Device& device, const Placement& placement, const ModelConfig& config,
                         const DeviceBytes& bytes);

}  // namespace thermocline
