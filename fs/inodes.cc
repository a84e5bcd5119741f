#include "fs/inodes.h"

#include <fmt/format.h>

namespace holdfast::fs {
namespace {
constexpr std::string_view kHiddenPrefix = ".holdfast-unlinked-";
}

bool is_hidden_name(std::string_view name) {
  return name.starts_with(kHiddenPrefix);
}

bool valid_file_name(std::string_view name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos &&
         !is_hidden_name(name);
}

std::string hidden_name(uint64_t inode) {
  return fmt::format("{}{}", kHiddenPrefix, inode & ~kFilesBit);
}

uint64_t Inodes::remember(uint64_t parent, const std::string& name, const arena::FileInfo& info) {
  const uint64_t inode = kFilesBit | info.id;
  const std::lock_guard guard(lock_);
  Entry& entry = entries_[inode];
  ++entry.lookups;
  if (entry.parent != parent || entry.name != name) move(inode, entry, parent, name);
  return inode;
}

// Parents are counted by their children, so that a path can be told as long as its end is known.
void Inodes::move(uint64_t inode, Entry& entry, uint64_t parent, const std::string& name) {
  const uint64_t old_parent = entry.parent;
  if (old_parent != 0) {
    const auto it = names_.find({old_parent, entry.name});
    if (it != names_.end() && it->second == inode) names_.erase(it);
  }
  entry.parent = parent;
  entry.name = name;
  names_[{parent, name}] = inode;
  if (parent != kFilesRoot)
    if (const auto up = entries_.find(parent); up != entries_.end()) ++up->second.children;
  if (old_parent != 0 && old_parent != kFilesRoot)
    if (const auto up = entries_.find(old_parent); up != entries_.end()) {
      --up->second.children;
      drop_if_unused(old_parent);
    }
}

void Inodes::drop_if_unused(uint64_t inode) {
  const auto it = entries_.find(inode);
  if (it == entries_.end()) return;
  const Entry& entry = it->second;
  if (entry.lookups > 0 || entry.opens > 0 || entry.children > 0) return;
  const uint64_t parent = entry.parent;
  const auto name = names_.find({parent, entry.name});
  if (name != names_.end() && name->second == inode) names_.erase(name);
  entries_.erase(it);
  if (parent == 0 || parent == kFilesRoot) return;
  if (const auto up = entries_.find(parent); up != entries_.end()) {
    --up->second.children;
    drop_if_unused(parent);
  }
}

void Inodes::forget(uint64_t inode, uint64_t count) {
  const std::lock_guard guard(lock_);
  const auto it = entries_.find(inode);
  if (it == entries_.end()) return;
  it->second.lookups -= std::min(it->second.lookups, count);
  drop_if_unused(inode);
}

std::optional<std::string> Inodes::path_locked(uint64_t inode) const {
  std::string out;
  // A path is no deeper than the table is large: a loop cannot keep this going.
  for (size_t steps = 0; inode != kFilesRoot; ++steps) {
    const auto it = entries_.find(inode);
    if (it == entries_.end() || steps > entries_.size()) return std::nullopt;
    out = out.empty() ? it->second.name : it->second.name + "/" + out;
    inode = it->second.parent;
  }
  return out;
}

std::optional<std::string> Inodes::path(uint64_t inode) const {
  const std::lock_guard guard(lock_);
  return path_locked(inode);
}

std::optional<std::string> Inodes::path(uint64_t parent, const std::string& name) const {
  if (!valid_file_name(name)) return std::nullopt;
  const std::lock_guard guard(lock_);
  auto up = path_locked(parent);
  if (!up) return std::nullopt;
  return up->empty() ? name : *up + "/" + name;
}

void Inodes::renamed(uint64_t from_parent, const std::string& from, uint64_t to_parent,
                     const std::string& to) {
  const std::lock_guard guard(lock_);
  const auto it = names_.find({from_parent, from});
  if (it == names_.end()) return;
  const uint64_t inode = it->second;
  move(inode, entries_[inode], to_parent, to);
}

std::optional<uint64_t> Inodes::find(uint64_t parent, const std::string& name) const {
  const std::lock_guard guard(lock_);
  const auto it = names_.find({parent, name});
  if (it == names_.end()) return std::nullopt;
  return it->second;
}

void Inodes::opened(uint64_t inode) {
  const std::lock_guard guard(lock_);
  ++entries_[inode].opens;
}

bool Inodes::closed(uint64_t inode) {
  const std::lock_guard guard(lock_);
  const auto it = entries_.find(inode);
  if (it == entries_.end() || it->second.opens == 0) return false;
  const bool last = --it->second.opens == 0 && it->second.hidden;
  drop_if_unused(inode);
  return last;
}

bool Inodes::is_open(uint64_t inode) const {
  const std::lock_guard guard(lock_);
  const auto it = entries_.find(inode);
  return it != entries_.end() && it->second.opens > 0;
}

void Inodes::hidden(uint64_t inode, const std::string& name) {
  const std::lock_guard guard(lock_);
  const auto it = entries_.find(inode);
  if (it == entries_.end()) return;
  it->second.hidden = true;
  move(inode, it->second, kFilesRoot, name);
}

bool Inodes::same_since_last_open(uint64_t inode, uint64_t size, uint64_t mtime_ns) {
  const std::lock_guard guard(lock_);
  const auto it = entries_.find(inode);
  if (it == entries_.end()) return false;
  Entry& entry = it->second;
  const bool same = entry.seen && entry.seen_size == size && entry.seen_mtime_ns == mtime_ns;
  entry.seen = true;
  entry.seen_size = size;
  entry.seen_mtime_ns = mtime_ns;
  return same;
}

size_t Inodes::size() const {
  const std::lock_guard guard(lock_);
  return entries_.size();
}

}  // namespace holdfast::fs
