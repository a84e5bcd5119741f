#pragma once

// The small files of the view. Pure: values in, text out; every text ends with a newline.

#include <string>

#include "persist/arena/reader.h"
#include "persist/model/generation.h"

namespace holdfast::fs {

[[nodiscard]] std::string readme_text();
[[nodiscard]] std::string arena_json(const arena::Header& header,
                                     const std::vector<uint64_t>& generations);
[[nodiscard]] std::string manifest_json(const Manifest& manifest);
[[nodiscard]] std::string container_kind_text(const Container& container);
[[nodiscard]] std::string container_state_text(const ContainerRecord& record, const Seal& seal);
[[nodiscard]] std::string identity_json(const Device& device);
[[nodiscard]] std::string group_text(const Device& device);
/// The identity registers of configuration space; the rest of it is not recorded.
[[nodiscard]] std::string config_text(const Device& device);
[[nodiscard]] std::string table_root_text(const ContainerRecord& record);
[[nodiscard]] std::string region_json(const Region& region);
[[nodiscard]] std::string events_text(const std::vector<Event>& events);
/// CLOCK_REALTIME nanoseconds as "2026-01-31T12:00:00.123Z".
[[nodiscard]] std::string time_text(uint64_t at_ns);

}  // namespace holdfast::fs
