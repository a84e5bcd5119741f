#pragma once

// A port that passes every verb on to another one: tests derive from it and change what they mean
// to.

#include "restore/kernel/port.h"

namespace holdfast::testing {

class ForwardingPort : public kernel::Port {
 public:
  explicit ForwardingPort(kernel::Port& to) : to_(to) {}

  [[nodiscard]] std::string_view name() const override { return to_.name(); }
  [[nodiscard]] ContainerKind kind() const override { return to_.kind(); }
  [[nodiscard]] Port* serving(ContainerKind kind) override {
    Port* port = to_.serving(kind);
    return port == &to_ ? this : port;
  }
  Result<kernel::Capabilities> probe() override { return to_.probe(); }
  Result<Device> describe_device(const std::string& bdf) override {
    return to_.describe_device(bdf);
  }
  Result<Region> describe_region(const std::string& path) override {
    return to_.describe_region(path);
  }
  Result<Region> describe_region(BorrowedFd memory) override { return to_.describe_region(memory); }
  std::vector<std::string> device_addresses() override { return to_.device_addresses(); }
  std::vector<std::string> region_paths() override { return to_.region_paths(); }
  Result<UniqueFd> open_region(const Region& region) override { return to_.open_region(region); }
  Result<ContainerFd> open_container(bool preserved) override {
    return to_.open_container(preserved);
  }
  Result<ContainerFd> open_container_of(bool preserved,
                                        const std::vector<Device>& devices) override {
    // A test that changes what opening means has one verb to change.
    return to_.kind() == ContainerKind::kVhostVdpa ? to_.open_container_of(preserved, devices)
                                                   : open_container(preserved);
  }
  Result<UniqueFd> attach(ContainerHandle container, const Device& device) override {
    return to_.attach(container, device);
  }
  Result<UniqueFd> open_device(BorrowedFd group, const Device& device) override {
    return to_.open_device(group, device);
  }
  Result<kernel::ContainerLimits> limits(ContainerHandle container) override {
    return to_.limits(container);
  }
  Result<void> map(ContainerHandle container, const kernel::MapRequest& request) override {
    return to_.map(container, request);
  }
  Result<uint64_t> unmap(ContainerHandle container, uint64_t iova, uint64_t size) override {
    return to_.unmap(container, iova, size);
  }
  Result<void> forget(ContainerHandle container, uint64_t iova, uint64_t size) override {
    return to_.forget(container, iova, size);
  }
  Result<void> hold(ContainerHandle container, bool held) override {
    return to_.hold(container, held);
  }
  Result<std::vector<Parked>> parked() override { return to_.parked(); }
  Result<bool> is_taken(const Device& device) override { return to_.is_taken(device); }
  Result<bool> block(const Device& device) override { return to_.block(device); }
  Result<std::unique_ptr<kernel::TableSource>> tables(ContainerHandle container) override {
    return to_.tables(container);
  }
  Result<std::unique_ptr<kernel::TableSource>> inherited_tables(const Device& device) override {
    return to_.inherited_tables(device);
  }
  Result<void> check_container(ContainerHandle fd) override { return to_.check_container(fd); }
  Result<void> check_device(BorrowedFd fd) override { return to_.check_device(fd); }
  Result<void> check_vaddr(ContainerHandle container) override {
    return to_.check_vaddr(container);
  }
  Result<void> suspend_vaddr(ContainerHandle container) override {
    return to_.suspend_vaddr(container);
  }
  Result<uint64_t> suspend_vaddr(ContainerHandle container, uint64_t iova, uint64_t size) override {
    return to_.suspend_vaddr(container, iova, size);
  }
  Result<void> resume_vaddr(ContainerHandle container, uint64_t iova, uint64_t size,
                            void* vaddr) override {
    return to_.resume_vaddr(container, iova, size, vaddr);
  }

 private:
  kernel::Port& to_;
};

/// The tables of several domains as those of one container.
class JoinedTables : public kernel::TableSource {
 public:
  void add(std::unique_ptr<kernel::TableSource> domain) { domains_.push_back(std::move(domain)); }
  Result<const std::byte*> page(uint64_t physical) override {
    Result<const std::byte*> out = fail("page", "is in no domain");
    for (auto& domain : domains_)
      if (out = domain->page(physical); out) break;
    return out;
  }
  Result<std::vector<kernel::TableRoot>> roots() override {
    std::vector<kernel::TableRoot> out;
    for (auto& domain : domains_) {
      HOLDFAST_TRY_ASSIGN(const auto roots, domain->roots());
      out.insert(out.end(), roots.begin(), roots.end());
    }
    return out;
  }

 private:
  std::vector<std::unique_ptr<kernel::TableSource>> domains_;
};

}  // namespace holdfast::testing
