#include "tests/support/vdpa_contract.h"

#include "restore/kernel/sim/vdpa_calls.h"
#include "tests/unit/sim/lab.h"

namespace holdfast::testing {
namespace {

struct Pinned {
  static constexpr bool kUseVa = false, kNewOwner = true;
};
struct OwnersAddresses {
  static constexpr bool kUseVa = true, kNewOwner = true;
};
struct Stock {
  static constexpr bool kUseVa = true, kNewOwner = false;
};

template <typename What>
class SimVdpaLab : public VdpaLab {
 public:
  SimVdpaLab() {
    machine_ = std::make_unique<sim::Machine>(*sim::Machine::create(folder_));
    sim::KernelOptions options;
    options.vdpa = {{.name = "other"}, {.name = "disk0", .use_va = What::kUseVa}};
    options.vdpa_new_owner = What::kNewOwner;
    kernel_ = std::move(*sim::Kernel::boot(folder_, folder_ + "/kernel", options));
    sim_ = std::move(*sim::SimPort::connect(folder_ + "/kernel"));
    calls_ = std::make_unique<sim::SimVdpa>(*sim_);
    port_ = std::make_unique<kernel::VdpaPort>(*calls_, *sim_);
  }
  kernel::VdpaCalls& calls() override { return *calls_; }
  kernel::VdpaPort& port() override { return *port_; }
  Device device() override { return *calls_->describe("disk0"); }
  Region region() override { return *machine_->describe_region(machine_->region_path("dax0")); }

 private:
  TempDir scratch_;
  std::string folder_ = scratch_.path() + "/machine";
  std::unique_ptr<sim::Machine> machine_;
  std::unique_ptr<sim::Kernel> kernel_;
  std::unique_ptr<sim::SimPort> sim_;
  std::unique_ptr<sim::SimVdpa> calls_;
  std::unique_ptr<kernel::VdpaPort> port_;
};

template <typename What>
std::unique_ptr<VdpaLab> make() {
  return std::make_unique<SimVdpaLab<What>>();
}

INSTANTIATE_TEST_SUITE_P(Pinned, VdpaContract, ::testing::Values(&make<Pinned>));
INSTANTIATE_TEST_SUITE_P(OwnersAddresses, VdpaContract, ::testing::Values(&make<OwnersAddresses>));
INSTANTIATE_TEST_SUITE_P(Stock, VdpaContract, ::testing::Values(&make<Stock>));

}  // namespace
}  // namespace holdfast::testing
