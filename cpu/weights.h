// The weights of a model as the kernels read them: all matrices packed, one behind the other in huge pages; vectors as
// floats.
#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cpu/bundle_ffn.h"
#include "cpu/neuron_predictor.h"
#include "cpu/packed.h"
#include "cpu/team.h"
#include "models/gguf.h"
#include "models/model.h"

namespace thermocline {

class PackedFile;

// The weights of one FFN in another order of its neurons, in memory of their own, on their way into an engine.
struct StagedFfn {
  struct Part {
    uint8_t* to;
    const uint8_t* from;
    int64_t bytes;
  };
  Buffer memory;
  std::vector<Part> parts;  // of it
  std::vector<std::pair<WeightId, std::vector<float>>> vectors;
};

struct LoadOptions {
  // Called while weights are packed, with bytes done and in all; may be empty. Must not throw.
  std::function<void(int64_t done, int64_t total)> on_load{};
  // Where packed weights are kept from one start to the next (cpu/packed_file.h); empty: nowhere.
  std::filesystem::path packed_file{};
  // Called with what went wrong with that file, which is never an error; may be empty.
  std::function<void(const std::string& warning)> on_warning{};
  // But for kDense, the up and down weights of FindSparseFfns stand in bundles; for kPredicted, gates in rows alone.
  FfnMode ffn = FfnMode::kDense;
  // By layer, for kPredicted, of all neurons in the file's order; fit for the model, and must outlive the engine.
  const std::vector<NeuronPredictor>* predictors = nullptr;
  // Of FFNs in bundles: counts in how many generated rows each neuron fires.
  bool count_firings = false;
};

class Weights {
 public:
  // Throws Error when memory runs out or the file is damaged. Refers into neither afterwards.
  Weights(const GgufFile& file, const Model& model, Team& team, Isa isa, const LoadOptions& options);
  ~Weights();
  Weights(const Weights&) = delete;

  // Empty where the weight is a vector or stands in bundles.
  const PackedMatrix& matrix(WeightId id) const { return matrices_[id]; }
  const float* vector(WeightId id) const { return vectors_[id].data(); }  // null where it is a matrix
  const std::vector<PackedMatrix>& matrices() const { return matrices_; }
  const Bundles& bundles(int layer) const { return bundles_[layer]; }      // empty where a layer has none
  const Bundles& gate_rows(int layer) const { return gate_rows_[layer]; }  // likewise
  const std::vector<GatedFfn>& bundled() const { return bundled_; }        // those that stand in bundles
  int64_t bytes() const;
  // Throws Error if the packed file was cut short under the map: its weights may have read as zeros since.
  void CheckIntact() const;

  // Packs the FFN of a layer anew on the calling thread: `model` is the one of the constructor, read from the same
  // file, but for the order of this layer's neurons, which holds down in the same type. Weights stay as they are until
  // ReplaceFfn. Nothing where `stop` became true. Throws Error when memory runs out. Not of weights that are mapped.
  std::optional<StagedFfn> StageFfn(const Model& model, int layer, Isa isa, const std::atomic<bool>& stop) const;
  void ReplaceFfn(StagedFfn staged) noexcept;

  static int64_t BytesFor(const Model& model);

 private:
  void ChooseBundles(const Model& model, FfnMode mode);
  int64_t BundleBytes() const;
  int64_t MatrixBytes(const Model& model) const;
  void Place(const Model& model, uint8_t* at);
  bool Map(const GgufFile& file, const Model& model, Team& team, int64_t bytes, const LoadOptions& options);
  void Keep(const GgufFile& file, const Model& model, Team& team, const LoadOptions& options);
  void Pack(const GgufFile& file, const Model& model, Team& team, Isa isa, const LoadOptions& options);

  Buffer memory_;                       // of all matrices, unless they are mapped
  std::unique_ptr<PackedFile> mapped_;  // where they are
  std::vector<PackedMatrix> matrices_;
  std::vector<std::vector<float>> vectors_;
  std::vector<GatedFfn> bundled_;
  std::vector<bool> in_bundles_;              // by WeightId
  std::vector<Bundles> bundles_, gate_rows_;  // by layer
};

}  // namespace thermocline
