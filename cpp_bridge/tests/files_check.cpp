// files-check COMMAND [ARGUMENT]: answers each line of standard input with a line of JSON.
//
// A line is bytes in hexadecimal digits, or JSON. An answer is what was read, or {"status",
// "error"}. tests/cpp/test_files_*.py compare the answers with Python's.
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bundle_hash.hpp"
#include "engine_spec.hpp"
#include "error.hpp"
#include "harnesses.hpp"
#include "json_file.hpp"
#include "manifest.hpp"
#include "manifest_fields.hpp"
#include "prompt.hpp"
#include "sha256.hpp"
#include "subject_file.hpp"
#include "subject_name.hpp"
#include "tokenizer.hpp"
#include "unicode.hpp"

namespace {

using Json = nlohmann::json;
using Answer = std::function<Json(const std::string&)>;
namespace fs = std::filesystem;

std::string from_hexadecimal(const std::string& digits) {
    std::string bytes;
    for (std::size_t i = 0; i + 1 < digits.size(); i += 2)
        bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
    return bytes;
}

std::string read_whole(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

Json subject_as_json(const hbsdk::Subject& subject) {
    return {{"name", subject.name},
            {"count", subject.count},
            {"width", subject.width},
            {"words", hbsdk::sha256_of(subject.words.data(), 4 * subject.words.size())},
            {"metadata", subject.metadata}};
}

Json tensors_as_json(const std::vector<hbsdk::TensorSpec>& tensors) {
    Json list = Json::array();
    for (const auto& tensor : tensors) {
        Json shape = Json::array();
        for (const auto& dim : tensor.shape) shape.push_back({dim.factor, dim.axis});
        list.push_back({{"name", tensor.name}, {"dtype", tensor.dtype}, {"shape", shape}});
    }
    return list;
}

Json specs_as_json(const hbsdk::EngineSpecs& specs) {
    Json all = Json::object();
    for (const auto& [name, spec] : specs) {
        Json axes = Json::object();
        for (const auto& [axis_name, axis] : spec.axes)
            axes[axis_name] = {axis.min, axis.opt, axis.max, axis.multiple};
        all[name] = {{"network", spec.network},
                     {"file", spec.file},
                     {"axes", axes},
                     {"inputs", tensors_as_json(spec.inputs)},
                     {"outputs", tensors_as_json(spec.outputs)}};
    }
    return all;
}

Json manifest_as_json(const hbsdk::Manifest& manifest) {
    return {{"bundle_name", manifest.bundle_name},
            {"bundle_hash", manifest.bundle_hash},
            {"recipe_name", manifest.recipe_name},
            {"recipe_hash", manifest.recipe_hash},
            {"runtime", manifest.runtime},
            {"runtime_version", manifest.runtime_version},
            {"opset", manifest.opset},
            {"precision", manifest.precision},
            {"compute_capabilities", manifest.compute_capabilities},
            {"providers", manifest.providers},
            {"platform", manifest.platform ? Json(*manifest.platform) : Json()},
            {"files", manifest.files}};
}

// "folder", or {"folder", "verify": file, "engine": name}.
Json opened(const std::string& line) {
    static hbsdk::HashedFiles hashed;  // of all folders that are asked for, one after the other
    const Json asked = Json::parse(line);
    const fs::path folder = fs::u8path(asked.at("folder").get<std::string>());
    const hbsdk::Manifest manifest = hbsdk::open_manifest(folder);
    const hbsdk::EngineSpecs specs = hbsdk::read_engine_specs(folder, manifest);
    if (asked.contains("verify"))
        hbsdk::verify(folder, manifest, asked["verify"].get<std::string>());
    Json answer = manifest_as_json(manifest);
    answer["specs"] = specs_as_json(specs);
    if (asked.contains("engine")) {
        const auto& spec = specs.at(asked["engine"].get<std::string>());
        answer["path"] = hbsdk::checked_engine_file(folder, manifest, spec, hashed).u8string();
    }
    return answer;
}

Json tokenized(const hbsdk::Tokenizer& tokenizer, const std::string& line) {
    const Json asked = Json::parse(line);
    const std::string prompt = from_hexadecimal(asked.at("prompt").get<std::string>());
    if (asked.value("needs_text", false)) hbsdk::check_has_text(prompt);
    const auto result = hbsdk::tokenize_prompt(tokenizer, prompt,
                                               asked.at("words").get<std::map<std::string, int>>());
    return {{"ids", result.ids},
            {"places", result.places},
            {"truncated", result.truncated},
            {"tokens", result.tokens}};
}

Json named(const std::string& line) {
    const Json asked = Json::parse(line);
    return hbsdk::name_subjects(from_hexadecimal(asked.at("prompt").get<std::string>()),
                                asked.at("names").get<std::vector<std::string>>());
}

Json rewritten(const std::string& line) {
    const Json asked = Json::parse(line);
    hbsdk::Subject subject = hbsdk::read_subject(fs::u8path(asked.at("from").get<std::string>()));
    subject.name = asked.value("name", subject.name);
    const Json metadata = asked.value("metadata", Json::object());
    for (const auto& [key, value] : metadata.items())
        subject.metadata[key] = value.get<std::string>();
    return hbsdk::write_subject(fs::u8path(asked.at("to").get<std::string>()), subject).u8string();
}

// The properties of a code point as bits.
Json properties(const std::string&) {
    std::vector<int> bits;
    for (char32_t point = 0; point < 0x110000; ++point) {
        bits.push_back(hbsdk::is_letter(point) | hbsdk::is_number(point) << 1 |
                       hbsdk::is_white_space(point) << 2 | hbsdk::is_rust_word(point) << 3 |
                       hbsdk::is_python_word(point) << 4 | hbsdk::is_python_space(point) << 5);
    }
    return bits;
}

Json replayed(const std::string& line) {
    static const std::map<std::string, void (*)(const std::uint8_t*, std::size_t)> harnesses = {
        {"subject", hbsdk::fuzz::subject},
        {"manifest", hbsdk::fuzz::manifest},
        {"prompt", hbsdk::fuzz::prompt},
        {"tokenizer", hbsdk::fuzz::tokenizer}};
    const Json asked = Json::parse(line);
    const std::string bytes = read_whole(fs::u8path(asked.at("file").get<std::string>()));
    harnesses.at(asked.at("harness").get<std::string>())(
        reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
    return "survived";
}

Json as_json(const hbsdk::CodePoints& text) {
    return hbsdk::encode_utf8(text);
}

std::map<std::string, Answer> answers(const std::string& argument) {
    std::optional<hbsdk::Tokenizer> tokenizer;
    if (!argument.empty()) tokenizer = hbsdk::Tokenizer::load(fs::u8path(argument));
    const auto decoded = [](const std::string& line) {
        return *hbsdk::decode_utf8(from_hexadecimal(line));
    };
    return {
        {"tokenize",
         [=](const std::string& line) -> Json {
             return tokenizer.value().encode(from_hexadecimal(line));
         }},
        {"prompt",
         [=](const std::string& line) -> Json { return tokenized(tokenizer.value(), line); }},
        {"load-tokenizer",
         [](const std::string& line) -> Json {
             return hbsdk::Tokenizer::load(fs::u8path(from_hexadecimal(line))).max_length;
         }},
        {"ends",
         [=](const std::string&) -> Json {
             return {tokenizer.value().bos, tokenizer.value().eos, tokenizer.value().pad,
                     tokenizer.value().max_length};
         }},
        {"placeholders",
         [](const std::string& line) -> Json {
             return hbsdk::placeholders(from_hexadecimal(line));
         }},
        {"names", named},
        {"safe-name",
         [](const std::string& line) -> Json { return hbsdk::safe_name(from_hexadecimal(line)); }},
        {"check-name",
         [](const std::string& line) -> Json {
             hbsdk::check_name(from_hexadecimal(line));
             return "good";
         }},
        {"subject",
         [](const std::string& line) -> Json {
             return subject_as_json(hbsdk::read_subject(fs::u8path(from_hexadecimal(line))));
         }},
        {"subject-bytes",
         [](const std::string& line) -> Json {
             const std::string bytes = from_hexadecimal(line);
             return subject_as_json(hbsdk::parse_subject(bytes.data(), bytes.size(), "the file"));
         }},
        {"rewrite", rewritten},
        {"open", opened},
        {"manifest",
         [](const std::string& line) -> Json {
             return manifest_as_json(hbsdk::parse_manifest(from_hexadecimal(line)));
         }},
        {"python-json",
         [](const std::string& line) -> Json { return hbsdk::python_json(Json::parse(line)); }},
        {"json",
         [](const std::string& line) -> Json {
             return hbsdk::parse_json(from_hexadecimal(line), "it");
         }},
        {"inside",
         [](const std::string& line) -> Json { return hbsdk::is_inside(from_hexadecimal(line)); }},
        {"bundle-hash",
         [](const std::string& line) -> Json {
             return hbsdk::bundle_hash(fs::u8path(from_hexadecimal(line)));
         }},
        {"sha256",
         [](const std::string& line) -> Json {
             return hbsdk::sha256_of_file(fs::u8path(from_hexadecimal(line)));
         }},
        {"properties", properties},
        {"nfc",
         [=](const std::string& line) -> Json {
             return as_json(hbsdk::normal_form_c(decoded(line)));
         }},
        {"lower",
         [=](const std::string& line) -> Json {
             return as_json(hbsdk::lower_case(decoded(line)));
         }},
        {"replay", replayed},
    };
}

}  // namespace

int main(int count, char** arguments) {
    try {
        if (count < 2)
            throw std::invalid_argument("usage: files-check COMMAND [ENGINE_FOLDER] < LINES");
        const auto all = answers(count > 2 ? arguments[2] : "");
        const Answer& answer = all.at(arguments[1]);
        for (std::string line; std::getline(std::cin, line);) {
            Json result;
            try {
                result = answer(line);
            } catch (const hbsdk::Error& error) {
                result = {{"status", static_cast<int>(error.status)}, {"error", error.what()}};
            }
            std::cout << result.dump() << "\n";
        }
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "files-check: %s\n", error.what());
        return 1;
    }
}
