#include "tests/support/port_contract.h"

#include "tests/unit/sim/lab.h"

namespace holdfast::testing {
namespace {

/// A simulated kernel of some behaviour, as a lab for the cases that every port must pass.
template <sim::Behaviour kBehaviour>
class SimLab : public PortLab {
 public:
  SimLab() {
    machine_ = std::make_unique<sim::Machine>(*sim::Machine::create(folder_));
    sim::KernelOptions options;
    options.behaviour = kBehaviour;
    kernel_ = std::move(*sim::Kernel::boot(folder_, folder_ + "/kernel", options));
    port_ = std::move(*sim::SimPort::connect(folder_ + "/kernel"));
  }
  kernel::Port& port() override { return *port_; }
  Device device() override { return *machine_->describe_device("0000:00:04.0"); }
  Region region() override { return *machine_->describe_region(machine_->region_path("dax0")); }

 private:
  TempDir scratch_;
  std::string folder_ = scratch_.path() + "/machine";
  std::unique_ptr<sim::Machine> machine_;
  std::unique_ptr<sim::Kernel> kernel_;
  std::unique_ptr<sim::SimPort> port_;
};

template <sim::Behaviour kBehaviour>
std::unique_ptr<PortLab> make_lab() {
  return std::make_unique<SimLab<kBehaviour>>();
}

INSTANTIATE_TEST_SUITE_P(StockSim, PortContract,
                         ::testing::Values(&make_lab<sim::Behaviour::kStock>));
INSTANTIATE_TEST_SUITE_P(PatchedSim, PortContract,
                         ::testing::Values(&make_lab<sim::Behaviour::kPatched>));

}  // namespace
}  // namespace holdfast::testing
