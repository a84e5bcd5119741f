#include "kexec/demo_driver.h"

#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <memory>
#include <span>
#include <vector>

#include "persist/base/checked.h"
#include "persist/base/mapped_range.h"
#include "persist/client/holdfast.h"
#include "restore/kernel/sim/device.h"
#include "restore/kernel/sim/sim_port.h"

namespace holdfast::command::demo {
namespace {

using namespace literals;

constexpr uint64_t kSuperpageIova = 0x1'4000'0000;
constexpr uint32_t kSuperpageRingEntries = 64;

Error error_of(const hf_error& error) {
  Error out;
  out.exit = error.exit_code > 0 ? static_cast<Exit>(error.exit_code) : Exit::kFailed;
  out.code = static_cast<const char*>(error.code);
  out.object = static_cast<const char*>(error.object);
  out.cause = static_cast<const char*>(error.cause);
  out.remedy = static_cast<const char*>(error.remedy);
  out.sys_errno = error.sys_errno;
  return out;
}

// libholdfast makes VFIO calls; here they go to the simulated kernel instead.
int map_in_sim(void* context, int container, const hf_kernel_map* map) {
  kernel::MapRequest request;
  request.iova = map->iova;
  request.size = map->size;
  request.vaddr = map->vaddr;
  request.access = map->access;
  request.memory = BorrowedFd(map->memory_fd);
  request.memory_offset = map->memory_offset;
  const auto result = static_cast<sim::SimPort*>(context)->map(BorrowedFd(container), request);
  if (result) return 0;
  return result.error().sys_errno != 0 ? -result.error().sys_errno : -EIO;
}

int unmap_in_sim(void* context, int container, uint64_t iova, uint64_t size, uint64_t* unmapped) {
  const auto result = static_cast<sim::SimPort*>(context)->unmap(BorrowedFd(container), iova, size);
  if (!result) return result.error().sys_errno != 0 ? -result.error().sys_errno : -EIO;
  if (unmapped != nullptr) *unmapped = *result;
  return 0;
}

// The simulated kernel has no "unmap all"; the drivers here never ask for it.
int unmap_all_in_sim(void* /*context*/, int /*container*/, uint64_t* /*unmapped*/) {
  return -EOPNOTSUPP;
}

struct CloseConnection {
  void operator()(hf_connection* connection) const { hf_close(connection); }
};
using Connection = std::unique_ptr<hf_connection, CloseConnection>;

Result<Connection> connect(const DriverOptions& options, sim::SimPort& port) {
  hf_error error{};
  hf_connect_options connect_options{};
  connect_options.size = sizeof connect_options;
  connect_options.socket = options.agent.c_str();
  connect_options.program = "demo-driver";
  hf_connection* raw = nullptr;
  if (hf_connect(&connect_options, &raw, &error) != 0) return std::unexpected(error_of(error));
  Connection connection(raw);
  hf_kernel_ops ops{};
  ops.size = sizeof ops;
  ops.context = &port;
  ops.map = map_in_sim;
  ops.unmap = unmap_in_sim;
  ops.unmap_all = unmap_all_in_sim;
  if (hf_set_kernel_ops(raw, &ops) != 0) return fail("libholdfast", "took no kernel calls");
  return connection;
}

// The first 64 pages of the 2 MiB mapping are in the ring too; their stamps use other slots of a
// page than their neighbours', as the device numbers slots by ring entry.
std::vector<uint64_t> ring_of(uint32_t mappings) {
  std::vector<uint64_t> ring;
  for (uint32_t i = 0; i < mappings; ++i) ring.push_back(i * kPageSize);
  for (uint32_t i = 0; i < kSuperpageRingEntries; ++i)
    ring.push_back(kSuperpageIova + i * kPageSize);
  return ring;
}

/// One region opened, mapped here and registered with the agent.
struct Memory {
  UniqueFd fd;
  MappedRange range;
  hf_memory* registered = nullptr;
};

Result<Memory> open_memory(sim::SimPort& port, hf_connection* connection, const std::string& path,
                           const char* name) {
  HOLDFAST_TRY_ASSIGN(const Region region, port.describe_region(path));
  Memory out;
  HOLDFAST_TRY_ASSIGN(out.fd, port.open_region(region));
  HOLDFAST_TRY_ASSIGN(out.range,
                      MappedRange::map(out.fd, 0, region.length, MappedRange::Mode::kReadWrite));
  hf_error error{};
  if (hf_register_memory(connection, name, out.fd.get(), path.c_str(), &out.registered, &error) !=
      0)
    return std::unexpected(error_of(error));
  return out;
}

Result<void> map_all(hf_container* container, const Memory& small, const Memory& large,
                     uint32_t mappings) {
  hf_error error{};
  const auto map = [&](const Memory& memory, uint64_t iova, uint64_t size, uint64_t offset) {
    hf_mapping mapping{};
    mapping.iova = iova;
    mapping.size = size;
    mapping.offset = offset;
    mapping.memory = memory.registered;
    mapping.access = HF_READ | HF_WRITE;
    return hf_map(container, &mapping, memory.range.data() + offset, &error);
  };
  // IOVA 0 is mapped, as a VM's memory always is, and neighbours in IOVA space are strangers in
  // memory (1021 is prime to the number of pages): an address used untranslated goes astray.
  const uint64_t pages = small.range.size() / kPageSize;
  for (uint64_t i = 0; i < mappings; ++i)
    if (map(small, i * kPageSize, kPageSize, ((i * 1021 + 5) % pages) * kPageSize) != 0)
      return std::unexpected(error_of(error));
  if (map(large, kSuperpageIova, 2_MiB, 4_MiB) != 0) return std::unexpected(error_of(error));
  return {};
}

}  // namespace

Result<void> first_driver(const DriverOptions& options, Link& link) {
  HOLDFAST_TRY_ASSIGN(auto port, sim::SimPort::connect(options.kernel));
  HOLDFAST_TRY_ASSIGN(const Device device, port->describe_device(kDeviceAddress));
  HOLDFAST_TRY_ASSIGN(const UniqueFd container_fd, port->open_container(true));
  HOLDFAST_TRY_ASSIGN(const UniqueFd group_fd, port->attach(container_fd, device));
  HOLDFAST_TRY_ASSIGN(const UniqueFd device_fd, port->open_device(group_fd, device));
  HOLDFAST_TRY_ASSIGN(const Connection connection, connect(options, *port));

  hf_error error{};
  hf_container_options container_options{};
  container_options.size = sizeof container_options;
  container_options.name = kContainerName;
  container_options.kind = HF_KIND_SIM;
  container_options.fd = container_fd.get();
  hf_container* container = nullptr;
  if (hf_register_container(connection.get(), &container_options, &container, &error) != 0 ||
      hf_register_device(container, kDeviceAddress, group_fd.get(), device_fd.get(),
                         HF_CONSENTS_TO_REINIT, &error) != 0)
    return std::unexpected(error_of(error));
  const auto& machine = port->machine();
  HOLDFAST_TRY_ASSIGN(const Memory small, open_memory(*port, connection.get(),
                                                      machine.region_path("dax0"), "guest-ram"));
  HOLDFAST_TRY_ASSIGN(const Memory large, open_memory(*port, connection.get(),
                                                      machine.region_path("dax1"), "guest-high"));
  HOLDFAST_TRY(map_all(container, small, large, options.mappings));
  if (hf_sync(connection.get(), &error) != 0) return std::unexpected(error_of(error));

  HOLDFAST_TRY_ASSIGN(sim::Driver driver, sim::Driver::attach(options.machine, kDeviceAddress));
  HOLDFAST_TRY(driver.program(ring_of(options.mappings)));
  HOLDFAST_TRY(port->set_bus_master(device_fd, true));
  driver.run(true);
  if (!driver.wait_transfers(2 * ring_of(options.mappings).size(), 10'000))
    return fail(kDeviceAddress, "the device does not transfer");
  link.say("running");
  // The device needs nobody from here on; neither does this program until it is killed.
  while (!link.hear().empty()) {
  }
  return {};
}

Result<void> second_driver(const DriverOptions& options, Link& link) {
  HOLDFAST_TRY_ASSIGN(auto port, sim::SimPort::connect(options.kernel));
  HOLDFAST_TRY_ASSIGN(const Connection connection, connect(options, *port));
  hf_error error{};
  hf_taken* taken = nullptr;
  if (hf_take(connection.get(), kContainerName, HF_TAKE_CONFIRM_LATER, &taken, &error) != 0)
    return std::unexpected(error_of(error));
  const std::unique_ptr<hf_taken, void (*)(hf_taken*)> owner(taken, hf_taken_free);

  // What the device wrote is where the record says, in memory that this process sees for the first
  // time.
  std::vector<MappedRange> ranges(taken->memory_count);
  for (size_t i = 0; i < taken->memory_count; ++i) {
    HOLDFAST_TRY_ASSIGN(
        ranges[i], MappedRange::map(BorrowedFd(taken->memory[i].fd), 0, taken->memory[i].length,
                                    MappedRange::Mode::kReadWrite));
  }
  const auto stamp_at = [&](const hf_mapping& mapping) -> const sim::Stamp* {
    for (size_t i = 0; i < taken->memory_count; ++i)
      if (taken->memory[i].memory == mapping.memory &&
          fits(mapping.offset, mapping.size, taken->memory[i].length))
        return reinterpret_cast<const sim::Stamp*>(ranges[i].data() + mapping.offset);
    return nullptr;
  };
  HOLDFAST_TRY_ASSIGN(sim::Driver driver, sim::Driver::attach(options.machine, kDeviceAddress));
  const uint64_t faults = driver.faults();
  if (!driver.wait_transfers(ring_of(options.mappings).size(), 3'000))
    return fail(kDeviceAddress, "the device no longer transfers");
  if (driver.faults() != faults)
    return fail(kDeviceAddress,
                fmt::format("{} faults since it was taken", driver.faults() - faults));
  for (size_t i = 0; i < taken->mapping_count; ++i) {
    const hf_mapping& mapping = taken->mappings[i];
    const sim::Stamp* page = stamp_at(mapping);
    if (page == nullptr) return fail(fmt::format("iova {:#x}", mapping.iova), "has no memory");
    if (mapping.size != kPageSize) continue;
    const uint64_t entry = mapping.iova / kPageSize;
    const sim::Stamp& stamp = page[entry % sim::kStampSlots];
    if (stamp.magic != sim::kStampMagic || stamp.iova != mapping.iova)
      return fail(fmt::format("iova {:#x}", mapping.iova), "holds no stamp of the device");
  }
  if (hf_taken_confirm(taken, &error) != 0) return std::unexpected(error_of(error));
  link.say("taken");
  if (link.hear().empty()) return {};
  driver.run(false);
  link.say("stopped");
  return {};
}

}  // namespace holdfast::command::demo
