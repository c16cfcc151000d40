// Finds the parts of a model in a packed buffer, for the bindings.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "model.hpp"

namespace nb = nanobind;

namespace draftsmith {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using WritableBytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tokens = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

inline FormatInfo checked_format(int type, size_t rows, size_t cols) {
    const FormatInfo f = format_info(static_cast<BlockType>(type));
    if (f.block_cols == 0) throw std::invalid_argument("block type " + std::to_string(type) + " is unknown to the engine");
    if (rows == 0 || cols == 0 || cols % static_cast<size_t>(f.block_cols)) {
        throw std::invalid_argument("a matrix of " + std::to_string(rows) + " x " + std::to_string(cols) + " cannot be made of blocks of " + std::to_string(f.block_cols));
    }
    return f;
}

inline size_t packed_size(int type, size_t rows, size_t cols) {
    return (rows + kTileRows - 1) / kTileRows * tile_bytes(checked_format(type, rows, cols), cols);
}

// Finds packed tensors by name and checks their sizes against the buffer and the shape of the model.
class TensorTable {
public:
    TensorTable(nb::dict table, Bytes buffer) : table_(std::move(table)), buffer_(std::move(buffer)) {}

    Weights matrix(const std::string& name, size_t rows, size_t cols) const {
        const Entry e = find(name);
        if (e.rows != rows || e.cols != cols) {
            throw std::invalid_argument(name + " is " + std::to_string(e.rows) + " x " + std::to_string(e.cols) + ", expected " + std::to_string(rows) + " x " + std::to_string(cols));
        }
        checked_format(e.type, rows, cols);
        const size_t size = packed_size(e.type, rows, cols);
        return {static_cast<BlockType>(e.type), rows, cols, at(name, e.offset, size)};
    }
    // A float32 vector, stored plainly.
    Vector vector(const std::string& name, size_t n) const {
        const Entry e = find(name);
        if (e.rows != 1 || e.cols != n) throw std::invalid_argument(name + " has " + std::to_string(e.cols) + " values, expected " + std::to_string(n));
        return {reinterpret_cast<const float*>(at(name, e.offset, n * 4))};
    }
    Vector optional_vector(const std::string& name, size_t n) const { return has(name) ? vector(name, n) : Vector{}; }
    bool has(const std::string& name) const { return table_.contains(name.c_str()); }

private:
    struct Entry { int type; size_t rows, cols, offset; };
    Entry find(const std::string& name) const {
        if (!has(name)) throw std::invalid_argument("the packed model lacks " + name);
        const nb::tuple t = nb::cast<nb::tuple>(table_[name.c_str()]);
        return {nb::cast<int>(t[0]), nb::cast<size_t>(t[1]), nb::cast<size_t>(t[2]), nb::cast<size_t>(t[3])};
    }
    const uint8_t* at(const std::string& name, size_t offset, size_t size) const {
        if (offset % 64 || offset > buffer_.size() || size > buffer_.size() - offset) throw std::invalid_argument(name + " lies outside the packed file");
        return buffer_.data() + offset;
    }
    nb::dict table_;
    Bytes buffer_;
};

inline std::vector<Expert> read_experts(const TensorTable& table, const ModelShape& s, const std::string& prefix) {
    std::vector<Expert> experts;
    for (size_t i = 0; i < s.experts.count; ++i) {
        const std::string expert = prefix + "mlp.experts." + std::to_string(i) + ".";
        experts.push_back({table.matrix(expert + "gate_proj.weight", s.experts.intermediate, s.hidden), table.matrix(expert + "up_proj.weight", s.experts.intermediate, s.hidden),
                           table.matrix(expert + "down_proj.weight", s.hidden, s.experts.intermediate)});
        const Expert &first = experts.front(), &last = experts.back();
        if (first.gate.type != last.gate.type || first.up.type != last.up.type || first.down.type != last.down.type) {
            throw std::invalid_argument("the experts of " + prefix + "mlp are stored in different ways; the engine takes one for all");
        }
    }
    return experts;
}

inline Layer read_layer(const TensorTable& table, const ModelShape& s, size_t index) {
    const std::string prefix = "model.layers." + std::to_string(index) + ".";
    const size_t q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
    const auto named = [&](const char* name) { return prefix + name; };
    Layer layer;
    layer.attention_norm = table.vector(named("input_layernorm.weight"), s.hidden);
    layer.mlp_norm = table.vector(named("post_attention_layernorm.weight"), s.hidden);
    layer.q_norm = table.optional_vector(named("self_attn.q_norm.weight"), s.head_dim);
    layer.k_norm = table.optional_vector(named("self_attn.k_norm.weight"), s.head_dim);
    layer.q = table.matrix(named("self_attn.q_proj.weight"), q, s.hidden);
    layer.k = table.matrix(named("self_attn.k_proj.weight"), kv, s.hidden);
    layer.v = table.matrix(named("self_attn.v_proj.weight"), kv, s.hidden);
    layer.o = table.matrix(named("self_attn.o_proj.weight"), s.hidden, q);
    if (table.has(named("mlp.gate.weight"))) {
        layer.router = table.matrix(named("mlp.gate.weight"), s.experts.count, s.hidden);
        layer.experts = read_experts(table, s, prefix);
    } else {
        layer.gate = table.matrix(named("mlp.gate_proj.weight"), s.intermediate, s.hidden);
        layer.up = table.matrix(named("mlp.up_proj.weight"), s.intermediate, s.hidden);
        layer.down = table.matrix(named("mlp.down_proj.weight"), s.hidden, s.intermediate);
    }
    layer.q_bias = table.optional_vector(named("self_attn.q_proj.bias"), q);
    layer.k_bias = table.optional_vector(named("self_attn.k_proj.bias"), kv);
    layer.v_bias = table.optional_vector(named("self_attn.v_proj.bias"), kv);
    layer.o_bias = table.optional_vector(named("self_attn.o_proj.bias"), s.hidden);
    layer.gate_bias = table.optional_vector(named("mlp.gate_proj.bias"), s.intermediate);
    layer.up_bias = table.optional_vector(named("mlp.up_proj.bias"), s.intermediate);
    layer.down_bias = table.optional_vector(named("mlp.down_proj.bias"), s.hidden);
    return layer;
}

}  // namespace draftsmith
