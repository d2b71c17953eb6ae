#include "models/gguf.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "models/error.h"
#include "tests/models/gguf_writer.h"

namespace thermocline {
namespace {

using Kind = GgufArray::Kind;
using W = GgufWriter;

GgufWriter EveryKind() {
  GgufWriter writer;
  writer.U8("u8", 200).I8("i8", -100).U16("u16", 60000).I16("i16", -30000).U32("u32", 4000000000u);
  writer.I32("i32", -2000000000).U64("u64", UINT64_MAX).I64("i64", INT64_MIN).F32("f32", 0.1f).F64("f64", 0.1);
  writer.Bool("bool", true).String("string", "text").String("empty", "");
  writer.Numbers("a.u8", W::kU8, std::vector<uint8_t>{0, 255}).Numbers("a.i8", W::kI8, std::vector<int8_t>{-128, 127});
  writer.Numbers("a.u16", W::kU16, std::vector<uint16_t>{1, 65535});
  writer.Numbers("a.i16", W::kI16, std::vector<int16_t>{-32768, 2});
  writer.Numbers("a.u32", W::kU32, std::vector<uint32_t>{3, UINT32_MAX}).Ints("a.i32", {INT32_MIN, 4});
  writer.Numbers("a.u64", W::kU64, std::vector<uint64_t>{5, UINT64_MAX});
  writer.Numbers("a.i64", W::kI64, std::vector<int64_t>{INT64_MIN, 6});
  writer.Floats("a.f32", {0.1f, -2}).Numbers("a.f64", W::kF64, std::vector<double>{0.1, -3});
  writer.Numbers("a.bool", W::kBool, std::vector<uint8_t>{0, 1, 1}).Strings("a.string", {"", "b", "cc"});
  writer.Strings("a.none", {});
  return writer;
}

template <typename Call>
std::string ErrorOf(Call call) {
  try {
    call();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("gguf: every kind of metadata, in versions 2 and 3") {
  for (const uint32_t version : {2u, 3u}) {
    GgufWriter writer = EveryKind();
    writer.version = version;
    const GgufFile file = writer.Open();
    CHECK(file.version() == version);
    CHECK(file.metadata().size() == 26);
    CHECK(file.metadata().front().first == "u8");
    CHECK(file.GetInt("u8", 0, 255) == 200);
    CHECK(file.GetInt("i8", -128, 127) == -100);
    CHECK(file.GetInt("u16", 0, 65535) == 60000);
    CHECK(file.GetInt("i16", -32768, 0) == -30000);
    CHECK(file.GetInt("u32", 0, INT64_MAX) == 4000000000);
    CHECK(file.GetInt("i32", INT64_MIN, INT64_MAX) == -2000000000);
    CHECK(std::get<uint64_t>(*file.Find("u64")) == UINT64_MAX);
    CHECK(file.GetInt("i64", INT64_MIN, INT64_MAX) == INT64_MIN);
    CHECK(file.GetFloat("f32") == static_cast<double>(0.1f));
    CHECK(file.GetFloat("f64") == 0.1);
    CHECK(file.GetBool("bool", false));
    CHECK(file.GetString("string") == "text");
    CHECK(file.GetString("empty").empty());
    CHECK(file.FindArray("a.u8", Kind::kUnsigned)->unsigneds == std::vector<uint64_t>{0, 255});
    CHECK(file.FindArray("a.i8", Kind::kSigned)->signeds == std::vector<int64_t>{-128, 127});
    CHECK(file.FindArray("a.u16", Kind::kUnsigned)->unsigneds == std::vector<uint64_t>{1, 65535});
    CHECK(file.FindArray("a.i16", Kind::kSigned)->signeds == std::vector<int64_t>{-32768, 2});
    CHECK(file.FindArray("a.u32", Kind::kUnsigned)->unsigneds == std::vector<uint64_t>{3, UINT32_MAX});
    CHECK(file.FindArray("a.i32", Kind::kSigned)->signeds == std::vector<int64_t>{INT32_MIN, 4});
    CHECK(file.FindArray("a.u64", Kind::kUnsigned)->unsigneds == std::vector<uint64_t>{5, UINT64_MAX});
    CHECK(file.FindArray("a.i64", Kind::kSigned)->signeds == std::vector<int64_t>{INT64_MIN, 6});
    CHECK(file.FindArray("a.f32", Kind::kFloat)->floats == std::vector<double>{static_cast<double>(0.1f), -2});
    CHECK(file.FindArray("a.f64", Kind::kFloat)->floats == std::vector<double>{0.1, -3});
    CHECK(file.FindArray("a.bool", Kind::kBool)->unsigneds == std::vector<uint64_t>{0, 1, 1});
    CHECK(file.FindArray("a.bool", Kind::kBool)->size() == 3);
    CHECK(file.FindArray("a.string", Kind::kString)->strings == std::vector<std::string_view>{"", "b", "cc"});
    CHECK(file.FindArray("a.none", Kind::kString)->size() == 0);
  }
}

TEST_CASE("gguf: absent keys give the fallback, present ones are still checked") {
  const GgufFile file = EveryKind().Open();
  CHECK(file.Find("none") == nullptr);
  CHECK(file.FindArray("none", Kind::kString) == nullptr);
  CHECK(file.GetInt("none", 0, 1, 7) == 7);
  CHECK(file.GetFloat("none", 0.5) == 0.5);
  CHECK(file.GetBool("none", true));
  CHECK(file.GetString("none", "x") == "x");
  CHECK(file.GetInt("u8", 0, 255, 7) == 200);

  constexpr const char* kConvert = ". Convert the model again with a current converter.";
  CHECK(ErrorOf([&] { file.GetInt("none", 0, 1); }) ==
        std::string("test.gguf: 'none' is missing from the metadata") + kConvert);
  CHECK(ErrorOf([&] { file.GetInt("f32", 0, 1, 7); }) ==
        std::string("test.gguf: byte 187: 'f32' is a float, not an integer") + kConvert);
  CHECK(ErrorOf([&] { file.GetFloat("bool", 0.5); }).ends_with(std::string("is a boolean, not a float") + kConvert));
  CHECK(ErrorOf([&] { file.GetString("u8", "x"); }).ends_with(std::string("is an integer, not a string") + kConvert));
  CHECK(
      ErrorOf([&] { file.GetBool("string", false); }).ends_with(std::string("is a string, not a boolean") + kConvert));
  CHECK(ErrorOf([&] {
          file.FindArray("i8", Kind::kFloat);
        }).ends_with(std::string("is an integer, not an array of floats") + kConvert));
  CHECK(ErrorOf([&] {
          file.FindArray("a.i8", Kind::kUnsigned);
        }).ends_with(std::string("is an array of signed integers, not an array of unsigned integers") + kConvert));
  CHECK(ErrorOf([&] { file.GetInt("u64", 0, INT64_MAX); })
            .ends_with("is 18446744073709551615, outside 0 to 9223372036854775807. The file is damaged (download it "
                       "again) or the model is not supported."));
}

TEST_CASE("gguf: floats are finite") {
  const float infinity = std::numeric_limits<float>::infinity();
  const GgufFile file = GgufWriter().F32("f", -infinity).Floats("a", {0, infinity}).Open();
  CHECK(ErrorOf([&] { file.GetFloat("f"); }) ==
        "test.gguf: byte 37: 'f' is -inf, not a finite number. The file is incomplete or damaged: download it again.");
  CHECK(
      ErrorOf([&] { file.FindArray("a", Kind::kFloat); }) ==
      "test.gguf: byte 54: 'a' holds inf at index 1, not a finite number. The file is incomplete or damaged: download "
      "it again.");
}

TEST_CASE("gguf: tensors of every type lie where the file says") {
  for (const uint64_t alignment : {8u, 32u, 4096u}) {
    GgufWriter writer;
    writer.alignment = alignment;
    if (alignment != 32) writer.U32("general.alignment", static_cast<uint32_t>(alignment));
    uint8_t mark = 1;
    for (const DTypeInfo& info : DTypes()) {
      const auto bytes = static_cast<size_t>(info.block_bytes) * 6;
      writer.Tensor(info.name, info.type, {static_cast<uint64_t>(info.block) * 2, 3}, ByteVector(bytes, mark++));
    }
    const GgufFile file = writer.Open();
    REQUIRE(file.tensors().size() == DTypes().size());
    mark = 1;
    for (const DTypeInfo& info : DTypes()) {
      CAPTURE(std::string(info.name));
      const Tensor* tensor = file.FindTensor(info.name);
      REQUIRE(tensor != nullptr);
      CHECK(tensor->type == info.type);
      CHECK(tensor->ne[0] == info.block * 2);
      CHECK(tensor->ne[1] == 3);
      CHECK(tensor->ne[2] * tensor->ne[3] == 1);
      CHECK(tensor->offset % alignment == 0);
      CHECK(tensor->offset + tensor->bytes <= file.file_bytes());
      REQUIRE(tensor->bytes == static_cast<uint64_t>(info.block_bytes) * 6);
      CHECK(tensor->data[0] == mark);
      CHECK(tensor->data[tensor->bytes - 1] == mark++);
    }
    CHECK(file.FindTensor("none") == nullptr);
  }
}

TEST_CASE("gguf: a file moves with all that points into it") {
  GgufWriter writer = EveryKind();
  writer.Tensor("t", DType::kF32, {1}, Bytes(std::vector<float>{2.5f}));
  GgufFile first = writer.Open();
  GgufFile second = std::move(first);
  first = GgufWriter().Open();
  CHECK(second.GetString("string") == "text");
  CHECK(second.FindArray("a.string", Kind::kString)->strings[2] == "cc");
  float weight = 0;
  Dequantize(DType::kF32, second.FindTensor("t")->data, 1, &weight);
  CHECK(weight == 2.5f);
}

TEST_CASE("gguf: a file of nothing is a file") {
  const GgufFile file = GgufWriter().Open("nothing");
  CHECK(file.metadata().empty());
  CHECK(file.tensors().empty());
  CHECK(file.path() == "nothing");
  CHECK(file.file_bytes() == 24);
  file.CheckIntact();
}

TEST_CASE("gguf: a fingerprint sees the header, each tensor's ends and middle, the size and the time") {
  constexpr size_t kBytes = 40'000;
  GgufWriter writer = EveryKind();
  writer.Tensor("a", DType::kF32, {kBytes / 4}, ByteVector(kBytes)).Tensor("b", DType::kF32, {3}, ByteVector(12));
  const ByteVector good = writer.Build();
  const auto fingerprint = [](const ByteVector& bytes) { return GgufFile::FromBytes(bytes, "print").Fingerprint(); };
  CHECK(fingerprint(good) == fingerprint(good));
  const size_t a = static_cast<size_t>(GgufFile::FromBytes(good, "print").FindTensor("a")->offset);
  const size_t value = 4 + 4 + 8 + 8 + 8 + 2 + 4;  // of "u8", the first key
  for (const size_t at : {value, a, a + 4095, a + kBytes / 2, a + kBytes - 4096, a + kBytes - 1, good.size() - 1}) {
    CAPTURE(at);
    ByteVector changed = good;
    changed[at] ^= 1;
    CHECK(fingerprint(changed) != fingerprint(good));
  }
  ByteVector longer = good;
  longer.push_back(0);
  CHECK(fingerprint(longer) != fingerprint(good));

  std::string name = (std::filesystem::temp_directory_path() / "thermocline_print_XXXXXX").string();
  const int fd = mkstemp(name.data());
  REQUIRE(fd >= 0);
  REQUIRE(write(fd, good.data(), good.size()) == static_cast<ssize_t>(good.size()));
  close(fd);
  const uint64_t before = GgufFile::Open(name).Fingerprint();
  CHECK(GgufFile::Open(name).Fingerprint() == before);
  std::filesystem::last_write_time(name, std::filesystem::last_write_time(name) + std::chrono::seconds(1));
  CHECK(GgufFile::Open(name).Fingerprint() != before);
  std::filesystem::remove(name);
}

// No byte of a header, whatever it becomes, does worse than an Error.
TEST_CASE("gguf: every byte of a header may be anything") {
  GgufWriter writer = EveryKind();
  writer.U32("general.alignment", 32);
  writer.Tensor("a", DType::kQ4_0, {32, 2}, ByteVector(36)).Tensor("b", DType::kF32, {3}, ByteVector(12));
  const ByteVector good = writer.Build();
  int refused = 0;
  int accepted = 0;
  const auto open = [&](const ByteVector& bytes) {
    try {
      GgufFile::FromBytes(bytes, "flipped");
      ++accepted;
    } catch (const Error& e) {
      ++refused;
    }
  };
  for (size_t i = 0; i < good.size(); ++i) {
    for (const int flip : {0x01, 0x80, 0xff}) {
      ByteVector bytes = good;
      bytes[i] ^= static_cast<uint8_t>(flip);
      open(bytes);
    }
    ByteVector cut = good;
    cut.resize(i);
    open(cut);
  }
  CHECK(refused > static_cast<int>(good.size()));  // every shorter file, and more
  CHECK(accepted > 100);                           // flips in values and names
}

}  // namespace thermocline
