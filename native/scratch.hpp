// What a step works in, made once: no memory is taken while it runs.
#pragma once

#include <algorithm>
#include <atomic>

#include "model.hpp"

namespace draftsmith {

constexpr size_t kMaxHeadDim = 256;

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
};

struct Model::Scratch {
    Scratch(const ModelShape& s, size_t qkv, size_t widest)
        : x(kMaxRows * s.hidden), normed(kMaxRows * std::max(s.hidden, widest)), qkv(kMaxRows * qkv), attention(kMaxRows * s.heads * s.head_dim),
          gate(kMaxRows * s.intermediate), up(kMaxRows * s.intermediate), groups(quant_groups(kMaxRows, widest)),
          queries(s.cache_type == CacheType::int8 ? quant_groups(kMaxRows * s.heads, query_cols(s)) : 0) {}

    static size_t query_cols(const ModelShape& s) { return static_cast<size_t>(padded_head(static_cast<int>(s.head_dim))); }

    // Quantised rows of `cols` columns; one set at a time is alive.
    QuantRows quant(size_t cols) { return {groups.data(), cols}; }
    // Quantised queries: row = token x heads + head.
    QuantRows quant_queries(const ModelShape& s) { return {queries.data(), query_cols(s)}; }

    Buffer<float> x, normed, qkv, attention, gate, up;
    Buffer<QuantGroup> groups, queries;
    Partials partials;
};

}  // namespace draftsmith
