// Byte-pair encoding of one word over its bytes, the last of which carries "</w>".
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace hbsdk {

class BytePairs {
  public:
    using Vocabulary = std::unordered_map<std::string, std::uint32_t>;

    // Throws std::invalid_argument with the reason where a merge is of, or makes, no token, or
    // where `unknown`, which stands for a byte that is no token, is none itself.
    BytePairs(const Vocabulary& vocabulary,
              const std::vector<std::pair<std::string, std::string>>& merges,
              const std::string& unknown);

    // Appends the ids of a word, in time n log n whatever the word.
    void encode(std::string_view word, std::vector<std::int64_t>& ids) const;

  private:
    struct Merged {
        std::uint32_t rank;
        std::uint32_t id;
    };
    struct Symbol;
    struct Candidate;

    const Merged* find(std::uint32_t left, std::uint32_t right) const;
    void merge(std::vector<Symbol>& symbols) const;

    std::array<std::uint32_t, 256> inner_;  // the id of a byte
    std::array<std::uint32_t, 256> last_;   // of a byte at a word's end
    std::unordered_map<std::uint64_t, Merged> merges_;
};

}  // namespace hbsdk
