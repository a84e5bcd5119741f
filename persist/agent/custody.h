#pragma once

// Descriptors that the agent keeps on behalf of clients, by container name: duplicates of what a
// live client registered, what a dead one left behind (hold=SECONDS, or frozen), and what restore
// opened and nobody has taken yet. Plain storage: who may take what is the registry's business.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "persist/base/mapped_range.h"
#include "persist/base/result.h"
#include "persist/base/unique_fd.h"
#include "persist/model/container_fd.h"

namespace holdfast::agent {

/// Every descriptor of one container.
struct Holding {
  struct DeviceDescriptors {
    std::string bdf;
    UniqueFd group;   ///< may be invalid where the kernel has no groups
    UniqueFd device;  ///< may be invalid: not opened yet
  };
  struct Memory {
    uint32_t region = 0;  ///< Region::id
    std::string name;
    uint64_t length = 0;  ///< bytes
    UniqueFd fd;
    /// Of its first byte in this process, which keeps it mapped for as long as custody holds this;
    /// nullptr: it is not mapped here.
    std::byte* address = nullptr;
    MappedRange view;  ///< where `address` is, if it was the agent that came after who restored it
  };
  ContainerFd container;
  bool unmapped = false;    ///< its mappings are made by who takes it
  std::string restored_as;  ///< strategy of the restore that opened it; empty: none did
  std::vector<DeviceDescriptors> devices;
  std::vector<Memory> memory;
};

class Custody {
 public:
  /// Why a container's descriptors are kept.
  enum class Why : uint32_t {
    kOwned,     ///< duplicates of a live client's
    kHeld,      ///< owner died; hold=SECONDS, or the arena is frozen
    kRestored,  ///< restore opened them; the owner has not taken them
  };

  /// Takes the descriptors of container `name`; an earlier holding of that name is refused.
  Result<void> deposit(const std::string& name, Holding holding, Why why = Why::kRestored);
  [[nodiscard]] bool holds(std::string_view name) const;
  [[nodiscard]] Holding* find(std::string_view name);
  [[nodiscard]] std::optional<Why> why(std::string_view name) const;
  void set_why(std::string_view name, Why why);
  /// Which deposit this is, counted from 1: another one has other descriptors. 0: none.
  [[nodiscard]] uint64_t deposited(std::string_view name) const;
  /// Closes everything of `name`; what the kernel then tears down is the kernel's business.
  void drop(std::string_view name);
  /// Takes the descriptors out again.
  [[nodiscard]] std::optional<Holding> take(std::string_view name);
  [[nodiscard]] std::vector<std::string> names() const;
  [[nodiscard]] size_t descriptor_count() const;

 private:
  struct Entry {
    Holding holding;
    Why why = Why::kOwned;
    uint64_t deposit = 0;
  };
  std::map<std::string, Entry, std::less<>> entries_;
  uint64_t deposits_ = 0;
};

[[nodiscard]] std::string_view why_name(Custody::Why why);  ///< "owned", "held", "restored"

}  // namespace holdfast::agent
