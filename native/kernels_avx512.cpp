#include "simd_avx512.hpp"
// The instruction set first: the templates below are instantiated for it.
#include "kernel_table.hpp"

namespace draftsmith {

const Kernels& avx512_kernels() {
    static constexpr Kernels table = kernel_table<Avx512>();
    return table;
}

}  // namespace draftsmith
