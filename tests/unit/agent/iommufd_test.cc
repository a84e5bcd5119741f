// Address spaces of iommufd: registered, recorded and taken by number, devices without groups, and
// mappings that only their owner can make.

#include "restore/kernel/iommufd.h"

#include "tests/unit/agent/office.h"

namespace holdfast::agent {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::Office;

kernel::Port& iommufd(void* port) {
  return *static_cast<sim::SimPort*>(port)->serving(ContainerKind::kIommufd);
}

/// The library's calls on the simulated kernel's iommufd.
hf_kernel_ops sim_ops(sim::SimPort& port) {
  hf_kernel_ops ops{};
  ops.size = sizeof ops;
  ops.context = &port;
  ops.map = [](void* context, int fd, const hf_kernel_map* map) {
    const kernel::MapRequest request{.iova = map->iova,
                                     .size = map->size,
                                     .vaddr = map->vaddr,
                                     .access = map->access,
                                     .memory = BorrowedFd(map->memory_fd),
                                     .memory_offset = map->memory_offset};
    auto done = iommufd(context).map({BorrowedFd(fd), map->ioas_id}, request);
    return done ? 0 : -done.error().sys_errno;
  };
  ops.unmap = [](void*, int, uint64_t, uint64_t, uint64_t*) { return -ENOTSUP; };
  ops.unmap_all = [](void*, int, uint64_t*) { return -ENOTSUP; };
  ops.unmap_ioas = [](void* context, int fd, uint32_t ioas, uint64_t iova, uint64_t size,
                      uint64_t* bytes) {
    auto done = iommufd(context).unmap({BorrowedFd(fd), ioas}, iova, size);
    if (!done) return -done.error().sys_errno;
    *bytes = *done;
    return 0;
  };
  return ops;
}

class IommufdOffice : public Office {
 protected:
  void SetUp() override {
    Office::SetUp();
    connection = connect();
    const Region region = port->describe_region(port->machine().region_path("dax0")).value();
    memory_fd = port->open_region(region).value();
    view = MappedRange::map(memory_fd, 0, region.length, MappedRange::Mode::kReadWrite).value();
    ASSERT_EQ(hf_register_memory(connection, "ram", memory_fd.get(), region.path.c_str(), &memory,
                                 &error),
              0)
        << error.cause;
  }
  void TearDown() override {
    if (connection != nullptr) hf_close(connection);
    Office::TearDown();
  }
  hf_connection* connect() {
    hf_connection* out = nullptr;
    const std::string path = socket();
    hf_connect_options options{};
    options.size = sizeof options;
    options.socket = path.c_str();
    hf_callbacks callbacks{};
    callbacks.size = sizeof callbacks;
    callbacks.quiesce = [](void*, hf_connection* from, uint64_t freeze, uint32_t) {
      hf_quiesced(from, freeze, 1, "");
    };
    options.callbacks = &callbacks;
    EXPECT_EQ(hf_connect(&options, &out, &error), 0) << error.cause;
    const hf_kernel_ops ops = sim_ops(*port);
    EXPECT_EQ(hf_set_kernel_ops(out, &ops), 0);
    return out;
  }
  int add(const char* name, ContainerHandle space, hf_container** out, uint32_t hold = 0) {
    hf_container_options options{};
    options.size = sizeof options;
    options.name = name;
    options.kind = HF_KIND_IOMMUFD;
    options.fd = space.get();
    options.hold_seconds = hold;
    options.ioas_id = space.ioas();
    return hf_register_container(connection, &options, out, &error);
  }
  int map(hf_container* container, uint64_t iova, uint64_t offset) {
    hf_mapping mapping{};
    mapping.iova = iova;
    mapping.size = 4096;
    mapping.offset = offset;
    mapping.memory = memory;
    mapping.access = HF_READ | HF_WRITE;
    return hf_map(container, &mapping, view.data() + offset, &error);
  }
  kernel::Port& spaces() { return iommufd(port.get()); }

  hf_connection* connection = nullptr;
  hf_error error{};
  UniqueFd memory_fd;
  MappedRange view;
  hf_memory* memory = nullptr;
};

TEST_F(IommufdOffice, TwoAddressSpacesOfOneDescriptorAreTwoContainers) {
  const ContainerFd first = spaces().open_container(false).value();
  auto second = port->call(sim::Call::kIoasAlloc, first);
  ASSERT_TRUE(second);
  const auto other = static_cast<uint32_t>(second->values[0]);
  ASSERT_NE(other, first.ioas());
  const UniqueFd device = spaces().attach(first, port->describe_device(kBdf).value()).value();
  const UniqueFd beside =
      spaces().attach({first, other}, port->describe_device(kOther).value()).value();

  hf_container *vm0 = nullptr, *vm1 = nullptr;
  EXPECT_EQ(add("nobody", {first, 4711}, &vm0), -ENOENT);
  EXPECT_STREQ(error.code, "HF-CLIENT-DESCRIPTOR");
  ASSERT_EQ(add("vm0", first, &vm0, 60), 0) << error.cause;
  ASSERT_EQ(add("vm1", {first, other}, &vm1), 0) << error.cause;
  ASSERT_EQ(hf_register_device(vm0, kBdf, -1, device.get(), 0, &error), 0) << error.cause;
  ASSERT_EQ(hf_register_device(vm1, kOther, -1, beside.get(), 0, &error), 0) << error.cause;

  ASSERT_EQ(map(vm0, 0x1000, 0), 0) << error.cause;
  ASSERT_EQ(map(vm0, 0x3000, 0), 0) << error.cause;
  ASSERT_EQ(map(vm1, 0x1000, 4096), 0) << "another address space: " << error.cause;
  EXPECT_EQ(map(vm1, 0x1000, 4096), -EEXIST);
  EXPECT_EQ(hf_unmap(vm0, 0x3000, UINT64_MAX, nullptr, &error), -EINVAL);
  uint64_t bytes = 0;
  EXPECT_EQ(hf_unmap(vm0, 0x3000, 4096, &bytes, &error), 0) << error.cause;
  EXPECT_EQ(bytes, 4096u);
  EXPECT_THAT(iovas(recorded("vm0")), ElementsAre(0x1000));
  EXPECT_EQ(hf_unmap_all(vm1, &bytes, &error), 0) << error.cause;
  EXPECT_EQ(bytes, 4096u);
  EXPECT_THAT(iovas(recorded("vm1")), ElementsAre());

  // Whoever takes it gets the number along with the descriptor, and no group.
  hf_close(std::exchange(connection, nullptr));
  ASSERT_TRUE(
      testing::eventually([&] { return ask("health")->dump().find("held") != std::string::npos; }));
  connection = connect();
  hf_taken* taken = nullptr;
  ASSERT_EQ(hf_take(connection, "vm0", 0, &taken, &error), 0) << error.cause;
  EXPECT_EQ(taken->kind, uint32_t{HF_KIND_IOMMUFD});
  EXPECT_EQ(taken->ioas_id, first.ioas());
  ASSERT_EQ(taken->device_count, 1u);
  EXPECT_EQ(taken->devices[0].group_fd, -1);
  EXPECT_GE(taken->devices[0].device_fd, 0);
  EXPECT_EQ(hf_unmap(taken->container, 0x1000, 4096, &bytes, &error), 0) << error.cause;
  EXPECT_EQ(bytes, 4096u);
  hf_taken_free(taken);
}

/// What a restore leaves behind that opened an address space, and left the mappings to its owner.
class LeftToTheOwner : public IommufdOffice {
 protected:
  static constexpr uint64_t kCount = 5;

  void SetUp() override {
    IommufdOffice::SetUp();
    {
      const ContainerFd space = spaces().open_container(false).value();
      const UniqueFd device = spaces().attach(space, port->describe_device(kBdf).value()).value();
      hf_container* vm = nullptr;
      ASSERT_EQ(add("vm0", space, &vm), 0) << error.cause;
      ASSERT_EQ(hf_register_device(vm, kBdf, -1, device.get(), HF_CONSENTS_TO_REINIT, &error), 0);
      for (uint64_t i = 0; i < kCount; ++i) ASSERT_EQ(map(vm, i * 8192, i * 4096), 0);
      ASSERT_EQ(hf_sync(connection, &error), 0);
      std::atomic<bool> done{false};
      std::thread listening([&] {
        while (!done) {
          hf_dispatch(connection, nullptr);
          std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
      });
      const auto sealed = freeze("remap", 5000);
      done = true;
      listening.join();
      ASSERT_TRUE(sealed) << sealed.error().message();
      close_office();
      hf_close(std::exchange(connection, nullptr));
    }
    Holding holding;
    holding.container = spaces().open_container(false).value();
    holding.unmapped = true;
    Holding::DeviceDescriptors device;
    device.bdf = kBdf;
    device.device = spaces().attach(holding.container, port->describe_device(kBdf).value()).value();
    holding.devices.push_back(std::move(device));
    Holding::Memory kept;
    kept.name = "ram";
    kept.length = view.size();
    kept.fd = memory_fd.duplicate().value();
    {
      auto writer = arena::Writer::open(arena());
      ASSERT_TRUE(writer) << writer.error().message();
      kept.region = writer->live().regions.at(0).id;
      ASSERT_TRUE(writer->restore_started(writer->header().frozen, Uuid{}));
      ASSERT_TRUE(writer->restore_done("vm0"));
      ASSERT_TRUE(writer->restore_finished());
    }
    holding.memory.push_back(std::move(kept));
    open_office([&holding](Server& agent) {
      ASSERT_TRUE(agent.custody().deposit("vm0", std::move(holding)));
    });
    connection = connect();
  }
  [[nodiscard]] uint64_t mapped() const { return port->statistics(getpid())->mappings; }
};

TEST_F(LeftToTheOwner, TakingItMakesThemAsRecorded) {
  EXPECT_EQ(mapped(), 0u);
  hf_taken* taken = nullptr;
  ASSERT_EQ(hf_take(connection, "vm0", 0, &taken, &error), 0) << error.cause;
  EXPECT_EQ(mapped(), kCount);
  EXPECT_EQ(port->statistics(getpid())->locked_bytes, kCount * 4096);
  uint64_t bytes = 0;
  for (uint64_t i = 0; i < kCount; ++i) {
    EXPECT_EQ(hf_unmap(taken->container, i * 8192, 4096, &bytes, &error), 0) << error.cause;
    EXPECT_EQ(bytes, 4096u) << i;
  }
  hf_taken_free(taken);
}

TEST_F(LeftToTheOwner, WhoDiedBeforeConfirmingLeavesNothingInTheWayOfTheNext) {
  hf_taken* taken = nullptr;
  ASSERT_EQ(hf_take(connection, "vm0", HF_TAKE_CONFIRM_LATER, &taken, &error), 0) << error.cause;
  EXPECT_EQ(mapped(), kCount);
  hf_taken_free(taken);
  hf_close(std::exchange(connection, nullptr));
  connection = connect();
  ASSERT_TRUE(testing::eventually([&] {
    return hf_take(connection, "vm0", 0, &taken, &error) == 0;
  })) << error.cause;
  EXPECT_EQ(mapped(), kCount);
  hf_taken_free(taken);
}

}  // namespace
}  // namespace holdfast::agent
