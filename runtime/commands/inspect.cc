#include <algorithm>
#include <map>

#include "models/error.h"
#include "models/gguf.h"
#include "models/limits.h"
#include "models/model.h"
#include "runtime/commands/commands.h"
#include "runtime/engine.h"
#include "runtime/kv_types.h"
#include "runtime/text_io.h"

namespace thermocline {
namespace {

constexpr size_t kShownBytes = 100;   // of a string
constexpr size_t kShownElements = 6;  // of an array

// On one line, safe for the terminal, and cut where it is long.
std::string Shown(std::string_view text) {
  std::string line = TerminalSafe(text.substr(0, kShownBytes));
  for (size_t pos = 0; (pos = line.find_first_of("\n\t", pos)) != std::string::npos; pos += 2) {
    line.replace(pos, 1, line[pos] == '\n' ? "\\n" : "\\t");
  }
  if (text.size() > kShownBytes) line += fmt::format("... ({} bytes)", text.size());
  return line;
}

template <typename T, typename Show>
std::string ShownList(const std::vector<T>& values, const Show& show) {
  std::string line = fmt::format("[{}] ", values.size());
  for (size_t i = 0; i < std::min(values.size(), kShownElements); i++) line += (i > 0 ? ", " : "") + show(values[i]);
  return line + (values.size() > kShownElements ? ", ..." : "");
}

std::string ShownArray(const GgufArray& array) {
  const auto number = [](auto value) { return fmt::format("{}", value); };
  switch (array.kind) {
    case GgufArray::Kind::kUnsigned: return ShownList(array.unsigneds, number);
    case GgufArray::Kind::kSigned: return ShownList(array.signeds, number);
    case GgufArray::Kind::kFloat:
      return ShownList(array.floats, [](double value) { return fmt::format("{:.6g}", value); });
    case GgufArray::Kind::kBool:
      return ShownList(array.unsigneds, [](uint64_t value) { return std::string(value != 0 ? "true" : "false"); });
    case GgufArray::Kind::kString: break;
  }
  return ShownList(array.strings, [](std::string_view value) { return fmt::format("'{}'", Shown(value)); });
}

struct ShowValue {
  std::string operator()(uint64_t value) const { return std::to_string(value); }
  std::string operator()(int64_t value) const { return std::to_string(value); }
  std::string operator()(double value) const { return fmt::format("{:.6g}", value); }
  std::string operator()(bool value) const { return value ? "true" : "false"; }
  std::string operator()(std::string_view value) const { return Shown(value); }
  std::string operator()(const GgufArray& value) const { return ShownArray(value); }
};

std::string Shape(const Tensor& tensor) {
  int n = 4;
  while (n > 1 && tensor.ne[n - 1] == 1) n--;
  std::string shape;
  for (int i = 0; i < n; i++) shape += (i > 0 ? " x " : "") + std::to_string(tensor.ne[i]);
  return shape;
}

std::string Metadata(const GgufFile& file) {
  std::string out = "Metadata\n";
  for (const auto& [key, value] : file.metadata())
    out += fmt::format("  {:<44} {}\n", Shown(key), std::visit(ShowValue{}, value));
  return out;
}

// All tensors, and what each type takes together.
std::string Tensors(const GgufFile& file) {
  struct Total {
    int64_t tensors = 0, weights = 0;
    uint64_t bytes = 0;
  };
  if (file.tensors().empty()) return "\nNo tensors: a vocabulary alone\n";
  std::map<std::string, Total> totals;
  std::string out = "\nTensors\n";
  for (const Tensor& tensor : file.tensors()) {
    const char* type = Info(tensor.type).name;
    out += fmt::format("  {:<44} {:<6} {:>20} {:>12}\n", Shown(tensor.name), type, Shape(tensor), tensor.bytes);
    Total& total = totals[type];
    total.tensors++;
    total.weights += tensor.ne[0] * tensor.ne[1] * tensor.ne[2] * tensor.ne[3];
    total.bytes += tensor.bytes;
  }
  out += "\nBy type\n";
  for (const auto& [type, total] : totals) {
    out += fmt::format("  {:<6} {:>6} tensors {:>16} weights {:>12}\n", type, total.tensors, total.weights,
                       HumanBytes(static_cast<double>(total.bytes)));
  }
  return out;
}

std::string Architecture(const ModelConfig& c) {
  std::string out = fmt::format(
      "\nArchitecture {}\n"
      "  {} layers, embedding {}, FFN {} ({}), vocabulary {}\n"
      "  {} heads of {}, {} of them for keys and values\n"
      "  trained for a context of {}",
      c.arch.name, c.n_layer, c.n_embd, c.n_ff, Name(c.arch.activation), c.n_vocab, c.n_head, c.head_dim, c.n_head_kv,
      c.n_ctx_train);
  if (c.window > 0) {
    int n_window = 0;
    for (int layer = 0; layer < c.n_layer; layer++) n_window += c.IsWindowLayer(layer);
    out += fmt::format("; {} layers see the last {} tokens", n_window, c.window);
  }
  return out + "\n";
}

std::string DescribeMemory(const Model& model, KvTypes kv_types) {
  const auto weights = static_cast<double>(PackedWeightBytes(model));
  std::string out = fmt::format("\nMemory: weights and scratch {}, and for a context of\n", HumanBytes(weights));
  const int train = model.config.n_ctx_train;
  int n_ctx = 512;
  while (true) {
    const auto kv = static_cast<double>(KvBytes(model.config, kv_types, n_ctx));
    out += fmt::format("  {:>8} tokens {:>10} more, together {}\n", n_ctx, HumanBytes(kv), HumanBytes(weights + kv));
    if (n_ctx >= train || n_ctx > kMaxTrainContext / 4) break;
    n_ctx = std::min(train, n_ctx * 4);
  }
  return out;
}

}  // namespace

int RunInspect(const Command& command, std::vector<std::string> args) {
  CommandLine line(command);
  KvTypes kv_types;
  line.AddModel();
  AddKvTypes(line, &kv_types);
  if (!line.Parse(std::move(args))) return kGood;

  const GgufFile file = GgufFile::Open(line.ModelPath());
  std::string out =
      fmt::format("{}\n{} v{}, {} ({} bytes), {} tensors\n\n", TerminalSafe(file.path()),
                  file.powerinfer() ? "PowerInfer GGUF" : "GGUF", file.version(),
                  HumanBytes(static_cast<double>(file.file_bytes())), file.file_bytes(), file.tensors().size());
  out += Metadata(file);
  out += Tensors(file);
  try {
    const Model model = Model::FromGguf(file);
    out += Architecture(model.config);
    out += DescribeMemory(model, kv_types);
  } catch (const Error& error) {
    out += fmt::format("\nThis model cannot run here: {}\n", TerminalSafe(error.what()));
  }
  WriteOut(out);
  return kGood;
}

}  // namespace thermocline
