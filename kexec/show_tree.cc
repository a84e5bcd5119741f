#include "kexec/show_tree.h"

#include <fmt/format.h>

#include <string>
#include <vector>

#include "fs/arena_source.h"
#include "fs/lines.h"
#include "fs/tree.h"
#include "kexec/context.h"

namespace holdfast::command {
namespace {

constexpr size_t kLongFolder = 12;  ///< entries of a folder that are printed

class Printer {
 public:
  explicit Printer(fs::Tree& tree) : tree_(tree) {}

  void folder(const fs::Node& node, const std::string& indent) {
    struct Entry {
      std::string name;
      fs::Node node;
      fs::Attributes attributes;
    };
    std::vector<Entry> entries;
    uint64_t more = 0;
    const int error = tree_.list(node, 0,
                                 [&](uint64_t, const std::string& name, const fs::Node& child,
                                     const fs::Attributes& attributes) {
                                   if (name == "." || name == "..") return true;
                                   if (entries.size() < kLongFolder)
                                     entries.push_back({name, child, attributes});
                                   else
                                     ++more;
                                   return true;
                                 });
    if (error != 0) {
      Context::print(fmt::format("{}(cannot be read: errno {})\n", indent, error));
      return;
    }
    for (const auto& entry : entries) {
      line(entry.name, entry.node, entry.attributes, indent);
      if (entry.attributes.type == fs::Attributes::Type::kDirectory)
        folder(entry.node, indent + "  ");
    }
    if (more != 0) Context::print(fmt::format("{}... and {} more\n", indent, more));
  }

 private:
  void line(const std::string& name, const fs::Node& node, const fs::Attributes& attributes,
            const std::string& indent) {
    using Type = fs::Attributes::Type;
    if (attributes.type == Type::kDirectory) {
      Context::print(fmt::format("{}{}/\n", indent, name));
    } else if (attributes.type == Type::kSymlink) {
      const auto target = tree_.link_target(node);
      Context::print(fmt::format("{}{} -> {}\n", indent, name, target ? *target : "?"));
    } else if (const uint64_t bytes = size_of(node, attributes); bytes != 0) {
      Context::print(fmt::format("{}{}  ({} bytes)\n", indent, name, bytes));
    } else {
      Context::print(fmt::format("{}{}\n", indent, name));
    }
  }

  // A listing leaves sizes out where they take work. Those that would read whole tables, or ask the
  // running host, stay out here too.
  uint64_t size_of(const fs::Node& node, const fs::Attributes& listed) {
    using enum fs::Kind;
    const fs::Kind kind = node.kind;
    if (listed.size != 0 || kind == kChecksums || kind == kWalk || kind == kRanges ||
        kind == kHealth || kind == kPlan)
      return listed.size;
    const auto full = tree_.attributes(node);
    return full ? full->size : 0;
  }

  fs::Tree& tree_;
};

void print_files(const arena::Reader& reader) {
  const auto files = reader.files();
  if (!files) {
    Context::print("files/  (cannot be read: " + files.error().headline() + ")\n");
    return;
  }
  Context::print("files/\n");
  for (const auto& file : *files)
    Context::print(file.directory ? fmt::format("  {}/\n", file.path)
                                  : fmt::format("  {}  ({} bytes)\n", file.path, file.size));
}

}  // namespace

Result<Exit> show_tree(const arena::Reader& reader) {
  auto source = fs::open_arena_source(reader.header().path);
  if (!source) return pass(std::move(source).error(), "show --tree");
  // Health and plan speak of the running host; here only their names are wanted.
  const fs::LiveTexts texts{[] { return std::string(); }, [] { return std::string(); }};
  fs::Tree tree(std::move(*source), texts);
  Printer printer(tree);
  printer.folder(fs::Node{fs::Kind::kRoot, 0, 0, 0}, "");
  print_files(reader);
  return Exit::kDone;
}

void print_mappings(const Manifest& manifest, const arena::MappingTable& mappings, uint64_t most) {
  const fs::MapsFormat format(manifest);
  std::string line(format.width(), '\0');
  uint64_t left = most;
  mappings.for_each(0, mappings.size(), [&](const Mapping& mapping) {
    format.render(mapping, line.data());
    Context::print(line);
    return --left > 0;
  });
  if (mappings.size() > most)
    Context::print(fmt::format("… {} more lines\n", mappings.size() - most));
}

}  // namespace holdfast::command
