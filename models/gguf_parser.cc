#include "models/gguf_parser.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "models/advice.h"
#include "models/check.h"
#include "models/checked.h"
#include "models/limits.h"
#include "models/mapped_file.h"
#include "models/quoted.h"

namespace thermocline {
namespace {

// ggml docs/gguf.md, gguf_metadata_value_type.
enum ValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};

std::string SupportedTypes() {
  std::string names;
  for (const DTypeInfo& info : DTypes()) names += names.empty() ? info.name : fmt::format(", {}", info.name);
  return names;
}

}  // namespace

GgufParser::GgufParser(GgufFile& file) : file_(file), base_(file.map_->data()), size_(file.map_->size()) {}

void GgufParser::Need(uint64_t count, size_t element_bytes, std::string_view field) const {
  const auto bytes = CheckedMul<uint64_t>(count, element_bytes);
  if (bytes && *bytes <= Left()) return;
  Fail(pos_, field, "needs {} bytes, but the file has {} left. {}", bytes.value_or(UINT64_MAX), Left(), kDownloadAgain);
}

template <typename T>
T GgufParser::Read(std::string_view field) {
  Need(1, sizeof(T), field);
  T value;
  std::memcpy(&value, base_ + pos_, sizeof value);
  pos_ += sizeof value;
  return value;
}

// A count of things that take at least `least_bytes` each: `what`, such as a length, of `field`.
uint64_t GgufParser::ReadCount(uint64_t limit, size_t least_bytes, std::string_view field, std::string_view what) {
  const size_t offset = pos_;
  const auto count = Read<uint64_t>(field);
  if (count > limit) Fail(offset, field, "has the {} {}, over the limit of {}. {}", what, count, limit, kDownloadAgain);
  Need(count, least_bytes, field);
  return count;
}

std::string_view GgufParser::ReadString(uint64_t limit, std::string_view field) {
  const uint64_t length = ReadCount(limit, 1, field, "length");
  const std::string_view text(reinterpret_cast<const char*>(base_ + pos_), length);
  pos_ += length;
  return text;
}

bool GgufParser::ReadBool(std::string_view field) {
  const size_t offset = pos_;
  const auto byte = Read<uint8_t>(field);
  if (byte > 1) Fail(offset, field, "is a boolean with the value {}, neither 0 nor 1. {}", byte, kDownloadAgain);
  return byte == 1;
}

void GgufParser::Parse() {
  ReadMagicAndVersion();
  // The least a tensor takes: name length, dimensions, one extent, type, offset; a pair: key length, type, one byte.
  const uint64_t n_tensors = ReadCount(kMaxGgufTensors, 8 + 4 + 8 + 4 + 8, "header", "tensor count");
  const uint64_t n_metadata = ReadCount(kMaxGgufMetadata, 8 + 4 + 1, "header", "metadata count");

  file_.metadata_.reserve(n_metadata);  // the index holds views of the keys: they must not move
  file_.value_offsets_.reserve(n_metadata);
  for (uint64_t i = 0; i < n_metadata; ++i) ReadMetadata(i);
  file_.metadata_end_ = pos_;
  const uint64_t alignment = file_.alignment_ = Alignment();

  file_.tensors_.reserve(n_tensors);
  for (uint64_t i = 0; i < n_tensors; ++i) ReadTensorInfo(i);
  if (n_tensors != 0) PlaceTensors(alignment);
}

void GgufParser::ReadMagicAndVersion() {
  Need(4, 1, "magic");
  file_.powerinfer_ = std::memcmp(base_, "PWRI", 4) == 0;
  if (!file_.powerinfer_ && std::memcmp(base_, "GGUF", 4) != 0) {
    Fail(0, "magic", "is {}, not 'GGUF': this is no GGUF model. Name a .gguf file.",
         Quoted({reinterpret_cast<const char*>(base_), 4}));
  }
  pos_ = 4;
  const auto version = Read<uint32_t>("version");
  if (version == 2 || version == 3) {
    file_.version_ = version;
    return;
  }
  if (version == 1)
    Fail(4, "version", "is 1, which is no longer read. Convert the model again; versions 2 and 3 are read.");
  const uint32_t swapped = __builtin_bswap32(version);
  if (swapped >= 1 && swapped <= 3) {
    Fail(4, "version", "is {} in big-endian order: the file is for a big-endian machine. Get the little-endian file.",
         swapped);
  }
  Fail(4, "version", "is {}; versions 2 and 3 are read. Convert the model for one of them.", version);
}

void GgufParser::ReadMetadata(uint64_t index) {
  const size_t key_offset = pos_;
  const std::string_view key = ReadString(kMaxGgufKeyBytes, fmt::format("key {}", index));
  const std::string field = Quoted(key);
  const auto type = Read<uint32_t>(field + " type");
  const size_t value_offset = pos_;
  GgufValue value = ReadValue(type, field);
  file_.metadata_.emplace_back(key, std::move(value));
  file_.value_offsets_.push_back(value_offset);
  if (!file_.key_index_.emplace(file_.metadata_.back().first, index).second) {
    Fail(key_offset, field, "stands twice in the metadata. {}", kDownloadAgain);
  }
}

GgufValue GgufParser::ReadValue(uint32_t type, const std::string& field) {
  switch (type) {
    case kU8: return uint64_t{Read<uint8_t>(field)};
    case kI8: return int64_t{Read<int8_t>(field)};
    case kU16: return uint64_t{Read<uint16_t>(field)};
    case kI16: return int64_t{Read<int16_t>(field)};
    case kU32: return uint64_t{Read<uint32_t>(field)};
    case kI32: return int64_t{Read<int32_t>(field)};
    case kF32: return double{Read<float>(field)};
    case kBool: return ReadBool(field);
    case kString: return ReadString(kMaxGgufStringBytes, field);
    case kArray: return ReadArray(field);
    case kU64: return Read<uint64_t>(field);
    case kI64: return Read<int64_t>(field);
    case kF64: return Read<double>(field);
    default: Fail(pos_ - 4, field, "has the unknown value type {}. {}", type, kDownloadAgain);
  }
}

GgufArray GgufParser::ReadArray(const std::string& field) {
  const size_t offset = pos_;
  const auto type = Read<uint32_t>(field + " element type");
  GgufArray array;
  const auto read = [&]<typename T>(GgufArray::Kind kind, auto& elements, size_t least_bytes, T next) {
    const size_t count_offset = pos_;
    const uint64_t count = ReadCount(kMaxGgufArrayElements, least_bytes, field, "array length");
    elements_ += count;
    if (elements_ > kMaxGgufElements) {
      Fail(count_offset, field, "brings all arrays together to {} elements, over the limit of {}. {}", elements_,
           kMaxGgufElements, kDownloadAgain);
    }
    array.kind = kind;
    elements.reserve(count);
    for (uint64_t i = 0; i < count; ++i) elements.push_back(next());
  };
  using Kind = GgufArray::Kind;
  switch (type) {
    case kU8: read(Kind::kUnsigned, array.unsigneds, 1, [&] { return Read<uint8_t>(field); }); break;
    case kI8: read(Kind::kSigned, array.signeds, 1, [&] { return Read<int8_t>(field); }); break;
    case kU16: read(Kind::kUnsigned, array.unsigneds, 2, [&] { return Read<uint16_t>(field); }); break;
    case kI16: read(Kind::kSigned, array.signeds, 2, [&] { return Read<int16_t>(field); }); break;
    case kU32: read(Kind::kUnsigned, array.unsigneds, 4, [&] { return Read<uint32_t>(field); }); break;
    case kI32: read(Kind::kSigned, array.signeds, 4, [&] { return Read<int32_t>(field); }); break;
    case kF32: read(Kind::kFloat, array.floats, 4, [&] { return Read<float>(field); }); break;
    case kBool: read(Kind::kBool, array.unsigneds, 1, [&] { return ReadBool(field); }); break;
    case kString: read(Kind::kString, array.strings, 8, [&] { return ReadString(kMaxGgufStringBytes, field); }); break;
    case kArray: Fail(offset, field, "is an array of arrays, which no model needs. {}", kDownloadAgain);
    case kU64: read(Kind::kUnsigned, array.unsigneds, 8, [&] { return Read<uint64_t>(field); }); break;
    case kI64: read(Kind::kSigned, array.signeds, 8, [&] { return Read<int64_t>(field); }); break;
    case kF64: read(Kind::kFloat, array.floats, 8, [&] { return Read<double>(field); }); break;
    default: Fail(offset, field, "has the unknown element type {}. {}", type, kDownloadAgain);
  }
  return array;
}

uint64_t GgufParser::Alignment() const {
  constexpr std::string_view kKey = "general.alignment";
  const auto alignment =
      static_cast<uint64_t>(file_.GetInt(kKey, kMinGgufAlignment, kMaxGgufAlignment, /*fallback=*/32));
  if (!std::has_single_bit(alignment)) {
    throw Error("{} is {}, not a power of two. {}", file_.Where(kKey), alignment, kDownloadAgain);
  }
  return alignment;
}

void GgufParser::ReadTensorInfo(uint64_t index) {
  Tensor tensor = {};
  tensor.info_offset = pos_;
  tensor.name = ReadString(kMaxGgufTensorNameBytes, fmt::format("name of tensor {}", index));
  const std::string field = "tensor " + Quoted(tensor.name);
  ReadShape(tensor, field);
  ReadType(tensor, field);
  tensor.offset = Read<uint64_t>(field + " offset");  // relative until PlaceTensors
  file_.tensors_.push_back(std::move(tensor));
  if (!file_.tensor_index_.emplace(file_.tensors_.back().name, index).second) {
    Fail(file_.tensors_.back().info_offset, field, "stands twice in the file. {}", kDownloadAgain);
  }
}

void GgufParser::ReadShape(Tensor& tensor, const std::string& field) {
  const size_t offset = pos_;
  const auto n_dims = Read<uint32_t>(field + " dimension count");
  if (n_dims < 1 || n_dims > std::size(tensor.ne)) {
    Fail(offset, field, "has {} dimensions, outside 1 to {}. {}", n_dims, std::size(tensor.ne), kDownloadAgain);
  }
  std::fill(std::begin(tensor.ne), std::end(tensor.ne), 1);
  int64_t weights = 1;
  for (uint32_t i = 0; i < n_dims; ++i) {
    const size_t extent_offset = pos_;
    const auto extent = Read<uint64_t>(field + " dimension");
    if (extent < 1 || extent > kMaxTensorDimension) {
      Fail(extent_offset, field, "has extent {} in dimension {}, outside 1 to {}. {}", extent, i, kMaxTensorDimension,
           kDownloadAgain);
    }
    tensor.ne[i] = static_cast<int64_t>(extent);
    const auto product = CheckedMul<int64_t>(weights, tensor.ne[i]);
    if (!product) Fail(extent_offset, field, "has more weights than 64 bits can count. {}", kDownloadAgain);
    weights = *product;
  }
}

void GgufParser::ReadType(Tensor& tensor, const std::string& field) {
  const size_t offset = pos_;
  const auto id = Read<uint32_t>(field + " type");
  const auto type = DTypeFromId(id);
  if (!type) {
    const std::string_view name = GgmlTypeName(id);
    Fail(offset, field, "is of type {}, which is not supported. Get the model in one of: {}.",
         name.empty() ? fmt::format("{}, unknown to us", id) : std::string(name), SupportedTypes());
  }
  tensor.type = *type;
  const DTypeInfo& info = Info(*type);
  if (tensor.ne[0] % info.block != 0) {
    Fail(offset, field, "has rows of {} weights, no multiple of the {} in a block of {}. {}", tensor.ne[0], info.block,
         info.name, kDownloadAgain);
  }
  auto bytes =
      CheckedMul<uint64_t>(static_cast<uint64_t>(tensor.ne[0] / info.block), static_cast<uint64_t>(info.block_bytes));
  for (int i = 1; i < 4 && bytes; ++i) bytes = CheckedMul<uint64_t>(*bytes, static_cast<uint64_t>(tensor.ne[i]));
  if (!bytes) Fail(offset, field, "has more bytes than 64 bits can count. {}", kDownloadAgain);
  tensor.bytes = *bytes;
}

// From offsets relative to the data section to places in the map.
void GgufParser::PlaceTensors(uint64_t alignment) {
  const auto data_begin = CheckedAlignUp<uint64_t>(pos_, alignment);
  CHECK(data_begin.has_value());
  for (Tensor& tensor : file_.tensors_) {
    const std::string field = "tensor " + Quoted(tensor.name);
    if (tensor.offset % alignment != 0) {
      Fail(tensor.info_offset, field, "has the offset {}, no multiple of the alignment {}. {}", tensor.offset,
           alignment, kDownloadAgain);
    }
    const auto begin = CheckedAdd<uint64_t>(*data_begin, tensor.offset);
    const auto end = begin ? CheckedAdd<uint64_t>(*begin, tensor.bytes) : std::nullopt;
    if (!end || *end > size_) {
      Fail(tensor.info_offset, field, "has {} bytes at {} + {}, beyond the file's {} bytes. {}", tensor.bytes,
           *data_begin, tensor.offset, size_, kDownloadAgain);
    }
    tensor.offset = *begin;
    tensor.data = base_ + *begin;
  }
  RefuseOverlaps();
}

void GgufParser::RefuseOverlaps() const {
  std::vector<const Tensor*> order;
  order.reserve(file_.tensors_.size());
  for (const Tensor& tensor : file_.tensors_) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const Tensor* a, const Tensor* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i - 1]->offset + order[i - 1]->bytes <= order[i]->offset) continue;
    Fail(order[i]->info_offset, "tensor " + Quoted(order[i]->name), "overlaps tensor {}. {}",
         Quoted(order[i - 1]->name), kDownloadAgain);
  }
}

}  // namespace thermocline
