#include "runtime/heat_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "runtime/svg.h"

namespace thermocline {
namespace {

constexpr double kMost = 0.8;  // of the activations

// The target that is shown: with ReLU there is one, else the one nearest to a half.
int ShownTarget(const Heat& heat) {
  const auto distance = [](float target) { return std::abs(target - 0.5f); };
  const auto nearest = std::min_element(heat.targets.begin(), heat.targets.end(),
                                        [&](float a, float b) { return distance(a) < distance(b); });
  return static_cast<int>(nearest - heat.targets.begin());
}

struct LayerView {
  double active;                   // the share of neurons that fire for a token, in the mean
  std::vector<double> cumulative;  // the share of activations that the i + 1 hottest neurons make
  double hottest;                  // the share of neurons that make kMost of the activations
};

LayerView View(const Heat& heat, int layer, int target) {
  std::vector<float> frequency = heat.Frequency(layer, target);
  std::sort(frequency.begin(), frequency.end(), std::greater<>());
  LayerView view{};
  double sum = 0;
  for (const float value : frequency) view.cumulative.push_back(sum += value);
  const double n = static_cast<double>(heat.n_ff);
  view.active = sum / n;
  for (double& value : view.cumulative) value /= std::max(sum, 1e-30);
  const auto most = std::lower_bound(view.cumulative.begin(), view.cumulative.end(), kMost);
  view.hottest = std::min(1.0, static_cast<double>(most - view.cumulative.begin() + 1) / n);
  return view;
}

std::vector<LayerView> Views(const Heat& heat) {
  std::vector<LayerView> views;
  for (size_t i = 0; i < heat.layers.size(); ++i) views.push_back(View(heat, static_cast<int>(i), ShownTarget(heat)));
  return views;
}

struct Range {
  double mean, min, max;
};
Range RangeOf(const std::vector<LayerView>& views, double LayerView::*member) {
  Range range{0, views[0].*member, views[0].*member};
  for (const LayerView& view : views) {
    range.mean += view.*member / static_cast<double>(views.size());
    range.min = std::min(range.min, view.*member);
    range.max = std::max(range.max, view.*member);
  }
  return range;
}

std::string FiringMeans(const Heat& heat) {
  if (heat.activation == Activation::kRelu) return "is above zero";
  return fmt::format("is among the {:.0f} % largest of the layer", 100 - 100 * heat.targets[ShownTarget(heat)]);
}

// A picture with linear axes from 0: x to `x_end`, y to `y_end`.
struct Plot {
  static constexpr double kWidth = 860, kHeight = 400, kLeft = 66, kRight = 24, kTop = 20, kBottom = 54;
  double x_end, y_end;
  std::string svg{};

  double X(double x) const { return kLeft + x / x_end * (kWidth - kLeft - kRight); }
  double Y(double y) const { return kHeight - kBottom - y / y_end * (kHeight - kTop - kBottom); }
  void Axes(double x_step, const char* x_format, const char* x_title, const char* y_format, const char* y_title) {
    constexpr int kYSteps = 5;
    for (double x = 0; x <= x_end; x += x_step) {
      svg += SvgLine(X(x), Y(0), X(x), Y(y_end), "stroke=\"#e4e4e4\"");
      svg += SvgLabel(X(x), Y(0) + 18, "middle", "fill=\"#555\"", fmt::format(fmt::runtime(x_format), x));
    }
    for (int i = 0; i <= kYSteps; ++i) {
      const double y = y_end * i / kYSteps;
      svg += SvgLine(X(0), Y(y), X(x_end), Y(y), "stroke=\"#e4e4e4\"");
      svg += SvgLabel(X(0) - 8, Y(y) + 4, "end", "fill=\"#555\"", fmt::format(fmt::runtime(y_format), y));
    }
    svg += SvgLabel((X(0) + X(x_end)) / 2, kHeight - 12, "middle", "fill=\"#222\"", x_title);
    svg += fmt::format("<g transform=\"translate(16 {:.1f}) rotate(-90)\">{}</g>\n", Y(y_end / 2),
                       SvgLabel(0, 0, "middle", "fill=\"#222\"", y_title));
  }
  void Line(const std::vector<std::pair<double, double>>& points, const char* style) {
    svg += "<polyline fill=\"none\" points=\"";
    for (const auto& [x, y] : points) svg += fmt::format("{:.1f},{:.1f} ", X(x), Y(y));
    svg += fmt::format("\" {}/>\n", style);
  }
  std::string Picture() const {
    return fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" "
        "height=\"{1:.0f}\">\n{2}</svg>\n",
        kWidth, kHeight, svg);
  }
};

// From cold to warm along the depth of the model.
std::string LayerColour(size_t layer, size_t n) {
  const double t = n > 1 ? static_cast<double>(layer) / static_cast<double>(n - 1) : 0;
  return fmt::format("rgb({:.0f},{:.0f},{:.0f})", 40 + 190 * t, 110 - 30 * t, 200 - 150 * t);
}

std::string PowerLaw(const std::vector<LayerView>& views) {
  constexpr size_t kPoints = 200;  // of a line; more would not be seen
  Plot plot{.x_end = 100, .y_end = 100};
  plot.Axes(10, "{:.0f} %", "hottest neurons of the layer", "{:.0f} %", "share of activations");
  for (size_t i = 0; i < views.size(); ++i) {
    const std::vector<double>& curve = views[i].cumulative;
    std::vector<std::pair<double, double>> points = {{0, 0}};
    const size_t step = std::max<size_t>(1, curve.size() / kPoints);
    for (size_t j = step - 1; j < curve.size(); j += step)
      points.emplace_back(100 * static_cast<double>(j + 1) / static_cast<double>(curve.size()), 100 * curve[j]);
    plot.Line(points, fmt::format("stroke=\"{}\" stroke-opacity=\"0.6\"", LayerColour(i, views.size())).c_str());
  }
  plot.svg += SvgLine(plot.X(0), plot.Y(100 * kMost), plot.X(100), plot.Y(100 * kMost),
                      "stroke=\"#333\" stroke-dasharray=\"5 4\"");
  plot.svg += SvgLabel(plot.X(99), plot.Y(6), "end", "fill=\"#555\"", "blue: the first layer; red: the last");
  return plot.Picture();
}

// A bar for each layer: its share, and what is said where a pointer stays on it.
std::string LayerBars(const char* y_title, const std::vector<std::pair<double, std::string>>& bars) {
  const double n = static_cast<double>(bars.size());
  Plot plot{.x_end = n, .y_end = 100};
  plot.Axes(std::ceil(n / 12), "{:.0f}", "layer", "{:.0f} %", y_title);
  const double width = plot.X(1) - plot.X(0);
  for (size_t i = 0; i < bars.size(); ++i) {
    const double top = plot.Y(100 * bars[i].first);
    plot.svg += fmt::format(
        "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\"><title>layer {}: {:.1f} %, "
        "{}</title></rect>\n",
        plot.X(static_cast<double>(i)) + 0.1 * width, top, 0.8 * width, plot.Y(0) - top, LayerColour(i, bars.size()), i,
        100 * bars[i].first, bars[i].second);
  }
  return plot.Picture();
}

std::string ActiveByLayer(const std::vector<LayerView>& views) {
  std::vector<std::pair<double, std::string>> bars;
  for (const LayerView& view : views)
    bars.emplace_back(view.active, fmt::format("{:.0f} % of its neurons make 80 % of that", 100 * view.hottest));
  return LayerBars("neurons that fire for a token", bars);
}

std::string RecallByLayer(const HeatPredictors& predictors) {
  std::vector<std::pair<double, std::string>> bars;
  for (size_t i = 0; i < predictors.layers.size(); ++i)
    bars.emplace_back(predictors.recall[i], fmt::format("rank {}, {:.1f} % of the neurons are named",
                                                        predictors.layers[i].rank, 100 * predictors.computed[i]));
  return LayerBars("recall", bars);
}

std::string ThresholdCurve(const Heat& heat) {
  double highest = 0.01;
  for (const ThresholdPoint& point : heat.thresholds) highest = std::max<double>(highest, point.rise);
  Plot plot{.x_end = 100, .y_end = 100 * highest};
  plot.Axes(10, "{:.0f} %", "neurons left out", "{:.1f} %", "rise of perplexity");
  std::vector<std::pair<double, double>> points = {{0, 0}};
  for (const ThresholdPoint& point : heat.thresholds)
    points.emplace_back(100 * point.sparsity, 100 * std::max(0.f, point.rise));
  plot.Line(points, "stroke=\"#c0392b\" stroke-width=\"2\"");
  for (const auto& [x, y] : points)
    plot.svg += fmt::format(
        "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" fill=\"#c0392b\"><title>{:.1f} % left out: {:+.2f} "
        "%</title></circle>\n",
        plot.X(x), plot.Y(y), x, y);
  return plot.Picture();
}

}  // namespace

std::string DescribeHeat(const Heat& heat) {
  const std::vector<LayerView> views = Views(heat);
  const Range active = RangeOf(views, &LayerView::active), hottest = RangeOf(views, &LayerView::hottest);
  std::string text = fmt::format("{} layers of {} neurons, {} tokens; a neuron fires where its activation {}\n",
                                 heat.layers.size(), heat.n_ff, heat.n_counted, FiringMeans(heat));
  text += fmt::format("fire for a token           {:5.1f} % of the neurons (by layer {:.1f} to {:.1f} %)\n",
                      100 * active.mean, 100 * active.min, 100 * active.max);
  text += fmt::format("make 80 % of activations   {:5.1f} % of the neurons (by layer {:.1f} to {:.1f} %)\n",
                      100 * hottest.mean, 100 * hottest.min, 100 * hottest.max);
  if (!heat.recent.fired.empty())
    text += fmt::format("chat has learned from      {:5.0f} recent tokens\n", heat.recent.tokens);
  for (const ThresholdPoint& point : heat.thresholds)
    text +=
        fmt::format("without {:2.0f} %               {:+5.2f} % perplexity\n", 100 * point.sparsity, 100 * point.rise);
  const HeatPredictors& predictors = heat.predictors;
  if (!predictors.complete()) return text;
  const auto mean = [](const std::vector<float>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  };
  text += fmt::format(
      "predictors of {:.1f} MB   {:5.1f} % of what fires is found among {:.1f} % of the neurons; {:+.2f} % "
      "perplexity\n",
      static_cast<double>(predictors.bytes()) / (1 << 20), 100 * mean(predictors.recall),
      100 * mean(predictors.computed), 100 * predictors.rise);
  return text;
}

std::string HeatReport(const Heat& heat) {
  const std::vector<LayerView> views = Views(heat);
  std::string page = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>Heat of {0}</title>\n<style>\n"
      "body {{ font: 15px/1.5 Helvetica, Arial, sans-serif; color: #222; max-width: 880px; margin: 40px auto; "
      "padding: 0 16px; }}\nh1 {{ font-size: 24px; overflow-wrap: anywhere; }}\nh2 {{ font-size: 17px; margin: 32px 0 "
      "4px; }}\np {{ margin: 4px 0 8px; color: #555; }}\npre {{ background: #f6f6f6; padding: 12px; white-space: "
      "pre-wrap; "
      "}}\nsvg {{ max-width: 100%; height: auto; font-size: 12px; }}\n</style>\n</head>\n<body>\n<h1>Heat of "
      "{0}</h1>\n<pre>{1}</pre>\n",
      XmlEscaped(heat.model), DescribeHeat(heat));
  page += fmt::format(
      "<h2>How unevenly neurons fire</h2>\n<p>A neuron fires for a token where its activation {}. Each line is a "
      "layer; the dashed one is 80 % of all activations.</p>\n{}",
      FiringMeans(heat), PowerLaw(views));
  if (heat.activation == Activation::kRelu)  // otherwise levels are made so that it is the same in all layers
    page += "<h2>How many fire</h2>\n<p>In the mean over tokens, by layer.</p>\n" + ActiveByLayer(views);
  if (!heat.thresholds.empty())
    page +=
        "<h2>What leaving neurons out costs</h2>\n<p>Perplexity on text that did not choose the levels, by the mean "
        "share of neurons that are left out.</p>\n" +
        ThresholdCurve(heat);
  if (heat.predictors.complete())
    page +=
        "<h2>What predictors find</h2>\n<p>Of the neurons that fire, the share that was predicted, on text that did "
        "not "
        "train the predictors.</p>\n" +
        RecallByLayer(heat.predictors);
  return page + "</body>\n</html>\n";
}

}  // namespace thermocline
