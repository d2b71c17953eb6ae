// A placement as `plan --json` prints it and `--placement` reads it.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>

#include "predictor/placement.h"

namespace thermocline {

// {"head": "CPU", "layers": [{"n_hot": 128, "attention": "device", "kv": "CPU"}, ...]}
void WritePlacement(const Placement& placement, nlohmann::ordered_json& out);
// Of such an object, or the first of "plans". Throws Error for anything else; which model it fits is not asked.
Placement ReadPlacement(const std::filesystem::path& path);

const char* Name(Memory memory);  // "CPU", "device"

}  // namespace thermocline
