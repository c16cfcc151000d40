#include "experts.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "model.hpp"
#include "scratch.hpp"

namespace draftsmith {

Routing::Routing(const ExpertsShape& shape, size_t max_rows)
    : shape_(shape), chosen_(max_rows * shape.per_token), places_(max_rows * shape.per_token), counts_(shape.count), next_(shape.count),
      weights_(max_rows * shape.per_token) {
    groups_.reserve(shape.count);
}

size_t Routing::most_places(const ExpertsShape& shape, size_t max_rows) {
    const size_t used = max_rows * shape.per_token;
    return used + (kQuantBlock - 1) * std::min(shape.count, used);
}

void Routing::share_out(const float* logits, size_t m) {
    const size_t experts = shape_.count, k = shape_.per_token;
    std::fill(counts_.begin(), counts_.end(), size_t{0});
    for (size_t row = 0; row < m; ++row) {
        const float* scores = logits + row * experts;
        size_t* chosen = chosen_.data() + row * k;
        for (size_t rank = 0; rank < k; ++rank) {
            size_t best = experts;
            for (size_t e = 0; e < experts; ++e) {
                const bool taken = std::find(chosen, chosen + rank, e) != chosen + rank;
                if (!taken && (best == experts || scores[e] > scores[best])) best = e;
            }
            chosen[rank] = best;
            ++counts_[best];
        }
        const float peak = scores[chosen[0]];
        float total = 0;
        const size_t summed = shape_.normalise ? k : experts;
        for (size_t i = 0; i < summed; ++i) total += std::exp(scores[shape_.normalise ? chosen[i] : i] - peak);
        for (size_t rank = 0; rank < k; ++rank) weights_[row * k + rank] = std::exp(scores[chosen[rank]] - peak) / total;
    }
    groups_.clear();
    num_places_ = 0;
    for (size_t e = 0; e < experts; ++e) {
        next_[e] = num_places_;
        if (!counts_[e]) continue;
        groups_.push_back({e, num_places_, counts_[e]});
        num_places_ += (counts_[e] + kQuantBlock - 1) / kQuantBlock * kQuantBlock;
    }
    for (size_t i = 0; i < m * k; ++i) places_[i] = next_[chosen_[i]]++;
}

namespace {

size_t rounded_up(size_t n, size_t to) { return (n + to - 1) / to; }

// Chunks of tiles of an expert's matrices: enough for the team when one token meets few experts.
constexpr size_t kExpertTiles = 16;

}  // namespace

void Model::mix_experts(Worker& worker, size_t m, const Layer& layer, const Input& in) {
    ExpertScratch& s = *scratch_->experts;
    const size_t hidden = shape_.hidden, inner = shape_.experts.intermediate, experts = shape_.experts.count, k = shape_.experts.per_token;
    const Expert& any = layer.experts.front();
    const bool quantised_in = format_info(any.gate.type).quantised || format_info(any.up.type).quantised;
    const bool quantised_inner = format_info(any.down.type).quantised;
    worker.for_chunks(layer.router.tiles(), 4, [&](size_t first, size_t last) {
        multiply(layer.router, first, last, in, m, s.scores.data(), experts, false, Vector{});
    });
    worker.for_chunks(1, 1, [&](size_t, size_t) { s.routing.share_out(s.scores.data(), m); });

    const QuantRows gathered{s.gathered_groups.data(), hidden}, activated{s.activated_groups.data(), inner};
    worker.for_chunks(m, 1, [&](size_t row, size_t) {
        for (size_t rank = 0; rank < k; ++rank) {
            const size_t place = s.routing.place(row, rank);
            std::memcpy(s.gathered + place * hidden, in.rows + row * in.stride, hidden * sizeof(float));
            if (quantised_in) for (size_t g = 0; g < hidden / kGroup; ++g) *gathered.at(place, g) = *in.quantised.at(row, g);
        }
    });

    const auto product = [&](const Weights& w, size_t first_tile, size_t last_tile, const QuantRows& q, float* x, const Routing::Group& group, float* out) {
        float* to = out + group.first * w.rows;
        if (format_info(w.type).quantised) kernels_.matmul_quant(w, first_tile, last_tile, q, group.first, group.count, to, w.rows, false);
        else kernels_.matmul_float(w, first_tile, last_tile, x + group.first * w.cols, w.cols, group.count, to, w.rows, false);
    };
    const std::vector<Routing::Group>& groups = s.routing.groups();

    const size_t inner_tiles = inner / kTileRows, inner_chunks = rounded_up(inner_tiles, kExpertTiles);
    worker.for_chunks(groups.size() * inner_chunks, 1, [&](size_t unit, size_t) {
        const Routing::Group& group = groups[unit / inner_chunks];
        const Expert& expert = layer.experts[group.expert];
        const size_t first = unit % inner_chunks * kExpertTiles, last = std::min(first + kExpertTiles, inner_tiles);
        product(expert.gate, first, last, gathered, s.gathered.data(), group, s.gate.data());
        product(expert.up, first, last, gathered, s.gathered.data(), group, s.up.data());
        const size_t column = first * kTileRows, width = (last - first) * kTileRows;
        for (size_t place = group.first; place < group.first + group.count; ++place) {
            kernels_.silu_mul(s.gate + place * inner + column, s.up + place * inner + column, width);
            if (quantised_inner) kernels_.quantise(s.gate + place * inner + column, width, activated, place, column);
        }
    });

    const size_t hidden_tiles = rounded_up(hidden, kTileRows), hidden_chunks = rounded_up(hidden_tiles, kExpertTiles);
    worker.for_chunks(groups.size() * hidden_chunks, 1, [&](size_t unit, size_t) {
        const Routing::Group& group = groups[unit / hidden_chunks];
        const size_t first = unit % hidden_chunks * kExpertTiles, last = std::min(first + kExpertTiles, hidden_tiles);
        product(layer.experts[group.expert].down, first, last, activated, s.gate.data(), group, s.out.data());
    });

    // A row's experts are added up in the order of the router's liking: the same whatever rows are beside it.
    worker.for_chunks(m, 1, [&](size_t row, size_t) {
        float* x = scratch_->x + row * hidden;
        for (size_t rank = 0; rank < k; ++rank) {
            const float* part = s.out + s.routing.place(row, rank) * hidden;
            const float weight = s.routing.weight(row, rank);
            for (size_t i = 0; i < hidden; ++i) x[i] += weight * part[i];
        }
    });
}

}  // namespace draftsmith
