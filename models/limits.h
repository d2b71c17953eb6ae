// Every limit on what comes from outside, in one place. Each is far above what real models hold, and low enough that
// a hostile file costs neither memory nor time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace thermocline {

// GGUF files.
inline constexpr uint64_t kMaxGgufMetadata = 1 << 16;        // key-value pairs; real files have under 100
inline constexpr uint64_t kMaxGgufTensors = 1 << 16;         // unmerged expert models come near 2^15
inline constexpr uint64_t kMaxGgufKeyBytes = (1 << 16) - 1;  // ggml docs/gguf.md
inline constexpr uint64_t kMaxGgufTensorNameBytes = 64;      // ggml docs/gguf.md
inline constexpr uint64_t kMaxGgufStringBytes = 1 << 24;     // chat templates reach 2^16
inline constexpr uint64_t kMaxGgufArrayElements = 1 << 22;   // merges of large vocabularies reach 2^20
inline constexpr uint64_t kMaxGgufElements = 1 << 23;        // of all arrays together: at most 128 MiB decoded
inline constexpr uint64_t kMinGgufAlignment = 8;             // ggml docs/gguf.md: a multiple of 8
inline constexpr uint64_t kMaxGgufAlignment = 1 << 16;
inline constexpr uint64_t kMaxTensorDimension = 1 << 30;  // so that one dimension always fits an int

// Shapes of models: what fits 32 bits with room for products of two, and 16-bit weight ids.
inline constexpr int kMaxLayers = 1024;
inline constexpr int kMaxEmbedding = 1 << 17;    // n_embd
inline constexpr int kMaxFeedForward = 1 << 20;  // n_ff
inline constexpr int kMaxHeads = 1024;
inline constexpr int kMaxHeadDim = 1024;
inline constexpr int kMaxVocabulary = 1 << 22;
inline constexpr int kMaxTrainContext = 1 << 27;
inline constexpr double kMaxRopeBase = 1e12;
inline constexpr double kMaxRopeFactor = 1e6;

// Tokenizers.
inline constexpr size_t kMaxTokenBytes = 1024;            // real ones reach 256: runs of 128 spaces in GPT-2's way
inline constexpr size_t kMaxTextBytes = size_t{1} << 28;  // of one Encode, which takes up to 30 bytes per byte

// .heat files. Counts are kept in F32, where whole numbers end at 2^24.
inline constexpr size_t kMaxHeatBytes = size_t{1} << 31;  // all neurons of the largest model, and predictors
inline constexpr int64_t kMaxHeatTokens = (1 << 24) - 1;
inline constexpr int64_t kMaxHeatTargets = 64;
inline constexpr int64_t kMaxPredictorRank = 1 << 16;

// The command line and what it reads.
inline constexpr size_t kMaxPlanBytes = size_t{1} << 20;  // JSON of `plan`: under 100 bytes a layer
inline constexpr int kMaxPlanDepth = 8;
inline constexpr size_t kMaxMessagesBytes = size_t{1} << 26;  // JSON of `template`
inline constexpr int kMaxMessagesDepth = 16;
inline constexpr size_t kMaxMessages = 1 << 16;
inline constexpr int kMaxContext = 1 << 24;   // -c; what memory holds is the engine's business
inline constexpr int kMaxRepetitions = 1000;  // bench -r
inline constexpr size_t kMaxBenchTests = 1000;
inline constexpr size_t kMaxListNumbers = 1000;  // that a flag's ranges stand for
inline constexpr int kMaxHistoryEntries = 1000;
inline constexpr int64_t kMaxDeviceBytes = int64_t{1} << 50;  // --vram; what a device has is its business

// Chat templates. The longest known ones have 30 KB, nest 20 deep, and take some hundred steps per message.
inline constexpr size_t kMaxTemplateBytes = 1 << 20;
inline constexpr int kMaxTemplateDepth = 128;           // of the source; parsing and evaluation recurse over it
inline constexpr int kMaxTemplateCalls = 16;            // of macros within macros
inline constexpr int kMaxTemplateValueDepth = 32;       // of lists and dictionaries
inline constexpr uint64_t kMaxTemplateSteps = 1 << 21;  // a node evaluated, an item or 64 bytes copied: under a second
inline constexpr size_t kMaxTemplateItems = 1 << 18;    // of one list
inline constexpr size_t kMaxTemplateOutputBytes = 1 << 25;  // of any text on the way

// Files mapped at the same time by one process.
inline constexpr size_t kMaxMappedFiles = 256;

// Bytes of an outside name that an error message repeats.
inline constexpr size_t kMaxQuotedBytes = 80;

}  // namespace thermocline
