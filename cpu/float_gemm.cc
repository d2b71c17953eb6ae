#include "cpu/float_gemm.h"

#include "models/check.h"

#ifdef THERMOCLINE_ONEDNN
#include <oneapi/dnnl/dnnl.h>

#include "cpu/one_openmp_thread.h"
#endif

namespace thermocline {

#ifdef THERMOCLINE_ONEDNN

void FloatGemm(const FloatGemmArgs& args) {
  const OneOpenMpThread one;
  const bool a = args.transposed == Transposed::kA, b = args.transposed == Transposed::kB;
  const dnnl_status_t status = dnnl_sgemm(a ? 'T' : 'N', b ? 'T' : 'N', args.m, args.n, args.k, 1, args.a,
                                          a ? args.m : args.k, args.b, b ? args.k : args.n, 0, args.c, args.n);
  CHECK(status == dnnl_success);
}

#else

void FloatGemm(const FloatGemmArgs& args) {
  const bool ta = args.transposed == Transposed::kA, tb = args.transposed == Transposed::kB;
  for (int64_t i = 0; i < args.m; ++i)
    for (int64_t j = 0; j < args.n; ++j) {
      double sum = 0;
      for (int64_t p = 0; p < args.k; ++p)
        sum += double{args.a[ta ? p * args.m + i : i * args.k + p]} * args.b[tb ? j * args.k + p : p * args.n + j];
      args.c[i * args.n + j] = static_cast<float>(sum);
    }
}

#endif

}  // namespace thermocline
