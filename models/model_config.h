// The numbers of one checkpoint, read from its metadata and checked.
#pragma once

#include "models/gguf.h"
#include "models/model.h"

namespace thermocline {

// The row of general.architecture. Throws Error for an unknown one, with the list of the known.
const Arch& ReadArch(const GgufFile& file);

// Throws Error naming file and key for what is missing, out of bounds or not supported. `arch_is_from_file`: the file
// may refine the row (its activation, the pattern of its window layers); otherwise the row holds as it is.
ModelConfig ReadConfig(const GgufFile& file, const Arch& arch, bool arch_is_from_file);

}  // namespace thermocline
