#include "cpu/weights.h"

#include <doctest/doctest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>

#include "cpu/packed_file.h"
#include "models/error.h"
#include "models/hash.h"
#include "tests/cpu/random_weights.h"
#include "tests/models/tiny_model.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;

constexpr int kVocabulary = 60'000;

// A model with large enough a head that the packed weights span several chunks, in a folder that goes away.
struct Fixture {
  Fixture() {
    std::string name = (fs::temp_directory_path() / "thermocline_weights_XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    folder = name;
    path = folder / "model.gguf";
    kept = folder / "cache" / "model.packed";
    WriteBytes(path, TinyModel({.n_vocab = kVocabulary}).Build());
  }
  ~Fixture() { fs::remove_all(folder); }

  static void WriteBytes(const fs::path& path, const ByteVector& bytes) {
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
  static ByteVector ReadBytes(const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  // Loads with the packed file, and checks every matrix against one packed by the reference.
  std::unique_ptr<Weights> Load() {
    warnings.clear();
    n_progress = 0;
    const GgufFile file = GgufFile::Open(path);
    const Model model = Model::FromGguf(file);
    const auto on_load = [&](int64_t done, int64_t total) { n_progress += done <= total; };
    const auto on_warning = [&](const std::string& text) { warnings.push_back(text); };
    auto weights = std::make_unique<Weights>(file, model, team, ChooseIsa(), LoadOptions{on_load, kept, on_warning});
    for (size_t id = 0; id < model.weights.size(); ++id) {
      const Weight& weight = model.weights[id];
      if (!weight.matrix) continue;
      PackedMatrix expected(weight.tensor->type, weight.n, weight.k);
      expected.PackPanels(weight.tensor->data, 0, expected.n_panels());
      const PackedMatrix& got = weights->matrix(static_cast<WeightId>(id));
      REQUIRE(got.bytes() == expected.bytes());
      const uint8_t* first = got.format() ? got.panel(0) : got.row(0);
      REQUIRE(std::memcmp(first, got.format() ? expected.panel(0) : expected.row(0), expected.bytes()) == 0);
    }
    CHECK(weights->bytes() == Weights::BytesFor(model));
    weights->CheckIntact();
    return weights;
  }
  std::string Warning() const { return warnings.size() == 1 ? warnings[0] : std::to_string(warnings.size()); }
  bool OnlyKept() const {  // no other file in the cache
    return fs::exists(kept) && std::distance(fs::directory_iterator(kept.parent_path()), {}) == 1;
  }

  fs::path folder, path, kept;
  Team team{2};
  std::vector<std::string> warnings;
  int n_progress = 0;
};

}  // namespace

TEST_CASE("weights: packed once, mapped from then on") {
  Fixture f;
  const auto packed = f.Load();
  CHECK(f.warnings.empty());
  REQUIRE(f.OnlyKept());
  const auto written = fs::last_write_time(f.kept);
  const auto mapped = f.Load();
  CHECK(f.warnings.empty());
  CHECK(f.OnlyKept());
  CHECK(fs::last_write_time(f.kept) == written);
}

TEST_CASE("weights: a packed file that is damaged or another's is not used, and made anew") {
  Fixture f;
  f.Load();
  const ByteVector good = Fixture::ReadBytes(f.kept);
  const std::string why = f.kept.string() + ": not used, and made anew: ";
  const std::string other = "it belongs to another model, or to another version of this one or of the program";
  const auto check = [&](const std::string& reason) {
    f.Load();
    CHECK(f.Warning() == why + reason);
    CHECK(f.OnlyKept());
    CHECK(Fixture::ReadBytes(f.kept).size() == good.size());
    f.Load();
    CHECK(f.warnings.empty());
  };
  SUBCASE("flips") {
    const size_t weights = size_t{2} << 20;
    for (const size_t at : {size_t{0}, size_t{16}, size_t{24}, size_t{40}, size_t{48}}) {  // magic, version, identity
      ByteVector bad = good;
      bad[at] ^= 1;
      Fixture::WriteBytes(f.kept, bad);
      CAPTURE(at);
      check(other);
    }
    for (const size_t at : {weights, weights + 1, good.size() - 1, (weights + good.size()) / 2}) {
      ByteVector bad = good;
      bad[at] ^= 0x80;
      Fixture::WriteBytes(f.kept, bad);
      CAPTURE(at);
      check("it is damaged");
    }
    ByteVector swapped = good;  // two lines of weights
    std::swap_ranges(swapped.begin() + weights, swapped.begin() + weights + 64, swapped.begin() + weights + 64);
    REQUIRE(swapped != good);
    Fixture::WriteBytes(f.kept, swapped);
    check("it is damaged");
  }
  SUBCASE("any byte of the checksums") {
    size_t last = size_t{2} << 20;
    while (good[last - 1] == 0) --last;
    ByteVector bad = good;
    bad[last - 1] ^= 1;
    Fixture::WriteBytes(f.kept, bad);
    check("it is damaged");
  }
  SUBCASE("cut short, in the header and in the weights, or longer") {
    for (const size_t size : {size_t{1}, size_t{4096}, size_t{2} << 20, good.size() - 1, good.size() + 1}) {
      ByteVector bad = good;
      bad.resize(size);
      Fixture::WriteBytes(f.kept, bad);
      CAPTURE(size);
      check(size < 100 ? other : "it was cut short");
    }
  }
  SUBCASE("empty") {
    Fixture::WriteBytes(f.kept, {});
    check(f.kept.string() + ": byte 0: is empty. Download the file again.");
  }
  SUBCASE("the model has changed since") {
    fs::last_write_time(f.path, fs::last_write_time(f.path) + std::chrono::seconds(1));
    check(other);
  }
}

TEST_CASE("weights: a cache that cannot be written costs a warning") {
  Fixture f;
  const std::string cannot = "the packed weights cannot be kept: ";
  SUBCASE("a file where the folder should be") {
    Fixture::WriteBytes(f.folder / "cache", {1});
    f.Load();
    CHECK(f.Warning() == cannot + (f.folder / "cache").string() + ": Not a directory");
  }
  SUBCASE("a folder where the file should be") {
    fs::create_directories(f.kept);
    f.Load();
    REQUIRE(f.warnings.size() == 2);
    CHECK(f.warnings[0].find("is a folder") != std::string::npos);
    CHECK(f.warnings[1].starts_with(cannot));
  }
  SUBCASE("no room") {
    rlimit before = {};
    REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
    const rlimit tight = {4096, before.rlim_max};
    REQUIRE(setrlimit(RLIMIT_FSIZE, &tight) == 0);
    f.Load();
    REQUIRE(setrlimit(RLIMIT_FSIZE, &before) == 0);
    CHECK(f.Warning() == cannot + f.kept.string() + ".partial: File too large");
    CHECK(fs::is_empty(f.kept.parent_path()));
  }
  SUBCASE("what a process that died has left is written over") {
    fs::create_directories(f.kept.parent_path());
    Fixture::WriteBytes(f.kept.string() + ".partial", ByteVector(size_t{5} << 20, 7));
    f.Load();
    CHECK(f.warnings.empty());
    CHECK(f.OnlyKept());
    f.Load();
    CHECK(f.warnings.empty());
  }
}

TEST_CASE("weights: a packed file cut short under the map is an error, not a signal") {
  Fixture f;
  f.Load();
  const auto weights = f.Load();
  fs::resize_file(f.kept, size_t{2} << 20);
  int64_t sum = 0;
  for (const PackedMatrix& matrix : weights->matrices())
    for (int64_t i = 0; i < matrix.bytes(); ++i) sum += (matrix.format() ? matrix.panel(0) : matrix.row(0))[i];
  CHECK(sum == 0);
  CHECK_THROWS_WITH_AS(weights->CheckIntact(),
                       (f.kept.string() +
                        ": the file became shorter while it was in use, or its disk failed. Delete it and start again.")
                           .c_str(),
                       Error);
}

TEST_CASE("packed layout: whoever changes a byte of a panel raises kPackedLayoutVersion") {
  const auto hash_of = [](const PackedFormat& format) {
    std::mt19937 rng(3);
    const int64_t k = 3 * Info(format.source).block;
    const std::vector<uint8_t> source = test::RandomWeights(format.source, 33, k, rng);
    PackedMatrix packed(format.source, 33, k);
    packed.PackPanels(source.data(), 0, packed.n_panels());
    Hash hash;
    hash.Add({packed.panel(0), static_cast<size_t>(packed.bytes())});
    return hash.value();
  };
  CHECK(kPackedLayoutVersion == 1);  // with another layout, the next number and its hashes
  const std::map<DType, uint64_t> hashes = {
      {DType::kQ4_0, 0xbce1b2c077780cd8},  {DType::kQ4_1, 0xbbba4c6ce3198773},   {DType::kQ5_0, 0xba84edf683fbb5af},
      {DType::kQ5_1, 0xe04da7a05143d35c},  {DType::kQ8_0, 0x87931a070ccda6a6},   {DType::kQ4_K, 0xcb6225697d1781fa},
      {DType::kQ5_K, 0x10a1e0a7a6327409},  {DType::kQ6_K, 0xe955cefa2cecc7fb},   {DType::kQ2_K, 0x7ceceaf3dc1ed135},
      {DType::kQ3_K, 0x19a2a80ec950328f},  {DType::kIQ4_NL, 0xbce1b2c077780cd8}, {DType::kIQ4_XS, 0xc0e25f5197504673},
      {DType::kMXFP4, 0x23a008eb4a14100f},
  };
  for (const PackedFormat& format : PackedFormats()) {
    CAPTURE(format.name);
    REQUIRE(hashes.contains(format.source));
    CHECK(hash_of(format) == hashes.at(format.source));
  }
}

}  // namespace thermocline
