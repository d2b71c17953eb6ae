#include "runtime/trace_file.h"

#include "models/error.h"
#include "runtime/output_file.h"
#include "runtime/text_io.h"

namespace thermocline {

void TraceFile::AddFlag(CommandLine& line) {
  line.AddText("--trace", "FILE", &path_, "Write what every thread did when, for chrome://tracing or ui.perfetto.dev");
}

void TraceFile::Open() {
  if (!path_) return;
  const OutputFile probe(*path_);
  tracer_.emplace();
}

TraceFile::~TraceFile() {
  try {
    Write();
  } catch (const Error& error) {
    Note("error: {}", TerminalSafe(error.what()));
  }
}

void TraceFile::Write() {
  if (!tracer_) return;
  OutputFile file(*path_);
  tracer_->Write([&](std::string_view text) {
    file.Write({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  });
  file.Commit();
  tracer_.reset();
}

}  // namespace thermocline
