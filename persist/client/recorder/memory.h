#pragma once

// The memory of a container's mappings: files are registered with the agent when they are first
// mapped and let go when nothing of them is mapped any more, so that the agent keeps no page alive
// that the program has given back. Called under the one lock.

#include <cstdint>
#include <span>

namespace holdfast::recorder {

/// A piece of a mapping as the record has it.
struct Backed {
  uint32_t region = 0;  ///< Region::id
  uint64_t offset = 0;
  uint64_t size = 0;
};

void begin_memory(int container);
void end_memory(int container);
/// What is mapped already was mapped by somebody else: nothing that was mapped is let go.
void forget_memory(int container);

/// What lies behind a range, registered. Valid until the next call. Empty: it cannot be told.
[[nodiscard]] std::span<const Backed> back(int container, uint64_t vaddr, uint64_t size);

void note_map(int container, uint64_t iova, std::span<const Backed> pieces);
void note_unmap(int container, uint64_t iova, uint64_t size);

}  // namespace holdfast::recorder
