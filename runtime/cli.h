// The command line: flags of one command, and texts that say what is wrong with it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
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

// kStopped: by Ctrl-C, as shells say it.
enum ExitCode : int { kGood = 0, kFailed = 1, kWrongUsage = 2, kStopped = 130 };

struct Command {
  const char* name;
  const char* summary;
  int (*run)(const Command& command, std::vector<std::string> args);  // returns the exit code; throws Error, UsageError
};

// The flags of one command; each adder names its flags "-t,--threads" and binds them to a variable, whose value from
// before is the default. Of a flag given twice the last counts.
class CommandLine {
 public:
  explicit CommandLine(const Command& command);
  ~CommandLine();
  CommandLine(const CommandLine&) = delete;

  void AddFlag(const std::string& names, bool* value, const std::string& help);
  // Numbers within [min, max]; anything else is a UsageError that names the flag, the value and the bounds.
  void AddInt(const std::string& names, int64_t* value, int64_t min, int64_t max, const std::string& help);
  void AddInt(const std::string& names, int* value, int min, int max, const std::string& help);
  void AddDouble(const std::string& names, double* value, double min, double max, const std::string& help);
  // Numbers and ranges separated by commas, at most kMaxListNumbers: 1,4 or 1-4 or 128-512*2 or 0-4096+1024.
  void AddIntList(const std::string& names, std::vector<int>* values, int min, int max, const std::string& help);
  // `kind` is what help shows for the value: TEXT, FILE.
  void AddText(const std::string& names, const char* kind, std::optional<std::string>* value, const std::string& help);
  // What `parse` makes of the value; it throws UsageError.
  void AddParsed(const std::string& names, const char* kind, std::function<void(const std::string&)> parse,
                 const std::string& help);
  // A text for each time the flag is given.
  void AddTextList(const std::string& names, const char* kind, std::vector<std::string>* values,
                   const std::string& help);
  // MODEL, and -m for the same.
  void AddModel();
  // MODEL alone.
  void AddPositional(const std::string& name, std::string* value, const std::string& help);
  // What --help says at the end.
  void SetFooter(const std::string& text);

  // False when --help was asked for, and has been printed. Throws UsageError.
  bool Parse(std::vector<std::string> args);
  bool NamesModel() const;                  // whether MODEL was given
  std::filesystem::path ModelPath() const;  // of AddModel's MODEL; throws Error where there is none

 private:
  void CheckFlags(std::vector<std::string>& args) const;

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// "1%" or "1", percent both, above 0 and up to 100: as a share. Throws UsageError, which names the flag.
double ParsePercent(std::string_view flag, std::string_view text);
// "0.4" or "40%", above 0 and below 1. Throws UsageError, which names the flag.
double ParseShare(std::string_view flag, std::string_view text);

// The candidate that a misspelt `word` most likely meant; "" when none is near.
std::string Nearest(std::string_view word, std::span<const std::string> candidates);

}  // namespace thermocline
