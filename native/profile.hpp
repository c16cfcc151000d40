// Where the time of a step goes, by phase, as the first worker of the team sees it (waiting for the others included).
#pragma once

#include <array>
#include <chrono>
#include <cstddef>

namespace draftsmith {

enum class Phase : size_t { embed, norm, project, rotate, attend, output, gate_up, down, experts, head };
constexpr const char* kPhaseNames[] = {"embed", "norm", "project", "rotate", "attend", "output", "gate_up", "down", "experts", "head"};
constexpr size_t kPhases = std::size(kPhaseNames);

struct Profile {
    std::array<double, kPhases> seconds{};
    size_t passes = 0, rows = 0;
};

// Adds the time since its last call to a phase; does nothing without a profile.
class PhaseClock {
public:
    explicit PhaseClock(Profile* profile) : profile_(profile) { if (profile_) last_ = Clock::now(); }
    void end(Phase phase) {
        if (!profile_) return;
        const auto now = Clock::now();
        profile_->seconds[static_cast<size_t>(phase)] += std::chrono::duration<double>(now - last_).count();
        last_ = now;
    }

private:
    using Clock = std::chrono::steady_clock;
    Profile* profile_;
    Clock::time_point last_;
};

}  // namespace draftsmith
