#include <algorithm>
#include <charconv>

#include "models/error.h"
#include "models/gguf.h"
#include "models/quoted.h"
#include "models/tokenizer.h"
#include "runtime/commands/commands.h"
#include "runtime/text_io.h"

namespace thermocline {
namespace {

bool IsSeparator(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t' || c == ','; }

std::vector<TokenId> ParseIds(std::string_view text) {
  std::vector<TokenId> ids;
  for (size_t pos = 0; pos < text.size();) {
    if (IsSeparator(text[pos])) {
      pos++;
      continue;
    }
    TokenId id = 0;
    const auto [end, error] = std::from_chars(text.data() + pos, text.data() + text.size(), id);
    const size_t after = static_cast<size_t>(end - text.data());
    if (error != std::errc{} || (after < text.size() && !IsSeparator(text[after]))) {
      const auto stop = std::find_if(text.begin() + pos, text.end(), IsSeparator) - text.begin();
      throw Error("{} at byte {} is not a token id", Quoted(text.substr(pos, stop - pos)), pos);
    }
    ids.push_back(id);
    pos = after;
  }
  return ids;
}

// What Encode adds by itself is no part of the text that comes back.
void DropAdded(const Tokenizer& tokenizer, std::vector<TokenId>& ids) {
  if (tokenizer.add_eos() && !ids.empty() && ids.back() == tokenizer.eos()) ids.pop_back();
  if (tokenizer.add_bos() && !ids.empty() && ids.front() == tokenizer.bos()) ids.erase(ids.begin());
}

// The bytes as they are, without the spaces that Encode puts in front of text.
std::string Decode(const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  std::string out;
  bool starts = tokenizer.add_space_prefix();
  for (const TokenId id : ids) {
    std::string bytes = tokenizer.Bytes(id, true);
    if (starts && !tokenizer.IsControl(id) && !tokenizer.IsUserDefined(id) && bytes.starts_with(' ')) bytes.erase(0, 1);
    starts = tokenizer.add_space_prefix() && tokenizer.IsControl(id);
    out += bytes;
  }
  return out;
}

}  // namespace

int RunTokenize(const Command& command, std::vector<std::string> args) {
  CommandLine line(command);
  std::optional<std::string> prompt, path;
  bool no_special = false, decode = false;
  line.AddModel();
  line.AddText("-p,--prompt", "TEXT", &prompt, "The text; without -p and -f, all of standard input");
  line.AddText("-f,--file", "FILE", &path, "A file with the text");
  line.AddFlag("--no-special", &no_special,
               "Add (or take away) no BOS or EOS; special tokens written in the text still count");
  line.AddFlag("--decode", &decode, "The other way round: from ids to bytes, without the BOS or EOS that was added");
  if (!line.Parse(std::move(args))) return kGood;
  if (prompt && path) throw UsageError("-p and -f exclude each other");

  const GgufFile file = GgufFile::Open(line.ModelPath());
  const auto tokenizer = Tokenizer::FromGguf(file);
  std::string text = prompt ? *prompt : path ? ReadText(*path) : ReadInput();
  if (decode) {
    auto ids = ParseIds(text);
    if (!no_special) DropAdded(*tokenizer, ids);
    WriteOut(Decode(*tokenizer, ids));
    return kGood;
  }
  text = ValidText(std::move(text), "the text");
  std::string out;
  for (const TokenId id : tokenizer->Encode(text, {.add_bos_eos = !no_special, .parse_special = true})) {
    if (!out.empty()) out += ' ';
    out += std::to_string(id);
  }
  WriteOut(out + "\n");
  return kGood;
}

}  // namespace thermocline
