#include "gpu/cuda/attention.h"

#include <algorithm>

#include "models/dtype.h"
#include "tests/gpu/cuda/device_array.h"

namespace thermocline::test {
namespace {

struct Case {
  int n_head, n_head_kv, head_dim, window, n_spans, first_position, rows_per_span;
  int first_token = 0, end_token = INT32_MAX;
};

// Keys and values of every position are stored through LaunchStoreKv, the last rows_per_span of a span are asked for.
struct Fixture {
  Fixture(const Case& c, std::mt19937& rng)
      : c(c),
        n_tokens(c.first_position + c.rows_per_span),
        n_pages((n_tokens + kPageTokens - 1) / kPageTokens),
        page_bytes(c.n_head_kv * KvHeadBytes({}, c.head_dim)),
        memory(kOffset + static_cast<size_t>(c.n_spans * n_pages * page_bytes)),
        kv_width(c.n_head_kv * c.head_dim),
        keys(RandomFloats(static_cast<size_t>(c.n_spans) * n_tokens * kv_width, rng)),
        values(RandomFloats(keys.size(), rng)),
        pages(static_cast<size_t>(c.n_spans) * n_pages) {
    std::vector<int> order(c.n_spans * n_pages);
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
    std::shuffle(order.begin(), order.end(), rng);
    std::vector<uint64_t> addresses;
    for (const int page : order) addresses.push_back(reinterpret_cast<uint64_t>(memory.data()) + page * page_bytes);
    pages.Set(addresses);
  }

  cuda::KvPlace Place() const { return {1, kOffset, c.n_head_kv, c.head_dim, c.first_token, c.end_token}; }

  // The rows of positions [begin, end) of every span, with their tables.
  template <typename F>
  void WithRows(int begin, int end, const F& f) const {
    const int per_block = cuda::RowsPerBlock(c.n_head / c.n_head_kv), n_rows = c.n_spans * (end - begin);
    std::vector<int32_t> position, span_of_row;
    std::vector<cuda::RowBlock> blocks;
    for (int span = 0; span < c.n_spans; ++span)
      for (int p = begin; p < end; ++p) {
        if ((p - begin) % per_block == 0)
          blocks.push_back({static_cast<int>(position.size()), std::min(per_block, end - p), p, span});
        position.push_back(p);
        span_of_row.push_back(span);
      }
    const DeviceArray<int32_t> device_position(position), device_span(span_of_row);
    const DeviceArray<cuda::RowBlock> device_blocks(blocks);
    f(cuda::StepTables{device_position.data(),
                       device_span.data(),
                       device_blocks.data(),
                       n_rows,
                       static_cast<int>(blocks.size()),
                       {nullptr, pages.data()},
                       n_pages});
    cuda::CheckCuda(cudaDeviceSynchronize(), "attention");
  }

  void Store(const cuda::Queue& queue) const {
    const DeviceArray<float> device_keys(keys), device_values(values);
    WithRows(0, n_tokens, [&](const cuda::StepTables& step) {
      cuda::LaunchStoreKv(queue, step, Place(), {device_keys.data(), kv_width}, {device_values.data(), kv_width});
    });
  }

  // The state of one head of one row over the tokens that it sees of those held.
  void Expected(const float* q, int span, int position, int head, float scale, float* max, float* sum,
                float* acc) const {
    const int begin = std::max(c.first_token, c.window ? position - c.window + 1 : 0);
    const int end = std::min(c.end_token, position + 1), kv_head = head / (c.n_head / c.n_head_kv);
    std::vector<float> k, v;
    for (int t = std::max(begin, 0); t < end; ++t)
      for (int d = 0; d < c.head_dim; ++d) {
        const size_t at = (static_cast<size_t>(span) * n_tokens + t) * kv_width + kv_head * c.head_dim + d;
        k.push_back(HalfToFloat(FloatToHalf(keys[at])));
        v.push_back(HalfToFloat(FloatToHalf(values[at])));
      }
    cuda::AttentionReference(q, k.data(), v.data(), static_cast<int>(k.size()) / c.head_dim, c.head_dim, scale, max,
                             sum, acc);
  }

  static constexpr int64_t kOffset = 256;
  const Case c;
  const int n_tokens, n_pages;
  const int64_t page_bytes;
  DeviceArray<uint8_t> memory;
  const int kv_width;
  const std::vector<float> keys, values;
  DeviceArray<uint64_t> pages;  // (n_spans, n_pages), in no order
};

}  // namespace

TEST_CASE("attention: equals the reference, split or not, in windows, over parts of the tokens") {
  if (!HasGpu()) return;
  std::mt19937 rng(1);
  const cuda::Queue queue = cuda::MakeQueue(nullptr);
  const Case cases[] = {
      {1, 1, 32, 0, 1, 0, 1},     {4, 4, 64, 0, 2, 70, 1},           {8, 2, 128, 0, 3, 700, 1},
      {8, 1, 128, 0, 1, 1000, 4}, {32, 1, 64, 0, 2, 300, 1},         {4, 2, 256, 100, 1, 600, 2},
      {6, 2, 96, 0, 1, 0, 40},    {4, 4, 128, 0, 2, 130, 33},        {16, 8, 64, 50, 1, 200, 60},
      {2, 1, 512, 0, 1, 65, 1},   {4, 2, 80, 0, 1, 3, 300},          {4, 2, 64, 0, 1, 500, 1, 128, 320},
      {20, 1, 64, 0, 1, 100, 20}, {4, 2, 64, 0, 1, 500, 12, 0, 192}, {4, 4, 64, 200, 1, 900, 1, 768},
  };
  for (const Case& c : cases) {
    CAPTURE(c.n_head);
    CAPTURE(c.head_dim);
    CAPTURE(c.rows_per_span);
    CAPTURE(c.first_position);
    CAPTURE(c.first_token);
    const Fixture fixture(c, rng);
    fixture.Store(queue);
    const int n_rows = c.n_spans * c.rows_per_span, width = c.n_head * c.head_dim;
    const int state_width = c.n_head * (c.head_dim + 2);
    const std::vector<float> q = RandomFloats(static_cast<size_t>(n_rows) * width, rng);
    const float scale = 1 / std::sqrt(static_cast<float>(c.head_dim));
    std::vector<float> expected(n_rows * width), state(n_rows * state_width);
    for (int row = 0; row < n_rows; ++row)
      for (int h = 0; h < c.n_head; ++h) {
        float* s = state.data() + static_cast<int64_t>(row) * state_width;
        float* acc = s + 2 * c.n_head + h * c.head_dim;
        fixture.Expected(q.data() + static_cast<int64_t>(row) * width + h * c.head_dim, row / c.rows_per_span,
                         c.first_position + row % c.rows_per_span, h, scale, s + h, s + c.n_head + h, acc);
        for (int d = 0; d < c.head_dim; ++d) expected[row * width + h * c.head_dim + d] = acc[d] / s[c.n_head + h];
      }
    const DeviceArray<float> device_q(q), out(expected.size()), state_out(state.size());
    const DeviceArray<float> scratch(cuda::AttentionScratch(c.n_head, c.head_dim, fixture.n_pages));
    fixture.WithRows(c.first_position, fixture.n_tokens, [&](const cuda::StepTables& step) {
      cuda::AttentionArgs args{{device_q.data(), width}, {out.data(), width}, c.n_head, c.window, scale, false};
      cuda::LaunchAttention(queue, step, fixture.Place(), args, scratch.data());
      args.state = true;
      args.out = {state_out.data(), state_width};
      cuda::LaunchAttention(queue, step, fixture.Place(), args, scratch.data());
    });
    CHECK(RelativeError(out.Get(), expected) < 5e-6);
    CHECK(RelativeError(state_out.Get(), state) < 5e-6);
  }
}

TEST_CASE("attention: two states over parts of the tokens merge into the whole") {
  if (!HasGpu()) return;
  std::mt19937 rng(2);
  const cuda::Queue queue = cuda::MakeQueue(nullptr);
  for (const int rows : {1, 20}) {
    const Case c{8, 2, 64, 0, 1, 400, rows};
    const Fixture whole(c, rng);
    whole.Store(queue);
    const int width = c.n_head * c.head_dim, state_width = c.n_head * (c.head_dim + 2);
    const DeviceArray<float> q(RandomFloats(rows * width, rng)), out(rows * width), merged(rows * width);
    const DeviceArray<float> first(rows * state_width), second(rows * state_width);
    const DeviceArray<float> scratch(cuda::AttentionScratch(c.n_head, c.head_dim, whole.n_pages));
    whole.WithRows(c.first_position, whole.n_tokens, [&](const cuda::StepTables& step) {
      cuda::AttentionArgs args{{q.data(), width}, {out.data(), width}, c.n_head, 0, 0.125f, false};
      cuda::KvPlace place = whole.Place();
      cuda::LaunchAttention(queue, step, place, args, scratch.data());
      args.state = true;
      args.out = {first.data(), state_width};
      place.end_token = 128;
      cuda::LaunchAttention(queue, step, place, args, scratch.data());
      args.out = {second.data(), state_width};
      place.first_token = 128;
      place.end_token = INT32_MAX;
      cuda::LaunchAttention(queue, step, place, args, scratch.data());
      cuda::LaunchMergeStates(queue, {first.data(), state_width}, {second.data(), state_width}, c.n_head, c.head_dim,
                              {merged.data(), width}, rows);
    });
    CHECK(RelativeError(merged.Get(), out.Get()) < 1e-6);
  }
}

}  // namespace thermocline::test
