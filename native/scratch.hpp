// What a step works in, made once: no memory is taken while it runs.
#pragma once

#include <algorithm>
#include <atomic>

#include "model.hpp"

namespace draftsmith {

constexpr size_t kFewRows = 8;  // rows that every worker normalises for itself

template <class T> class Buffer {  // aligned to cache lines, not initialised
public:
    explicit Buffer(size_t count) : data_(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64 + 64))) {
        if (!data_) throw std::bad_alloc();
    }
    ~Buffer() { std::free(data_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    T* data() { return data_; }
    T* operator+(size_t n) { return data_ + n; }

private:
    T* data_;
};

// Results of single pieces of the context, until they are folded.
struct Partials {
    std::vector<float> maxima, sums, vectors;     // [slot], [slot], [slot][D]
    std::vector<std::atomic<uint32_t>> done;      // pieces done, for each unit's rows

    void reserve(size_t slots, size_t head_dim, size_t counters) {
        if (maxima.size() < slots) {
            maxima.resize(slots * 2);
            sums.resize(slots * 2);
            vectors.resize(slots * 2 * head_dim);
        }
        if (done.size() < counters) done = std::vector<std::atomic<uint32_t>>(counters);
        for (auto& pieces : done) pieces.store(0, std::memory_order_relaxed);
    }
};

// What mixtures of experts need besides.
struct ExpertScratch {
    ExpertScratch(const ModelShape& s, size_t places)
        : routing(s.experts, kMaxRows), scores(kMaxRows * s.experts.count), gathered(places * s.hidden), gate(places * s.experts.intermediate),
          up(places * s.experts.intermediate), out(places * s.hidden), gathered_groups(quant_groups(places, s.hidden)),
          activated_groups(quant_groups(places, s.experts.intermediate)) {}

    Routing routing;
    Buffer<float> scores, gathered, gate, up, out;
    Buffer<QuantGroup> gathered_groups, activated_groups;
};

struct Model::Scratch {
    Scratch(const ModelShape& s, size_t qkv, size_t widest, size_t team)
        : x(kMaxRows * s.hidden), normed(kMaxRows * s.hidden), qkv(kMaxRows * qkv), attention(kMaxRows * s.heads * s.head_dim),
          gate(kMaxRows * s.intermediate), up(kMaxRows * s.intermediate), own_normed(team * kFewRows * s.hidden), normed_groups(quant_groups(kMaxRows, s.hidden)),
          groups(quant_groups(kMaxRows, widest)), own_groups(team * quant_groups(kFewRows, s.hidden)),
          queries(s.cache_type == CacheType::int8 ? quant_groups(kMaxRows * s.heads, query_cols(s)) : 0) {
        if (s.experts.count) experts = std::make_unique<ExpertScratch>(s, Routing::most_places(s.experts, kMaxRows));
    }

    static size_t query_cols(const ModelShape& s) { return static_cast<size_t>(padded_head(static_cast<int>(s.head_dim))); }

    // Quantised queries: row = token x heads + head.
    QuantRows quant_queries(const ModelShape& s) { return {queries.data(), query_cols(s)}; }
    // A worker's own normalised rows.
    Input own(size_t worker, size_t n) { return {own_normed + worker * kFewRows * n, n, {own_groups + worker * quant_groups(kFewRows, n), n}}; }

    Buffer<float> x, normed, qkv, attention, gate, up, own_normed;
    Buffer<QuantGroup> normed_groups, groups, own_groups, queries;  // groups: of the attention's output, then of the activation
    Partials partials;
    std::unique_ptr<ExpertScratch> experts;
};

}  // namespace draftsmith
