#include "safetensors.hpp"

#include <algorithm>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "json_file.hpp"

namespace hbsdk {
namespace {

using Json = nlohmann::json;

constexpr std::size_t length_bytes = 8;
constexpr std::uint64_t longest_header = 100'000'000;  // as the safetensors library has it

struct Entry {
    TensorView tensor;
    std::uint64_t begin;
    std::uint64_t end;
};

[[noreturn]] void refuse(const std::string& reason) {
    throw std::invalid_argument(reason);
}

std::string_view header_of(std::string_view bytes) {
    if (bytes.size() < length_bytes) refuse("the header is too small");
    std::uint64_t length = 0;
    for (std::size_t i = length_bytes; i-- > 0;)
        length = (length << 8) | static_cast<unsigned char>(bytes[i]);
    if (length > longest_header) refuse("the header is too large");
    if (length > bytes.size() - length_bytes) refuse("the header is longer than the file");
    return bytes.substr(length_bytes, static_cast<std::size_t>(length));
}

// A whole number from 0, and no other number that has the same value.
std::uint64_t size_of(const Json& value) {
    if (!value.is_number_unsigned()) refuse("JSON: a size is no whole number from 0");
    return value.get<std::uint64_t>();
}

const Json& part(const Json& entry, const char* key, bool (Json::*is_right)() const noexcept) {
    const auto found = entry.find(key);
    if (found == entry.end() || !((*found).*is_right)())
        refuse(std::string("JSON: a tensor has no ") + key + ", or one of another kind");
    return *found;
}

Entry entry_of(const std::string& name, const Json& value) {
    if (!value.is_object()) refuse("JSON: a tensor is no object");
    Entry entry;
    entry.tensor.name = name;
    entry.tensor.dtype = part(value, "dtype", &Json::is_string).get<std::string>();
    for (const Json& size : part(value, "shape", &Json::is_array))
        entry.tensor.shape.push_back(size_of(size));
    const Json& offsets = part(value, "data_offsets", &Json::is_array);
    if (offsets.size() != 2) refuse("JSON: data_offsets are not two numbers");
    entry.begin = size_of(offsets[0]);
    entry.end = size_of(offsets[1]);
    return entry;
}

std::map<std::string, std::string> metadata_of(const Json& value) {
    if (value.is_null()) return {};
    if (!value.is_object()) refuse("JSON: the metadata is no object");
    for (const Json& text : value)
        if (!text.is_string()) refuse("JSON: the metadata holds another value than text");
    return value.get<std::map<std::string, std::string>>();
}

// Bytes of an element of the types that can be a subject; 0 for others, which are refused later.
std::uint64_t element_bytes(const std::string& dtype) {
    if (dtype == "F32") return 4;
    return dtype == "F16" || dtype == "BF16" ? 2 : 0;
}

void check_size(const Entry& entry) {
    const std::uint64_t bytes = element_bytes(entry.tensor.dtype);
    const std::uint64_t count = element_count(entry.tensor.shape);
    if (bytes == 0) return;
    if (count > UINT64_MAX / bytes) refuse("overflow in the shape of tensor " + entry.tensor.name);
    if (count * bytes != entry.end - entry.begin)
        refuse("the shape of tensor " + entry.tensor.name + " does not fit its bytes");
}

}  // namespace

std::uint64_t element_count(const std::vector<std::uint64_t>& shape) {
    std::uint64_t count = 1;
    for (const std::uint64_t size : shape) {
        if (size != 0 && count > UINT64_MAX / size) refuse("overflow in the shape of a tensor");
        count *= size;
    }
    return count;
}

SafetensorsView read_safetensors(std::string_view bytes) {
    const std::string_view text = header_of(bytes);
    SafetensorsView file;
    file.data = bytes.substr(length_bytes + text.size());
    std::vector<Entry> entries;
    const Json header = parse_object(text);
    for (const auto& [name, value] : header.items()) {
        if (name == "__metadata__") {
            file.metadata = metadata_of(value);
        } else {
            entries.push_back(entry_of(name, value));
        }
    }
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
        return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
    });
    std::uint64_t place = 0;
    for (Entry& entry : entries) {
        if (entry.begin != place || entry.end < entry.begin)
            refuse("invalid offset of tensor " + entry.tensor.name);
        if (entry.end > file.data.size()) refuse("the tensors are longer than the file");
        check_size(entry);
        entry.tensor.data = file.data.substr(static_cast<std::size_t>(entry.begin),
                                             static_cast<std::size_t>(entry.end - entry.begin));
        place = entry.end;
        file.tensors.push_back(std::move(entry.tensor));
    }
    if (place != file.data.size()) refuse("the file is not fully covered by its tensors");
    return file;
}

}  // namespace hbsdk
