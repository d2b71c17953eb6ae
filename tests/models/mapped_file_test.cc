#include "models/mapped_file.h"

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "models/error.h"
#include "models/gguf.h"
#include "models/limits.h"
#include "tests/models/tiny_model.h"

namespace thermocline {
namespace {

// A folder of its own that goes away with the test.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "thermocline_map_XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  std::filesystem::path File(const char* name, const ByteVector& bytes) const {
    std::ofstream out(path_ / name, std::ios::binary);
    out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return path_ / name;
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

std::string ErrorOf(const std::filesystem::path& path) {
  try {
    MappedFile::Open(path);
  } catch (const Error& e) {
    return e.what();
  }
  return "opened";
}

int64_t Sum(const uint8_t* data, size_t size) {
  int64_t sum = 0;
  for (size_t i = 0; i < size; ++i) sum += data[i];
  return sum;
}

constexpr size_t kPage = 4096;

}  // namespace

TEST_CASE("mapped file: what is no readable file is refused") {
  const TempFolder folder;
  const std::string path = folder.path().string();
  CHECK(ErrorOf(folder.path() / "none") ==
        path + "/none: cannot open: No such file or directory. Check the path and its permissions.");
  CHECK(ErrorOf(folder.path()) == path + ": is a folder, not a file. Name the model file itself.");
  CHECK(ErrorOf(folder.File("empty", {})) == path + "/empty: byte 0: is empty. Download the file again.");
  CHECK(ErrorOf("/dev/null") == "/dev/null: is a pipe or device, not a file. Name the model file itself.");
  REQUIRE(mkfifo((folder.path() / "pipe").c_str(), 0600) == 0);  // must not wait for a writer
  CHECK(ErrorOf(folder.path() / "pipe") ==
        path + "/pipe: is a pipe or device, not a file. Name the model file itself.");
}

TEST_CASE("mapped file: without address space there is no map") {
  const TempFolder folder;
  const auto path = folder.File("large", {1});
  const uint64_t bytes = uint64_t{1} << 36;  // sparse
  std::filesystem::resize_file(path, bytes);
  rlimit before = {};
  REQUIRE(getrlimit(RLIMIT_AS, &before) == 0);
  std::ifstream statm("/proc/self/statm");
  uint64_t pages_in_use = 0;
  statm >> pages_in_use;
  REQUIRE(pages_in_use > 0);
  const rlimit tight = {pages_in_use * kPage + bytes / 2, before.rlim_max};
  REQUIRE(setrlimit(RLIMIT_AS, &tight) == 0);
  const std::string error = ErrorOf(path);
  REQUIRE(setrlimit(RLIMIT_AS, &before) == 0);
  CHECK(error == path.string() +
                     ": cannot map its 68719476736 bytes: Cannot allocate memory. Free memory, or raise the limit on "
                     "address space (ulimit -v).");
}

TEST_CASE("mapped file: maps are counted, moved and given back") {
  const TempFolder folder;
  const auto path = folder.File("file", {1, 2, 3});
  for (int round = 0; round < 2; ++round) {  // the second round finds the slots of the first
    std::vector<MappedFile> maps;
    while (maps.size() < kMaxMappedFiles) maps.push_back(MappedFile::Open(path));
    CHECK(ErrorOf(path) == path.string() + ": 256 files are mapped already, which is the limit. Close some of them.");
    maps.front() = std::move(maps.back());
    maps.pop_back();
    CHECK(Sum(maps.front().data(), maps.front().size()) == 6);
    CHECK_FALSE(maps.front().damaged());
  }
}

TEST_CASE("mapped file: a file that shrinks reads as zeros and says so") {
  const TempFolder folder;
  const auto path = folder.File("file", ByteVector(4 * kPage, 1));
  SUBCASE("pages are lost while threads read them") {
    MappedFile map = MappedFile::Open(path);
    std::filesystem::resize_file(path, kPage);
    std::vector<int64_t> sums(4);
    std::vector<std::thread> threads;
    for (int64_t& sum : sums) threads.emplace_back([&] { sum = Sum(map.data(), map.size()); });
    for (std::thread& thread : threads) thread.join();
    for (const int64_t sum : sums) CHECK(sum == kPage);
    CHECK(map.damaged());
    std::filesystem::resize_file(path, 4 * kPage);
    CHECK(map.damaged());  // what was read as zeros stays suspect
    const MappedFile moved = std::move(map);
    CHECK(moved.damaged());
  }
  SUBCASE("the lost part lies within the last page, where no signal is raised") {
    const MappedFile map = MappedFile::Open(path);
    std::filesystem::resize_file(path, 4 * kPage - 1);
    CHECK(Sum(map.data(), map.size()) == 4 * kPage - 1);
    CHECK(map.damaged());
  }
  SUBCASE("another map is not touched") {
    const auto other_path = folder.File("other", ByteVector(kPage, 1));
    const MappedFile other = MappedFile::Open(other_path);
    const MappedFile map = MappedFile::Open(path);
    std::filesystem::resize_file(path, 0);
    CHECK(Sum(map.data(), map.size()) == 0);
    CHECK(map.damaged());
    CHECK_FALSE(other.damaged());
  }
}

TEST_CASE("mapped file: advice changes no byte, whatever range it is about") {
  const TempFolder folder;
  ByteVector bytes(3 * kPage + 5);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 7 + i / 256);
  const MappedFile mapped = MappedFile::Open(folder.File("file", bytes));
  const MappedFile owned = MappedFile::FromBytes(bytes);
  CHECK(mapped.modified_ns() > 0);
  CHECK(owned.modified_ns() == 0);
  for (const MappedFile* file : {&mapped, &owned})
    for (const size_t begin : {size_t{0}, size_t{1}, kPage, 3 * kPage + 1})
      for (const size_t end : {begin, begin + 1, 3 * kPage, bytes.size()}) {
        if (end < begin || end > bytes.size()) continue;
        file->WillRead(begin, end - begin);
        file->Map(begin, end - begin);
        CHECK(std::equal(bytes.begin(), bytes.end(), file->data()));
        file->DoneWith(begin, end - begin);
        CHECK(std::equal(bytes.begin(), bytes.end(), file->data()));
        CHECK_FALSE(file->damaged());
      }
}

TEST_CASE("mapped file: pages done with are taken from the process") {
  const TempFolder folder;
  const size_t bytes = 1024 * kPage;
  const MappedFile map = MappedFile::Open(folder.File("file", ByteVector(bytes, 1)));
  const auto resident = [&] {
    std::ifstream statm("/proc/self/statm");
    int64_t size = 0, pages = 0;
    statm >> size >> pages;
    return pages;
  };
  map.Map(0, bytes);
  CHECK(Sum(map.data(), bytes) == static_cast<int64_t>(bytes));
  const int64_t before = resident();
  map.DoneWith(0, bytes);
  CHECK(resident() < before - 512);
}

TEST_CASE("mapped file: a model that shrinks ends in an error") {
  const TempFolder folder;
  const ByteVector bytes = TinyModel().Build();
  const auto path = folder.File("model.gguf", bytes);
  const GgufFile file = GgufFile::Open(path);
  const Tensor& last = file.tensors().back();
  std::vector<float> weights(static_cast<size_t>(last.ne[0]));
  Dequantize(last.type, last.data, last.ne[0], weights.data());
  file.CheckIntact();
  std::filesystem::resize_file(path, 10);
  Dequantize(last.type, last.data, last.ne[0], weights.data());
  std::string error;
  try {
    file.CheckIntact();
  } catch (const Error& e) {
    error = e.what();
  }
  CHECK(error == path.string() + ": the file became shorter than its " + std::to_string(bytes.size()) +
                     " bytes while it was read, or its disk failed. Keep it unchanged while it is in use, and "
                     "download it again.");
}

// The handler is installed once per process, so what it does about others' signals is asked of fresh processes: this
// binary again, running only the skipped test case below. Exit status as waitpid gives it.
int RunChild(const char* mode) {
  const pid_t child = fork();
  if (child == 0) {
    setenv("THERMOCLINE_TEST_SIGBUS", mode, 1);
    execl("/proc/self/exe", "models_test", "--test-case=child of mapped file", "--no-skip", "--minimal", nullptr);
    _exit(1);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  return status;
}

TEST_CASE("mapped file: a SIGBUS that is not ours goes to the former handler") {
  const int handled = RunChild("handled");
  CHECK((WIFEXITED(handled) && WEXITSTATUS(handled) == 42));
  const int handled_info = RunChild("handled with info");
  CHECK((WIFEXITED(handled_info) && WEXITSTATUS(handled_info) == 43));
  const int fault = RunChild("fault");
  CHECK((WIFSIGNALED(fault) && WTERMSIG(fault) == SIGBUS));
  const int sent = RunChild("sent");
  CHECK((WIFSIGNALED(sent) && WTERMSIG(sent) == SIGBUS));
  const int ignored = RunChild("sent and ignored");
  CHECK((WIFEXITED(ignored) && WEXITSTATUS(ignored) == 44));
}

TEST_CASE("child of mapped file" * doctest::skip()) {
  const char* mode_or_null = getenv("THERMOCLINE_TEST_SIGBUS");
  REQUIRE(mode_or_null != nullptr);
  const std::string mode = mode_or_null;
  const rlimit no_core = {0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  struct sigaction action = {};
  if (mode == "handled") {
    action.sa_handler = [](int) { _exit(42); };
  } else if (mode == "handled with info") {
    action.sa_flags = SA_SIGINFO;
    action.sa_sigaction = [](int, siginfo_t* info, void*) { _exit(info->si_addr != nullptr ? 43 : 1); };
  } else {
    action.sa_handler = mode == "sent and ignored" ? SIG_IGN : SIG_DFL;
  }
  sigaction(SIGBUS, &action, nullptr);

  FILE* temporary = tmpfile();
  REQUIRE(temporary != nullptr);
  REQUIRE(ftruncate(fileno(temporary), 2 * kPage) == 0);
  const MappedFile ours = MappedFile::Open("/proc/self/exe");  // installs our handler over the former one
  if (mode.starts_with("sent")) {
    raise(SIGBUS);
    _exit(44);
  }
  void* theirs = mmap(nullptr, 2 * kPage, PROT_READ, MAP_SHARED, fileno(temporary), 0);
  REQUIRE(theirs != MAP_FAILED);
  REQUIRE(ftruncate(fileno(temporary), 0) == 0);
  _exit(static_cast<const volatile uint8_t*>(theirs)[kPage]);  // SIGBUS outside of our maps
}

}  // namespace thermocline
