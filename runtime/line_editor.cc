#include "runtime/line_editor.h"

#include <fcntl.h>
#include <histedit.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <deque>
#include <iterator>
#include <string_view>

#include "models/limits.h"
#include "models/unicode.h"
#include "runtime/text_io.h"

namespace thermocline {
namespace {

constexpr int kPasteWaitMs = 20;             // the rest of an escape sequence follows at once
constexpr wchar_t kNewlineMark = L'\u23ce';  // stands for a newline within the edited line
constexpr std::string_view kNewlineMarkUtf8 = "\u23ce";
constexpr std::string_view kPasteBegin = "\x1b[200~", kPasteEnd = "\x1b[201~";  // xterm's bracketed paste

std::string WithNewlines(std::string_view marked) {
  std::string text;
  for (size_t pos = 0; pos < marked.size();) {
    const size_t mark = std::min(marked.find(kNewlineMarkUtf8, pos), marked.size());
    text += marked.substr(pos, mark - pos);
    if (mark < marked.size()) text += '\n';
    pos = mark + kNewlineMarkUtf8.size();
  }
  return text;
}

}  // namespace

struct LineEditor::Impl {
  std::string prompt;
  std::filesystem::path history_path;
  EditLine* edit = nullptr;
  History* history = nullptr;
  HistEvent event{};
  int interrupt_fd = -1;     // an eventfd that does not block
  std::deque<char> pending;  // bytes read ahead
  bool pasting = false;
  bool interrupted = false;

  static Impl* Of(EditLine* edit) {
    void* data = nullptr;
    el_get(edit, EL_CLIENTDATA, &data);
    return static_cast<Impl*>(data);
  }
  static char* Prompt(EditLine* edit) { return Of(edit)->prompt.data(); }
  static int GetChar(EditLine* edit, wchar_t* c) { return Of(edit)->ReadChar(c); }

  int ReadByte(char* byte);
  bool Follows(std::string_view sequence);
  int ReadChar(wchar_t* c);
};

// 1, or 0 at the end of input, or -1.
int LineEditor::Impl::ReadByte(char* byte) {
  if (!pending.empty()) {
    *byte = pending.front();
    pending.pop_front();
    return 1;
  }
  pollfd ready[] = {{STDIN_FILENO, POLLIN, 0}, {interrupt_fd, POLLIN, 0}};
  for (;;) {
    if (poll(ready, std::size(ready), -1) < 0 && errno != EINTR) return -1;
    uint64_t interrupts = 0;
    if (read(interrupt_fd, &interrupts, sizeof(interrupts)) == sizeof(interrupts)) {
      interrupted = true;
      return -1;
    }
    if (ready[0].revents == 0) continue;
    const ssize_t n = read(STDIN_FILENO, byte, 1);
    if (n >= 0 || errno != EINTR) return static_cast<int>(n);
  }
}

// Whether the input goes on with `sequence`, whose first byte has been read; takes it if so.
bool LineEditor::Impl::Follows(std::string_view sequence) {
  for (size_t i = 1; i < sequence.size(); i++) {
    if (pending.size() < i) {
      pollfd ready{STDIN_FILENO, POLLIN, 0};
      char byte = 0;
      if (poll(&ready, 1, kPasteWaitMs) <= 0 || read(STDIN_FILENO, &byte, 1) != 1) return false;
      pending.push_back(byte);
    }
    if (pending[i - 1] != sequence[i]) return false;
  }
  pending.erase(pending.begin(), pending.begin() + static_cast<std::ptrdiff_t>(sequence.size() - 1));
  return true;
}

// One character for libedit, with newlines inside a paste marked instead of ending the line.
int LineEditor::Impl::ReadChar(wchar_t* c) {
  for (;;) {
    char byte = 0;
    if (const int n = ReadByte(&byte); n <= 0) return n;
    if (byte == '\x1b' && Follows(pasting ? kPasteEnd : kPasteBegin)) {
      pasting = !pasting;
      continue;
    }
    if (pasting && (byte == '\r' || byte == '\n')) {
      *c = kNewlineMark;
      return 1;
    }
    if (pasting && static_cast<unsigned char>(byte) < 0x20) byte = ' ';  // a tab or worse is no command here
    std::string bytes(1, byte);
    Utf8Char decoded = DecodeUtf8(bytes, 0);
    while (decoded.truncated) {
      if (const int n = ReadByte(&byte); n <= 0) return n;
      bytes += byte;
      decoded = DecodeUtf8(bytes, 0);
    }
    for (size_t i = bytes.size(); i > static_cast<size_t>(decoded.bytes); i--) pending.push_front(bytes[i - 1]);
    *c = decoded.valid ? static_cast<wchar_t>(decoded.code) : L'\ufffd';
    return 1;
  }
}

LineEditor::LineEditor(std::string prompt, std::filesystem::path history, int interrupt_fd)
    : impl_(std::make_unique<Impl>()) {
  impl_->prompt = std::move(prompt);
  impl_->history_path = std::move(history);
  impl_->interrupt_fd = interrupt_fd;
  impl_->edit = el_init("thermocline", stdin, stderr, stderr);
  impl_->history = history_init();
  if (impl_->edit == nullptr || impl_->history == nullptr) return;
  ::history(impl_->history, &impl_->event, H_SETSIZE, kMaxHistoryEntries);
  ::history(impl_->history, &impl_->event, H_SETUNIQUE, 1);
  if (!impl_->history_path.empty()) ::history(impl_->history, &impl_->event, H_LOAD, impl_->history_path.c_str());
  el_set(impl_->edit, EL_CLIENTDATA, impl_.get());
  el_set(impl_->edit, EL_PROMPT, &Impl::Prompt);
  el_set(impl_->edit, EL_EDITOR, "emacs");
  el_set(impl_->edit, EL_SIGNAL, 0);
  el_set(impl_->edit, EL_HIST, ::history, impl_->history);
  el_set(impl_->edit, EL_BIND, "^R", "em-inc-search-prev", nullptr);
  el_set(impl_->edit, EL_GETCFN, &Impl::GetChar);
}

LineEditor::~LineEditor() {
  if (impl_->edit != nullptr) el_end(impl_->edit);
  if (impl_->history != nullptr) history_end(impl_->history);
}

LineEditor::Event LineEditor::Read(std::string& line) {
  line.clear();
  if (impl_->edit == nullptr || impl_->history == nullptr) return Event::kEnd;
  impl_->interrupted = impl_->pasting = false;
  const bool brackets = ErrorIsTerminal();
  if (brackets) WriteErr("\x1b[?2004h");
  // Before the prompt shows: a Ctrl-D typed under the terminal driver's own line discipline would be lost.
  el_set(impl_->edit, EL_PREP_TERM, 1);
  int n = 0;
  const char* text = el_gets(impl_->edit, &n);
  if (brackets) WriteErr("\x1b[?2004l");
  if (impl_->interrupted) {
    const LineInfo* info = el_line(impl_->edit);
    line.assign(info->buffer, info->lastchar);
    el_reset(impl_->edit);
    return Event::kInterrupted;
  }
  if (text == nullptr || n <= 0) return Event::kEnd;
  line.assign(text, static_cast<size_t>(n));
  if (line.ends_with('\n')) line.pop_back();
  if (line.find_first_not_of(' ') != std::string::npos) {
    ::history(impl_->history, &impl_->event, H_ENTER, line.c_str());
    if (!impl_->history_path.empty()) {
      // What one asks is nobody else's business: the file is ours alone before it holds anything.
      const int fd = open(impl_->history_path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
      if (fd >= 0) close(fd);
      ::history(impl_->history, &impl_->event, H_SAVE, impl_->history_path.c_str());
    }
  }
  line = WithNewlines(line);
  return Event::kLine;
}

}  // namespace thermocline
