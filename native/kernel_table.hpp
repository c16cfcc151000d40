// Instantiates every kernel for one instruction set. Included once by each kernels_*.cpp, which is compiled for that set;
// everything it pulls in has internal linkage, so that no other file can end up running these instructions.
#pragma once

#include "attention.hpp"
#include "elementwise.hpp"
#include "kernels.hpp"
#include "matmul.hpp"
#include "peaks.hpp"

namespace draftsmith {
namespace {

template <class S> constexpr Kernels kernel_table() {
    return Kernels{
        .name = S::kName,
        .matmul_quant = matmul_quant<S>,
        .matmul_float = matmul_float<S>,
        .rms_norm = rms_norm<S>,
        .quantise = quantise<S>,
        .silu_mul = silu_mul<S>,
        .rope = rope<S>,
        .add = add<S>,
        .attend = {attend<S, FloatCache<uint16_t>>, attend<S, FloatCache<float>>, attend<S, Int8Cache>},
        .attention_fold = attention_fold<S>,
        .attention_finish = attention_finish<S>,
        .store_half = store_half<S>,
        .store_codes = store_codes<S>,
        .group_maxima = group_maxima<S>,
        .exp_sum = exp_sum<S>,
        .peak_int8 = peak_int8<S>,
        .peak_float = peak_float<S>,
        .read_lines = read_lines<S>,
    };
}

}  // namespace
}  // namespace draftsmith
