#include "prompt.hpp"

#include <algorithm>
#include <optional>
#include <set>

#include "error.hpp"
#include "plain_text.hpp"
#include "subject_file.hpp"
#include "unicode.hpp"

namespace hbsdk {
namespace {

// Text, and the placeholder after it; none after the last.
struct Piece {
    std::u32string_view text;
    std::optional<std::string> placeholder;
};

CodePoints code_points(std::string_view prompt) {
    auto text = decode_utf8(prompt);
    if (!text) {
        throw Error(Status::bad_prompt, "prompt", "Unicode text", in_quotes(prompt.substr(0, 100)),
                    "Encode it anew as UTF-8");
    }
    return *std::move(text);
}

// The size of the placeholder at a place, 0 where there is none: "<name>" without white space, "<",
// ">" and "|" in it, or S* that no word goes before.
std::size_t placeholder_size(std::u32string_view text, std::size_t place) {
    if (text[place] == U'<') {
        std::size_t end = place + 1;
        while (end < text.size() && !is_python_space(text[end]) &&
               std::u32string_view(U"<>|").find(text[end]) == std::u32string_view::npos)
            ++end;
        return end < text.size() && text[end] == U'>' && end > place + 1 ? end + 1 - place : 0;
    }
    const bool is_star = (text[place] == U'S' || text[place] == U's') && place + 1 < text.size() &&
                         text[place + 1] == U'*';
    return is_star && (place == 0 || !is_python_word(text[place - 1])) ? 2 : 0;
}

std::vector<Piece> split(std::u32string_view prompt) {
    std::vector<Piece> pieces;
    std::size_t start = 0;
    for (std::size_t place = 0; place < prompt.size();) {
        const std::size_t size = placeholder_size(prompt, place);
        if (size > 0) {
            pieces.push_back({stripped(prompt.substr(start, place - start)),
                              encode_utf8(lower_case(prompt.substr(place, size)))});
            start = place + size;
        }
        place += std::max<std::size_t>(size, 1);
    }
    pieces.push_back({stripped(prompt.substr(start)), std::nullopt});
    return pieces;
}

int words_of(const std::string& placeholder, const std::map<std::string, int>& words) {
    const auto found = words.find(placeholder);
    if (found == words.end()) {
        throw Error(Status::bad_prompt, "placeholder " + in_quotes(placeholder) + " in the prompt",
                    "one of the subjects given (" +
                        (words.empty() ? "no subject" : joined_keys(words)) + ")",
                    placeholder, "Pass the subject, or name it by \"<name>\"");
    }
    return found->second;
}

void check_counts(const std::map<std::string, int>& words) {
    for (const auto& [name, count] : words) {
        if (count >= 1 && count <= max_words) continue;
        throw Error(Status::invalid_argument, "words of " + in_quotes(name), "1 to 75",
                    std::to_string(count));
    }
}

// Refuses a prompt whose end, with a subject's words in it, the text encoder does not read.
void check_length(const Prompt& prompt, int room) {
    for (const auto& [name, runs] : prompt.places) {
        for (const auto& run : runs) {
            if (run.back() <= room) continue;
            throw Error(Status::bad_prompt,
                        "prompt of " + std::to_string(prompt.tokens) + " tokens",
                        "the words of " + in_quotes(name) + " within the first " +
                            std::to_string(room) + " tokens",
                        "the placeholder after " + std::to_string(room) +
                            " tokens, where the text encoder stops reading",
                        "Shorten the prompt or move the subject towards its beginning");
        }
    }
}

}  // namespace

std::vector<std::string> placeholders(std::string_view prompt) {
    std::vector<std::string> found;
    const CodePoints text = code_points(prompt);
    for (Piece& piece : split(text))
        if (piece.placeholder) found.push_back(*std::move(piece.placeholder));
    return found;
}

std::map<std::string, std::size_t> name_subjects(std::string_view prompt,
                                                 const std::vector<std::string>& names) {
    std::map<std::string, std::size_t> named;
    for (std::size_t i = 0; i < names.size(); ++i) {
        if (named.emplace("<" + names[i] + ">", i).second) continue;
        throw Error(Status::bad_prompt, "subjects", "different names", names[i] + " twice",
                    "Rename one");
    }
    const auto found = placeholders(prompt);
    const std::set<std::string> used(found.begin(), found.end());
    const bool has_star = used.count("s*") != 0;
    if (has_star && names.size() > 1) {
        throw Error(Status::bad_prompt, "S* in the prompt", "one of " + joined_keys(named),
                    "S* with " + std::to_string(names.size()) + " subjects",
                    "Name each subject in the prompt");
    }
    for (const std::string& name : names) {
        const std::string placeholder = "<" + name + ">";
        if (used.count(placeholder) != 0 || has_star) continue;
        throw Error(
            Status::bad_prompt, "prompt " + in_quotes(prompt),
            "S* or " + placeholder + " where the subject should be", "no placeholder of it",
            "Write for example \"S* on the beach\" or \"" + placeholder + " on the beach\"");
    }
    if (names.size() == 1) named["s*"] = 0;
    return named;
}

Prompt tokenize_prompt(const Tokenizer& tokenizer, std::string_view prompt,
                       const std::map<std::string, int>& words) {
    check_counts(words);
    Prompt result;
    for (const auto& [name, count] : words) result.places[name];
    std::vector<std::int64_t> body;
    const CodePoints text = code_points(prompt);
    for (const Piece& piece : split(text)) {
        const auto ids = tokenizer.encode(encode_utf8(piece.text));
        body.insert(body.end(), ids.begin(), ids.end());
        if (!piece.placeholder) continue;
        const int count = words_of(*piece.placeholder, words);
        std::vector<int> run;
        for (int i = 0; i < count; ++i) run.push_back(1 + static_cast<int>(body.size()) + i);
        result.places[*piece.placeholder].push_back(std::move(run));
        body.insert(body.end(), static_cast<std::size_t>(count),
                    tokenizer.eos);  // its embedding is replaced
    }
    const int room = tokenizer.max_length - 2;
    result.tokens = static_cast<int>(body.size());
    result.truncated = result.tokens > room;
    if (result.truncated) check_length(result, room);
    body.resize(static_cast<std::size_t>(std::min(result.tokens, room)));
    result.ids.push_back(tokenizer.bos);
    result.ids.insert(result.ids.end(), body.begin(), body.end());
    result.ids.push_back(tokenizer.eos);
    result.ids.resize(static_cast<std::size_t>(tokenizer.max_length), tokenizer.pad);
    return result;
}

void check_has_text(std::string_view prompt) {
    if (!stripped(code_points(prompt)).empty()) return;
    throw Error(Status::bad_prompt, "prompt", "some text", "nothing",
                "Describe it: \"a photo of S*\"");
}

}  // namespace hbsdk
