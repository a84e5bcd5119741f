# shellcheck shell=dash
# A pool of 2 MiB that is used up while a NIC fills its ring.
#
#   vm.sparse=sparse   also by a call that gets one of the two tables that it needs

SECOND=0000:00:12.0

step1() {
  scenario "$(parameter vm.scenario)"
  try "devdax from memmap=" devdax 0
  try "the NIC is bound" bind "$NIC"
  try "a second one is bound" bind $SECOND
  sparse=$(parameter vm.sparse)
  # shellcheck disable=SC2086 # nothing, or one word
  expect 0 "a pool that is used up refuses, and goes on" raw_pool "$NIC" /dev/dax0.0 $SECOND $sparse
  show_out
  # One line for each refused call: a mapping, a container, a mapping in the middle; the sparse one.
  lines=$(dmesg | grep -c "the pool of 512 pages is exhausted")
  wanted=3
  [ -z "$sparse" ] || wanted=4
  if [ "$lines" = $wanted ]; then
    say "ok $SCENARIO: the kernel's log says so, once for each"
  else
    dmesg | grep -e preserve -e exhausted
    fail "the kernel's log says so $lines times"
  fi
  [ -z "$(cat /sys/kernel/iommu_preserve/domains)" ] || fail "a domain is left"
  used=$(cat /sys/kernel/iommu_preserve/pool_used)
  if [ "$used" -gt 24576 ]; then fail "the pool is not empty again: $used bytes"; fi
  kernel_is_calm
  done_with "$SCENARIO"
}
