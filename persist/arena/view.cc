// Generations and their tables, as a Reader shows them.

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "persist/arena/reader_impl.h"

namespace holdfast::arena {

const ContainerTables* GenerationView::Impl::tables_of(uint32_t container) const {
  for (size_t i = 0; i < catalog.tables.size(); ++i)
    if (catalog.manifest.containers[i].container.id == container) return &catalog.tables[i];
  return nullptr;
}

const Manifest& GenerationView::manifest() const {
  return impl_->manifest;
}

Result<MappingTable> GenerationView::mappings(uint32_t container) const {
  const Impl& view = *impl_;
  if (view.tables_of(container) == nullptr)
    return fail(fmt::format("container {}", container),
                fmt::format("is not in generation {}", view.entry.number));
  const std::scoped_lock lock(view.tables_lock);
  auto& cached = view.tables[container];
  if (!cached) {
    auto table = std::make_shared<MappingTable::Impl>();
    table->reader = view.reader;
    table->lease = view.lease;
    HOLDFAST_TRY_ASSIGN(LiveState state,
                        load_generation(*view.reader->medium, view.reader->found.superblock,
                                        view.catalog, container));
    table->set = std::move(state.containers.at(container).set);
    uint64_t at = 0;
    table->starts.reserve(table->set.chunks().size());
    for (const auto& chunk : table->set.chunks()) {
      table->starts.push_back(at);
      at += chunk.count;
    }
    cached = std::move(table);
  }
  return MappingTable(cached, cached->set.size());
}

std::span<const TablePage> GenerationView::table_pages(uint32_t container) const {
  const ContainerTables* tables = impl_->tables_of(container);
  if (tables == nullptr || tables->page_index.empty()) return {};
  const uint64_t count = tables->page_index.length / (sizeof(TablePage) + sizeof(PageLocation));
  const std::byte* at = impl_->reader->medium->data() + tables->page_index.offset;
  return {reinterpret_cast<const TablePage*>(at), count};
}

std::span<const std::byte> GenerationView::table_page(uint32_t container, uint64_t index) const {
  const auto pages = table_pages(container);
  if (index >= pages.size()) return {};
  PageLocation at;
  std::memcpy(&at,
              reinterpret_cast<const std::byte*>(pages.data() + pages.size()) + index * sizeof at,
              sizeof at);
  const ContainerTables* tables = impl_->tables_of(container);
  if (at.run >= tables->runs.size() || at.page >= tables->runs[at.run].length / kPageSize)
    return {};
  return {impl_->reader->medium->data() + tables->runs[at.run].offset + at.page * kPageSize,
          kPageSize};
}

std::vector<Object> GenerationView::objects() const {
  std::vector<Object> out;
  for (const NamedExtent& extent : generation_extents(impl_->entry, &impl_->catalog)) {
    Object object;
    object.name = extent.name;
    object.offset = extent.ref.offset;
    object.length = extent.ref.length;
    object.generation = impl_->entry.number;
    object.stored = extent.ref.hash;
    out.push_back(std::move(object));
  }
  return out;
}

Mapping MappingTable::at(uint64_t index) const {
  const auto it = std::upper_bound(impl_->starts.begin(), impl_->starts.end(), index);
  const auto chunk = static_cast<size_t>(it - impl_->starts.begin()) - 1;
  return impl_->set.chunks()[chunk].data[index - impl_->starts[chunk]];
}

void MappingTable::for_each(uint64_t first, uint64_t count,
                            const std::function<bool(const Mapping&)>& each) const {
  if (first >= size_ || count == 0) return;
  const auto it = std::upper_bound(impl_->starts.begin(), impl_->starts.end(), first);
  auto chunk = static_cast<size_t>(it - impl_->starts.begin()) - 1;
  uint64_t within = first - impl_->starts[chunk];
  for (const auto& chunks = impl_->set.chunks(); chunk < chunks.size(); ++chunk, within = 0)
    for (uint64_t i = within; i < chunks[chunk].count; ++i)
      if (count-- == 0 || !each(chunks[chunk].data[i])) return;
}

void MappingTable::for_each_run(const std::function<void(std::span<const Mapping>)>& each) const {
  if (impl_ == nullptr) return;
  impl_->set.for_each_run([&](std::span<const Mapping> run) {
    each(run);
    return true;
  });
}

MappingRuns MappingTable::runs() const {
  if (impl_ == nullptr) return [] { return std::span<const Mapping>(); };
  return [table = impl_, next = impl_->set.runs()] { return next(); };
}

std::optional<Mapping> MappingTable::find(uint64_t iova) const {
  if (impl_ == nullptr) return std::nullopt;
  return impl_->set.find(iova);
}

}  // namespace holdfast::arena
