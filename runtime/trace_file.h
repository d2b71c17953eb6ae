// --trace FILE of the commands that run the engine.
#pragma once

#include <optional>
#include <string>

#include "cpu/trace.h"
#include "runtime/cli.h"

namespace thermocline {

class TraceFile {
 public:
  void AddFlag(CommandLine& line);
  // After parsing: finds out whether the file can be written before anything long begins. Throws Error.
  void Open();
  // When an error ends the command, what led there is written; that this fails too is only said.
  ~TraceFile();

  Tracer* tracer() { return tracer_ ? &*tracer_ : nullptr; }  // null without the flag
  // When no engine uses the tracer any more; without the flag nothing happens. Throws Error.
  void Write();

 private:
  std::optional<std::string> path_;
  std::optional<Tracer> tracer_;
};

}  // namespace thermocline
