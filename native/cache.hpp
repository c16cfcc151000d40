// Keys and values of one sequence, in blocks of 64 positions that are allocated as the sequence grows. Sequences that begin
// alike may share blocks: one that is to be written while others hold it is copied first.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

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
    // A block has a part for every layer and head: its keys, then its values.
    size_t parts() const { return layers * kv_heads; }
    size_t part_bytes() const { return key_bytes() + value_bytes(); }
    size_t block_bytes() const { return parts() * part_bytes(); }
};

// Memory for several blocks: for each layer and head, all of them side by side, so that attention reads one stretch of memory
// where consecutive blocks of a sequence lie in one slab. In large pages where the system has them.
class Slab {
public:
    Slab(size_t parts, size_t part_bytes, size_t blocks) : part_bytes_(part_bytes), free_(blocks, true), num_free_(blocks) {
        const size_t bytes = parts * part_bytes * blocks, page = bytes >= kLargePage ? kLargePage : 64;
        memory_.reset(static_cast<uint8_t*>(std::aligned_alloc(page, (bytes + page - 1) / page * page)));
        if (!memory_) throw std::bad_alloc();
#if defined(__linux__)
        if (page == kLargePage) madvise(memory_.get(), (bytes + page - 1) / page * page, MADV_HUGEPAGE);  // a hint
#endif
    }
    size_t blocks() const { return free_.size(); }
    size_t num_free() const { return num_free_; }
    bool is_free(size_t index) const { return index < free_.size() && free_[index]; }
    size_t first_free() const { return static_cast<size_t>(std::find(free_.begin(), free_.end(), true) - free_.begin()); }
    void set_free(size_t index, bool free) { free_[index] = free; num_free_ += free ? size_t{1} : ~size_t{0}; }
    uint8_t* part(size_t part, size_t index) const { return memory_.get() + (part * free_.size() + index) * part_bytes_; }

private:
    static constexpr size_t kLargePage = size_t{1} << 21;
    struct Free { void operator()(uint8_t* p) const { std::free(p); } };
    size_t part_bytes_;
    std::unique_ptr<uint8_t, Free> memory_;
    std::vector<bool> free_;
    size_t num_free_;
};

class BlockPool;

// One block: a place in a slab, which is free again when the block is gone.
struct CacheBlock {
    CacheBlock(std::shared_ptr<BlockPool> pool, std::shared_ptr<Slab> slab, size_t index) : pool(std::move(pool)), slab(std::move(slab)), index(index) {}
    CacheBlock(const CacheBlock&) = delete;
    CacheBlock& operator=(const CacheBlock&) = delete;
    ~CacheBlock();
    uint8_t* part(size_t part) const { return slab->part(part, index); }

    const std::shared_ptr<BlockPool> pool;
    const std::shared_ptr<Slab> slab;
    const size_t index;
};

// Makes the blocks of one model's caches and counts the bytes of those that are alive. A slab takes as many blocks as a quarter
// of those that are alive, so that memory stays within about 5/4 of the most that were alive at once.
class BlockPool : public std::enable_shared_from_this<BlockPool> {
public:
    explicit BlockPool(const CacheShape& shape) : shape_(shape) {}

    const CacheShape& shape() const { return shape_; }
    size_t bytes() const { return alive_.load(std::memory_order_relaxed) * shape_.block_bytes(); }

    // A new block of zeros (attention may read, and give no weight to, what nobody has written), next to `before` if there is
    // room. Throws std::bad_alloc. It keeps the pool alive.
    std::shared_ptr<CacheBlock> make(const CacheBlock* before) {
        std::shared_ptr<CacheBlock> block;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            const auto [slab, index] = place(before);
            block = std::make_shared<CacheBlock>(shared_from_this(), slab, index);
            slab->set_free(index, false);
            alive_.fetch_add(1, std::memory_order_relaxed);
        }
        for (size_t part = 0; part < shape_.parts(); ++part) std::memset(block->part(part), 0, shape_.part_bytes());
        return block;
    }
    void give_back(Slab& slab, size_t index) {
        const std::lock_guard<std::mutex> lock(mutex_);
        slab.set_free(index, true);
        alive_.fetch_sub(1, std::memory_order_relaxed);
    }

private:
    static constexpr size_t kMostBlocks = 64, kMostBytes = size_t{64} << 20;  // of a slab

    std::pair<std::shared_ptr<Slab>, size_t> place(const CacheBlock* before) {
        if (before && before->slab->is_free(before->index + 1)) return {before->slab, before->index + 1};
        std::erase_if(slabs_, [](const auto& slab) { return slab.expired(); });
        std::shared_ptr<Slab> first;
        size_t spare = 0;
        for (const auto& known : slabs_) {
            auto slab = known.lock();
            if (!slab || slab->num_free() == 0) continue;
            spare += slab->num_free();
            if (!first || slab->num_free() > first->num_free()) first = std::move(slab);
        }
        const size_t quarter = alive_.load(std::memory_order_relaxed) / 4;
        if (first && spare > quarter) return {first, first->first_free()};
        const size_t fitting = std::max<size_t>(kMostBytes / shape_.block_bytes(), 1);
        auto slab = std::make_shared<Slab>(shape_.parts(), shape_.part_bytes(), std::clamp<size_t>(quarter, 1, std::min(kMostBlocks, fitting)));
        slabs_.push_back(slab);
        return {std::move(slab), 0};
    }

    const CacheShape shape_;
    std::atomic<size_t> alive_{0};
    std::mutex mutex_;
    std::vector<std::weak_ptr<Slab>> slabs_;  // alive as long as one of their blocks
};

inline CacheBlock::~CacheBlock() { pool->give_back(*slab, index); }

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
            std::shared_ptr<CacheBlock> own = pool_->make(i ? blocks_[i - 1].get() : nullptr);
            if (i * kBlockPositions < length_) copy(*blocks_[i], *own);
            blocks_[i] = std::move(own);
        }
        while (blocks_.size() < needed) blocks_.push_back(pool_->make(blocks_.empty() ? nullptr : blocks_.back().get()));
    }
    void advance(size_t count) { length_ += count; }
    // For measurements: lengthen to `length` positions by copies of the blocks that are here, which must be whole. The time of
    // a step does not depend on what keys and values are. Throws std::bad_alloc, std::invalid_argument.
    void repeat(size_t length) {
        const size_t whole = length_ / kBlockPositions;
        if (whole == 0 || length_ % kBlockPositions || length < length_ || length > capacity_) {
            throw std::invalid_argument("a cache of " + std::to_string(length_) + " of " + std::to_string(capacity_) + " tokens cannot be repeated to " + std::to_string(length));
        }
        reserve(length - length_);
        for (size_t i = whole; i < blocks_for(length); ++i) copy(*blocks_[i % whole], *blocks_[i]);
        length_ = length;
    }

    uint8_t* keys(size_t layer, size_t head, size_t block) const {
        return blocks_[block]->part(layer * shape_.kv_heads + head);
    }
    uint8_t* values(size_t layer, size_t head, size_t block) const { return keys(layer, head, block) + shape_.key_bytes(); }

private:
    void copy(const CacheBlock& from, const CacheBlock& to) const {
        for (size_t part = 0; part < shape_.parts(); ++part) std::memcpy(to.part(part), from.part(part), shape_.part_bytes());
    }
    static size_t blocks_for(size_t positions) { return (positions + kBlockPositions - 1) / kBlockPositions; }

    std::shared_ptr<BlockPool> pool_;
    const CacheShape shape_;
    size_t capacity_, length_ = 0;
    std::vector<std::shared_ptr<CacheBlock>> blocks_;
};

}  // namespace draftsmith
