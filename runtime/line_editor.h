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
  // each line; where that fails there is simply less history. What can be read from `interrupt_fd`, an eventfd that
  // does not block, ends a Read: a signal handler writes there, since a signal between two reads of the terminal would
  // be lost.
  LineEditor(std::string prompt, std::filesystem::path history, int interrupt_fd);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;

  // kLine: `line` without its newline; a paste of several lines comes as one. kInterrupted: by interrupt_fd (Ctrl-C);
  // `line` is what had been typed. kEnd: Ctrl-D, or the terminal is gone.
  Event Read(std::string& line);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace thermocline
