#include "models/gguf.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "models/advice.h"
#include "models/check.h"
#include "models/error.h"
#include "models/gguf_parser.h"
#include "models/hash.h"
#include "models/mapped_file.h"
#include "models/quoted.h"

namespace thermocline {
namespace {

std::string_view KindName(GgufArray::Kind kind) {
  switch (kind) {
    case GgufArray::Kind::kUnsigned: return "unsigned integers";
    case GgufArray::Kind::kSigned: return "signed integers";
    case GgufArray::Kind::kFloat: return "floats";
    case GgufArray::Kind::kBool: return "booleans";
    case GgufArray::Kind::kString: return "strings";
  }
  CheckFailed("kind is one of GgufArray::Kind", __FILE__, __LINE__);
}

std::string TypeName(const GgufValue& value) {
  struct Visitor {
    std::string operator()(uint64_t) const { return "an integer"; }
    std::string operator()(int64_t) const { return "an integer"; }
    std::string operator()(double) const { return "a float"; }
    std::string operator()(bool) const { return "a boolean"; }
    std::string operator()(std::string_view) const { return "a string"; }
    std::string operator()(const GgufArray& array) const { return fmt::format("an array of {}", KindName(array.kind)); }
  };
  return std::visit(Visitor{}, value);
}

}  // namespace

size_t GgufArray::size() const {
  switch (kind) {
    case Kind::kUnsigned:
    case Kind::kBool: return unsigneds.size();
    case Kind::kSigned: return signeds.size();
    case Kind::kFloat: return floats.size();
    case Kind::kString: return strings.size();
  }
  CheckFailed("kind is one of GgufArray::Kind", __FILE__, __LINE__);
}

GgufFile::GgufFile() = default;
GgufFile::GgufFile(GgufFile&&) noexcept = default;
GgufFile& GgufFile::operator=(GgufFile&&) noexcept = default;
GgufFile::~GgufFile() = default;

GgufFile GgufFile::Open(const std::filesystem::path& path) { return Parse(MappedFile::Open(path), path.string()); }

GgufFile GgufFile::FromBytes(std::span<const uint8_t> bytes, std::string name) {
  return Parse(MappedFile::FromBytes(bytes), std::move(name));
}

GgufFile GgufFile::Parse(MappedFile map, std::string path) {
  GgufFile file;
  file.path_ = std::move(path);
  file.map_ = std::make_unique<MappedFile>(std::move(map));
  try {
    GgufParser(file).Parse();
  } catch (const Error&) {
    file.CheckIntact();  // a page that was lost while parsing explains whatever the parser found
    throw;
  }
  file.CheckIntact();
  return file;
}

uint64_t GgufFile::file_bytes() const { return map_->size(); }

void GgufFile::CheckIntact() const {
  if (!map_->damaged()) return;
  throw Error(
      "{}: the file became shorter than its {} bytes while it was read, or its disk failed. Keep it unchanged while it "
      "is in use, and download it again.",
      path_, map_->size());
}

uint64_t GgufFile::Fingerprint() const {
  Hash hash;
  hash.Add(static_cast<uint64_t>(map_->modified_ns()));
  hash.Add(Identity());
  return hash.value();
}

uint64_t GgufFile::Identity() const {
  constexpr uint64_t kSample = 4096;
  const std::span<const uint8_t> all(map_->data(), map_->size());
  uint64_t header = all.size();
  for (const Tensor& tensor : tensors_) header = std::min(header, tensor.offset);
  Hash hash;
  hash.Add(all.size());
  hash.Add(all.first(header));
  for (const Tensor& tensor : tensors_) {
    const std::span<const uint8_t> bytes(tensor.data, tensor.bytes);
    const uint64_t n = std::min(kSample, tensor.bytes), last = tensor.bytes - n;
    for (const uint64_t at : {uint64_t{0}, last / 2, last}) hash.Add(bytes.subspan(at, n));
  }
  return hash.value();
}

bool GgufFile::Holds(const uint8_t* data) const {
  const std::less<> before;
  return !before(data, map_->data()) && before(data, map_->data() + map_->size());
}

void GgufFile::WillRead(const uint8_t* data, uint64_t bytes) const {
  if (Holds(data)) map_->WillRead(static_cast<size_t>(data - map_->data()), bytes);
}

void GgufFile::DoneWith(const uint8_t* data, uint64_t bytes) const {
  if (Holds(data)) map_->DoneWith(static_cast<size_t>(data - map_->data()), bytes);
}

const GgufValue* GgufFile::Find(std::string_view key) const {
  const auto found = key_index_.find(key);
  return found == key_index_.end() ? nullptr : &metadata_[found->second].second;
}

const Tensor* GgufFile::FindTensor(std::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

std::span<const uint8_t> GgufFile::RawMetadata(size_t i) const {
  // A pair is: u64 length of the key, the key, u32 type, the value.
  const auto begin = [this](size_t j) {
    return value_offsets_[j] - sizeof(uint32_t) - metadata_[j].first.size() - sizeof(uint64_t);
  };
  const uint64_t end = i + 1 < metadata_.size() ? begin(i + 1) : metadata_end_;
  return {map_->data() + begin(i), end - begin(i)};
}

std::string GgufFile::Where(std::string_view key) const {
  const auto found = key_index_.find(key);
  if (found == key_index_.end()) return fmt::format("{}: {}", path_, Quoted(key));
  return fmt::format("{}: byte {}: {}", path_, value_offsets_[found->second], Quoted(key));
}

std::string GgufFile::Where(const Tensor& tensor) const {
  return fmt::format("{}: byte {}: tensor {}", path_, tensor.info_offset, Quoted(tensor.name));
}

const GgufValue& GgufFile::Need(std::string_view key) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) {
    throw Error("{}: {} is missing from the metadata. {}", path_, Quoted(key), kConvertAgain);
  }
  return *value;
}

void GgufFile::FailType(std::string_view key, const GgufValue& value, std::string_view wanted) const {
  throw Error("{} is {}, not {}. {}", Where(key), TypeName(value), wanted, kConvertAgain);
}

int64_t GgufFile::GetInt(std::string_view key, int64_t min, int64_t max) const {
  const GgufValue& value = Need(key);
  const auto* u = std::get_if<uint64_t>(&value);
  const auto* s = std::get_if<int64_t>(&value);
  if (u == nullptr && s == nullptr) FailType(key, value, "an integer");
  const bool within =
      u != nullptr ? std::cmp_greater_equal(*u, min) && std::cmp_less_equal(*u, max) : *s >= min && *s <= max;
  if (!within) {
    throw Error("{} is {}, outside {} to {}. {}", Where(key),
                u != nullptr ? fmt::format("{}", *u) : fmt::format("{}", *s), min, max, kDamagedOrUnsupported);
  }
  return u != nullptr ? static_cast<int64_t>(*u) : *s;
}

int64_t GgufFile::GetInt(std::string_view key, int64_t min, int64_t max, int64_t fallback) const {
  return Find(key) == nullptr ? fallback : GetInt(key, min, max);
}

double GgufFile::GetFloat(std::string_view key) const {
  const GgufValue& value = Need(key);
  const auto* number = std::get_if<double>(&value);
  if (number == nullptr) FailType(key, value, "a float");
  if (!std::isfinite(*number)) throw Error("{} is {}, not a finite number. {}", Where(key), *number, kDownloadAgain);
  return *number;
}

double GgufFile::GetFloat(std::string_view key, double fallback) const {
  return Find(key) == nullptr ? fallback : GetFloat(key);
}

bool GgufFile::GetBool(std::string_view key, bool fallback) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return fallback;
  const auto* flag = std::get_if<bool>(value);
  if (flag == nullptr) FailType(key, *value, "a boolean");
  return *flag;
}

std::string_view GgufFile::GetString(std::string_view key) const {
  const GgufValue& value = Need(key);
  const auto* text = std::get_if<std::string_view>(&value);
  if (text == nullptr) FailType(key, value, "a string");
  return *text;
}

std::string_view GgufFile::GetString(std::string_view key, std::string_view fallback) const {
  return Find(key) == nullptr ? fallback : GetString(key);
}

const GgufArray* GgufFile::FindArray(std::string_view key, GgufArray::Kind kind) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return nullptr;
  const auto* array = std::get_if<GgufArray>(value);
  if (array == nullptr || array->kind != kind) FailType(key, *value, fmt::format("an array of {}", KindName(kind)));
  for (size_t i = 0; i < array->floats.size(); ++i) {
    if (std::isfinite(array->floats[i])) continue;
    throw Error("{} holds {} at index {}, not a finite number. {}", Where(key), array->floats[i], i, kDownloadAgain);
  }
  return array;
}

}  // namespace thermocline
