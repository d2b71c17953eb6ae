// The command line: one CLI::App per command, and texts that say what is wrong with it.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace thermocline {

// Wrong usage: exit code 2, and where to read on.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum ExitCode : int { kGood = 0, kFailed = 1, kWrongUsage = 2, kStopped = 130 };   // kStopped: Ctrl-C, as shells say it

struct Command {
  const char* name;
  const char* summary;
  int (*run)(const Command& command, std::vector<std::string> args);   // returns the exit code; throws Error, UsageError
};

// An app for `command`, with its summary and --help.
class CommandLine : public CLI::App {
 public:
  explicit CommandLine(const Command& command);

  // Numbers within [min, max]; anything else is a UsageError that names the flag, the value and the bounds.
  CLI::Option* AddInt(const std::string& names, int64_t* value, int64_t min, int64_t max, const std::string& text);
  CLI::Option* AddInt(const std::string& names, int* value, int min, int max, const std::string& text);
  CLI::Option* AddDouble(const std::string& names, double* value, double min, double max, const std::string& text);
  // Numbers separated by commas.
  CLI::Option* AddIntList(const std::string& names, std::vector<int>* values, int min, int max, const std::string& text);
  CLI::Option* AddText(const std::string& names, std::string* value, const std::string& text);
  CLI::Option* AddText(const std::string& names, std::optional<std::string>* value, const std::string& text);
  CLI::Option* AddTextList(const std::string& names, std::vector<std::string>* values, const std::string& text);
  // MODEL, or -m.
  void AddModel();

  // False when --help was asked for, and printed. Throws UsageError.
  bool Parse(std::vector<std::string> args);
  std::filesystem::path ModelPath() const;   // of AddModel's MODEL; throws Error where there is none

 private:
  void CheckFlags(std::vector<std::string>& args) const;

  std::string model_, model_flag_;
};

// The candidate that a misspelt `word` most likely meant; "" when none is near.
std::string Nearest(std::string_view word, std::span<const std::string> candidates);

}  // namespace thermocline
