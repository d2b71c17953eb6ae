#include "runtime/pull.h"

#include "models/quoted.h"
#include "runtime/catalog.h"
#include "runtime/commands/commands.h"
#include "runtime/text_io.h"

namespace thermocline {

int RunPull(const Command& command, std::vector<std::string> args) {
  CommandLine line(command);
  std::string name, known = "Known models:\n";
  std::vector<std::string> names;
  for (const CatalogEntry& entry : Catalog()) {
    const std::string state = IsPresent(entry) ? ", here" : names.empty() ? ", the default" : "";
    names.emplace_back(entry.name);
    known += fmt::format("  {:<14} {} ({}{})\n", entry.name, HumanBytes(static_cast<double>(entry.bytes)),
                         entry.license, state);
  }
  line.AddPositional("MODEL", &name, "Its name; without one, the default model");
  line.SetFooter(known);
  if (!line.Parse(std::move(args))) return kGood;

  const CatalogEntry* entry = FindCatalog(name);
  if (entry == nullptr) {
    const std::string nearest = Nearest(name, names);
    throw UsageError(fmt::format("unknown model {}{}", Quoted(name),
                                 nearest.empty() ? "" : fmt::format("; did you mean `{}`?", nearest)));
  }
  Pull(*entry);
  return kGood;
}

}  // namespace thermocline
