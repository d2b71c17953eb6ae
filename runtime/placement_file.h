// A placement as `plan --json` prints it and `--placement` reads it.
#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json_fwd.hpp>

#include "predictor/heat_order.h"
#include "predictor/placement.h"

namespace thermocline {

// {"order": {"by": "blocks", "hash": "0123456789abcdef"}, "head": "CPU",
//  "layers": [{"n_hot": 128, "attention": "device", "kv": "CPU"}, ...]}
// Without "order" neurons count as they do in the file. `by`: how placement.orders were made.
void WritePlacement(const Placement& placement, std::optional<HeatOrder> by, nlohmann::ordered_json& out);
// Of such an object, or the first of "plans". `orders` is asked where it counts on heat, and gives the orders of today.
// Throws Error for anything else, and where these are not the orders that were planned with; which model it fits is
// not asked.
Placement ReadPlacement(const std::filesystem::path& path, const std::function<NeuronOrders(HeatOrder)>& orders);

const char* Name(Memory memory);  // "CPU", "device"

}  // namespace thermocline
