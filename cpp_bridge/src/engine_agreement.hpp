// Whether an engine folder's files agree: engines.json with bridge.json and with the loop's graph.
#pragma once

#include "bridge_file.hpp"
#include "engine_spec.hpp"

namespace hbsdk {

// Throws Error (mismatch) where a subject's words would not fit the text encoder, or denoise_step
// is not the graph that the loop is written for. `tokens`: of a text, as the tokenizer makes them.
void check_agreement(const EngineSpecs& specs, const BridgeFile& bridge, int tokens);

}  // namespace hbsdk
