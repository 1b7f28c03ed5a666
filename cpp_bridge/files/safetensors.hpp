// The container of subject files: a header in JSON, then the tensors' bytes without gaps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace hbsdk {

struct TensorView {
    std::string name;
    std::string dtype;  // as the header writes it, "F32"
    std::vector<std::uint64_t> shape;
    std::string_view data;
};

struct SafetensorsView {
    std::vector<TensorView> tensors;  // by their place
    std::map<std::string, std::string> metadata;
    std::string_view data;  // of all tensors
};

// Reads the bytes of a file, which have to outlive what is returned. Tensors cover the data without
// holes or overlap; sizes are compared with shapes for F32, F16 and BF16, whose values are used.
// Throws std::invalid_argument with the reason where it is no whole safetensors file.
SafetensorsView read_safetensors(std::string_view bytes);

// The number of elements of a shape. Throws std::invalid_argument where it overflows.
std::uint64_t element_count(const std::vector<std::uint64_t>& shape);

}  // namespace hbsdk
