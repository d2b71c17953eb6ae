// A line from the terminal: editing, history, pasted paragraphs.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

namespace thermocline {

class LineEditor {
 public:
  enum class Event { kLine, kInterrupted, kEnd };

  // The prompt goes to standard error. History lies in `history` ("": nowhere), which is read now and written after
  // each line; where that fails there is simply less history.
  LineEditor(std::string prompt, std::filesystem::path history);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;

  // kLine: `line` without its newline; a paste of several lines comes as one. kInterrupted: a signal (Ctrl-C) came;
  // `line` is what had been typed. kEnd: Ctrl-D, or the terminal is gone.
  Event Read(std::string& line);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace thermocline
