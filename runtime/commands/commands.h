// The commands of the program, one file each.
#pragma once

#include <string>
#include <vector>

#include "runtime/cli.h"

namespace thermocline {

int RunChat(const Command& command, std::vector<std::string> args);
int RunTokenize(const Command& command, std::vector<std::string> args);
int RunTemplate(const Command& command, std::vector<std::string> args);
int RunInspect(const Command& command, std::vector<std::string> args);
int RunPerplexity(const Command& command, std::vector<std::string> args);
int RunProfile(const Command& command, std::vector<std::string> args);
int RunQuantize(const Command& command, std::vector<std::string> args);
int RunBench(const Command& command, std::vector<std::string> args);
int RunPlan(const Command& command, std::vector<std::string> args);
int RunMachine(const Command& command, std::vector<std::string> args);
int RunSynth(const Command& command, std::vector<std::string> args);
int RunPull(const Command& command, std::vector<std::string> args);

}  // namespace thermocline
