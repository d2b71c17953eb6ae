// What errors about model files say in the end: what to do.
#pragma once

#include <string_view>

namespace thermocline {

inline constexpr std::string_view kDownloadAgain = "The file is incomplete or damaged: download it again.";
inline constexpr std::string_view kDamagedOrUnsupported =
    "The file is damaged (download it again) or the model is not supported.";
inline constexpr std::string_view kConvertAgain = "Convert the model again with a current converter.";
inline constexpr std::string_view kOtherModel = "Get another model.";

}  // namespace thermocline
