#include "engine_agreement.hpp"

#include <string>
#include <vector>

#include "error.hpp"
#include "plain_text.hpp"

namespace hbsdk {

namespace {

struct Part {
    const char* name;
    bool is_float32;  // always; else as the recipe says
    std::size_t rank;
};

// What the loops bind, in this order; an engine that keeps deep features gives those after them.
const std::vector<Part> step_inputs = {
    {"sample", true, 4},      {"timestep", true, 0}, {"encoder_hidden_states", false, 3},
    {"previous_x0", true, 4}, {"guidance", true, 2}, {"coefficients", true, 1},
};
const std::vector<Part> step_outputs = {{"next_sample", true, 4}, {"x0", true, 4}};

std::string shown(const std::string& name, const std::string& type, std::size_t rank) {
    return name + " (" + type + ", rank " + std::to_string(rank) + ")";
}

void check_parts(const std::string& what, const std::vector<Part>& parts,
                 const std::vector<TensorSpec>& tensors, bool may_have_more) {
    bool fits = parts.size() == tensors.size() || (may_have_more && parts.size() < tensors.size());
    for (std::size_t i = 0; fits && i < parts.size(); ++i) {
        const std::string& type = tensors[i].dtype;
        fits = tensors[i].name == parts[i].name && tensors[i].shape.size() == parts[i].rank &&
               (type == "float32" || (type == "float16" && !parts[i].is_float32));
    }
    if (fits) return;
    throw Error(Status::mismatch, what + " of engine denoise_step in engines.json",
                joined(parts,
                       [](const Part& part) {
                           return shown(part.name, part.is_float32 ? "float32" : "floats",
                                        part.rank);
                       }),
                joined(tensors,
                       [](const TensorSpec& tensor) {
                           return shown(tensor.name, tensor.dtype, tensor.shape.size());
                       }),
                build_again);
}

bool is_size(const Dim& dim, std::int64_t size) {
    return dim.axis.empty() && dim.factor == size;
}

void check_embedding(const TensorSpec& tensor, int tokens, int width) {
    const std::vector<Dim>& shape = tensor.shape;
    if (shape.size() == 3 && is_size(shape[1], tokens) && is_size(shape[2], width)) return;
    throw Error(Status::mismatch, tensor.name + " of engine token_embedding in engines.json",
                "texts of " + std::to_string(tokens) + " tokens by " + std::to_string(width) +
                    " numbers, as prompt_tokenizer.json and bridge.json say",
                joined(shape,
                       [](const Dim& dim) {
                           return dim.axis.empty() ? std::to_string(dim.factor) : dim.axis;
                       }),
                build_again);
}

}  // namespace

void check_agreement(const EngineSpecs& specs, const BridgeFile& bridge, int tokens) {
    if (const auto step = specs.find("denoise_step"); step != specs.end()) {
        check_parts("inputs", step_inputs, step->second.inputs, false);
        check_parts("outputs", step_outputs, step->second.outputs, true);
    }
    if (const auto table = specs.find("token_embedding"); table != specs.end()) {
        check_embedding(table->second.outputs.at(0), tokens, bridge.word_dim);
    }
}

}  // namespace hbsdk
