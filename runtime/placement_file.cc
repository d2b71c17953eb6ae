#include "runtime/placement_file.h"

#include <nlohmann/json.hpp>

#include "models/error.h"
#include "models/limits.h"
#include "runtime/text_io.h"

namespace thermocline {
namespace {

using Json = nlohmann::json;

Json Parse(const std::filesystem::path& path) {
  const std::string text = ReadText(path);
  if (text.size() > kMaxPlanBytes) throw Error("{}: more than any plan has; is it one?", path.string());
  const auto limit_depth = [&](int depth, Json::parse_event_t, Json&) {
    if (depth > kMaxPlanDepth) throw Error("{}: nested deeper than {} levels", path.string(), kMaxPlanDepth);
    return true;
  };
  try {
    return Json::parse(text, limit_depth);
  } catch (const Json::parse_error& error) {
    throw Error("{}: not JSON, at byte {}; `plan --json` writes what is needed", path.string(), error.byte);
  } catch (const Json::exception& error) {
    throw Error("{}: not JSON that can be read: {}", path.string(), error.what());
  }
}

const Json& Member(const Json& object, const char* key, const std::string& where) {
  if (!object.is_object() || !object.contains(key))
    throw Error("{}: \"{}\" is missing; `plan --json` writes what is needed", where, key);
  return object[key];
}

Memory ReadMemory(const Json& object, const char* key, const std::string& where) {
  const Json& value = Member(object, key, where);
  for (const Memory memory : {Memory::kCpu, Memory::kDevice})
    if (value == Name(memory)) return memory;
  throw Error("{}: \"{}\" is neither \"CPU\" nor \"device\"", where, key);
}

std::string Hex(uint64_t value) { return fmt::format("{:016x}", value); }

NeuronOrders ReadOrders(const Json& order, const std::string& where,
                        const std::function<NeuronOrders(HeatOrder)>& orders) {
  const std::string here = fmt::format("{}: \"order\"", where);
  const Json &by = Member(order, "by", here), &hash = Member(order, "hash", here);
  const std::optional<HeatOrder> known =
      by.is_string() ? FindHeatOrder(by.get_ref<const std::string&>()) : std::nullopt;
  if (!known) throw Error("{}: \"order\" is by neither \"blocks\" nor \"neurons\"", where);
  NeuronOrders today = orders(*known);
  if (hash != Hex(HashOf(today)))
    throw Error("{}: it counts neurons in another order than the .heat file tells of; plan anew", where);
  return today;
}

}  // namespace

const char* Name(Memory memory) { return memory == Memory::kDevice ? "device" : "CPU"; }

void WritePlacement(const Placement& placement, std::optional<HeatOrder> by, nlohmann::ordered_json& out) {
  if (by) out["order"] = {{"by", Name(*by)}, {"hash", Hex(HashOf(placement.orders))}};
  out["head"] = Name(placement.head);
  auto& layers = out["layers"] = nlohmann::ordered_json::array();
  for (const LayerPlacement& layer : placement.layers)
    layers.push_back({{"n_hot", layer.n_hot}, {"attention", Name(layer.attention)}, {"kv", Name(layer.kv)}});
}

Placement ReadPlacement(const std::filesystem::path& path, const std::function<NeuronOrders(HeatOrder)>& orders) {
  const Json json = Parse(path);
  const Json* plan = &json;
  if (json.is_object() && json.contains("plans")) {
    if (!json["plans"].is_array() || json["plans"].empty()) throw Error("{}: \"plans\" is no list", path.string());
    plan = &json["plans"][0];
  }
  Placement placement;
  placement.head = ReadMemory(*plan, "head", path.string());
  if (plan->contains("order")) placement.orders = ReadOrders((*plan)["order"], path.string(), orders);
  const Json& layers = Member(*plan, "layers", path.string());
  if (!layers.is_array() || layers.size() > kMaxLayers)
    throw Error("{}: \"layers\" is no list of layers", path.string());
  for (const Json& layer : layers) {
    const std::string where = fmt::format("{}: layer {}", path.string(), placement.layers.size());
    const Json& n_hot = Member(layer, "n_hot", where);
    if (!n_hot.is_number_unsigned() || n_hot.get<uint64_t>() > kMaxFeedForward)
      throw Error("{}: \"n_hot\" is no number of neurons", where);
    placement.layers.push_back(
        {n_hot.get<int64_t>(), ReadMemory(layer, "attention", where), ReadMemory(layer, "kv", where)});
  }
  return placement;
}

}  // namespace thermocline
