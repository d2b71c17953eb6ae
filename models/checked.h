// Arithmetic on sizes that come from outside: nullopt instead of wrapping around.
#pragma once

#include <bit>
#include <concepts>
#include <optional>

namespace thermocline {

template <std::integral T>
[[nodiscard]] constexpr std::optional<T> CheckedAdd(T a, T b) {
  T result;
  if (__builtin_add_overflow(a, b, &result)) return std::nullopt;
  return result;
}

template <std::integral T>
[[nodiscard]] constexpr std::optional<T> CheckedMul(T a, T b) {
  T result;
  if (__builtin_mul_overflow(a, b, &result)) return std::nullopt;
  return result;
}

// The smallest multiple of `alignment`, a power of two, that is not below `a`.
template <std::unsigned_integral T>
[[nodiscard]] constexpr std::optional<T> CheckedAlignUp(T a, T alignment) {
  const auto sum = CheckedAdd<T>(a, alignment - 1);
  if (!std::has_single_bit(alignment) || !sum) return std::nullopt;
  return *sum & ~(alignment - 1);
}

}  // namespace thermocline
