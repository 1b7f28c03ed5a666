#include "tensor.hpp"

#include <onnxruntime_float16.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "error.hpp"

namespace hbsdk {

namespace {

constexpr std::size_t most_values = PTRDIFF_MAX / 8;  // of the widest type

struct Half : onnxruntime_float16::Float16Impl<Half> {
    static std::uint16_t bits(float value) { return ToUint16Impl(value); }
    static float value(std::uint16_t bits) {
        Half half;
        half.val = bits;
        return half.ToFloatImpl();
    }
};

// Room for `count` values, which the shape must have.
Tensor empty_tensor(std::size_t count, Shape shape, ElementType type) {
    if (count != count_of(shape)) {
        throw Error(Status::internal, "values of a tensor", shown(shape), std::to_string(count));
    }
    Tensor tensor{type, std::move(shape), {}};
    tensor.bytes.resize(count * element_bytes(type));
    return tensor;
}

// `values` are of the type already.
template <typename Value>
Tensor tensor_of(const std::vector<Value>& values, Shape shape, ElementType type) {
    Tensor tensor = empty_tensor(values.size(), std::move(shape), type);
    if (!values.empty()) std::memcpy(tensor.bytes.data(), values.data(), tensor.bytes.size());
    return tensor;
}

}  // namespace

ElementType element_type(const std::string& name) {
    if (name == "float32") return ElementType::float32;
    if (name == "float16") return ElementType::float16;
    if (name == "int64") return ElementType::int64;
    throw Error(Status::damaged, "type of a tensor in engines.json", "float32, float16 or int64",
                name);
}

std::size_t element_bytes(ElementType type) {
    return type == ElementType::int64 ? 8 : type == ElementType::float16 ? 2 : 4;
}

std::size_t count_of(const Shape& shape) {
    std::size_t count = 1;
    for (const std::int64_t size : shape) {
        if (size < 0) throw Error(Status::internal, "shape of a tensor", "sizes", shown(shape));
        const auto factor = static_cast<std::size_t>(size);
        if (factor != 0 && count > most_values / factor) {
            throw Error(Status::damaged, "shape of a tensor", "one that memory can hold",
                        shown(shape), build_again);
        }
        count *= factor;
    }
    return count;
}

void check_shape(const std::string& what, const Tensor& tensor, const Shape& expected) {
    if (tensor.shape == expected) return;
    throw Error(Status::mismatch, "shape of " + what, shown(expected), shown(tensor.shape),
                build_again);
}

std::string shown(const Shape& shape) {
    std::string text;
    for (const std::int64_t size : shape) {
        text += (text.empty() ? "" : " x ") + std::to_string(size);
    }
    return text.empty() ? "one number" : text;
}

Tensor float_tensor(const std::vector<float>& values, Shape shape, ElementType type) {
    if (type == ElementType::float32) return tensor_of(values, std::move(shape), type);
    if (type == ElementType::int64) {
        throw Error(Status::internal, "type of a tensor", "floats", "whole numbers");
    }
    Tensor tensor = empty_tensor(values.size(), std::move(shape), type);
    for (std::size_t i = 0; i < values.size(); ++i) {
        const std::uint16_t bits = Half::bits(values[i]);
        std::memcpy(&tensor.bytes[2 * i], &bits, 2);
    }
    return tensor;
}

Tensor int64_tensor(const std::vector<std::int64_t>& values, Shape shape) {
    return tensor_of(values, std::move(shape), ElementType::int64);
}

std::vector<float> floats_of(const Tensor& tensor) {
    if (tensor.type == ElementType::int64) {
        throw Error(Status::internal, "a tensor", "floats", "whole numbers");
    }
    std::vector<float> values(count_of(tensor.shape));
    if (values.empty()) return values;
    if (tensor.type == ElementType::float32) {
        std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
        return values;
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
        std::uint16_t bits = 0;
        std::memcpy(&bits, &tensor.bytes[2 * i], 2);
        values[i] = Half::value(bits);
    }
    return values;
}

Tensor cast(Tensor tensor, ElementType type) {
    if (tensor.type == type) return tensor;
    return float_tensor(floats_of(tensor), tensor.shape, type);
}

Tensor concatenated(const std::vector<Tensor>& parts) {
    Tensor whole = parts.at(0);
    for (std::size_t i = 1; i < parts.size(); ++i) {
        const Shape& shape = parts[i].shape;
        if (parts[i].type != whole.type || shape.size() != whole.shape.size() || shape.empty() ||
            !std::equal(shape.begin() + 1, shape.end(), whole.shape.begin() + 1)) {
            throw Error(Status::internal, "parts of a tensor", shown(whole.shape), shown(shape));
        }
        whole.shape.at(0) += parts[i].shape.at(0);
        whole.bytes.insert(whole.bytes.end(), parts[i].bytes.begin(), parts[i].bytes.end());
    }
    return whole;
}

Tensor rows_of(const Tensor& tensor, std::int64_t begin, std::int64_t end) {
    const auto row = static_cast<std::ptrdiff_t>(tensor.bytes.size()) / tensor.shape.at(0);
    Tensor rows{tensor.type, tensor.shape, {}};
    rows.shape[0] = end - begin;
    rows.bytes.assign(tensor.bytes.begin() + begin * row, tensor.bytes.begin() + end * row);
    return rows;
}

Tensor repeated(const Tensor& tensor, int copies) {
    std::vector<Tensor> parts;
    for (std::int64_t row = 0; row < tensor.shape.at(0); ++row) {
        for (int copy = 0; copy < copies; ++copy) parts.push_back(rows_of(tensor, row, row + 1));
    }
    return concatenated(parts);
}

}  // namespace hbsdk
