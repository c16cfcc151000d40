#include "simd_neon.hpp"
// The instruction set first: the templates below are instantiated for it.
#include "kernel_table.hpp"

namespace draftsmith {

const Kernels& neon_kernels() {
    static constexpr Kernels table = kernel_table<Neon>();
    return table;
}

}  // namespace draftsmith
