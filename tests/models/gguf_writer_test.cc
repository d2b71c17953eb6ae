#include "models/gguf_writer.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>

#include "tests/models/tiny_model.h"

namespace thermocline {
namespace {

std::string Text(std::span<const uint8_t> bytes) { return {bytes.begin(), bytes.end()}; }

}  // namespace

TEST_CASE("gguf_writer: all metadata comes along byte by byte, but for what is replaced") {
  GgufWriter source = TinyModel({.type = DType::kF16});
  source.U8("u8", 1).I16("i16", -2).F64("f64", 0.5).Bool("bool", true).U64("general.file_type", 1);
  source.Array("empty", GgufWriter::kString, 0, {}).Strings("strings", {"", "a\n"}).Floats("floats", {1, 2});
  source.U32("general.alignment", 64).alignment = 64;
  source.version = 2;
  const GgufFile file = source.Open();
  std::vector<DType> types;
  for (const Tensor& tensor : file.tensors()) types.push_back(tensor.ne[1] > 1 ? DType::kQ8_0 : tensor.type);
  const std::pair<std::string_view, uint32_t> numbers[] = {{"general.file_type", 7},
                                                           {"general.quantization_version", 2}};
  const GgufLayout layout = LayOutGguf(file, types, numbers);
  std::vector<uint8_t> bytes = layout.header;
  bytes.resize(layout.file_bytes);
  const GgufFile copy = GgufFile::FromBytes(bytes, "copy.gguf");

  CHECK(copy.version() == 3);
  REQUIRE(copy.metadata().size() == file.metadata().size() + 1);
  for (size_t i = 0; i < file.metadata().size(); ++i) {
    CAPTURE(file.metadata()[i].first);
    CHECK(copy.metadata()[i].first == file.metadata()[i].first);
    if (file.metadata()[i].first == "general.file_type") continue;
    CHECK(Text(copy.RawMetadata(i)) == Text(file.RawMetadata(i)));
  }
  CHECK(copy.GetInt("general.file_type", 0, 100) == 7);
  CHECK(copy.GetInt("general.quantization_version", 0, 100) == 2);
  REQUIRE(copy.tensors().size() == file.tensors().size());
  for (size_t i = 0; i < types.size(); ++i) {
    const Tensor &old = file.tensors()[i], &tensor = copy.tensors()[i];
    CAPTURE(old.name);
    CHECK(tensor.name == old.name);
    CHECK(tensor.type == types[i]);
    CHECK(std::equal(tensor.ne, tensor.ne + 4, old.ne));
    CHECK(tensor.offset == layout.offsets[i]);
    CHECK(tensor.offset % 64 == 0);
    CHECK(tensor.bytes == TensorBytes(old, types[i]));
  }
}

TEST_CASE("gguf_writer: a file without metadata or tensors") {
  const GgufFile file = GgufWriter().Open();
  const GgufLayout layout = LayOutGguf(file, {}, {});
  CHECK(layout.header.size() == layout.file_bytes);
  CHECK(GgufFile::FromBytes(layout.header, "copy.gguf").metadata().empty());
}

}  // namespace thermocline
