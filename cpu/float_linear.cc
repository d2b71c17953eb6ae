#include "cpu/float_linear.h"

#include <algorithm>

#ifdef THERMOCLINE_ONEDNN
#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/one_openmp_thread.h"
#endif

namespace thermocline {

#ifdef THERMOCLINE_ONEDNN

// One oneDNN matrix product per K: (kRows, K) x (K, kColumns) -> (kRows, kColumns) in F32, always this shape. It runs
// serially inside a chunk that a member has claimed; every member has its own memory for it. Weights are transposed
// once for all rows, as oneDNN would for each tile of rows: its part alone is 1.5 to 1.75 times as fast so on a Xeon.
struct FloatLinear::Tiles {
  static constexpr int64_t kRows = 16, kColumns = 64, kTransposed = 16;
  static_assert(kColumns % kTransposed == 0);

  struct Member {
    Buffer memory;
    float *x, *w, *y;  // (kRows, K), (K, kColumns), (kRows, kColumns)
    float* rows;       // (kTransposed, K) of weights
    std::unordered_map<int, dnnl::memory> args;
  };
  struct Product {
    dnnl::matmul primitive;
    std::vector<Member> members;
  };

  Tiles(Isa isa, int n_threads) : engine(dnnl::engine::kind::cpu, 0), stream(engine), n_threads(n_threads) {
    if (isa == Isa::kAvx2) dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx2);
  }

  void Add(int64_t k) {
    if (products.contains(k)) return;
    using dnnl::memory;
    const memory::desc x({kRows, k}, memory::data_type::f32, memory::format_tag::ab);
    const memory::desc w({k, kColumns}, memory::data_type::f32, memory::format_tag::ab);
    const memory::desc y({kRows, kColumns}, memory::data_type::f32, memory::format_tag::ab);
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    const OneOpenMpThread one;  // a primitive plans for the number of threads it sees when it is made
    const dnnl::matmul::primitive_desc desc(engine, x, w, y, attributes);
    Product product{dnnl::matmul(desc), std::vector<Member>(n_threads)};
    for (Member& member : product.members) {
      const int64_t floats = (kRows + kColumns + kTransposed) * k + kRows * kColumns;
      member.memory = Buffer(floats * 4 + 64 + static_cast<int64_t>(desc.scratchpad_desc().get_size()), "one step");
      member.x = member.memory.as<float>();
      member.w = member.x + kRows * k;
      member.y = member.w + kColumns * k;
      member.rows = member.y + kRows * kColumns;
      float* scratchpad = member.rows + kTransposed * k;
      member.args = {{DNNL_ARG_SRC, memory(x, engine, member.x)},
                     {DNNL_ARG_WEIGHTS, memory(w, engine, member.w)},
                     {DNNL_ARG_DST, memory(y, engine, member.y)},
                     {DNNL_ARG_SCRATCHPAD, memory(desc.scratchpad_desc(), engine, scratchpad)}};
    }
    products.emplace(k, std::move(product));
  }

  // `rows` of args.x, in tiles padded with zeros. The weights of a tile of columns are converted once.
  void Run(const FloatLinearArgs& args, const std::vector<int64_t>& rows, int member_index) {
    const OneOpenMpThread one;
    const int64_t k = args.w.k();
    Product& product = products.at(k);
    Member& member = product.members[member_index];
    for (int64_t n = args.begin; n < args.end; n += kColumns) {
      const int64_t columns = std::min(kColumns, args.end - n);
      for (int64_t first = 0; first < kColumns; first += kTransposed) {
        for (int64_t i = 0; i < kTransposed; ++i)
          if (first + i < columns)
            args.w.DequantizeRow(n + first + i, member.rows + i * k);
          else
            std::fill_n(member.rows + i * k, k, 0.f);
        for (int64_t p = 0; p < k; ++p)
          for (int64_t i = 0; i < kTransposed; ++i) member.w[p * kColumns + first + i] = member.rows[i * k + p];
      }
      for (size_t first = 0; first < rows.size(); first += kRows) {
        const int64_t count = std::min<int64_t>(kRows, rows.size() - first);
        for (int64_t i = 0; i < count; ++i) std::copy_n(args.x + rows[first + i] * args.x_stride, k, member.x + i * k);
        std::fill(member.x + count * k, member.x + kRows * k, 0.f);
        product.primitive.execute(stream, member.args);
        for (int64_t i = 0; i < count; ++i) {
          float* y = args.y + rows[first + i] * args.y_stride + (n - args.begin);
          const float* tile = member.y + i * kColumns;
          for (int64_t j = 0; j < columns; ++j) y[j] = args.accumulate ? y[j] + tile[j] : tile[j];
        }
      }
    }
  }

  dnnl::engine engine;
  dnnl::stream stream;
  int n_threads;
  std::map<int64_t, Product> products;
};

FloatLinear::FloatLinear(const VectorOps& ops, int n_threads)
    : ops_(ops), tiles_(ops.isa == Isa::kScalar ? nullptr : std::make_unique<Tiles>(ops.isa, n_threads)) {}

void FloatLinear::Prepare(int64_t k) {
  if (tiles_) tiles_->Add(k);
}

void FloatLinear::Run(const FloatLinearArgs& args, const std::function<bool(int64_t)>& is_prompt, int member) const {
  std::vector<int64_t> prompt_rows;
  for (int64_t row = 0; row < args.n_rows; ++row)
    if (tiles_ && is_prompt(row))
      prompt_rows.push_back(row);
    else
      Gemv(args, row);
  if (!prompt_rows.empty()) tiles_->Run(args, prompt_rows, member);
}

std::string FloatLinear::name() const { return tiles_ ? "onednn" : std::string(Name(ops_.isa)); }

#else

struct FloatLinear::Tiles {};

FloatLinear::FloatLinear(const VectorOps& ops, int) : ops_(ops) {}
void FloatLinear::Prepare(int64_t) {}

void FloatLinear::Run(const FloatLinearArgs& args, const std::function<bool(int64_t)>&, int) const {
  for (int64_t row = 0; row < args.n_rows; ++row) Gemv(args, row);
}

std::string FloatLinear::name() const { return std::string(Name(ops_.isa)); }

#endif

FloatLinear::~FloatLinear() = default;

void FloatLinear::Gemv(const FloatLinearArgs& args, int64_t row) const {
  constexpr int64_t kTile = 64;
  float sums[kTile];
  for (int64_t n = args.begin; n < args.end; n += kTile) {
    const int64_t count = std::min(kTile, args.end - n);
    ops_.float_gemv(args.w.type(), args.w.row(n), args.w.stride_bytes(), count, args.w.k(),
                    args.x + row * args.x_stride, sums);
    float* y = args.y + row * args.y_stride + (n - args.begin);
    for (int64_t i = 0; i < count; ++i) y[i] = args.accumulate ? y[i] + sums[i] : sums[i];
  }
}

}  // namespace thermocline
