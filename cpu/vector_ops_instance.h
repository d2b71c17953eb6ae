// All vector ops of one vector type V (vector_ops_generic.h): what an instruction set compiles.
#pragma once

#include "cpu/vector_ops_attention.h"
#include "cpu/vector_ops_gemv.h"
#include "cpu/vector_ops_kv.h"
#include "cpu/vector_ops_outer.h"
#include "cpu/vector_ops_quantize.h"

namespace thermocline {
namespace {

template <typename V>
constexpr VectorOps Table(Isa isa) {
  return {isa,      RmsNorm<V>,          LayerNorm<V>,       Rope<V>,    GatedAct<V>,
          Act<V>,   thermocline::Add<V>, Quantize<V>,        StoreKv<V>, Attention<V>,
          Merge<V>, FloatGemv<V>,        AddOuterProducts<V>};
}

}  // namespace
}  // namespace thermocline
