#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "models/check.h"
#include "runtime/bench_report.h"
#include "runtime/svg.h"

namespace thermocline {
namespace {

constexpr double kWidth = 860, kHeight = 520, kLeft = 76, kRight = 28, kTop = 78, kBottom = 62;
constexpr const char* kColours[] = {"#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d"};

// One axis from one power of ten to another.
struct Axis {
  int low, high;      // exponents
  double begin, end;  // pixels
  double At(double value) const { return begin + (std::log10(value) - low) / (high - low) * (end - begin); }
};

std::string Grid(const Axis& x, const Axis& y) {
  std::string svg;
  for (int e = x.low; e <= x.high; ++e) {
    for (int m = 2; m < 10 && e < x.high; ++m)
      svg += SvgLine(x.At(m * std::pow(10, e)), y.begin, x.At(m * std::pow(10, e)), y.end, "stroke=\"#f3f3f3\"");
    svg += SvgLine(x.At(std::pow(10, e)), y.begin, x.At(std::pow(10, e)), y.end, "stroke=\"#dddddd\"");
    svg +=
        SvgLabel(x.At(std::pow(10, e)), y.begin + 20, "middle", "fill=\"#555\"", fmt::format("{:g}", std::pow(10, e)));
  }
  for (int e = y.low; e <= y.high; ++e) {
    for (int m = 2; m < 10 && e < y.high; ++m)
      svg += SvgLine(x.begin, y.At(m * std::pow(10, e)), x.end, y.At(m * std::pow(10, e)), "stroke=\"#f3f3f3\"");
    svg += SvgLine(x.begin, y.At(std::pow(10, e)), x.end, y.At(std::pow(10, e)), "stroke=\"#dddddd\"");
    svg +=
        SvgLabel(x.begin - 8, y.At(std::pow(10, e)) + 4, "end", "fill=\"#555\"", fmt::format("{:g}", std::pow(10, e)));
  }
  return svg;
}

// The bandwidth's slope up to the ridge, then the peak; without a peak the slope alone.
std::string Roof(const Roofs& roofs, const Axis& x, const Axis& y) {
  const double gb = roofs.bytes_per_s * 1e-9, gops = roofs.ops_per_s * 1e-9;
  const double first = std::pow(10, x.low), last = std::pow(10, x.high);
  const double ridge = gops > 0 ? gops / gb : last;
  const double low = std::max(first, std::pow(10, y.low) / gb), high = std::min(ridge, std::pow(10, y.high) / gb);
  constexpr const char* kRoof = "stroke=\"#333\" stroke-width=\"2.5\" stroke-linecap=\"round\"";
  std::string svg = SvgLine(x.At(low), y.At(low * gb), x.At(high), y.At(high * gb), kRoof);
  const double middle = std::sqrt(low * high);
  const double angle = std::atan2(y.At(high * gb) - y.At(low * gb), x.At(high) - x.At(low)) * 180 / std::acos(-1.0);
  svg +=
      fmt::format("<g transform=\"translate({:.1f} {:.1f}) rotate({:.1f})\">{}</g>\n", x.At(middle), y.At(middle * gb),
                  angle, SvgLabel(0, -8, "middle", "fill=\"#333\"", fmt::format("read bandwidth {:.1f} GB/s", gb)));
  if (gops > 0 && ridge < last) {
    svg += SvgLine(x.At(ridge), y.At(gops), x.end, y.At(gops), kRoof);
    svg += SvgLabel(x.end - 6, y.At(gops) - 8, "end", "fill=\"#333\"", fmt::format("peak {:.0f} GOP/s", gops));
  }
  return svg;
}

}  // namespace

std::string RooflineSvg(const std::vector<BenchResult>& results, const BenchAbout& about) {
  CHECK(!results.empty() && results.front().roofs);
  const auto lower = [](const BenchResult& a, const BenchResult& b) {
    return a.roofs->bytes_per_s < b.roofs->bytes_per_s;
  };
  const Roofs& roofs = *std::max_element(results.begin(), results.end(), lower)->roofs;
  double x_low = 1e300, x_high = 0, y_low = 1e300, y_high = 0;
  for (const BenchResult& result : results) {
    const double x = static_cast<double>(result.work.ops) / static_cast<double>(result.work.bytes);
    const double y = static_cast<double>(result.work.ops) * 1e-9 / result.Seconds();
    x_low = std::min(x_low, x);
    x_high = std::max(x_high, x);
    y_low = std::min(y_low, y);
    y_high = std::max(y_high, y);
  }
  const double ridge = roofs.ops_per_s / roofs.bytes_per_s;
  const auto decades = [](double low, double high, double begin, double end) {
    const int first = static_cast<int>(std::floor(std::log10(low * 0.8)));
    return Axis{first, std::max(first + 1, static_cast<int>(std::ceil(std::log10(high * 1.3)))), begin, end};
  };
  const Axis x = decades(x_low, std::max(x_high, ridge), kLeft, kWidth - kRight);
  const Axis y = decades(y_low, std::max(y_high, roofs.ops_per_s * 1e-9), kHeight - kBottom, kTop);

  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} {1:.0f}\" "
      "font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\">\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      kWidth, kHeight);
  svg += SvgLabel(kLeft, 32, "start", "font-size=\"18\" font-weight=\"bold\" fill=\"#222\"", about.model_type);
  svg += SvgLabel(
      kLeft, 54, "start", "fill=\"#555\"",
      fmt::format("{}, {} thread{}, {}", about.cpu_info, roofs.n_threads, roofs.n_threads == 1 ? "" : "s", about.isa));
  svg += Grid(x, y) + Roof(roofs, x, y);
  svg += SvgLabel((x.begin + x.end) / 2, kHeight - 18, "middle", "fill=\"#222\"",
                  "operations per byte of weights and cache");
  svg += fmt::format("<g transform=\"translate(22 {:.1f}) rotate(-90)\">{}</g>\n", (y.begin + y.end) / 2,
                     SvgLabel(0, 0, "middle", "fill=\"#222\"", "GOP/s"));
  const double spacing = std::min(18.0, (kHeight - kTop - kBottom - 32) / static_cast<double>(results.size()));
  // A legend instead of names beside the dots: tests of one kind lie close together.
  for (size_t i = 0; i < results.size(); ++i) {
    const BenchResult& result = results[i];
    const double ops = static_cast<double>(result.work.ops), per_byte = ops / static_cast<double>(result.work.bytes);
    const double bound = std::max(result.BandwidthFraction(), roofs.ops_per_s > 0 ? result.PeakFraction() : 0.0);
    const char* colour = kColours[i % std::size(kColours)];
    const double row = kHeight - kBottom - 16 - spacing * static_cast<double>(results.size() - 1 - i);
    const std::string name = fmt::format("{}: {:.0f} % of the roof", result.Name(), 100 * bound);
    svg += fmt::format(
        "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"6\" fill=\"{}\" stroke=\"white\"><title>{}</title></circle>\n",
        x.At(per_byte), y.At(ops * 1e-9 / result.Seconds()), colour, XmlEscaped(name));
    svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"5\" fill=\"{}\"/>\n", x.end - 14, row - 4, colour);
    svg += SvgLabel(x.end - 26, row, "end", "fill=\"#222\"", name);
  }
  return svg + "</svg>\n";
}

}  // namespace thermocline
