// CLIP's tokenizer: from text to ids as hbsdk/tokenizer.py, and so as transformers' CLIPTokenizer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace hbsdk {

class Tokenizer {
  public:
    // Reads an engine folder's prompt_tokenizer.json (the manifest vouches for it: verify it
    // first). Throws Error (not_found; damaged; mismatch: it is not the tokenizer that hbsdk
    // builds).
    static Tokenizer load(const std::filesystem::path& engine_folder);

    // Reads the text of a prompt_tokenizer.json.
    static Tokenizer parse(std::string_view json,
                           const std::string& what = "prompt_tokenizer.json");

    // Returns a text's ids, any number of them, without start and end; a special token that is
    // written in the text becomes that token. Threads may share a tokenizer.
    // Throws Error (bad_prompt): the text is no UTF-8.
    std::vector<std::int64_t> encode(std::string_view utf8) const;

    std::int64_t bos = 0;  // the start of a text
    std::int64_t eos = 0;  // its end
    std::int64_t pad = 0;  // what fills it up to max_length
    int max_length = 0;    // of a text in tokens, start and end included

  private:
    struct Parts;  // immutable, so copies of a tokenizer share it
    std::shared_ptr<const Parts> parts_;
};

// The JSON that the tokenizer of a prompt_tokenizer.json must have, but for its vocabulary, merges,
// token for unknown text and added tokens.
std::string_view tokenizer_form();

}  // namespace hbsdk
