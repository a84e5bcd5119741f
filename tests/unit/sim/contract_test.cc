#include "tests/support/port_contract.h"

#include "restore/kernel/iommufd.h"
#include "restore/kernel/sim/iommufd_calls.h"
#include "tests/unit/sim/lab.h"

namespace holdfast::testing {
namespace {

/// A simulated kernel of some behaviour, as a lab for the cases that every port must pass.
template <sim::Behaviour kBehaviour>
class SimLab : public PortLab {
 public:
  explicit SimLab(const std::string& region = "dax0") : region_(region) {
    sim::MachineOptions machine;
    machine.regions.push_back({"memfd0", 0x3'0000'0000, 16 << 20});
    machine_ = std::make_unique<sim::Machine>(*sim::Machine::create(folder_, machine));
    sim::KernelOptions options;
    options.behaviour = kBehaviour;
    kernel_ = std::move(*sim::Kernel::boot(folder_, folder_ + "/kernel", options));
    port_ = std::move(*sim::SimPort::connect(folder_ + "/kernel"));
  }
  kernel::Port& port() override { return *port_; }
  Device device() override { return *machine_->describe_device("0000:00:04.0"); }
  Region region() override { return *machine_->describe_region(machine_->region_path(region_)); }

 protected:
  sim::SimPort& sim() { return *port_; }

 private:
  std::string region_;
  TempDir scratch_;
  std::string folder_ = scratch_.path() + "/machine";
  std::unique_ptr<sim::Machine> machine_;
  std::unique_ptr<sim::Kernel> kernel_;
  std::unique_ptr<sim::SimPort> port_;
};

/// iommufd of the same kernel. Memory that MAP_FILE takes, or refuses and is mapped by address.
class IommufdLab : public SimLab<sim::Behaviour::kStock> {
 public:
  explicit IommufdLab(const std::string& region) : SimLab(region) {}
  kernel::Port& port() override { return port_; }

 private:
  sim::SimIommufd calls_{sim()};
  kernel::IommufdPort port_{calls_, sim()};
};

template <sim::Behaviour kBehaviour>
std::unique_ptr<PortLab> make_lab() {
  return std::make_unique<SimLab<kBehaviour>>();
}
std::unique_ptr<PortLab> make_iommufd_file() {
  return std::make_unique<IommufdLab>("memfd0");
}
std::unique_ptr<PortLab> make_iommufd_devdax() {
  return std::make_unique<IommufdLab>("dax0");
}

INSTANTIATE_TEST_SUITE_P(StockSim, PortContract,
                         ::testing::Values(&make_lab<sim::Behaviour::kStock>));
INSTANTIATE_TEST_SUITE_P(PatchedSim, PortContract,
                         ::testing::Values(&make_lab<sim::Behaviour::kPatched>));
INSTANTIATE_TEST_SUITE_P(IommufdFile, PortContract, ::testing::Values(&make_iommufd_file));
INSTANTIATE_TEST_SUITE_P(IommufdDevdax, PortContract, ::testing::Values(&make_iommufd_devdax));

}  // namespace
}  // namespace holdfast::testing
