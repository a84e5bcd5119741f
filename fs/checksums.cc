// generations/N/checksums: one line for each regular file of the generation but itself, as
// `xxhsum -H2` prints it and `xxhsum -c` reads it (xxHash 0.8.1).

#include <cerrno>

#include "fs/tree.h"

namespace holdfast::fs {
namespace {

constexpr uint64_t kHashDigits = 32;
constexpr uint64_t kLineExtra = kHashDigits + 2 + 1;  // two spaces, newline

// Depth first, in the order of the listings.
int each_file(Tree& tree, const Node& directory, const std::string& prefix,
              const std::function<int(const std::string& path, const Node& node)>& each) {
  int problem = 0;
  const int listed = tree.list(
      directory, 0,
      [&](uint64_t, const std::string& name, const Node& node, const Attributes& attributes) {
        if (attributes.type == Attributes::Type::kDirectory)
          problem = each_file(tree, node, prefix + name + "/", each);
        else if (node.kind != Kind::kChecksums)
          problem = each(prefix + name, node);
        return problem == 0;
      });
  return listed != 0 ? listed : problem;
}

Node top(const Held& held) {
  return {Kind::kGeneration, held.manifest().number, 0, 0};
}

}  // namespace

std::expected<uint64_t, int> checksums_size(Tree& tree, const Held& held) {
  if (const uint64_t known = held.derived->checksums_size; known != 0) return known;
  uint64_t size = 0;
  const int problem = each_file(tree, top(held), "", [&](const std::string& path, const Node&) {
    size += kLineExtra + path.size();
    return 0;
  });
  if (problem != 0) return std::unexpected(problem);
  return held.derived->checksums_size = size;
}

std::expected<std::shared_ptr<const std::string>, int> checksums_of(Tree& tree, const Held& held) {
  const std::lock_guard guard(held.derived->checksums_lock);
  if (held.derived->checksums) return held.derived->checksums;
  // Hashing damaged bytes would bless them.
  if (!held.source->verify()) return std::unexpected(EIO);
  auto text = std::make_shared<std::string>();
  Scratch scratch;
  const int problem =
      each_file(tree, top(held), "", [&](const std::string& path, const Node& node) {
        const auto content = tree.open(node);
        if (!content) return content.error();
        *text += hash_of(**content, scratch).hex();
        *text += "  ";
        *text += path;
        *text += '\n';
        return 0;
      });
  if (problem != 0) return std::unexpected(problem);
  held.derived->checksums_size = text->size();
  held.derived->checksums = std::move(text);
  return held.derived->checksums;
}

}  // namespace holdfast::fs
