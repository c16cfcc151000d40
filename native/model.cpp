#include "model.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
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
      cache_blocks_(std::make_shared<BlockPool>(CacheShape{shape.layers, shape.kv_heads, shape.head_dim, shape.cache_type})) {
    const size_t q = shape.heads * shape.head_dim, kv = shape.kv_heads * shape.head_dim;
    const auto refuse = [](const std::string& why) { throw std::invalid_argument(why); };
    if (shape.head_dim % 16 || shape.head_dim > kMaxHeadDim) refuse("the head dimension is " + std::to_string(shape.head_dim) + "; the engine takes multiples of 16 up to 256");
    if (shape.hidden % 16 || shape.intermediate % 16) refuse("the hidden and intermediate sizes must be multiples of 16");
    if (!shape.kv_heads || shape.heads % shape.kv_heads) refuse("the number of heads must be a multiple of the number of key-value heads");
    scratch_ = std::make_unique<Scratch>(shape, q + 2 * kv, std::max({shape.hidden, q, shape.intermediate}));
}

Model::~Model() = default;

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

void Model::run_pass(const Pass& pass, size_t width, float* logits) {
    const size_t m = pass.rows.size();
    const AttentionPlan plan = plan_attention(pass);
    team_->run([&](Worker& worker) {
        embed(worker, pass);
        for (size_t i = 0; i < weights_.layers.size(); ++i) {
            const Layer& layer = weights_.layers[i];
            norm_rows(worker, m, layer.attention_norm, is_quantised(layer.q) || is_quantised(layer.k) || is_quantised(layer.v));
            project(worker, pass, layer);
            rotate_and_store(worker, pass, layer, i);
            attend(worker, pass, plan, layer, i);
            output_projection(worker, m, layer);
            norm_rows(worker, m, layer.mlp_norm, is_quantised(layer.gate) || is_quantised(layer.up));
            feed_forward(worker, m, layer);
        }
        if (!pass.wanted.empty()) head(worker, pass, width, logits);
    });
}

void Model::embed(Worker& worker, const Pass& pass) {
    worker.for_chunks(pass.rows.size(), 4, [&](size_t first, size_t last) {
        for (size_t r = first; r < last; ++r) unpack_row(weights_.embedding, static_cast<size_t>(pass.rows[r].token), scratch_->x + r * shape_.hidden);
    });
}

void Model::norm_rows(Worker& worker, size_t m, const Vector& norm, bool quantise) {
    const size_t n = shape_.hidden;
    const QuantRows out = scratch_->quant(n);
    worker.for_chunks(m, 1, [&](size_t first, size_t last) {
        for (size_t r = first; r < last; ++r) {
            kernels_.rms_norm(scratch_->x + r * n, norm.data, scratch_->normed + r * n, n, shape_.norm_eps);
            if (quantise) kernels_.quantise(scratch_->normed + r * n, n, out, r, 0);
        }
    });
}

// Some tiles of a product; the quantised form of x lies in the scratch.
void Model::multiply(const Weights& w, size_t first_tile, size_t last_tile, const float* x, size_t x_stride, size_t m, float* out, size_t out_stride, bool add,
                     const Vector& bias) {
    if (is_quantised(w)) {
        kernels_.matmul_quant(w, first_tile, last_tile, scratch_->quant(w.cols), 0, m, out, out_stride, add);
    } else {
        kernels_.matmul_float(w, first_tile, last_tile, x, x_stride, m, out, out_stride, add);
    }
    if (!bias) return;
    const size_t first = first_tile * kTileRows, last = std::min(last_tile * kTileRows, w.rows);
    for (size_t r = 0; r < m; ++r) kernels_.add(out + r * out_stride + first, bias.data + first, last - first);
}

void Model::project(Worker& worker, const Pass& pass, const Layer& layer) {
    const size_t m = pass.rows.size(), stride = layer.q.rows + layer.k.rows + layer.v.rows;
    const struct { const Weights& weights; const Vector& bias; size_t column; } parts[] = {
        {layer.q, layer.q_bias, 0}, {layer.k, layer.k_bias, layer.q.rows}, {layer.v, layer.v_bias, layer.q.rows + layer.k.rows}};
    const size_t tiles = layer.q.tiles() + layer.k.tiles() + layer.v.tiles();
    worker.for_chunks(tiles, chunk_tiles(tiles, team_->size()), [&](size_t first, size_t last) {
        size_t before = 0;
        for (const auto& part : parts) {
            const size_t from = std::max(first, before), to = std::min(last, before + part.weights.tiles());
            if (from < to) {
                multiply(part.weights, from - before, to - before, scratch_->normed.data(), shape_.hidden, m, scratch_->qkv + part.column, stride, false, part.bias);
            }
            before += part.weights.tiles();
        }
    });
}

void Model::output_projection(Worker& worker, size_t m, const Layer& layer) {
    const size_t q = shape_.heads * shape_.head_dim, tiles = layer.o.tiles();
    if (is_quantised(layer.o)) {
        const QuantRows out = scratch_->quant(q);
        worker.for_chunks(m, 1, [&](size_t first, size_t last) {
            for (size_t r = first; r < last; ++r) kernels_.quantise(scratch_->attention + r * q, q, out, r, 0);
        });
    }
    worker.for_chunks(tiles, chunk_tiles(tiles, team_->size()), [&](size_t first, size_t last) {
        multiply(layer.o, first, last, scratch_->attention.data(), q, m, scratch_->x.data(), shape_.hidden, true, layer.o_bias);
    });
}

void Model::feed_forward(Worker& worker, size_t m, const Layer& layer) {
    const size_t n = shape_.intermediate, h = shape_.hidden;
    const bool quantised = is_quantised(layer.down);
    // Gate and up of some columns, then the activation and its quantisation while they are in the cache. The quantised
    // input is still read by other workers, so the result is quantised in a phase of its own.
    const size_t tiles = n / kTileRows;
    worker.for_chunks(tiles, chunk_tiles(tiles, team_->size()), [&](size_t first, size_t last) {
        multiply(layer.gate, first, last, scratch_->normed.data(), h, m, scratch_->gate.data(), n, false, layer.gate_bias);
        multiply(layer.up, first, last, scratch_->normed.data(), h, m, scratch_->up.data(), n, false, layer.up_bias);
        const size_t column = first * kTileRows, width = (last - first) * kTileRows;
        for (size_t r = 0; r < m; ++r) kernels_.silu_mul(scratch_->gate + r * n + column, scratch_->up + r * n + column, width);
    });
    if (quantised) {
        const QuantRows out = scratch_->quant(n);
        constexpr size_t kSlice = 512;  // columns
        const size_t slices = (n + kSlice - 1) / kSlice;
        worker.for_chunks(m * slices, 1, [&](size_t unit, size_t) {
            const size_t row = unit / slices, column = unit % slices * kSlice;
            kernels_.quantise(scratch_->gate + row * n + column, std::min(kSlice, n - column), out, row, column);
        });
    }
    const size_t down_tiles = layer.down.tiles();
    worker.for_chunks(down_tiles, chunk_tiles(down_tiles, team_->size()), [&](size_t first, size_t last) {
        multiply(layer.down, first, last, scratch_->gate.data(), n, m, scratch_->x.data(), h, true, layer.down_bias);
    });
}

void Model::head(Worker& worker, const Pass& pass, size_t width, float* logits) {
    const size_t n = shape_.hidden, wanted = pass.wanted.size();
    const bool quantised = is_quantised(weights_.head);
    const QuantRows out = scratch_->quant(n);
    worker.for_chunks(wanted, 1, [&](size_t first, size_t last) {
        for (size_t i = first; i < last; ++i) {
            kernels_.rms_norm(scratch_->x + pass.wanted[i] * n, weights_.final_norm.data, scratch_->normed + i * n, n, shape_.norm_eps);
            if (quantised) kernels_.quantise(scratch_->normed + i * n, n, out, i, 0);
        }
    });
    Weights part = weights_.head;
    part.rows = width;  // tiles are independent: the first ones are a matrix of their own
    worker.for_chunks(part.tiles(), 16, [&](size_t first, size_t last) {
        multiply(part, first, last, scratch_->normed.data(), n, wanted, logits, width, false, Vector{});
    });
}

}  // namespace draftsmith
