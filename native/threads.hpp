// A team of threads that runs one function at a time, with barriers inside.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace draftsmith {

class ThreadTeam;

// What a team's function sees: who it is, and the work that is left in the present phase.
class Worker {
public:
    Worker(ThreadTeam& team, int index) : team_(team), index_(index) {}
    int index() const { return index_; }

    // Hand out 0 .. count-1 in chunks; every worker calls this with the same arguments and all wait at its end.
    // Which worker gets which chunk varies from run to run, so chunks must not depend on one another.
    template <class F> void for_chunks(size_t count, size_t chunk, F&& body);

private:
    ThreadTeam& team_;
    int index_;
};

// Workers spin for a short while for the next run and then sleep: a decode step follows another within microseconds,
// a chat user thinks for minutes. One run at a time; a second caller waits.
class ThreadTeam {
public:
    explicit ThreadTeam(int size);
    ~ThreadTeam();
    ThreadTeam(const ThreadTeam&) = delete;
    ThreadTeam& operator=(const ThreadTeam&) = delete;

    int size() const { return size_; }
    void run(const std::function<void(Worker&)>& body);

private:
    friend class Worker;
    void serve(int index);
    void barrier();
    void keep_apart();

    const int size_;
    std::mutex one_run_;
    std::vector<std::thread> threads_;
    const std::function<void(Worker&)>* body_ = nullptr;
    std::atomic<bool> stopping_{false};
    std::vector<int> processors_;  // those that this process may use
    int caller_on_ = -1;           // the processor from which the last run was started
    alignas(64) std::atomic<uint32_t> run_number_{0};
    alignas(64) std::atomic<int> running_{0};
    alignas(64) std::atomic<size_t> next_{0};         // first item that nobody has taken, in the present phase
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
};

template <class F> void Worker::for_chunks(size_t count, size_t chunk, F&& body) {
    if (team_.size_ == 1) {
        for (size_t first = 0; first < count; first += chunk) body(first, first + chunk < count ? first + chunk : count);
        return;
    }
    for (;;) {
        const size_t first = team_.next_.fetch_add(chunk, std::memory_order_relaxed);
        if (first >= count) break;
        body(first, first + chunk < count ? first + chunk : count);
    }
    team_.barrier();
}

}  // namespace draftsmith
