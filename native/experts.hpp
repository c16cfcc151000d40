// Mixtures of experts: which experts a row goes to, and the rows of each expert side by side.
//
// Shape legend: m rows, E experts, k of them for a row, H hidden size, I size of an expert.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace draftsmith {

struct ExpertsShape {
    size_t count = 0, per_token = 0, intermediate = 0;  // E, k, I; count 0: every layer is dense
    bool normalise = true;
};

// The rows of a pass, shared out. A row has k places; the places of one expert lie together, from a multiple of eight on (as
// products of quantised rows want them), in the order of the rows.
class Routing {
public:
    Routing(const ExpertsShape& shape, size_t max_rows);

    // From the router's logits [m][E]: the k largest of each row (of equals the lower expert), weighted by softmax.
    void share_out(const float* logits, size_t m);

    struct Group { size_t expert, first, count; };  // places first .. first + count - 1

    const std::vector<Group>& groups() const { return groups_; }
    size_t place(size_t row, size_t rank) const { return places_[row * shape_.per_token + rank]; }
    float weight(size_t row, size_t rank) const { return weights_[row * shape_.per_token + rank]; }
    size_t num_places() const { return num_places_; }  // gaps included
    size_t per_token() const { return shape_.per_token; }

    // The most places that so many rows can take.
    static size_t most_places(const ExpertsShape& shape, size_t max_rows);

private:
    ExpertsShape shape_;
    size_t num_places_ = 0;
    std::vector<Group> groups_;
    std::vector<size_t> chosen_, places_, counts_, next_;  // [m][k], [m][k], [E], [E]
    std::vector<float> weights_;                           // [m][k]
};

}  // namespace draftsmith
