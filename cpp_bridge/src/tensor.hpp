// Arrays of the host: what goes into a network and comes out of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace hbsdk {

enum class ElementType { float32, float16, int64 };

using Shape = std::vector<std::int64_t>;

struct Tensor {
    ElementType type = ElementType::float32;
    Shape shape;
    std::vector<std::byte> bytes;  // the values in C order
};

// As engines.json names a type. Throws Error (damaged) for another name.
ElementType element_type(const std::string& name);

std::size_t element_bytes(ElementType type);

// The number of values. Throws Error (internal) for a dimension below 0, (damaged) where there are
// more than memory can hold.
std::size_t count_of(const Shape& shape);

// Throws Error (mismatch) where a network gave an array of another shape than expected.
void check_shape(const std::string& what, const Tensor& tensor, const Shape& expected);

// "2 x 3 x 64 x 64".
std::string shown(const Shape& shape);

// Returns values as a tensor of float32 or float16, rounded to nearest. Throws Error (internal) if
// they are not as many as the shape has.
Tensor float_tensor(const std::vector<float>& values, Shape shape,
                    ElementType type = ElementType::float32);

Tensor int64_tensor(const std::vector<std::int64_t>& values, Shape shape);

// The values of a tensor of floats.
std::vector<float> floats_of(const Tensor& tensor);

// The same values in another type of floats.
Tensor cast(Tensor tensor, ElementType type);

// Puts tensors one after another along the first dimension. Throws Error (internal) where they
// differ in anything else.
Tensor concatenated(const std::vector<Tensor>& parts);

// The rows [begin, end) of the first dimension.
Tensor rows_of(const Tensor& tensor, std::int64_t begin, std::int64_t end);

// Each row of the first dimension `copies` times in a row.
Tensor repeated(const Tensor& tensor, int copies);

}  // namespace hbsdk
