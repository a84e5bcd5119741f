#include "fake_source.h"

#include <algorithm>

namespace holdfast::fs::testing {

uint64_t FakeTables::add(uint32_t level) {
  const uint64_t at = next_;
  next_ += 4096;
  pages_[at].level = level;
  return at;
}

void FakeTables::map(uint64_t iova, uint64_t physical, uint32_t access, uint32_t level) {
  uint64_t at = root_;
  for (uint32_t l = levels_; l > level; --l) {
    const uint32_t index = pagetable::entry_index(iova, l);
    if (!pagetable::present(pages_[at].entries[index])) {
      const uint64_t below = add(l - 1);
      pages_[at].entries[index] = below | pagetable::kEntryRead | pagetable::kEntryWrite;
    }
    at = pagetable::entry_address(pages_[at].entries[index]);
  }
  pages_[at].entries[pagetable::entry_index(iova, level)] =
      physical | access | (level > 1 ? pagetable::kEntryLargePage : 0);
}

std::vector<uint64_t> FakeTables::addresses() const {
  std::vector<uint64_t> out;
  for (const auto& [address, page] : pages_) out.push_back(address);
  return out;
}

FakeGeneration small_generation(uint64_t number) {
  FakeGeneration out;
  Manifest& manifest = out.manifest;
  manifest.number = number;
  manifest.created_at_ns = 1'700'000'000'000'000'000 + number;
  manifest.arena.bytes.fill(7);
  manifest.kernel_release = "6.1.0-test";
  manifest.host = "host-a";
  Region ram;
  ram.id = 3;
  ram.name = "guest-ram";
  ram.kind = RegionKind::kDevdax;
  ram.path = "/dev/dax0.0";
  ram.physical_base = 0x100000000;
  ram.length = 1ull << 40;
  ram.file_device = 0xfd05;
  ram.file_inode = 4711;
  Region rom = ram;
  rom.id = 9;
  rom.name = "rom";
  rom.physical_base = 0;
  rom.length = 1 << 20;
  manifest.regions = {ram, rom};
  ContainerRecord record;
  record.container.id = 1;
  record.container.name = "vm0";
  record.container.kind = ContainerKind::kSim;
  Device device;
  device.bdf = "0000:00:04.0";
  device.vendor = 0x8086;
  device.device = 0x10d3;
  device.class_code = 0x020000;
  device.group = "7";
  device.group_members = {device.bdf};
  device.bars = {{0, 0xfe000000, 0x20000, 0x40200}};
  record.container.devices = {device};
  manifest.containers = {record};
  out.mappings.resize(1);
  return out;
}

void add_mapping(FakeGeneration& generation, size_t container, const Mapping& mapping,
                 bool mapped) {
  ContainerRecord& record = generation.manifest.containers[container];
  generation.mappings[container].push_back(mapping);
  record.mapping_count = generation.mappings[container].size();
  if (!mapped) return;
  if (generation.tables.size() <= container) generation.tables.resize(container + 1);
  FakeTables& tables = generation.tables[container];
  const Region* region = generation.manifest.find_region(mapping.region);
  for (uint64_t at = 0; at < mapping.size; at += 4096)
    tables.map(mapping.iova + at, region->physical_base + mapping.region_offset + at,
               mapping.access);
  record.table_root = tables.root();
  record.table_levels = tables.levels();
  record.table_page_count = tables.pages().size();
  record.container.evidence = Evidence::kTables;
}

class FakeSource::View final : public GenerationSource {
 public:
  explicit View(std::shared_ptr<const FakeGeneration> of) : of_(std::move(of)) {
    pages_.resize(of_->manifest.containers.size());
    bytes_.resize(pages_.size());
    for (size_t i = 0; i < of_->tables.size(); ++i)
      for (const auto& [address, page] : of_->tables[i].pages()) {
        TablePage out;
        out.physical = address;
        out.level = page.level;
        pages_[i].push_back(out);
        bytes_[i].push_back(reinterpret_cast<const std::byte*>(page.entries));
      }
  }
  const Manifest& manifest() const override { return of_->manifest; }
  Result<void> mappings(size_t container, uint64_t first, uint64_t count,
                        const std::function<bool(const Mapping&)>& each) const override {
    const auto& all = of_->mappings[container];
    for (uint64_t i = first; i < all.size() && i - first < count; ++i)
      if (!each(all[i])) break;
    return {};
  }
  Result<uint64_t> mapping_count(size_t container) const override {
    return of_->mappings[container].size();
  }
  std::span<const TablePage> table_pages(size_t container) const override {
    return pages_[container];
  }
  std::span<const std::byte> table_page(size_t container, uint64_t index) const override {
    return {bytes_[container][index], 4096};
  }
  Result<void> verify() const override {
    if (of_->damaged)
      return refuse(Exit::kVerification, "HF-VERIFY-CHECKSUM", "vm0 mappings", "checksum differs");
    return {};
  }

 private:
  std::shared_ptr<const FakeGeneration> of_;
  std::vector<std::vector<TablePage>> pages_;
  std::vector<std::vector<const std::byte*>> bytes_;
};

bool FakeSource::refresh() {
  const std::lock_guard guard(lock_);
  if (shown_sequence_ == sequence_) return false;
  shown_ = all_;
  shown_sequence_ = sequence_;
  return true;
}

arena::Header FakeSource::header() const {
  const std::lock_guard guard(lock_);
  arena::Header out;
  out.path = "/var/lib/arena";
  out.uuid.bytes.fill(7);
  out.format = 1;
  out.medium = "file";
  out.survives = {"kill", "kexec"};
  out.size = 64 << 20;
  out.main_size = 48 << 20;
  out.used = 1 << 20;
  out.files_quota = 16 << 20;
  out.commit_sequence = shown_sequence_;
  out.current = shown_.empty() ? 0 : shown_.rbegin()->first;
  return out;
}

std::vector<uint64_t> FakeSource::generations() const {
  const std::lock_guard guard(lock_);
  std::vector<uint64_t> out;
  for (const auto& [number, generation] : shown_) out.push_back(number);
  return out;
}

Result<std::shared_ptr<const GenerationSource>> FakeSource::generation(uint64_t number) const {
  const std::lock_guard guard(lock_);
  const auto it = shown_.find(number);
  if (it == shown_.end()) return fail("generation", "is not retained");
  std::shared_ptr<const GenerationSource> out = std::make_shared<const View>(it->second);
  leases_.push_back(out);
  return out;
}

Result<std::vector<Event>> FakeSource::events() const {
  const std::lock_guard guard(lock_);
  return events_;
}

void FakeSource::commit(FakeGeneration generation) {
  const std::lock_guard guard(lock_);
  const uint64_t number = generation.manifest.number;
  all_[number] = std::make_shared<const FakeGeneration>(std::move(generation));
  ++sequence_;
}

void FakeSource::drop(uint64_t number) {
  const std::lock_guard guard(lock_);
  all_.erase(number);
  ++sequence_;
}

void FakeSource::add_event(Event event) {
  const std::lock_guard guard(lock_);
  events_.push_back(std::move(event));
  ++sequence_;
}

size_t FakeSource::leases() const {
  const std::lock_guard guard(lock_);
  return static_cast<size_t>(
      std::ranges::count_if(leases_, [](const auto& lease) { return !lease.expired(); }));
}

}  // namespace holdfast::fs::testing
