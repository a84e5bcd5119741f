#pragma once

// The state behind Reader and its views. Private to this folder.

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_set>

#include "persist/arena/files_store.h"
#include "persist/arena/image.h"
#include "persist/arena/reader.h"

namespace holdfast::arena {

struct Reader::Impl {
  std::unique_ptr<Medium> medium;
  Found found;
  Root root;
  Header header;

  // files/ goes on under a live writer: this is what was last looked at. Guarded by `files_lock`.
  struct Files {
    Found found;
    FileTree tree;
    std::map<std::string, const FileNode*> by_path;
    std::unordered_set<uint64_t> checked;
  };
  mutable std::mutex files_lock;
  mutable std::unique_ptr<Files> files;

  explicit Impl(std::unique_ptr<Medium> m) : medium(std::move(m)) {}
  Result<void> load();
  /// The files tree in force now; call with files_lock held.
  Result<Files*> fresh_files() const;
};

struct GenerationView::Impl {
  std::shared_ptr<const Reader::Impl> reader;
  GenerationEntry entry;
  Catalog catalog;
  Manifest manifest;  ///< catalog.manifest
  std::shared_ptr<Lease> lease;
  mutable std::mutex tables_lock;
  mutable std::map<uint32_t, std::shared_ptr<const MappingTable::Impl>> tables;
  [[nodiscard]] const ContainerTables* tables_of(uint32_t container) const;
};

struct MappingTable::Impl {
  std::shared_ptr<const Reader::Impl> reader;
  std::shared_ptr<Lease> lease;
  MappingSet set;
  std::vector<uint64_t> starts;  ///< index of the first mapping of each chunk
};

}  // namespace holdfast::arena
