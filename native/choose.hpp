// How a draft model picks a token from its row of logits. Whatever it picks, verification decides; so this is the
// `sampling` package's choice in short: where that keeps the last bits, this may drop what has next to no chance.
//
// Shape legend: V entries of the row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.hpp"

namespace draftsmith {

struct Sampling {
    bool greedy = true;
    double temperature = 1, top_p = 1, min_p = 0;
    size_t top_k = 0;       // 0: off
    uint64_t seed = 0;
    uint32_t position = 0;  // of the token, in prompt and reply
};

// The confidence is the probability of the token: by the softmax of the row where the choice is greedy, else after the options.
struct Chosen { int32_t token; float confidence; };

class Chooser {
public:
    explicit Chooser(const Kernels& kernels) : kernels_(kernels) {}

    // `row` has `width` entries, a multiple of kRowGroup. `names` [width], or null: by which ids the noise knows the entries.
    // Throws std::overflow_error when the row is not of finite numbers.
    Chosen choose(const float* row, size_t width, const Sampling& sampling, const int32_t* names);

private:
    struct Candidate { int32_t index; float logit; double weight; };

    Chosen likeliest(const float* row, size_t width, float peak) const;
    float kth_bound(size_t k);
    void collect(const float* row, float bound);
    void cut(const Sampling& sampling, float peak);

    const Kernels& kernels_;
    std::vector<float> maxima_, scratch_;  // of groups of the row
    std::vector<Candidate> candidates_;
};

}  // namespace draftsmith
