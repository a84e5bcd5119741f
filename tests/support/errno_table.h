#pragma once

// tests/golden/errno.tsv: what each kernel answers, a row per interface, input and kernel. The
// cases of the contracts (port_contract.h, vdpa_contract.h) hold what they get against it, on the
// simulated kernel and on real ones, and so name the rows that they reach. A row that differs, is
// missing, or is there and not reached fails.

#include <string>
#include <string_view>

namespace holdfast::testing {

/// One call's outcome: fails the running test if the table says another errno for this kernel, or
/// has no row. Prints the row as it would have to be. `got`: errno, 0: done. Returns it.
int errno_row(std::string_view interface, std::string_view input, int got);

/// The kernel whose rows count: by default "sim". For a real one name_running_kernel().
void errno_kernel(std::string name);

/// What the kernel that runs is called in the table: "linux-6.1", "linux-6.12-holdfast".
std::string running_kernel();

/// For programs that run all cases of some interfaces: at the end a row of theirs that no case
/// reached fails. In a test program whose cases run one by one this is what
/// HOLDFAST_ERRNO_COMPLETE=1 asks for.
void expect_every_errno_row();

}  // namespace holdfast::testing
