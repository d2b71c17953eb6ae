#include "tests/runtime/tiny_model.h"

#include <doctest/doctest.h>

#include "cpu/packed.h"
#include "models/error.h"

namespace thermocline {
namespace {

using test::TinyModel;

double ErrorWith(const TinyModel& tiny, const Arch* arch, RowKind kind, int span = 512) {
  const GgufFile file = GgufFile::Open(tiny.path());
  const Model model = arch ? Model::FromGguf(file, *arch) : Model::FromGguf(file);
  Engine engine(file, model, {.n_ctx = 256, .n_threads = 2});
  return test::LogitError(tiny, test::Feed(engine, engine.NewSequence(), tiny.tokens, span, kind));
}

bool HasIntegerWeights(const TinyModel& tiny) {
  const GgufFile file = GgufFile::Open(tiny.path());
  return std::ranges::any_of(file.tensors(), [](const Tensor& t) { return FindPackedFormat(t.type) != nullptr; });
}

}  // namespace

TEST_CASE("tiny models: logits equal transformers'") {
  for (const TinyModel& tiny : test::TinyModels()) {
    CAPTURE(tiny.file);
    const double prompt = ErrorWith(tiny, nullptr, RowKind::kPrompt);
    const double generated = ErrorWith(tiny, nullptr, RowKind::kGenerated, 1);
    MESSAGE(tiny.file, ": prompt rows ", prompt, ", generated rows ", generated);
    CHECK(generated <= 1e-3);
    // Where weights are integers, most of a prompt row's activations have 8 bits; random weights average out little.
    CHECK(prompt <= (HasIntegerWeights(tiny) ? 2e-2 : 1e-3));
  }
}

TEST_CASE("tiny models: every field of the architecture table matters") {
  struct Mutation {
    const char* field;
    void (*apply)(Arch&);
  };
  const Mutation mutations[] = {
      {"norm", [](Arch& a) { a.norm = a.norm == NormKind::kRms ? NormKind::kLayer : NormKind::kRms; }},
      {"position_offset", [](Arch& a) { --a.position_offset; }},
      {"gated_ffn", [](Arch& a) { a.gated_ffn = !a.gated_ffn; }},
      {"rope", [](Arch& a) { a.rope = a.rope == RopeKind::kHalves ? RopeKind::kInterleaved : RopeKind::kHalves; }},
      {"activation",
       [](Arch& a) { a.activation = a.activation == Activation::kSilu ? Activation::kGeluTanh : Activation::kSilu; }},
      {"qk_norm", [](Arch& a) { a.qk_norm = !a.qk_norm; }},
      {"post_norms", [](Arch& a) { a.post_norms = !a.post_norms; }},
      {"scale_embedding", [](Arch& a) { a.scale_embedding = !a.scale_embedding; }},
      {"global_period", [](Arch& a) { a.global_period = a.global_period ? a.global_period - 1 : 2; }},
      {"local_rope_base", [](Arch& a) { a.local_rope_base = a.local_rope_base * 2 + 100; }},
  };
  for (const char* name : {"llama_plain.gguf", "gemma3_plain.gguf", "llama_relu.gguf", "opt_plain.gguf"}) {
    const TinyModel tiny = test::FindTiny(name);
    const Arch arch = Model::FromGguf(GgufFile::Open(tiny.path())).config.arch;
    const double base = ErrorWith(tiny, &arch, RowKind::kGenerated);
    for (const Mutation& mutation : mutations) {
      CAPTURE(std::string(name));
      CAPTURE(std::string(mutation.field));
      Arch mutant = arch;
      mutation.apply(mutant);
      // What the window layers do shows only where the file has a window, where a table of positions begins only where
      // there is one.
      const std::string field = mutation.field;
      if (arch.global_period == 0 && (field == "local_rope_base" || field == "global_period")) continue;
      if (arch.rope != RopeKind::kNone && field == "position_offset") continue;
      double error = INFINITY;
      try {
        error = ErrorWith(tiny, &mutant, RowKind::kGenerated);
      } catch (const Error& e) {
        // The file does not hold what the mutant needs: noticed as well.
        MESSAGE(e.what());
      }
      CHECK(error >= 10 * base);
    }
  }
}

TEST_CASE("paging: spans of 1, 7 and 512, shuffled pages and a neighbour change no bit") {
  for (const TinyModel& tiny : test::TinyModels()) {
    CAPTURE(tiny.file);
    const GgufFile file = GgufFile::Open(tiny.path());
    const Model model = Model::FromGguf(file);
    for (const KvTypes kv_types : {KvTypes{}, KvTypes{DType::kQ8_0, DType::kQ8_0}}) {
      Engine alone(file, model, {.n_ctx = 256, .n_threads = 1, .kv_types = kv_types});
      const auto expected = test::Feed(alone, alone.NewSequence(), tiny.tokens, 512);
      for (const int span : {1, 7, 512}) {
        CAPTURE(span);
        const EngineOptions options{
            .n_ctx = 256, .n_threads = 2, .max_sequences = 2, .kv_types = kv_types, .page_seed = 12345};
        Engine engine(file, model, options);
        const int first = engine.NewSequence(), second = engine.NewSequence();
        std::vector<TokenId> other(tiny.tokens.rbegin(), tiny.tokens.rend());
        // Interleaved: both sequences in every step, so that their pages alternate and their rows share products.
        std::vector<std::vector<float>> logits;
        for (size_t at = 0; at < tiny.tokens.size();) {
          Batch batch;
          const size_t end = std::min(tiny.tokens.size(), at + std::min(span, 250));
          for (size_t i = at; i < end; ++i)
            batch.push_back({other[i], second, static_cast<int>(i), RowKind::kPrompt, false});
          for (size_t i = at; i < end; ++i)
            batch.push_back({tiny.tokens[i], first, static_cast<int>(i), RowKind::kPrompt, true});
          engine.Step(batch);
          for (size_t i = at; i < end; ++i) {
            const auto row = engine.Logits(static_cast<int>(i - at));
            logits.emplace_back(row.begin(), row.end());
          }
          at = end;
        }
        CHECK(logits == expected);
      }
    }
  }
}

}  // namespace thermocline
