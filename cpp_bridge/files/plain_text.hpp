// What C++17's texts cannot do yet: a beginning, and lists for error messages.
#pragma once

#include <string>
#include <string_view>

namespace hbsdk {

constexpr bool begins_with(std::string_view text, std::string_view beginning) {
    return text.substr(0, beginning.size()) == beginning;
}

constexpr bool begins_with(std::u32string_view text, std::u32string_view beginning) {
    return text.substr(0, beginning.size()) == beginning;
}

// "a, b, c" of a range, where `text_of` makes each a text.
template <typename Range, typename TextOf>
std::string joined(const Range& range, const TextOf& text_of) {
    std::string list;
    for (const auto& one : range) {
        if (!list.empty()) list += ", ";
        list += text_of(one);
    }
    return list;
}

template <typename Range>
std::string joined(const Range& texts) {
    return joined(
        texts, [](const auto& text) -> const auto& { return text; });
}

// The keys of a map.
template <typename Map>
std::string joined_keys(const Map& map) {
    return joined(
        map, [](const auto& item) -> const auto& { return item.first; });
}

}  // namespace hbsdk
