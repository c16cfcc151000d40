// Attention over the blocked caches: what each worker takes, and in which order pieces of the context are folded.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "scratch.hpp"

namespace draftsmith {
namespace {

constexpr size_t kRowsPerUnit = 32;   // query rows that share the reading of a piece, where there are many
constexpr size_t kUnitsPerWorker = 8; // with fewer, the last one to finish makes the others wait
constexpr size_t kPiecesPerRun = 16;  // of one head, by the same worker: it knows what it will read next
constexpr size_t kMostPartials = size_t{32} << 20;  // bytes

size_t divide_up(size_t a, size_t b) { return (a + b - 1) / b; }
size_t pieces_of(size_t positions) { return divide_up(positions, kPiecePositions); }

// The Walsh-Hadamard transform of runs of B values, B the largest power of two that divides d. Queries and keys both go through
// it, which leaves their products as they are (times B) and spreads the few large columns that keys of some models have over
// all: in 8 bits they would cost the others theirs.
void spread(float* x, size_t d, float scale) {
    const size_t run = d & (~d + 1);
    for (size_t half = 1; half < run; half *= 2) {
        for (size_t i = 0; i < d; i += 2 * half) {
            for (size_t j = i; j < i + half; ++j) {
                const float a = x[j], b = x[j + half];
                x[j] = a + b;
                x[j + half] = a - b;
            }
        }
    }
    for (size_t i = 0; i < d; ++i) x[i] *= scale;
}

// Keys and values of one token and head, as 8-bit codes (see attention_int8.hpp).
void store_int8(const Kernels& kernels, const float* key, const float* value, uint8_t* keys, uint8_t* values, size_t lane, size_t d) {
    int8_t codes[kMaxHeadDim];
    auto* key_scales = reinterpret_cast<uint16_t*>(keys);
    float scales[16] = {};
    for (size_t i = 0; i < d; i += kGroup) scales[i / kGroup] = kernels.store_codes(key + i, codes + i, std::min<size_t>(kGroup, d - i));
    uint16_t halves[16];
    kernels.store_half(scales, halves, 16);
    for (size_t g = 0; g < divide_up(d, kGroup); ++g) key_scales[g * kBlockPositions + lane] = halves[g];
    uint8_t* at = keys + int8_key_scales(static_cast<int>(d)) + lane * 4;
    for (size_t i = 0; i < d; ++i) at[i / 4 * kBlockPositions * 4 + i % 4] = static_cast<uint8_t>(codes[i]) ^ 0x80;
    scales[0] = kernels.store_codes(value, codes, d);
    kernels.store_half(scales, halves, 16);
    reinterpret_cast<uint16_t*>(values)[lane] = halves[0];
    at = values + int8_value_scales() + lane / 4 * d * 4 + lane % 4;
    for (size_t i = 0; i < d; ++i) at[i * 4] = static_cast<uint8_t>(codes[i]);
}

}  // namespace

void Model::rotate_and_store(Worker& worker, const Pass& pass, const Layer& layer, size_t layer_index) {
    worker.for_chunks(pass.rows.size() * shape_.kv_heads, 1, [&](size_t unit, size_t) {
        rotate_head(pass, layer, layer_index, unit / shape_.kv_heads, unit % shape_.kv_heads);
    });
}

// One token's queries, key and value of one key-value head.
void Model::rotate_head(const Pass& pass, const Layer& layer, size_t layer_index, size_t row, size_t kv_head) {
    const size_t d = shape_.head_dim, group = shape_.heads / shape_.kv_heads;
    const size_t stride = layer.q.rows + layer.k.rows + layer.v.rows;
    const float query_scale = 1.0f / std::sqrt(static_cast<float>(d));
    const size_t position = pass.rows[row].position, block = position / kBlockPositions, lane = position % kBlockPositions;
    const KVCache& cache = *pass.segments[pass.rows[row].segment].cache;
    const float* cos = cos_.data() + position * d / 2;
    const float* sin = sin_.data() + position * d / 2;
    float* base = scratch_->qkv + row * stride;
    for (size_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
        float* query = base + h * d;
        if (layer.q_norm) kernels_.rms_norm(query, layer.q_norm.data, query, d, shape_.norm_eps);
        kernels_.rope(query, cos, sin, d, query_scale);
        if (shape_.cache_type != CacheType::int8) continue;
        alignas(64) float padded[kMaxHeadDim] = {};
        std::memcpy(padded, query, d * sizeof(float));
        spread(padded, d, 1.0f);
        kernels_.quantise(padded, Scratch::query_cols(shape_), scratch_->quant_queries(shape_), row * shape_.heads + h, 0);
    }
    float* key = base + layer.q.rows + kv_head * d;
    const float* value = base + layer.q.rows + layer.k.rows + kv_head * d;
    if (layer.k_norm) kernels_.rms_norm(key, layer.k_norm.data, key, d, shape_.norm_eps);
    kernels_.rope(key, cos, sin, d, 1.0f);
    uint8_t* keys = cache.keys(layer_index, kv_head, block);
    uint8_t* values = cache.values(layer_index, kv_head, block);
    if (shape_.cache_type == CacheType::int8) {
        if (centred(layer)) {
            alignas(64) float centre[kMaxHeadDim];
            centre_of(layer, kv_head, block, centre);
            for (size_t i = 0; i < d; ++i) key[i] -= centre[i];
        }
        spread(key, d, 1.0f / static_cast<float>(d & (~d + 1)));
        store_int8(kernels_, key, value, keys, values, lane, d);
    } else if (shape_.cache_type == CacheType::full) {
        for (size_t i = 0; i < d; ++i) reinterpret_cast<float*>(keys)[i * kBlockPositions + lane] = key[i];
        std::memcpy(reinterpret_cast<float*>(values) + lane * d, value, d * 4);
    } else {
        uint16_t halves[kMaxHeadDim];
        kernels_.store_half(key, halves, d);
        for (size_t i = 0; i < d; ++i) reinterpret_cast<uint16_t*>(keys)[i * kBlockPositions + lane] = halves[i];
        kernels_.store_half(value, reinterpret_cast<uint16_t*>(values) + lane * d, d);
    }
}

// The mean of what the bias alone gives the keys of a block. Some models have biases that are far larger than what differs from
// one key to the next: in 8 bits, these differences would have the bias's steps.
void Model::centre_of(const Layer& layer, size_t kv_head, size_t block, float* centre) const {
    const size_t d = shape_.head_dim, at = block * d / 2;
    std::memcpy(centre, layer.k_bias.data + kv_head * d, d * sizeof(float));
    kernels_.rope(centre, block_cos_.data() + at, block_sin_.data() + at, d, 1.0f);
}

Model::AttentionPlan Model::plan_attention(const Pass& pass) {
    const size_t group = shape_.heads / shape_.kv_heads, team = static_cast<size_t>(team_->size()), enough = kUnitsPerWorker * team;
    struct Count { size_t chunks = 0, parts = 0, slots = 0; };
    const auto count_for = [&](size_t rows_per_unit) {
        Count c;
        for (const Segment& s : pass.segments) {
            const size_t rows = s.count * group, pieces = pieces_of(pass.rows[s.first_row].position + s.count);
            c.chunks += divide_up(rows, rows_per_unit) * shape_.kv_heads;
            c.parts += divide_up(rows, rows_per_unit) * shape_.kv_heads * pieces;
            c.slots += rows * shape_.kv_heads * pieces;
        }
        return c;
    };
    const Count wide = count_for(kRowsPerUnit), narrow = count_for(kAttentionRows);
    if (wide.chunks >= enough) return {kRowsPerUnit, wide.chunks, 0};
    const bool fits = wide.slots * shape_.head_dim * sizeof(float) <= kMostPartials;
    const bool shared = fits && wide.parts >= enough && team > 1;
    if (!shared && (narrow.chunks >= enough || narrow.parts == narrow.chunks || team == 1 || !fits)) return {kAttentionRows, narrow.chunks, 0};
    const size_t rows_per_unit = shared ? kRowsPerUnit : kAttentionRows, parts = shared ? wide.parts : narrow.parts;
    scratch_->partials.reserve(wide.slots, shape_.head_dim, shared ? wide.chunks : narrow.chunks);
    const size_t run = std::clamp<size_t>(parts / enough, 1, kPiecesPerRun);
    size_t units = 0;
    for (const Segment& s : pass.segments) {
        units += divide_up(s.count * group, rows_per_unit) * shape_.kv_heads * divide_up(pieces_of(pass.rows[s.first_row].position + s.count), run);
    }
    return {rows_per_unit, units, run};
}

// Units in the order: segment, run of pieces (if by pieces), rows, key-value head.
Model::AttentionUnit Model::find_unit(const Pass& pass, const AttentionPlan& plan, size_t index) const {
    const size_t group = shape_.heads / shape_.kv_heads, heads = shape_.kv_heads;
    size_t slot = 0, counter = 0;
    for (const Segment& s : pass.segments) {
        const size_t rows = s.count * group, chunks = divide_up(rows, plan.rows_per_unit), pieces = pieces_of(pass.rows[s.first_row].position + s.count);
        const size_t units = chunks * heads * (plan.run ? divide_up(pieces, plan.run) : 1);
        if (index < units) {
            const size_t head = index % heads, chunk = index / heads % chunks, run = index / heads / chunks;
            const size_t first = chunk * plan.rows_per_unit, count = std::min(plan.rows_per_unit, rows - first);
            const size_t own_slot = slot + (head * rows + first) * pieces, own_counter = counter + head * chunks + chunk;
            if (plan.run) return {&s, head, first, count, run * plan.run, std::min(pieces, (run + 1) * plan.run), own_slot, own_counter};
            return {&s, head, first, count, 0, pieces, own_slot, own_counter};
        }
        index -= units;
        slot += rows * heads * pieces;
        counter += chunks * heads;
    }
    return {};
}

void Model::attend(Worker& worker, const Pass& pass, const AttentionPlan& plan, const Layer& layer, size_t layer_index) {
    worker.for_chunks(plan.units, 1, [&](size_t index, size_t) {
        const AttentionUnit unit = find_unit(pass, plan, index);
        if (plan.run) attend_part(pass, layer, layer_index, unit);
        else attend_whole(pass, layer, layer_index, unit);
    });
}

// Row i of a unit (row = token x group + head within the group) and the positions from <= p < to that it sees.
Model::RowWindow Model::row_window(const Pass& pass, const Layer& layer, const AttentionUnit& unit, size_t i) const {
    const size_t group = shape_.heads / shape_.kv_heads, d = shape_.head_dim;
    const size_t row = unit.segment->first_row + (unit.first + i) / group, head = unit.kv_head * group + (unit.first + i) % group;
    const size_t stride = layer.q.rows + layer.k.rows + layer.v.rows, to = pass.rows[row].position + 1;
    return {scratch_->qkv + row * stride + head * d, row, head, layer.window && to > layer.window ? to - layer.window : 0, to};
}

// Rows begin <= i < end of a unit, at most kAttentionRows, over one piece. Rows that see nothing of it are left out; who[]
// says which are in. Returns their number.
size_t Model::attend_piece(const Pass& pass, const Layer& layer, size_t layer_index, const AttentionUnit& unit, size_t piece, size_t begin, size_t end,
                           float* const* out, float* maxima, float* sums, size_t* who) {
    const size_t start = piece * kPiecePositions;
    const float* queries[kAttentionRows];
    const QuantGroup* codes[kAttentionRows];
    float* outs[kAttentionRows];
    int firsts[kAttentionRows], lasts[kAttentionRows];
    size_t rows = 0, furthest = 0;
    for (size_t i = begin; i < end; ++i) {
        const RowWindow w = row_window(pass, layer, unit, i);
        if (w.to <= start || w.from >= start + kPiecePositions) continue;
        who[rows] = i;
        queries[rows] = w.query;
        if (shape_.cache_type == CacheType::int8) codes[rows] = scratch_->quant_queries(shape_).at(w.row * shape_.heads + w.head, 0);
        outs[rows] = out[i - begin];
        firsts[rows] = static_cast<int>(w.from > start ? w.from - start : 0);
        lasts[rows] = static_cast<int>(std::min<size_t>(w.to - start, kPiecePositions));
        furthest = std::max(furthest, w.to);
        ++rows;
    }
    if (rows == 0) return 0;
    const uint8_t* keys[kPieceBlocks];
    const uint8_t* values[kPieceBlocks];
    const uint8_t* next[kPieceBlocks];
    const size_t first_block = piece * kPieceBlocks, last_block = std::min<size_t>(first_block + kPieceBlocks, divide_up(furthest, kBlockPositions));
    // The last rows of a unit that read this piece fetch the next one.
    const size_t end_block = piece + 1 < unit.last_piece && end == unit.count ? divide_up(furthest, kBlockPositions) : 0;
    for (size_t i = 0; i < kPieceBlocks && first_block + i < last_block; ++i) {
        const size_t block = first_block + i;
        keys[i] = unit.segment->cache->keys(layer_index, unit.kv_head, block);
        values[i] = unit.segment->cache->values(layer_index, unit.kv_head, block);
        next[i] = block + kPieceBlocks < end_block ? unit.segment->cache->keys(layer_index, unit.kv_head, block + kPieceBlocks) : values[i];
    }
    alignas(64) float centres[kPieceBlocks][kMaxHeadDim];
    const bool has_centres = centred(layer);
    for (size_t block = first_block; has_centres && block < last_block; ++block) centre_of(layer, unit.kv_head, block, centres[block - first_block]);
    kernels_.attend[static_cast<int>(shape_.cache_type)](
        {queries, codes, has_centres ? centres : nullptr, outs, maxima, sums, firsts, lasts, static_cast<int>(rows), static_cast<int>(shape_.head_dim), keys, values, next});
    return rows;
}

// The result of one head; as the output projection wants it.
void Model::finish_row(const Layer& layer, const RowWindow& w, const float* vector, float sum) {
    const size_t d = shape_.head_dim, all = shape_.heads * d;
    float* out = scratch_->attention + w.row * all + w.head * d;
    kernels_.attention_finish(vector, sum, out, d);
    // Weights add up to one, so a bias of all values is one of their mean, and need not be rounded with them.
    if (shape_.cache_type == CacheType::int8 && layer.v_bias) kernels_.add(out, layer.v_bias.data + w.head / (shape_.heads / shape_.kv_heads) * d, d);
    if (format_info(layer.o.type).quantised && d % kGroup == 0) kernels_.quantise(out, d, {scratch_->groups.data(), all}, w.row, w.head * d);
}

// Some rows over all they see: the pieces are folded as they come.
void Model::attend_whole(const Pass& pass, const Layer& layer, size_t layer_index, const AttentionUnit& unit) {
    struct State { bool fresh = true; float max, sum; alignas(64) float vector[kMaxHeadDim]; };
    State state[kRowsPerUnit];
    alignas(64) float partial[kAttentionRows][kMaxHeadDim];
    float* outs[kAttentionRows];
    for (int r = 0; r < kAttentionRows; ++r) outs[r] = partial[r];
    const size_t d = shape_.head_dim;
    for (size_t piece = unit.first_piece; piece < unit.last_piece; ++piece) {
        for (size_t begin = 0; begin < unit.count; begin += kAttentionRows) {
            float maxima[kAttentionRows], sums[kAttentionRows];
            size_t who[kAttentionRows];
            const size_t end = std::min<size_t>(begin + kAttentionRows, unit.count);
            const size_t rows = attend_piece(pass, layer, layer_index, unit, piece, begin, end, outs, maxima, sums, who);
            for (size_t r = 0; r < rows; ++r) {
                State& s = state[who[r]];
                const float* vector = outs[who[r] - begin];
                if (s.fresh) {
                    s.fresh = false;
                    s.max = maxima[r];
                    s.sum = sums[r];
                    std::memcpy(s.vector, vector, d * sizeof(float));
                } else {
                    kernels_.attention_fold(&s.max, &s.sum, s.vector, maxima[r], sums[r], vector, d);
                }
            }
        }
    }
    for (size_t i = 0; i < unit.count; ++i) {
        const RowWindow w = row_window(pass, layer, unit, i);
        finish_row(layer, w, state[i].vector, state[i].sum);
    }
}

// Some rows over a run of pieces; whoever does the last piece of these rows folds all, in their order.
void Model::attend_part(const Pass& pass, const Layer& layer, size_t layer_index, const AttentionUnit& unit) {
    Partials& p = scratch_->partials;
    const size_t d = shape_.head_dim, pieces = pieces_of(pass.rows[unit.segment->first_row].position + unit.segment->count);
    for (size_t piece = unit.first_piece; piece < unit.last_piece; ++piece) {
        for (size_t begin = 0; begin < unit.count; begin += kAttentionRows) {
            float* outs[kAttentionRows];
            float maxima[kAttentionRows], sums[kAttentionRows];
            size_t who[kAttentionRows];
            const size_t end = std::min<size_t>(begin + kAttentionRows, unit.count);
            for (size_t i = begin; i < end; ++i) outs[i - begin] = p.vectors.data() + (unit.slot + i * pieces + piece) * d;
            const size_t rows = attend_piece(pass, layer, layer_index, unit, piece, begin, end, outs, maxima, sums, who);
            for (size_t r = 0; r < rows; ++r) {
                p.maxima[unit.slot + who[r] * pieces + piece] = maxima[r];
                p.sums[unit.slot + who[r] * pieces + piece] = sums[r];
            }
        }
    }
    const uint32_t done = static_cast<uint32_t>(unit.last_piece - unit.first_piece);
    if (p.done[unit.counter].fetch_add(done, std::memory_order_acq_rel) + done < pieces) return;
    p.done[unit.counter].store(0, std::memory_order_relaxed);  // for the next layer, which begins after a barrier
    for (size_t i = 0; i < unit.count; ++i) {
        const RowWindow w = row_window(pass, layer, unit, i);
        const size_t first = w.from / kPiecePositions, last = (w.to - 1) / kPiecePositions, slot = unit.slot + i * pieces;
        float max = p.maxima[slot + first], sum = p.sums[slot + first];
        float* vector = p.vectors.data() + (slot + first) * d;
        for (size_t piece = first + 1; piece <= last; ++piece) {
            kernels_.attention_fold(&max, &sum, vector, p.maxima[slot + piece], p.sums[slot + piece], p.vectors.data() + (slot + piece) * d, d);
        }
        finish_row(layer, w, vector, sum);
    }
}

}  // namespace draftsmith
