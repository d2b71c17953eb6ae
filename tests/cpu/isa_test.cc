#include "cpu/isa.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <string>

#include "models/error.h"

namespace thermocline {
namespace {

// Sets THERMOCLINE_ISA for a scope; nullptr removes it.
class ScopedIsa {
 public:
  explicit ScopedIsa(const char* value) {
    if (const char* before = std::getenv("THERMOCLINE_ISA")) before_ = before, was_set_ = true;
    Set(value);
  }
  ~ScopedIsa() { Set(was_set_ ? before_.c_str() : nullptr); }

 private:
  static void Set(const char* value) {
    if (value != nullptr) {
      setenv("THERMOCLINE_ISA", value, 1);
    } else {
      unsetenv("THERMOCLINE_ISA");
    }
  }
  std::string before_;
  bool was_set_ = false;
};

std::string ErrorOfChoice() {
  try {
    ChooseIsa();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

bool Contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

TEST_CASE("ISAs that can run are what /proc/cpuinfo lists") {
  std::ifstream file("/proc/cpuinfo");
  std::string flags;
  for (std::string line; std::getline(file, line) && flags.empty();)
    if (line.starts_with("flags")) flags = line.append(" ");
  const auto has = [&](std::initializer_list<const char*> names) {
    for (const char* name : names) {
      std::string word = " ";
      word.append(name).push_back(' ');
      if (!Contains(flags, word)) return false;
    }
    return true;
  };
  CHECK(CanRun(Isa::kScalar));
  CHECK(CanRun(Isa::kAvx2) == has({"avx2", "fma", "f16c"}));
  CHECK(CanRun(Isa::kAvxVnni) == has({"avx2", "fma", "f16c", "avx_vnni"}));
  CHECK(CanRun(Isa::kAvx512) ==
        has({"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}));
  CHECK(CanRun(Isa::kAmx) == (CanRun(Isa::kAvx512) && has({"avx512_bf16", "amx_tile", "amx_bf16"})));
}

TEST_CASE("without THERMOCLINE_ISA the widest is chosen") {
  for (const char* unset : {static_cast<const char*>(nullptr), ""}) {
    const ScopedIsa scoped(unset);
    const Isa chosen = ChooseIsa();
    CHECK(CanRun(chosen));
    for (const Isa isa : kIsas)
      if (CanRun(isa)) CHECK(chosen >= isa);
  }
}

TEST_CASE("THERMOCLINE_ISA caps the choice, or fails") {
  for (const Isa isa : kIsas) {
    const ScopedIsa scoped(std::string(Name(isa)).c_str());
    if (CanRun(isa)) {
      CHECK(ChooseIsa() == isa);
    } else {
      CHECK(Contains(ErrorOfChoice(), "cannot run"));
    }
  }
}

TEST_CASE("an unknown THERMOCLINE_ISA is refused with the list of the known") {
  for (const char* unknown : {"avx", "AVX2", "avx512 ", "avx_vnni", "sse"}) {
    const ScopedIsa scoped(unknown);
    const std::string message = ErrorOfChoice();
    for (std::string_view part : {"THERMOCLINE_ISA", unknown, "scalar", "avx2", "avxvnni", "avx512", "amx"})
      CHECK(Contains(message, part));
  }
}

}  // namespace
}  // namespace thermocline
