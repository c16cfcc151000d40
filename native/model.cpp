#include "model.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "pack.hpp"
#include "scratch.hpp"

namespace draftsmith {
namespace {

bool is_quantised(const Weights& w) { return format_info(w.type).quantised; }

// Tiles in a chunk of work: enough chunks to balance the team, whole groups of four for the float kernels.
size_t chunk_tiles(size_t tiles, int team) { return std::clamp<size_t>(tiles / (static_cast<size_t>(team) * 8) / 4 * 4, 4, 16); }

}  // namespace

Model::Model(const ModelShape& shape, ModelWeights weights, const Kernels& kernels, std::shared_ptr<ThreadTeam> team)
    : shape_(shape), weights_(std::move(weights)), kernels_(kernels), team_(std::move(team)),
      cache_blocks_(std::make_shared<BlockPool>(CacheShape{shape.layers, shape.kv_heads, shape.head_dim, shape.cache_type})), chooser_(kernels) {
    const size_t q = shape.heads * shape.head_dim, kv = shape.kv_heads * shape.head_dim;
    const auto refuse = [](const std::string& why) { throw std::invalid_argument(why); };
    if (shape.head_dim % 16 || shape.head_dim > kMaxHeadDim) refuse("the head dimension is " + std::to_string(shape.head_dim) + "; the engine takes multiples of 16 up to 256");
    if (shape.hidden % 16 || shape.intermediate % 16) refuse("the hidden and intermediate sizes must be multiples of 16");
    if (shape.experts.count && (shape.experts.intermediate % 16 || !shape.experts.per_token || shape.experts.per_token > shape.experts.count)) {
        refuse("the size of an expert must be a multiple of 16, and a token must use from one to all of them");
    }
    if (!shape.kv_heads || shape.heads % shape.kv_heads) refuse("the number of heads must be a multiple of the number of key-value heads");
    scratch_ = std::make_unique<Scratch>(shape, q + 2 * kv, std::max(q, shape.intermediate), static_cast<size_t>(team_->size()));
}

Model::~Model() = default;

void Model::set_profiling(bool on) {
    const std::lock_guard<std::mutex> lock(one_forward_);
    profile_ = on ? std::make_unique<Profile>() : nullptr;
}

Profile Model::profile() {
    const std::lock_guard<std::mutex> lock(one_forward_);
    return profile_ ? *profile_ : Profile{};
}

void Model::check(const std::vector<TokenRun>& runs, size_t width) const {
    if (width == 0 || width > shape_.vocab) throw std::invalid_argument("logits of " + std::to_string(width) + " entries were asked for; the vocabulary has " + std::to_string(shape_.vocab));
    for (size_t i = 0; i < runs.size(); ++i) {
        const TokenRun& run = runs[i];
        if (run.cache->pool() != cache_blocks_.get()) throw std::invalid_argument("a cache belongs to another model; make it with this model's new_cache()");
        if (run.count == 0) throw std::invalid_argument("a run has no tokens; give at least one");
        if (run.num_logits > run.count) throw std::invalid_argument("a run asks for more rows of logits than it has tokens");
        if (run.cache->length() + run.count > run.cache->capacity()) {
            throw std::invalid_argument("a run of " + std::to_string(run.count) + " tokens does not fit: the cache holds " + std::to_string(run.cache->length()) +
                                        " of at most " + std::to_string(run.cache->capacity()));
        }
        for (size_t t = 0; t < run.count; ++t) {
            if (run.tokens[t] < 0 || static_cast<size_t>(run.tokens[t]) >= shape_.vocab) {
                throw std::invalid_argument("token id " + std::to_string(run.tokens[t]) + " is outside the vocabulary of " + std::to_string(shape_.vocab));
            }
        }
        for (size_t j = 0; j < i; ++j) if (runs[j].cache == run.cache) throw std::invalid_argument("two runs share one cache");
    }
}

void Model::grow_rope_tables(size_t positions) {
    const size_t half = shape_.head_dim / 2;
    const size_t have = cos_.size() / half;
    if (positions <= have) return;
    const size_t want = std::min((positions + 1023) / 1024 * 1024, std::max(positions, shape_.max_context));
    cos_.resize(want * half);
    sin_.resize(want * half);
    for (size_t p = have; p < want; ++p) {
        for (size_t i = 0; i < half; ++i) {
            const double angle = static_cast<float>(p) * weights_.inverse_frequencies[i];  // rounded to float32, as the reference does
            cos_[p * half + i] = static_cast<float>(std::cos(angle)) * shape_.rope_scaling;
            sin_[p * half + i] = static_cast<float>(std::sin(angle)) * shape_.rope_scaling;
        }
    }
    grow_block_tables((want + kBlockPositions - 1) / kBlockPositions);
}

// Means over the positions of each block of the cache.
void Model::grow_block_tables(size_t blocks) {
    const size_t half = shape_.head_dim / 2, have = block_cos_.size() / half;
    if (shape_.cache_type != CacheType::int8) return;
    block_cos_.resize(blocks * half);
    block_sin_.resize(blocks * half);
    for (size_t b = have; b < blocks; ++b) {
        for (size_t i = 0; i < half; ++i) {
            double cos = 0, sin = 0;
            for (size_t p = b * kBlockPositions; p < (b + 1) * kBlockPositions; ++p) {
                const double angle = static_cast<float>(p) * weights_.inverse_frequencies[i];
                cos += std::cos(angle);
                sin += std::sin(angle);
            }
            block_cos_[b * half + i] = static_cast<float>(cos / kBlockPositions) * shape_.rope_scaling;
            block_sin_[b * half + i] = static_cast<float>(sin / kBlockPositions) * shape_.rope_scaling;
        }
    }
}

void Model::forward(const std::vector<TokenRun>& runs, size_t width, float* logits) {
    const std::lock_guard<std::mutex> lock(one_forward_);
    check(runs, width);
    size_t longest = 0;
    for (const TokenRun& run : runs) {
        run.cache->reserve(run.count);
        longest = std::max(longest, run.cache->length() + run.count);
    }
    grow_rope_tables(longest);
    Pass pass;
    const auto flush = [&] {
        run_pass(pass, width, logits);
        for (const Segment& segment : pass.segments) segment.cache->advance(segment.count);
        logits += pass.wanted.size() * width;
        pass = Pass{};
    };
    for (const TokenRun& run : runs) {
        for (size_t done = 0; done < run.count;) {
            if (pass.rows.size() == kMaxRows) flush();
            const size_t count = std::min(run.count - done, kMaxRows - pass.rows.size());
            for (size_t t = done; t < done + count; ++t) {
                if (t + run.num_logits >= run.count) pass.wanted.push_back(pass.rows.size());
                pass.rows.push_back({pass.segments.size(), run.cache->length() + t - done, run.tokens[t]});
            }
            pass.segments.push_back({run.cache, pass.rows.size() - count, count});
            done += count;
        }
    }
    if (!pass.rows.empty()) flush();
}

void Model::draft(std::vector<DraftRun>& runs, size_t width, const int32_t* names, const std::function<bool(size_t, float)>& wants_more) {
    const std::lock_guard<std::mutex> lock(one_draft_);
    const size_t padded = (width + kRowGroup - 1) / kRowGroup * kRowGroup;
    std::vector<size_t> active(runs.size());
    std::iota(active.begin(), active.end(), size_t{0});
    std::vector<TokenRun> step;
    for (DraftRun& run : runs) run.drawn.reserve(run.max_tokens);
    draft_logits_.resize(std::max(draft_logits_.size(), runs.size() * padded));
    while (!active.empty()) {
        step.clear();
        for (size_t i : active) {
            const DraftRun& run = runs[i];
            const bool begins = run.drawn.empty();
            step.push_back({run.cache, begins ? run.unread.data() : &run.drawn.back(), begins ? run.unread.size() : 1, 1});
        }
        forward(step, width, draft_logits_.data());
        for (size_t r = active.size(); r-- > 0;) {  // from the last one on: each row is moved to where its padding fits
            float* row = draft_logits_.data() + r * padded;
            std::memmove(row, draft_logits_.data() + r * width, width * sizeof(float));
            std::fill(row + width, row + padded, -1e30f);
        }
        size_t left = 0;
        for (size_t r = 0; r < active.size(); ++r) {
            DraftRun& run = runs[active[r]];
            Sampling sampling = run.sampling;
            sampling.position += static_cast<uint32_t>(run.drawn.size());
            const Chosen chosen = chooser_.choose(draft_logits_.data() + r * padded, padded, sampling, names);
            run.drawn.push_back(chosen.token);
            if (wants_more(active[r], chosen.confidence) && run.drawn.size() < run.max_tokens) active[left++] = active[r];
        }
        active.resize(left);
    }
}

void Model::run_pass(const Pass& pass, size_t width, float* logits) {
    const size_t m = pass.rows.size();
    if (profile_) {
        profile_->passes += 1;
        profile_->rows += m;
    }
    const AttentionPlan plan = plan_attention(pass);
    team_->run([&](Worker& worker) {
        PhaseClock clock(worker.index() == 0 ? profile_.get() : nullptr);
        embed(worker, pass);
        clock.end(Phase::embed);
        for (size_t i = 0; i < weights_.layers.size(); ++i) {
            const Layer& layer = weights_.layers[i];
            const Input input = norm_rows(worker, m, layer.attention_norm, is_quantised(layer.q) || is_quantised(layer.k) || is_quantised(layer.v));
            clock.end(Phase::norm);
            project(worker, m, layer, input);
            clock.end(Phase::project);
            rotate_and_store(worker, pass, layer, i);
            clock.end(Phase::rotate);
            attend(worker, pass, plan, layer, i);
            clock.end(Phase::attend);
            output_projection(worker, m, layer);
            clock.end(Phase::output);
            const Weights &gate = layer.experts.empty() ? layer.gate : layer.experts.front().gate, &up = layer.experts.empty() ? layer.up : layer.experts.front().up;
            const Input inner = norm_rows(worker, m, layer.mlp_norm, is_quantised(gate) || is_quantised(up) || is_quantised(layer.router));
            clock.end(Phase::norm);
            if (!layer.experts.empty()) {
                mix_experts(worker, m, layer, inner);
                clock.end(Phase::experts);
                continue;
            }
            gate_and_up(worker, m, layer, inner);
            clock.end(Phase::gate_up);
            down(worker, m, layer);
            clock.end(Phase::down);
        }
        if (!pass.wanted.empty()) head(worker, pass, width, logits);
        clock.end(Phase::head);
    });
}

void Model::embed(Worker& worker, const Pass& pass) {
    worker.for_chunks(pass.rows.size(), 4, [&](size_t first, size_t last) {
        for (size_t r = first; r < last; ++r) unpack_row(weights_.embedding, static_cast<size_t>(pass.rows[r].token), scratch_->x + r * shape_.hidden);
    });
}

// Few rows are normalised by every worker for itself: that takes less time than to share them and to wait.
Model::Input Model::norm_rows(Worker& worker, size_t m, const Vector& norm, bool quantise) {
    const size_t n = shape_.hidden;
    const bool own = m <= kFewRows;
    const Input to = own ? scratch_->own(static_cast<size_t>(worker.index()), n) : Input{scratch_->normed.data(), n, {scratch_->normed_groups.data(), n}};
    const auto do_row = [&](size_t r) {
        kernels_.rms_norm(scratch_->x + r * n, norm.data, to.rows + r * n, n, shape_.norm_eps);
        if (quantise) kernels_.quantise(to.rows + r * n, n, to.quantised, r, 0);
    };
    if (own) for (size_t r = 0; r < m; ++r) do_row(r);
    else worker.for_chunks(m, 1, [&](size_t r, size_t) { do_row(r); });
    return to;
}

// Some tiles of a product.
void Model::multiply(const Weights& w, size_t first_tile, size_t last_tile, const Input& in, size_t m, float* out, size_t out_stride, bool add, const Vector& bias) {
    if (is_quantised(w)) {
        kernels_.matmul_quant(w, first_tile, last_tile, in.quantised, 0, m, out, out_stride, add);
    } else {
        kernels_.matmul_float(w, first_tile, last_tile, in.rows, in.stride, m, out, out_stride, add);
    }
    if (!bias) return;
    const size_t first = first_tile * kTileRows, last = std::min(last_tile * kTileRows, w.rows);
    for (size_t r = 0; r < m; ++r) kernels_.add(out + r * out_stride + first, bias.data + first, last - first);
}

void Model::project(Worker& worker, size_t m, const Layer& layer, const Input& in) {
    const size_t stride = layer.q.rows + layer.k.rows + layer.v.rows;
    const struct { const Weights& weights; Vector bias; size_t column; } parts[] = {
        {layer.q, layer.q_bias, 0}, {layer.k, layer.k_bias, layer.q.rows}, {layer.v, shape_.cache_type == CacheType::int8 ? Vector{} : layer.v_bias, layer.q.rows + layer.k.rows}};
    const size_t tiles = layer.q.tiles() + layer.k.tiles() + layer.v.tiles();
    worker.for_chunks(tiles, chunk_tiles(tiles, team_->size()), [&](size_t first, size_t last) {
        size_t before = 0;
        for (const auto& part : parts) {
            const size_t from = std::max(first, before), to = std::min(last, before + part.weights.tiles());
            if (from < to) multiply(part.weights, from - before, to - before, in, m, scratch_->qkv + part.column, stride, false, part.bias);
            before += part.weights.tiles();
        }
    });
}

void Model::output_projection(Worker& worker, size_t m, const Layer& layer) {
    const size_t q = shape_.heads * shape_.head_dim, tiles = layer.o.tiles();
    const Input in{scratch_->attention.data(), q, {scratch_->groups.data(), q}};
    if (is_quantised(layer.o) && shape_.head_dim % kGroup) {  // else each head is quantised when it is finished
        worker.for_chunks(m, 1, [&](size_t r, size_t) { kernels_.quantise(in.rows + r * q, q, in.quantised, r, 0); });
    }
    worker.for_chunks(tiles, chunk_tiles(tiles, team_->size()), [&](size_t first, size_t last) {
        multiply(layer.o, first, last, in, m, scratch_->x.data(), shape_.hidden, true, layer.o_bias);
    });
}

// Gate and up of some columns (whole groups), then the activation and its quantisation while they are in the cache.
void Model::gate_and_up(Worker& worker, size_t m, const Layer& layer, const Input& in) {
    const size_t n = shape_.intermediate, tiles = n / kTileRows;
    const Input inner{scratch_->gate.data(), n, {scratch_->groups.data(), n}};
    worker.for_chunks(tiles, chunk_tiles(tiles, team_->size()), [&](size_t first, size_t last) {
        multiply(layer.gate, first, last, in, m, scratch_->gate.data(), n, false, layer.gate_bias);
        multiply(layer.up, first, last, in, m, scratch_->up.data(), n, false, layer.up_bias);
        const size_t column = first * kTileRows, width = (last - first) * kTileRows;
        for (size_t r = 0; r < m; ++r) {
            kernels_.silu_mul(inner.rows + r * n + column, scratch_->up + r * n + column, width);
            if (is_quantised(layer.down)) kernels_.quantise(inner.rows + r * n + column, width, inner.quantised, r, column);
        }
    });
}

void Model::down(Worker& worker, size_t m, const Layer& layer) {
    const size_t n = shape_.intermediate, tiles = layer.down.tiles();
    const Input in{scratch_->gate.data(), n, {scratch_->groups.data(), n}};
    worker.for_chunks(tiles, chunk_tiles(tiles, team_->size()), [&](size_t first, size_t last) {
        multiply(layer.down, first, last, in, m, scratch_->x.data(), shape_.hidden, true, layer.down_bias);
    });
}

void Model::head(Worker& worker, const Pass& pass, size_t width, float* logits) {
    const size_t n = shape_.hidden, wanted = pass.wanted.size();
    const Input in{scratch_->normed.data(), n, {scratch_->normed_groups.data(), n}};
    worker.for_chunks(wanted, 1, [&](size_t i, size_t) {
        kernels_.rms_norm(scratch_->x + pass.wanted[i] * n, weights_.final_norm.data, in.rows + i * n, n, shape_.norm_eps);
        if (is_quantised(weights_.head)) kernels_.quantise(in.rows + i * n, n, in.quantised, i, 0);
    });
    Weights part = weights_.head;
    part.rows = width;  // tiles are independent: the first ones are a matrix of their own
    worker.for_chunks(part.tiles(), 16, [&](size_t first, size_t last) { multiply(part, first, last, in, wanted, logits, width, false, Vector{}); });
}

}  // namespace draftsmith
