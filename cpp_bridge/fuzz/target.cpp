// One fuzzer: HBSDK_HARNESS names the harness that it feeds. Built by run.sh.
#include "harnesses.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    hbsdk::fuzz::HBSDK_HARNESS(data, size);
    return 0;
}
