#include "fs/arena_source.h"

#include <mutex>

namespace holdfast::fs {
namespace {

class ArenaGeneration final : public GenerationSource {
 public:
  ArenaGeneration(std::shared_ptr<const arena::Reader> reader, arena::GenerationView view,
                  std::vector<arena::MappingTable> tables)
      : reader_(std::move(reader)), view_(std::move(view)), tables_(std::move(tables)) {}

  const Manifest& manifest() const override { return view_.manifest(); }

  Result<void> mappings(size_t container, uint64_t first, uint64_t count,
                        const std::function<bool(const Mapping&)>& each) const override {
    if (container < tables_.size()) tables_[container].for_each(first, count, each);
    return {};
  }
  Result<uint64_t> mapping_count(size_t container) const override {
    return container < tables_.size() ? tables_[container].size() : 0;
  }
  std::span<const TablePage> table_pages(size_t container) const override {
    return view_.table_pages(id(container));
  }
  std::span<const std::byte> table_page(size_t container, uint64_t index) const override {
    return view_.table_page(id(container), index);
  }
  Result<void> verify() const override { return reader_->verify(view_.manifest().number); }

 private:
  uint32_t id(size_t container) const {
    return view_.manifest().containers[container].container.id;
  }
  std::shared_ptr<const arena::Reader> reader_;
  arena::GenerationView view_;
  std::vector<arena::MappingTable> tables_;  // by place in the manifest
};

class ArenaSource final : public Source {
 public:
  ArenaSource(std::string path, arena::Reader reader)
      : path_(std::move(path)),
        reader_(std::make_shared<const arena::Reader>(std::move(reader))),
        watch_(path_) {}

  bool refresh() override {
    const auto before = reader();
    if (!before->changed()) return false;
    auto opened = arena::Reader::open(path_);
    const std::lock_guard guard(lock_);
    if (!opened) {
      problem_ = opened.error().headline();
      return false;
    }
    problem_.clear();
    if (reader_ != before) return true;  // another thread was faster
    reader_ = std::make_shared<const arena::Reader>(std::move(*opened));
    return true;
  }
  arena::Header header() const override { return reader()->header(); }
  std::vector<uint64_t> generations() const override { return reader()->generations(); }
  Result<std::shared_ptr<const GenerationSource>> generation(uint64_t number) const override {
    auto from = reader();
    HOLDFAST_TRY_ASSIGN(auto view, from->generation(number));
    std::vector<arena::MappingTable> tables;
    for (const auto& record : view.manifest().containers) {
      HOLDFAST_TRY_ASSIGN(auto table, view.mappings(record.container.id));
      tables.push_back(std::move(table));
    }
    return std::make_shared<const ArenaGeneration>(std::move(from), std::move(view),
                                                   std::move(tables));
  }
  Result<std::vector<Event>> events() const override { return reader()->events(); }
  std::string problem() const override {
    const std::lock_guard guard(lock_);
    return problem_;
  }
  std::vector<arena::Damage> damage() const override { return watch_.wait(); }

 private:
  std::shared_ptr<const arena::Reader> reader() const {
    const std::lock_guard guard(lock_);
    return reader_;
  }
  std::string path_;
  mutable std::mutex lock_;
  std::shared_ptr<const arena::Reader> reader_;
  std::string problem_;
  mutable arena::DamageWatch watch_;
};

}  // namespace

Result<std::shared_ptr<Source>> open_arena_source(const std::string& path) {
  HOLDFAST_TRY_ASSIGN(auto reader, arena::Reader::open(path));
  return std::make_shared<ArenaSource>(path, std::move(reader));
}

}  // namespace holdfast::fs
