#include "choose.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace draftsmith {
namespace {

// Beside the likeliest entry's 1; what is below is not considered. Without top_p the host's noise lets such entries race as
// one (sampling/noise.py), and a draft that is one of them is hardly ever right; top_p needs to know what they weigh.
constexpr double kLeastWeight = 0x1p-16, kLeastToHeap = 1e-9;

// The first 53 bits of Philox4x32-10 for the counter (id, position, 0, 0): see sampling/philox.py and sampling/noise.py.
uint64_t philox_bits(uint32_t id, uint32_t position, uint64_t seed) {
    uint32_t c0 = id, c1 = position, c2 = 0, c3 = 0, k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t{0xD2511F53} * c0, product1 = uint64_t{0xCD9E8D57} * c2;
        c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(product1);
        c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(product0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (uint64_t{c0} << 21) | (c1 >> 11);
}

}  // namespace

Chosen Chooser::choose(const float* row, size_t width, const Sampling& sampling, const int32_t* names) {
    maxima_.resize(width / kRowGroup);
    kernels_.group_maxima(row, maxima_.size(), maxima_.data());
    const float peak = *std::max_element(maxima_.begin(), maxima_.end());
    if (!std::isfinite(peak)) throw std::overflow_error("logits are not finite numbers");
    if (sampling.greedy) return likeliest(row, width, peak);
    float bound = peak + static_cast<float>(sampling.temperature * std::log(sampling.top_p < 1 ? kLeastToHeap : kLeastWeight));
    if (sampling.top_k > 0) bound = std::max(bound, kth_bound(sampling.top_k));
    collect(row, bound);
    cut(sampling, peak);
    double total = 0;
    for (const Candidate& c : candidates_) total += c.weight;
    const Candidate* best = nullptr;
    double soonest = 0;
    for (const Candidate& c : candidates_) {
        const uint32_t id = static_cast<uint32_t>(names ? names[c.index] : c.index);
        const double uniform = (static_cast<double>(philox_bits(id, sampling.position, sampling.seed)) + 0.5) * 0x1p-53;
        const double waiting = std::log1p(-uniform) / (c.weight / total);  // negative, so that the largest arrives first
        if (!best || waiting > soonest || (waiting == soonest && c.index < best->index)) {
            best = &c;
            soonest = waiting;
        }
    }
    return {best->index, static_cast<float>(best->weight / total)};
}

Chosen Chooser::likeliest(const float* row, size_t width, float peak) const {
    const size_t group = static_cast<size_t>(std::find(maxima_.begin(), maxima_.end(), peak) - maxima_.begin());
    const float* first = row + group * kRowGroup;
    const auto index = static_cast<int32_t>(std::find(first, first + kRowGroup, peak) - row);
    return {index, 1.0f / kernels_.exp_sum(row, width, peak)};
}

// No more than the k-th largest entry: each group's largest is an entry of its own.
float Chooser::kth_bound(size_t k) {
    if (maxima_.size() <= k) return -INFINITY;
    scratch_ = maxima_;
    std::nth_element(scratch_.begin(), scratch_.begin() + static_cast<ptrdiff_t>(k - 1), scratch_.end(), std::greater<>());
    return scratch_[k - 1];
}

void Chooser::collect(const float* row, float bound) {
    candidates_.clear();
    for (size_t group = 0; group < maxima_.size(); ++group) {
        if (maxima_[group] < bound) continue;
        for (size_t i = group * kRowGroup; i < (group + 1) * kRowGroup; ++i) {
            if (row[i] >= bound) candidates_.push_back({static_cast<int32_t>(i), row[i], 0});
        }
    }
}

// Keep the candidates that top_k, top_p and min_p leave, with their weights.
void Chooser::cut(const Sampling& sampling, float peak) {
    const auto by_rank = [](const Candidate& a, const Candidate& b) { return a.logit > b.logit || (a.logit == b.logit && a.index < b.index); };
    if (sampling.top_k > 0 && candidates_.size() > sampling.top_k) {
        const auto last = candidates_.begin() + static_cast<ptrdiff_t>(sampling.top_k - 1);
        std::nth_element(candidates_.begin(), last, candidates_.end(), by_rank);
        const float least = last->logit;  // its equals stay, too
        std::erase_if(candidates_, [&](const Candidate& c) { return c.logit < least; });
    }
    double total = 0;
    for (Candidate& c : candidates_) {
        c.weight = std::exp((static_cast<double>(c.logit) - static_cast<double>(peak)) / sampling.temperature);
        total += c.weight;
    }
    if (sampling.top_p < 1) {
        std::sort(candidates_.begin(), candidates_.end(), by_rank);
        double held = 0;
        size_t kept = 0;
        while (kept < candidates_.size() && held < sampling.top_p * total) held += candidates_[kept++].weight;
        candidates_.resize(std::max<size_t>(kept, 1));
    }
    std::erase_if(candidates_, [&](const Candidate& c) { return c.weight < sampling.min_p; });
}

}  // namespace draftsmith
