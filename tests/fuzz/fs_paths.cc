// What the mounted view parses: paths, inode numbers (a kernel sends back only what it was given,
// but a bit may flip on the way), mount options; and page tables of any content, shown as text.

#include <algorithm>
#include <cstring>
#include <string_view>

#include "fs/options.h"
#include "fs/tree.h"
#include "tests/unit/fs/fake_source.h"

namespace {

using namespace holdfast;
using namespace holdfast::fs;

std::shared_ptr<testing::FakeSource> source_with(const uint8_t* data, size_t size) {
  auto generation = testing::small_generation(7);
  testing::add_mapping(generation, 0, {0x1000, 0x3000, 0, 3, kAccessMask});
  // Eight bytes of address and eight of entry each: tables that point anywhere.
  auto& tables = generation.tables[0];
  const auto pages = tables.addresses();
  for (size_t at = 0; at + 16 <= size; at += 16) {
    uint64_t where = 0, entry = 0;
    std::memcpy(&where, data + at, 8);
    std::memcpy(&entry, data + at + 8, 8);
    if ((entry & 4) != 0) entry = pages[(entry >> 12) % pages.size()] | (entry & 0xfff);
    tables.set(pages[(where >> 16) % pages.size()], where % 512, entry);
  }
  auto source = std::make_shared<testing::FakeSource>();
  source->commit(std::move(generation));
  source->refresh();
  return source;
}

void read_all(Tree& tree, const Node& node) {
  const auto attributes = tree.attributes(node);
  const auto content = tree.open(node);
  if (!content) return;
  Scratch scratch;
  const auto bytes = (*content)->read(0, UINT64_MAX, scratch);
  // A file that is shorter or longer than it says would break every reader.
  if (!attributes || bytes.size() != attributes->size) __builtin_trap();
  for (const uint64_t offset : {uint64_t{1}, bytes.size() / 2, bytes.size() - 1})
    if (const auto part = (*content)->read(offset, 100, scratch); part.size() > 100)
      __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 9) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data), std::min<size_t>(size, 256));
  MountOptions options;
  (void)parse_option_list(text, options);
  (void)parse_page_name(text);
  (void)parse_generation_name(text);

  Tree tree(source_with(data, size), {});
  if (const auto node = tree.resolve(text)) read_all(tree, *node);
  uint64_t inode = 0;
  std::memcpy(&inode, data, 8);
  if (const auto node = node_of(inode)) {
    // The generation that exists, so that the rest of the number counts.
    Node known = *node;
    known.generation = 7;
    if (const auto restored = tree.restore(known)) {
      read_all(tree, *restored);
      (void)tree.list(*restored, data[8],
                      [](uint64_t, const auto&, const Node&, const auto&) { return true; });
    }
  }
  read_all(tree, *tree.resolve("current/containers/vm0/page-tables/walk"));
  read_all(tree, *tree.resolve("current/containers/vm0/page-tables/ranges"));
  return 0;
}
