#include "simd_portable.hpp"
// The instruction set first: the templates below are instantiated for it.
#include "kernel_table.hpp"

namespace draftsmith {

const Kernels& portable_kernels() {
    static constexpr Kernels table = kernel_table<Portable>();
    return table;
}

}  // namespace draftsmith
