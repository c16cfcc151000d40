// A decoder stack: runs of tokens in, rows of logits out.
//
// Shape legend: m rows (tokens of all runs of a step), H hidden size, Q = heads x D, KV = kv_heads x D, I intermediate size.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cache.hpp"
#include "choose.hpp"
#include "experts.hpp"
#include "kernels.hpp"
#include "profile.hpp"
#include "threads.hpp"

namespace draftsmith {

constexpr size_t kMaxRows = 256;  // rows of one pass; longer prompts take several, with the same results

struct Vector {  // a norm's weight or a bias; may be absent
    const float* data = nullptr;
    explicit operator bool() const { return data != nullptr; }
};

struct Expert { Weights gate, up, down; };

struct Layer {
    Vector attention_norm, mlp_norm, q_norm, k_norm;
    Vector q_bias, k_bias, v_bias, o_bias, gate_bias, up_bias, down_bias;
    Weights q, k, v, o, gate, up, down;
    Weights router;               // of a sparse layer, which has experts in place of gate, up and down
    std::vector<Expert> experts;
    size_t window = 0;  // positions that a token sees, itself included; 0: all
};

struct ModelShape {
    size_t vocab = 0, hidden = 0, intermediate = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, max_context = 0;
    float norm_eps = 0;
    float rope_scaling = 1;         // multiplies cos and sin
    CacheType cache_type = CacheType::half;
    ExpertsShape experts;
};

struct ModelWeights {
    Weights embedding, head;
    Vector final_norm;
    std::vector<Layer> layers;
    std::vector<float> inverse_frequencies;  // [D / 2]
};

struct TokenRun {
    KVCache* cache;
    const int32_t* tokens;
    size_t count;
    size_t num_logits;  // rows wanted, of the last tokens
};

// A draft to be written: what is read first, and how each token is chosen.
struct DraftRun {
    KVCache* cache;
    std::vector<int32_t> unread;  // at least one
    size_t max_tokens;            // at least one
    Sampling sampling;            // its position is that of the first draft token
    std::vector<int32_t> drawn;   // the draft
};

class Model {
public:
    Model(const ModelShape& shape, ModelWeights weights, const Kernels& kernels, std::shared_ptr<ThreadTeam> team);
    ~Model();

    const ModelShape& shape() const { return shape_; }
    const std::shared_ptr<BlockPool>& cache_blocks() const { return cache_blocks_; }

    // Append every run to its cache; `logits` gets the wanted rows [sum of num_logits][width], run after run, each of the
    // first `width` entries of the vocabulary. Throws std::invalid_argument or std::bad_alloc with no cache changed.
    void forward(const std::vector<TokenRun>& runs, size_t width, float* logits);

    // Write drafts side by side: read what each run has not read, draw a token from the first `width` entries of its logits, and
    // go on from that as long as there is room and `wants_more(run, confidence of the token just drawn)` says so. The last
    // token drawn is not read. `names` [width] or null: see Chooser. Throws what forward and choose throw.
    void draft(std::vector<DraftRun>& runs, size_t width, const int32_t* names, const std::function<bool(size_t, float)>& wants_more);

    // Seconds that the phases have taken since profiling was last turned on; all 0 when it is off.
    void set_profiling(bool on);
    Profile profile();

private:
    struct Row { size_t segment; size_t position; int32_t token; };
    struct Segment { KVCache* cache; size_t first_row, count; };  // consecutive tokens of one sequence in a pass
    struct Pass { std::vector<Segment> segments; std::vector<Row> rows; std::vector<size_t> wanted; };
    // How attention is shared out: by rows, each over its whole context (run = 0), or, where that gives too few units, by runs
    // of pieces of the context.
    struct AttentionPlan { size_t rows_per_unit, units, run; };
    struct AttentionUnit { const Segment* segment; size_t kv_head, first, count, first_piece, last_piece, slot, counter; };
    struct RowWindow { const float* query; size_t row, head, from, to; };
    struct Input { float* rows; size_t stride; QuantRows quantised; };  // of a product: which one is read depends on the weights
    struct Scratch;

    void check(const std::vector<TokenRun>& runs, size_t width) const;
    void grow_rope_tables(size_t positions);
    void grow_block_tables(size_t blocks);
    void run_pass(const Pass& pass, size_t width, float* logits);

    // The parts of a step, each executed by every worker of the team.
    void embed(Worker&, const Pass&);
    Input norm_rows(Worker&, size_t m, const Vector& norm, bool quantise);
    void project(Worker&, size_t m, const Layer&, const Input&);
    void rotate_and_store(Worker&, const Pass&, const Layer&, size_t layer_index);
    bool centred(const Layer& layer) const { return shape_.cache_type == CacheType::int8 && layer.k_bias && !layer.k_norm; }
    void centre_of(const Layer&, size_t kv_head, size_t block, float* centre) const;
    void rotate_head(const Pass&, const Layer&, size_t layer_index, size_t row, size_t kv_head);
    AttentionPlan plan_attention(const Pass&);
    void attend(Worker&, const Pass&, const AttentionPlan&, const Layer&, size_t layer_index);
    AttentionUnit find_unit(const Pass&, const AttentionPlan&, size_t index) const;
    RowWindow row_window(const Pass&, const Layer&, const AttentionUnit&, size_t i) const;
    size_t attend_piece(const Pass&, const Layer&, size_t layer_index, const AttentionUnit&, size_t piece, size_t begin, size_t end, float* const* out, float* maxima,
                        float* sums, size_t* who);
    void attend_whole(const Pass&, const Layer&, size_t layer_index, const AttentionUnit&);
    void finish_row(const Layer&, const RowWindow&, const float* vector, float sum);
    void attend_part(const Pass&, const Layer&, size_t layer_index, const AttentionUnit&);
    void output_projection(Worker&, size_t m, const Layer&);
    void gate_and_up(Worker&, size_t m, const Layer&, const Input&);
    void down(Worker&, size_t m, const Layer&);
    void mix_experts(Worker&, size_t m, const Layer&, const Input&);
    void head(Worker&, const Pass&, size_t width, float* logits);
    void multiply(const Weights&, size_t first_tile, size_t last_tile, const Input&, size_t m, float* out, size_t out_stride, bool add, const Vector& bias);

    ModelShape shape_;
    ModelWeights weights_;
    const Kernels& kernels_;
    std::shared_ptr<ThreadTeam> team_;
    std::shared_ptr<BlockPool> cache_blocks_;
    std::mutex one_forward_;
    std::unique_ptr<Scratch> scratch_;
    std::unique_ptr<Profile> profile_;  // null when nobody wants to know
    std::mutex one_draft_;
    Chooser chooser_;
    std::vector<float> draft_logits_;
    std::vector<float> cos_, sin_;  // [position][D / 2]
    std::vector<float> block_cos_, block_sin_;  // [block of the cache][D / 2]: their means
};

}  // namespace draftsmith
