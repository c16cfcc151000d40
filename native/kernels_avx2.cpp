#include "simd_avx2.hpp"
// The instruction set first: the templates below are instantiated for it.
#include "kernel_table.hpp"

namespace draftsmith {

const Kernels& avx2_kernels() {
    static constexpr Kernels table = kernel_table<Avx2>();
    return table;
}

}  // namespace draftsmith
