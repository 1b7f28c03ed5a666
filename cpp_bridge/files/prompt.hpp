// Prompts with subjects in them: from text to ids and the places of subjects' words, as
// hbsdk/text.py and the naming rules of hbsdk/generate.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer.hpp"

namespace hbsdk {

struct Prompt {
    std::vector<std::int64_t> ids;  // start and end included, padded to the tokenizer's length
    // Placeholder -> the positions of its words, one list for each time that it stands in the
    // prompt; every placeholder that was given has an entry.
    std::map<std::string, std::vector<std::vector<int>>> places;
    bool truncated = false;  // text, but no subject's word, was cut off at the end
    int tokens = 0;          // of the prompt before it was cut off, without start and end
};

// Returns the placeholders in a prompt in their order, lower case: "s*" or "<name>".
// Throws Error (bad_prompt): the text is no UTF-8.
std::vector<std::string> placeholders(std::string_view prompt);

// Returns placeholder -> index into `names`: one subject answers to "s*" and to "<its name>",
// several each to "<its name>" alone.
// Throws Error (bad_prompt): a subject is given that the prompt does not use, two share a name, or
// "S*" could be any of several.
std::map<std::string, std::size_t> name_subjects(std::string_view prompt,
                                                 const std::vector<std::string>& names);

// Turns a prompt, or a negative prompt, which may be empty, into ids with room for subjects' words.
// `words`: lower-case placeholder -> number of words that it expands to, 1 to 75.
// Throws Error (bad_prompt): a placeholder has no subject, a subject's words would be cut off, or
// the text is no UTF-8.
Prompt tokenize_prompt(const Tokenizer& tokenizer, std::string_view prompt,
                       const std::map<std::string, int>& words);

// Throws Error (bad_prompt) where there is only white space: a prompt, unlike a negative one, needs
// some text. hbsdk/generate.py's `tokenize` is this and then tokenize_prompt.
void check_has_text(std::string_view prompt);

}  // namespace hbsdk
