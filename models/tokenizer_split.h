// Pre-tokenizers: how a byte-level BPE cuts a text into words before it merges. Hand-written scanners instead of
// regexes: every text, also 10 MB of spaces, takes linear time.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace thermocline {

enum class PreTokenizer { kGpt2, kSmollm, kDefault };

std::optional<PreTokenizer> PreTokenizerFromName(std::string_view name);  // as tokenizer.ggml.pre writes it
std::string PreTokenizerNames();                                          // "a, b, c"

using WordSink = std::function<void(std::string_view word)>;

// Calls `sink` with the words of `text`, valid UTF-8, in order; they cover it. The regexes, each applied to what the
// one before it matched and left over:
//   kGpt2     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//   kSmollm   \p{N}, then kGpt2's                        (Digits(individual_digits), ByteLevel)
//   kDefault  [\p{P}\$\+<=>\^~\|]+, then kGpt2's, then \p{N}+, then [0-9][0-9][0-9]      (llama.cpp's "default")
void SplitWords(PreTokenizer kind, std::string_view text, const WordSink& sink);

}  // namespace thermocline
