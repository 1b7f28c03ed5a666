#include "error.hpp"
#include "generate.hpp"

namespace hbsdk {

std::vector<std::pair<std::int64_t, std::int64_t>> batches(const EngineSpec& spec,
                                                           const std::string& axis,
                                                           std::int64_t count) {
    const TensorSpec& first = spec.inputs.at(0);
    const Dim rows = first.shape.empty() ? Dim{0, ""} : first.shape[0];
    const bool is_fixed = rows.axis.empty();
    if (is_fixed ? rows.factor < 1 : rows.axis != axis || rows.factor != 1) {
        throw Error(Status::mismatch, "rows of " + first.name + " of engine " + spec.name,
                    axis + ", or a number above 0",
                    is_fixed ? std::to_string(rows.factor) : rows.axis, build_again);
    }
    const std::int64_t least = is_fixed ? rows.factor : spec.axes.at(axis).min;
    const std::int64_t most = is_fixed ? rows.factor : spec.axes.at(axis).max;
    const std::int64_t number = (count + most - 1) / most;
    std::vector<std::pair<std::int64_t, std::int64_t>> slices;
    for (std::int64_t index = 0; index < number; ++index) {
        const std::int64_t begin = count * index / number, end = count * (index + 1) / number;
        if (end - begin < least) {
            throw Error(Status::invalid_argument, axis + " of engine " + spec.name,
                        "at least " + std::to_string(least) + " at once",
                        std::to_string(end - begin), "Build engines with a recipe that allows it");
        }
        slices.emplace_back(begin, end);
    }
    return slices;
}

Tensor guidance_matrix(int pictures, float scale, bool guided) {
    const auto count = static_cast<std::size_t>(pictures);
    const std::size_t rows = guided ? 2 * count : count;
    std::vector<float> matrix(rows * rows, 0.0F);
    for (std::size_t row = 0; row < rows; ++row) {
        const std::size_t picture = row % count;
        matrix[row * rows + picture] = guided ? 1.0F - scale : 1.0F;
        if (guided) matrix[row * rows + count + picture] = scale;
    }
    const auto side = static_cast<std::int64_t>(rows);
    return float_tensor(matrix, {side, side});
}

}  // namespace hbsdk
