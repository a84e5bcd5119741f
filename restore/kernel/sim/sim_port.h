#pragma once

// The port to a simulated kernel. Several processes may have ports to the same kernel; descriptors
// pass between them as those of a real kernel do.
//
// Thread safety: calls of one port take turns. After fork(2) the child's first call makes a
// connection of its own, so that locked memory counts for the child.

#include <memory>
#include <mutex>
#include <string>

#include "persist/base/uuid.h"
#include "restore/kernel/iommufd_calls.h"
#include "restore/kernel/port.h"
#include "restore/kernel/sim/machine.h"
#include "restore/kernel/sim/transport.h"

namespace holdfast::sim {

class SimPort : public kernel::Port {
 public:
  /// `where` is the kernel's socket, with or without "sim:" before it.
  static Result<std::unique_ptr<SimPort>> connect(const std::string& where);
  ~SimPort() override;

  [[nodiscard]] std::string_view name() const override { return "sim"; }
  [[nodiscard]] ContainerKind kind() const override { return ContainerKind::kSim; }
  /// iommufd of the same kernel beside it.
  [[nodiscard]] kernel::Port* serving(ContainerKind kind) override;

  Result<kernel::Capabilities> probe() override;

  Result<Device> describe_device(const std::string& bdf) override;
  Result<Region> describe_region(const std::string& path) override;
  Result<Region> describe_region(BorrowedFd memory) override;
  std::vector<std::string> device_addresses() override;
  std::vector<std::string> region_paths() override;
  Result<UniqueFd> open_region(const Region& region) override;

  Result<ContainerFd> open_container(bool preserved) override;
  Result<UniqueFd> attach(ContainerHandle container, const Device& device) override;
  Result<UniqueFd> open_device(BorrowedFd group, const Device& device) override;
  Result<kernel::ContainerLimits> limits(ContainerHandle container) override;

  /// The memory is found by `request.memory` where that is given, else by what is mapped at
  /// `request.vaddr`. Only the machine's regions can be mapped: EFAULT else.
  Result<void> map(ContainerHandle container, const kernel::MapRequest& request) override;
  Result<uint64_t> unmap(ContainerHandle container, uint64_t iova, uint64_t size) override;
  Result<void> forget(ContainerHandle container, uint64_t iova, uint64_t size) override;

  Result<void> hold(ContainerHandle container, bool held) override;
  Result<std::vector<Parked>> parked() override;
  Result<bool> is_taken(const Device& device) override;
  Result<bool> block(const Device& device) override;
  Result<std::unique_ptr<kernel::TableSource>> tables(ContainerHandle container) override;
  Result<std::unique_ptr<kernel::TableSource>> tables_of(
      ContainerHandle container, const std::vector<Device>& devices) override;
  Result<std::unique_ptr<kernel::TableSource>> inherited_tables(const Device& device) override;

  Result<void> check_container(ContainerHandle fd) override;
  Result<void> check_device(BorrowedFd fd) override;

  Result<void> suspend_vaddr(ContainerHandle container) override;
  Result<uint64_t> suspend_vaddr(ContainerHandle container, uint64_t iova, uint64_t size) override;
  Result<void> resume_vaddr(ContainerHandle container, uint64_t iova, uint64_t size,
                            void* vaddr) override;

  // -- beyond the port: what a driver, a demo and tests need
  // -----------------------------------------
  /// The bus master bit in the device's configuration space, which a device descriptor gives access
  /// to.
  Result<void> set_bus_master(BorrowedFd device, bool on);
  /// What the running kernel says of itself: its boot id (another one for each boot) and what
  /// /proc/cmdline would say.
  Result<Uuid> boot_id();
  Result<std::string> command_line();
  [[nodiscard]] const Machine& machine() const { return machine_; }

  struct Statistics {
    uint64_t containers = 0, mappings = 0;
    uint64_t locked_bytes = 0;  ///< of the process asked about
    uint64_t inherited_domains = 0;
    uint64_t table_pages = 0;  ///< of the pool, in use
    uint64_t descriptors = 0;  ///< container, group and device descriptors that are open
  };
  Result<Statistics> statistics(int32_t pid);

  /// One system call, as its message; Reply::error is for the caller to look at.
  Result<Reply> call(Call call, BorrowedFd about, std::array<uint64_t, 6> args = {},
                     std::string_view text = {}, UniqueFd* handed = nullptr);

 private:
  SimPort(std::string path, Machine machine);

  Result<void> connect_locked();
  Result<Reply> exchange(const Request& request, BorrowedFd about, UniqueFd* handed);
  Result<Reply> hello();
  Result<void> check_kind(BorrowedFd fd, ObjectKind want, std::string_view what);

  std::string path_;
  Machine machine_;
  std::mutex lock_;  ///< of connection_ and connected_pid_
  UniqueFd connection_;
  int connected_pid_ = 0;
  std::unique_ptr<kernel::IommufdCalls> iommufd_calls_;
  std::unique_ptr<kernel::Port> iommufd_;
};

}  // namespace holdfast::sim
