#pragma once

// Somebody who keeps descriptors while no agent runs: systemd's descriptor store (sd_notify(3),
// FDSTORE=1), or what a test puts in its place. What lies there says by its name what it is:
//
//   state/CONTAINER/N     a sealed memfd: what the agent has to know of it (store_state.h)
//   container/CONTAINER/N    group/CONTAINER/BDF/N    device/CONTAINER/BDF/N    memory/REGION/N
//
// with '_' for ':' in a BDF, and N never twice. Every descriptor is put there before the state that
// names it, and taken away after it: of an agent that is killed between any two of these the store
// has a whole state, the old one or the new one, and at most leftovers.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "persist/base/result.h"
#include "persist/base/unique_fd.h"

namespace holdfast::agent {

class Store {
 public:
  virtual ~Store() = default;
  /// Keeps a duplicate under `name`. An open file that it has already, under whatever name, it
  /// ignores: so does systemd.
  virtual Result<void> keep(const std::string& name, BorrowedFd fd) = 0;
  /// Drops everything of that name.
  virtual Result<void> drop(const std::string& name) = 0;
  /// Returns when all that was said before is done, or after a second.
  virtual Result<void> settle() = 0;
  /// How many it keeps at most; beyond that it drops silently. nullopt: it does not say.
  [[nodiscard]] virtual std::optional<size_t> room() const { return std::nullopt; }
};

/// What the store gave back when this agent was started.
struct StoredFd {
  std::string name;
  UniqueFd fd;
};

/// What tells a file from others as far as fstat(2) can.
struct FileFacts {
  uint64_t mode = 0, device = 0, inode = 0, rdev = 0;
  bool operator==(const FileFacts&) const = default;
};
[[nodiscard]] Result<FileFacts> facts_of(BorrowedFd fd);
/// One open file behind both; where the kernel does not tell, what systemd takes for it.
[[nodiscard]] bool one_open_file(BorrowedFd a, BorrowedFd b);

/// The names above, taken apart.
struct StoreName {
  std::string kind;   ///< "state", "container", "group", "device", "memory"
  std::string owner;  ///< of the container, or the region
  uint64_t number = 0;
};
/// nullopt: not a name that an agent gives.
[[nodiscard]] std::optional<StoreName> parse_store_name(std::string_view name);
[[nodiscard]] std::string bdf_in_name(std::string bdf);

/// Brings a store to what is wanted, with as few calls as that takes. It has duplicates of what
/// lies there, so that it knows an open file again.
class StoreKeeper {
 public:
  explicit StoreKeeper(std::unique_ptr<Store> store) : store_(std::move(store)) {}

  /// One that came from the store and is good. It stays until nobody wants it.
  void has(std::string name, UniqueFd fd);
  /// One that came from the store and is not: dropped there. Where a good one has the same name it
  /// is put there again.
  Result<void> refuse(const std::string& name);
  /// The name of this open file in the store, which has it now. `wish`: as above, without number.
  Result<std::string> put(const std::string& wish, BorrowedFd fd);
  /// Replaces what was said of `container` before; `text` is the whole of it.
  Result<void> say(const std::string& container, std::string_view text);
  /// Drops what has not been put or said between begin() and this.
  Result<void> finish();
  void begin();
  /// Wanted still, as it is: `container` and these names.
  void stays(const std::string& container, const std::vector<std::string>& names);
  void stays(const std::string& name);

  [[nodiscard]] size_t size() const { return files_.size() + states_.size(); }
  [[nodiscard]] std::optional<size_t> room() const { return store_->room(); }

 private:
  struct File {
    UniqueFd fd;
    FileFacts facts;
    bool wanted = false;
  };
  struct State {
    std::string name;
    bool wanted = false;
  };
  Result<void> keep(const std::string& name, BorrowedFd fd);

  std::unique_ptr<Store> store_;
  std::map<std::string, File, std::less<>> files_;
  std::map<std::string, State, std::less<>> states_;  ///< by container
  uint64_t next_ = 1;
};

}  // namespace holdfast::agent
