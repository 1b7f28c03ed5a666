// Tokens that are found in a text before it is split into words, such as "<|endoftext|>".
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "unicode.hpp"

namespace hbsdk {

struct AddedToken {
    CodePoints content;
    std::uint32_t id = 0;
    bool single_word = false;  // only where no word goes on at its sides
    bool lstrip = false;       // takes the white space at its left with it
    bool rstrip = false;
};

class AddedTokens {
  public:
    // Part of a text: an added token, or the text between two.
    struct Part {
        std::u32string_view text;
        bool is_token;
        std::uint32_t id;  // of a token
    };

    void add(AddedToken token);

    // Splits a text at the tokens in it: the leftmost first, of those that begin alike the longest.
    std::vector<Part> split(std::u32string_view text) const;

  private:
    static constexpr std::size_t none = static_cast<std::size_t>(-1);

    struct Match {
        std::size_t token;
        std::size_t size;
    };
    Match longest_at(std::u32string_view rest) const;

    std::vector<AddedToken> tokens_;
    std::unordered_map<std::uint64_t, std::size_t> edges_;  // (node, character) -> node
    std::vector<std::size_t> ends_ = {none};                // node -> the token that ends there
};

}  // namespace hbsdk
