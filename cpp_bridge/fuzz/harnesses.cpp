#include "harnesses.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "engine_spec.hpp"
#include "error.hpp"
#include "json_file.hpp"
#include "manifest.hpp"
#include "manifest_fields.hpp"
#include "prompt.hpp"
#include "sha256.hpp"
#include "subject_file.hpp"
#include "subject_name.hpp"
#include "tokenizer.hpp"
#include "unicode.hpp"

namespace hbsdk::fuzz {
namespace {

void require(bool holds) {
    if (!holds) std::abort();
}

std::string_view view(const std::uint8_t* data, std::size_t size) {
    return {reinterpret_cast<const char*>(data), size};
}

// Runs what may refuse its input: with an Error of one line in UTF-8, and with nothing else.
template <typename Action>
void may_refuse(Action action) {
    try {
        action();
    } catch (const Error& error) {
        const std::string_view message = error.what();
        require(error.status != Status::ok && error.status != Status::internal);
        require(!message.empty() && message.find('\n') == std::string_view::npos);
        require(decode_utf8(message).has_value());
    }
}

// The two texts that a null character parts.
std::pair<std::string_view, std::string_view> parted(std::string_view bytes) {
    const std::size_t place = bytes.find('\0');
    if (place == std::string_view::npos) return {bytes, {}};
    return {bytes.substr(0, place), bytes.substr(place + 1)};
}

// A vocabulary of every byte with a few merges, and added tokens with every rule.
std::string small_tokenizer() {
    using Json = nlohmann::json;
    Json vocabulary, merges = Json::array();
    int next = 0;
    for (int point = 0x21; point < 0x144; ++point) {
        std::string letter;
        append_utf8(static_cast<char32_t>(point), letter);
        vocabulary[letter] = next++;
        if (point % 3 != 0)
            vocabulary[letter + "</w>"] = next++;  // the others are unknown at an end
    }
    for (const auto& [left, right] : {std::pair("a", "a"),
                                      {"aa", "aa"},
                                      {"a", "b"},
                                      {"b", "a"},
                                      {"s", "n"},
                                      {"sn", "o"},
                                      {"o", "w</w>"},
                                      {"ab", "ab"},
                                      {"\xc3\xa4", "\xc2\xb8"}}) {
        merges.push_back({left, right});
        vocabulary[std::string(left) + right] = next++;
    }
    Json added = Json::array();
    int rules = 0;
    for (const char* content : {"<|startoftext|>", "<|endoftext|>", "fox", "Fo", " ", "a  B",
                                "\xc3\x84", "|>", "\xe2\x80\x8d"}) {
        if (!vocabulary.contains(content)) vocabulary[content] = next++;
        added.push_back({{"id", vocabulary[content]},
                         {"content", content},
                         {"special", rules < 2},
                         {"single_word", (rules & 1) != 0 && rules > 1},
                         {"lstrip", (rules & 2) != 0 && rules > 1},
                         {"rstrip", (rules & 4) != 0},
                         {"normalized", rules % 3 == 1}});
        ++rules;
    }
    Json model = Json::parse(tokenizer_form());
    model["added_tokens"] = added;
    model["model"]["vocab"] = vocabulary;
    model["model"]["merges"] = merges;
    model["model"]["unk_token"] = "<|endoftext|>";
    return Json{{"schema", 1},
                {"bos_token_id", vocabulary["<|startoftext|>"]},
                {"eos_token_id", vocabulary["<|endoftext|>"]},
                {"pad_token_id", vocabulary["!"]},
                {"model_max_length", 77},
                {"tokenizer", model}}
        .dump();
}

void check_prompt(const Tokenizer& tokenizer, std::string_view text,
                  const std::map<std::string, int>& words) {
    const Prompt prompt = tokenize_prompt(tokenizer, text, words);
    require(prompt.ids.size() == static_cast<std::size_t>(tokenizer.max_length));
    require(prompt.ids.front() == tokenizer.bos && prompt.places.size() == words.size());
    require(prompt.truncated == (prompt.tokens > tokenizer.max_length - 2));
    for (const auto& [name, runs] : prompt.places) {
        for (const auto& run : runs) {
            require(run.size() == static_cast<std::size_t>(words.at(name)));
            for (const int place : run) {
                require(place > 0 && place < tokenizer.max_length - 1);
                require(prompt.ids[static_cast<std::size_t>(place)] == tokenizer.eos);
            }
        }
    }
}

}  // namespace

void subject(const std::uint8_t* data, std::size_t size) {
    may_refuse([&] {
        Subject first = parse_subject(data, size, "a subject");
        require(first.words.size() ==
                static_cast<std::size_t>(first.count) * static_cast<std::size_t>(first.width));
        for (const float value : first.words) require(std::isfinite(value));
        first.name = "fox";
        const auto bytes = encode_subject(first, "fox");
        const Subject second = parse_subject(bytes.data(), bytes.size(), "written");
        require(second.count == first.count && second.width == first.width);
        require(std::memcmp(second.words.data(), first.words.data(), 4 * first.words.size()) == 0);
    });
    check_name(safe_name(
        view(data, std::min<std::size_t>(size, 64))));  // whatever the bytes: it is a name
}

void manifest(const std::uint8_t* data, std::size_t size) {
    const auto [text, engines] = parted(view(data, size));
    Manifest all;
    may_refuse([&, manifest_text = text] {
        // A fuzzer cannot find a sha256, so the seal is put right for it.
        nlohmann::json json = parse_json(manifest_text, "manifest");
        check_manifest_fields(json, "manifest");
        nlohmann::json others = json;
        others.erase(seal_field);
        const std::string sealed = python_json(others);
        json[seal_field] = sha256_of(sealed.data(), sealed.size());
        all = parse_manifest(json.dump(), "manifest");
        for (const auto& [path, digest] : all.files)
            require(is_inside(path) && digest.size() == 64);
    });
    may_refuse([&, engines_text = engines] {
        all.files["unet/model.onnx"] = std::string(64, '0');
        for (const auto& [name, spec] : parse_engine_specs(engines_text, all)) {
            for (const auto* tensors : {&spec.inputs, &spec.outputs})
                for (const TensorSpec& tensor : *tensors)
                    for (const std::int64_t extent : spec.shape(tensor, {})) require(extent >= 0);
            spec.check({});
        }
    });
}

void prompt(const std::uint8_t* data, std::size_t size) {
    static const Tokenizer tokenizer = Tokenizer::parse(small_tokenizer());
    const std::string_view text = view(data, size);
    may_refuse([&] {
        std::map<std::string, int> words;
        if (size % 3 == 0) {  // the length chooses, so that an input costs one run and not three
            for (const auto& [name, index] : name_subjects(text, {"fox"})) words[name] = 5;
            require(words.size() == 2);
        } else if (size % 3 == 1) {
            for (const auto& [name, index] : name_subjects(text, {"fox", "a"}))
                words[name] = index == 0 ? 5 : 1;
            require(words.size() == 2 && words.count("s*") == 0);
        } else {
            for (const auto& name : placeholders(text)) words[name] = 2;
        }
        check_prompt(tokenizer, text, words);
        require(decode_utf8(text).has_value());
    });
}

void tokenizer(const std::uint8_t* data, std::size_t size) {
    const auto [json, text] = parted(view(data, size));
    may_refuse([&, json_text = json, prompt_text = text] {
        const Tokenizer given = Tokenizer::parse(json_text);
        const auto ids = given.encode(prompt_text);
        for (const auto id : ids) require(id >= 0);
    });
}

}  // namespace hbsdk::fuzz
