// What a fuzzer feeds with bytes: each throws nothing, and aborts where a promise is broken.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hbsdk::fuzz {

// Bytes of a subject file. What is accepted must be written and read back as the same words.
void subject(const std::uint8_t* data, std::size_t size);

// manifest.json, a line with a null character, engines.json. What is accepted must be usable.
void manifest(const std::uint8_t* data, std::size_t size);

// A prompt, for a small tokenizer whose added tokens have every rule. Ids and places must fit.
void prompt(const std::uint8_t* data, std::size_t size);

// prompt_tokenizer.json, a null character, a text.
void tokenizer(const std::uint8_t* data, std::size_t size);

}  // namespace hbsdk::fuzz
