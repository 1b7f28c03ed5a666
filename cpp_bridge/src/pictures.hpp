// Pixels that were handed out over the C ABI, by their addresses, until they are freed.
#pragma once

#include <hbsdk.h>

#include <vector>

#include "generate.hpp"
#include "image.hpp"

namespace hbsdk {

// Hands pictures out: fills `images`, all of them or, where memory is out, none.
void hand_out(const std::vector<Picture>& pictures, hbsdk_image* images);

// Takes pixels back. Throws Error (invalid_argument) if they are not ours, or were freed.
void take_back(const hbsdk_image& image);

// A view of an app's picture; no pixels for NULL. Throws Error (invalid_argument) for sizes below
// 0.
Pixels pixels_of(const hbsdk_image* image);

}  // namespace hbsdk
