// Stop strings in streamed text: they end the answer and are never shown, also when they arrive in pieces.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace thermocline {

class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stops);  // none of them empty

  // The text that can be shown now: up to the first stop string, or to where one may have begun.
  std::string Push(std::string_view text);
  // What was held back and became no stop string.
  std::string Finish();
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace thermocline
