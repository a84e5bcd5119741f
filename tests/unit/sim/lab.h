#pragma once

// A machine, a kernel on it and a driver with a device that does DMA: the words of the simulator's
// tests. Everything is in a folder that goes with the fixture.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <memory>
#include <vector>

#include "persist/base/checked.h"
#include "persist/base/mapped_range.h"
#include "persist/pagetable/compare.h"
#include "restore/kernel/sim/census.h"
#include "restore/kernel/sim/context.h"
#include "restore/kernel/sim/device.h"
#include "restore/kernel/sim/kernel.h"
#include "restore/kernel/sim/sim_port.h"
#include "tests/support/scratch.h"

namespace holdfast::sim::testing {

using namespace holdfast::literals;

template <typename T>
int code(const Result<T>& result) {
  return result ? 0 : result.error().sys_errno;
}

class Lab : public ::testing::Test {
 protected:
  static constexpr const char* kBdf = "0000:00:04.0";

  void SetUp() override {
    auto made = Machine::create(folder, machine_options);
    ASSERT_TRUE(made) << made.error().message();
    machine = std::make_unique<Machine>(std::move(*made));
  }

  void boot(Behaviour behaviour = Behaviour::kPatched) {
    options.behaviour = behaviour;
    auto booted = Kernel::boot(folder, socket, options);
    ASSERT_TRUE(booted) << booted.error().message();
    kernel = std::move(*booted);
    auto connected = SimPort::connect("sim:" + socket);
    ASSERT_TRUE(connected) << connected.error().message();
    port = std::move(*connected);
  }
  /// The kernel's way out, and what dies with it: every process but the device.
  void kexec() {
    kernel->kexec();
    kernel.reset();
    port.reset();
    device.reset();
    group.reset();
    container.reset();
  }

  void open(bool preserved = true, const std::string& bdf = kBdf) {
    auto opened = port->open_container(preserved);
    ASSERT_TRUE(opened) << opened.error().message();
    container = std::move(*opened);
    auto attached = port->attach(container, *machine->describe_device(bdf));
    ASSERT_TRUE(attached) << attached.error().message();
    group = std::move(*attached);
  }
  void open_device(const std::string& bdf = kBdf) {
    auto opened = port->open_device(group, *machine->describe_device(bdf));
    ASSERT_TRUE(opened) << opened.error().message();
    device = std::move(*opened);
  }

  /// IOVA to memory such that nothing is in order: IOVA 0 is in use, consecutive pages are not, and
  /// both regions take part.
  std::vector<Mapping> scattered(uint32_t count) const {
    std::vector<Mapping> out;
    for (uint32_t i = 0; i < count; ++i) {
      const uint64_t place = (i * 37 + 11) % count;
      out.push_back({uint64_t{i} * 3 * 4096, 4096, place * 2 * 4096, 1 + i % 2, 3});
    }
    return out;
  }
  std::vector<pagetable::RegionPlace> places() const {
    std::vector<pagetable::RegionPlace> out;
    for (uint32_t i = 0; i < 2; ++i)
      out.push_back({i + 1, machine->registers().regions[i].physical_base});
    return out;
  }
  Result<void> map(const Mapping& mapping, kernel::MapMode mode = kernel::MapMode::kMap) {
    const std::string path = machine->region_path(mapping.region == 1 ? "dax0" : "dax1");
    HOLDFAST_TRY_ASSIGN(const UniqueFd fd, open_fd(path, O_RDWR));
    kernel::MapRequest request;
    request.iova = mapping.iova;
    request.size = mapping.size;
    request.vaddr = reinterpret_cast<void*>(0x7000'0000'0000 + mapping.iova);
    request.access = mapping.access;
    request.memory = fd;
    request.memory_offset = mapping.region_offset;
    request.mode = mode;
    return port->map(container, request);
  }
  void map_all(const std::vector<Mapping>& mappings, kernel::MapMode mode = kernel::MapMode::kMap) {
    for (const Mapping& mapping : mappings) {
      auto mapped = map(mapping, mode);
      ASSERT_TRUE(mapped) << mapped.error().message();
    }
  }

  /// A device at work on all of `mappings`.
  void start_dma(const std::vector<Mapping>& mappings, const std::string& bdf = kBdf) {
    auto started = DmaEngine::start(folder, bdf);
    ASSERT_TRUE(started) << started.error().message();
    engine = std::move(*started);
    auto attached = Driver::attach(folder, bdf);
    ASSERT_TRUE(attached);
    driver = std::make_unique<Driver>(std::move(*attached));
    std::vector<uint64_t> ring;
    for (const Mapping& mapping : mappings) ring.push_back(mapping.iova);
    ASSERT_TRUE(driver->program(ring));
    ASSERT_TRUE(port->set_bus_master(device, true));
    driver->run(true);
    ASSERT_TRUE(driver->wait_transfers(200, 5000));
  }
  Observation look(const std::vector<Mapping>& mappings) {
    auto seen = observe(*machine, kBdf, mappings, places());
    EXPECT_TRUE(seen) << seen.error().message();
    return seen ? *seen : Observation{};
  }
  /// The proof before adoption: what the live tables say.
  std::vector<pagetable::LeafRange> live(kernel::TableSource& source) {
    auto roots = source.roots();
    EXPECT_TRUE(roots);
    EXPECT_EQ(roots->size(), 1u);
    auto ranges = pagetable::read_ranges({roots->front().physical, roots->front().levels},
                                         [&](uint64_t physical) { return source.page(physical); });
    EXPECT_TRUE(ranges) << ranges.error().message();
    return ranges ? *ranges : std::vector<pagetable::LeafRange>{};
  }
  bool tables_agree(kernel::TableSource& source, const std::vector<Mapping>& mappings) {
    auto compared = pagetable::compare(mappings, places(), live(source));
    return compared && compared->equal();
  }

  holdfast::testing::TempDir scratch;
  std::string folder = scratch.path() + "/machine";
  std::string socket = scratch.path() + "/kernel";
  MachineOptions machine_options;
  KernelOptions options;
  std::unique_ptr<Machine> machine;
  std::unique_ptr<Kernel> kernel;
  std::unique_ptr<SimPort> port;
  UniqueFd container, group, device;
  std::unique_ptr<DmaEngine> engine;
  std::unique_ptr<Driver> driver;
};

}  // namespace holdfast::sim::testing
