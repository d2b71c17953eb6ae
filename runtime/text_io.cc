#include "runtime/text_io.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>

#include "models/error.h"
#include "models/limits.h"
#include "models/unicode.h"

namespace thermocline {
namespace {

// Returns the errno of the failure, or 0.
int WriteAll(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = write(fd, text.data(), text.size());
    if (n >= 0) {
      text.remove_prefix(static_cast<size_t>(n));
    } else if (errno == EAGAIN) {
      pollfd ready{fd, POLLOUT, 0};
      poll(&ready, 1, -1);
    } else if (errno != EINTR) {
      return errno;
    }
  }
  return 0;
}

std::string ReadAll(int fd, const std::string& name) {
  std::string text;
  size_t size = 0;
  for (;;) {
    if (text.size() - size < (1 << 16)) text.resize(std::max<size_t>(2 * text.size(), 1 << 17));
    const ssize_t n = read(fd, text.data() + size, text.size() - size);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      pollfd ready{fd, POLLIN, 0};
      poll(&ready, 1, -1);
      continue;
    }
    if (n < 0) throw Error("{}: cannot be read: {}", name, std::strerror(errno));
    if (n == 0) break;
    size += static_cast<size_t>(n);
    if (size > kMaxTextBytes) throw Error("{}: more than {} MiB of text", name, kMaxTextBytes >> 20);
  }
  text.resize(size);
  return text;
}

}  // namespace

void GuardStandardStreams() {
  for (int fd = 0; fd <= 2; fd++) {
    // Standard output is opened for reading only: writing to it must fail as it would have when closed.
    if (fcntl(fd, F_GETFD) < 0 && errno == EBADF) open("/dev/null", fd == 2 ? O_WRONLY : O_RDONLY);
  }
  std::signal(SIGPIPE, SIG_IGN);
}

bool InputIsTerminal() { return isatty(STDIN_FILENO) == 1; }
bool OutputIsTerminal() { return isatty(STDOUT_FILENO) == 1; }
bool ErrorIsTerminal() {
  const char* term = std::getenv("TERM");
  return isatty(STDERR_FILENO) == 1 && term != nullptr && std::strcmp(term, "dumb") != 0;
}

void WriteOut(std::string_view text) {
  if (const int error = WriteAll(STDOUT_FILENO, text))
    throw Error("cannot write to standard output: {}", std::strerror(error));
}

void WriteErr(std::string_view text) { WriteAll(STDERR_FILENO, text); }

std::string ReadText(const std::filesystem::path& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw Error("{}: cannot be opened: {}", path.string(), std::strerror(errno));
  struct Closer {
    int fd;
    ~Closer() { close(fd); }
  } closer{fd};
  return ReadAll(fd, path.string());
}

std::string ReadInput() {
  // Somebody who gave a prompt and is waiting for the answer should learn what we are waiting for.
  pollfd ready{STDIN_FILENO, POLLIN, 0};
  if (poll(&ready, 1, 2000) == 0) Note("reading standard input ... (`< /dev/null` leaves it out)");
  return ReadAll(STDIN_FILENO, "standard input");
}

std::string ValidText(std::string text, std::string_view source) {
  std::string valid;
  const size_t replaced = AppendValidUtf8(text, valid);
  if (replaced == 0) return text;
  Note("note: {} is not valid UTF-8: {} invalid part{} replaced by U+FFFD", source, replaced, replaced == 1 ? "" : "s");
  return valid;
}

std::string TerminalSafe(std::string_view text) {
  std::string safe;
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Char c = DecodeUtf8(text, pos);
    const bool control = c.code < 0x20 ? c.code != '\n' && c.code != '\t' : c.code >= 0x7f && c.code < 0xa0;
    if (c.valid && !control) {
      safe += text.substr(pos, c.bytes);
    } else {
      safe += kReplacementCharacter;
    }
    pos += c.bytes;
  }
  return safe;
}

std::string HumanBytes(double bytes) {
  constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB"};
  int unit = 0;
  while (bytes >= 999.95 && unit < 4) {
    bytes /= 1000;
    unit++;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", bytes, kUnits[unit]);
}

}  // namespace thermocline
