// The weights of a model as the kernels read them: all matrices packed, one behind the other in huge pages; vectors as
// floats.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cpu/bundle_ffn.h"
#include "cpu/neuron_predictor.h"
#include "cpu/packed.h"
#include "cpu/team.h"
#include "models/gguf.h"
#include "models/model.h"

namespace thermocline {

class PackedFile;

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
