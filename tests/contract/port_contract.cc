// The cases of tests/support/port_contract.h on the kernel that runs: for a machine with a device
// to spare, as the virtual ones of tests/vm have it.
//
//   port_contract BDF MEMORY [gtest's own arguments]
//
// BDF: bound to vfio-pci, in a group of its own. MEMORY: a file of at least 8 MiB that devices may
// reach: on tmpfs, or a device of devdax.

#include <cstdio>

#include "restore/kernel/iommufd_host.h"
#include "tests/support/port_contract.h"

namespace holdfast::testing {
namespace {

std::string g_device, g_memory;

template <ContainerKind kKind>
class HostLab : public PortLab {
 public:
  kernel::Port& port() override { return *host_.serving(kKind); }
  Device device() override { return host_.describe_device(g_device).value(); }
  Region region() override { return host_.describe_region(g_memory).value(); }

 private:
  kernel::HostPort host_;
};

template <ContainerKind kKind>
std::unique_ptr<PortLab> make_lab() {
  return std::make_unique<HostLab<kKind>>();
}

INSTANTIATE_TEST_SUITE_P(Type1, PortContract, ::testing::Values(&make_lab<ContainerKind::kType1>));
INSTANTIATE_TEST_SUITE_P(Iommufd, PortContract,
                         ::testing::Values(&make_lab<ContainerKind::kIommufd>));

}  // namespace
}  // namespace holdfast::testing

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (argc != 3) {
    std::fprintf(stderr, "usage: port_contract BDF MEMORY\n");
    return 2;
  }
  holdfast::testing::g_device = argv[1];
  holdfast::testing::g_memory = argv[2];
  holdfast::testing::errno_kernel(holdfast::testing::running_kernel());
  holdfast::testing::expect_every_errno_row();
  return RUN_ALL_TESTS();
}
