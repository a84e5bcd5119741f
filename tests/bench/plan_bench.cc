// From an arena on the medium to a plan that could be run: open, inspect, plan; every checksum as
// well is "ours_verified" (what verifying costs has a measure of its own). Against reading the same
// bytes once. The port answers from memory, so that no device's sysfs is measured.

#include <fcntl.h>
#include <unistd.h>

#include <vector>

#include "restore/prepare.h"
#include "tests/bench/arena_fixture.h"
#include "tests/bench/measure.h"

namespace holdfast::bench {
namespace {

std::unexpected<Error> not_asked() {
  return fail("bench port", "a plan opens and maps nothing");
}

class AnsweringPort : public kernel::Port {
 public:
  explicit AnsweringPort(Region region) : region_(std::move(region)) {}
  [[nodiscard]] std::string_view name() const override { return "bench"; }
  [[nodiscard]] ContainerKind kind() const override { return ContainerKind::kType1; }
  Result<kernel::Capabilities> probe() override {
    kernel::Capabilities out;
    out.port = "bench";
    out.map.answer = kernel::Answer::kYes;
    return out;
  }
  Result<Region> describe_region(const std::string&) override { return region_; }
  Result<Region> describe_region(BorrowedFd) override { return region_; }
  Result<Device> describe_device(const std::string&) override { return not_asked(); }
  Result<UniqueFd> open_region(const Region&) override { return not_asked(); }
  Result<ContainerFd> open_container(bool) override { return not_asked(); }
  Result<UniqueFd> attach(ContainerHandle, const Device&) override { return not_asked(); }
  Result<UniqueFd> open_device(BorrowedFd, const Device&) override { return not_asked(); }
  Result<kernel::ContainerLimits> limits(ContainerHandle) override { return not_asked(); }
  Result<void> map(ContainerHandle, const kernel::MapRequest&) override { return not_asked(); }
  Result<uint64_t> unmap(ContainerHandle, uint64_t, uint64_t) override { return not_asked(); }
  Result<void> forget(ContainerHandle, uint64_t, uint64_t) override { return not_asked(); }
  Result<void> hold(ContainerHandle, bool) override { return not_asked(); }
  Result<std::unique_ptr<kernel::TableSource>> tables(ContainerHandle) override {
    return not_asked();
  }
  Result<std::unique_ptr<kernel::TableSource>> inherited_tables(const Device&) override {
    return not_asked();
  }
  Result<void> check_container(ContainerHandle) override { return not_asked(); }
  Result<void> check_device(BorrowedFd) override { return not_asked(); }
  Result<void> suspend_vaddr(ContainerHandle) override { return not_asked(); }
  Result<uint64_t> suspend_vaddr(ContainerHandle, uint64_t, uint64_t) override {
    return not_asked();
  }
  Result<void> resume_vaddr(ContainerHandle, uint64_t, uint64_t, void*) override {
    return not_asked();
  }

 private:
  Region region_;
};

void open_and_plan(benchmark::State& state) {
  FilledArena arena("plan.arena", kMany);
  arena.close();
  std::vector<arena::Object> objects;
  Region region;
  {
    const auto reader = must(arena::Reader::open(arena.path()));
    const auto view = must(reader.current());
    objects = view.objects();
    region = view.manifest().regions.at(0);
  }
  region.id = 0;
  region.name.clear();
  AnsweringPort port(region);
  restore::Request request;
  request.policy = Policy::kRemap;
  request.allow_weaker = true;
  request.check_token = false;
  const UniqueFd file = must(open_fd(arena.path(), O_RDONLY));
  uint64_t length = 0;
  for (const auto& object : objects) length += object.length;
  std::vector<std::byte> buffer(length);  // used every round: no page fault in the floor
  uint64_t bytes = 0;
  const auto prepare = [&](bool checksums) {
    request.checksums = checksums;
    const auto reader = must(arena::Reader::open(arena.path()));
    const auto prepared = must(restore::prepare(reader, port, {}, request));
    if (const auto refusal = prepared.plan.refusal()) give_up(refusal->message());
    if (prepared.plan.containers.at(0).mappings != kMany) give_up("the plan misses mappings");
  };
  std::vector<double> verified;
  in_turns(
      state, [&] { prepare(false); },
      [&] {
        bytes = 0;
        for (const auto& object : objects) {
          const ssize_t n = ::pread(file.get(), buffer.data() + bytes, object.length,
                                    static_cast<off_t>(object.offset));
          if (n != static_cast<ssize_t>(object.length)) give_up("the floor could not read");
          bytes += object.length;
        }
      },
      [](double s) { return s * 1e3; });
  for (int i = 0; i < 15; ++i) verified.push_back(seconds([&] { prepare(true); }) * 1e3);
  state.counters["ours_verified"] = median(verified);
  if (bytes < kMany * sizeof(Mapping)) give_up("the floor read too little");
}
BENCHMARK(open_and_plan)->Name("open-and-plan")->UseManualTime()->Iterations(31);

}  // namespace
}  // namespace holdfast::bench
