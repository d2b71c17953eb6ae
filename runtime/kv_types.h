// The flags for the types that keys and values are kept in, named as in llama.cpp.
#pragma once

#include <string>
#include <vector>

#include "models/kv_layout.h"
#include "runtime/cli.h"

namespace thermocline {

// "f16", "q8_0".
std::string KvTypeName(DType type);

// -ctk/--cache-type-k and -ctv/--cache-type-v. Any other type than these two is a UsageError.
void AddKvTypes(CommandLine& line, KvTypes* types);
// The same with lists: f16,q8_0.
void AddKvTypeLists(CommandLine& line, std::vector<DType>* keys, std::vector<DType>* values);

}  // namespace thermocline
