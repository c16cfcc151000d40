// The sets of kernels that this processor runs.
#pragma once

#include <string>
#include <vector>

#include "kernels.hpp"

namespace draftsmith {

// Their names, slowest first; the first is the specification.
std::vector<std::string> instruction_sets();

// Throws std::invalid_argument when the processor lacks it, or nobody has heard of it.
const Kernels& kernels_named(const std::string& name);

}  // namespace draftsmith
