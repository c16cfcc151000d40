// Keys and values of one sequence, in blocks of 64 positions that are allocated as the sequence grows. Sequences that begin
// alike may share blocks: one that is to be written while others hold it is copied first.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.hpp"

namespace draftsmith {

struct CacheShape {
    size_t layers = 0, kv_heads = 0, head_dim = 0;
    CacheType type = CacheType::half;

    // Keys, or values, of one head in one block.
    size_t key_bytes() const {
        if (type != CacheType::int8) return head_dim * kBlockPositions * (type == CacheType::full ? 4 : 2);
        const int d = static_cast<int>(head_dim);
        return int8_key_scales(d) + static_cast<size_t>(padded_head(d)) * kBlockPositions;
    }
    size_t value_bytes() const { return type == CacheType::int8 ? int8_value_scales() + head_dim * kBlockPositions : key_bytes(); }
    size_t block_bytes() const { return layers * kv_heads * (key_bytes() + value_bytes()); }
};

// Makes the blocks of one model's caches and counts the bytes of those that are alive.
class BlockPool : public std::enable_shared_from_this<BlockPool> {
public:
    explicit BlockPool(const CacheShape& shape) : shape_(shape) {}

    const CacheShape& shape() const { return shape_; }
    size_t bytes() const { return bytes_.load(std::memory_order_relaxed); }

    // A new block of zeros (attention may read, and give no weight to, what nobody has written); throws std::bad_alloc.
    // It keeps the pool alive.
    std::shared_ptr<uint8_t> make() {
        void* memory = std::aligned_alloc(64, (shape_.block_bytes() + 63) / 64 * 64);
        if (!memory) throw std::bad_alloc();
        std::memset(memory, 0, shape_.block_bytes());
        bytes_.fetch_add(shape_.block_bytes(), std::memory_order_relaxed);
        return {static_cast<uint8_t*>(memory), [pool = shared_from_this()](uint8_t* p) {
                    std::free(p);
                    pool->bytes_.fetch_sub(pool->shape_.block_bytes(), std::memory_order_relaxed);
                }};
    }

private:
    const CacheShape shape_;
    std::atomic<size_t> bytes_{0};
};

class KVCache {
public:
    KVCache(std::shared_ptr<BlockPool> pool, size_t capacity) : pool_(std::move(pool)), shape_(pool_->shape()), capacity_(capacity) {}
    KVCache(const KVCache&) = delete;
    KVCache& operator=(const KVCache&) = delete;

    const BlockPool* pool() const { return pool_.get(); }  // of the model that the cache was made for
    size_t length() const { return length_; }
    size_t capacity() const { return capacity_; }
    size_t allocated_bytes() const { return blocks_.size() * shape_.block_bytes(); }

    // Forget positions from `length` on. Their memory is kept for the tokens that replace them.
    void truncate(size_t length) {
        if (length > length_) throw std::invalid_argument("cannot truncate a cache of " + std::to_string(length_) + " tokens to " + std::to_string(length));
        length_ = length;
    }
    // Another cache that holds the first `length` positions; it shares their memory until either of the two writes there.
    std::unique_ptr<KVCache> fork(size_t length) const {
        if (length > length_) throw std::invalid_argument("cannot fork " + std::to_string(length) + " tokens of a cache of " + std::to_string(length_));
        auto other = std::make_unique<KVCache>(pool_, capacity_);
        other->blocks_.assign(blocks_.begin(), blocks_.begin() + static_cast<std::ptrdiff_t>(blocks_for(length)));
        other->length_ = length;
        return other;
    }
    // Bytes that `reserve(count)` would take: new blocks, and copies of shared ones.
    size_t growth(size_t count) const {
        const size_t needed = blocks_for(length_ + count);
        size_t made = needed > blocks_.size() ? needed - blocks_.size() : 0;
        for (size_t i = length_ / kBlockPositions; i < needed && i < blocks_.size(); ++i) made += blocks_[i].use_count() > 1;
        return made * shape_.block_bytes();
    }
    // Make room for `count` more positions that nobody else sees; throws std::bad_alloc with nothing changed but memory.
    void reserve(size_t count) {
        const size_t needed = blocks_for(length_ + count);
        for (size_t i = length_ / kBlockPositions; i < needed && i < blocks_.size(); ++i) {
            if (blocks_[i].use_count() == 1) continue;
            std::shared_ptr<uint8_t> own = pool_->make();
            if (i * kBlockPositions < length_) std::memcpy(own.get(), blocks_[i].get(), shape_.block_bytes());
            blocks_[i] = std::move(own);
        }
        while (blocks_.size() < needed) blocks_.push_back(pool_->make());
    }
    void advance(size_t count) { length_ += count; }

    uint8_t* keys(size_t layer, size_t head, size_t block) const {
        return blocks_[block].get() + (layer * shape_.kv_heads + head) * (shape_.key_bytes() + shape_.value_bytes());
    }
    uint8_t* values(size_t layer, size_t head, size_t block) const { return keys(layer, head, block) + shape_.key_bytes(); }

private:
    static size_t blocks_for(size_t positions) { return (positions + kBlockPositions - 1) / kBlockPositions; }

    std::shared_ptr<BlockPool> pool_;
    const CacheShape shape_;
    size_t capacity_, length_ = 0;
    std::vector<std::shared_ptr<uint8_t>> blocks_;
};

}  // namespace draftsmith
