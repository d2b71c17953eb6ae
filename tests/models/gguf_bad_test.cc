// Every way in which a model file can be refused, and the words it is refused with.
#include <doctest/doctest.h>

#include <limits>

#include "models/error.h"
#include "models/limits.h"
#include "models/model.h"
#include "tests/models/gguf_writer.h"
#include "tests/models/tiny_model.h"

namespace thermocline {
namespace {

struct Row {
  std::string what;
  ByteVector bytes;
  std::string error;  // the whole text
};

std::string Plain(std::string_view error) { return fmt::format("bad.gguf: {}", error); }
std::string Download(std::string_view error) {
  return fmt::format("bad.gguf: {} The file is incomplete or damaged: download it again.", error);
}
std::string Unsupported(std::string_view error) {
  return fmt::format("bad.gguf: {} The file is damaged (download it again) or the model is not supported.", error);
}
std::string Convert(std::string_view error) {
  return fmt::format("bad.gguf: {} Convert the model again with a current converter.", error);
}
std::string Other(std::string_view error) { return fmt::format("bad.gguf: {} Get another model.", error); }
std::string OtherType(std::string_view error) {
  return fmt::format(
      "bad.gguf: {} Get the model in one of: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, "
      "Q6_K, IQ4_NL, IQ4_XS, MXFP4.",
      error);
}

ByteVector Cut(ByteVector bytes, size_t size) {
  bytes.resize(size);
  return bytes;
}
ByteVector Patch(ByteVector bytes, size_t offset, const ByteVector& with) {
  std::copy(with.begin(), with.end(), bytes.begin() + static_cast<std::ptrdiff_t>(offset));
  return bytes;
}
template <typename T>
ByteVector Raw(T value) {
  return Bytes(std::vector<T>{value});
}
// One key, so that its text begins at byte 32 and its value at 32 + the key's length + 4.
ByteVector OneKey(uint32_t type, const ByteVector& value) { return GgufWriter().Raw("k", type, value).Build(); }
// One tensor of `ne`; its entry begins at byte 24.
GgufWriter OneTensor(DType type, std::vector<uint64_t> ne, size_t bytes) {
  GgufWriter writer;
  writer.Tensor("t", type, std::move(ne), ByteVector(bytes));
  return writer;
}
template <typename Change>
ByteVector With(GgufWriter writer, Change change) {
  change(writer);
  return writer.Build();
}
ByteVector Llama(void (*change)(GgufWriter&)) { return With(TinyModel(), change); }
ByteVector Gemma(void (*change)(GgufWriter&)) { return With(TinyModel({.arch = "gemma3"}), change); }
ByteVector Opt(void (*change)(GgufWriter&)) { return With(TinyModel({.arch = "opt", .biases = true}), change); }

std::vector<Row> Container() {
  using W = GgufWriter;
  const ByteVector empty = W().Build();
  return {
      {"shorter than the magic", Cut(empty, 3), Download("byte 0: magic needs 4 bytes, but the file has 3 left.")},
      {"another magic", With(W(), [](W& w) { w.magic = "PK\x03\x04"; }),
       Plain("byte 0: magic is 'PK\\x03\\x04', not 'GGUF': this is no GGUF model. Name a .gguf file.")},
      {"no version", Cut(empty, 6), Download("byte 4: version needs 4 bytes, but the file has 2 left.")},
      {"version 1", With(W(), [](W& w) { w.version = 1; }),
       Plain("byte 4: version is 1, which is no longer read. Convert the model again; versions 2 and 3 are read.")},
      {"version 4", With(W(), [](W& w) { w.version = 4; }),
       Plain("byte 4: version is 4; versions 2 and 3 are read. Convert the model for one of them.")},
      {"big-endian", With(W(), [](W& w) { w.version = 0x03000000; }),
       Plain("byte 4: version is 3 in big-endian order: the file is for a big-endian machine. Get the little-endian "
             "file.")},
      {"no tensor count", Cut(empty, 12), Download("byte 8: header needs 8 bytes, but the file has 4 left.")},
      {"no metadata count", Cut(empty, 20), Download("byte 16: header needs 8 bytes, but the file has 4 left.")},
      {"tensor count over the limit", With(W(), [](W& w) { w.n_tensors = kMaxGgufTensors + 1; }),
       Download("byte 8: header has the tensor count 65537, over the limit of 65536.")},
      {"tensor count over the bytes left", With(W(), [](W& w) { w.n_tensors = 1000; }),
       Download("byte 16: header needs 32000 bytes, but the file has 8 left.")},
      {"metadata count over the limit", With(W(), [](W& w) { w.n_metadata = UINT64_MAX; }),
       Download("byte 16: header has the metadata count 18446744073709551615, over the limit of 65536.")},
      {"metadata count over the bytes left", With(W(), [](W& w) { w.n_metadata = 2; }),
       Download("byte 24: header needs 26 bytes, but the file has 0 left.")},
  };
}

std::vector<Row> Metadata() {
  using W = GgufWriter;
  return {
      {"key longer than the limit", Patch(OneKey(W::kU32, Raw(7u)), 24, Raw(kMaxGgufKeyBytes + 1)),
       Download("byte 24: key 0 has the length 65536, over the limit of 65535.")},
      {"key longer than the file", Patch(OneKey(W::kU32, Raw(7u)), 24, Raw(uint64_t{100})),
       Download("byte 32: key 0 needs 100 bytes, but the file has 9 left.")},
      {"no value type", Cut(GgufWriter().U32("eight by", 7).Build(), 42),
       Download("byte 40: 'eight by' type needs 4 bytes, but the file has 2 left.")},
      {"no length", Cut(OneKey(W::kString, ByteVector(8)), 37),
       Download("byte 37: 'k' needs 8 bytes, but the file has 0 left.")},
      {"no value", Cut(OneKey(W::kF64, ByteVector(8)), 44),
       Download("byte 37: 'k' needs 8 bytes, but the file has 7 left.")},
      {"unknown value type", OneKey(13, ByteVector(8)), Download("byte 33: 'k' has the unknown value type 13.")},
      {"boolean of 2", OneKey(W::kBool, {2}), Download("byte 37: 'k' is a boolean with the value 2, neither 0 nor 1.")},
      {"string longer than the file", OneKey(W::kString, Raw(uint64_t{9})),
       Download("byte 45: 'k' needs 9 bytes, but the file has 0 left.")},
      {"string longer than the limit", OneKey(W::kString, Raw(uint64_t{1} << 63)),
       Download("byte 37: 'k' has the length 9223372036854775808, over the limit of 16777216.")},
      {"array longer than the file", W().Array("k", W::kU64, 3, ByteVector(16)).Build(),
       Download("byte 49: 'k' needs 24 bytes, but the file has 16 left.")},
      {"array longer than the limit", W().Array("k", W::kU8, kMaxGgufArrayElements + 1, {}).Build(),
       Download("byte 41: 'k' has the array length 4194305, over the limit of 4194304.")},
      {"array of strings longer than the file", W().Array("k", W::kString, 2, ByteVector(15)).Build(),
       Download("byte 49: 'k' needs 16 bytes, but the file has 15 left.")},
      {"string in an array longer than the file", W().Array("k", W::kString, 1, Raw(uint64_t{1})).Build(),
       Download("byte 57: 'k' needs 1 bytes, but the file has 0 left.")},
      {"boolean of 255 in an array", W().Array("k", W::kBool, 3, {1, 0, 255}).Build(),
       Download("byte 51: 'k' is a boolean with the value 255, neither 0 nor 1.")},
      {"array of arrays", W().Array("k", W::kArray, 1, ByteVector(16)).Build(),
       Download("byte 37: 'k' is an array of arrays, which no model needs.")},
      {"array of an unknown type", W().Array("k", 99, 1, ByteVector(16)).Build(),
       Download("byte 37: 'k' has the unknown element type 99.")},
      {"too many elements together",
       W().Array("a", W::kU8, kMaxGgufArrayElements, ByteVector(kMaxGgufArrayElements))
           .Array("b", W::kU8, kMaxGgufArrayElements, ByteVector(kMaxGgufArrayElements))
           .Array("c", W::kU8, 1, {0})
           .Build(),
       Download("byte 8388699: 'c' brings all arrays together to 8388609 elements, over the limit of 8388608.")},
      {"key twice", W().U32("k", 1).Raw("k", W::kU32, Raw(2u), /*again=*/true).Build(),
       Download("byte 41: 'k' stands twice in the metadata.")},
      {"key of unprintable bytes", W().Raw("\x1b[2J\xff", 77, ByteVector(8)).Build(),
       Download("byte 37: '\\x1b[2J\\xff' has the unknown value type 77.")},
      {"key of many bytes", W().Raw(std::string(200, 'k'), 77, ByteVector(8)).Build(),
       Download("byte 232: 'kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk'... has "
                "the unknown value type 77.")},
      {"alignment is a string", W().String("general.alignment", "32").Build(),
       Convert("byte 53: 'general.alignment' is a string, not an integer.")},
      {"alignment 0", W().U32("general.alignment", 0).Build(),
       Unsupported("byte 53: 'general.alignment' is 0, outside 8 to 65536.")},
      {"alignment 48", W().U32("general.alignment", 48).Build(),
       Download("byte 53: 'general.alignment' is 48, not a power of two.")},
      {"alignment of 2 GiB", W().U32("general.alignment", 1u << 31).Build(),
       Unsupported("byte 53: 'general.alignment' is 2147483648, outside 8 to 65536.")},
  };
}

std::vector<Row> Tensors() {
  using W = GgufWriter;
  const auto f32 = [] { return OneTensor(DType::kF32, {8}, 32); };
  return {
      {"name longer than 64 bytes", W().Tensor(std::string(65, 'n'), DType::kF32, {1}, ByteVector(4)).Build(),
       Download("byte 24: name of tensor 0 has the length 65, over the limit of 64.")},
      {"name longer than the file", Patch(f32().Build(), 24, Raw(uint64_t{64})),
       Download("byte 96: tensor "
                "'t\\x01\\x00\\x00\\x00\\x08\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00"
                "\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\"
                "x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x0"
                "0\\x00\\x00' dimension count needs 4 bytes, but the file has 0 left.")},
      {"no dimensions", With(f32(), [](W& w) { w.tensors[0].n_dims = 0; }),
       Download("byte 33: tensor 't' has 0 dimensions, outside 1 to 4.")},
      {"five dimensions", OneTensor(DType::kF32, {1, 1, 1, 1, 1}, 4).Build(),
       Download("byte 33: tensor 't' has 5 dimensions, outside 1 to 4.")},
      {"an empty dimension", OneTensor(DType::kF32, {8, 0}, 32).Build(),
       Download("byte 45: tensor 't' has extent 0 in dimension 1, outside 1 to 1073741824.")},
      {"a dimension over the limit", OneTensor(DType::kF32, {kMaxTensorDimension + 1}, 32).Build(),
       Download("byte 37: tensor 't' has extent 1073741825 in dimension 0, outside 1 to 1073741824.")},
      {"more weights than 64 bits count", OneTensor(DType::kF32, {1 << 30, 1 << 30, 1 << 30}, 32).Build(),
       Download("byte 53: tensor 't' has more weights than 64 bits can count.")},
      {"more bytes than 64 bits count", OneTensor(DType::kF32, {1 << 30, 1 << 30, 4}, 32).Build(),
       Download("byte 61: tensor 't' has more bytes than 64 bits can count.")},
      {"a known type that is not read", With(f32(), [](W& w) { w.tensors[0].type = 16; }),
       OtherType("byte 45: tensor 't' is of type IQ2_XXS, which is not supported.")},
      {"an unknown type", With(f32(), [](W& w) { w.tensors[0].type = 12345; }),
       OtherType("byte 45: tensor 't' is of type 12345, unknown to us, which is not supported.")},
      {"a row of half a block", OneTensor(DType::kQ4_K, {384, 2}, 432).Build(),
       Download("byte 53: tensor 't' has rows of 384 weights, no multiple of the 256 in a block of Q4_K.")},
      {"entry ends before its offset", Cut(f32().Build(), 24 + 8 + 1 + 4 + 8 + 4 + 7),
       Download("byte 49: tensor 't' offset needs 8 bytes, but the file has 7 left.")},
      {"offset not aligned", With(f32(), [](W& w) { w.tensors[0].offset = 16; }),
       Download("byte 24: tensor 't' has the offset 16, no multiple of the alignment 32.")},
      {"offset beyond the file", With(f32(), [](W& w) { w.tensors[0].offset = 1 << 20; }),
       Download("byte 24: tensor 't' has 32 bytes at 64 + 1048576, beyond the file's 96 bytes.")},
      {"offset wraps around", With(f32(), [](W& w) { w.tensors[0].offset = UINT64_MAX - 31; }),
       Download("byte 24: tensor 't' has 32 bytes at 64 + 18446744073709551584, beyond the file's 96 bytes.")},
      {"last byte is missing", Cut(f32().Build(), 95),
       Download("byte 24: tensor 't' has 32 bytes at 64 + 0, beyond the file's 95 bytes.")},
      {"tensor twice", With(f32(), [](W& w) { w.tensors.push_back(w.tensors[0]); }),
       Download("byte 57: tensor 't' stands twice in the file.")},
      {"tensors overlap",
       With(f32().Tensor("u", DType::kF32, {8}, ByteVector(32)), [](W& w) { w.tensors[1].offset = 0; }),
       Download("byte 57: tensor 'u' overlaps tensor 't'.")},
  };
}

std::vector<Row> Configuration() {
  using W = GgufWriter;
  const auto nan = [](W& w) { w.F32("llama.rope.freq_base", std::numeric_limits<float>::quiet_NaN()); };
  return {
      {"no architecture", Llama([](W& w) { w.Remove("general.architecture"); }),
       Convert("'general.architecture' is missing from the metadata.")},
      {"architecture is a number", Llama([](W& w) { w.U32("general.architecture", 1); }),
       Convert("byte 56: 'general.architecture' is an integer, not a string.")},
      {"unknown architecture", Llama([](W& w) { w.String("general.architecture", "mamba"); }),
       Plain("byte 56: 'general.architecture' is 'mamba', which is not supported. Get a model of one of: llama, "
             "gemma3, opt.")},
      {"a missing number", Llama([](W& w) { w.Remove("llama.block_count"); }),
       Convert("'llama.block_count' is missing from the metadata.")},
      {"a number that is a float", Llama([](W& w) { w.F32("llama.block_count", 2); }),
       Convert("byte 98: 'llama.block_count' is a float, not an integer.")},
      {"a number that is an array", Llama([](W& w) {
         w.Ints("llama.feed_forward_length", {96, 96});
       }),
       Convert("byte 213: 'llama.feed_forward_length' is an array of signed integers, not an integer.")},
      {"a number under its bounds", Llama([](W& w) { w.I32("llama.embedding_length", -64); }),
       Unsupported("byte 172: 'llama.embedding_length' is -64, outside 2 to 131072.")},
      {"a number over its bounds", Llama([](W& w) { w.U64("llama.block_count", UINT64_MAX); }),
       Unsupported("byte 98: 'llama.block_count' is 18446744073709551615, outside 1 to 1024.")},
      {"a missing float", Llama([](W& w) { w.Remove("llama.attention.layer_norm_rms_epsilon"); }),
       Convert("'llama.attention.layer_norm_rms_epsilon' is missing from the metadata.")},
      {"a float that is a string", Llama([](W& w) { w.String("llama.rope.freq_base", "1e4"); }),
       Convert("byte 476: 'llama.rope.freq_base' is a string, not a float.")},
      {"a float that is no number", Llama(nan),
       Download("byte 476: 'llama.rope.freq_base' is nan, not a finite number.")},
      {"a float that is 0", Llama([](W& w) { w.F32("llama.attention.layer_norm_rms_epsilon", 0); }),
       Unsupported("byte 440: 'llama.attention.layer_norm_rms_epsilon' is 0, outside 0 (excluded) to 1.")},
      {"a float too large", Llama([](W& w) { w.F64("llama.rope.freq_base", 1e300); }),
       Unsupported("byte 476: 'llama.rope.freq_base' is 1e+300, outside 0 (excluded) to 1000000000000.")},
      {"a float too small", Llama([](W& w) { w.F64("llama.rope.freq_base", 1e-300); }),
       Unsupported("byte 476: 'llama.rope.freq_base' is 1e-300, outside 0 (excluded) to 1000000000000.")},
      {"a boolean that is a number", Llama([](W& w) { w.U8("llama.attention.causal", 1); }),
       Convert("byte 7075: 'llama.attention.causal' is an integer, not a boolean.")},
      {"a string that is a boolean", Llama([](W& w) { w.Bool("llama.rope.scaling.type", true); }),
       Convert("byte 7076: 'llama.rope.scaling.type' is a boolean, not a string.")},
      {"no heads", Llama([](W& w) { w.U32("llama.attention.head_count", 0); }),
       Unsupported("byte 255: 'llama.attention.head_count' is 0, outside 1 to 1024.")},
      {"KV heads that do not divide", Llama([](W& w) { w.U32("llama.attention.head_count_kv", 3); }),
       Download("byte 300: 'llama.attention.head_count_kv' is 3, which does not divide the 4 heads.")},
      {"heads that do not divide",
       Llama([](W& w) { w.Remove("llama.attention.key_length").U32("llama.attention.head_count", 6); }),
       Download("byte 255: 'llama.attention.head_count' is 6, which does not divide the embedding length 64.")},
      {"heads of one number",
       Llama([](W& w) { w.Remove("llama.attention.key_length").U32("llama.attention.head_count", 64); }),
       Other("byte 255: 'llama.attention.head_count' is 64, which makes heads of 1 numbers, outside 2 to 1024.")},
      {"values unlike keys", Llama([](W& w) { w.U32("llama.attention.value_length", 8); }),
       Other("byte 386: 'llama.attention.value_length' is 8 where keys have 16: different lengths are not supported.")},
      {"more rope than head", Llama([](W& w) { w.U32("llama.rope.dimension_count", 18); }),
       Unsupported("byte 7079: 'llama.rope.dimension_count' is 18, outside 2 to 16.")},
      {"odd rope", Llama([](W& w) { w.U32("llama.rope.dimension_count", 15); }),
       Download("byte 7079: 'llama.rope.dimension_count' is 15, not even.")},
      {"yarn", Llama([](W& w) { w.String("llama.rope.scaling.type", "yarn"); }),
       Other("byte 7076: 'llama.rope.scaling.type' is 'yarn': only 'none' and 'linear' are supported.")},
      {"rope divided by 0", Llama([](W& w) { w.F32("llama.rope.scaling.factor", 0); }),
       Unsupported("byte 7078: 'llama.rope.scaling.factor' is 0, outside 0 (excluded) to 1000000.")},
      {"windows in an architecture without", Llama([](W& w) { w.U32("llama.attention.sliding_window", 8); }),
       Other("byte 7083: 'llama.attention.sliding_window' is 8, but architecture 'llama' has no window layers here.")},
      {"window pattern of another length",
       Gemma([](W& w) { w.Array("gemma3.attention.sliding_window_pattern", W::kBool, 1, {1}); }),
       Download("byte 7150: 'gemma3.attention.sliding_window_pattern' has 1 flags for 2 layers.")},
      {"window pattern without period",
       With(TinyModel({.arch = "gemma3", .n_layer = 4}),
            [](W& w) {
              w.Array("gemma3.attention.sliding_window_pattern", W::kBool, 4, {1, 0, 0, 1});
            }),
       Other("byte 7150: 'gemma3.attention.sliding_window_pattern' breaks its period of 2 at layer 2, which is not "
             "supported.")},
      {"window pattern of strings", Gemma([](W& w) {
         w.Strings("gemma3.attention.sliding_window_pattern", {"local", "global"});
       }),
       Convert(
           "byte 7150: 'gemma3.attention.sliding_window_pattern' is an array of strings, not an array of booleans.")},
      {"an unknown activation", Llama([](W& w) { w.String("thermocline.activation", "relu6"); }),
       Other("byte 7075: 'thermocline.activation' is 'relu6', which is not supported: it is one of silu, gelu_tanh, "
             "relu.")},
      {"an activation that is a number", Llama([](W& w) { w.U32("thermocline.activation", 1); }),
       Convert("byte 7075: 'thermocline.activation' is an integer, not a string.")},
      {"experts", Llama([](W& w) { w.U32("llama.expert_count", 8); }),
       Other("byte 7071: 'llama.expert_count' is 8: a mixture of experts is not supported.")},
      {"soft cap on logits", Gemma([](W& w) { w.F32("gemma3.final_logit_softcapping", 30); }),
       Other("byte 7141: 'gemma3.final_logit_softcapping' is 30: a soft cap on logits is not supported.")},
      {"soft cap on attention", Gemma([](W& w) { w.F32("gemma3.attn_logit_softcapping", 50); }),
       Other("byte 7140: 'gemma3.attn_logit_softcapping' is 50: a soft cap on attention is not supported.")},
      {"not causal", Llama([](W& w) { w.Bool("llama.attention.causal", false); }),
       Other("byte 7075: 'llama.attention.causal' is false: the model sees the future and writes no text.")},
      {"one part of several", Llama([](W& w) { w.U16("split.count", 3); }),
       Plain("byte 7064: 'split.count' is 3: this is one part of a split model. Merge the parts with `llama-gguf-split "
             "--merge`.")},
  };
}

std::vector<Row> Weights() {
  using W = GgufWriter;
  const auto factors = [](W& w) { w.Tensor("rope_freqs.weight", DType::kF32, {8}, ByteVector(32)); };
  return {
      {"no weights", Llama([](W& w) { w.tensors.clear(); }),
       Plain("holds a vocabulary and no weights: it serves `tokenize` only. Name a whole model.")},
      {"no embedding", Llama([](W& w) { w.RemoveTensor("token_embd.weight"); }),
       Unsupported("tensor 'token_embd.weight' is missing.")},
      {"a missing matrix", Llama([](W& w) { w.RemoveTensor("blk.1.ffn_up.weight"); }),
       Unsupported("tensor 'blk.1.ffn_up.weight' is missing.")},
      {"a matrix of another shape", Llama([](W& w) {
         w.Tensor("blk.0.attn_k.weight", DType::kF32, {64, 16}, ByteVector(4096));
       }),
       Unsupported(
           "byte 7261: tensor 'blk.0.attn_k.weight' has the shape 64 x 16 x 1 x 1, not 64 x 32 as the metadata says.")},
      {"a norm of another shape", Llama([](W& w) {
         w.Tensor("output_norm.weight", DType::kF32, {32, 2}, ByteVector(256));
       }),
       Unsupported(
           "byte 7098: tensor 'output_norm.weight' has the shape 32 x 2 x 1 x 1, not 64 as the metadata says.")},
      {"a quantized norm", Llama([](W& w) { w.Tensor("output_norm.weight", DType::kQ8_0, {64}, ByteVector(68)); }),
       Unsupported("byte 7098: tensor 'output_norm.weight' is of type Q8_0: norms and biases are supported as F32, F16 "
                   "and BF16.")},
      {"a vocabulary over the limit", Llama([](W& w) {
         w.U32("llama.embedding_length", 2);
         const uint64_t rows = kMaxVocabulary + 1;
         w.Tensor("token_embd.weight", DType::kF16, {2, rows}, ByteVector(rows * 4));
       }),
       Unsupported("byte 7041: tensor 'token_embd.weight' has 4194305 rows, over the limit of 4194304.")},
      {"a vocabulary of another size", Llama([](W& w) {
         w.Strings("tokenizer.ggml.tokens", {"a", "b"});
       }),
       Unsupported("byte 558: 'tokenizer.ggml.tokens' has 2 tokens where the embedding has 288 rows.")},
      {"a vocabulary of numbers", Llama([](W& w) {
         w.Ints("tokenizer.ggml.tokens", {1, 2});
       }),
       Convert("byte 558: 'tokenizer.ggml.tokens' is an array of signed integers, not an array of strings.")},
      {"frequencies divided by 0", Llama(factors),
       Unsupported("byte 8206: tensor 'rope_freqs.weight' holds 0 at index 0, where frequencies are divided by it.")},
      {"a tensor of another architecture",
       Llama([](W& w) { w.Tensor("blk.0.attn_q_norm.weight", DType::kF32, {16}, ByteVector(64)); }),
       Other("byte 8206: tensor 'blk.0.attn_q_norm.weight' is no part of architecture 'llama': the model would not run "
             "as it was trained.")},
  };
}

std::vector<Row> LearnedPositionsAndLayerNorms() {
  using W = GgufWriter;
  return {
      {"no epsilon", Opt([](W& w) { w.Remove("opt.attention.layer_norm_epsilon"); }),
       Convert("'opt.attention.layer_norm_epsilon' is missing from the metadata.")},
      {"no positions", Opt([](W& w) { w.RemoveTensor("position_embd.weight"); }),
       Unsupported("tensor 'position_embd.weight' is missing.")},
      {"one position too few", Opt([](W& w) {
         w.Tensor("position_embd.weight", DType::kF16, {64, 255}, ByteVector(64 * 255 * 2));
       }),
       Unsupported(
           "byte 7038: tensor 'position_embd.weight' has the shape 64 x 255 x 1 x 1, not 64 x 258 as the metadata "
           "says.")},
      {"positions of another width", Opt([](W& w) {
         w.Tensor("position_embd.weight", DType::kF16, {32, 256}, ByteVector(32 * 256 * 2));
       }),
       Unsupported(
           "byte 7038: tensor 'position_embd.weight' has the shape 32 x 256 x 1 x 1, not 64 x 256 as the metadata "
           "says.")},
      {"OPT-350M", Opt([](W& w) {
         w.Tensor("token_embd.weight", DType::kF16, {32, 288}, ByteVector(32 * 288 * 2));
       }),
       Other("byte 6981: tensor 'token_embd.weight' has rows of 32 for a hidden state of 64: a projection between the "
             "two, "
             "as OPT-350M has it, is not supported.")},
      {"no final norm", Opt([](W& w) { w.RemoveTensor("output_norm.weight"); }),
       Unsupported("tensor 'output_norm.weight' is missing.")},
      {"a layer norm without bias", Opt([](W& w) { w.RemoveTensor("blk.1.ffn_norm.bias"); }),
       Unsupported("tensor 'blk.1.ffn_norm.bias' is missing.")},
      {"a bias of another shape", Opt([](W& w) { w.Tensor("blk.0.ffn_up.bias", DType::kF32, {64}, ByteVector(256)); }),
       Unsupported("byte 7907: tensor 'blk.0.ffn_up.bias' has the shape 64 x 1 x 1 x 1, not 96 as the metadata says.")},
      {"a norm's bias of another shape",
       Opt([](W& w) { w.Tensor("blk.0.attn_norm.bias", DType::kF32, {96}, ByteVector(384)); }),
       Unsupported(
           "byte 7250: tensor 'blk.0.attn_norm.bias' has the shape 96 x 1 x 1 x 1, not 64 as the metadata says.")},
      {"a gate", Opt([](W& w) {
         w.Tensor("blk.0.ffn_gate.weight", DType::kF16, {64, 96}, ByteVector(64 * 96 * 2));
       }),
       Other("byte 8940: tensor 'blk.0.ffn_gate.weight' is no part of architecture 'opt': the model would not run as "
             "it was "
             "trained.")},
      {"rope", Opt([](W& w) { w.Tensor("rope_freqs.weight", DType::kF32, {8}, ByteVector(32)); }),
       Other(
           "byte 8940: tensor 'rope_freqs.weight' is no part of architecture 'opt': the model would not run as it was "
           "trained.")},
      {"a layer norm's bias beside an RMS norm",
       Llama([](W& w) { w.Tensor("output_norm.bias", DType::kF32, {64}, ByteVector(256)); }),
       Other(
           "byte 8206: tensor 'output_norm.bias' is no part of architecture 'llama': the model would not run as it was "
           "trained.")},
      {"positions beside rope", Llama([](W& w) {
         w.Tensor("position_embd.weight", DType::kF16, {64, 256}, ByteVector(64 * 256 * 2));
       }),
       Other(
           "byte 8206: tensor 'position_embd.weight' is no part of architecture 'llama': the model would not run as it "
           "was trained.")},
  };
}

void CheckAll(const std::vector<Row>& rows) {
  for (const Row& row : rows) {
    CAPTURE(row.what);
    std::string error = "accepted";
    try {
      const GgufFile file = GgufFile::FromBytes(row.bytes, "bad.gguf");
      Model::FromGguf(file);
    } catch (const Error& e) {
      error = e.what();
    }
    CHECK(error == row.error);
  }
}

}  // namespace

TEST_CASE("bad GGUF files are refused: the container") { CheckAll(Container()); }
TEST_CASE("bad GGUF files are refused: metadata") { CheckAll(Metadata()); }
TEST_CASE("bad GGUF files are refused: tensors") { CheckAll(Tensors()); }
TEST_CASE("bad GGUF files are refused: configuration") { CheckAll(Configuration()); }
TEST_CASE("bad GGUF files are refused: weights") { CheckAll(Weights()); }
TEST_CASE("bad GGUF files are refused: learned positions and layer norms") {
  CheckAll(LearnedPositionsAndLayerNorms());
}

}  // namespace thermocline
