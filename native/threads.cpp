#include "threads.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace draftsmith {
namespace {

// Some 100 to 300 microseconds: longer than the imbalance of a phase, and than what is done in Python between two steps (a
// thread that has to be woken up costs the next step a tenth of a millisecond). After that sleeping is right, not yielding: the kernel places a thread that wakes on an idle core, but leaves two that yield to each other on
// the same one.
constexpr int kSpins = 12000;

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");  // about as long as a pause of x86; its own "yield" is over at once
#else
    std::this_thread::yield();
#endif
}

// Wait until the value is no longer `old`.
template <class T> void wait_while_equal(const std::atomic<T>& value, T old) {
    for (int spins = 0; value.load(std::memory_order_acquire) == old; ++spins) {
        if (spins < kSpins) relax();
        else value.wait(old, std::memory_order_acquire);
    }
}

}  // namespace

ThreadTeam::ThreadTeam(int size) : size_(size) {
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) if (CPU_ISSET(cpu, &allowed)) processors_.push_back(cpu);
    }
#endif
    for (int i = 1; i < size; ++i) threads_.emplace_back([this, i] { serve(i); });
}

ThreadTeam::~ThreadTeam() {
    stopping_.store(true);
    run_number_.fetch_add(1);
    run_number_.notify_all();
    for (auto& thread : threads_) thread.join();
}

// Workers off the caller's processor, and each on one of its own when there are just enough. Left to itself, a kernel that
// finds no processor idle lets threads that wake each other share one, and every barrier becomes a switch between them.
void ThreadTeam::keep_apart() {
#if defined(__linux__)
    const int here = sched_getcpu();
    if (here == caller_on_ || static_cast<int>(processors_.size()) < size_) return;
    caller_on_ = here;
    std::vector<int> others;
    for (int cpu : processors_) if (cpu != here) others.push_back(cpu);
    const bool one_each = others.size() == threads_.size();
    for (size_t i = 0; i < threads_.size(); ++i) {
        cpu_set_t mine;
        CPU_ZERO(&mine);
        if (one_each) CPU_SET(others[i], &mine);
        else for (int cpu : others) CPU_SET(cpu, &mine);
        pthread_setaffinity_np(threads_[i].native_handle(), sizeof mine, &mine);  // a hint: failure costs only speed
    }
#endif
}

void ThreadTeam::run(const std::function<void(Worker&)>& body) {
    const std::lock_guard<std::mutex> lock(one_run_);
    Worker self(*this, 0);
    if (size_ == 1) return body(self);
    keep_apart();
    body_ = &body;
    running_.store(size_ - 1, std::memory_order_relaxed);
    run_number_.fetch_add(1, std::memory_order_release);
    run_number_.notify_all();
    body(self);
    for (int left; (left = running_.load(std::memory_order_acquire)) != 0;) wait_while_equal(running_, left);
}

void ThreadTeam::serve(int index) {
    uint32_t seen = 0;
    Worker self(*this, index);
    for (;;) {
        wait_while_equal(run_number_, seen);
        ++seen;
        if (stopping_.load()) return;
        (*body_)(self);
        running_.fetch_sub(1, std::memory_order_release);
        running_.notify_one();
    }
}

void ThreadTeam::barrier() {
    const uint32_t phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        next_.store(0, std::memory_order_relaxed);
        phase_.fetch_add(1, std::memory_order_release);
        phase_.notify_all();
        return;
    }
    wait_while_equal(phase_, phase);
}

}  // namespace draftsmith
