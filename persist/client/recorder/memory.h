#pragma once

// The memory of a container's mappings, and the mappings themselves, as this process has made them:
// for the agent, and for the next one. Files are registered when they are first mapped and let go
// when nothing of them is mapped any more, so that the agent keeps no page alive that the program
// has given back. Called under the one lock.

#include <cstdint>
#include <span>
#include <vector>

#include "persist/model/mapping.h"

namespace holdfast::recorder {

/// A piece of a mapping as the record has it.
struct Backed {
  uint32_t slot = 0;
  uint32_t region = 0;  ///< Region::id; 0: there is no agent
  uint64_t offset = 0;
  uint64_t size = 0;
};

void begin_memory(int container);
void end_memory(int container);
/// What is mapped already was mapped by somebody else: nothing that was mapped is let go.
void forget_memory();

/// Around whatever this process pushes: what another one has pushed since shows.
void before_change();
void after_change();

/// What lies behind a range, registered. Valid until the next call. Empty: it cannot be told.
[[nodiscard]] std::span<const Backed> back(uint64_t vaddr, uint64_t size);

/// The same of a file, which need not be mapped.
[[nodiscard]] std::span<const Backed> back_file(int fd, uint64_t offset, uint64_t size);

void note_map(int container, uint64_t iova, uint32_t access, std::span<const Backed> pieces);
void note_unmap(int container, uint64_t iova, uint64_t size);

/// What came with a container that the agent gave: registered already.
void know_memory(uint32_t region, uint64_t device, uint64_t inode, uint64_t length);
void know_mapping(int container, const Mapping& mapping);

/// Registers all of it with an agent that knows nothing of it.
void register_memory_again();
/// Everything that is mapped, by IOVA. False: it is not all, or memory of it is not registered.
[[nodiscard]] bool list_mapped(int container, std::vector<Mapping>& out);

}  // namespace holdfast::recorder
