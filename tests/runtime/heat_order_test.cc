// Models whose neurons stand hottest first, split and whole, against what they compute in the file's order.
#include "predictor/heat_order.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "gpu/emulated_device.h"
#include "runtime/emulated_ops.h"
#include "runtime/engine.h"
#include "tests/models/tiny_model.h"
#include "tests/runtime/play.h"

namespace thermocline {
namespace {

// Neurons added in another order; and down in 8 bits instead of what the file has, whose codes are at most 1/127 apart
// from the largest of 32 weights.
constexpr double kReordered = 1e-3, kRequantized = 3e-2;

Heat RandomHeat(const Model& model, uint32_t seed) {
  Heat heat;
  heat.n_ff = model.config.n_ff;
  heat.n_counted = 1000;
  heat.targets = {0};
  std::mt19937 random(seed);
  for (int i = 0; i < model.config.n_layer; ++i) {
    LayerHeat& layer = heat.layers.emplace_back();
    for (int64_t j = 0; j < heat.n_ff; ++j) layer.fired.push_back(random() % 1001);
  }
  return heat;
}

struct Loaded {
  GgufFile file;
  Model model;
  Heat heat;
  explicit Loaded(const TinyOptions& options)
      : file(TinyModel(options).Open()), model(Model::FromGguf(file)), heat(RandomHeat(model, options.seed)) {
    KeepAllIn16Bits(model);
  }

  NeuronOrders Orders(HeatOrder by) const { return HottestFirst(model, heat, by); }
  std::unique_ptr<Engine> Start(FfnMode ffn, const NeuronOrders& orders = {}, DeviceOptions device = {},
                                int n_threads = 1) const {
    EngineOptions options{.n_ctx = 64, .n_threads = n_threads, .max_sequences = 2};
    options.load.ffn = ffn;
    options.device = std::move(device);
    return std::make_unique<Engine>(file, Reorder(model, orders), options);
  }
};

std::vector<TinyOptions> Models() {
  return {{.type = DType::kQ4_0, .n_embd = 160, .n_ff = 608, .activation = "relu", .seed = 1},
          {.type = DType::kQ8_0, .n_ff = 544, .activation = "relu", .seed = 2},
          {.type = DType::kQ4_K, .n_embd = 256, .n_ff = 768, .activation = "relu", .seed = 3},
          {.type = DType::kF16, .n_ff = 576, .activation = "relu", .seed = 4}};
}

Logits PlayFew(Engine& engine, RowKind kind) { return Play(engine, kind, 2, 12, 24); }

double Worst(const Logits& a, const Logits& b) { return Compare(a, b, 1).worst; }

DeviceOptions Emulate(std::optional<Placement> placement) {
  return {std::make_shared<EmulatedDevice>(EmulatedDeviceOptions{.budget_bytes = int64_t{1} << 30}, MakeEmulatedOps()),
          std::move(placement)};
}

Placement SomeHot(const Loaded& loaded, const NeuronOrders& orders) {
  Placement placement = AllOnCpu(loaded.model.config);
  placement.layers[0] = {.n_hot = 192, .attention = Memory::kDevice, .kv = Memory::kDevice};
  placement.layers[1] = {.n_hot = 320};
  placement.orders = orders;
  return placement;
}

}  // namespace

TEST_CASE("heat order: a whole model and a split one compute what the file's order does") {
  for (const TinyOptions& options : Models()) {
    const Loaded loaded(options);
    for (const FfnMode mode : {FfnMode::kDense, FfnMode::kExact}) {
      const Logits expected = PlayFew(*loaded.Start(mode), RowKind::kGenerated);
      const Logits prompt = PlayFew(*loaded.Start(mode), RowKind::kPrompt);
      for (const HeatOrder by : {HeatOrder::kBlocks, HeatOrder::kNeurons}) {
        CAPTURE(Info(options.type).name);
        CAPTURE(Name(by));
        CAPTURE(static_cast<int>(mode));
        const NeuronOrders orders = loaded.Orders(by);
        // Bundles have other types in 8 bits, in groups of the order.
        const bool bundles = mode == FfnMode::kDense || BundleShape::DownType(options.type) == options.type;
        const bool lossless = by == HeatOrder::kBlocks && bundles;
        const auto whole = loaded.Start(mode, orders);
        const auto split = loaded.Start(mode, {}, Emulate(SomeHot(loaded, orders)), 2);
        CHECK(UsesDevice(split->placement()));
        CHECK(HashOf(split->placement().orders) == HashOf(orders));
        const Logits ordered = PlayFew(*whole, RowKind::kGenerated), both = PlayFew(*split, RowKind::kGenerated);
        CHECK(Worst(expected, ordered) <= (lossless ? kReordered : kRequantized));
        CHECK(Worst(ordered, both) <= (bundles ? kReordered : kRequantized));
        CHECK(Worst(prompt, PlayFew(*split, RowKind::kPrompt)) <= (lossless ? kReordered : kRequantized));
      }
    }
  }
}

TEST_CASE("heat order: over the weights of an order exact is bundle arithmetic to the bit, whole and in halves") {
  for (const TinyOptions& options : Models()) {
    const Loaded loaded(options);
    for (const HeatOrder by : {HeatOrder::kBlocks, HeatOrder::kNeurons}) {
      CAPTURE(Info(options.type).name);
      CAPTURE(Name(by));
      const NeuronOrders orders = loaded.Orders(by);
      CHECK(PlayFew(*loaded.Start(FfnMode::kExact, orders, {}, 2), RowKind::kGenerated) ==
            PlayFew(*loaded.Start(FfnMode::kBundleDense, orders), RowKind::kGenerated));
      const Placement placement = SomeHot(loaded, orders);
      CHECK(PlayFew(*loaded.Start(FfnMode::kExact, {}, Emulate(placement), 2), RowKind::kGenerated) ==
            PlayFew(*loaded.Start(FfnMode::kBundleDense, {}, Emulate(placement)), RowKind::kGenerated));
    }
  }
}

TEST_CASE("heat order: a device is filled with the hottest blocks of all layers") {
  Loaded loaded({.type = DType::kQ8_0, .n_ff = 640, .activation = "relu", .seed = 5});
  for (double& count : loaded.heat.layers[1].fired) count = count < 500 ? 0 : count;  // half as many
  for (double& count : loaded.heat.layers[0].fired) count = 400;
  DeviceOptions device = Emulate({});
  device.hot = ByHeat(loaded.model, loaded.heat, FreeOrder(loaded.model));
  const auto placed = [&](int64_t budget_bytes) {
    device.device =
        std::make_shared<EmulatedDevice>(EmulatedDeviceOptions{.budget_bytes = budget_bytes}, MakeEmulatedOps());
    return loaded.Start(FfnMode::kExact, {}, device)->placement();
  };
  // From nothing to everything: of layer 1 the half that is above 400 tokens, then layer 0, then the rest.
  bool some_of_layer_1 = false, half_and_some_of_layer_0 = false, all = false;
  for (int64_t budget = 0; budget <= 8 << 20; budget += 48 << 10) {
    const Placement placement = placed(budget);
    const int64_t n_hot[2] = {placement.layers[0].n_hot, placement.layers[1].n_hot};
    CAPTURE(budget);
    CHECK((n_hot[0] == 0 || n_hot[1] >= 256));
    CHECK((n_hot[1] <= 384 || n_hot[0] == 640));
    some_of_layer_1 |= n_hot[0] == 0 && n_hot[1] > 0;
    half_and_some_of_layer_0 |= n_hot[0] > 0 && n_hot[0] < 640;
    all |= n_hot[0] == 640 && n_hot[1] == 640;
    if (UsesDevice(placement)) CHECK(HashOf(placement.orders) == HashOf(device.hot->orders));
  }
  CHECK(some_of_layer_1);
  CHECK(half_and_some_of_layer_0);
  CHECK(all);
}

}  // namespace thermocline
