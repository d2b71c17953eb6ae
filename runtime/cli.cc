#include "runtime/cli.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <tuple>

#include "models/limits.h"
#include "models/quoted.h"
#include "runtime/catalog.h"
#include "runtime/text_io.h"

namespace thermocline {
namespace {

template <typename... Args>
[[noreturn]] void Fail(fmt::format_string<Args...> format, Args&&... args) {
  throw UsageError(fmt::format(format, std::forward<Args>(args)...));
}

// How messages call a flag: "-t,--threads" is -t/--threads, "--temp,--temperature" is --temp.
std::string DisplayName(const std::string& names) {
  const auto first = names.find(',');
  if (first == std::string::npos) return names;
  if (names.starts_with("--")) return names.substr(0, first);
  return names.substr(0, first) + "/" + names.substr(first + 1, names.find(',', first + 1) - first - 1);
}

int64_t ParseInt(const std::string& flag, std::string_view text, int64_t min, int64_t max) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || end != text.data() + text.size() ||
      (error != std::errc{} && error != std::errc::result_out_of_range)) {
    Fail("{}: {} is not a whole number", flag, Quoted(text));
  }
  if (error != std::errc{} || value < min || value > max) {
    Fail("{}: {} is out of range; it goes from {} to {}", flag, text, min, max);
  }
  return value;
}

double ParseDouble(const std::string& flag, std::string_view text, double min, double max) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || end != text.data() + text.size() || error != std::errc{} || std::isnan(value)) {
    Fail("{}: {} is not a number", flag, Quoted(text));
  }
  if (value < min || value > max) Fail("{}: {} is out of range; it goes from {} to {}", flag, text, min, max);
  return value;
}

// FIRST, FIRST-LAST, FIRST-LAST+STEP or FIRST-LAST*FACTOR.
void AddRange(const std::string& flag, std::string_view text, int min, int max, std::vector<int>* values) {
  const size_t dash = text.find('-', 1);
  const std::string_view tail = dash < text.size() ? text.substr(dash + 1) : std::string_view();
  const size_t sign = std::min(tail.find_first_of("+*"), tail.size());
  const int64_t first = ParseInt(flag, text.substr(0, dash), min, max);
  const int64_t last = dash < text.size() ? ParseInt(flag, tail.substr(0, sign), min, max) : first;
  const bool times = sign < tail.size() && tail[sign] == '*';
  const int64_t step = sign < tail.size() ? ParseInt(flag, tail.substr(sign + 1), times ? 2 : 1, max) : 1;
  if (first > last) Fail("{}: {} begins above its end", flag, text);
  if (first == 0 && times) Fail("{}: {} never ends: 0 stays 0, whatever it is multiplied by", flag, text);
  for (int64_t value = first; value <= last; value = times ? value * step : value + step) {
    if (values->size() == kMaxListNumbers) Fail("{}: more than {} numbers", flag, kMaxListNumbers);
    values->push_back(static_cast<int>(value));
  }
}

// Edits (insert, delete, replace, swap neighbours) that make one word the other.
size_t Distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); i++) d[i][0] = i;
  std::iota(d[0].begin(), d[0].end(), size_t{0});
  for (size_t i = 1; i <= a.size(); i++) {
    for (size_t j = 1; j <= b.size(); j++) {
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

}  // namespace

std::string Nearest(std::string_view word, std::span<const std::string> candidates) {
  constexpr size_t kLongestWord = 40;
  std::string nearest;
  if (word.size() > kLongestWord) return nearest;
  size_t best = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    size_t distance = Distance(word, candidate);
    if (word.size() > 2 && candidate.starts_with(word)) distance = std::min<size_t>(distance, 1);
    if (distance < best) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

struct CommandLine::Impl {
  CLI::App app;
  std::string model, model_flag;
};

CommandLine::CommandLine(const Command& command) : impl_(std::make_unique<Impl>()) {
  impl_->app.description(command.summary);
  impl_->app.name(std::string("thermocline ") + command.name);
  impl_->app.set_help_flag("-h,--help", "Print this help");
  impl_->app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  impl_->app.get_formatter()->column_width(36);
}

CommandLine::~CommandLine() = default;

void CommandLine::AddFlag(const std::string& names, bool* value, const std::string& help) {
  impl_->app.add_flag(names, *value, help);
}

void CommandLine::AddInt(const std::string& names, int64_t* value, int64_t min, int64_t max, const std::string& help) {
  const auto parse = [=, flag = DisplayName(names)](const std::string& given) {
    *value = ParseInt(flag, given, min, max);
  };
  impl_->app.add_option_function<std::string>(names, parse, help)->type_name("N");
}

void CommandLine::AddInt(const std::string& names, int* value, int min, int max, const std::string& help) {
  const auto parse = [=, flag = DisplayName(names)](const std::string& given) {
    *value = static_cast<int>(ParseInt(flag, given, min, max));
  };
  impl_->app.add_option_function<std::string>(names, parse, help)->type_name("N");
}

void CommandLine::AddDouble(const std::string& names, double* value, double min, double max, const std::string& help) {
  const auto parse = [=, flag = DisplayName(names)](const std::string& given) {
    *value = ParseDouble(flag, given, min, max);
  };
  impl_->app.add_option_function<std::string>(names, parse, help)->type_name("X");
}

void CommandLine::AddIntList(const std::string& names, std::vector<int>* values, int min, int max,
                             const std::string& help) {
  const auto parse = [=, flag = DisplayName(names)](const std::string& given) {
    values->clear();
    for (size_t begin = 0; begin <= given.size();) {
      const size_t end = std::min(given.find(',', begin), given.size());
      AddRange(flag, std::string_view(given).substr(begin, end - begin), min, max, values);
      begin = end + 1;
    }
  };
  impl_->app.add_option_function<std::string>(names, parse, help)->type_name("N,...");
}

void CommandLine::AddText(const std::string& names, const char* kind, std::optional<std::string>* value,
                          const std::string& help) {
  AddParsed(
      names, kind, [=](const std::string& given) { *value = given; }, help);
}

void CommandLine::AddParsed(const std::string& names, const char* kind, std::function<void(const std::string&)> parse,
                            const std::string& help) {
  impl_->app.add_option_function<std::string>(names, std::move(parse), help)->type_name(kind);
}

void CommandLine::AddTextList(const std::string& names, const char* kind, std::vector<std::string>* values,
                              const std::string& help) {
  impl_->app.add_option(names, *values, help)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->expected(1)
      ->allow_extra_args(false)
      ->type_name(kind);
}

void CommandLine::AddPositional(const std::string& name, std::string* value, const std::string& help) {
  impl_->app.add_option(name, *value, help)->type_name("");
}

void CommandLine::AddModel() {
  AddPositional("MODEL", &impl_->model,
                "A GGUF file, or the name of a model in the cache; without one, the default model");
  impl_->app.add_option("-m,--model", impl_->model_flag, "The same as MODEL")->type_name("MODEL");
}

void CommandLine::SetFooter(const std::string& text) { impl_->app.footer(text); }

bool CommandLine::NamesModel() const { return !impl_->model.empty() || !impl_->model_flag.empty(); }

std::filesystem::path CommandLine::ModelPath() const {
  const auto& [model, flag] = std::tie(impl_->model, impl_->model_flag);
  if (!model.empty() && !flag.empty()) Fail("MODEL is given twice: {} and -m {}", Quoted(model), Quoted(flag));
  return ResolveModel(model.empty() ? flag : model);
}

// Finds unknown flags before CLI11 does, to say which one was likely meant, and writes llama.cpp's -sys, -pg, -npl,
// -tb, -ctk and -ctv as long flags, which is all that CLI11 knows.
void CommandLine::CheckFlags(std::vector<std::string>& args) const {
  std::vector<std::string> flags;
  for (const CLI::Option* option : impl_->app.get_options()) {
    for (const std::string& name : option->get_snames()) flags.push_back("-" + name);
    for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
  }
  const auto known = [&](const std::string& flag) {
    return std::find(flags.begin(), flags.end(), flag) != flags.end();
  };
  for (size_t i = 0; i < args.size(); i++) {
    if (args[i].size() < 2 || args[i][0] != '-') continue;
    if (args[i] == "--") return;
    for (const char* name : {"-sys", "-pg", "-npl", "-tb", "-ctk", "-ctv"}) {
      if (args[i] == name && known("-" + args[i])) args[i].insert(0, 1, '-');
    }
    const bool is_long = args[i][1] == '-';
    size_t end = std::min(args[i].find('='), args[i].size());
    if (!is_long && end > 2) {
      if (known("-" + args[i].substr(0, end)))
        Fail("unknown flag {}; did you mean -{}?", Quoted(args[i]), args[i].substr(0, end));
      end = 2;  // -n5
    }
    const std::string flag = args[i].substr(0, end);
    if (!known(flag)) {
      const std::string nearest = Nearest(flag, flags);
      Fail("unknown flag {}{}", Quoted(args[i]), nearest.empty() ? "" : fmt::format("; did you mean {}?", nearest));
    }
    const CLI::Option* option = impl_->app.get_option(flag);
    if (option->get_expected_min() == 0) {
      if (end < args[i].size()) Fail("{} takes no value", flag);
      continue;
    }
    if (end < args[i].size()) {  // CLI11 takes --stop= as if the next argument were its value
      args.insert(args.begin() + static_cast<std::ptrdiff_t>(i) + 1, args[i].substr(end + (is_long ? 1 : 0)));
      args[i] = flag;
    }
    if (i + 1 == args.size()) Fail("{} needs a value", flag);
    i++;
  }
}

bool CommandLine::Parse(std::vector<std::string> args) {
  CheckFlags(args);
  std::reverse(args.begin(), args.end());  // as CLI11 wants them
  try {
    impl_->app.parse(std::move(args));
  } catch (const CLI::CallForHelp&) {
    WriteOut(impl_->app.help());
    return false;
  } catch (const CLI::ExtrasError&) {
    Fail("too many arguments: {}", Quoted(impl_->app.remaining().empty() ? "" : impl_->app.remaining().front()));
  } catch (const CLI::ParseError& error) {
    throw UsageError(error.what());
  }
  return true;
}

namespace {

std::optional<double> ParseNumber(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || text.empty() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

double ParsePercent(std::string_view flag, std::string_view text) {
  const auto value = ParseNumber(text.ends_with('%') ? text.substr(0, text.size() - 1) : text);
  if (!value || !(*value > 0 && *value <= 100))
    Fail("{}: {} is not a percentage above 0 and up to 100%", flag, Quoted(text));
  return *value / 100;
}

double ParseShare(std::string_view flag, std::string_view text) {
  const bool percent = text.ends_with('%');
  auto value = ParseNumber(percent ? text.substr(0, text.size() - 1) : text);
  if (value && percent) *value /= 100;
  if (!value || !(*value > 0 && *value < 1)) Fail("{}: {} is not a share between 0 and 1, as 0.4", flag, Quoted(text));
  return *value;
}

}  // namespace thermocline
