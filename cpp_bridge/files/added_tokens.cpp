#include "added_tokens.hpp"

#include <algorithm>
#include <utility>

namespace hbsdk {
namespace {

std::uint64_t edge(std::size_t node, char32_t letter) {
    return (static_cast<std::uint64_t>(node) << 32) | letter;
}

// Finds the ends of runs of white space; a run is walked once, however many tokens end in it.
class SpaceRun {
  public:
    explicit SpaceRun(std::u32string_view text) : text_(text) {}
    std::size_t end_from(std::size_t place) {
        if (place < begin_ || place >= end_) {
            begin_ = end_ = place;
            while (end_ < text_.size() && is_white_space(text_[end_])) ++end_;
        }
        return end_;
    }

  private:
    std::u32string_view text_;
    std::size_t begin_ = 0;
    std::size_t end_ = 0;
};

bool stands_alone(std::u32string_view text, std::size_t begin, std::size_t end) {
    return (begin == 0 || !is_rust_word(text[begin - 1])) &&
           (end == text.size() || !is_rust_word(text[end]));
}

}  // namespace

void AddedTokens::add(AddedToken token) {
    if (token.content.empty()) return;
    std::size_t node = 0;
    for (const char32_t letter : token.content) {
        const auto [found, is_new] = edges_.emplace(edge(node, letter), ends_.size());
        if (is_new) ends_.push_back(none);
        node = found->second;
    }
    if (ends_[node] == none) ends_[node] = tokens_.size();  // of equal ones the first counts
    tokens_.push_back(std::move(token));
}

AddedTokens::Match AddedTokens::longest_at(std::u32string_view rest) const {
    Match best = {none, 0};
    std::size_t node = 0;
    for (std::size_t size = 0; size < rest.size(); ++size) {
        const auto found = edges_.find(edge(node, rest[size]));
        if (found == edges_.end()) break;
        node = found->second;
        if (ends_[node] != none) best = {ends_[node], size + 1};
    }
    return best;
}

std::vector<AddedTokens::Part> AddedTokens::split(std::u32string_view text) const {
    std::vector<Part> parts;
    SpaceRun spaces(text);
    std::size_t done = 0;  // the text before it is in `parts`
    for (std::size_t place = 0; place < text.size();) {
        const Match match = longest_at(text.substr(place));
        if (match.token == none) {
            ++place;
            continue;
        }
        const AddedToken& token = tokens_[match.token];
        std::size_t begin = place, end = place + match.size;
        place = end;
        if (token.single_word && !stands_alone(text, begin, end)) continue;
        if (token.lstrip) {
            while (begin > done && is_white_space(text[begin - 1])) --begin;
            begin = std::max(begin, done);
        }
        if (token.rstrip) end = spaces.end_from(end);
        if (done < begin) parts.push_back({text.substr(done, begin - done), false, 0});
        parts.push_back({text.substr(begin, end - begin), true, token.id});
        done = end;
    }
    if (done != text.size()) parts.push_back({text.substr(done), false, 0});
    return parts;
}

}  // namespace hbsdk
