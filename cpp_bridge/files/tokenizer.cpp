#include "tokenizer.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>

#include "added_tokens.hpp"
#include "byte_pairs.hpp"
#include "error.hpp"
#include "file_bytes.hpp"
#include "json_file.hpp"
#include "plain_text.hpp"
#include "unicode.hpp"

namespace hbsdk {
namespace {

using Json = nlohmann::json;

constexpr std::size_t max_tokenizer_bytes = std::size_t{64} << 20;
constexpr int schema = 1;
constexpr std::int64_t highest_id = INT32_MAX;
constexpr int fewest_tokens = 3, most_tokens = 1 << 16;  // of a text, start and end included

// All of a tokenizer but its vocabulary, its merges, the token for unknown text and the added
// tokens, as hbsdk/tokenizer.py builds it: what `encode` does, and nothing else, is read.
const char* const known_parts = R"json({
    "version": "1.0", "truncation": null, "padding": null, "post_processor": null, "decoder": null,
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "},
        {"type": "Lowercase"}]},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex":
         "<\\|startoftext\\|>|<\\|endoftext\\|>|'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"},
         "behavior": "Removed", "invert": true},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
    "model": {"type": "BPE", "dropout": null, "continuing_subword_prefix": "",
        "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false}
})json";

[[noreturn]] void refuse(const std::string& reason) {
    throw std::invalid_argument(reason);
}

std::uint32_t id_from(const Json& value) {
    if (!value.is_number_integer() || value < 0 || value > highest_id)
        refuse("an id is no whole number from 0");
    return value.get<std::uint32_t>();
}

BytePairs byte_pairs_from(const Json& model) {
    BytePairs::Vocabulary vocabulary;
    for (const auto& [token, id] : model.at("vocab").get_ref<const Json::object_t&>())
        vocabulary[token] = id_from(id);
    std::vector<std::pair<std::string, std::string>> merges;
    for (const Json& pair : model.at("merges").get_ref<const Json::array_t&>()) {
        if (pair.size() != 2) refuse("a merge is not of two tokens");
        merges.emplace_back(pair.at(0).get<std::string>(), pair.at(1).get<std::string>());
    }
    return BytePairs(vocabulary, merges, model.at("unk_token").get<std::string>());
}

CodePoints with_single_spaces(std::u32string_view text) {
    CodePoints result;
    for (const char32_t point : text) {
        const bool is_space = is_white_space(point);
        if (!is_space || result.empty() || result.back() != U' ') result += is_space ? U' ' : point;
    }
    return result;
}

CodePoints normalized(std::u32string_view text) {
    return lower_case(with_single_spaces(normal_form_c(text)));
}

template <typename IsOne>
std::size_t run_length(std::u32string_view text, IsOne is_one) {
    std::size_t size = 0;
    while (size < text.size() && is_one(text[size])) ++size;
    return size;
}

// The size of the word at the beginning of a text; 0 where there is white space.
std::size_t word_length(std::u32string_view text) {
    for (const char32_t* const ending : {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"})
        if (begins_with(text, ending)) return std::u32string_view(ending).size();
    if (is_letter(text.front())) return run_length(text, is_letter);
    if (is_number(text.front())) return 1;
    return run_length(text, [](char32_t point) {
        return !is_white_space(point) && !is_letter(point) && !is_number(point);
    });
}

// The size of the special token's name at the beginning of a text, "<|endoftext|>"; 0 for none.
std::size_t special_name_length(std::u32string_view text) {
    if (!begins_with(text, U"<|")) return 0;
    for (const std::u32string_view name : {U"startoftext", U"endoftext"})
        if (begins_with(text.substr(2), name) && begins_with(text.substr(2 + name.size()), U"|>"))
            return name.size();
    return 0;
}

// Calls `use` with each word. A special token that is written in a text but is no added token is
// taken apart into three words of its own, whatever stands beside it.
template <typename Use>
void for_each_word(std::u32string_view text, Use use) {
    const auto take = [&](std::size_t size) {
        use(text.substr(0, size));
        text.remove_prefix(size);
    };
    while (!text.empty()) {
        if (const std::size_t name = special_name_length(text); name > 0) {
            take(2);
            take(name);
            take(2);
        } else if (const std::size_t size = word_length(text); size > 0) {
            take(size);
        } else {
            text.remove_prefix(1);  // white space
        }
    }
}

}  // namespace

std::string_view tokenizer_form() {
    return known_parts;
}

struct Tokenizer::Parts {
    BytePairs byte_pairs;
    AddedTokens as_written;  // found in the text as it is
    AddedTokens in_normal_form;

    explicit Parts(const Json& data) : byte_pairs(byte_pairs_from(data.at("model"))) {
        // Special ones first: of two that are alike in normal form, the first counts.
        for (const bool special : {true, false}) {
            for (const Json& one : data.at("added_tokens").get_ref<const Json::array_t&>()) {
                if (one.at("special").get<bool>() != special) continue;
                AddedToken token;
                token.id = id_from(one.at("id"));
                token.content = *decode_utf8(one.at("content").get_ref<const std::string&>());
                token.single_word = one.at("single_word").get<bool>();
                token.lstrip = one.at("lstrip").get<bool>();
                token.rstrip = one.at("rstrip").get<bool>();
                if (one.at("normalized").get<bool>()) {
                    token.content = normalized(token.content);
                    in_normal_form.add(std::move(token));
                } else {
                    as_written.add(std::move(token));
                }
            }
        }
    }
};

Tokenizer Tokenizer::load(const std::filesystem::path& engine_folder) {
    const std::filesystem::path path = engine_folder / "prompt_tokenizer.json";
    return parse(read_file(path, max_tokenizer_bytes), path.u8string());
}

Tokenizer Tokenizer::parse(std::string_view json, const std::string& what) {
    const Json data = parse_json(json, what);
    if (whole_number(data, "schema", what) != schema)
        throw Error(Status::mismatch, "schema in " + what, "1", shown(data["schema"]), build_again);
    Json others = member(data, "tokenizer", what);
    try {
        Tokenizer tokenizer;
        tokenizer.parts_ = std::make_shared<const Parts>(others);
        tokenizer.bos = id_from(data.at("bos_token_id"));
        tokenizer.eos = id_from(data.at("eos_token_id"));
        tokenizer.pad = id_from(data.at("pad_token_id"));
        const std::int64_t length = whole_number(data, "model_max_length", what);
        if (length < fewest_tokens || length > most_tokens)
            refuse("texts of " + std::to_string(length) + " tokens");
        tokenizer.max_length = static_cast<int>(length);
        others.erase("added_tokens");
        for (const char* const key : {"vocab", "merges", "unk_token"})
            others.at("model").erase(key);
        if (others != Json::parse(known_parts)) {
            throw Error(Status::mismatch, "tokenizer in " + what, "CLIP's, as hbsdk builds it",
                        "another normalizer, pre-tokenizer or model", build_again);
        }
        return tokenizer;
    } catch (const std::invalid_argument& error) {
        throw Error(Status::damaged, "tokenizer in " + what, "one that is whole", error.what(),
                    build_again);
    } catch (const Json::exception& error) {
        throw Error(Status::damaged, "tokenizer in " + what, "one that is whole", error.what(),
                    build_again);
    }
}

std::vector<std::int64_t> Tokenizer::encode(std::string_view utf8) const {
    const auto text = decode_utf8(utf8);
    if (!text) {
        throw Error(Status::bad_prompt, "prompt", "Unicode text", in_quotes(utf8.substr(0, 100)),
                    "Encode it anew as UTF-8");
    }
    std::vector<std::int64_t> ids;
    const auto encode_word = [&](std::u32string_view word) {
        parts_->byte_pairs.encode(encode_utf8(word), ids);
    };
    for (const auto& outer : parts_->as_written.split(*text)) {
        if (outer.is_token) {
            ids.push_back(outer.id);
            continue;
        }
        const CodePoints normal = normalized(outer.text);
        for (const auto& inner : parts_->in_normal_form.split(normal)) {
            if (inner.is_token) {
                ids.push_back(inner.id);
            } else {
                for_each_word(inner.text, encode_word);
            }
        }
    }
    return ids;
}

}  // namespace hbsdk
