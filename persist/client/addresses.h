#pragma once

// Where this program has the memory of its mappings: learnt from hf_map(), said by
// hf_set_address(), asked when a container changes its owner. Private to this folder.

#include <span>
#include <vector>

#include "persist/agent/protocol.h"
#include "persist/client/connection.h"
#include "persist/model/mapping.h"
#include "restore/handover/vaddr.h"

namespace holdfast::client {

/// After a map call that succeeded; the caller holds container.mutex.
void learn_address(hf_container& container, const hf_mapping& mapping, void* vaddr);
void forget_addresses(hf_container& container, uint64_t iova, uint64_t size);

/// An address for each mapping, or HF-HANDOVER-ADDRESS (exit 5) naming memory of which the program
/// has not said where it is. The caller holds connection.mutex.
Result<std::vector<handover::Place>> places_of(hf_connection& connection, hf_container& container,
                                               std::span<const Mapping> mappings);
/// Whether the program has said of any of these where it has their memory.
[[nodiscard]] bool knows_addresses(hf_connection& connection, std::span<const Mapping> mappings);
/// Tells them to the agent, which compares: true where the mappings have lost the address that they
/// had and wait for these. The caller holds connection.mutex.
Result<bool> send_places(hf_connection& connection, const hf_container& container,
                         std::span<const handover::Place> places);

/// The mappings in a memfd that the agent sent.
Result<std::vector<Mapping>> read_mappings(BorrowedFd list, uint64_t count);

/// The kernel's calls of a container, as its connection makes them.
class ContainerCalls : public handover::VaddrCalls {
 public:
  explicit ContainerCalls(const hf_container& container) : container_(container) {}
  Result<void> suspend_all() override;
  Result<void> suspend(uint64_t iova, uint64_t size) override;
  Result<void> resume(uint64_t iova, uint64_t size, void* address) override;

 private:
  const hf_container& container_;
};

}  // namespace holdfast::client
