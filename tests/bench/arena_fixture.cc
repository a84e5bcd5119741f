#include "tests/bench/arena_fixture.h"

#include <unistd.h>

#include "tests/bench/measure.h"

namespace holdfast::bench {

FilledArena::FilledArena(const std::string& name, uint64_t count, uint64_t table_bytes,
                         uint64_t files_quota)
    : path_(scratch(name)), count_(count) {
  ::unlink(path_.c_str());
  arena::InitOptions options;
  options.for_mappings = count;
  options.table_bytes = table_bytes;
  options.files_quota = files_quota;
  must(arena::init(path_, options));
  writer_ = std::make_unique<arena::Writer>(must(arena::Writer::open(path_)));

  Region region;
  region.name = "guest-ram";
  region.kind = RegionKind::kPmem;
  region.physical_base = 1ull << 40;
  region.length = 2 * count * kPageSize;
  region_ = must(writer_->add_region(region));
  Container container;
  container.name = "vm0";
  container.kind = ContainerKind::kType1;
  container.dma_entry_limit = 2'000'000;
  container.address_width = 48;
  container_ = must(writer_->add_container(container));
  for (uint64_t n = 0; n < count; ++n)
    must(writer_->apply({arena::Change::Kind::kMap, container_, mapping(n, 0)}));
  must(writer_->commit());
  must(writer_->checkpoint());
}

FilledArena::~FilledArena() {
  writer_.reset();
  ::unlink(path_.c_str());
}

Mapping FilledArena::mapping(uint64_t n, uint64_t round) const {
  return {.iova = 0x1000'0000 + n * 2 * kPageSize,
          .size = kPageSize,
          .region_offset = (2 * n + round % 2) * kPageSize,
          .region = region_,
          .access = kAccessRead | kAccessWrite};
}

void FilledArena::change(uint64_t changes) {
  ++round_;
  const uint64_t pairs = changes / 2;
  for (uint64_t i = 0; i < pairs; ++i) {
    const uint64_t n = i * (count_ / pairs);
    must(writer_->apply({arena::Change::Kind::kUnmap, container_, mapping(n, round_)}));
    must(writer_->apply({arena::Change::Kind::kMap, container_, mapping(n, round_)}));
  }
}

}  // namespace holdfast::bench
