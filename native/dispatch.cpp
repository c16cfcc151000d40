#include "dispatch.hpp"

#include <stdexcept>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace draftsmith {
namespace {

std::vector<const Kernels*> available() {
    std::vector<const Kernels*> sets{&portable_kernels()};
#if defined(DRAFTSMITH_PORTABLE_ONLY)
    // a program without the others
#elif defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) sets.push_back(&avx2_kernels());
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni")) {
        sets.push_back(&avx512_kernels());
    }
#elif defined(__aarch64__) && defined(__linux__)
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) sets.push_back(&neon_kernels());
#elif defined(__aarch64__) && defined(__APPLE__)
    sets.push_back(&neon_kernels());  // every Apple processor of this architecture has dot products
#endif
    return sets;
}

bool made_by_amd() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_is("amd");
#else
    return false;
#endif
}

}  // namespace

const bool kFetchIntoSecondCache = made_by_amd();

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Kernels* set : available()) names.emplace_back(set->name);
    return names;
}

const Kernels& kernels_named(const std::string& name) {
    for (const Kernels* set : available()) if (name == set->name) return *set;
    throw std::invalid_argument("the instruction set '" + name + "' is not available on this processor");
}

}  // namespace draftsmith
