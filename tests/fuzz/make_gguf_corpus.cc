// Writes the seeds of gguf_fuzz: make_gguf_corpus tests/fuzz/gguf_corpus
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

#include "tests/models/tiny_model.h"

namespace thermocline {
namespace {

void Write(const std::filesystem::path& folder, const std::string& name, const GgufWriter& writer) {
  const ByteVector bytes = writer.Build();
  std::ofstream out(folder / (name + ".gguf"), std::ios::binary);
  out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

// As small as the type's blocks let it be.
TinyOptions Smallest(DType type) {
  const int n_embd = Info(type).block == 256 ? 256 : 32;
  return {.type = type,
          .n_layer = 1,
          .n_embd = n_embd,
          .n_ff = 32,
          .n_head = 2,
          .n_head_kv = 1,
          .head_dim = 16,
          .n_vocab = 8,
          .n_ctx_train = 32,
          .window = 4};
}

// Every kind of value, so that the fuzzer need not invent them.
GgufWriter Metadata() {
  using W = GgufWriter;
  GgufWriter writer;
  writer.version = 2;
  writer.U8("u8", 1).I8("i8", -1).U16("u16", 2).I16("i16", -2).U32("u32", 3).I32("i32", -3).U64("u64", 4).I64("i64",
                                                                                                              -4);
  writer.F32("f32", 0.5f)
      .F64("f64", -0.5)
      .Bool("bool", true)
      .String("string", "text")
      .Strings("strings", {"a", "", "b"});
  for (const W::Type type :
       {W::kU8, W::kI8, W::kU16, W::kI16, W::kU32, W::kI32, W::kF32, W::kBool, W::kU64, W::kI64, W::kF64}) {
    writer.Array("array " + std::to_string(type), type, 1,
                 ByteVector(type >= W::kU64                      ? 8
                            : type >= W::kU32 && type <= W::kF32 ? 4
                            : type == W::kU16 || type == W::kI16 ? 2
                                                                 : 1));
  }
  writer.U32("general.alignment", 16);
  return writer;
}

void WriteAll(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  for (const DTypeInfo& info : DTypes()) {
    Write(folder, std::string("llama_") + info.name, TinyModel(Smallest(info.type)));
  }
  TinyOptions gemma = Smallest(DType::kQ5_0);
  gemma.arch = "gemma3";
  gemma.n_layer = 2;
  Write(folder, "gemma3", TinyModel(gemma).U32("gemma3.attention.sliding_window_pattern", 2));
  TinyOptions opt = Smallest(DType::kQ8_0);
  opt.arch = "opt";
  opt.biases = true;
  Write(folder, "opt", TinyModel(opt));

  TinyOptions powerinfer = Smallest(DType::kQ4_0);
  powerinfer.predictor_rank = 32;
  Write(folder, "powerinfer", TinyModel(powerinfer));

  TinyOptions full = Smallest(DType::kQ4_1);
  full.biases = true;
  full.tied = false;
  full.n_vocab = 264;
  GgufWriter llama3 = TinyModel(full);
  llama3.F32("llama.rope.scaling.factor", 2).String("llama.rope.scaling.type", "linear");
  llama3.Tensor("rope_freqs.weight", DType::kF32, {8}, Bytes(std::vector<float>{1, 1, 1, 2, 3, 4, 5, 6}));
  Write(folder, "llama_full", llama3);
  Write(folder, "metadata", Metadata());
}

}  // namespace
}  // namespace thermocline

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: make_gguf_corpus FOLDER\n");
    return 2;
  }
  thermocline::WriteAll(argv[1]);
  return 0;
}
