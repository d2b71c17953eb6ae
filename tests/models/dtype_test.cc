#include "models/dtype.h"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <set>
#include <string>
#include <vector>

namespace thermocline {
namespace {

// By the definition of IEEE 754 binary16, in double arithmetic.
double HalfByDefinition(uint16_t half) {
  const double sign = (half & 0x8000) != 0 ? -1 : 1;
  const int exponent = (half >> 10) & 31;
  const int mantissa = half & 1023;
  if (exponent == 31) return mantissa != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

}  // namespace

TEST_CASE("dtype: every type dequantizes to what the gguf package makes of it, bit for bit") {
  std::ifstream in(THERMOCLINE_TEST_DATA "/dequantize/dequantize.bin", std::ios::binary);
  REQUIRE(in);
  std::set<DType> seen;
  for (uint32_t header[2]; in.read(reinterpret_cast<char*>(header), sizeof header);) {
    const auto type = DTypeFromId(header[0]);
    REQUIRE(type.has_value());
    const DTypeInfo& info = Info(*type);
    CAPTURE(std::string(info.name));
    const auto n = static_cast<size_t>(header[1]);
    std::vector<uint8_t> blocks(n / static_cast<size_t>(info.block) * static_cast<size_t>(info.block_bytes));
    std::vector<uint32_t> expected(n);
    in.read(reinterpret_cast<char*>(blocks.data()), static_cast<std::streamsize>(blocks.size()));
    in.read(reinterpret_cast<char*>(expected.data()), static_cast<std::streamsize>(n * sizeof(float)));
    REQUIRE(in);

    std::vector<float> out(n);
    Dequantize(*type, blocks.data(), static_cast<int64_t>(n), out.data());
    size_t wrong = 0;
    for (size_t i = 0; i < n; ++i) wrong += std::bit_cast<uint32_t>(out[i]) != expected[i];
    CHECK(wrong == 0);
    seen.insert(*type);
  }
  CHECK(seen.size() == DTypes().size());
}

TEST_CASE("dtype: every half converts to the float that it is") {
  int wrong = 0;
  for (int bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = HalfToFloat(half);
    const double expected = HalfByDefinition(half);
    if (std::isnan(expected)) {
      wrong += !std::isnan(value) || std::signbit(value) != ((half & 0x8000) != 0);
    } else {
      wrong += static_cast<double>(value) != expected || std::signbit(value) != std::signbit(expected);
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("dtype: floats round to the nearest half, ties to even") {
  int wrong = 0;
  for (int bits = 0; bits < 0x7c00; ++bits) {  // each positive finite half and the gap above it
    const auto low = static_cast<uint16_t>(bits);
    const auto high = static_cast<uint16_t>(bits + 1);
    const float value = HalfToFloat(low);
    // Above the largest half lies infinity, where 2^16 would be.
    const float next = high == 0x7c00 ? 65536.0f : HalfToFloat(high);
    const float middle = (value + next) / 2;  // exact: halves have 11 bits
    const uint16_t even = (bits & 1) == 0 ? low : high;
    wrong += FloatToHalf(value) != low;
    wrong += FloatToHalf(middle) != even;
    wrong += FloatToHalf(std::nextafter(middle, 0.0f)) != low;
    wrong += FloatToHalf(std::nextafter(middle, 1e9f)) != high;
    wrong += FloatToHalf(-middle) != (even | 0x8000);
  }
  CHECK(wrong == 0);
  CHECK(FloatToHalf(std::numeric_limits<float>::infinity()) == 0x7c00);
  CHECK(FloatToHalf(-std::numeric_limits<float>::max()) == 0xfc00);
  CHECK(FloatToHalf(std::numeric_limits<float>::denorm_min()) == 0);
  CHECK(FloatToHalf(-0.0f) == 0x8000);
  CHECK(std::isnan(HalfToFloat(FloatToHalf(std::nanf("")))));
  CHECK(std::isnan(HalfToFloat(FloatToHalf(std::bit_cast<float>(0x7f800001u)))));  // payload in the lowest bit only
}

TEST_CASE("dtype: bfloat16 is the upper half of a float") {
  CHECK(Bf16ToFloat(0x3f80) == 1.0f);
  CHECK(Bf16ToFloat(0xc2f7) == -123.5f);
  CHECK(std::isinf(Bf16ToFloat(0x7f80)));
}

TEST_CASE("dtype: names and ids") {
  for (const DTypeInfo& info : DTypes()) {
    CAPTURE(std::string(info.name));
    CHECK(GgmlTypeName(static_cast<uint32_t>(info.type)) == info.name);
    CHECK(DTypeFromId(static_cast<uint32_t>(info.type)) == info.type);
    CHECK(Info(info.type).name == std::string(info.name));
  }
  CHECK(GgmlTypeName(16) == "IQ2_XXS");
  CHECK(GgmlTypeName(40) == "NVFP4");
  CHECK(GgmlTypeName(1000).empty());
  CHECK_FALSE(DTypeFromId(16).has_value());
}

}  // namespace thermocline
