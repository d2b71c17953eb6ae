#include "runtime/kv_types.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "models/limits.h"
#include "models/quoted.h"

namespace thermocline {
namespace {

constexpr DType kTypes[] = {DType::kF16, DType::kQ8_0};

DType ParseType(const char* flag, std::string_view text) {
  for (const DType type : kTypes)
    if (text == KvTypeName(type)) return type;
  throw UsageError(fmt::format("{}: {} is none of f16, q8_0", flag, Quoted(text)));
}

std::vector<DType> ParseTypes(const char* flag, std::string_view text) {
  std::vector<DType> types;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (types.size() == kMaxListNumbers) throw UsageError(fmt::format("{}: more than {} types", flag, kMaxListNumbers));
    types.push_back(ParseType(flag, text.substr(begin, end - begin)));
    begin = end + 1;
  }
  return types;
}

// Calls add(names, flag, help) for the keys, then for the values.
template <typename Add>
void AddBoth(const Add& add) {
  add("--ctk,--cache-type-k", "--ctk", "Keep keys as f16 or q8_0, in half the memory; also -ctk (f16)", true);
  add("--ctv,--cache-type-v", "--ctv", "Keep values so; also -ctv (f16)", false);
}

}  // namespace

std::string KvTypeName(DType type) {
  std::string name = Info(type).name;
  for (char& c : name)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return name;
}

void AddKvTypes(CommandLine& line, KvTypes* types) {
  AddBoth([&](const char* names, const char* flag, const char* help, bool keys) {
    line.AddParsed(
        names, "TYPE", [=](const std::string& given) { (keys ? types->key : types->value) = ParseType(flag, given); },
        help);
  });
}

void AddKvTypeLists(CommandLine& line, std::vector<DType>* keys, std::vector<DType>* values) {
  AddBoth([&](const char* names, const char* flag, const char* help, bool is_keys) {
    line.AddParsed(
        names, "TYPE,...", [=](const std::string& given) { *(is_keys ? keys : values) = ParseTypes(flag, given); },
        help);
  });
}

}  // namespace thermocline
