#include "sha256.hpp"

#include <openssl/evp.h>

#include <fstream>
#include <memory>
#include <vector>

#include "error.hpp"
#include "file_bytes.hpp"

namespace hbsdk {
namespace {

constexpr std::size_t piece_bytes = std::size_t{4} << 20;

class Digest {
  public:
    Digest() : context_(EVP_MD_CTX_new(), &EVP_MD_CTX_free) {
        check(context_ != nullptr && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
    }
    void add(const void* data, std::size_t size) {
        check(EVP_DigestUpdate(context_.get(), data, size) == 1);
    }
    std::string hexadecimal() {
        unsigned char bytes[EVP_MAX_MD_SIZE];
        unsigned int size = 0;
        check(EVP_DigestFinal_ex(context_.get(), bytes, &size) == 1);
        std::string text;
        for (unsigned int i = 0; i < size; ++i) {
            text += "0123456789abcdef"[bytes[i] >> 4];
            text += "0123456789abcdef"[bytes[i] & 15];
        }
        return text;
    }

  private:
    static void check(bool is_good) {
        if (!is_good) throw Error(Status::internal, "OpenSSL cannot compute a SHA-256");
    }
    std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

std::string sha256_of(const void* data, std::size_t size) {
    Digest digest;
    digest.add(data, size);
    return digest.hexadecimal();
}

std::string sha256_of_file(const std::filesystem::path& path) {
    check_ordinary(path);
    std::ifstream file(path, std::ios::binary);
    std::vector<char> piece(piece_bytes);
    Digest digest;
    while (file) {
        file.read(piece.data(), static_cast<std::streamsize>(piece.size()));
        digest.add(piece.data(), static_cast<std::size_t>(file.gcount()));
    }
    if (!file.eof())
        throw Error(Status::not_found, path.u8string(), "a file that can be read", "an error");
    return digest.hexadecimal();
}

}  // namespace hbsdk
