#include "fs/retained.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

#include "fs/node.h"

namespace holdfast::fs {
namespace {

bool is_bdf(std::string_view text) {
  return !text.empty() && text.size() <= 32 &&
         text.find_first_not_of("0123456789abcdefABCDEF:.") == std::string_view::npos &&
         text != "." && text != "..";
}

// Names become path components and numbers inode bits: a generation that does not fit is not shown.
Result<void> check_shape(const GenerationSource& source) {
  const Manifest& manifest = source.manifest();
  if (manifest.containers.size() > kMaxContainers)
    return fail("manifest", fmt::format("{} containers", manifest.containers.size()));
  if (manifest.regions.size() > kMaxIndex)
    return fail("manifest", fmt::format("{} regions", manifest.regions.size()));
  for (const auto& region : manifest.regions) HOLDFAST_TRY(validate_name("region", region.name));
  for (size_t i = 0; i < manifest.containers.size(); ++i) {
    const Container& container = manifest.containers[i].container;
    HOLDFAST_TRY(validate_name("container", container.name));
    if (source.table_pages(i).size() > kMaxIndex)
      return fail(container.name, fmt::format("{} page-table pages", source.table_pages(i).size()));
    if (container.devices.size() > kMaxIndex)
      return fail(container.name, fmt::format("{} devices", container.devices.size()));
    for (const auto& device : container.devices)
      if (!is_bdf(device.bdf)) return fail(container.name, "a device's BDF is not one");
  }
  return {};
}

}  // namespace

std::shared_ptr<const TableIndex> Derived::tables(const GenerationSource& source,
                                                  size_t container) {
  const std::lock_guard guard(lock_);
  auto& slot = tables_[container];
  if (!slot) slot = std::make_shared<const TableIndex>(TableIndex::build(source, container));
  return slot;
}

Retained::Retained(std::shared_ptr<Source> source)
    : source_(std::move(source)),
      numbers_(source_->generations()),
      arena_(source_->header().uuid) {}

std::expected<Held, int> Retained::get(uint64_t number) {
  const std::lock_guard guard(lock_);
  if (!std::ranges::binary_search(numbers_, number)) return std::unexpected(ENOENT);
  Entry& entry = entries_[number];
  entry.used = Clock::now();
  if (!entry.held) {
    auto opened = source_->generation(number);
    if (opened)
      if (auto shape = check_shape(**opened); !shape) opened = std::unexpected(shape.error());
    if (!opened) {
      entry.problem = opened.error().headline();
      return std::unexpected(EIO);
    }
    entry.problem.clear();
    entry.held = std::move(*opened);
  }
  return Held{entry.held, entry.derived};
}

uint64_t Retained::number_of(uint64_t modulo) const {
  const std::lock_guard guard(lock_);
  for (const uint64_t number : numbers_)
    if (number % kGenerationModulus == modulo) return number;
  return 0;
}

std::vector<uint64_t> Retained::numbers() const {
  const std::lock_guard guard(lock_);
  return numbers_;
}

std::string Retained::problem(uint64_t number) const {
  const std::lock_guard guard(lock_);
  const auto it = entries_.find(number);
  return it == entries_.end() ? std::string() : it->second.problem;
}

std::vector<uint64_t> Retained::update() {
  auto now = source_->generations();
  const Uuid arena = source_->header().uuid;
  const std::lock_guard guard(lock_);
  std::vector<uint64_t> gone;
  for (const uint64_t number : numbers_)
    if (arena != arena_ || !std::ranges::binary_search(now, number)) {
      gone.push_back(number);
      entries_.erase(number);
    }
  arena_ = arena;
  numbers_ = std::move(now);
  return gone;
}

void Retained::release_idle(Clock::time_point before) {
  std::vector<std::shared_ptr<const GenerationSource>> released;  // destroyed without the lock
  const std::lock_guard guard(lock_);
  for (auto& [number, entry] : entries_)
    if (entry.held && entry.used < before) released.push_back(std::move(entry.held));
}

}  // namespace holdfast::fs
