// A matrix as a weight of a model that has no file.
#pragma once

#include <memory>
#include <vector>

#include "cpu/bundle.h"

namespace thermocline::test {

struct FileWeight {
  std::unique_ptr<Tensor> tensor;
  Weight weight{};

  FileWeight() = default;
  // (n, k); `bytes` must outlive it.
  FileWeight(DType type, const std::vector<uint8_t>& bytes, int64_t n, int64_t k)
      : tensor(std::make_unique<Tensor>(
            Tensor{"test", type, {k, n, 1, 1}, 0, bytes.data(), static_cast<uint64_t>(bytes.size()), 0})),
        weight{.tensor = tensor.get(), .matrix = true, .n = n, .k = k} {}
};

inline void PackBundles(const Weight& up, const Weight& down, int64_t first_neuron, Isa isa, Bundles& bundles) {
  for (int64_t slice = 0; slice < bundles.shape().n_slices(); ++slice) bundles.PackUp(up, slice, isa);
  for (int64_t block = 0; block < bundles.shape().down_blocks(); ++block)
    bundles.PackDown(down, first_neuron, block, isa);
}

}  // namespace thermocline::test
