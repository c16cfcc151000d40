// The Python face of the engine: packing, caches, forward. Buffers are borrowed; Python objects keep them alive.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "dispatch.hpp"
#include "logits_memory.hpp"
#include "model.hpp"
#include "pack.hpp"
#include "tensor_table.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace draftsmith {
namespace {

// Pack a whole matrix with the team's threads.
void pack(int type, size_t rows, size_t cols, Bytes source, WritableBytes destination, ThreadTeam& team) {
    const FormatInfo f = checked_format(type, rows, cols);
    const size_t wanted = rows * (cols / static_cast<size_t>(f.block_cols)) * static_cast<size_t>(f.block_bytes);
    if (source.size() != wanted || destination.size() != packed_size(type, rows, cols)) throw std::invalid_argument("a buffer to pack has the wrong size");
    const uint8_t* from = source.data();
    uint8_t* to = destination.data();
    const nb::gil_scoped_release release;
    team.run([&](Worker& worker) {
        worker.for_chunks((rows + kTileRows - 1) / kTileRows, 8, [&](size_t first, size_t last) {
            for (size_t tile = first; tile < last; ++tile) pack_tile(static_cast<BlockType>(type), rows, cols, tile, from, to + tile * tile_bytes(f, cols));
        });
    });
}

nb::ndarray<nb::numpy, float> float_array(size_t rows, size_t cols) {
    auto* data = new float[rows * cols];
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
    return nb::ndarray<nb::numpy, float>(data, {rows, cols}, owner);
}

nb::ndarray<nb::numpy, float> unpack_rows(int type, size_t rows, size_t cols, Bytes packed, const std::vector<size_t>& wanted) {
    checked_format(type, rows, cols);
    if (packed.size() != packed_size(type, rows, cols)) throw std::invalid_argument("a packed buffer has the wrong size");
    auto out = float_array(wanted.size(), cols);
    for (size_t i = 0; i < wanted.size(); ++i) {
        if (wanted[i] >= rows) throw std::invalid_argument("row out of range");
        unpack_row(Weights{static_cast<BlockType>(type), rows, cols, packed.data()}, wanted[i], out.data() + i * cols);
    }
    return out;
}

// y[m][rows] = x[m][cols] times the packed matrix, transposed: one product alone, for tests and measurements.
nb::ndarray<nb::numpy, float> matmul(int type, size_t rows, size_t cols, Bytes packed, nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu> x,
                                     const std::string& set, ThreadTeam& team, int repeats) {
    const FormatInfo f = checked_format(type, rows, cols);
    if (packed.size() != packed_size(type, rows, cols) || x.shape(1) != cols) throw std::invalid_argument("a buffer has the wrong size");
    const Kernels& kernels = kernels_named(set);
    const size_t m = x.shape(0);
    const Weights weights{static_cast<BlockType>(type), rows, cols, packed.data()};
    auto out = float_array(m, rows);
    std::vector<QuantGroup> groups(quant_groups(m, cols));
    const QuantRows q{groups.data(), cols};
    if (f.quantised) for (size_t r = 0; r < m; ++r) kernels.quantise(x.data() + r * cols, cols, q, r, 0);
    const float* input = x.data();
    float* result = out.data();
    const nb::gil_scoped_release release;
    for (int i = 0; i < repeats; ++i) {
        team.run([&](Worker& worker) {
            worker.for_chunks(weights.tiles(), 16, [&](size_t first, size_t last) {
                if (f.quantised) kernels.matmul_quant(weights, first, last, q, 0, m, result, rows, false);
                else kernels.matmul_float(weights, first, last, input, cols, m, result, rows, false);
            });
        });
    }
    return out;
}

// Multiply-adds per second of the whole team, with operands in registers: "int8" or "float32".
double peak_products(const std::string& type, const std::string& set, ThreadTeam& team, size_t rounds) {
    const Kernels& kernels = kernels_named(set);
    if (type != "int8" && type != "float32") throw std::invalid_argument("peaks are of int8 or float32");
    const bool whole = type == "int8";
    const nb::gil_scoped_release release;
    const auto began = std::chrono::steady_clock::now();
    team.run([&](Worker& worker) {
        worker.for_chunks(static_cast<size_t>(team.size()) * 64, 1, [&](size_t, size_t) {
            alignas(64) int8_t codes[64];
            alignas(64) float x[64], out[16 * 12];
            for (int i = 0; i < 64; ++i) { codes[i] = static_cast<int8_t>(i % 5); x[i] = 1e-3f * static_cast<float>(i); }
            if (whole) kernels.peak_int8(rounds, codes, out);
            else kernels.peak_float(rounds, x, out);
        });
    });
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    return static_cast<double>(rounds) * 64 * team.size() * 12 * (whole ? 64 : 16) / seconds;
}

// Bytes per second that the team reads from `data`, all of it once.
double read_rate(Bytes data, const std::string& set, ThreadTeam& team) {
    const Kernels& kernels = kernels_named(set);
    constexpr size_t kChunk = size_t{1} << 18;
    std::atomic<int> sink{0};
    const uint8_t* from = data.data();
    const size_t bytes = data.size() / kChunk * kChunk;
    const nb::gil_scoped_release release;
    const auto began = std::chrono::steady_clock::now();
    team.run([&](Worker& worker) {
        worker.for_chunks(bytes, kChunk, [&](size_t first, size_t last) { sink.fetch_or(kernels.read_lines(from + first, last - first), std::memory_order_relaxed); });
    });
    return static_cast<double>(bytes) / std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

CacheType cache_type_named(const std::string& name) {
    if (name == "float16") return CacheType::half;
    if (name == "float32") return CacheType::full;
    if (name == "int8") return CacheType::int8;
    throw std::invalid_argument("the cache type '" + name + "' is unknown to the engine");
}

std::unique_ptr<Model> make_model(nb::dict shape, nb::dict tensors, Bytes buffer, Floats inverse_frequencies, const std::vector<size_t>& windows,
                                  const std::string& set, std::shared_ptr<ThreadTeam> team) {
    const auto size = [&](const char* key) { return nb::cast<size_t>(shape[key]); };
    ModelShape s;
    s.vocab = size("vocab_size");
    s.hidden = size("hidden_size");
    s.intermediate = size("intermediate_size");
    s.layers = size("num_layers");
    s.heads = size("num_heads");
    s.kv_heads = size("num_kv_heads");
    s.head_dim = size("head_dim");
    s.max_context = size("max_context");
    s.norm_eps = nb::cast<float>(shape["rms_norm_eps"]);
    s.rope_scaling = nb::cast<float>(shape["rope_scaling"]);
    s.cache_type = cache_type_named(nb::cast<std::string>(shape["cache_dtype"]));
    s.experts = {size("num_experts"), size("num_experts_per_token"), size("expert_size"), size("normalise_experts") != 0};
    if (inverse_frequencies.size() != s.head_dim / 2 || windows.size() != s.layers) throw std::invalid_argument("the RoPE frequencies or windows do not fit the model");
    const TensorTable table(tensors, buffer);
    ModelWeights w;
    w.embedding = table.matrix("model.embed_tokens.weight", s.vocab, s.hidden);
    w.head = table.has("lm_head.weight") ? table.matrix("lm_head.weight", s.vocab, s.hidden) : w.embedding;
    w.final_norm = table.vector("model.norm.weight", s.hidden);
    w.inverse_frequencies.assign(inverse_frequencies.data(), inverse_frequencies.data() + inverse_frequencies.size());
    for (size_t i = 0; i < s.layers; ++i) {
        w.layers.push_back(read_layer(table, s, i));
        w.layers.back().window = windows[i];
    }
    return std::make_unique<Model>(s, std::move(w), kernels_named(set), std::move(team));
}

nb::ndarray<nb::numpy, float> logits_array(size_t rows, size_t cols) {
    static const auto memory = std::make_shared<LogitsMemory>();
    struct Owner { std::shared_ptr<LogitsMemory> memory; LogitsMemory::Kept block; };
    auto owner = std::make_unique<Owner>(Owner{memory, memory->take(rows * cols)});
    float* data = owner->block.data.get();
    nb::capsule capsule(owner.release(), [](void* p) noexcept {
        const std::unique_ptr<Owner> mine(static_cast<Owner*>(p));
        mine->memory->give(std::move(mine->block));
    });
    return nb::ndarray<nb::numpy, float>(data, {rows, cols}, capsule);
}

nb::dict profile_dict(Model& model) {
    const Profile profile = model.profile();
    nb::dict seconds;
    for (size_t i = 0; i < kPhases; ++i) seconds[kPhaseNames[i]] = profile.seconds[i];
    nb::dict result;
    result["passes"] = profile.passes;
    result["rows"] = profile.rows;
    result["seconds"] = seconds;
    return result;
}

nb::ndarray<nb::numpy, float> forward(Model& model, nb::list caches, nb::list tokens, const std::vector<size_t>& num_logits, size_t width) {
    if (caches.size() != tokens.size() || caches.size() != num_logits.size()) throw std::invalid_argument("caches, tokens and num_logits differ in length");
    std::vector<TokenRun> runs;
    std::vector<Tokens> kept;
    size_t rows = 0;
    for (size_t i = 0; i < caches.size(); ++i) {
        kept.push_back(nb::cast<Tokens>(tokens[i]));
        runs.push_back({nb::cast<KVCache*>(caches[i]), kept.back().data(), kept.back().size(), num_logits[i]});
        rows += num_logits[i];
    }
    auto logits = logits_array(rows, width);
    float* data = logits.data();
    {
        const nb::gil_scoped_release release;
        model.forward(runs, width, data);
    }
    return logits;
}

Sampling sampling_of(nb::handle options) {
    Sampling s;
    s.greedy = nb::cast<bool>(options.attr("greedy"));
    s.temperature = nb::cast<double>(options.attr("temperature"));
    s.top_k = nb::cast<size_t>(options.attr("top_k"));
    s.top_p = nb::cast<double>(options.attr("top_p"));
    s.min_p = nb::cast<double>(options.attr("min_p"));
    s.seed = nb::cast<uint64_t>(options.attr("seed"));
    s.position = nb::cast<uint32_t>(options.attr("position"));
    return s;
}

// Runs are (cache, tokens, max_tokens, sampling); the drafts come back as lists of ids. `wants_more(run, confidence)`.
std::vector<std::vector<int32_t>> draft(Model& model, const std::vector<nb::tuple>& wanted, size_t width, nb::object names, nb::callable wants_more) {
    std::vector<DraftRun> runs;
    for (const nb::tuple& run : wanted) {
        runs.push_back({nb::cast<KVCache*>(run[0]), nb::cast<std::vector<int32_t>>(run[1]), nb::cast<size_t>(run[2]), sampling_of(run[3]), {}});
        if (runs.back().unread.empty() || runs.back().max_tokens == 0) throw std::invalid_argument("a draft needs a token to begin with and room for one more");
    }
    const int32_t* ids = nullptr;
    if (!names.is_none()) {
        const auto array = nb::cast<Tokens>(names, false);  // a copy would not live long enough
        if (array.size() != width) throw std::invalid_argument("there must be as many names as entries of the vocabulary");
        ids = array.data();
    }
    {
        const nb::gil_scoped_release release;
        model.draft(runs, width, ids, [&](size_t run, float confidence) {
            const nb::gil_scoped_acquire acquire;
            return nb::cast<bool>(wants_more(run, confidence));
        });
    }
    std::vector<std::vector<int32_t>> drafts;
    for (DraftRun& run : runs) drafts.push_back(std::move(run.drawn));
    return drafts;
}

}  // namespace
}  // namespace draftsmith

NB_MODULE(_native, m) {
    using namespace draftsmith;
    m.doc() = "The native engine: packed weights, KV caches and the forward pass of decoder stacks.";

    m.def("instruction_sets", &instruction_sets, "The sets of kernels that this processor runs, slowest first; the first is the specification.");
    m.def("packed_size", &packed_size, "block_type"_a, "rows"_a, "cols"_a, "Bytes of a packed matrix.");
    m.def("pack", &pack, "block_type"_a, "rows"_a, "cols"_a, "source"_a, "destination"_a, "team"_a, "Pack a matrix from row-major blocks.");
    m.def("unpack_rows", &unpack_rows, "block_type"_a, "rows"_a, "cols"_a, "packed"_a, "wanted"_a, "Rows of a packed matrix as float32.");
    m.def("matmul", &matmul, "block_type"_a, "rows"_a, "cols"_a, "packed"_a, "x"_a, "instruction_set"_a, "team"_a, "repeats"_a = 1,
          "x [m][cols] times the transposed packed matrix: [m][rows].");

    m.def("peak_products", &peak_products, "kind"_a, "instruction_set"_a, "team"_a, "rounds"_a, "Multiply-adds per second with operands in registers.");
    m.def("read_rate", &read_rate, "data"_a, "instruction_set"_a, "team"_a, "Bytes per second of reading memory once.");

    nb::class_<ThreadTeam>(m, "ThreadTeam", "Threads that work on one forward pass at a time.").def(nb::init<int>(), "size"_a).def_prop_ro("size", &ThreadTeam::size);

    nb::class_<KVCache>(m, "KVCache", "Keys and values of one sequence.")
        .def_prop_ro("length", &KVCache::length)
        .def_prop_ro("capacity", &KVCache::capacity)
        .def_prop_ro("allocated_bytes", &KVCache::allocated_bytes)
        .def("truncate", [](KVCache& cache, int64_t length) {
            if (length < 0) throw std::invalid_argument("cannot truncate a cache to " + std::to_string(length) + " tokens");
            cache.truncate(static_cast<size_t>(length));
        }, "length"_a)
        .def("fork", &KVCache::fork, "length"_a)
        .def("repeat", &KVCache::repeat, "length"_a)
        .def("growth", &KVCache::growth, "count"_a);

    nb::class_<Model>(m, "Model", "A decoder stack over packed weights.")
        .def("new_cache", [](const Model& model, size_t capacity) { return std::make_unique<KVCache>(model.cache_blocks(), capacity); }, "capacity"_a)
        .def("cache_bytes", [](const Model& model, size_t positions) {
            return (positions + kBlockPositions - 1) / kBlockPositions * model.cache_blocks()->shape().block_bytes();
        }, "positions"_a)
        .def_prop_ro("cache_bytes_in_use", [](const Model& model) { return model.cache_blocks()->bytes(); })
        .def("set_profiling", &Model::set_profiling, "on"_a)
        .def("profile", &profile_dict)
        .def("draft", &draft, "runs"_a, "width"_a, "names"_a.none(), "wants_more"_a)
        .def("forward", &forward, "caches"_a, "tokens"_a, "num_logits"_a, "width"_a);
    m.def("make_model", &make_model, "shape"_a, "tensors"_a, "buffer"_a, "inverse_frequencies"_a, "windows"_a, "instruction_set"_a, "team"_a,
          nb::keep_alive<0, 3>());
}
