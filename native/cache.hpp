// Keys and values of one sequence, in blocks of 64 positions that are allocated as the sequence grows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.hpp"

namespace draftsmith {

struct CacheShape {
    size_t layers = 0, kv_heads = 0, head_dim = 0;
    bool full_precision = false;  // f32 instead of f16

    size_t item() const { return full_precision ? 4 : 2; }
    size_t head_bytes() const { return head_dim * kBlockPositions * item(); }              // keys or values of one head
    size_t block_bytes() const { return layers * kv_heads * 2 * head_bytes(); }
};

class KVCache {
public:
    KVCache(const CacheShape& shape, size_t capacity) : shape_(shape), capacity_(capacity) {}
    KVCache(const KVCache&) = delete;
    KVCache& operator=(const KVCache&) = delete;

    size_t length() const { return length_; }
    size_t capacity() const { return capacity_; }
    size_t allocated_bytes() const { return blocks_.size() * shape_.block_bytes(); }

    // Forget positions from `length` on. Their memory is kept for the tokens that replace them.
    void truncate(size_t length) {
        if (length > length_) throw std::invalid_argument("cannot truncate a cache of " + std::to_string(length_) + " tokens to " + std::to_string(length));
        length_ = length;
    }
    // Make room for `count` more positions; throws std::bad_alloc with nothing changed but memory.
    void reserve(size_t count) {
        const size_t needed = (length_ + count + kBlockPositions - 1) / kBlockPositions;
        while (blocks_.size() < needed) {
            void* memory = std::aligned_alloc(64, (shape_.block_bytes() + 63) / 64 * 64);
            if (!memory) throw std::bad_alloc();
            blocks_.emplace_back(static_cast<uint8_t*>(memory));
        }
    }
    void advance(size_t count) { length_ += count; }

    uint8_t* keys(size_t layer, size_t head, size_t block) const {
        return blocks_[block].get() + (layer * shape_.kv_heads + head) * 2 * shape_.head_bytes();
    }
    uint8_t* values(size_t layer, size_t head, size_t block) const { return keys(layer, head, block) + shape_.head_bytes(); }

private:
    struct Free { void operator()(uint8_t* p) const { std::free(p); } };
    CacheShape shape_;
    size_t capacity_, length_ = 0;
    std::vector<std::unique_ptr<uint8_t, Free>> blocks_;
};

}  // namespace draftsmith
