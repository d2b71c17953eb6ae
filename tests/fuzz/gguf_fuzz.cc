// From the bytes of a GGUF file to two engine steps. Whatever the bytes are, they end in an Error or in logits.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "models/error.h"
#include "models/gguf.h"
#include "models/model.h"
#include "models/tokenizer.h"
#include "runtime/engine.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace thermocline {
namespace {

// The first and the last row of every tensor.
void DequantizeRows(const GgufFile& file) {
  std::vector<float> row;
  for (const Tensor& tensor : file.tensors()) {
    const int64_t n = tensor.ne[0];
    const auto row_bytes = static_cast<uint64_t>(n / Info(tensor.type).block * Info(tensor.type).block_bytes);
    row.resize(static_cast<size_t>(n));
    Dequantize(tensor.type, tensor.data, n, row.data());
    Dequantize(tensor.type, tensor.data + (tensor.bytes - row_bytes), n, row.data());
  }
}

void LoadTokenizer(const GgufFile& file) {
  try {
    const auto tokenizer = Tokenizer::FromGguf(file);
    tokenizer->Decode(tokenizer->Encode("A few words.\n"));
  } catch (const Error&) {
  }
}

// A prompt of three rows, then one generated row.
void RunEngine(const GgufFile& file, const Model& model) {
  EngineOptions options;
  options.n_ctx = 8;
  options.n_threads = 1;
  Engine engine(file, model, options);
  const int sequence = engine.NewSequence();
  const TokenId last = model.config.n_vocab - 1;
  engine.Step({{0, sequence, 0, RowKind::kPrompt, false},
               {last, sequence, 1, RowKind::kPrompt, false},
               {last / 2, sequence, 2, RowKind::kPrompt, true}});
  engine.Step({{last, sequence, 3, RowKind::kGenerated, true}});
  if (engine.Logits(0).size() != static_cast<size_t>(model.config.n_vocab)) __builtin_trap();
}

}  // namespace
}  // namespace thermocline

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace thermocline;
  try {
    const GgufFile file = GgufFile::FromBytes({data, size}, "fuzz.gguf");
    DequantizeRows(file);
    LoadTokenizer(file);
    RunEngine(file, Model::FromGguf(file));
  } catch (const Error&) {
  }
  return 0;
}

// Most of a file is weights, where one bit is as good as another: three of four mutations change a short window of the
// header in place, which keeps everything behind it where it was.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  constexpr size_t kHeader = 2048;
  constexpr size_t kWindow = 32;
  std::minstd_rand random(seed);
  if (size <= kWindow || random() % 4 == 0) return LLVMFuzzerMutate(data, size, max_size);
  const size_t begin = random() % std::min(kHeader, size - kWindow);
  const size_t length = 1 + random() % kWindow;
  uint8_t window[kWindow] = {};
  std::memcpy(window, data + begin, length);
  LLVMFuzzerMutate(window, length, length);
  std::memcpy(data + begin, window, length);
  return size;
}
