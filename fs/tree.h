#pragma once

// The view as a tree: names to nodes, nodes to attributes and contents. Knows no FUSE. Thread safe.
// Errors are errno values: what a system call on the file would give.

#include <cstdint>
#include <expected>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "fs/content.h"
#include "fs/node.h"
#include "fs/retained.h"
#include "fs/source.h"

namespace holdfast::fs {

struct Attributes {
  enum class Type : uint8_t { kDirectory, kFile, kSymlink };
  Type type = Type::kFile;
  uint64_t size = 0;       ///< bytes
  uint64_t mtime_ns = 0;   ///< CLOCK_REALTIME
  bool immutable = false;  ///< name, attributes and content never change while the name exists
};

/// The texts at the root that depend on the running host. Called from any thread; may block.
struct LiveTexts {
  std::function<std::string()> health, plan;
};

class Tree {
 public:
  Tree(std::shared_ptr<Source> source, LiveTexts texts);

  [[nodiscard]] std::expected<Node, int> lookup(const Node& parent, std::string_view name);
  /// A path relative to the root, '/'-separated; "" is the root. `current` is followed.
  [[nodiscard]] std::expected<Node, int> resolve(std::string_view path);
  [[nodiscard]] std::expected<Attributes, int> attributes(const Node& node);
  [[nodiscard]] std::expected<ContentPtr, int> open(const Node& node);
  [[nodiscard]] std::expected<std::string, int> link_target(const Node& node);
  /// Completes the generation number of a node that came out of an inode number.
  [[nodiscard]] std::expected<Node, int> restore(Node node) const;

  /// Calls `each` for the entries of a directory from the one numbered `from`, until it returns
  /// false. Numbers stay the same while the directory does. 0 or an errno.
  using EachEntry = std::function<bool(uint64_t number, const std::string& name, const Node& node,
                                       const Attributes& attributes)>;
  [[nodiscard]] int list(const Node& directory, uint64_t from, const EachEntry& each);

  [[nodiscard]] Source& source() { return *source_; }
  [[nodiscard]] Retained& retained() { return retained_; }

 private:
  [[nodiscard]] std::expected<Node, int> lookup_page(const Node& pages, std::string_view name);
  [[nodiscard]] std::expected<Attributes, int> attributes_in(const Held& held, const Node& node);
  [[nodiscard]] std::expected<ContentPtr, int> open_in(const Held& held, const Node& node);
  [[nodiscard]] int list_in(const Held& held, const Node& directory, uint64_t from,
                            const EachEntry& each);

  std::shared_ptr<Source> source_;
  LiveTexts texts_;
  Retained retained_;
};

/// The nodes of fixed name below a directory of `kind`.
struct FixedEntry {
  std::string_view name;
  Kind kind;
};
[[nodiscard]] std::span<const FixedEntry> fixed_entries(Kind kind);

/// "0x12345000" as directories below page-tables/pages print it: no other spelling of a number.
[[nodiscard]] std::optional<uint64_t> parse_page_name(std::string_view name);
/// A generation's number as its directory's name: decimal, no leading zero.
[[nodiscard]] std::optional<uint64_t> parse_generation_name(std::string_view name);

/// The text of generations/N/checksums, and its size without hashing anything. EIO if the
/// generation does not agree with the arena's own checksums: then there is nothing to vouch for.
[[nodiscard]] std::expected<std::shared_ptr<const std::string>, int> checksums_of(Tree& tree,
                                                                                  const Held& held);
[[nodiscard]] std::expected<uint64_t, int> checksums_size(Tree& tree, const Held& held);

}  // namespace holdfast::fs
