#pragma once

// `holdfast show` as text. Pure: documents and views in, text out.

#include <string>
#include <vector>

#include "persist/arena/reader.h"
#include "persist/model/generation.h"
#include "persist/model/json.h"

namespace holdfast::command {

/// The arena itself: state, ways out, medium, room, nonce.
[[nodiscard]] std::string header_text(const arena::Header& header);
/// Findings as the agent words them; empty: none.
[[nodiscard]] std::string findings_text(const Json& findings);
/// One line a retained generation.
[[nodiscard]] std::string generations_text(const arena::Reader& reader);
/// Containers with their devices, and regions, of one generation.
[[nodiscard]] std::string manifest_text(const Manifest& manifest);
[[nodiscard]] std::string restore_text(const arena::Reader::RestoreLog& log);
/// The last `limit` events, oldest first.
[[nodiscard]] std::string events_text(const std::vector<Event>& events, size_t limit);
/// Of the agent's health: what it holds for whom. Empty where it holds nothing.
[[nodiscard]] std::string holdings_text(const Json& health);
/// A bundle: when and where it was made, and the sections it holds.
[[nodiscard]] std::string bundle_text(const Json& bundle);

}  // namespace holdfast::command
