// Elements of the pictures that reports draw.
#pragma once

#include <string>
#include <string_view>

namespace thermocline {

// Text as XML and HTML have it; control characters become spaces.
std::string XmlEscaped(std::string_view text);
std::string SvgLabel(double x, double y, const char* anchor, const char* style, std::string_view text);
std::string SvgLine(double x1, double y1, double x2, double y2, const char* style);

}  // namespace thermocline
