#include "byte_pairs.hpp"

#include <cstddef>
#include <queue>
#include <stdexcept>

#include "unicode.hpp"

namespace hbsdk {
namespace {

constexpr const char* suffix = "</w>";
constexpr std::size_t none = static_cast<std::size_t>(-1);

// The character by which vocabularies write a byte: printable ones of Latin-1 for themselves, the
// others from U+0100 on, as GPT-2 has it.
std::array<std::string, 256> byte_letters() {
    std::array<std::string, 256> letters;
    char32_t next = 256;
    for (char32_t byte = 0; byte < 256; ++byte) {
        const bool is_printable =
            (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
        append_utf8(is_printable ? byte : next++, letters[byte]);
    }
    return letters;
}

std::uint64_t key_of(std::uint32_t left, std::uint32_t right) {
    return (static_cast<std::uint64_t>(left) << 32) | right;
}

std::uint32_t id_of(const BytePairs::Vocabulary& vocabulary, const std::string& token) {
    const auto found = vocabulary.find(token);
    if (found == vocabulary.end())
        throw std::invalid_argument("token '" + token + "' is not in the vocabulary");
    return found->second;
}

}  // namespace

// A part of the word that is one token, in a list linked by places; `is_gone` when merged into its
// left.
struct BytePairs::Symbol {
    std::uint32_t id;
    std::size_t previous;
    std::size_t next;
    bool is_gone;
};

// Two neighbours that may be merged: the lowest rank first, then the leftmost.
struct BytePairs::Candidate {
    std::uint32_t rank;
    std::uint32_t id;
    std::size_t place;
    bool operator<(const Candidate& other) const {  // std::priority_queue takes the greatest
        return rank != other.rank ? rank > other.rank : place > other.place;
    }
};

BytePairs::BytePairs(const Vocabulary& vocabulary,
                     const std::vector<std::pair<std::string, std::string>>& merges,
                     const std::string& unknown) {
    const std::uint32_t unknown_id = id_of(vocabulary, unknown);
    const auto letters = byte_letters();
    for (std::size_t byte = 0; byte < letters.size(); ++byte) {
        const auto inner = vocabulary.find(letters[byte]),
                   last = vocabulary.find(letters[byte] + suffix);
        inner_[byte] = inner == vocabulary.end() ? unknown_id : inner->second;
        last_[byte] = last == vocabulary.end() ? unknown_id : last->second;
    }
    merges_.reserve(merges.size());
    std::uint32_t rank = 0;
    for (const auto& [left, right] : merges) {
        const std::uint64_t key = key_of(id_of(vocabulary, left), id_of(vocabulary, right));
        merges_[key] = {rank++, id_of(vocabulary, left + right)};  // of equal ones the last counts
    }
}

const BytePairs::Merged* BytePairs::find(std::uint32_t left, std::uint32_t right) const {
    const auto found = merges_.find(key_of(left, right));
    return found == merges_.end() ? nullptr : &found->second;
}

void BytePairs::encode(std::string_view word, std::vector<std::int64_t>& ids) const {
    std::vector<Symbol> symbols;
    symbols.reserve(word.size());
    for (std::size_t i = 0; i < word.size(); ++i) {
        const bool is_last = i + 1 == word.size();
        const auto byte = static_cast<unsigned char>(word[i]);
        symbols.push_back({is_last ? last_[byte] : inner_[byte], i == 0 ? none : i - 1,
                           is_last ? none : i + 1, false});
    }
    merge(symbols);
    for (const Symbol& symbol : symbols)
        if (!symbol.is_gone) ids.push_back(symbol.id);
}

void BytePairs::merge(std::vector<Symbol>& symbols) const {
    std::priority_queue<Candidate> queue;
    const auto offer = [&](std::size_t left) {
        const Merged* merged = find(symbols[left].id, symbols[symbols[left].next].id);
        if (merged != nullptr) queue.push({merged->rank, merged->id, left});
    };
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) offer(i);
    while (!queue.empty()) {
        const Candidate best = queue.top();
        queue.pop();
        Symbol& left = symbols[best.place];
        if (left.is_gone || left.next == none) continue;
        Symbol& right = symbols[left.next];
        const Merged* merged = find(left.id, right.id);
        if (merged == nullptr || merged->id != best.id) continue;  // a neighbour has changed since
        left.id = best.id;
        right.is_gone = true;
        left.next = right.next;
        if (left.next != none) symbols[left.next].previous = best.place;
        if (left.previous != none) offer(left.previous);
        if (left.next != none) offer(best.place);
    }
}

}  // namespace hbsdk
