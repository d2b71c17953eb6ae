// Scales for a group of weights whose codes stand for values of a table (IQ4_NL), as models/quantize_fit.h has them for
// codes that are numbers.
#pragma once

#include <array>

#include "models/dtype.h"
#include "models/quantize_fit.h"

namespace thermocline {

// 16 values, ascending, and what divides the numbers nearest to one from those nearest to the next.
struct ValueTable {
  std::array<float, 16> values;
  std::array<float, 15> middles;

  int Code(float x) const {  // of the nearest value
    int code = 0;
    for (const float middle : middles) code += x > middle;
    return code;
  }
};
const ValueTable& Iq4Table();

// x ~ scale * value. The scale may be negative: the table's ends differ.
float FitTable(const WeightGroup& group, const ValueTable& table);

// sum of w (x - scale * value)^2 where each value is the nearest.
double TableError(const WeightGroup& group, const ValueTable& table, float scale);

}  // namespace thermocline
