// From one photo to a subject, by one forward pass: the probe of hbsdk.Session.personalize.
#pragma once

#include <string>

#include "context.hpp"
#include "image.hpp"
#include "subject_file.hpp"

namespace hbsdk {

// Throws Error (invalid_argument: picture, mask or name; mismatch: the engines cannot personalize).
Subject probe(Context& context, const Pixels& photo, const Pixels& mask, const std::string& name,
              Call& call);

}  // namespace hbsdk
