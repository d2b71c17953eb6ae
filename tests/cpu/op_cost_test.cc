#include "cpu/op_cost.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "cpu/topology.h"

namespace thermocline {
namespace {

TEST_CASE("attention counts the tokens that each row sees, and reads those that any row sees") {
  Model model{};
  model.config.n_head = 6;
  model.config.n_head_kv = 2;
  model.config.head_dim = 16;
  Op op{.kind = OpKind::kAttention};
  for (const int window : {0, 1, 4, 24})
    for (const int first : {0, 1, 3, 4, 30})
      for (const int rows : {1, 2, 5, 40}) {
        CAPTURE(window);
        CAPTURE(first);
        CAPTURE(rows);
        op.window = window;
        int64_t pairs = 0;
        for (int p = first; p < first + rows; ++p) pairs += window ? std::min(window, p + 1) : p + 1;
        const int64_t first_seen = window ? std::max(0, first - window + 1) : 0;
        const auto check = [&](KvTypes types, int bytes_per_head) {
          Work work{1, 2};  // it adds
          OpCost(model, op, types).AddSpan(first, rows, work);
          CHECK(work.ops == 2 + pairs * 6 * 16 * 4);
          CHECK(work.bytes == 1 + (first + rows - first_seen) * 2 * bytes_per_head);
        };
        check({}, 16 * 2 + 16 * 2);
        check({DType::kQ8_0, DType::kQ8_0}, 16 + 2 + 16 + 2);
        check({DType::kQ8_0, DType::kF16}, 16 + 2 + 16 * 2);
      }
}

TEST_CASE("the peak of every instruction set is measured") {
  for (const Isa isa : kIsas) {
    if (isa == Isa::kScalar || !CanRun(isa)) continue;
    CAPTURE(Name(isa));
    const Peak peak = MeasurePeak(isa, 1);
    // A byte dot product of a register takes no longer than three instructions where a multiply-add takes one.
    CHECK(peak.f32 > 1e8);
    CHECK(peak.int8 > peak.f32);
    CHECK(peak.int8 < 1e14);
    CHECK((peak.bf16 > peak.f32) == (isa == Isa::kAmx));
  }
  CHECK(MeasurePeak(Isa::kScalar, 1).int8 == 0);
}

}  // namespace
}  // namespace thermocline
