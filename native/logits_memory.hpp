#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace draftsmith {

// Memory for rows of logits, used again: fresh memory of this size would be faulted in page by page at every step. The
// number of rows changes from round to round, so any block that is large enough will do, the smallest first.
class LogitsMemory {
public:
    struct Kept { std::unique_ptr<float[]> data; size_t count = 0; };

    Kept take(size_t count) {
        const std::lock_guard<std::mutex> lock(mutex_);
        auto best = kept_.end();
        for (auto it = kept_.begin(); it != kept_.end(); ++it) {
            if (it->count >= count && (best == kept_.end() || it->count < best->count)) best = it;
        }
        if (best == kept_.end()) return {std::unique_ptr<float[]>(new float[count]), count};
        Kept found = std::move(*best);
        kept_.erase(best);
        return found;
    }
    void give(Kept block) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (block.count > kMost) return;
        kept_.push_back(std::move(block));
        if (kept_.size() > kBlocks) {
            kept_.erase(std::min_element(kept_.begin(), kept_.end(), [](const Kept& a, const Kept& b) { return a.count < b.count; }));
        }
    }

private:
    static constexpr size_t kMost = size_t{1} << 23;  // floats
    static constexpr size_t kBlocks = 4;
    std::mutex mutex_;
    std::vector<Kept> kept_;
};

}  // namespace draftsmith
