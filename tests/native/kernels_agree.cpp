// Every kernel of every instruction set that this processor runs, against the portable one, to the bit.
//
// Prints for each kernel a digest of the portable results, so that two machines can be compared, and says which other sets
// gave the same. Exit code 1 where one does not, or where a set named as an argument is not there. `make test-aarch64` runs it here and, emulated, as a program for AArch64.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "dispatch.hpp"
#include "half.hpp"
#include "pack.hpp"

using namespace draftsmith;

namespace {

using Bytes = std::vector<uint8_t>;

// Numbers that are the same everywhere: the distributions of the standard library are not.
struct Random {
    std::mt19937 bits{1};
    uint8_t byte() { return static_cast<uint8_t>(bits() >> 24); }
    float uniform() { return static_cast<float>(static_cast<int32_t>(bits())) * 0x1p-31f; }  // -1 .. 1
    std::vector<float> floats(size_t n, float scale = 1) {
        std::vector<float> x(n);
        for (float& v : x) v = scale * uniform();
        for (size_t i = 0; i < n; i += 97) x[i] *= 30;  // outliers, as real activations have them
        return x;
    }
    uint16_t half(float scale) { return float_to_half(scale * uniform()); }
};

// What a kernel writes, byte by byte.
struct Result {
    Bytes bytes;
    template <class T> void add(const T* data, size_t count) {
        const auto* from = reinterpret_cast<const uint8_t*>(data);
        bytes.insert(bytes.end(), from, from + count * sizeof(T));
    }
    uint64_t digest() const {  // FNV-1a
        uint64_t hash = 0xcbf29ce484222325u;
        for (uint8_t byte : bytes) hash = (hash ^ byte) * 0x100000001b3u;
        return hash;
    }
};

template <class T> struct Aligned {  // to cache lines
    explicit Aligned(size_t n) : data(static_cast<T*>(std::aligned_alloc(64, (n * sizeof(T) + 127) / 64 * 64))) { std::memset(static_cast<void*>(data), 0, n * sizeof(T)); }
    ~Aligned() { std::free(data); }
    Aligned(const Aligned&) = delete;
    Aligned& operator=(const Aligned&) = delete;
    T* data;
};

// Random blocks whose scales are small halves and whose other bytes are anything.
Bytes random_blocks(BlockType type, size_t rows, size_t cols, Random& random) {
    const FormatInfo f = format_info(type);
    const auto size = static_cast<size_t>(f.block_bytes);
    Bytes blocks(rows * cols / static_cast<size_t>(f.block_cols) * size);
    for (uint8_t& byte : blocks) byte = random.byte();
    const auto put = [&](size_t at, uint16_t half) { std::memcpy(blocks.data() + at, &half, 2); };
    for (size_t at = 0; at < blocks.size(); at += size) {
        if (!f.quantised) {
            const float value = random.uniform();
            if (size == 4) std::memcpy(blocks.data() + at, &value, 4);
            else put(at, type == BlockType::F16 ? float_to_half(value) : static_cast<uint16_t>(float_to_bits(value) >> 16));
        } else if (type == BlockType::Q6_K) {
            put(at + 208, random.half(0.01f));
        } else {
            put(at, random.half(0.01f));
            if (f.minimum) put(at + 2, random.half(0.05f));
        }
    }
    return blocks;
}

void products(const Kernels& kernels, BlockType type, Result& result) {
    Random random;
    const FormatInfo f = format_info(type);
    for (const auto& [rows, cols] : {std::pair<size_t, size_t>{16, 256}, {83, 512}, {40, f.super_block ? 768u : 800u}}) {
        const Bytes blocks = random_blocks(type, rows, cols, random);
        const size_t tiles = (rows + kTileRows - 1) / kTileRows, size = tile_bytes(f, cols);
        Aligned<uint8_t> packed(tiles * size);
        for (size_t tile = 0; tile < tiles; ++tile) pack_tile(type, rows, cols, tile, blocks.data(), packed.data + tile * size);
        const Weights weights{type, rows, cols, packed.data};
        for (size_t m = 1; m <= 19; ++m) {
            const auto x = random.floats(m * cols);
            Aligned<QuantGroup> groups(quant_groups(m, cols));
            std::vector<float> out(m * rows, 0.5f);
            for (const bool add : {false, true}) {
                if (f.quantised) {
                    for (size_t r = 0; r < m; ++r) kernels.quantise(x.data() + r * cols, cols, {groups.data, cols}, r, 0);
                    kernels.matmul_quant(weights, 0, tiles, {groups.data, cols}, 0, m, out.data(), rows, add);
                } else {
                    kernels.matmul_float(weights, 0, tiles, x.data(), cols, m, out.data(), rows, add);
                }
                result.add(out.data(), out.size());
            }
        }
    }
}

void attention(const Kernels& kernels, CacheType type, Result& result) {
    Random random;
    for (const int d : {16, 64, 80, 128}) {
        const size_t head = static_cast<size_t>(d), item = type == CacheType::full ? 4 : 2, block = head * kBlockPositions * item;
        const size_t key_bytes = type == CacheType::int8 ? int8_key_scales(d) + static_cast<size_t>(padded_head(d)) * kBlockPositions : block;
        const size_t value_bytes = type == CacheType::int8 ? int8_value_scales() + head * kBlockPositions : block;
        Aligned<uint8_t> keys(kPieceBlocks * key_bytes), values(kPieceBlocks * value_bytes);
        const uint8_t *key_at[kPieceBlocks], *value_at[kPieceBlocks];
        const auto fill = [&](uint8_t* at, size_t scales, size_t bytes) {
            for (size_t i = 0; i < bytes; ++i) at[i] = random.byte();
            const bool halves = type != CacheType::full;
            for (size_t i = 0; i < (type == CacheType::int8 ? scales : bytes); i += halves ? 2 : 4) {
                const uint16_t half = random.half(type == CacheType::int8 ? 0.01f : 2.0f);
                const float whole = random.uniform();
                if (halves) std::memcpy(at + i, &half, 2);
                else std::memcpy(at + i, &whole, 4);
            }
        };
        for (int b = 0; b < kPieceBlocks; ++b) {
            key_at[b] = keys.data + static_cast<size_t>(b) * key_bytes;
            value_at[b] = values.data + static_cast<size_t>(b) * value_bytes;
            fill(keys.data + static_cast<size_t>(b) * key_bytes, int8_key_scales(d), key_bytes);
            fill(values.data + static_cast<size_t>(b) * value_bytes, int8_value_scales(), value_bytes);
        }
        alignas(64) float centres[kPieceBlocks][kMaxHeadDim];
        for (auto& centre : centres) {
            const auto values_of_one = random.floats(head, 2.0f);
            std::memcpy(centre, values_of_one.data(), head * sizeof(float));
        }
        const size_t padded = static_cast<size_t>(padded_head(d));
        for (int rows = 1; rows <= kAttentionRows; ++rows) {
            const auto n = static_cast<size_t>(rows);
            auto queries = random.floats(n * padded, 0.2f);
            Aligned<QuantGroup> groups(quant_groups(n, padded));
            std::vector<float> out(n * head), maxima(n), sums(n);
            std::vector<const float*> query_at;
            std::vector<const QuantGroup*> codes_at;
            std::vector<float*> out_at;
            std::vector<int> first, last;
            for (size_t r = 0; r < n; ++r) {
                kernels.quantise(queries.data() + r * padded, padded, {groups.data, padded}, r, 0);
                query_at.push_back(queries.data() + r * padded);
                codes_at.push_back(QuantRows{groups.data, padded}.at(r, 0));
                out_at.push_back(out.data() + r * head);
                first.push_back(r % 3 == 2 ? 70 + static_cast<int>(r) : 0);
                last.push_back(r % 2 ? kPiecePositions : 200 + static_cast<int>(r));
            }
            kernels.attend[static_cast<int>(type)]({query_at.data(), codes_at.data(), rows % 2 ? centres : nullptr, out_at.data(), maxima.data(), sums.data(), first.data(), last.data(), rows, d, key_at,
                                                    value_at, value_at});
            result.add(out.data(), out.size());
            result.add(maxima.data(), n);
            result.add(sums.data(), n);
            for (size_t r = 1; r < n; ++r) kernels.attention_fold(&maxima[0], &sums[0], out_at[0], maxima[r], sums[r], out_at[r], head);
            kernels.attention_finish(out_at[0], sums[0], out_at[0], head);
            result.add(out_at[0], head);
        }
    }
}

void between_products(const Kernels& kernels, Result& result) {
    Random random;
    for (const size_t n : {size_t{32}, size_t{96}, size_t{576}, size_t{2048}}) {
        for (const float scale : {1e-38f, 1e-6f, 1.0f, 100.0f, 1e34f}) {
            const auto x = random.floats(n, scale), weight = random.floats(n);
            std::vector<float> y(n);
            kernels.rms_norm(x.data(), weight.data(), y.data(), n, 1e-5f);
            result.add(y.data(), n);
            y = x;
            kernels.silu_mul(y.data(), weight.data(), n);
            result.add(y.data(), n);
            kernels.add(y.data(), x.data(), n - 3);
            result.add(y.data(), n);
            for (const size_t d : {size_t{16}, size_t{32}}) {
                y = x;
                kernels.rope(y.data(), weight.data(), weight.data() + d / 2, d, 0.25f);
                result.add(y.data(), n);
            }
            Aligned<QuantGroup> groups(quant_groups(1, n));
            kernels.quantise(x.data(), n, {groups.data, n}, 0, 0);
            for (size_t g = 0; g < n / kGroup; ++g) {
                const QuantGroup& group = groups.data[g * kQuantBlock];
                result.add(group.codes, kGroup);
                result.add(&group.scale, 2);
                result.add(&group.minus_sum, 3);
            }
            std::vector<uint16_t> halves(n);
            kernels.store_half(x.data(), halves.data(), n);
            result.add(halves.data(), n);
            std::vector<int8_t> codes(n);
            const float code_scale = kernels.store_codes(x.data(), codes.data(), n);
            result.add(codes.data(), n);
            result.add(&code_scale, 1);
            std::vector<float> maxima(n / kRowGroup);
            kernels.group_maxima(x.data(), maxima.size(), maxima.data());
            result.add(maxima.data(), maxima.size());
            const float total = kernels.exp_sum(x.data(), n, 30.0f);
            result.add(&total, 1);
        }
    }
}

}  // namespace

int main(int count, char** arguments) {
    struct Check { std::string name; std::function<void(const Kernels&, Result&)> run; };
    std::vector<Check> checks;
    const std::pair<const char*, BlockType> types[] = {{"F32", BlockType::F32}, {"F16", BlockType::F16}, {"BF16", BlockType::BF16}, {"Q4_0", BlockType::Q4_0},
        {"Q4_1", BlockType::Q4_1}, {"Q5_0", BlockType::Q5_0}, {"Q5_1", BlockType::Q5_1}, {"Q8_0", BlockType::Q8_0}, {"Q4_K", BlockType::Q4_K}, {"Q5_K", BlockType::Q5_K},
        {"Q6_K", BlockType::Q6_K}};
    for (const auto& [name, type] : types) checks.push_back({std::string("product ") + name, [type = type](const Kernels& k, Result& r) { products(k, type, r); }});
    const std::pair<const char*, CacheType> caches[] = {{"float16", CacheType::half}, {"float32", CacheType::full}, {"int8", CacheType::int8}};
    for (const auto& [name, type] : caches) checks.push_back({std::string("attention ") + name, [type = type](const Kernels& k, Result& r) { attention(k, type, r); }});
    checks.push_back({"norms, activations, rotations, codes", between_products});

    const auto sets = instruction_sets();
    std::fprintf(stderr, "kernels here:");
    for (const auto& set : sets) std::fprintf(stderr, " %s", set.c_str());
    std::fprintf(stderr, "\n");
    bool same = true;
    for (int i = 1; i < count; ++i) {
        if (std::find(sets.begin(), sets.end(), arguments[i]) != sets.end()) continue;
        std::fprintf(stderr, "the kernels %s do not run on this processor\n", arguments[i]);
        return 1;
    }
    for (const Check& check : checks) {
        Result expected;
        check.run(kernels_named(sets.front()), expected);
        std::printf("%-40s %10zu bytes  %016llx\n", check.name.c_str(), expected.bytes.size(), static_cast<unsigned long long>(expected.digest()));
        for (size_t i = 1; i < sets.size(); ++i) {
            Result result;
            check.run(kernels_named(sets[i]), result);
            if (result.bytes == expected.bytes) continue;
            same = false;
            const auto at = std::mismatch(result.bytes.begin(), result.bytes.end(), expected.bytes.begin(), expected.bytes.end()).first - result.bytes.begin();
            std::fprintf(stderr, "%s: %s differs from portable at byte %td\n", check.name.c_str(), sets[i].c_str(), at);
        }
    }
    if (same) std::fprintf(stderr, "all sets give the bits of the portable kernels\n");
    return same ? 0 : 1;
}
